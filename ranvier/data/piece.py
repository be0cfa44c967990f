"""`Piece`: some samples on their way from a file into a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Piece:
    """Samples one after the other.

    Parameters
    ----------
    times : (S,) float32 [ms]
        Sorted within each sample.
    channels : (S,) int32
    counts : (n,) int64
        Events of each sample.
    labels : (n,) int32
    speaker : (n,) int32, optional
    notes : tuple of str
        What was unusual and accepted.
    """

    times: np.ndarray
    channels: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    speaker: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def labelled(self, labels, speaker=None) -> "Piece":
        """The same samples with other labels and speakers.

        Parameters
        ----------
        labels : (n,) int
        speaker : (n,) int, optional

        Returns
        -------
        Piece
        """
        who = None if speaker is None else np.asarray(speaker, np.int32)
        return replace(self, labels=np.asarray(labels, np.int32), speaker=who)


def sorted_in_time(names: Sequence[str], times: np.ndarray, channels: np.ndarray, counts: np.ndarray) -> Piece:
    """A piece with each sample sorted in time; what was unsorted or empty is noted.

    Parameters
    ----------
    names : (n,) str
        What notes call the samples.
    times, channels : (S,)
    counts : (n,) int

    Returns
    -------
    Piece
        Labels are 0.
    """
    notes = []
    ends = np.cumsum(counts)
    late = np.diff(times, prepend=times[:1]) < 0
    late[(ends - counts)[counts > 0]] = False
    if late.any():
        mixed = np.unique(np.searchsorted(ends, np.flatnonzero(late), side="right"))
        order = np.lexsort((times, np.repeat(np.arange(len(counts)), counts)))
        times, channels = times[order], channels[order]
        notes.append(f"{names[mixed[0]]}: unsorted times; sorted" + _others(len(mixed)))
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        notes.append(f"{names[empty[0]]}: no events; kept as an empty sample" + _others(len(empty)))
    return Piece(times, channels, np.asarray(counts, np.int64), np.zeros(len(counts), np.int32), None, tuple(notes))


def _others(n: int) -> str:
    return f" (and {n - 1} more like it)" if n > 1 else ""
