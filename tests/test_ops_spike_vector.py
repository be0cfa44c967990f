"""`SpikeVector` and `spikes_from_state` against plain loops: order, counts, derivatives, batch axes, each bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.errors import RanvierError
from ranvier.ops import SpikeVector, arctan, fast_sigmoid, spikes_from_state, super_spike, triangular

pytestmark = pytest.mark.usefixtures("x64", "quick_compiler")

HIGH, LOW = 1.0, 0.6
SHAPES = [(), (3,), (2, 3)]


def states(batch, n=7, seed=0):
    """Some above, some between and some below; one exactly at each threshold."""
    v = np.random.default_rng(seed).uniform(0.2, 1.5, (*batch, n))
    v[..., 2], v[..., 5] = HIGH, LOW
    return v


@partial(jax.jit, static_argnums=(3, 4))
def made(v, high, low, capacity, *surrogate):
    spikes = spikes_from_state(v, high, low, capacity, *surrogate)
    return spikes, spikes.to_dense(), spikes.n_listed


def listed(v, high, low, capacity):
    """(spikes, near ones) in the list and how many of each are not, of one row."""
    fired = [i for i in range(len(v)) if v[i] > high[i]]
    near = [i for i in range(len(v)) if low[i] < v[i] <= high[i]]
    room = max(capacity - len(fired), 0)
    return fired[:capacity], near[:room], len(fired[capacity:]), len(near[room:])


def curve(x):
    return 1 / (10 * abs(x) + 1) ** 2


@pytest.mark.parametrize("capacity", [0, 2, 4, 7, 9])
@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_spikes_from_state(batch, capacity):
    v = states(batch)
    high, low = np.full(7, HIGH), np.full(7, LOW)
    got, whole, used = map(partial(jax.tree.map, np.asarray), made(v, HIGH, LOW, capacity))
    assert (got.shape, got.capacity, got.n_neurons) == ((*batch, 7), capacity, 7)
    for at in np.ndindex(batch):
        fired, near, lost, dropped = listed(v[at], high, low, capacity)
        ids = fired + near
        free = [0] * (capacity - len(ids))
        np.testing.assert_array_equal(got.ids[at], ids + free)
        np.testing.assert_array_equal(got.value[at], [1] * len(fired) + [0] * len(near) + free)
        np.testing.assert_allclose(got.factor[at], [curve(v[at][i] - HIGH) for i in ids] + free, rtol=1e-12)
        counts = (got.n_spikes[at], got.n_near[at], got.n_lost[at], got.n_near_dropped[at], used[at])
        assert counts == (len(fired), len(near), lost, dropped, len(ids))
        dense = np.zeros(7)
        dense[fired] = 1
        np.testing.assert_array_equal(whole[at], dense)


@pytest.mark.parametrize("level", [0.0, 0.8, 2.0])
def test_nobody_nearly_all_and_all(level):
    got, _, _ = made(np.full((2, 4), level), HIGH, LOW, 4)
    assert (got.n_spikes == (4 if level > HIGH else 0)).all() and (got.n_near == (4 if level == 0.8 else 0)).all()
    assert not got.n_lost.any() and not got.n_near_dropped.any()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (1, 7), (2, 3, 1), (2, 1, 7), (2, 3, 7)], ids=str)
@pytest.mark.parametrize("capacity", [3, 7])
def test_derivatives_of_spikes_and_near_ones(shape, capacity):
    """d value[s] = factor[s] (dv - d threshold)[ids[s]], in both modes, by loops, for every shape of a threshold."""
    rng = np.random.default_rng(1)
    v = states((2, 3))
    high = rng.choice([0.9, HIGH], shape)
    dv, d_high = rng.normal(size=v.shape), rng.normal(size=shape)

    def value(v, high):
        return spikes_from_state(v, high, LOW, capacity).value

    @jax.jit
    def both(primals, tangents, ct):
        return jax.jvp(value, primals, tangents), jax.vjp(value, *primals)[1](ct)

    cotangent = rng.normal(size=(2, 3, capacity))
    (got, slope), (for_v, for_high) = both((v, high), (dv, d_high), cotangent)
    expected = np.zeros(got.shape)
    every_high, every_d = np.broadcast_to(high, v.shape), np.broadcast_to(d_high, v.shape)
    by_v = np.zeros(v.shape)
    for at in np.ndindex(2, 3):
        fired, near, _, _ = listed(v[at], every_high[at], np.full(7, LOW), capacity)
        for s, i in enumerate(fired + near):
            factor = curve(v[at][i] - every_high[at][i])
            expected[(*at, s)] = factor * (dv[at][i] - every_d[at][i])
            by_v[(*at, i)] += factor * cotangent[(*at, s)]
    np.testing.assert_allclose(slope, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(for_v, by_v, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.vdot(slope, cotangent), np.vdot(for_v, dv) + np.vdot(for_high, d_high), rtol=1e-12)


def test_the_near_threshold_and_the_factor_have_no_derivative():
    def of(v, low):
        spikes = spikes_from_state(v, HIGH, low, 7)
        return spikes.factor.sum() + 0 * spikes.value.sum(), spikes.value.sum()

    slope = jax.jit(lambda dv, d_low: jax.jvp(of, (states(()), LOW), (dv, d_low))[1])
    assert slope(np.zeros(7), 1.0) == (0, 0)
    factor, value = slope(np.ones(7), 0.0)
    assert factor == 0 and value > 0


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_second_derivative_is_that_of_the_surrogate(mode):
    """Of exp(value) at one spike: exp(1) (factor' + factor^2)."""

    def of(v):
        return jnp.exp(spikes_from_state(v, HIGH, LOW, 1).value[0])

    got = jax.jit(jax.grad(lambda v: mode(of)(v)[0]))(np.array([1.2]))
    np.testing.assert_allclose(got, (-20 / (10 * 0.2 + 1) ** 3 + curve(0.2) ** 2) * np.e, rtol=1e-10)


def test_types():
    for given, made in (
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ):
        spikes = spikes_from_state(jnp.full((2, 3), 2.0, given), jnp.float32(HIGH), LOW, 3)
        assert spikes.value.dtype == spikes.factor.dtype == made and spikes.ids.dtype == jnp.int32


SURROGATES = {
    "super_spike": (super_spike(), lambda x: 1 / (10 * abs(x) + 1) ** 2),
    "super_spike 3": (super_spike(3.0), lambda x: 1 / (3 * abs(x) + 1) ** 2),
    "fast_sigmoid": (
        fast_sigmoid(),
        lambda x: (x + 1e-6) / (1 + 25 * abs(x + 1e-6)) * 5e5 - (x - 1e-6) / (1 + 25 * abs(x - 1e-6)) * 5e5,
    ),
    "arctan": (arctan(), lambda x: (np.arctan(np.pi * (x + 1e-6)) - np.arctan(np.pi * (x - 1e-6))) / np.pi / 2e-6),
    "arctan 4": (
        arctan(4.0),
        lambda x: (np.arctan(2 * np.pi * (x + 1e-6)) - np.arctan(2 * np.pi * (x - 1e-6))) / np.pi / 2e-6,
    ),
    "triangular": (triangular(), lambda x: max(0, 1 - abs(x))),
    "triangular 0.5": (triangular(0.5), lambda x: max(0, 1 - abs(x) / 0.5)),
    "of a user": (lambda x: jnp.exp(-(x**2)), lambda x: np.exp(-(x**2))),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name):
    """The sigmoids by finite differences of what they are derivatives of."""
    surrogate, definition = SURROGATES[name]
    v = np.array([0.3, 0.7, 0.95, 1.05, 1.4, 1.9])
    got, _, _ = made(v, HIGH, -np.inf, 6, surrogate)
    expected = [definition(v[i] - HIGH) for i in got.ids]
    np.testing.assert_allclose(got.factor, expected, rtol=1e-6, atol=1e-9)


def test_a_surrogate_with_a_parameter_that_is_traced():
    def height(beta):
        return spikes_from_state(np.array([1.2]), HIGH, LOW, 1, super_spike(beta)).factor[0]

    np.testing.assert_allclose(jax.vmap(height)(jnp.array([1.0, 10.0])), [1 / 1.2**2, 1 / 9], rtol=1e-12)


@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_dense_and_back(batch):
    dense = np.maximum(states(batch) - 0.7, 0.0)
    of = jax.jit(lambda x, capacity: (y := SpikeVector.from_dense(x, capacity), y.to_dense()), static_argnums=1)
    (got, back), (short, part) = of(dense, 7), of(dense, 1)
    np.testing.assert_array_equal(back, dense)
    np.testing.assert_array_equal(got.n_spikes, (dense > 0).sum(-1))
    assert not np.any([got.n_near, got.n_lost, got.n_near_dropped])
    np.testing.assert_array_equal(short.n_lost, np.maximum((dense > 0).sum(-1) - 1, 0))
    assert (np.asarray(part) != 0).sum() == np.sum((dense > 0).any(-1))


def test_dense_and_back_with_derivatives():
    dense = np.array([[0.0, 2.0, 0.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    weights = np.arange(8.0).reshape(2, 4)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(weights * SpikeVector.from_dense(x, 3).to_dense())))(dense)
    np.testing.assert_array_equal(slope, weights * (dense != 0))
    assert SpikeVector.from_dense(dense != 0, 2).value.dtype == jnp.float32


def test_near_ones_pass_their_derivative_to_dense():
    v = states((3,))
    weights = np.random.default_rng(0).normal(size=v.shape)
    slope = jax.jit(jax.grad(lambda v: jnp.sum(weights * spikes_from_state(v, HIGH, LOW, 7).to_dense())))(v)
    np.testing.assert_allclose(slope, weights * curve(v - HIGH) * (v > LOW), rtol=1e-12)


@pytest.mark.parametrize(
    "index",
    [
        -1,
        slice(1, None),
        (0, 2),
        (Ellipsis, 1),
        Ellipsis,
        None,
        np.array([1, 0]),
        jnp.array([1]),
        np.array([True, False]),
    ],
    ids=str,
)
def test_indexing(index):
    got, dense, _ = made(states((2, 3)), HIGH, LOW, 4)
    part, part_dense = jax.jit(lambda x: (y := x[index], y.to_dense()))(got)
    rows = np.arange(6).reshape(2, 3)[index]
    np.testing.assert_array_equal(part.n_spikes, np.asarray(got.n_spikes).reshape(6)[rows])
    np.testing.assert_array_equal(part_dense, np.asarray(dense).reshape(6, 7)[rows])
    assert part.shape == (*rows.shape, 7)


@pytest.mark.parametrize("axis", [0, 2, -2])
def test_stack(axis):
    parts, dense, _ = zip(*(made(states((2, 3), seed=k), HIGH, LOW, 4) for k in range(3)), strict=True)
    got, whole = jax.jit(lambda *parts: (y := SpikeVector.stack(parts, axis), y.to_dense()))(*parts)
    np.testing.assert_array_equal(whole, np.stack(dense, axis % 3))
    np.testing.assert_array_equal(got.n_near, np.stack([x.n_near for x in parts], axis % 3))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(axis):
    parts, dense, _ = zip(*(made(states((2, 3), seed=k), HIGH, LOW, 4) for k in range(2)), strict=True)
    got, whole = jax.jit(lambda *parts: (y := SpikeVector.concatenate(parts, axis), y.to_dense()))(*parts)
    np.testing.assert_array_equal(whole, np.concatenate(dense, axis % 2))
    np.testing.assert_array_equal(got.n_lost, np.concatenate([x.n_lost for x in parts], axis % 2))


def test_a_pytree_through_scan_and_vmap():
    v = states((4, 3))

    @jax.jit
    def every(v):
        def of(v):
            return spikes_from_state(v, HIGH, LOW, 5)

        return jax.lax.scan(lambda carry, v: (carry, of(v)), 0, v)[1], jax.vmap(of)(v), of(v)

    for x, y, z in zip(*map(jax.tree.leaves, every(v)), strict=True):
        np.testing.assert_array_equal(x, z)
        np.testing.assert_array_equal(y, z)


V = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spikes_from_state(1.0, 1.0, 0.5, 2), r"state is float64\[\]"),
        (lambda: spikes_from_state(np.ones((2, 3), int), 1.0, 0.5, 2), "needs real numbers"),
        (lambda: spikes_from_state(V, np.ones(2), 0.5, 2), r"threshold is \(2,\)"),
        (lambda: spikes_from_state(V, 1.0, np.ones((4, 2, 3)), 2), r"near_threshold is \(4, 2, 3\)"),
        (lambda: spikes_from_state(V, 1.0, 0.5, -1), "capacity is -1"),
        (lambda: spikes_from_state(V, 1.0, 0.5, 1.5), "capacity is 1.5"),
        (lambda: SpikeVector.from_dense(1.0, 2), "got a number"),
        (lambda: SpikeVector.from_dense(V, True), "capacity is True"),
        (lambda: SpikeVector.from_dense(V, 2)[2], "does not fit batch axes"),
        (lambda: SpikeVector.from_dense(V, 2)[0, 0], "does not fit batch axes"),
        (lambda: SpikeVector.from_dense(V, 2)["a"], "does not fit batch axes"),
        (lambda: SpikeVector.stack([]), "got no vectors"),
        (lambda: SpikeVector.stack([SpikeVector.from_dense(V, k) for k in (1, 2)]), r"\[\(3, 1\), \(3, 2\)\]"),
        (lambda: SpikeVector.stack([SpikeVector.from_dense(V, 1)], 2), "axis is 2"),
        (lambda: SpikeVector.concatenate([SpikeVector.from_dense(V, 1)], 1), "axis is 1"),
        (lambda: SpikeVector.concatenate([SpikeVector.from_dense(V[k], 1) for k in (0, 1)]), "axis is 0"),
        (
            lambda: SpikeVector.concatenate([SpikeVector.from_dense(V, 1), SpikeVector.from_dense(V[:1], 1)], 2),
            "axis is 2",
        ),
        (
            lambda: SpikeVector.stack([SpikeVector.from_dense(V, 1), SpikeVector.from_dense(V[:1], 1)]),
            r"batch axes \[\(1,\), \(2,\)\]",
        ),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(RanvierError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
