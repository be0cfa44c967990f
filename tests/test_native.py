"""The compiled kernels against the reference: the same numbers forward and backward, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import LIF, AdEx, Events, Layer, RanvierError, kernels, simulate
from tests.exact import random_network, solve

pytestmark = pytest.mark.skipif(not kernels.status().found, reason="no compiled library")


def problem(seed, b, m, n, scale=1.0, recurrent=True, longest=8.0, events=14, dtype=np.float64):
    """Events and (w_in, d_in, w_rec, d_rec) with weights of both signs."""
    r = np.random.default_rng(seed)
    times = [np.sort(r.uniform(0, 28, events + 3 * k)) for k in range(b)]
    batch = Events.from_times(times, [r.integers(0, m, len(t)) for t in times], m)
    shapes = [(m, n), (n, n)] if recurrent else [(m, n)]
    arrays = []
    for rows, columns in shapes:
        arrays.append(scale * r.uniform(-0.3, 1.0, (rows, columns)) * (6 / max(6, rows)))
        arrays.append(r.uniform(0, longest, (rows, columns)))
    return batch, tuple(jnp.asarray(x, dtype) for x in arrays)


def loss(arrays, time, events, neuron, dt, backend, capacity=None):
    """One number of everything that has a derivative."""
    layer = Layer(*arrays, neuron=neuron)
    events = Events(time, events.channel, events.n_channels)
    s = simulate(layer, events, duration=32.0, dt=dt, max_delay=40.0, backend=backend, capacity=capacity)
    first = jnp.where(jnp.isfinite(s.first_spike), s.first_spike, 32.0)
    spikes = jnp.where(jnp.isfinite(s.events.time), s.events.time, 0.0)
    weight = jnp.arange(1.0, len(first) + 1)[:, None]
    return (s.v * weight).sum() + (first**2).sum() + (s.spike_count**2).sum() + (spikes * jnp.sin(spikes)).sum(), s


def both(case, neuron, dt):
    events, arrays = case
    out = []
    for backend in ("reference", "native"):
        call = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnames=("dt", "backend"))
        (_, s), gradient = call(arrays, events.time, events, neuron, dt=dt, backend=backend)
        out.append((s, jax.tree.leaves(gradient)))
    return out


CASES = {
    "recurrent": (dict(seed=0, b=3, m=6, n=4), LIF(), 0.5),
    "strong, several spikes a step": (dict(seed=1, b=2, m=6, n=3, scale=2.5), LIF(), 1.0),
    "single spike": (dict(seed=2, b=2, m=5, n=7), LIF(single_spike=True), 0.5),
    "feed-forward, 33 neurons": (dict(seed=3, b=2, m=1, n=33, recurrent=False), LIF(tau_mem=5.0), 0.25),
    "equal time constants, short delays": (dict(seed=4, b=2, m=6, n=1, longest=0.4), LIF(5.0, 5.0), 0.5),
    "delays past the end": (dict(seed=5, b=1, m=6, n=5, longest=39.0, events=40), LIF(v_th=0.7), 0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(x64, name):
    options, neuron, dt = CASES[name]
    (s, gradient), (t, other) = both(problem(**options), neuron, dt)
    assert s.spike_count.sum() > 0
    np.testing.assert_array_equal(s.spike_count, t.spike_count)
    np.testing.assert_array_equal(s.overflow, t.overflow)
    np.testing.assert_array_equal(s.events.channel, t.events.channel)
    np.testing.assert_allclose(s.events.time, t.events.time, rtol=0, atol=1e-9)
    np.testing.assert_allclose(s.first_spike, t.first_spike, rtol=0, atol=1e-9)
    np.testing.assert_allclose(s.v, t.v, rtol=0, atol=1e-9)
    for a, b in zip(gradient, other, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9 * max(1.0, float(jnp.abs(a).max())))


def native(case, neuron=None, dt=0.5, **options):
    events, arrays = case
    return simulate(Layer(*arrays, neuron=neuron or LIF()), events, duration=32.0, dt=dt, backend="native", **options)


def test_exact_solution(x64):
    """Every spike time of random networks within 1e-6 ms at dt 0.05, but for one network in twenty."""
    worst = []
    for seed in range(20):
        net = random_network(seed, off_edges=0.05)
        layer = Layer(*(jnp.asarray(x) for x in (net.w_in, net.d_in, net.w_rec, net.d_rec)))
        events = Events.from_times([net.times], [net.channels], net.w_in.shape[0])
        got = simulate(layer, events, duration=net.duration, dt=0.05, max_delay=20.0, backend="native").events
        exact = solve(net)
        error = 0.0
        for neuron in range(net.n):
            mine = np.asarray(got.time[0])[(np.asarray(got.channel[0]) == neuron) & np.isfinite(got.time[0])]
            theirs = np.array(exact.of(neuron))
            error = max(error, np.abs(mine - theirs).max(initial=0.0) if len(mine) == len(theirs) else np.inf)
        worst.append(error)
    assert np.sum(np.array(worst) < 1e-6) >= 19, worst


def test_float32_is_near_float64(x64):
    case = problem(0, 3, 6, 4)
    single = native(problem(0, 3, 6, 4, dtype=np.float32))
    assert single.v.dtype == jnp.float32
    np.testing.assert_array_equal(single.spike_count, native(case).spike_count)
    np.testing.assert_allclose(single.first_spike, native(case).first_spike, rtol=0, atol=5e-4)


def test_no_event_and_all_silent():
    events = Events.from_times([np.zeros(0), np.array([1.0])], [np.zeros(0, int), np.array([0])], 2)
    arrays = jnp.full((2, 3), 1e-3), jnp.ones((2, 3))
    gradient = jax.grad(lambda w: native((events, (w, arrays[1]))).spike_count.sum())(arrays[0])
    assert np.isfinite(gradient).all() and np.isinf(native((events, arrays)).first_spike).all()


def test_same_bits_twice_and_whatever_the_batch():
    case = problem(7, 5, 6, 4, dtype=np.float32)
    call = jax.jit(jax.grad(lambda a, e: native((e, a), max_delay=10.0).v.sum()))
    for a, b in zip(call(case[1], case[0]), call(case[1], case[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = native((case[0][2:3], case[1]))
    np.testing.assert_array_equal(alone.v[0], native(case).v[2])


def test_vmap_over_parameters_equals_a_loop():
    events, (w_in, d_in, w_rec, d_rec) = problem(8, 2, 6, 4, dtype=np.float32)
    many = jnp.stack([w_in, 1.3 * w_in])
    one = jax.grad(lambda w: native((events, (w, d_in, w_rec, d_rec)), max_delay=10.0).v.sum())
    np.testing.assert_array_equal(jax.vmap(one)(many), jnp.stack([one(w) for w in many]))


def test_lost_records_are_counted():
    case = problem(1, 2, 6, 3, scale=2.5, dtype=np.float32)
    whole, short = native(case, dt=1.0), native(case, dt=1.0, capacity=5)
    assert (short.events.counts() == 5).all()
    missing = whole.spike_count.sum(1) - 5 + np.asarray(whole.overflow)
    np.testing.assert_array_equal(short.overflow, missing)
    np.testing.assert_array_equal(short.v, whole.v)


@pytest.mark.parametrize(
    ("neuron", "options", "why"),
    [
        (AdEx(), {}, "LIF neurons in the continuous scheme only"),
        (LIF(), {"scheme": "grid"}, "LIF neurons in the continuous scheme only"),
        (LIF(), {"trace": True}, "keep no voltage trace"),
    ],
)
def test_what_it_refuses(neuron, options, why):
    with pytest.raises(RanvierError, match=why) as error:
        native(problem(0, 1, 6, 4, dtype=np.float32), neuron, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("time", "channel"), [(1.0, 6), (1.0, -1), (-1.0, 0)])
def test_an_event_that_was_never_checked_is_refused(time, channel):
    _, arrays = problem(0, 1, 6, 4, dtype=np.float32)
    events = Events(jnp.array([[time]]), jnp.array([[channel]], jnp.int32), 6)
    with pytest.raises(Exception, match="make events with Events.from_times"):
        native((events, arrays)).v.block_until_ready()


def test_derivative_for_a_time_constant_is_refused():
    case = problem(0, 1, 6, 4, dtype=np.float32)
    with pytest.raises(RanvierError, match="backend='reference'"):
        jax.grad(lambda tau: native(case, LIF(tau_mem=tau), max_delay=10.0).v.sum())(10.0)
