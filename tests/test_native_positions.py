"""Positions inside of the compiled kernels: the numbers that the reference gets with delays formed by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import LIF, AdEx, Events, Layer, RanvierError, kernels, simulate
from ranvier.space import Euclidean, FreeDelay

pytestmark = pytest.mark.skipif(kernels.available("lif_forward") is not None, reason="no compiled library")

SCHEMES = {"continuous": LIF(), "grid": LIF(), "grid AdEx": AdEx()}


def problem(seed=0, b=3, m=5, n=4, dims=(3, 2), recurrent=True, dtype=np.float64):
    """Weights and positions by name, and times and channels; some delays are longer than `LONGEST`."""
    r = np.random.default_rng(seed)
    p = {"w_in": r.uniform(-0.2, 0.9, (m, n))}
    p |= {"source": 5 * r.normal(size=(m, dims[0])), "target": 5 * r.normal(size=(n, dims[0]))}
    if recurrent:
        p |= {"w_rec": r.uniform(-0.2, 0.5, (n, n)) * 4 / n, "neurons": 6 * r.normal(size=(n, dims[1]))}
        p["neurons"][-1] = p["neurons"][0]  # two at one place, and each at its own
    time = np.sort(r.uniform(0, 22, (b, 12)), axis=1)
    return {k: jnp.asarray(x, dtype) for k, x in p.items()}, jnp.asarray(time, dtype), r.integers(0, m, (b, 12))


LONGEST = 10.0


def simulated(p, time, channel, scheme="continuous", backend="native", positions_inside=True, **options):
    neuron = SCHEMES[scheme]
    d_rec = Euclidean(p["neurons"], p["neurons"]) if "w_rec" in p else None
    layer = Layer(p["w_in"], Euclidean(p["source"], p["target"]), p.get("w_rec"), d_rec, neuron)
    events = Events(time, jnp.asarray(channel, jnp.int32), p["w_in"].shape[0])
    given = {"duration": 25.0, "dt": 0.5, "max_delay": LONGEST, "capacity": 400} | options
    inside = {"positions_inside": positions_inside, "backend": backend}
    return simulate(layer, events, scheme=scheme.split()[0], **inside, **given)


def loss(p, time, channel, **options):
    s = simulated(p, time, channel, trace=True, **options)
    first, spikes = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (s.first_spike, s.events.time))
    wave = jnp.sin(jnp.arange(s.trace.shape[1]))[None, :, None]
    parts = (s.v, first**2, s.spike_count**2, spikes * jnp.sin(spikes), s.trace * wave)
    return sum(x.sum() for x in parts), s


def gradient(p, time, channel, **options):
    """Value, simulation, and the gradient by weights, positions and times."""
    of = jax.value_and_grad(lambda p, time: loss(p, time, channel, **options), (0, 1), has_aux=True)
    return jax.jit(of)(p, time)


def close(got, expected, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1.0, np.abs(b).max(initial=0.0)))


@pytest.mark.parametrize("scheme", ["continuous", "grid"])
def test_same_as_the_reference(x64, scheme):
    """Forward mode is the reference's, which is quicker to compile than its gradient."""
    p, time, channel = problem()
    (value, s), (by, by_time) = gradient(p, time, channel, scheme=scheme)
    assert s.delay_clipped > 0 and s.spike_count.sum() > 5
    assert all(np.abs(g).max() > 1e-3 for g in (*by.values(), by_time))

    @jax.jit
    def along(ways):
        def of(p):
            return loss(p, time, channel, scheme=scheme, backend="reference")

        return jax.vmap(lambda way: jax.jvp(of, (p,), (way,)), out_axes=(None, 0))(ways)

    each = {name: jnp.eye(len(p))[k] for k, name in enumerate(p)}  # a direction an array
    ways = {name: jnp.cos(jnp.arange(p[name].size)).reshape(p[name].shape) for name in p}
    ways = {name: jnp.tensordot(each[name], way, 0) for name, way in ways.items()}
    expected, slopes = along(ways)
    close((value, s), expected)
    close(jnp.stack([jnp.vdot(by[name], ways[name][k]) for k, name in enumerate(p)]), slopes[0])


