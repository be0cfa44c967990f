"""Deep networks against plain loops: readouts, the whole net, its start; sizes; what is kept for gradients."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import Events
from ranvier.config import Config
from ranvier.deep import DeepNetwork, draw_key, init_deep, near_threshold, products, surrogate
from ranvier.deep_readout import leaky_integrator, votes
from ranvier.deep_sizes import capacities, layer_sizes
from ranvier.deep_start import describe, fit_start, target_mean
from ranvier.errors import RanvierError
from ranvier.ops import spikes_from_events

pytestmark = pytest.mark.usefixtures("quick_compiler")

M, K, STEPS, BATCH = 6, 3, 6, 4
# The published steps.
STEP = {"dt": 1.0, "alpha": 0.95}
SMALL = Config.of("deep", sizes="10,8,5", max_activity=1.0, near_threshold=-1e9, near_schedule=False, **STEP)
LABELS = jnp.array([0, 2, 1, 1])


def events(steps=STEPS, n=40):
    r = np.random.default_rng(0)
    times = [r.uniform(0.0, steps, n).astype(np.float32) for _ in range(BATCH)]
    return Events.from_times(times, [r.integers(0, M, n) for _ in range(BATCH)], M)


def active(config, scale=1.5):
    """A network that spikes, with biases that are not 0."""
    network = jax.jit(lambda key: init_deep(config, key, M, K))(jax.random.key(1))
    r = np.random.default_rng(2)

    def one(path, x):
        biased = getattr(path[-1], "name", None) == "bias"
        return 0.1 * r.normal(size=x.shape).astype(x.dtype) if biased else scale * np.asarray(x)

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(one, network))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def spike(x, factor):
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _spike_jvp(factor, primals, tangents):
    return spike(primals[0], factor), factor(primals[0]) * tangents[0]


def dense_logits(network, config, raster):
    """The definition: spikes (T, B, M) as numbers, one step after the other."""
    factor, scale = surrogate(config.surrogate, config.surrogate_scale), config.gain * (1 - config.alpha)
    states = [jnp.zeros((BATCH, layer.w.shape[1]), layer.w.dtype) for layer in network.layers]
    sent = [0 * v for v in states]
    u = 0.0
    steps = []
    for x in raster:
        for k, layer in enumerate(network.layers):
            current = x @ layer.w + (0 if layer.bias is None else layer.bias[None, :])
            if layer.w_rec is not None:
                current = current + sent[k] @ layer.w_rec
            kept = jnp.where(states[k] > config.threshold, 0, states[k])
            states[k] = config.alpha * kept + scale * current
            x = sent[k] = spike(states[k] - config.threshold, factor)
        if network.integrator is None:
            steps.append(x)
        else:
            bias = 0 if network.integrator.bias is None else network.integrator.bias[None, :]
            u = config.alpha * u + scale * (x @ network.integrator.w + bias)
            steps.append(u @ network.w_out)
    steps = jnp.stack(steps)
    every = config.readout_interval
    return config.count_scale * jnp.sum(steps, 0)[None] if network.integrator is None else steps[every - 1 :: every]


def dense_loss(network, config, raster):
    log_p = jax.nn.log_softmax(dense_logits(network, config, raster))
    return -jnp.mean(jnp.take_along_axis(log_p, LABELS[None, :, None], axis=-1))


# The twin of a dense network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "dense", "recurrent": True, "readout_interval": 3, "pieces": 2},
        {
            "readout": "spike-sum",
            "count_scale": 0.3,
            "sizes": "8",
            "bias": False,
            "surrogate": "arctan",
            "alpha": 0.8,
            "gain": 8.0,
        },
    ],
)
def test_with_room_for_all_the_gradient_is_that_of_a_dense_network(options, x64):
    config = replace(SMALL, **options, precision="float64")
    network, given = active(config), events()
    raster = np.asarray(given.to_dense(1.0, float(STEPS))).transpose(1, 0, 2).astype(float)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def ours(network):
        out = network.apply(config, given, duration=float(STEPS), capacity=12)
        return jnp.mean(out.sample_error(LABELS)), out

    (loss, out), gradient = ours(network)
    wanted, wanted_gradient = jax.jit(jax.value_and_grad(partial(dense_loss, config=config, raster=raster)))(network)
    out = jax.device_get(out)
    assert out.fired.min() > 0 and not out.lost.any() and not out.near_dropped.any() and not out.input_lost.any()
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)
    for (path, x), y in zip(
        jax.tree_util.tree_flatten_with_path(gradient)[0], jax.tree.leaves(wanted_gradient), strict=True
    ):
        assert np.abs(y).max() > 0, path
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12, err_msg=str(path))


def test_what_is_counted():
    config = replace(SMALL, sizes="10,8,5", max_activity="0.2,0.5", near_threshold=0.5)
    network, given = active(config, scale=3.0), events()
    assert network.capacities(config) == (2, 4) and network.sizes == (10, 8)
    assert (network.n_in, network.n_classes) == (M, K)

    @jax.jit
    def run(network):
        out = network.apply(config, given, duration=float(STEPS), capacity=2)
        spikes, dense = out.hidden_events(1.0), [x.to_dense() for x in out.lists]
        return out, out.layers(), out.rate_hz(float(STEPS)), spikes, spikes.to_dense(1.0, float(STEPS)), dense

    out, layers, rate, spikes, raster, dense = jax.device_get(run(network))
    for k, lists in enumerate(out.lists):
        np.testing.assert_array_equal(out.fired[:, k], (lists.n_spikes + lists.n_lost).sum(0))
        np.testing.assert_array_equal(out.lost[:, k], lists.n_lost.sum(0))
        np.testing.assert_array_equal(out.near_dropped[:, k], lists.n_near_dropped.sum(0))
    assert out.lost.any() and out.near_dropped.any()
    entries = np.asarray(given.to_dense(1.0, float(STEPS))).sum(2)
    np.testing.assert_array_equal(out.input_lost, np.maximum(entries - 2, 0).sum(1))
    np.testing.assert_allclose(layers["activity"], out.fired / (STEPS * np.array([[10, 8]])), rtol=1e-6)
    np.testing.assert_allclose(rate, out.fired.sum(1) / 18 / (STEPS / 1000), rtol=1e-6)
    np.testing.assert_array_equal(np.isfinite(spikes.time).sum(1), (out.fired - out.lost).sum(1))
    np.testing.assert_array_equal(raster, np.concatenate(dense, axis=2).transpose(1, 0, 2))


def test_sampled_neurons_change_the_gradient_alone():
    """Drawn anew at each update, in each piece and layer; never when a network is measured."""
    config = replace(SMALL, max_activity=1.0, near_threshold=0.9, sampled=0.3, pieces=2)
    network, given = active(config), events()
    assert draw_key(config, None) is None is draw_key(replace(config, sampled=0.0), 3)

    @jax.jit
    def run(network, update):
        def loss(network):
            out = network.apply(config, given, duration=float(STEPS), capacity=40, update=update)
            return out.sample_error(LABELS).mean(), (out.logits, [x.n_near for x in out.lists])

        return jax.grad(loss, has_aux=True)(network)

    (first, (logits, n_near)), (second, (others, _)) = run(network, 0), run(network, 1)
    measured = jax.jit(lambda network: network.apply(config, given, duration=float(STEPS), capacity=40))(network)
    np.testing.assert_array_equal(logits, others)
    np.testing.assert_array_equal(logits, measured.logits)
    assert abs(first.layers[0].w - second.layers[0].w).max() > 1e-4
    for layer, room, drawn in zip(n_near, measured.lists, (3, 2), strict=True):
        assert (layer >= room.n_near).all() and (layer > room.n_near).any() and (layer <= room.n_near + drawn).all()


def test_nothing_dense_is_kept_for_the_gradient():
    """Between the passes live lists, not arrays of all steps and neurons."""
    steps, batch, sizes = 50, 16, (400, 300, 200)
    config = Config.of("deep", sizes=",".join(map(str, sizes)))
    network = jax.eval_shape(lambda: init_deep(config, jax.random.key(0), M, K))
    given = Events(jnp.zeros((batch, 9)), jnp.zeros((batch, 9), jnp.int32), M)

    def pullback(network):
        inputs = spikes_from_events(given, duration=float(steps), dt=1.0, capacity=8)
        return jax.vjp(lambda x: jnp.sum(x.run(config, inputs, 0.9).step_logits), network)[1]

    kept = [int(np.prod(x.shape)) for x in jax.tree.leaves(jax.eval_shape(pullback, network))]
    assert max(kept) == sizes[0] * sizes[1] < steps * batch * sizes[1], "a matrix of weights, and no voltages"


# Readouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 32, 100])
def test_leaky_integrator_is_a_loop(steps, x64):
    currents = np.random.default_rng(0).normal(size=(steps, 2, 3))
    u, wanted = np.zeros((2, 3)), []
    for current in currents:
        u = 0.9 * u + 5.0 * (1 - 0.9) * current
        wanted.append(u)
    found = jax.jit(lambda x: leaky_integrator(x, 0.9, 5.0))(currents)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


def test_votes_decide_and_probabilities_only_ties():
    y = np.zeros((4, 3, 3), np.float32)
    y[:3, 0, 0], y[3, 0, 1] = 0.1, 50.0  # three weak votes against a strong one
    y[:2, 1, 0], y[2:, 1, 2] = 0.1, 3.0  # two against two
    y[0, 2, 1] = np.nan
    scores, slope = jax.device_get(jax.jit(lambda y: (votes(y), jax.grad(lambda y: votes(y).sum())(y)))(y))
    assert np.argmax(scores[:2], axis=1).tolist() == [0, 2] and np.isnan(scores[2]).any()
    assert (np.floor(scores[0]) == [3, 1, 0]).all()
    assert not slope.any()


# Thresholds, sizes, start -------------------------------------------------------------------------------------------


def test_near_threshold_goes_half_of_the_way_at_each_update():
    config = Config.of("deep", near_threshold=0.9, near_schedule=True)
    found = [float(near_threshold(config, u)) for u in range(5)]
    wanted = [-100.0]
    for _ in range(4):
        wanted.append(0.5 * (wanted[-1] + 0.9))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert near_threshold(config, None) == 0.9 == near_threshold(replace(config, near_schedule=False), 3)
    np.testing.assert_allclose(near_threshold(config, 10_000), 0.9)


def test_sizes():
    assert layer_sizes("7, 5", None) == (7, 5) and layer_sizes(None, None) == (512, 512, 128)
    assert [len(layer_sizes(None, depth)) for depth in range(2, 7)] == [2, 3, 4, 5, 6]
    assert capacities(0.05, (1024, 100, 1)) == (52, 5, 1) and capacities("0.07,1", (100, 9)) == (7, 9)
    for bad in ((None, 7), ("5,", None), ("5", 2)):
        with pytest.raises(RanvierError, match="needs"):
            layer_sizes(*bad)
    with pytest.raises(RanvierError, match="2 of them"):
        capacities("0.1,0.1,0.1", (3, 4))
    with pytest.raises(RanvierError, match="2 sizes"):
        init_deep(Config.of("deep", sizes="9"), jax.random.key(0), M, K)
    with pytest.raises(RanvierError, match="n_in 0"):
        init_deep(SMALL, jax.random.key(0), 0, K)


def test_orthogonal_start():
    network = jax.device_get(jax.jit(lambda: init_deep(replace(SMALL, recurrent=True), jax.random.key(0), M, K))())
    assert isinstance(network, DeepNetwork) and network.layers[0].w.shape == (M, 10)
    np.testing.assert_allclose(network.layers[0].w @ network.layers[0].w.T, np.eye(M), atol=1e-5)
    np.testing.assert_allclose(network.layers[1].w_rec.T @ network.layers[1].w_rec, 0.25 * np.eye(8), atol=1e-5)
    assert not network.layers[0].bias.any() and network.integrator.w_rec is None
    counted = replace(SMALL, readout="spike-sum", recurrent=True)
    outputs = jax.eval_shape(lambda: init_deep(counted, jax.random.key(0), M, K))
    assert outputs.sizes == (10, 8, 5, K) and outputs.w_out is None and outputs.layers[-1].w_rec is None
    assert outputs.capacities(replace(SMALL, max_activity=0.2)) == (2, 2, 1, K)


def test_products_follow_the_options():
    config = Config.of("deep", mode="dense", precision="tf32")
    assert products(config, 0.1) == {"mode": "dense", "precision": "tf32", "activity": 0.1}
    assert products(replace(config, precision="float64"))["precision"] == "float32"
    assert surrogate("triangular", 2.0) is surrogate("triangular", 2.0)


@pytest.mark.parametrize("options", [{"sizes": "40,30,5"}, {"sizes": "40,5", "bias": False, "recurrent": True}])
def test_start_reaches_its_goal(options):
    config = Config.of("deep", max_activity=1.0, **STEP, **options)
    network, given = jax.jit(lambda: init_deep(config, jax.random.key(3), M, K))(), events(60, 200)
    fitted, fits = fit_start(network, config, given, duration=60.0, capacity=16)
    assert all(fit.close and fit.passes < 60 for fit in fits) and len(describe(fits, config)) == 1
    np.testing.assert_allclose(target_mean(config), -0.316, atol=1e-3)
    assert fitted.integrator is network.integrator
    fitted, network = jax.device_get((fitted, network))
    raster = np.asarray(given.to_dense(1.0, 60.0)).transpose(1, 0, 2).astype(float)
    for layer, start, fit in zip(fitted.layers, network.layers, fits, strict=True):
        v = sent = np.zeros((BATCH, layer.w.shape[1]))
        voltages = []
        for x in raster:
            current = x @ layer.w + (0 if layer.bias is None else layer.bias)
            current = current + (0 if layer.w_rec is None else sent @ layer.w_rec)
            v = 0.95 * np.where(v > 1, 0, v) + 20 * (1 - 0.95) * current
            sent = (v > 1).astype(float)
            voltages.append(v)
        np.testing.assert_allclose([np.mean(voltages), np.std(voltages)], [-0.316, 0.8], atol=0.025)
        np.testing.assert_allclose([fit.mean, fit.std], [np.mean(voltages), np.std(voltages)], atol=2e-3)
        np.testing.assert_allclose(fit.activity, np.mean(np.array(voltages) > 1), atol=2e-3)
        if layer.bias is not None:
            ratio = np.asarray(layer.w / start.w)
            np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4, err_msg="one factor a layer")
        raster = (np.array(voltages) > 1).astype(float)


def test_a_start_that_is_not_reached_is_said():
    # sizes and options of the last test, which has compiled them
    config = Config.of("deep", max_activity=1.0, **STEP, sizes="40,5", bias=False, recurrent=True)
    network = jax.jit(lambda: init_deep(config, jax.random.key(3), M, K))()
    silent = Events(jnp.full((BATCH, 200), jnp.inf), jnp.zeros((BATCH, 200), jnp.int32), M)
    _, fits = fit_start(network, config, silent, duration=60.0, capacity=16)
    assert not any(fit.close for fit in fits) and all(fit.passes == 1 for fit in fits)
    lines = describe(fits, config)
    assert len(lines) == 2 and "layer 1" in lines[1] and "not -0.32 and 0.80" in lines[1]
