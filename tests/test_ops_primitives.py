"""gather, scatter, dots and the lists of spikes against plain loops, and under every transformation of JAX."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.ops import primitives

pytestmark = pytest.mark.usefixtures("x64", "quick_compiler")

# Q, R, S, N, C: usual, one of everything, more slots than neurons, and each axis of length 0
SIZES = [
    (2, 3, 4, 5, 6),
    (1, 1, 1, 1, 1),
    (1, 2, 5, 3, 2),
    *(tuple(2 * (k != at) for k in range(5)) for at in range(5)),
]


def operands(sizes, seed=0):
    """values, ids, count, matrix, g; lists are full, empty and in between, and may name a neuron twice."""
    q, r, s, n, c = sizes
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, max(n, 1), (q, r, s), dtype=np.int32)
    count = (np.arange(q * r, dtype=np.int32) * 2 % (s + 1) if n else np.zeros(q * r, np.int32)).reshape(q, r)
    values, matrix, g = rng.normal(size=(q, r, s)), rng.normal(size=(q, n, c)), rng.normal(size=(q, r, c))
    return {"values": values, "ids": ids, "count": count, "matrix": matrix, "g": g}


def gather(values, ids, count, matrix):
    out = np.zeros((*count.shape, matrix.shape[2]))
    for q, r in np.ndindex(count.shape):
        for s in range(count[q, r]):
            out[q, r] += values[q, r, s] * matrix[q, ids[q, r, s]]
    return out


def scatter(values, ids, count, g, n_rows):
    out = np.zeros((len(g), n_rows, g.shape[2]))
    for q, r in np.ndindex(count.shape):
        for s in range(count[q, r]):
            out[q, ids[q, r, s]] += values[q, r, s] * g[q, r]
    return out


def dots(ids, count, matrix, g):
    out = np.zeros(ids.shape)
    for q, r in np.ndindex(count.shape):
        for s in range(count[q, r]):
            out[q, r, s] = matrix[q, ids[q, r, s]] @ g[q, r]
    return out


LISTED = {
    "gather": (gather, ("values", "ids", "count", "matrix")),
    "scatter": (scatter, ("values", "ids", "count", "g")),
    "dots": (dots, ("ids", "count", "matrix", "g")),
}


def problem(name, sizes=SIZES[0], seed=0):
    """The primitive, its definition, and its operands by name."""
    definition, names = LISTED[name]
    every = operands(sizes, seed)
    options = {"n_rows": sizes[3]} if name == "scatter" else {}
    return (
        partial(getattr(primitives, name), **options),
        partial(definition, **options),
        {x: every[x] for x in names},
    )


def moving(arrays):
    """The operands that the primitive is linear in, as one function's arguments."""
    return [name for name in arrays if name not in ("ids", "count")]


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", LISTED)
def test_definition(name, sizes):
    function, definition, arrays = problem(name, sizes)
    got = function(*map(jnp.asarray, arrays.values()))
    close(got, definition(*arrays.values()))
    np.testing.assert_array_equal(got, jax.jit(function)(*arrays.values()))


@pytest.mark.parametrize("name", LISTED)
def test_a_neuron_that_is_none_is_ignored(name):
    """Memory beside the matrix is never read, whatever a list says."""
    function, definition, arrays = problem(name)
    wrong = arrays["ids"].copy()
    wrong[1, 2] = [-1, 5, 2**31 - 1, -(2**31)]
    arrays["count"][1] = [3, 4, 4]
    ignored = arrays["count"].copy()
    ignored[1, 2] = 0
    got = function(*map(jnp.asarray, (arrays | {"ids": wrong}).values()))
    close(got, definition(*(arrays | {"count": ignored}).values()))