@pytest.mark.parametrize("scheme", ["continuous", "grid AdEx"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"m": 1, "n": 1, "b": 1, "dims": (1, 1)},
        {"m": 40, "n": 33, "dims": (5, 2)},
        {"m": 3, "n": 16, "recurrent": False, "dims": (2, 2)},
        {"m": 37, "n": 50, "dims": (1, 4)},
        {"m": 4, "n": 5, "dims": (0, 0)},
    ],
    ids=str,
)
def test_same_as_delays_formed_outside(x64, scheme, sizes):
    """Odd numbers of neurons and dimensions, none among them; the kernels with delays are tested elsewhere."""
    case = problem(1, **sizes)
    inside, outside = (gradient(*case, scheme=scheme, positions_inside=x) for x in (True, False))
    assert inside[0][1].spike_count.sum() > 0
    close(inside, outside)


def test_gradient_is_that_of_finite_differences(x64):
    """Central differences along random directions, of what is smooth: no counts."""
    p, time, channel = problem(3)

    def smooth(p):
        s = simulated(p, time, channel, dt=0.05)
        return s.v.sum() + (jnp.where(jnp.isfinite(s.first_spike), s.first_spike, 0.0) ** 2).sum()

    value, by = jax.jit(smooth), jax.jit(jax.grad(smooth))(p)
    r = np.random.default_rng(0)
    for name in ("source", "target", "neurons"):
        way = jnp.asarray(r.normal(size=p[name].shape))
        eps = 1e-6
        up, down = (value(p | {name: p[name] + sign * eps * way}) for sign in (1, -1))
        expected = float((by[name] * way).sum())
        assert abs(expected) > 1e-3
        assert float((up - down) / (2 * eps)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", ["continuous", "grid"])
def test_ensemble_of_networks(x64, scheme):
    """`jax.vmap` over positions is an axis of networks; over events alone the network stays one."""
    cases = [problem(seed, n=6) for seed in (4, 5, 6)]
    time, channel = cases[0][1:]
    many = jax.tree.map(lambda *x: jnp.stack(x), *(p for p, _, _ in cases))
    of = jax.value_and_grad(lambda p, time: loss(p, time, channel, scheme=scheme)[0], (0, 1))
    got = jax.jit(jax.vmap(of, (0, None)))(many, time)
    alone = [jax.jit(of)(p, time) for p, _, _ in cases]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(jax.tree.map(lambda *x: jnp.stack(x), *alone)), strict=True):
        np.testing.assert_array_equal(a, b)
    # weights shared, positions not, and the other way round
    for shared in (("w_in", "w_rec"), ("source", "target", "neurons")):
        mixed = many | {name: cases[0][0][name] for name in shared}
        axes = {name: None if name in shared else 0 for name in mixed}
        got = jax.jit(jax.vmap(of, (axes, None)))(mixed, time)
        one = [jax.jit(of)(p | {name: mixed[name] for name in shared}, time) for p, _, _ in cases]
        close(got, jax.tree.map(lambda *x: jnp.stack(x), *one))
    p = cases[0][0]
    times = jnp.stack([t for _, t, _ in cases])
    together = jax.jit(jax.vmap(lambda t: simulated(p, t, channel, scheme=scheme).v))(times)
    close(together, jnp.stack([simulated(p, t, channel, scheme=scheme).v for t in times]))


def test_forward_mode(x64):
    p, time, channel = problem(7)
    way = jax.tree.map(jnp.cos, p)
    value, slope = jax.jit(lambda p: jax.jvp(lambda p: loss(p, time, channel, scheme="grid")[0], (p,), (way,)))(p)
    (expected, _), (by, _) = gradient(p, time, channel, scheme="grid")
    close((value, slope), (expected, sum(jnp.vdot(by[name], way[name]) for name in p)))


