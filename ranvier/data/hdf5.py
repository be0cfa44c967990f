"""Reader of the HDF5 layout of the Spiking Heidelberg Digits: one variable-length row of events a sample.

    spikes/times   times in s, one row a sample      labels          class of each sample
    spikes/units   channels, one row a sample        extra/speaker   (optional) voice of each sample
                                                     extra/keys      (optional) names of the classes

Reference: Cramer, Stradmann, Schemmel, Zenke (2020), The Heidelberg spiking data sets for the systematic evaluation of
spiking neural networks.
"""

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError

# More classes than any labelled spike set has: a larger label is a broken file, not a class.
MAX_CLASSES = 65_536


def read(path: str | os.PathLike, *, n_channels: int = 700) -> tuple[Dataset, tuple[str, ...]]:
    """Data set of one file, plain or compressed by gzip (name ends in `.gz`).

    Parameters
    ----------
    path : path
    n_channels : int
        Number of input channels; units must be below it.

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
    raw = _arrays(path)
    counts = _row_lengths(path, raw)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    keys = raw["extra/keys"]
    labels = _whole(path, "label", raw["labels"], MAX_CLASSES if keys is None else len(keys))
    speaker = raw["extra/speaker"]
    if speaker is not None:
        speaker = _whole(path, "speaker", speaker, 2**31)
    channels = _whole(path, "unit", _flat(raw["spikes/units"]), n_channels, offsets)
    times = _milliseconds(path, _flat(raw["spikes/times"]), offsets)
    notes = []
    late = np.diff(times) < 0
    late[offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(times))] - 1] = False
    if late.any():
        mixed = np.unique(_samples(offsets, np.nonzero(late)[0]))
        order = np.lexsort((times, np.repeat(np.arange(len(counts)), counts)))
        times, channels = times[order], channels[order]
        notes.append(f"{path.name}: {len(mixed)} samples with unsorted times, first sample {mixed[0]}; sorted")
    empty = np.nonzero(counts == 0)[0]
    if len(empty):
        notes.append(f"{path.name}: {len(empty)} samples without events, first sample {empty[0]}; kept")
    names = tuple(str(k) for k in range(int(labels.max()) + 1)) if keys is None else keys
    return Dataset(path.name, times, channels, offsets, labels, n_channels, names, speaker), tuple(notes)


def _arrays(path: Path) -> dict:
    import h5py

    if not path.is_file():
        _refuse(path, "no such file", "an HDF5 file with spikes/times, spikes/units and labels", "check the path")
    try:
        with h5py.File(_source(path), "r") as file:
            return _contents(path, file)
    except RanvierError:
        raise
    except (OSError, EOFError, zlib.error, RuntimeError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        _refuse(path, f"cannot be read ({reason})", "a whole HDF5 file, or one compressed by gzip", "fetch it again")


def _source(path: Path):
    if path.suffix != ".gz":
        return path
    # Into memory: HDF5 seeks, and every seek backwards in a gzip stream would unpack it from the start again.
    with gzip.open(path) as stream:
        return io.BytesIO(stream.read())


def _contents(path: Path, file) -> dict:
    import h5py

    found = {}
    for name in ("spikes/times", "spikes/units", "labels", "extra/speaker", "extra/keys"):
        item = file.get(name)
        if item is None and name.startswith("extra/"):
            found[name] = None
            continue
        if not isinstance(item, h5py.Dataset):
            _refuse(path, f"no dataset {name}", "spikes/times, spikes/units and labels", "check how it was written")
        kind = item.dtype.kind
        if name.startswith("spikes/"):
            row_type = h5py.check_vlen_dtype(item.dtype)
            kind = "O" if row_type is None else np.dtype(row_type).kind
            if row_type is not None and not np.dtype(row_type).isnative:
                # h5py hands out the bytes of such rows unswapped.
                _refuse(
                    path, f"{name} in foreign byte order", "rows in the byte order of this machine", "write it again"
                )
        if item.ndim != 1 or kind not in ("SO" if name == "extra/keys" else "iuf"):
            needed = "rows of numbers, one a sample" if name.startswith("spikes/") else "one entry a sample or class"
            _refuse(path, f"{name} of shape {item.shape} and type {item.dtype}", needed, "check how it was written")
        found[name] = item[:]
    if found["extra/keys"] is not None:
        found["extra/keys"] = tuple(_text(key) for key in found["extra/keys"])
    return found


def _text(key) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def _row_lengths(path: Path, raw: dict) -> np.ndarray:
    lengths = {name: len(rows) for name, rows in raw.items() if rows is not None and name != "extra/keys"}
    if len(set(lengths.values())) != 1 or lengths["labels"] == 0:
        shown = ", ".join(f"{name} {n}" for name, n in lengths.items())
        _refuse(path, f"numbers of samples: {shown}", "the same number in all, at least 1", "check how it was written")
    times, units = (np.array([len(row) for row in raw[name]], np.int64) for name in ("spikes/times", "spikes/units"))
    if (times != units).any():
        i = int(np.argmax(times != units))
        _refuse(path, f"sample {i} has {times[i]} times and {units[i]} units", "one unit a time", "drop the sample")
    return times


def _flat(rows: np.ndarray) -> np.ndarray:
    full = [row for row in rows if len(row)]
    return np.concatenate(full) if full else np.zeros(0, np.float32)


def _whole(path: Path, what: str, values: np.ndarray, limit: int, offsets: np.ndarray | None = None) -> np.ndarray:
    """Values as int32, refused unless whole and in [0, limit); `offsets` says where samples begin, if not one each."""
    wrong = ~((values >= 0) & (values < limit))
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        at = int(np.argmax(wrong))
        sample = at if offsets is None else _samples(offsets, at)
        found = f"sample {sample} has {what} {values[at]}"
        _refuse(path, found, f"whole {what}s in [0, {limit})", "correct the file or drop the sample")
    return values.astype(np.int32)


def _milliseconds(path: Path, seconds: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        times = (seconds.astype(np.float64) * 1000.0).astype(np.float32)
    wrong = ~(np.isfinite(times) & (times >= 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        found = f"sample {_samples(offsets, at)} has time {seconds[at]} s"
        _refuse(path, found, "finite times >= 0 s", "correct the file or drop the sample")
    return times


def _samples(offsets: np.ndarray, events):
    """Sample to which each event belongs."""
    return np.searchsorted(offsets, events, side="right") - 1


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.load: {path}: {found}; needs {needed}; {remedy}")
