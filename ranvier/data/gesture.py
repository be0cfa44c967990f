"""Reader of DVS128 Gesture: AEDAT 3.1 recordings of a user each, and beside each a table of the gestures in it.

    userNN_LIGHT.aedat            the recording
    userNN_LIGHT_labels.csv       class,startTime_usec,endTime_usec; classes 1 to 11
    trials_to_train.txt, trials_to_test.txt     the official division, by user: one recording a line

Each row of a table is a sample: the events with start <= t < end, in ms since the start.

Reference: Amir and others (2017), A low power, fully event-based gesture recognition system.
"""

import csv
import re
from pathlib import Path
from typing import NoReturn

import numpy as np

from ranvier.data import aedat
from ranvier.data.piece import Piece, sorted_in_time
from ranvier.errors import RanvierError

VERSION = 1
SENSOR = (2, 128, 128)
NAMES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter clockwise",
    "left arm clockwise",
    "left arm counter clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)


def table_of(path: Path) -> Path:
    """The table that belongs to a recording."""
    return path.with_name(f"{path.stem}_labels.csv")


def gestures(path: Path, n_classes: int = len(NAMES)) -> np.ndarray:
    """Rows of a table.

    Parameters
    ----------
    path : Path
    n_classes : int

    Returns
    -------
    (n, 3) int64
        Class from 0 on, start and end [us].

    Raises
    ------
    RanvierError
        If the file cannot be read or a row is no gesture; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(path, f"a table that cannot be read ({error})", "lines class,start,end", "fetch the file again")
    rows = []
    for number, row in enumerate(csv.reader(lines), 1):
        if not row or (number == 1 and not row[0].strip().isdigit()):
            continue  # an empty line, the titles
        fields = [field.strip() for field in row]
        if len(fields) != 3 or not all(re.fullmatch(r"[0-9]{1,18}", field) for field in fields):
            _refuse(path, f"line {number}: {','.join(row)[:80]!r}", "three whole numbers class,start,end", "correct it")
        kind, start, end = map(int, fields)
        if not 1 <= kind <= n_classes or start >= end:
            found = f"line {number}: class {kind} from {start} to {end} us"
            _refuse(path, found, f"a class from 1 to {n_classes} and a start before the end", "correct it")
        rows.append((kind - 1, start, end))
    if not rows:
        _refuse(path, "no gesture", "a line class,start,end for each", "fetch the file again")
    return np.array(rows, np.int64)


def decode(path: Path, sensor: tuple[int, int, int] = SENSOR) -> Piece:
    """Samples of a recording: one a row of its table.

    Parameters
    ----------
    path : Path
        The recording.
    sensor : (2, height, width)

    Returns
    -------
    Piece
        With the number of the user as speaker, where the name of the file begins with it.

    Raises
    ------
    RanvierError
        If either file is broken.
    """
    us, channels, notes = aedat.read(path, height=sensor[1], width=sensor[2])
    rows = gestures(table_of(path))
    if np.any(us[1:] < us[:-1]):
        order = np.argsort(us, kind="stable")
        us, channels = us[order], channels[order]
        notes += (f"{path.name}: unsorted times; sorted",)
    notes += _overlaps(path, rows)
    first, last = np.searchsorted(us, rows[:, 1]), np.searchsorted(us, rows[:, 2])
    cuts = [slice(a, b) for a, b in zip(first, last, strict=True)]
    times = [((us[cut] - start) / 1000.0).astype(np.float32) for cut, start in zip(cuts, rows[:, 1], strict=True)]
    names = [f"{path.name}, gesture {i}" for i in range(len(rows))]
    events = np.concatenate([channels[cut] for cut in cuts])
    piece = sorted_in_time(names, np.concatenate(times), events, last - first)
    user = re.match(r"user(\d{1,9})", path.name)
    who = None if user is None else np.full(len(rows), int(user[1]))
    piece = piece.labelled(rows[:, 0], who)
    return Piece(piece.times, piece.channels, piece.counts, piece.labels, piece.speaker, notes + piece.notes)


def _overlaps(path: Path, rows: np.ndarray) -> tuple[str, ...]:
    """A line for each gesture that ends after another one starts: one of the published set does (user 22, LED)."""
    rows = rows[np.argsort(rows[:, 1], kind="stable")]
    late = np.flatnonzero(rows[:-1, 2] > rows[1:, 1])
    return tuple(
        f"WARNING: {table_of(path).name}: class {rows[i, 0] + 1} ends at {rows[i, 2]} us, after class "
        f"{rows[i + 1, 0] + 1} starts at {rows[i + 1, 1]} us; events between are in both samples"
        for i in late
    )


def trials(path: Path) -> list[Path]:
    """Recordings that a list names, beside it.

    Parameters
    ----------
    path : Path

    Returns
    -------
    list of Path

    Raises
    ------
    RanvierError
        If the list is missing, empty, or names a file that is not there.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        _refuse(path, f"a list that cannot be read ({error})", "a recording a line", "fetch the file again")
    files = [path.parent / Path(name).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        found = f"{len(missing)} of {len(files)} recordings missing, the first {missing[0]}" if missing else "no line"
        _refuse(path, found, "a recording a line, beside it", "fetch the files again")
    return files


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.gesture: {path}: got {' '.join(found.split())}; needs {needed}; {remedy}")
