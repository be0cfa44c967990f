"""The compiled LIF kernels on networks of many widths: derivatives by everything, the neuron's parameters among them.

A reference would take long to compile and to run here, so a wide network is compared with its own parts, and with
itself in another order; small ones are compared with the reference in test_native.py.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import LIF, Events, Layer, kernels, simulate

pytestmark = [
    pytest.mark.skipif(kernels.available("lif_forward") is not None, reason="no compiled library"),
    pytest.mark.usefixtures("quick_compiler"),
]

DURATION, B, E, MOST = 24.0, 2, 20, 257


def network(seed, m, n, spread, scale=1.0):
    """(w_in, d_in, w_rec, d_rec), (tau_mem, tau_syn, v_th), times and channels (B, E), as float64."""
    r = np.random.default_rng(seed)
    arrays = []
    for rows in (m, n):
        arrays.append(scale * r.uniform(-0.3, 1.0, (rows, n)) * 4 / max(4, rows))
        arrays.append(r.uniform(0, 8.0, (rows, n)))
    parameters = [x * (1 + spread * r.uniform(-1, 1, n)) for x in (10.0, 2.0, 1.0)]
    times = np.sort(r.uniform(0, 0.8 * DURATION, (B, E)), axis=1)
    times[:, -2:] = [DURATION + 1.0, np.inf]
    return arrays, parameters, times, r.integers(0, m, (B, E))


def outcome(arrays, parameters, times, channels):
    """A number that everything with a derivative enters."""
    layer, events = Layer(*arrays, neuron=LIF(*parameters)), Events(times, channels.astype(jnp.int32), len(arrays[0]))
    s = simulate(layer, events, duration=DURATION, dt=0.5, max_delay=40.0, backend="native", trace=True)
    first, spikes = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (s.first_spike, s.events.time))
    wave = jnp.sin(jnp.arange(s.trace.shape[1], dtype=times.dtype))[None, :, None]
    sums = (s.v.sum(), (first**2).sum(), (s.spike_count**2).sum(), (spikes * jnp.sin(spikes)).sum())
    return sum(sums) + (s.trace * wave).sum()


@cache
def gradient():
    return jax.jit(jax.grad(outcome, (0, 1, 2)))


@cache
def gradients_alone():
    """Of each neuron as the only one, with the weight of its synapse to itself; mapped over columns."""

    def alone(columns, times, channels):
        w_in, d_in, w_rec, d_rec, *parameters = columns
        arrays = (w_in[:, None], d_in[:, None], w_rec[None, None], d_rec[None, None])
        return outcome(arrays, [x[None] for x in parameters], times, channels)

    return jax.jit(jax.vmap(jax.grad(alone), (0, None, None)))


def alike(got, expected, rtol):
    for a, b in zip(got, expected, strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("n", [1, 32, 100, 257])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_a_neuron_does_not_know_its_neighbours(x64, n, spread):
    """With synapses to itself alone a neuron of N does what it does as the only one, derivatives included."""
    m = 1 if n == 32 else 700
    (w_in, d_in, w_rec, d_rec), parameters, *events = network(n, m, n, spread)
    w_in = w_in * (0.3 * m / 4 if m > 4 else 3.0)
    own = np.eye(n, dtype=bool)
    arrays = [w_in, d_in, np.where(own, w_rec, 0.0), d_rec]
    (g_w_in, g_d_in, g_w_rec, g_d_rec), of_parameters, _ = jax.device_get(gradient()(arrays, parameters, *events))
    # always as many columns, some more than once: one program for all n
    columns = [np.resize(x, (MOST, *x.shape[1:])) for x in (w_in.T, d_in.T, w_rec[own], d_rec[own], *parameters)]
    parts = [np.asarray(x)[:n] for x in gradients_alone()(columns, *events)]
    alike([g_w_in.T, g_d_in.T, g_w_rec[own], g_d_rec[own], *of_parameters], parts, 1e-9)


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_the_order_of_neurons_does_not_matter(x64, spread):
    """Neurons of other blocks and lanes, connected to all: the same results in another order."""
    (w_in, d_in, w_rec, d_rec), parameters, *events = network(20, 700, 100, spread, scale=0.7 * 175)
    order = np.random.default_rng(0).permutation(100)
    w_rec = 0.3 / 175 * w_rec
    turned = [w_in[:, order], d_in[:, order], w_rec[order][:, order], d_rec[order][:, order]]
    one = gradient()([w_in, d_in, w_rec, d_rec], parameters, *events)
    other = gradient()(turned, [x[order] for x in parameters], *events)
    (g, h, t), (k, j, u) = jax.device_get((one, other))
    across = [g[0][:, order], g[1][:, order], *(x[order][:, order] for x in g[2:]), *(x[order] for x in h), t]
    alike(across, [*k, *j, u], 1e-8)