@pytest.mark.parametrize("name", LISTED)
def test_derivatives_are_adjoint_and_those_of_the_definition(name):
    function, definition, arrays = problem(name)
    names = moving(arrays)
    other = problem(name, seed=1)[2]

    def of(*moved):
        return function(*map(jnp.asarray, (arrays | dict(zip(names, moved, strict=True))).values()))

    primals, tangents = [[x[name] for name in names] for x in (arrays, other)]
    out, slope = jax.jvp(of, primals, tangents)
    close(slope, sum(definition(*(arrays | {name: other[name]}).values()) for name in names))
    cotangent = np.random.default_rng(2).normal(size=out.shape)
    gradients = jax.vjp(of, *primals)[1](cotangent)
    close(np.vdot(slope, cotangent), sum(np.vdot(x, t) for x, t in zip(gradients, tangents, strict=True)))
    for gradient, primal in zip(gradients, primals, strict=True):
        assert gradient.shape == primal.shape


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_derivatives_reach_further_than_values(name):
    """Behind `count` and before `reach` values are 0 and have derivatives: as if they were counted, in any order."""
    function, _, arrays = problem(name)
    other = problem(name, seed=1)[2]
    reach = arrays["count"] = np.array([[4, 3, 2], [2, 4, 0]], np.int32)
    count = np.array([[1, 3, 0], [2, 2, 0]], np.int32)
    values = np.where(np.arange(4) < count[..., None], arrays["values"], 0)
    a, b = moving(arrays)

    def derivatives(count):
        def of(x, y):
            given = arrays | {a: x, b: y, "count": count}
            return jnp.sum(jnp.sin(function(*map(jnp.asarray, given.values()), reach=jnp.asarray(reach))))

        given = values, arrays[b]
        changed = other[a], other[b]
        back = jax.grad(of, (0, 1))
        forward = jax.jvp(of, given, changed)
        return (
            of(*given),
            back(*given),
            forward,
            jax.jvp(back, given, changed),
            jax.grad(lambda *x: jax.jvp(of, x, changed)[1], (0, 1))(*given),
        )

    for x, y in zip(*map(jax.tree.leaves, jax.jit(lambda: (derivatives(count), derivatives(reach)))()), strict=True):
        close(x, y)


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_the_transpose_in_values_reaches_as_far_as_their_gradient(name):
    function, _, arrays = problem(name)
    values, *others = map(jnp.asarray, arrays.values())
    half = {"reach": others[1]}
    others[1] = others[1] // 2

    def of(values):
        return function(values, *others, **half)

    out, back = jax.vjp(of, values)
    close(jax.linear_transpose(of, values)(out)[0], back(out)[0])


@pytest.mark.parametrize("name", LISTED)
def test_second_derivatives_in_every_mode(name):
    """The mixed block of sin of the results, forward and reverse over forward and reverse."""
    function, definition, arrays = problem(name, (1, 2, 2, 3, 2))
    first, second = moving(arrays)

    def of(a, b):
        return jnp.sum(jnp.sin(function(*map(jnp.asarray, (arrays | {first: a, second: b}).values()))))

    a, b = arrays[first], arrays[second]
    by_loops = np.zeros((*a.shape, *b.shape))
    inside = definition(*arrays.values())
    units = {}
    for which, x in ((first, a), (second, b)):
        for at in np.ndindex(x.shape):
            unit = np.zeros(x.shape)
            unit[at] = 1.0
            units[which, at] = definition(*(arrays | {which: unit}).values()), unit
    for i in np.ndindex(a.shape):
        for j in np.ndindex(b.shape):
            both = definition(*(arrays | {first: units[first, i][1], second: units[second, j][1]}).values())
            by_loops[(*i, *j)] = np.sum(
                np.cos(inside) * both - np.sin(inside) * units[first, i][0] * units[second, j][0]
            )
    modes = list(product((jax.jacfwd, jax.jacrev), repeat=2))
    for got in jax.jit(lambda a, b: [outer(inner(of, 0), 1)(a, b) for outer, inner in modes])(a, b):
        close(got, by_loops)


@pytest.mark.parametrize("name", LISTED)
def test_vmap_over_any_operands(name):
    function, _, arrays = problem(name)
    many = [problem(name, seed=k)[2] for k in range(3)]
    names = list(arrays)
    for mapped in product((None, 0, 1), repeat=len(names)):
        if len({x for x in mapped if x is not None}) != 1 and mapped not in ((0, 1, 0, 2), (1, None, 0, 2)):
            continue
        given = [
            jnp.asarray(arrays[x] if axis is None else np.stack([m[x] for m in many], axis))
            for x, axis in zip(names, mapped, strict=True)
        ]
        got = jax.vmap(function, mapped)(*given)
        for k, m in enumerate(many):
            one = [arrays[x] if axis is None else m[x] for x, axis in zip(names, mapped, strict=True)]
            close(got[k], LISTED[name][0](*one, **function.keywords))


