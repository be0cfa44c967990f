"""Initial networks, the layers they make, and readouts against plain loops."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.events import Events
from ranvier.network import (
    first_spike_logits,
    init_network,
    init_weights,
    input_weight_scale,
    leaky_max,
    leaky_mean,
    make_neuron,
    project_delays,
    project_positive,
)
from ranvier.neurons import LIF, AdEx

M, N, K = 5, 6, 3
CONFIG = Config(hidden=N, net="2", position_sigma=2.0, weight_scale_in=30.0, weight_scale_rec=10.0, scheme="grid")
KEY = jax.random.key(0)
DURATION = 20.0


@pytest.fixture(scope="module")
def network():
    return init_network(CONFIG, KEY, M, K)


def inputs():
    rng = np.random.default_rng(0)
    times = [np.sort(rng.uniform(0, DURATION, n)).astype(np.float32) for n in (9, 12)]
    return Events.from_times(times, [rng.integers(0, M, len(t)) for t in times], M)


def spikes():
    """Hidden spikes of three samples, the last one silent, and their counts."""
    rows = [([1.0, 4.5, 4.5, 17.0], [0, 2, 1, 0]), ([2.0, 3.0], [1, 1]), ([], [])]
    events = Events.from_times([np.array(t, np.float32) for t, _ in rows], [np.array(n, int) for _, n in rows], 3, 6)
    return events, rows, jnp.array([[2.0, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])


# initial values -------------------------------------------------------------------------------------------------------


def test_initial_weights_have_their_distribution():
    w = np.asarray(init_weights(KEY, (300, 200), 600.0, False, "float32")) / (600.0 / 60_000)
    assert w.min() >= 0 and w.max() < 0.8
    assert w.mean() == pytest.approx(0.34, abs=0.005)
    # |U(-0.2, 0.8)| is below 0.2 twice as often as between 0.2 and 0.4
    assert (w < 0.2).mean() == pytest.approx(0.4, abs=0.01)
    np.testing.assert_allclose(init_weights(KEY, (3, 2), 600.0, True, "float32"), 0.34 * 100.0, rtol=1e-6)


@pytest.mark.parametrize(("hidden", "scale"), [(50, 1200.0), (51, 4000.0), (200, 4000.0), (201, 20_000.0)])
def test_input_scale(hidden, scale):
    assert input_weight_scale(Config(hidden=hidden)) == scale
    assert input_weight_scale(Config(hidden=hidden, weight_scale_in=7.0)) == 7.0


def test_shapes(network):
    assert (network.w_in.shape, network.w_rec.shape, network.w_out.shape) == ((M, N), (N, N), (N, K))
    assert network.output is None and network.space.params["x_rec"].shape == (N, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {jnp.dtype("float32")}


def test_the_seed_decides_all(network):
    same, other = init_network(CONFIG, KEY, M, K), init_network(CONFIG, jax.random.key(1), M, K)
    for a, b, c in zip(*map(jax.tree.leaves, (network, same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_spiking_outputs_fire_from_the_start():
    config = replace(CONFIG, readout="first-spike", net="0", recurrent=False)
    out = init_network(config, KEY, M, K).apply(config, inputs(), duration=DURATION, max_delay=1.0, capacity=600)
    assert out.output is not None and np.isfinite(out.output.first_spike).all()


def test_matched_delays():
    spatial = init_network(CONFIG, KEY, M, K)
    free = init_network(replace(CONFIG, net="inf", match="2"), KEY, M, K)
    assert set(free.space.params) == {"d_in", "d_rec"}
    np.testing.assert_allclose(free.space.d_in().delays(), spatial.space.d_in().delays(), rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"hidden": 0}, "hidden 0"), ({"readout": "loudest"}, "readout 'loudest'"), ({"neuron": "hh"}, "neuron 'hh'")],
)
def test_bad_options_are_refused(bad, message):
    with pytest.raises(RanvierError, match=message):
        init_network(replace(CONFIG, **bad), KEY, M, K).layer(replace(CONFIG, **bad))


def test_no_classes_are_refused():
    with pytest.raises(RanvierError, match="n_classes 0"):
        init_network(CONFIG, KEY, M, 0)


def test_neurons_have_the_options():
    config = replace(CONFIG, tau_mem=4.0, tau_syn=3.0, threshold=1.5, single_spike=True)
    assert make_neuron(config) == LIF(tau_mem=4.0, tau_syn=3.0, v_th=1.5, single_spike=True)
    adex = make_neuron(replace(config, neuron="adex", adex_a=0.5, adex_z0=0.7))
    assert isinstance(adex, AdEx) and (adex.a, adex.z0, adex.tau_mem, adex.single_spike) == (0.5, 0.7, 4.0, True)


# layers -------------------------------------------------------------------------------------------------------------


def test_no_self_connections(network):
    layer = network.layer(CONFIG)
    assert (jnp.diagonal(layer.w_rec) == 0).all()
    off = ~np.eye(N, dtype=bool)
    np.testing.assert_array_equal(layer.w_rec[off], network.w_rec[off])
    heavy = replace(network, w_rec=network.w_rec + 100.0 * jnp.eye(N))
    np.testing.assert_array_equal(heavy.layer(CONFIG).w_rec, layer.w_rec)
    gradient = jax.grad(lambda n: n.layer(CONFIG).w_rec.sum())(heavy).w_rec
    np.testing.assert_array_equal(gradient, off.astype(np.float32))


def test_feed_forward_layers_have_no_recurrent_part():
    layer = init_network(replace(CONFIG, recurrent=False), KEY, M, K).layer(CONFIG)
    assert layer.w_rec is None and layer.d_rec is None


def test_outputs_are_fed_from_where_the_hidden_neurons_are():
    config = replace(CONFIG, readout="first-spike")
    network = init_network(config, KEY, M, K)
    assert network.output is not None
    hidden, out = network.space.params["x_rec"], network.output.params["x_rec"]
    expected = [[math.sqrt(0.01 + float(((p - q) ** 2).sum())) for q in out] for p in hidden]
    np.testing.assert_allclose(network.output_layer(config).d_in.delays(), expected, rtol=1e-5)
    assert float(network.longest_delay()) >= np.max(expected)
    # Moving a hidden neuron changes delays on both of its sides.
    gradient = jax.grad(lambda n: n.output_layer(config).d_in.delays().sum())(network)
    assert (gradient.space.params["x_rec"] != 0).any() and (gradient.space.params["x_in"] == 0).all()


@pytest.mark.parametrize("net", ["0", "inf", "1g0.1", "2e0.1"])
def test_outputs_in_every_kind_of_space(net):
    config = replace(CONFIG, net=net, readout="first-spike", recurrent=False)
    network = init_network(config, KEY, M, K)
    assert network.output_layer(config).d_in.delays().shape == (N, K)


def test_longest_delay(network):
    delays = network.space.d_in().delays(), network.space.d_rec().delays()
    assert float(network.longest_delay()) == max(float(d.max()) for d in delays)


def test_projections(network):
    negative = jax.tree.map(lambda x: x - 0.5 * jnp.max(x), network)
    positive = project_positive(negative)
    np.testing.assert_array_equal(positive.w_in, np.maximum(negative.w_in, 0))
    np.testing.assert_array_equal(positive.w_rec, np.maximum(negative.w_rec, 0))
    np.testing.assert_array_equal(positive.w_out, negative.w_out)
    spiking = init_network(replace(CONFIG, readout="first-spike", net="inf"), KEY, M, K)
    spiking = jax.tree.map(lambda x: x - 10.0, spiking)
    assert (project_positive(spiking).w_out == 0).all()
    projected = project_delays(spiking)
    assert projected.output is not None
    delays = *projected.space.params.values(), *projected.output.params.values()
    assert len(delays) == 3 and all((d >= 0).all() for d in delays)


# readouts -------------------------------------------------------------------------------------------------------------


def test_count_readout_is_a_product(network):
    out = network.apply(CONFIG, inputs(), duration=DURATION, max_delay=30.0, capacity=0)
    assert float(out.spike_count.sum()) > 0 and out.logits.shape == (2, K)
    np.testing.assert_allclose(out.logits, np.asarray(out.spike_count) @ np.asarray(network.w_out), rtol=1e-5)
    assert out.overflow.shape == (2,) and int(out.overflow.sum()) == 0 and int(out.delay_clipped) == 0


def test_delays_beyond_the_longest_are_counted(network):
    out = network.apply(CONFIG, inputs(), duration=DURATION, max_delay=1.0, capacity=0)
    delays = [np.asarray(network.space.d_in().delays()), np.asarray(network.space.d_rec().delays())]
    assert int(out.delay_clipped) == sum(int((d > 1.0).sum()) for d in delays) > 0


@pytest.mark.parametrize("readout", ["leaky-mean", "leaky-max", "first-spike"])
def test_readouts_of_spike_times_run_and_have_gradients(readout):
    config = replace(CONFIG, readout=readout, net="inf", delay_mu=2.0)
    network = init_network(config, KEY, M, K)

    def loss(network):
        out = network.apply(config, inputs(), duration=DURATION, max_delay=8.0, capacity=600)
        return jnp.sum(out.logits**2), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(network)
    assert int(out.overflow.sum()) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert (gradient.w_out != 0).any() and (gradient.w_in != 0).any()
    if readout == "leaky-mean":
        expected = leaky_mean(out.simulation.events, out.spike_count, config.output_tau, DURATION) @ network.w_out
        np.testing.assert_allclose(out.logits, expected, rtol=1e-4)


def test_an_unknown_readout_is_refused(network):
    with pytest.raises(RanvierError, match="readout 'loudest'"):
        network.apply(replace(CONFIG, readout="loudest"), inputs(), duration=DURATION, max_delay=30.0)


def test_first_spike_needs_output_neurons(network):
    with pytest.raises(RanvierError, match="without output neurons"):
        network.apply(replace(CONFIG, readout="first-spike"), inputs(), duration=DURATION, max_delay=30.0)


def test_leaky_mean_is_the_mean_of_the_integrator():
    events, rows, count = spikes()
    tau, grid = 7.0, (np.arange(200_000) + 0.5) * DURATION / 200_000
    expected = np.zeros((3, 3))
    for b, (times, neurons) in enumerate(rows):
        for t, n in zip(times, neurons, strict=True):
            expected[b, n] += np.where(grid >= t, np.exp(-(grid - t) / tau), 0.0).mean()
    np.testing.assert_allclose(leaky_mean(events, count, tau, DURATION), expected, atol=2e-5)


def test_leaky_max_is_the_maximum_of_the_integrator():
    events, rows, count = spikes()
    w, tau = np.array([[1.0, -1.0], [0.5, -0.2], [-2.0, 3.0]]), 7.0
    grid = np.sort(np.concatenate([np.linspace(0, DURATION, 2_001), [1.0, 2.0, 3.0, 4.5, 17.0]]))
    u = np.zeros((3, len(grid), 2))
    for b, (times, neurons) in enumerate(rows):
        for t, n in zip(times, neurons, strict=True):
            u[b] += np.where(grid >= t, np.exp(-(grid - t) / tau), 0.0)[:, None] * w[n]
    logits = leaky_max(events, count, jnp.asarray(w, jnp.float32), tau, DURATION)
    np.testing.assert_allclose(logits, u.max(axis=1), atol=1e-5)
    assert (u.max(axis=1) == 0).any() and (u.max(axis=1) > 0).any()


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_leaky_readouts_derive_times_exactly(x64, kind):
    times = jnp.array([[1.0, 4.5, 6.0, 17.0, jnp.inf]])
    channel, count = jnp.array([[0, 2, 1, 0, 0]], jnp.int32), jnp.array([[2.0, 1.0, 1.0]])
    w = jnp.array([[1.0, -1.0], [0.5, 0.7], [-0.3, 3.0]])

    def f(times):
        events = Events(times, channel, 3)
        if kind == "mean":
            return (leaky_mean(events, count, 7.0, DURATION) @ w * jnp.array([[1.0, 2.0]])).sum()
        return (leaky_max(events, count, w, 7.0, DURATION) * jnp.array([[1.0, 2.0]])).sum()

    gradient = jax.grad(f)(times)
    for k in range(4):
        step = 1e-5 * (jnp.arange(5) == k)
        difference = (f(times + step[None, :]) - f(times - step[None, :])) / 2e-5
        assert float(gradient[0, k]) == pytest.approx(float(difference), abs=1e-8)
    assert float(gradient[0, 4]) == 0.0 and (jnp.abs(gradient) > 1e-3).any()


def test_leaky_readouts_derive_counts_by_the_mean_of_one_more_spike():
    events, _, count = spikes()
    w, tau = jnp.array([[1.0, -1.0], [0.5, -0.2], [2.0, 3.0]]), 7.0
    grid = (np.arange(20_000) + 0.5) * DURATION / 20_000
    one = (tau * (1 - np.exp(-(DURATION - grid) / tau)) / DURATION).mean()
    gradient = jax.grad(lambda c: leaky_mean(events, c, tau, DURATION).sum())(count)
    np.testing.assert_allclose(gradient, one, rtol=1e-4)
    # max: what a spike at a random time adds at the time of the maximum; sample 1 and class 0 peak at 3 ms
    peak = np.where(grid <= 3.0, np.exp(-(3.0 - grid) / tau), 0.0).mean()
    gradient = jax.grad(lambda c: leaky_max(events, c, w, tau, DURATION)[1, 0])(count)
    np.testing.assert_allclose(gradient[1], peak * w[:, 0], rtol=1e-3)


def test_first_spike_logits_of_silent_neurons():
    first = jnp.array([[1.0, jnp.inf], [jnp.inf, jnp.inf]])
    jax.config.update("jax_debug_nans", True)
    try:
        logits, gradient = jax.value_and_grad(lambda t: first_spike_logits(t, 12.0, 0.01).sum())(first)
        np.testing.assert_allclose(first_spike_logits(first, 12.0, 0.01), [[-100.0, -1200.0], [-1200.0, -1200.0]])
    finally:
        jax.config.update("jax_debug_nans", False)
    assert float(logits) == pytest.approx(-3700.0)
    np.testing.assert_array_equal(gradient, [[-100.0, 0.0], [0.0, 0.0]])
