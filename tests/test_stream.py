"""Batches from threads: those of the data set, in order, within the room that is given."""

import threading
import time

import numpy as np
import pytest

from ranvier.data import store
from ranvier.data.dataset import Dataset
from ranvier.data.recordings import to_device
from ranvier.data.stream import bytes_on_device, stream
from ranvier.errors import RanvierError
from tests.test_recordings import dataset

ORDER = np.array([[0, 3], [5, 1], [2, 2], [4, 0]])


def threads() -> int:
    return sum(thread.name.startswith("ranvier stream") for thread in threading.enumerate())


def test_batches_are_those_of_the_data_set(tmp_path):
    store.write(tmp_path / "a.events", dataset())
    data = store.read(tmp_path / "a.events")[0]
    batches = list(stream(data, ORDER))
    assert len(batches) == 4 and threads() == 0
    for batch, indices in zip(batches, ORDER, strict=True):
        expected = dataset().batch(indices, 5)
        np.testing.assert_array_equal(batch.events.time, expected.time)
        np.testing.assert_array_equal(batch.events.channel, expected.channel)
        np.testing.assert_array_equal(batch.label, data.labels[indices])
        np.testing.assert_array_equal(batch.indices, indices)
    assert next(stream(data, ORDER, row=9)).events.time.shape == (2, 9)


class Counted(Dataset):
    read = 0

    def subset(self, indices):
        Counted.read += 1
        return super().subset(indices)


@pytest.mark.parametrize(("device_bytes", "most"), [(None, 3), (2 * 80, 2), (100 * 80, 3)])
def test_no_more_is_read_than_there_is_room_for(device_bytes, most):
    Counted.read = 0
    batches = stream(Counted(**vars(dataset())), np.tile(ORDER, (5, 1)), device_bytes=device_bytes, ahead=2)
    next(batches)
    time.sleep(0.05)
    # The one in use, and those that threads make or have made.
    assert Counted.read <= most
    batches.close()
    assert threads() == 0


def test_what_goes_wrong_in_the_thread_is_raised_here():
    with pytest.raises(RanvierError, match="needs a 1-D array of integers in"):
        list(stream(dataset(), np.array([[0, 6]])))
    broken = dataset()
    broken.channels[-1] = 9
    batches = stream(broken, ORDER)
    next(batches)
    with pytest.raises(RanvierError, match="channels from 0 to 9|channels from . to 9"):
        list(batches)
    assert threads() == 0


@pytest.mark.parametrize(
    ("order", "options", "says"),
    [
        (ORDER[0], {}, "shape"),
        (ORDER * 1.0, {}, "float64"),
        (ORDER, {"ahead": 0}, "0 ahead"),
        (ORDER, {"device_bytes": 159}, "159 bytes for batches of 80"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(order, options, says):
    with pytest.raises(RanvierError, match=says):
        stream(dataset(), order, **options)


def test_room_of_a_whole_set():
    data = dataset()
    device = to_device(data)
    arrays = (device.time, device.channel, device.start, device.count, device.label, device.by_class)
    assert bytes_on_device(data) == sum(array.nbytes for array in arrays)
