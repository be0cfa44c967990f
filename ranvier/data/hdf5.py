"""Reader of the HDF5 layout of the Spiking Heidelberg Digits: one variable-length row of events a sample.

    spikes/times   times in s, one row a sample      labels          class of each sample
    spikes/units   channels, one row a sample        extra/speaker   (optional) voice of each sample
                                                     extra/keys      (optional) names of the classes

Reference: Cramer, Stradmann, Schemmel, Zenke (2020), The Heidelberg spiking data sets for the systematic evaluation of
spiking neural networks.
"""

import os
from pathlib import Path
from typing import NoReturn

import numpy as np

from ranvier.data import hdf5_process
from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError

# More classes than any labelled spike set has: a larger label is a broken file, not a class.
MAX_CLASSES = 65_536
ARRAYS = ("spikes/times", "spikes/units", "labels", "extra/speaker", "extra/keys")


def read(
    path: str | os.PathLike, *, n_channels: int = 700, start: int = 0, stop: int | None = None
) -> tuple[Dataset, tuple[str, ...]]:
    """Data set of one file, plain or compressed by gzip (name ends in `.gz`).

    Parameters
    ----------
    path : path
    n_channels : int
        Number of input channels; units must be below it.
    start, stop : int, optional
        Read only the samples from `start` to before `stop`.

    Returns
    -------
    dataset : Dataset
        Times in ms, sorted within each sample. Its name is that of the file.
    notes : tuple of str
        What was unusual and accepted: unsorted times, samples without events.

    Raises
    ------
    RanvierError
        If the file is missing, truncated, not HDF5, lacks a group or holds values that are no labelled spike trains;
        the message names the file and the sample.
    """
    path = Path(path)
    raw = _arrays(path, start, stop)
    counts = _row_lengths(path, raw, start)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    names = _class_names(path, raw, start)
    labels = raw["labels"].astype(np.int32)
    speaker = raw["extra/speaker"]
    if speaker is not None:
        speaker = _whole(path, "speaker", speaker, 2**31, start)
    channels = _whole(path, "unit", raw["spikes/units"], n_channels, start, offsets)
    times = _milliseconds(path, raw["spikes/times"], start, offsets)
    notes = []
    late = np.diff(times) < 0
    late[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(times))] - 1] = False
    if late.any():
        mixed = np.unique(_samples(offsets, np.nonzero(late)[0]))
        order = np.lexsort((times, np.repeat(np.arange(len(counts)), counts)))
        times, channels = times[order], channels[order]
        notes.append(f"{path.name}: {len(mixed)} samples with unsorted times, first sample {mixed[0] + start}; sorted")
    empty = np.nonzero(counts == 0)[0]
    if len(empty):
        notes.append(f"{path.name}: {len(empty)} samples without events, first sample {empty[0] + start}; kept")
    return Dataset(path.name, times, channels, offsets, labels, n_channels, names, speaker), tuple(notes)


def describe(path: str | os.PathLike) -> tuple[int, tuple[str, ...]]:
    """Number of samples and names of the classes of a file, without its events.

    Parameters
    ----------
    path : path

    Returns
    -------
    n : int
    class_names : tuple of str

    Raises
    ------
    RanvierError
        If the file is missing or broken.
    """
    path = Path(path)
    raw = _arrays(path, names=("labels", "extra/keys"))
    return len(raw["labels"]), _class_names(path, raw)


def _class_names(path: Path, raw: dict, first: int = 0) -> tuple[str, ...]:
    keys = raw["extra/keys"]
    labels = _whole(path, "label", raw["labels"], MAX_CLASSES if keys is None else len(keys), first)
    return tuple(str(k) for k in range(int(labels.max(initial=-1)) + 1)) if keys is None else keys


def _arrays(path: Path, start: int = 0, stop: int | None = None, names: tuple[str, ...] = ARRAYS) -> dict:
    if not path.is_file():
        _refuse(path, "no such file", "an HDF5 file with spikes/times, spikes/units and labels", "check the path")
    try:
        head, arrays = hdf5_process.ask(path, start, stop, names)
    except hdf5_process.Broken as error:
        head, arrays = {"error": str(error)}, {}
    if "refused" in head:
        _refuse(path, *head["refused"])
    if "error" in head:
        found = f"cannot be read ({head['error']})"
        _refuse(path, found, "a whole HDF5 file, or one compressed by gzip", "fetch it again")
    keys = head["keys"]
    return {"extra/speaker": None} | arrays | {"extra/keys": None if keys is None else tuple(keys)}


def _row_lengths(path: Path, raw: dict, first: int) -> np.ndarray:
    times, units = raw["spikes/times counts"], raw["spikes/units counts"]
    if (times != units).any():
        i = int(np.argmax(times != units))
        found = f"sample {first + i} has {times[i]} times and {units[i]} units"
        _refuse(path, found, "one unit a time", "drop the sample")
    return times


def _whole(
    path: Path, what: str, values: np.ndarray, limit: int, first: int, offsets: np.ndarray | None = None
) -> np.ndarray:
    """Values as int32, refused unless whole and in [0, limit); `offsets` says where samples begin, if not one each."""
    wrong = ~((values >= 0) & (values < limit))
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        at = int(np.argmax(wrong))
        sample = first + (at if offsets is None else _samples(offsets, at))
        found = f"sample {sample} has {what} {values[at]}"
        _refuse(path, found, f"whole {what}s in [0, {limit})", "correct the file or drop the sample")
    return values.astype(np.int32)


def _milliseconds(path: Path, seconds: np.ndarray, first: int, offsets: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        times = (seconds.astype(np.float64) * 1000.0).astype(np.float32)
    wrong = ~(np.isfinite(times) & (times >= 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        found = f"sample {first + _samples(offsets, at)} has time {seconds[at]} s"
        _refuse(path, found, "finite times >= 0 s", "correct the file or drop the sample")
    return times


def _samples(offsets: np.ndarray, events):
    """Sample to which each event belongs."""
    return np.searchsorted(offsets, events, side="right") - 1


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.load: {path}: {found}; needs {needed}; {remedy}")
