"""Reader of the HDF5 layout of the Spiking Heidelberg Digits: one variable-length row of events a sample.

    spikes/times   times in s, one row a sample      labels          class of each sample
    spikes/units   channels, one row a sample        extra/speaker   (optional) voice of each sample
                                                     extra/keys      (optional) names of the classes

Two attributes of the file are ours, and other readers pass them by: `n_channels`, and `sensor` (polarities, height,
width) of a camera.

Reference: Cramer, Stradmann, Schemmel, Zenke (2020), The Heidelberg spiking data sets for the systematic evaluation of
spiking neural networks.
"""

import math
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
# Of a file that says nothing: those of the Spiking Heidelberg Digits.
N_CHANNELS = 700


def read(
    path: str | os.PathLike,
    *,
    n_channels: int | None = None,
    otherwise: int = N_CHANNELS,
    start: int = 0,
    stop: int | None = None,
) -> tuple[Dataset, tuple[str, ...]]:
    """Data set of one file, plain or compressed by gzip (name ends in `.gz`).

    Parameters
    ----------
    path : path
    n_channels : int, optional
        Number of input channels; units must be below it. By default what the file says of itself.
    otherwise : int
        Number of input channels where neither says it.
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
        If the file is missing, truncated, not HDF5, lacks a group, holds values that are no labelled spike trains or
        says another number of channels than `n_channels`; the message names the file and the sample.
    """
    path = Path(path)
    raw = _arrays(path, start, stop)
    n_channels, sensor = _channels(path, raw, n_channels, otherwise)
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
    return Dataset(path.name, times, channels, offsets, labels, n_channels, names, speaker, sensor), tuple(notes)


def describe(
    path: str | os.PathLike, n_channels: int | None = None
) -> tuple[int, tuple[str, ...], int, tuple[int, int, int] | None]:
    """What a file holds, without its events.

    Parameters
    ----------
    path : path
    n_channels : int, optional
        As `read` takes it.

    Returns
    -------
    n : int
        Number of samples.
    class_names : tuple of str
    n_channels : int
    sensor : (polarities, height, width), optional

    Raises
    ------
    RanvierError
        If the file is missing or broken, or says another number of channels than `n_channels`.
    """
    path = Path(path)
    raw = _arrays(path, names=("labels", "extra/keys"))
    return len(raw["labels"]), _class_names(path, raw), *_channels(path, raw, n_channels, N_CHANNELS)


def _channels(path: Path, raw: dict, asked: int | None, otherwise: int) -> tuple[int, tuple[int, int, int] | None]:
    """Number of channels and sensor: what the file says, which must be what is asked for."""
    sensor = raw["attributes"].get("sensor")
    said = raw["attributes"].get("n_channels", None if sensor is None else math.prod(sensor))
    if sensor is not None and (min(sensor) < 1 or math.prod(sensor) != said):
        found = f"attribute sensor {sensor} of {said} channels"
        _refuse(path, found, "polarities, height and width whose product they are", "correct the attributes")
    if said is not None and not 1 <= said < 2**31:
        _refuse(path, f"attribute n_channels {said}", "a number in [1, 2^31)", "correct or remove the attribute")
    if said is not None and asked not in (None, said):
        _refuse(path, f"n_channels {asked} for a file of {said} channels", "what the file says", "leave n_channels out")
    n_channels = next(n for n in (asked, said, otherwise) if n is not None)
    return n_channels, None if sensor is None else (sensor[0], sensor[1], sensor[2])


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
    facts = {"extra/keys": None if keys is None else tuple(keys), "attributes": head["attributes"]}
    return {"extra/speaker": None} | arrays | facts


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
