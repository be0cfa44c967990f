"""`Recordings`: a data set as arrays on the device, from which a batch is gathered without the host."""

import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError
from ranvier.events import Events

# Positions of events are int32 on the device.
MOST_EVENTS = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Recordings:
    """A data set on the device; sample i has the events `start[i]` to `start[i] + count[i]`.

    Parameters
    ----------
    time : (S,) float32 [ms]
    channel : (S,) int32
    start, count : (n,) int32
    label : (n,) int32
    by_class : (n,) int32
        The samples, those of a class next to each other.
    class_start, class_count : (K,) int32
        Where each class is in `by_class`.
    latest : () [ms]
        Time of the last event of all samples.
    n_channels : int
        M; static.
    row : int
        Length E of the rows of a batch; static, at least the number of events of the longest sample.
    sensor : (polarities, height, width), optional
        Of a camera; static, see `Dataset`.
    mate : (B,) int32 or None
        Of the samples of one batch alone, see `ranvier.data.stream.Streamed`: the classmate of each, drawn before;
        `by_class` is then empty.
    """

    time: jax.Array
    channel: jax.Array
    start: jax.Array
    count: jax.Array
    label: jax.Array
    by_class: jax.Array
    class_start: jax.Array
    class_count: jax.Array
    latest: jax.Array
    n_channels: int = field(metadata={"static": True})
    row: int = field(metadata={"static": True})
    sensor: tuple[int, int, int] | None = field(default=None, metadata={"static": True})
    mate: jax.Array | None = None

    def __len__(self) -> int:
        return len(self.label)

    def at(self, indices: np.ndarray) -> "tuple[Recordings, np.ndarray]":
        """Recordings that have the samples `indices`, and where: all of them, here."""
        return self, indices

    def feed(self, order: np.ndarray) -> "Feed":
        """Batches of the samples `order` (k, B), in that order."""
        return Feed(lambda k: ((self, indices) for indices in order[k:]))

    def batch(self, indices: jax.Array) -> Events:
        """Events of the samples `indices` (B,), which must be in [0, n): (B, E), as `Dataset.batch` gives them."""
        column = jnp.arange(self.row, dtype=jnp.int32)[None, :]
        there = column < self.count[indices][:, None]
        position = jnp.where(there, self.start[indices][:, None] + column, 0)
        return Events(
            jnp.where(there, self.time[position], jnp.inf),
            jnp.where(there, self.channel[position], 0),
            self.n_channels,
        )

    def classmates(self, key: jax.Array, indices: jax.Array) -> jax.Array:
        """For each of the samples `indices` (B,) one of its class, drawn from all of them: (B,) int32."""
        if self.mate is not None:
            return self.mate[indices]
        if self.by_class.shape != self.label.shape:
            raise RanvierError(
                f"Recordings.classmates: got {len(self)} samples of a larger data set; needs their classmates; "
                "draw these before the samples are sent"
            )
        label = self.label[indices]
        count = self.class_count[label]
        drawn = jnp.floor(jax.random.uniform(key, indices.shape) * count).astype(jnp.int32)
        return self.by_class[self.class_start[label] + jnp.minimum(drawn, count - 1)]


Batches = Generator[tuple[Recordings, np.ndarray], None, None]


class Feed:
    """Batches in order, as (recordings, where in these the samples of the batch are); leave it by `with`.

    Parameters
    ----------
    begin : function of k
        The batches from number k on.
    at_once : int
        Batches that there is room for before the results of the first are there.
    """

    def __init__(self, begin: Callable[[int], Batches], at_once: int = sys.maxsize):
        self.begin, self.at_once = begin, at_once
        self._next, self._batches = 0, begin(0)

    def __getitem__(self, k: int) -> tuple[Recordings, np.ndarray]:
        """Batch k; another than the one after the last means to begin anew there."""
        if k != self._next:
            self._close()
            self._batches = self.begin(k)
        self._next = k + 1
        return next(self._batches)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._batches.close()


def row_of(dataset: Dataset, row: int | None) -> int:
    """Length of the rows of a batch; None: the number of events of the longest sample, and no less is taken."""
    least = max(1, dataset.max_events)
    if row is not None and row < least:
        raise RanvierError(
            f"to_device: got row {row} for data set {dataset.name}; needs at least {least}, the "
            "events of the longest sample; raise row or leave it out"
        )
    return least if row is None else row


def to_device(dataset: Dataset, row: int | None = None) -> Recordings:
    """Put a data set on the default device.

    Parameters
    ----------
    dataset : Dataset
    row : int or None
        Length of the rows of a batch; None: the number of events of the longest sample.

    Returns
    -------
    Recordings

    Raises
    ------
    RanvierError
        If `row` is less than the longest sample, or there are more events than int32 can count.
    """
    row = row_of(dataset, row)
    if len(dataset.times) > MOST_EVENTS:
        raise RanvierError(
            f"to_device: got {len(dataset.times)} events in data set {dataset.name}; needs at most {MOST_EVENTS}; "
            "use fewer samples, or set stream to on"
        )
    # A gather needs something to point at even if no sample has an event.
    none = len(dataset.times) == 0
    class_count = np.bincount(dataset.labels, minlength=dataset.n_classes)
    return Recordings(
        time=jnp.asarray(np.zeros(1) if none else dataset.times, jnp.float32),
        channel=jnp.asarray(np.zeros(1) if none else dataset.channels, jnp.int32),
        start=jnp.asarray(dataset.offsets[:-1], jnp.int32),
        count=jnp.asarray(np.diff(dataset.offsets), jnp.int32),
        label=jnp.asarray(dataset.labels, jnp.int32),
        by_class=jnp.asarray(np.argsort(dataset.labels, kind="stable"), jnp.int32),
        class_start=jnp.asarray(np.cumsum(class_count) - class_count, jnp.int32),
        class_count=jnp.asarray(class_count, jnp.int32),
        latest=jnp.asarray(dataset.latest, jnp.float32),
        n_channels=dataset.n_channels,
        row=row,
        sensor=dataset.sensor,
    )
