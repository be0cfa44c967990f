"""`Dataset`: labelled spike trains in flat NumPy arrays; `Splits`: the three parts of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ranvier.errors import RanvierError
from ranvier.events import Events, pad_rows

# Rows of a batch are this many events or a multiple, so that data sets of similar size share one compiled program.
CAPACITY_STEP = 256


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled spike trains, one after the other.

    Sample i has the events `offsets[i]` to `offsets[i + 1]`, sorted in time.

    Parameters
    ----------
    name : str
    times : (S,) float32 [ms]
    channels : (S,) int32
    offsets : (n + 1,) int64
    labels : (n,) int32
        Class of each sample, in [0, n_classes).
    n_channels : int
    class_names : tuple of str
        One name a class.
    speaker : (n,) int32, optional
        Who or what made each sample; None where the source does not say.
    sensor : (polarities, height, width), optional
        Of a camera: the channel of polarity p, row y, column x is (p height + y) width + x.
    """

    name: str
    times: np.ndarray
    channels: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    n_channels: int
    class_names: tuple[str, ...]
    speaker: np.ndarray | None = None
    sensor: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def max_events(self) -> int:
        """Number of events of the longest sample."""
        return int(np.diff(self.offsets).max(initial=0))

    @property
    def latest(self) -> float:
        """Time of the last event of all samples [ms]; 0 without events."""
        return float(self.times.max(initial=0.0))

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
        """Data set of the samples `indices`, in that order.

        Samples next to each other stay where they are (a memory map is not read); others are copied.

        Raises
        ------
        RanvierError
            If an index is no sample.
        """
        indices = self._sample_indices("Dataset.subset", indices)
        counts = np.diff(self.offsets)[indices]
        # Runs of neighbours are copied at once.
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1) if len(indices) else []
        rows = [slice(self.offsets[run[0]], self.offsets[run[-1] + 1]) for run in runs]
        return Dataset(
            name=self.name,
            times=_joined(self.times, rows),
            channels=_joined(self.channels, rows),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            labels=self.labels[indices],
            n_channels=self.n_channels,
            class_names=self.class_names,
            speaker=None if self.speaker is None else self.speaker[indices],
            sensor=self.sensor,
        )

    def batch(self, indices: Sequence[int] | np.ndarray, capacity: int | None = None) -> Events:
        """Events of the samples `indices`, in that order.

        Parameters
        ----------
        indices : (B,)
        capacity : int, optional
            Length E of the rows; by default `max_events` of the whole data set rounded up to a multiple of 256, so
            that every batch has one shape.

        Returns
        -------
        Events
            Times in float32.

        Raises
        ------
        RanvierError
            If an index is no sample or a sample has more events than `capacity`.
        """
        indices = self._sample_indices("Dataset.batch", indices)
        counts = np.diff(self.offsets)[indices]
        if capacity is None:
            capacity = max(1, -(-self.max_events // CAPACITY_STEP)) * CAPACITY_STEP
        elif counts.max(initial=0) > capacity:
            worst = int(np.argmax(counts))
            raise RanvierError(
                f"Dataset.batch: got sample {indices[worst]} with {counts[worst]} events for a capacity of {capacity}; "
                f"needs capacity >= {self.max_events}, the longest sample; raise capacity or leave it out"
            )
        rows = [slice(self.offsets[i], self.offsets[i + 1]) for i in indices]
        return pad_rows(
            [self.times[row] for row in rows], [self.channels[row] for row in rows], self.n_channels, capacity
        )

    def _sample_indices(self, where: str, indices) -> np.ndarray:
        array = np.asarray(indices)
        if array.size == 0 and array.ndim == 1:
            return array.astype(np.int64)
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= len(self):
            raise RanvierError(
                f"{where}: got indices {_shown(array)}; needs a 1-D array of integers in [0, {len(self)}); correct them"
            )
        return array.astype(np.int64)


def _joined(array: np.ndarray, rows: list[slice]) -> np.ndarray:
    if len(rows) <= 1:
        return array[rows[0]] if rows else array[:0]
    return np.concatenate([array[row] for row in rows])


def _shown(array: np.ndarray) -> str:
    text = f"of shape {array.shape} and type {array.dtype}"
    return f"{text} from {array.min()} to {array.max()}" if array.size and array.dtype.kind in "iuf" else text


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set; no sample is in two of them.

    Parameters
    ----------
    train, validation, test : Dataset
    test_groups : dict of str to (k,) int64
        Named groups of the test set, as indices into it.
    notes : tuple of str
        Lines to show to whoever uses the data.
    index : dict of str to (n,) int64
        Where the samples of `train`, `validation` and `test` are in the source of each.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    test_groups: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    index: dict[str, np.ndarray] = field(default_factory=dict)
