"""Reader of 40-bit event records, the format of N-MNIST and N-Caltech101: one file a sample, one folder a class.

    byte 0: x    byte 1: y    byte 2: polarity (top bit), time (other bits)    bytes 3, 4: time, 23 bits in all [us]

A record with y = 240 is no event: the clock has wrapped, and all later times are 2^13 us later.

Reference: Orchard, Jayawant, Cohen, Thakor (2015), Converting static image datasets to spiking neuromorphic datasets
using saccades.
"""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from ranvier.data.piece import Piece, sorted_in_time
from ranvier.errors import RanvierError

VERSION = 1
SENSOR = (2, 34, 34)
RECORD = 5  # bytes
WRAPPED = 240  # the y that says that the clock has wrapped
WRAP_US = 2**13


def decode(names: Sequence[str], blobs: Sequence[bytes], sensor: tuple[int, int, int] = SENSOR) -> Piece:
    """Events of some files, decoded all at once.

    Parameters
    ----------
    names : (n,) str
        What messages call the files.
    blobs : (n,) bytes
        Their contents.
    sensor : (2, height, width)

    Returns
    -------
    Piece
        A sample a file; labels are 0.

    Raises
    ------
    RanvierError
        If a file is no whole number of records, or an event lies outside of the sensor; the message names both.
    """
    _, height, width = sensor
    sizes = np.array([len(blob) for blob in blobs], np.int64)
    cut = np.flatnonzero(sizes % RECORD)
    if len(cut):
        _refuse(names[int(cut[0])], f"{sizes[cut[0]]} bytes", "whole records of 5 bytes", "fetch the file again")
    counts = sizes // RECORD
    starts = np.cumsum(counts) - counts
    # A copy by columns: what follows then runs through memory in order.
    x, y, third, high, low = np.ascontiguousarray(np.frombuffer(b"".join(blobs), np.uint8).reshape(-1, RECORD).T)
    marker = y == WRAPPED
    wrong = ((x >= width) | (y >= height)) & ~marker
    if wrong.any():
        at = int(np.argmax(wrong))
        file = int(np.searchsorted(starts, at, side="right")) - 1
        found = f"record {at - starts[file]} at x {x[at]}, y {y[at]}"
        needed = f"x < {width}, y < {height} (or y {WRAPPED}, a clock mark)"
        _refuse(names[file], found, needed, "name the size of the sensor, or fetch the file again")
    us = third.astype(np.int32)
    channels = (us >> 7) * (height * width)
    us &= 127
    for byte in (high, low):
        us <<= 8
        us |= byte
    row = y.astype(np.int32)
    row *= width
    channels += row
    channels += x
    if marker.any():
        wraps = np.cumsum(marker)
        before = np.concatenate([[0], wraps])[starts]
        us = us + WRAP_US * (wraps - np.repeat(before, counts))
        kept = ~marker
        us, channels = us[kept], channels[kept]
        counts = counts - (np.concatenate([[0], wraps])[starts + counts] - before)
        times = (us / 1000.0).astype(np.float32)
    else:
        times = us.astype(np.float32)  # exact: 23 bits
        times /= np.float32(1000.0)
    return sorted_in_time(names, times, channels, counts)


def _refuse(name: str, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.nmnist: {name}: got {found}; needs {needed}; {remedy}")
