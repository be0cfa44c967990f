"""The compiled LIF kernels in every mode and width: all derivatives, those of the neuron's parameters among them.

One small network against the reference, with one program of it for all cases; wide networks against their own parts.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import LIF, Events, Layer, kernels, simulate

pytestmark = pytest.mark.skipif(kernels.available("lif_forward") is not None, reason="no compiled library")

DURATION, B, M, N, E = 24.0, 2, 4, 3, 20


def network(seed, m=M, n=N, b=B, scale=1.0, longest=8.0, tau=(10.0, 2.0), spread=0.0, theta=1.0):
    """(w_in, d_in, w_rec, d_rec), (tau_mem, tau_syn, v_th), (times, channels), as float64."""
    r = np.random.default_rng(seed)
    arrays = []
    for rows in (m, n):
        arrays.append(scale * r.uniform(-0.3, 1.0, (rows, n)) * 4 / max(4, rows))
        arrays.append(r.uniform(0, longest, (rows, n)))
    parameters = [x * (1 + spread * r.uniform(-1, 1, n)) for x in (*tau, theta)]
    times = np.sort(r.uniform(0, 0.8 * DURATION, (b, E)), axis=1)
    times[:, -2:] = [DURATION + 1.0, np.inf]
    return tuple(arrays), tuple(parameters), times, r.integers(0, m, (b, E))


def outcome(arrays, parameters, times, channels, backend="native", dt=0.5, dtype=jnp.float64):
    """A number that everything with a derivative enters, and the simulation."""
    events = Events(jnp.asarray(times, dtype), jnp.asarray(channels, jnp.int32), len(arrays[0]))
    arrays = [jnp.asarray(x, dtype) for x in arrays]
    layer = Layer(*arrays, neuron=LIF(*(jnp.asarray(x, dtype) for x in parameters)))
    s = simulate(layer, events, duration=DURATION, dt=dt, max_delay=40.0, backend=backend, trace=True)
    first, spikes = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (s.first_spike, s.events.time))
    wave = jnp.sin(jnp.arange(s.trace.shape[1], dtype=dtype))[None, :, None]
    sums = (s.v.sum(), (first**2).sum(), (s.spike_count**2).sum(), (spikes * jnp.sin(spikes)).sum())
    return sum(sums) + (s.trace * wave).sum(), s


@cache
def program(backend):
    return jax.jit(jax.value_and_grad(outcome, (0, 1, 2), has_aux=True), static_argnames=("backend", "dt", "dtype"))


def gradient(case, backend="native", **options):
    with jax.enable_x64(True):
        (_, s), g = program(backend)(*case, backend=backend, **options)
        return s, [np.asarray(x) for x in jax.tree.leaves(g)]


def with_times(case, times):
    return (*case[:2], np.sort(np.broadcast_to(times, case[2].shape), axis=1), case[3])


def with_delays(case, d):
    (w_in, d_in, w_rec, d_rec), *rest = case
    return ((w_in, np.full_like(d_in, d), w_rec, np.full_like(d_rec, d)), *rest)


# Time constants that are the same for all neurons, each its own, and those near the length of a step: the three ways in
# which an arrival's exponentials are formed (csrc/lif_arrivals.h).
CASES = {
    "all alike": network(0),
    "each its own": network(1, spread=0.1),
    "each its own, near the step": network(2, tau=(3.0, 0.6), spread=0.1, scale=3.0),
    "all alike, near the step": network(3, tau=(0.8, 0.6), scale=4.0),
    "equal time constants": network(4, tau=(5.0, 5.0)),
    "currents outlast voltages": network(5, tau=(2.0, 6.0), spread=0.05),
    "all fire, many times a step": network(6, scale=9.0, longest=2.0),
    "all silent": network(7, scale=0.01),
    "no input": with_times(network(8), np.inf),
    "equal times": with_times(network(9, scale=1.5), np.r_[np.full(E // 2, 3.25), np.full(E - E // 2, 7.0)]),
    "no delay": with_delays(network(10, scale=0.6), 0.0),
    "delays of whole steps": with_delays(network(11), 4.5),
    "arrivals at a step's end": with_times(with_delays(network(12, scale=1.5), 1.25), np.arange(E) + 0.25),
    "long delays": with_delays(network(13, scale=4.0), 14.25),
    "beyond the end": with_delays(network(14), 39.0),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name):
    (s, mine), (t, theirs) = gradient(CASES[name]), gradient(CASES[name], "reference")
    np.testing.assert_array_equal(s.spike_count, t.spike_count)
    np.testing.assert_array_equal(s.overflow, t.overflow)
    np.testing.assert_allclose(s.events.time, t.events.time, rtol=0, atol=1e-9)
    np.testing.assert_allclose(s.trace, t.trace, rtol=0, atol=1e-9)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1.0, np.abs(b).max()))


def test_the_cases_are_what_they_say():
    counts = {name: np.asarray(gradient(case)[0].spike_count) for name, case in CASES.items()}
    assert counts["all fire, many times a step"].min() > 2 * DURATION
    assert counts["all silent"].max() == 0 and counts["no input"].max() == 0 and counts["beyond the end"].max() == 0
    fires = [name for name, count in counts.items() if count.sum() > 3]
    assert len(fires) == len(CASES) - 3, {name: count.sum() for name, count in counts.items()}


@pytest.mark.parametrize("name", ["all alike", "each its own"])
def test_float32_is_near(name):
    with jax.enable_x64(True):
        case = jax.tree.map(np.float32, CASES[name][:3]) + (CASES[name][3],)
    (s, mine), (t, theirs) = gradient(case, dtype=jnp.float32), gradient(CASES[name])
    np.testing.assert_array_equal(s.spike_count, t.spike_count)
    np.testing.assert_allclose(s.trace, t.trace, rtol=0, atol=2e-4)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=5e-3 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("n", [1, 32, 100, 257])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_neuron_does_not_know_its_neighbours(n, spread):
    """With synapses to itself alone a neuron of N does what it does as the only one, derivatives included."""
    m = 1 if n == 32 else 700
    (w_in, d_in, w_rec, d_rec), parameters, *events = network(n, m=m, n=n, spread=spread)
    w_in = w_in * (0.3 * m / 4 if m > 4 else 3.0)
    own = np.eye(n, dtype=bool)
    arrays = w_in, d_in, np.where(own, w_rec, 0.0), d_rec

    def alone(w_in, d_in, w_rec, d_rec, *parameters):
        column = (w_in[:, None], d_in[:, None], w_rec[None, None], d_rec[None, None])
        return outcome(column, [x[None] for x in parameters], *events)[0]

    with jax.enable_x64(True):
        together = jax.grad(lambda a, p: outcome(a, p, *events)[0], (0, 1))(arrays, parameters)
        columns = (w_in.T, d_in.T, w_rec[own], d_rec[own], *parameters)
        parts = jax.vmap(jax.grad(alone, tuple(range(7))))(*(jnp.asarray(x) for x in columns))
        together, parts = jax.tree.map(np.asarray, (together, parts))
    (g_w_in, g_d_in, g_w_rec, g_d_rec), of_parameters = together
    whole = g_w_in.T, g_d_in.T, g_w_rec[own], g_d_rec[own], *of_parameters
    assert np.abs(of_parameters[0]).max() > 0
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_the_order_of_neurons_does_not_matter(spread):
    """Neurons of other blocks and lanes, connected to all: the same results in another order."""
    arrays, parameters, *events = network(20, n=100, spread=spread, scale=0.7)
    order = np.random.default_rng(0).permutation(100)
    w_in, d_in, w_rec, d_rec = arrays
    w_rec = 0.3 * w_rec
    turned = w_in[:, order], d_in[:, order], w_rec[order][:, order], d_rec[order][:, order]
    loss = jax.grad(lambda a, p, t: outcome(a, p, t, events[1])[0], (0, 1, 2))
    with jax.enable_x64(True):
        one = loss((w_in, d_in, w_rec, d_rec), parameters, events[0])
        other = loss(turned, [x[order] for x in parameters], events[0])
        (g, h, t), (k, j, u) = jax.tree.map(np.asarray, (one, other))
    pairs = [(g[0][:, order], k[0]), (g[1][:, order], k[1]), (t, u)]
    pairs += [(a[order][:, order], b) for a, b in zip(g[2:], k[2:], strict=True)]
    pairs += [(a[order], b) for a, b in zip(h, j, strict=True)]
    for a, b in pairs:
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * max(1.0, np.abs(b).max()))
