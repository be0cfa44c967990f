"""Writer of the HDF5 layout of the Spiking Heidelberg Digits; `ranvier.data.hdf5` has the layout and reads it."""

import contextlib
import gzip
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError

# Types of the times: what the Spiking Heidelberg Digits have, and one that keeps the microsecond.
TIME_TYPES = ("float16", "float32")


def write(
    path: str | os.PathLike,
    dataset: Dataset,
    *,
    keys: Sequence[str] | None = None,
    speaker: np.ndarray | Sequence[int] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    times: str = "float16",
) -> None:
    """Write a data set as HDF5, atomically: whoever looks finds the old file or the whole new one.

    A time in float16 is rounded by at most 0.06 ms up to 0.25 s, 0.13 ms up to 0.5 s, 0.25 ms up to 1 s and 0.5 ms up
    to 2 s, as in the Spiking Heidelberg Digits; float32 keeps the microsecond. The number of channels and the sensor
    are attributes of the file.

    Parameters
    ----------
    path : path
        A name in `.gz` is compressed by gzip.
    dataset : Dataset
        Channels below 65,536.
    keys : (n_classes,) str, optional
        Names of the classes; by default those of `dataset`.
    speaker : (n,) int, optional
        Who or what made each sample; by default that of `dataset`, and left out where it has none.
    extra : dict of str to array (n, ...), optional
        More facts of each sample, written as `extra/NAME`; a name may hold `/`.
    times : str
        "float16" or "float32".

    Raises
    ------
    RanvierError
        If a number of samples or classes is another one, a channel or a time does not fit the type, or the file cannot
        be written.

    References
    ----------
    Cramer, Stradmann, Schemmel, Zenke (2020), The Heidelberg spiking data sets for the systematic evaluation of spiking
    neural networks.
    """
    path = Path(path)
    keys = tuple(dataset.class_names if keys is None else keys)
    speaker = dataset.speaker if speaker is None else np.asarray(speaker)
    facts = dict(extra or {}) | ({} if speaker is None else {"speaker": speaker})
    _check(path, dataset, keys, facts, times)
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    packed = path.with_name(f".{path.name}.{os.getpid()}.gz.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fill(work, dataset, keys, facts, times)
        if path.suffix == ".gz":
            # No name and no time of day inside: the same data make the same bytes.
            with open(work, "rb") as source, open(packed, "wb") as file:
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            os.replace(packed, work)
        with open(work, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(work, path)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise RanvierError(
            f"data.write: {path}: cannot be written ({reason}); needs a writable folder with room; choose another"
        ) from error
    finally:
        for left in (work, packed):
            with contextlib.suppress(OSError):
                left.unlink()


def _fill(path: Path, dataset: Dataset, keys: tuple[str, ...], facts: dict, times: str) -> None:
    import h5py

    n = len(dataset)
    # float64 on the way: a time must be rounded once.
    seconds = (dataset.times.astype(np.float64) / 1000.0).astype(times)
    with h5py.File(path, "w") as file:
        # What other readers pass by, and ours need not be told again.
        file.attrs["n_channels"] = int(dataset.n_channels)
        if dataset.sensor is not None:
            file.attrs["sensor"] = np.array(dataset.sensor, np.int64)
        for name, values in (("times", seconds), ("units", dataset.channels.astype(np.uint16))):
            target = file.create_dataset(f"spikes/{name}", (n,), h5py.vlen_dtype(values.dtype))
            # One by one: of rows that all have the same length h5py would make a matrix.
            for i in range(n):
                target[i] = values[dataset.offsets[i] : dataset.offsets[i + 1]]
        file.create_dataset("labels", data=dataset.labels.astype(np.uint16))
        file.create_dataset(
            "extra/keys", data=np.array([key.encode() for key in keys], object), dtype=h5py.string_dtype()
        )
        for name, values in facts.items():
            values = np.asarray(values)
            if values.dtype.kind == "U":
                values = np.array([str(text).encode() for text in values.ravel()], object).reshape(values.shape)
                file.create_dataset(f"extra/{name}", data=values, dtype=h5py.string_dtype())
            else:
                file.create_dataset(f"extra/{name}", data=values)


def _check(path: Path, dataset: Dataset, keys: tuple[str, ...], facts: dict, times: str) -> None:
    n = len(dataset)
    if times not in TIME_TYPES:
        _refuse(path, f"times in {times!r}", f"one of {', '.join(TIME_TYPES)}", "choose one")
    if len(keys) != dataset.n_classes or dataset.n_classes > 2**16:
        _refuse(path, f"{len(keys)} keys for {dataset.n_classes} classes", "a key each, up to 65,536", "correct keys")
    for name, values in facts.items():
        if len(np.asarray(values)) != n:
            _refuse(
                path, f"extra/{name} of {len(np.asarray(values))} samples", f"one entry for each of {n}", "correct it"
            )
    channels = dataset.channels
    if channels.size and (channels.min() < 0 or channels.max() >= min(dataset.n_channels, 2**16)):
        found = f"channels from {channels.min()} to {channels.max()}"
        _refuse(path, found, f"channels in [0, {min(dataset.n_channels, 2**16)})", "correct the data set")
    latest = 1000.0 * float(np.finfo(times).max)
    if dataset.times.size and not (dataset.times.min() >= 0 and dataset.latest < latest):
        found = f"times from {dataset.times.min()} to {dataset.times.max()} ms"
        _refuse(path, found, f"times in [0, {latest:g}) ms", "correct the data set")


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.write: {path}: got {found}; needs {needed}; {remedy}")
