"""`Recordings`: a data set as arrays on the device, from which a batch is gathered without the host."""

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
        label = self.label[indices]
        count = self.class_count[label]
        drawn = jnp.floor(jax.random.uniform(key, indices.shape) * count).astype(jnp.int32)
        return self.by_class[self.class_start[label] + jnp.minimum(drawn, count - 1)]


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
    row = max(1, dataset.max_events) if row is None else row
    if row < max(1, dataset.max_events):
        raise RanvierError(
            f"to_device: got row {row} for data set {dataset.name}; needs at least {max(1, dataset.max_events)}, the "
            "events of the longest sample; raise row or leave it out"
        )
    if len(dataset.times) > MOST_EVENTS:
        raise RanvierError(
            f"to_device: got {len(dataset.times)} events in data set {dataset.name}; needs at most {MOST_EVENTS}; "
            "use fewer samples"
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
