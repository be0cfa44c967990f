"""A data set on the device: batches as on the host, classmates, sizes that do not fit."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ranvier.data import Dataset
from ranvier.data import recordings as module
from ranvier.data.recordings import to_device
from ranvier.errors import RanvierError

M, K = 9, 4
LABELS = np.array([2, 0, 2, 3, 0, 2], np.int32)  # none of class 1


def dataset(counts=(3, 0, 5, 1, 2, 5), labels=LABELS, seed=0):
    rng = np.random.default_rng(seed)
    times = [np.sort(rng.uniform(0.0, 30.0, n)).astype(np.float32) for n in counts]
    channels = rng.integers(0, M, sum(counts)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Dataset("toy", np.concatenate(times), channels, offsets, labels, M, ("a", "b", "c", "d"))


@pytest.mark.parametrize("row", [None, 5, 8])
@pytest.mark.parametrize("indices", [[0], [5, 1, 3], [2, 2, 0, 1]])
def test_a_batch_is_that_of_the_data_set(row, indices):
    data = dataset()
    events = to_device(data, row).batch(np.array(indices))
    width = row or 5
    assert events.time.shape == events.channel.shape == (len(indices), width) and events.n_channels == M
    expected = data.batch(indices, width)
    for got, wanted in ((events.time, expected.time), (events.channel, expected.channel)):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
    for k, i in enumerate(indices):
        part = slice(data.offsets[i], data.offsets[i + 1])
        n = part.stop - part.start
        np.testing.assert_array_equal(events.time[k], [*data.times[part], *[np.inf] * (width - n)])
        np.testing.assert_array_equal(events.channel[k], [*data.channels[part], *[0] * (width - n)])


def test_samples_without_any_event():
    events = to_device(dataset(counts=(0, 0), labels=LABELS[:2])).batch(np.array([1, 0]))
    assert events.time.shape == (2, 1) and np.isinf(events.time).all() and (events.channel == 0).all()


def test_what_goes_with_the_samples():
    data = dataset()
    device = to_device(data)
    np.testing.assert_array_equal(device.label, LABELS)
    assert float(device.latest) == data.times.max() and device.n_channels == M and device.row == 5
    start = np.asarray(device.class_start)
    for k in range(K):
        members = device.by_class[start[k] : start[k] + int(device.class_count[k])]
        assert sorted(members.tolist()) == [i for i in range(6) if LABELS[i] == k]


def test_classmates_are_of_the_same_class_and_all_come():
    device = to_device(dataset())
    indices = np.arange(6)
    draws = np.stack([device.classmates(key, indices) for key in jax.random.split(jax.random.key(0), 40)])
    for i in indices:
        assert set(draws[:, i].tolist()) == {j for j in range(6) if LABELS[j] == LABELS[i]}


def test_classmates_are_drawn_evenly():
    device = to_device(dataset())
    draws = np.asarray(device.classmates(jax.random.key(1), np.full(6000, 0)))
    # Three of class 2, each 2000 times but for a standard deviation of 37.
    assert all(abs(np.sum(draws == j) - 2000) < 200 for j in (0, 2, 5))


def test_a_key_gives_the_same_classmates():
    device = to_device(dataset())
    a, b, c = (device.classmates(jax.random.key(k), np.full(50, 2)) for k in (3, 3, 4))
    assert (a == b).all() and (a != c).any()


def test_rows_that_are_too_short_are_refused():
    with pytest.raises(RanvierError, match="row 4 for data set toy; needs at least 5"):
        to_device(dataset(), 4)
    with pytest.raises(RanvierError, match="row 0 .* at least 1"):
        to_device(dataset(counts=(0, 0), labels=LABELS[:2]), 0)


def test_more_events_than_positions_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MOST_EVENTS", 15)
    with pytest.raises(RanvierError, match="16 events in data set toy; needs at most 15"):
        to_device(dataset())
    monkeypatch.setattr(module, "MOST_EVENTS", 16)
    assert to_device(replace(dataset(), name="other")).row == 5
