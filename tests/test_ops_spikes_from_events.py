"""Events as lists of steps: against a loop over events, with repeated channels, late events and little room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import Events, ops
from ranvier.errors import RanvierError

N_CHANNELS, DURATION, DT = 5, 2.0, 0.25


def random_events():
    rng = np.random.default_rng(0)
    counts = (40, 0, 1, 25)
    times = [rng.uniform(0.0, 2.4, n).astype(np.float32) for n in counts]
    times[0][:3], times[3][0] = (0.0, 0.25, np.nextafter(np.float32(2.0), np.float32(0.0))), 2.0
    return Events.from_times(times, [rng.integers(0, N_CHANNELS, n) for n in counts], N_CHANNELS)


def definition(events, capacity):
    """Channels of each list, in order, and how many did not fit."""
    lists, lost = {}, {}
    for b, (times, channels) in enumerate(zip(np.asarray(events.time), np.asarray(events.channel), strict=True)):
        for t, channel in zip(times, channels, strict=True):
            if t < DURATION:
                step = int(t // np.float32(DT))
                row = lists.setdefault((step, b), [])
                if len(row) < capacity:
                    row.append(int(channel))
                else:
                    lost[step, b] = lost.get((step, b), 0) + 1
    return lists, lost


@pytest.mark.parametrize("capacity", [0, 1, 3, 16])
def test_lists_are_those_of_a_loop_over_events(capacity):
    events = random_events()
    make = jax.jit(lambda e: ops.spikes_from_events(e, duration=DURATION, dt=DT, capacity=capacity))
    spikes = make(events)
    assert spikes.shape == (8, 4, N_CHANNELS) and spikes.capacity == capacity
    lists, lost = definition(events, capacity)
    for step in range(8):
        for b in range(4):
            wanted = lists.get((step, b), [])
            n = int(spikes.n_spikes[step, b])
            assert list(map(int, spikes.ids[step, b, :n])) == wanted
            assert not spikes.ids[step, b, n:].any() and not spikes.value[step, b, n:].any()
            assert (spikes.value[step, b, :n] == 1).all() and spikes.n_lost[step, b] == lost.get((step, b), 0)
    assert not spikes.n_near.any() and not spikes.n_near_dropped.any()
    if capacity == 16:
        assert any(len(set(row)) < len(row) for row in lists.values()), "a channel twice in one step"
        dense = np.asarray(events.to_dense(DT, DURATION)).transpose(1, 0, 2)
        np.testing.assert_array_equal(spikes.to_dense(), dense)


def test_room_for_all():
    rng = np.random.default_rng(1)
    rows = [np.sort(rng.uniform(0.0, 2.4, n)).astype(np.float32) for n in (30, 0, 60)]
    offsets = np.cumsum([0, 30, 0, 60])
    room = ops.events_a_step(np.concatenate(rows), offsets, DURATION, DT)
    events = Events.from_times(rows, [np.zeros(len(x), int) for x in rows], 1)
    spikes = ops.spikes_from_events(events, duration=DURATION, dt=DT, capacity=room)
    assert spikes.n_spikes.max() == room and not spikes.n_lost.any()
    assert ops.spikes_from_events(events, duration=DURATION, dt=DT, capacity=room - 1).n_lost.any()
    assert ops.events_a_step(np.zeros(0, np.float32), np.zeros(3, int), DURATION, DT) == 0


def test_numbers_with_more_bits(x64):
    spikes = ops.spikes_from_events(random_events(), duration=DURATION, dt=DT, capacity=2, dtype=jnp.float64)
    assert spikes.value.dtype == jnp.float64


def test_bad_input():
    events = random_events()
    with pytest.raises(RanvierError, match="needs Events"):
        ops.spikes_from_events(np.zeros((2, 3)), duration=1.0, dt=1.0, capacity=3)
    with pytest.raises(RanvierError, match="capacity is 1.0"):
        ops.spikes_from_events(events, duration=1.0, dt=1.0, capacity=1.0)
    with pytest.raises(RanvierError, match="dt"):
        ops.spikes_from_events(events, duration=1.0, dt=0.0, capacity=1)