@pytest.mark.parametrize("scheme", ["continuous", "grid"])
def test_float32(scheme):
    case = problem(8, dtype=np.float32)
    inside, outside = (gradient(*case, scheme=scheme, positions_inside=x) for x in (True, False))
    assert inside[1][0]["source"].dtype == jnp.float32
    np.testing.assert_array_equal(inside[0][1].spike_count, outside[0][1].spike_count)
    close(inside[1], outside[1], rtol=2e-3)


def test_same_bits_twice_and_in_an_ensemble():
    """On a GPU the number of blocks that share a network's samples, and with it the order of sums, depends on both."""
    p, time, channel = problem(9, b=20, m=30, n=35, dtype=np.float32)
    of = jax.grad(lambda p: loss(p, time, channel)[0])
    first, second = jax.jit(of)(p), jax.jit(of)(p)
    third = jax.jit(jax.vmap(of))(jax.tree.map(lambda x: jnp.stack([x, x]), p))
    rounding = 0.0 if jax.default_backend() == "cpu" else 2e-6
    for a, b, c in zip(*map(jax.tree.leaves, (first, second, third)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c[0], c[1])
        np.testing.assert_allclose(a, c[1], rtol=0, atol=rounding * np.abs(a).max())


def test_no_matrix_of_delays_outside():
    """Nothing as large as the weights is formed beside them and their gradients, in either pass."""
    p, time, channel = problem(10, b=1, m=300, n=200, dtype=np.float32)
    matrices = p["w_in"].nbytes + p["w_rec"].nbytes
    temporary = {}
    for inside in (True, False):

        def of(p, inside=inside):
            return simulated(p, time, channel, positions_inside=inside, capacity=0).v.sum()

        temporary[inside] = jax.jit(jax.grad(of)).lower(p).compile().memory_analysis().temp_size_in_bytes
    if jax.default_backend() == "cpu":
        assert temporary[False] - temporary[True] > 2 * matrices


def test_longest_delay_is_found_when_not_given(x64):
    case = problem(11)
    inside, outside = (simulated(*case, positions_inside=x, max_delay=None) for x in (True, False))
    assert inside.delay_clipped == 0
    close(inside, outside)
    p, time, channel = case
    by = jax.grad(lambda w: simulated(p | {"w_in": w}, time, channel, max_delay=None).v.sum())(p["w_in"])
    assert np.abs(by).max() > 0


def layer_of(**other):
    given = {"w_in": jnp.ones((2, 3)), "d_in": Euclidean(jnp.ones((2, 2)), jnp.ones((3, 2)))}
    return Layer(**(given | other))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (layer_of(d_in=1.0), "d_in is of type float"),
        (layer_of(d_in=FreeDelay(np.ones((2, 3)))), "d_in is of type FreeDelay"),
        (layer_of(w_rec=np.ones((3, 3))), "d_rec is of type NoneType"),
        (
            layer_of(d_in=Euclidean(np.ones((2, 2)), np.ones((3, 2)), np.ones((2, 3)), 0.1)),
            "d_in has slack, a number a synapse",
        ),
        (layer_of(d_in=Euclidean(np.ones((4, 2)), np.ones((3, 2)))), "d_in of shape (4, 3)"),
        (layer_of(d_in=Euclidean(np.ones((2, 2)), np.ones((3, 1)))), "sources in 2 dimensions and targets in 1"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(layer, words):
    events = Events.from_times([np.array([1.0])], [np.array([0])], 2)
    with pytest.raises(RanvierError) as refused:
        simulate(layer, events, duration=5.0, dt=0.5, max_delay=5.0, positions_inside=True)
    assert words in str(refused.value) and "\n" not in str(refused.value)
