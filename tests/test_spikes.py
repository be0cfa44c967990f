"""The spikes of a step as a list, and the record of all of them, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import spikes


@pytest.mark.parametrize("size", [1, 4, 12, 13])
def test_compact(size):
    mask = np.random.default_rng(0).random((3, 4)) < 0.5
    place, real = jax.device_get(spikes.compact(jnp.asarray(mask), size))
    np.testing.assert_array_equal(place[real], np.flatnonzero(mask)[:size])
    assert real.sum() == min(size, mask.sum())


def test_none_and_all():
    for mask in (jnp.zeros((2, 4), bool), jnp.ones((2, 4), bool)):
        place, real = jax.device_get(spikes.compact(mask, 3))
        np.testing.assert_array_equal(place[real], np.flatnonzero(mask)[:3])


def test_lost_counts_what_lies_behind():
    sample = jnp.array([0, 0, 1, 1, 1, 2])
    valid = jnp.array([True, False, True, True, True, True])
    for kept, expected in ((0, [1, 3, 1]), (2, [0, 2, 1]), (5, [0, 0, 0])):
        np.testing.assert_array_equal(spikes.lost(sample, valid, kept, 3), expected)


@pytest.mark.parametrize("spare", [0, 3, 64])
def test_spike_list(monkeypatch, spare):
    monkeypatch.setattr(spikes, "SPARE", spare)
    rng = np.random.default_rng(1)
    sample, neuron = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 2, 3, 1, 3, 0])
    fired, g = rng.random((6, 4)) < 0.6, rng.random((6, 4))
    got, missed = jax.device_get(spikes.spike_list(*map(jnp.asarray, (sample, neuron, fired, g)), 6, 3))
    expected, left = [], np.zeros(3, int)
    for k in range(6):
        for m in range(4):
            if fired[k, m] and len(expected) < 6 + spare:
                expected.append((sample[k], neuron[k], np.float32(g[k, m])))
            elif fired[k, m]:
                left[sample[k]] += 1
    here = got.valid
    assert list(zip(got.sample[here], got.neuron[here], got.g[here], strict=True)) == expected
    np.testing.assert_array_equal(missed, left)
    assert (left.sum() > 0) == (spare < 64)


@pytest.mark.parametrize("capacity", [3, 40])
def test_record_is_sorted_and_counts_what_does_not_fit(capacity):
    rng = np.random.default_rng(2)
    n_steps, n_samples, n, size = 7, 3, 4, 9
    sample = np.sort(rng.integers(0, n_samples, (n_steps, size)), axis=1)
    neuron, g = rng.integers(0, n, (n_steps, size)), rng.random((n_steps, size)).astype(np.float32) * 0.5
    valid = rng.random((n_steps, size)) < 0.5
    lists = spikes.SpikeList(*map(jnp.asarray, (sample, neuron, g, valid)))
    events, unrecorded = jax.device_get(
        jax.jit(spikes.record, static_argnums=(1, 2, 3, 4))(lists, 0.5, n_samples, n, capacity)
    )
    for b in range(n_samples):
        rows = [
            (np.float32(t * 0.5) + g[t, p], neuron[t, p])
            for t in range(n_steps)
            for p in range(size)
            if valid[t, p] and sample[t, p] == b
        ]
        # the steps come in order: what does not fit is the latest, but for the order within a step
        kept = sorted(rows[:capacity], key=lambda row: row[0])
        assert unrecorded[b] == len(rows) - len(kept)
        np.testing.assert_allclose(events.time[b, : len(kept)], [t for t, _ in kept], rtol=1e-6)
        np.testing.assert_array_equal(events.channel[b, : len(kept)], [j for _, j in kept])
        assert np.isinf(events.time[b, len(kept) :]).all() and not events.channel[b, len(kept) :].any()


def test_times_keep_their_derivatives():
    lists = spikes.SpikeList(
        jnp.array([[0, 1], [0, 0]]),
        jnp.array([[0, 1], [1, 2]]),
        jnp.array([[0.1, 0.2], [0.4, 0.3]]),
        jnp.ones((2, 2), bool),
    )
    weights = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def loss(g):
        events, _ = spikes.record(lists._replace(g=g), 0.5, 2, 3, 3)
        return jnp.where(jnp.isfinite(events.time), weights * events.time, 0.0).sum()

    # the second step's spikes are in the other order by time
    np.testing.assert_array_equal(jax.grad(loss)(lists.g), [[1.0, 4.0], [3.0, 2.0]])
