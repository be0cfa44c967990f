"""How fast event data are read: each format on generated files, the store, batches; tonic beside it where it is there.

    python benchmarks/data.py [--samples 2000] [--folder FOLDER] [--shd]

Files are made in a temporary folder and read from the page cache; each figure is the median of three. MB are those of
the files. `--shd` adds a set of the size of SHD: 8,156 samples, 65 million events.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import importlib.util
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ranvier.data import Dataset, aedat, hdf5, hdf5_writer, nmnist, store
from ranvier.data.convert import convert, source_of
from ranvier.data.files import Files
from ranvier.data.recordings import to_device
from ranvier.data.splits import stratified
from ranvier.data.stream import stream

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.event_files import random_aedat, random_nmnist

REPEATS = 3


def measured(call) -> tuple[float, object]:
    """Median time in s, and what the last call gave."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def row(what: str, seconds: float, n_samples: int, n_events: int, n_bytes: int) -> None:
    rates = f"{n_samples / seconds:>11,.0f} {n_bytes / seconds / 1e6:>9,.0f} {n_events / seconds / 1e6:>10,.1f}"
    print(f"{what:44}{seconds:>9.3f} {rates}", flush=True)


def spoken(n: int, n_events: int, seed: int = 0) -> Dataset:
    """Samples like those of SHD: 700 channels, some 8,000 events in 1.4 s."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_events, np.full(n, 1 / n))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    times = rng.random(n_events, dtype=np.float32) * 1369
    for a, b in zip(offsets[:-1], offsets[1:], strict=True):
        times[a:b].sort()
    channels = rng.integers(0, 700, n_events, dtype=np.int32)
    labels, who = (np.arange(n, dtype=np.int32) % k for k in (20, 12))
    return Dataset("spoken", times, channels, offsets, labels, 700, tuple(map(str, range(20))), who)


def tonic_io():
    """tonic's readers of files, without what else tonic needs; None where it is not installed."""
    found = importlib.util.find_spec("tonic")
    if found is None or found.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("tonic_io", Path(found.origin).with_name("io.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nmnist_files(folder: Path, n: int, tonic) -> None:
    rng = np.random.default_rng(0)
    for k in range(10):
        (folder / str(k)).mkdir(parents=True)
    for i in range(n):
        (folder / str(i % 10) / f"{i:05d}.bin").write_bytes(random_nmnist(rng, 4200))
    files = Files(folder, ".bin")
    size = sum(size for size, _ in files.facts.values())

    def ours():
        for i in range(0, n, 128):
            nmnist.decode(files.names[i : i + 128], files.read(files.names[i : i + 128]))

    row("N-MNIST, 40-bit records", measured(ours)[0], n, 4200 * n, size)
    out = folder.parent / "n.events"
    row("  to a store, all cores", measured(lambda: convert(source_of(folder), out))[0], n, 4200 * n, size)
    if tonic is not None:
        paths = [str(folder / name) for name in files.names]

        def theirs():
            for path in paths:
                tonic.read_mnist_file(path, dtype=np.dtype([("x", int), ("y", int), ("t", int), ("p", int)]))

        row("  tonic.io.read_mnist_file", measured(theirs)[0], n, 4200 * n, size)


def aedat_file(folder: Path, n_events: int, tonic) -> None:
    path = folder / "user01_led.aedat"
    path.write_bytes(random_aedat(np.random.default_rng(0), n_events, n_events // 5000, last_us=100_000_000))
    size = path.stat().st_size
    row("AEDAT 3.1, one recording", measured(lambda: aedat.read(path))[0], 1, n_events, size)
    if tonic is not None:
        try:
            row("  tonic.io.read_dvs_ibm", measured(lambda: tonic.read_dvs_ibm(str(path)))[0], 1, n_events, size)
        except Exception as error:  # whatever it raises, ours stands
            print(f"  tonic.io.read_dvs_ibm: {type(error).__name__}: {error}")


def hdf5_file(folder: Path, n: int) -> None:
    dataset = spoken(n, 8000 * n)
    for name, kind in (("a.h5", "float16"), ("a.h5.gz", "float16")):
        path = folder / name
        hdf5_writer.write(path, dataset, times=kind)
        row(
            f"HDF5 in the layout of SHD, {name.partition('.')[2]}",
            measured(lambda path=path: hdf5.read(path))[0],
            n,
            8000 * n,
            path.stat().st_size,
        )
    path = folder / "a.h5"

    def one_by_one():  # what tonic's SHD does for each sample
        import h5py

        for i in range(n):
            with h5py.File(path, "r") as file:
                np.asarray(file["spikes/times"][i], np.float32) * 1e6, np.asarray(file["spikes/units"][i])

    row("  h5py, file opened for each sample", measured(one_by_one)[0], n, 8000 * n, path.stat().st_size)


def stores(folder: Path, dataset: Dataset, title: str) -> None:
    path, n, events = folder / "s.events", len(dataset), len(dataset.times)
    store.write(path, dataset)
    size = path.stat().st_size

    def load():
        whole, _ = store.read(path)
        return [whole.subset(part) for part in stratified(whole.labels, (0.8, 0.2), 0)]

    row(f"store of {title}: open", measured(lambda: store.read(path))[0], n, events, size)
    seconds, parts = measured(load)
    row("  open, divide 80 : 20", seconds, n, events, size)
    seconds, _ = measured(lambda: [to_device(part).time.block_until_ready() for part in parts])
    row("  put on the device", seconds, n, events, size)
    whole, _ = store.read(path)
    rng = np.random.default_rng(0)
    order = rng.permutation(n)[: n // 128 * 128].reshape(-1, 128)[:20]
    some = int(np.diff(whole.offsets)[order.ravel()].sum())

    def streamed():
        for batch in stream(whole, order):
            batch.events.time.block_until_ready()

    row("  20 streamed batches of 128", measured(streamed)[0], order.size, some, 8 * some)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shd", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    tonic = tonic_io()
    try:
        import jax

        print(f"{platform.processor() or platform.machine()}, {jax.devices()[0]}, NumPy {np.__version__}")
        if tonic is None:
            print("tonic is not installed")
        print(f"{'':44}{'s':>9} {'samples/s':>11} {'MB/s':>9} {'M events/s':>10}")
        nmnist_files(folder / "n", options.samples, tonic)
        aedat_file(folder, 2500 * options.samples, tonic)
        hdf5_file(folder, options.samples // 4)
        if options.shd:
            stores(folder, spoken(8156, 65_000_000), "the size of SHD")
        else:
            stores(folder, spoken(options.samples, 8000 * options.samples), f"{options.samples} samples")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
