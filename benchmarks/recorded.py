"""Recorded digits as events (the layout of SHD): test accuracy on takes left out, and on speakers left out.

    python -m benchmarks.recorded FILE.h5.gz                      takes 0 to 4 are the test set
    python -m benchmarks.recorded FILE.h5.gz --leave-out speaker  each speaker in turn is

FILE has `extra/speaker` and `extra/repetition` (the take). A fifth of the other samples, drawn by class, selects the
network; the rest trains it. Options are those of `ranvier train` for the shipped speech, with `--epochs` and `--seeds`.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from ranvier.config import Config
from ranvier.data import Splits, hdf5
from ranvier.data.splits import stratified
from ranvier.runs import Run
from ranvier.train import fit

TAKES = 5


def repetitions(path):
    """The take of each sample."""
    import gzip

    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file, h5py.File(file, "r") as content:
        return np.asarray(content["extra/repetition"])


def divided(dataset, tested):
    """Splits with the samples that `tested` (n,) names as the test set."""
    rest, test = np.flatnonzero(~tested), np.flatnonzero(tested)
    train, validation = (rest[part] for part in stratified(dataset.labels[rest], (0.8, 0.2), 0))
    return Splits(dataset.subset(train), dataset.subset(validation), dataset.subset(test))


def trained(splits, seed, options):
    """Test accuracy, validation accuracy, and seconds."""
    config = Config(epochs=options.epochs, seed=seed, augment_shift=40, augment_stretch=0.1).validate()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config)
        report = fit(config, splits, run)
        best = max(row["top1"] for row in run.metrics() if row["split"] == "validation")
    return report.rows[0]["top1"], best, time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--leave-out", choices=("takes", "speaker"), default="takes")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    dataset, notes = hdf5.read(options.file)
    print(*notes, f"{len(dataset)} samples, {dataset.n_classes} classes", sep="\n")
    if options.leave_out == "takes":
        tests = {f"takes 0 to {TAKES - 1}": repetitions(options.file) < TAKES}
    else:
        tests = {f"speaker {who}": dataset.speaker == who for who in np.unique(dataset.speaker)}
    print("| test set | samples | test % | validation % | s |\n|---|---|---|---|---|", flush=True)
    every = []
    for name, tested in tests.items():
        for seed in range(options.seeds):
            test, validation, seconds = trained(divided(dataset, tested), seed, options)
            every.append(100 * test)
            print(
                f"| {name} | {tested.sum()} | {100 * test:.1f} | {100 * validation:.1f} | {seconds:.0f} |", flush=True
            )
    print(f"mean {statistics.mean(every):.1f} %, {min(every):.1f} to {max(every):.1f}")


if __name__ == "__main__":
    main()
