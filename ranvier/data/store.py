"""The store: a data set packed in one file that is mapped into memory, not read.

    bytes 0 to 7     `ranvier` and a zero
    bytes 8 to 31    u32 version, u32 CRC-32 of the header, u64 place and u64 length of the header
    arrays           times float32 ms, channels int32, offsets int64, labels int32, speaker int32 (or none), each
                     from a multiple of 4,096 bytes on
    header           JSON: the key, names, sizes, notes, and of each array type, shape, place and CRC-32

All little-endian. The key says what the content was made from (`ranvier.data.convert`).
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError

VERSION = 1
ENDING = ".events"
MAGIC = b"ranvier\0"
PREFIX = struct.Struct("<8sIIQQ")
PAGE = 4096
TYPES = {"times": "<f4", "channels": "<i4", "offsets": "<i8", "labels": "<i4", "speaker": "<i4"}
# Up to here a store is read whole and its checksums are compared whenever it is opened; larger ones only by `verify`.
CHECKED_BYTES = 1 << 30
BLOCK = 1 << 24  # bytes


def write(
    path: str | os.PathLike, dataset: Dataset, *, key: str = "", notes: Sequence[str] = (), sync: bool = True
) -> None:
    """Write a data set, atomically.

    Parameters
    ----------
    path : path
    dataset : Dataset
    key : str
        What determines the content, see `ranvier.data.convert.key_of`.
    notes : sequence of str
        Lines to show to whoever uses the data.
    sync : bool
        Wait until the disk has it. Without, a machine that stops may leave a file that is refused when it is read.

    Raises
    ------
    RanvierError
        If the file cannot be written.
    """
    join(path, [dataset], name=dataset.name, key=key, notes=notes, sync=sync)


def join(
    path: str | os.PathLike,
    parts: Sequence[Dataset],
    *,
    name: str,
    key: str = "",
    notes: Sequence[str] = (),
    sync: bool = True,
) -> None:
    """Write data sets one after the other as one, atomically, without holding them in memory at once.

    Parameters
    ----------
    path : path
    parts : sequence of Dataset
        At least one, with the channels and the sensor of the first; the classes are those of the part that has most.
    name : str
        Of the data set.
    key : str
    notes : sequence of str
    sync : bool

    Raises
    ------
    RanvierError
        If the parts have different channels, or the file cannot be written.
    """
    path = Path(path)
    first = parts[0]
    if any((part.n_channels, part.sensor) != (first.n_channels, first.sensor) for part in parts):
        _refuse(path, "parts of different channels", "the same channels in all", "convert them apart")
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    speakers = [part.speaker for part in parts if part.speaker is not None]
    arrays: dict[str, Iterable[np.ndarray]] = {
        "times": (part.times for part in parts),
        "channels": (part.channels for part in parts),
        "offsets": [np.concatenate([[0], np.cumsum(counts)])],
        "labels": (part.labels for part in parts),
    }
    if len(speakers) == len(parts):
        arrays["speaker"] = speakers
    header: dict[str, Any] = {
        "name": name,
        "key": key,
        "n_channels": int(first.n_channels),
        "class_names": list(max((part.class_names for part in parts), key=len)),
        "sensor": None if first.sensor is None else list(first.sensor),
        "notes": list(notes),
        "arrays": {},
    }
    with _replaced(path, sync) as file:
        file.write(bytes(PREFIX.size))
        for label, blocks in arrays.items():
            place, crc, length = _round_up(file.tell()), 0, 0
            file.seek(place)
            for block in blocks:
                block = np.ascontiguousarray(block, TYPES[label])
                file.write(block)
                crc, length = zlib.crc32(block.data, crc), length + len(block)
            header["arrays"][label] = {"type": TYPES[label], "length": length, "place": place, "crc32": crc}
        place = file.tell()
        text = json.dumps(header, ensure_ascii=False).encode()
        file.write(text)
        file.seek(0)
        file.write(PREFIX.pack(MAGIC, VERSION, zlib.crc32(text), place, len(text)))


def read(path: str | os.PathLike) -> tuple[Dataset, tuple[str, ...]]:
    """Open a store: its arrays are maps of the file.

    Parameters
    ----------
    path : path

    Returns
    -------
    dataset : Dataset
    notes : tuple of str

    Raises
    ------
    RanvierError
        If the file is missing, no store, of another version, truncated or (up to 1 GiB) changed.
    """
    path = Path(path)
    header, arrays = _mapped(path)
    if path.stat().st_size <= CHECKED_BYTES:
        _compare(path, header, arrays)
    return _dataset(path, header, arrays), tuple(header["notes"])


def key_in(path: str | os.PathLike) -> str:
    """The key of a store.

    Parameters
    ----------
    path : path

    Returns
    -------
    str

    Raises
    ------
    RanvierError
        As `read`.
    """
    return _header(Path(path))["key"]


def verify(path: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> None:
    """Read a whole store and compare its checksums, whatever its size.

    Parameters
    ----------
    path : path
    progress : function of bytes done and bytes in all, optional

    Raises
    ------
    RanvierError
        As `read`, or if an array is not what was written.
    """
    path = Path(path)
    header, arrays = _mapped(path)
    _compare(path, header, arrays, progress)
    _dataset(path, header, arrays)


def _round_up(place: int) -> int:
    return -(-place // PAGE) * PAGE


@contextmanager
def _replaced(path: Path, sync: bool) -> Iterator:
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(work, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(work, path)
    except OSError as error:
        reason = " ".join(str(error).split())
        _refuse(path, f"a file that cannot be written ({reason})", "a writable folder with room", "choose another")
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def _header(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(PREFIX.size)
            if len(start) < PREFIX.size or start[: len(MAGIC)] != MAGIC:
                _refuse(path, "a file that is no store", "a file that ranvier data convert wrote", "convert it")
            _, version, crc, place, length = PREFIX.unpack(start)
            if version != VERSION:
                _refuse(path, f"a store of version {version}", f"version {VERSION}", "convert the data again")
            if place + length != size:
                _refuse(path, f"{size} bytes", f"{place + length}", "the file is cut; convert the data again")
            file.seek(place)
            text = file.read(length)
    except OSError as error:
        _refuse(path, f"a file that cannot be read ({error.strerror})", "a store", "check the path")
    if zlib.crc32(text) != crc:
        _refuse(path, "a header that was changed", "the checksum it has", "convert the data again")
    return json.loads(text)


def _mapped(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    header = _header(path)
    with open(path, "rb") as file:
        # Private and writable would let a user change pages by mistake; read-only refuses it.
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays = {
        name: np.frombuffer(buffer, fact["type"], fact["length"], fact["place"])
        for name, fact in header["arrays"].items()
    }
    return header, arrays


def _compare(
    path: Path, header: dict, arrays: dict[str, np.ndarray], progress: Callable[[int, int], None] | None = None
) -> None:
    done, total = 0, sum(array.nbytes for array in arrays.values())
    for name, array in arrays.items():
        crc, flat = 0, array.view(np.uint8)
        for start in range(0, len(flat), BLOCK):
            block = flat[start : start + BLOCK]
            crc, done = zlib.crc32(block.data, crc), done + len(block)
            if progress is not None:
                progress(done, total)
        if crc != header["arrays"][name]["crc32"]:
            _refuse(path, f"{name} that were changed", "the checksum in the header", "convert the data again")


def _dataset(path: Path, header: dict, arrays: dict[str, np.ndarray]) -> Dataset:
    offsets, labels = arrays["offsets"], arrays["labels"]
    whole = len(offsets) == len(labels) + 1 and offsets[0] == 0 and offsets[-1] == len(arrays["times"])
    if not whole or np.any(np.diff(offsets) < 0) or len(arrays["times"]) != len(arrays["channels"]):
        _refuse(path, "offsets that do not fit the events", "a store as it was written", "convert the data again")
    n_classes = len(header["class_names"])
    if len(labels) and (labels.min() < 0 or labels.max() >= n_classes):
        _refuse(path, f"labels up to {labels.max()}", f"labels below {n_classes}", "convert the data again")
    return Dataset(
        name=header["name"],
        times=arrays["times"],
        channels=arrays["channels"],
        offsets=offsets,
        labels=labels,
        n_channels=header["n_channels"],
        class_names=tuple(header["class_names"]),
        speaker=arrays.get("speaker"),
        sensor=None if header["sensor"] is None else tuple(header["sensor"]),
    )


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.store: {path}: got {found}; needs {needed}; {remedy}")
