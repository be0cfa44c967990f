"""Reader of AEDAT 3.1 recordings: the polarity events of an event camera, in packets.

    text     lines that begin with #, the first `#!AER-DAT3.1`, the last `#!END-HEADER`
    packet   28 bytes: u16 type, u16 source, u32 size of an event, offset of its time, times wrapped, capacity, number,
             valid; then `capacity` events, of which the first `number` are there
    event    of type 1 (polarity): u32 data, u32 time [us], 31 bits; bit 0 of data: valid, bit 1: polarity,
             bits 2 to 16: y, bits 17 to 31: x

All little-endian. Packets of other types are passed over, and so are events that are not valid. Programs other than
the camera's own may leave bit 0 of all events empty: in a packet whose header counts all of them valid, they are.
"""

import os
from pathlib import Path
from typing import NoReturn

import numpy as np

from ranvier.errors import RanvierError

VERSION = 2
POLARITY, LAST_TYPE = 1, 13
HEADER, EVENT = 28, 8  # bytes
LONGEST_TEXT = 1 << 20  # bytes of header lines; a file without their end is no recording


def read(path: str | os.PathLike, *, height: int = 128, width: int = 128) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Polarity events of a recording, in the order of the file.

    Parameters
    ----------
    path : path
    height, width : int
        Of the sensor.

    Returns
    -------
    us : (S,) int64 [us]
        Times since the clock of the camera was reset.
    channels : (S,) int32
        (polarity height + y) width + x.
    notes : tuple of str
        What was unusual and accepted.

    Raises
    ------
    RanvierError
        If the file is missing, is no AEDAT 3.1, ends inside a packet, or an event lies outside of the sensor; the
        message names the file, the packet and the byte where it begins.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})", "an AEDAT 3.1 recording", "check the path")
    at = _end_of_text(path, raw)
    words, channels, notes = [], [], []
    packet = 0
    while at < len(raw):
        where = f"packet {packet} at byte {at}"
        if len(raw) - at < HEADER:
            _refuse(path, f"{where} ends in its header", f"{HEADER} bytes", "fetch the file again")
        kind = int.from_bytes(raw[at : at + 2], "little")
        size, offset, wraps, capacity, number, valid = np.frombuffer(raw, "<u4", 6, at + 4).tolist()
        start, stop = at + HEADER, at + HEADER + size * capacity
        if kind > LAST_TYPE or capacity == 0 or not valid <= number <= capacity:
            found = f"{where} of type {kind} with capacity {capacity}, number {number}, valid {valid}"
            _refuse(path, found, f"a type up to {LAST_TYPE} and valid <= number <= capacity", "fetch the file again")
        if stop > len(raw):
            found = f"{where} of {size * capacity} bytes, with {len(raw) - start} left"
            _refuse(path, found, "whole packets", "fetch the file again")
        if kind == POLARITY:
            if (size, offset) != (EVENT, 4) or wraps >= 2**31:
                found = f"{where} with events of {size} bytes, times at {offset}, wrapped {wraps} times"
                _refuse(path, found, f"{EVENT} bytes, times at 4, wrapped < 2^31 times", "fetch the file again")
            data, us = np.frombuffer(raw, "<u4", 2 * number, start).reshape(-1, 2).T
            there = (data & 1) == 1
            marked = int(np.count_nonzero(there))
            if marked != valid:
                unmarked = marked == 0 and valid == number
                there |= unmarked
                found = "marks none; all taken" if unmarked else f"has {marked}"
                notes.append(f"{path.name}: {where} says {valid} valid events and {found}")
            if not there.all():
                data, us = data[there], us[there]
            words.append(us.astype(np.int64) + (wraps << 31))
            channels.append(_channels(path, where, data, us, height, width))
        at, packet = stop, packet + 1
    if len(notes) > 1:
        notes = [f"{notes[0]} (and {len(notes) - 1} more packets like it)"]
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *words]), np.concatenate([none.astype(np.int32), *channels]), tuple(notes)


def _end_of_text(path: Path, raw: bytes) -> int:
    if not raw.startswith(b"#!AER-DAT3."):
        _refuse(path, f"a beginning of {raw[:12]!r}", "AEDAT 3.1, which begins with #!AER-DAT3.1", "convert it first")
    at = 0
    while at < min(len(raw), LONGEST_TEXT) and raw[at : at + 1] == b"#":
        end = raw.find(b"\n", at, LONGEST_TEXT)
        if end < 0:
            break
        line, at = raw[at:end].strip(), end + 1
        if line.startswith(b"#!END-HEADER"):
            return at
    _refuse(path, f"a text that ends at byte {at}", "a line #!END-HEADER at its end", "fetch the file again")


def _channels(path: Path, where: str, data: np.ndarray, us: np.ndarray, height: int, width: int) -> np.ndarray:
    x, y, p = data >> 17, (data >> 2) & 0x7FFF, (data >> 1) & 1
    wrong = (x >= width) | (y >= height) | (us >= 2**31)
    if wrong.any():
        at = int(np.argmax(wrong))
        found = f"{where} with an event at x {x[at]}, y {y[at]}, {us[at]} us"
        _refuse(path, found, f"x < {width}, y < {height}, a time below 2^31", "name the size of the sensor")
    return ((p * np.uint32(height) + y) * np.uint32(width) + x).astype(np.int32)


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.aedat: {path}: got {found}; needs {needed}; {remedy}")