@pytest.mark.parametrize("name", LISTED)
def test_vmap_twice(name):
    """Outside over matrices (of scatter: what is added), inside over lists; then both the other way round."""
    function, definition, arrays = problem(name)
    names = list(arrays)
    shared = "g" if name == "scatter" else "matrix"
    outer = [0 if x == shared else None for x in names]
    inner = [None if x == shared else 0 for x in names]
    rng = np.random.default_rng(5)
    many = [np.stack([x, x]) if x.dtype == np.int32 else rng.normal(size=(2, *x.shape)) for x in arrays.values()]
    for first, second in ((outer, inner), (inner, outer)):
        got = jax.jit(jax.vmap(jax.vmap(function, second), first))(*many)
        for i, j in np.ndindex(2, 2):
            one = [x[i if d == 0 else j] for x, d in zip(many, first, strict=True)]
            close(got[i, j], definition(*one))


@pytest.mark.parametrize("name", LISTED)
def test_vmap_over_nothing(name):
    function, _, arrays = problem(name)
    given = [jnp.asarray(x)[None][:0] for x in arrays.values()]
    assert jax.vmap(function)(*given).shape == (0, *function(*arrays.values()).shape)


def lists(state, threshold, near, capacity):
    """Rows of (ids, n_spikes, n_near, n_lost, n_near_dropped), by plain loops."""
    rows = []
    for v, high, low in zip(*np.broadcast_arrays(state, threshold, near), strict=True):
        fired = [i for i in range(len(v)) if v[i] > high[i]]
        almost = [i for i in range(len(v)) if low[i] < v[i] <= high[i]]
        kept = fired[:capacity]
        kept_near = almost[: capacity - len(kept)]
        ids = kept + kept_near + [0] * (capacity - len(kept) - len(kept_near))
        rows.append((ids, len(kept), len(kept_near), len(fired) - len(kept), len(almost) - len(kept_near)))
    return [np.array(x) for x in zip(*rows, strict=True)]


def states(seed=0):
    """Rows with no spike, with spikes alone, and in between; values on the thresholds, infinite ones, and no number."""
    state = np.random.default_rng(seed).integers(0, 5, (6, 9)) / 4.0
    state[0] = 0.0
    state[1] = 2.0
    state[2, :4] = [np.inf, -np.inf, np.nan, 1.0]
    return state


@pytest.mark.parametrize("capacity", [0, 1, 3, 9, 12])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (6, 1), (6, 9)])
def test_lists_of_spikes(shape, capacity):
    rng = np.random.default_rng(3)
    high, low = rng.choice([0.75, 1.0], shape), rng.choice([0.25, 0.5, -np.inf], shape)
    got = primitives.spikes(*map(jnp.asarray, (states(), high, low)), capacity)
    for x, expected in zip(got, lists(states(), high, low, capacity), strict=True):
        assert x.dtype == jnp.int32
        np.testing.assert_array_equal(x, expected.reshape(x.shape))


@pytest.mark.parametrize("mapped", [x for x in product((None, 0), repeat=3) if any(d == 0 for d in x)], ids=str)
@pytest.mark.parametrize("rows", [1, 6])
def test_lists_of_spikes_under_vmap(mapped, rows):
    rng = np.random.default_rng(4)
    high, low = rng.choice([0.75, 1.0], (4, rows, 9)), rng.choice([0.25, 0.5], (4, 1, 1))
    every = [np.stack([states(k) for k in range(4)]), high, low]
    given = [jnp.asarray(x if axis == 0 else x[0]) for x, axis in zip(every, mapped, strict=True)]
    got = jax.vmap(lambda *x: primitives.spikes(*x, 5), mapped)(*given)
    for k in range(4):
        one = [np.asarray(x[k] if axis == 0 else x) for x, axis in zip(given, mapped, strict=True)]
        for x, expected in zip(got, lists(*one, 5), strict=True):
            np.testing.assert_array_equal(x[k], expected)
