"""`stream`: batches of a data set that is larger than the device, prepared by threads while the last one is used."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.data.recordings import MOST_EVENTS, Batches, Feed, Recordings, row_of, to_device
from ranvier.errors import RanvierError
from ranvier.events import Events

EVENT_BYTES = 8  # float32 time, int32 channel

# Data sets that need a larger part of the free memory of the device are streamed: a network needs most of it.
FREE_PART = 0.5

# Batches of a training run that are ready before they are asked for, and that are in use at once.
AHEAD = 2

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples on the device.

    Parameters
    ----------
    events : Events
        (B, E).
    label : (B,) int32
        NumPy.
    indices : (B,) int64
        Which samples these are; NumPy.
    """

    events: Events
    label: np.ndarray
    indices: np.ndarray


def bytes_on_device(dataset: Dataset) -> int:
    """Room that a whole data set takes on the device, see `ranvier.data.recordings.to_device`.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    int
    """
    return EVENT_BYTES * len(dataset.times) + 16 * len(dataset)


def too_large(datasets: Sequence[Dataset]) -> bool:
    """Whether data sets take more than `FREE_PART` of the free memory of the device together; never on a CPU."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return False
    memory = device.memory_stats() or {}
    free = memory.get("bytes_limit", math.inf) - memory.get("bytes_in_use", 0)
    most = max(len(dataset.times) for dataset in datasets)
    return most > MOST_EVENTS or sum(map(bytes_on_device, datasets)) > FREE_PART * free


class Streamed:
    """A data set that stays on the host, with the interface of `Recordings` that training and measuring use.

    Each batch is a `Recordings` of its samples alone, made and sent by threads, of one size whatever the batch.

    Parameters
    ----------
    dataset : Dataset
    row : int or None
        Length of the rows of a batch; None: the number of events of the longest sample.

    Attributes
    ----------
    without_events : Recordings
        Labels and classes of all samples.
    """

    def __init__(self, dataset: Dataset, row: int | None = None):
        self.dataset = dataset
        self.row = row_of(dataset, row)
        none, offsets = np.zeros(0), np.zeros(len(dataset) + 1, np.int64)
        empty = to_device(replace(dataset, times=none, channels=none, offsets=offsets), self.row)
        self.without_events = replace(empty, latest=jnp.asarray(dataset.latest, jnp.float32))

    def __len__(self) -> int:
        return len(self.dataset)

    def at(self, indices: np.ndarray) -> tuple[Recordings, np.ndarray]:
        """Recordings of the samples `indices`, and where in these they are."""
        return self._part(len(indices), np.asarray(indices))

    def feed(self, order: np.ndarray, mates: np.ndarray | None = None) -> Feed:
        """Batches of the samples `order` (k, B), in that order, from threads.

        Parameters
        ----------
        order : (k, B) int
        mates : (k, B) int or None
            The classmate of each; None: no batch will be asked for them.

        Returns
        -------
        Feed

        Raises
        ------
        RanvierError
            If a batch may have more events than int32 can count.
        """
        both = order if mates is None else np.concatenate([order, mates], axis=1)
        if both.shape[1] * self.row > MOST_EVENTS:
            raise RanvierError(
                f"stream: got batches of {both.shape[1]} samples with up to {self.row} events; needs at most "
                f"{MOST_EVENTS} in all; use a smaller batch_size"
            )
        prepare = partial(self._part, order.shape[1])

        def begin(k: int) -> Batches:
            return _prepared(both[k:], prepare, AHEAD)

        return Feed(begin, AHEAD)

    def _part(self, n: int, indices: np.ndarray) -> tuple[Recordings, np.ndarray]:
        """The samples `indices`, of which the first n are the batch and the others their classmates."""
        part = _read(self.dataset, indices)
        # Of one size, so that one program is compiled; nothing points at the rest.
        time, channel = np.zeros(len(indices) * self.row, np.float32), np.zeros(len(indices) * self.row, np.int32)
        time[: len(part.times)], channel[: len(part.times)] = part.times, part.channels
        batch = np.arange(n, dtype=np.int32)
        recordings = replace(
            self.without_events,
            time=jnp.asarray(time),
            channel=jnp.asarray(channel),
            start=jnp.asarray(part.offsets[:-1], jnp.int32),
            count=jnp.asarray(np.diff(part.offsets), jnp.int32),
            label=jnp.asarray(part.labels, jnp.int32),
            by_class=jnp.zeros(0, jnp.int32),
            mate=jnp.asarray(n + batch) if len(indices) > n else None,
        )
        return recordings, batch


def stream(
    dataset: Dataset,
    order: np.ndarray,
    *,
    row: int | None = None,
    device_bytes: int | None = None,
    ahead: int = 2,
) -> Iterator[Batch]:
    """Batches in a given order; threads read and send the next ones.

    Parameters
    ----------
    dataset : Dataset
        Typically maps of a store, of which only the samples of a batch are read.
    order : (k, B) int
        Samples of each batch.
    row : int, optional
        Events of a row, at least those of the longest sample; by default that number.
    device_bytes : int, optional
        Most room on the device for batches, that in use and those ahead; None: no limit.
    ahead : int
        Batches that are ready before they are asked for.

    Yields
    ------
    Batch

    Raises
    ------
    RanvierError
        If `order` has another shape or names no sample, two batches do not fit in `device_bytes`, or the data have
        channels that are out of range.
    """
    order = np.asarray(order)
    row = max(1, dataset.max_events) if row is None else row
    if order.ndim != 2 or order.dtype.kind not in "iu" or ahead < 1:
        raise RanvierError(
            f"stream: got an order of shape {order.shape} and type {order.dtype}, {ahead} ahead; "
            "needs (batches, samples) of integers and 1 or more ahead; reshape it"
        )
    if device_bytes is not None:
        each = EVENT_BYTES * row * order.shape[1]
        ahead = min(ahead, device_bytes // max(1, each) - 1)
        if ahead < 1:
            raise RanvierError(
                f"stream: got {device_bytes} bytes for batches of {each}; needs room for two; use smaller batches"
            )
    return _prepared(order, partial(_batch, dataset, row), ahead)


def _prepared(order: np.ndarray, make: Callable[[np.ndarray], T], ahead: int) -> Generator[T, None, None]:
    """What `make` gives for each row of `order`, in that order; threads make `ahead` of them at a time."""
    rows, begun = iter(order), deque[Future[T]]()
    with ThreadPoolExecutor(ahead, thread_name_prefix="ranvier stream") as pool:
        try:
            begun.extend(pool.submit(make, indices) for indices in islice(rows, ahead))
            while begun:
                batch = begun.popleft().result()
                # begun only when there is room for it
                begun.extend(pool.submit(make, indices) for indices in islice(rows, 1))
                yield batch
        finally:
            for batch in begun:
                batch.cancel()


def _batch(dataset: Dataset, row: int, indices: np.ndarray) -> Batch:
    part = _read(dataset, indices)
    return Batch(part.batch(np.arange(len(part)), row), part.labels, np.asarray(indices, np.int64))


def _read(dataset: Dataset, indices: np.ndarray) -> Dataset:
    part = dataset.subset(indices)
    # A large store is not compared with its checksums when it is opened.
    if len(part.channels) and (part.channels.min() < 0 or part.channels.max() >= dataset.n_channels):
        raise RanvierError(
            f"stream: got channels from {part.channels.min()} to {part.channels.max()} in {dataset.name}; "
            f"needs channels in [0, {dataset.n_channels}); check the store with ranvier data check"
        )
    return part
