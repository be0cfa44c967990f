"""`stream`: batches of a data set that is larger than the device, prepared by a thread while the last one is used."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError
from ranvier.events import Events

EVENT_BYTES = 8  # float32 time, int32 channel


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


def stream(
    dataset: Dataset,
    order: np.ndarray,
    *,
    row: int | None = None,
    device_bytes: int | None = None,
    ahead: int = 2,
) -> Iterator[Batch]:
    """Batches in a given order; a thread reads and sends the next ones.

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
    return _batches(dataset, order, row, ahead)


def _batches(dataset: Dataset, order: np.ndarray, row: int, ahead: int) -> Iterator[Batch]:
    ready: queue.Queue = queue.Queue()
    # A batch is begun only when there is room for it.
    room, stopped = threading.Semaphore(ahead), threading.Event()

    def prepare() -> None:
        try:
            for indices in order:
                room.acquire()
                if stopped.is_set():
                    return
                ready.put(_batch(dataset, indices, row))
            ready.put(None)
        except Exception as error:  # handed to who asks for the batch
            ready.put(error)

    thread = threading.Thread(target=prepare, daemon=True, name="ranvier stream")
    thread.start()
    try:
        while (item := ready.get()) is not None:
            room.release()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stopped.set()
        room.release()
        thread.join()


def _batch(dataset: Dataset, indices: np.ndarray, row: int) -> Batch:
    part = dataset.subset(indices)
    # A large store is not compared with its checksums when it is opened.
    if len(part.channels) and (part.channels.min() < 0 or part.channels.max() >= dataset.n_channels):
        raise RanvierError(
            f"stream: got channels from {part.channels.min()} to {part.channels.max()} in {dataset.name}; "
            f"needs channels in [0, {dataset.n_channels}); check the store with ranvier data check"
        )
    return Batch(part.batch(np.arange(len(part)), row), part.labels, np.asarray(indices, np.int64))
