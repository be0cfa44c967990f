"""The compiled sparse operators against plain loops in float64, on whatever machine JAX computes."""

import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ranvier import kernels
from ranvier.ops import dense, primitives

MISSING = "ops_gather" not in kernels.status().handlers
assert not MISSING or os.environ.get("RANVIER_REQUIRE_NATIVE") != "1", "the compiled library has no sparse operators"
pytestmark = pytest.mark.skipif(MISSING, reason="no compiled sparse operators")

TYPES = ("float32", "float64", "bfloat16", "float16")
# What a sum of up to some hundred numbers around 1 may be off by.
NEAR = {"float32": 2e-4, "float64": 1e-12}


def sums_of(dtype):
    return "float64" if dtype == "float64" else "float32"


def lists(r, q, n_lists, slots, n, *, full=False, wild=False):
    """Values, ids and counts; `wild` adds ids that name no row, counts that are no count, and rows named twice."""
    ids = r.integers(0, n, (q, n_lists, slots)).astype(np.int32)
    count = r.integers(0, slots + 1, (q, n_lists)).astype(np.int32)
    if full:
        count[:] = slots
    if wild:
        ids = np.where(r.random(ids.shape) < 0.2, r.choice([-1, n, 2**31 - 1, -(2**31)], ids.shape), ids)
        count = np.where(r.random(count.shape) < 0.4, r.choice([-3, slots + 5], count.shape), count)
    return r.normal(size=ids.shape), ids.astype(np.int32), count.astype(np.int32)


def each(ids, count, n):
    """Places q, r, s and rows of the slots in use, in order."""
    for q, r in np.ndindex(count.shape):
        for s in range(min(max(count[q, r], 0), ids.shape[2])):
            if 0 <= ids[q, r, s] < n:
                yield q, r, s, ids[q, r, s]


def wide(*arrays):
    return [np.asarray(x).astype(np.float64) for x in arrays]


def loops_gather(values, ids, count, matrix):
    values, matrix = wide(values, matrix)
    out = np.zeros((*count.shape, matrix.shape[2]))
    for q, r, s, i in each(ids, count, matrix.shape[1]):
        out[q, r] += values[q, r, s] * matrix[q, i]
    return out


def loops_scatter(values, ids, count, g, n):
    values, g = wide(values, g)
    out = np.zeros((count.shape[0], n, g.shape[2]))
    for q, r, s, i in each(ids, count, n):
        out[q, i] += values[q, r, s] * g[q, r]
    return out


def loops_dots(ids, count, matrix, g):
    matrix, g = wide(matrix, g)
    out = np.zeros(ids.shape)
    for q, r, s, i in each(ids, count, matrix.shape[1]):
        out[q, r, s] = matrix[q, i] @ g[q, r]
    return out


def check(r, dtype, q, n_lists, slots, n, columns, **kind):
    accumulator = sums_of(dtype)
    values, ids, count = lists(r, q, n_lists, slots, n, **kind)
    values = values.astype(accumulator)
    g = r.normal(size=(q, n_lists, columns)).astype(accumulator)
    matrix = np.asarray(jnp.asarray(r.normal(size=(q, n, columns)), dtype))
    near = {"rtol": 0, "atol": NEAR[accumulator]}
    np.testing.assert_allclose(
        jax.jit(primitives.gather)(values, ids, count, matrix), loops_gather(values, ids, count, matrix), **near
    )
    np.testing.assert_allclose(
        jax.jit(primitives.dots)(ids, count, matrix, g), loops_dots(ids, count, matrix, g), **near
    )
    if dtype == accumulator:
        np.testing.assert_allclose(
            jax.jit(primitives.scatter, static_argnums=4)(values, ids, count, g, n),
            loops_scatter(values, ids, count, g, n),
            **near,
        )


def test_the_library_is_what_computes():
    lowered = jax.jit(primitives.gather).lower(
        np.ones((1, 2, 3), np.float32), np.ones((1, 2, 3), np.int32), np.ones((1, 2), np.int32), np.ones((1, 4, 5))
    )
    assert "ranvier_ops_gather" in lowered.as_text()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("columns", [1, 3, 15, 130, 300])
def test_columns_of_any_number(columns, dtype, x64):
    check(np.random.default_rng(columns), dtype, 2, 3, 7, 11, columns, wild=columns % 2 == 1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 2, 5), (1, 700, 4, 3), (2, 40, 60, 9)])
def test_lists_and_matrices_of_any_number(shape, dtype, x64):
    check(np.random.default_rng(1), dtype, *shape, columns=5, wild=True)


@pytest.mark.parametrize("slots", [0, 6])
def test_nothing_used_gives_zeros(slots):
    values, ids = np.ones((1, 4, slots), np.float32), np.zeros((1, 4, slots), np.int32)
    count, matrix, g = np.zeros((1, 4), np.int32), np.ones((1, 3, 8), np.float32), np.ones((1, 4, 8), np.float32)
    assert not np.any(primitives.gather(values, ids, count, matrix))
    assert not np.any(primitives.scatter(values, ids, count, g, 3))
    assert not np.any(primitives.dots(ids, count, matrix, g))


def ascending(r, n_lists, n, activity):
    """Spikes and then near-threshold neurons, each ascending, as lists (1, n_lists, S)."""
    fired, nearly = r.random((2, n_lists, n)) < activity
    both = [np.concatenate([np.flatnonzero(a), np.flatnonzero(b & ~a)]) for a, b in zip(fired, nearly, strict=True)]
    ids = np.zeros((1, n_lists, max(len(x) for x in both) + 2), np.int32)
    for k, x in enumerate(both):
        ids[0, k, : len(x)] = x
    return ids, np.array([[len(x) for x in both]], np.int32)


def test_a_matrix_larger_than_the_cache_in_blocks(x64):
    """Many lists, so that rows go block by block and the columns in parts."""
    r = np.random.default_rng(2)
    n, columns, n_lists = 600, 1024, 150
    ids, count = ascending(r, n_lists, n, 0.04)
    values = r.normal(size=ids.shape).astype(np.float32)
    matrix = r.normal(size=(1, n, columns)).astype(np.float32)
    g = r.normal(size=(1, n_lists, columns)).astype(np.float32)
    rows = np.zeros((n_lists, n))
    for _, k, s, i in each(ids, count, n):
        rows[k, i] += values[0, k, s]
    every = wide(matrix)[0][0] @ wide(g)[0][0].T
    dots = np.zeros(ids.shape)
    for _, k, s, i in each(ids, count, n):
        dots[0, k, s] = every[i, k]
    near = {"rtol": 0, "atol": 4e-4}
    np.testing.assert_allclose(primitives.gather(values, ids, count, matrix)[0], rows @ wide(matrix)[0][0], **near)
    np.testing.assert_allclose(primitives.scatter(values, ids, count, g, n)[0], rows.T @ wide(g)[0][0], **near)
    np.testing.assert_allclose(primitives.dots(ids, count, matrix, g), dots, **near)


def test_the_same_bits_alone_and_among_others():
    """Whichever way the work is cut: a list alone, and among many that name the same rows."""
    r = np.random.default_rng(3)
    n, columns = 600, 1031
    ids, count = ascending(r, 64, n, 0.08)
    values = r.normal(size=ids.shape).astype(np.float32)
    matrix = r.normal(size=(1, n, columns)).astype(np.float32)
    g = r.normal(size=(1, 64, columns)).astype(np.float32)
    gathered, dots = primitives.gather(values, ids, count, matrix), primitives.dots(ids, count, matrix, g)
    for k in (0, 17):
        one = slice(k, k + 1)
        alone = primitives.gather(values[:, one], ids[:, one], count[:, one], matrix)
        np.testing.assert_array_equal(gathered[:, one], alone)
        np.testing.assert_array_equal(dots[:, one], primitives.dots(ids[:, one], count[:, one], matrix, g[:, one]))
    for _ in range(3):
        np.testing.assert_array_equal(gathered, primitives.gather(values, ids, count, matrix))
        np.testing.assert_array_equal(dots, primitives.dots(ids, count, matrix, g))


def test_scatter_has_the_same_bits_every_time_and_adds_in_order():
    """Beside 1e8 a 1 gets lost: the sum tells the order."""
    n_lists = 1200
    values = np.ones((1, n_lists, 1), np.float32)
    values[0, ::3], values[0, 2::3] = 1e8, -1e8
    ids, count = np.zeros((1, n_lists, 1), np.int32), np.ones((1, n_lists), np.int32)
    g = np.ones((1, n_lists, 40), np.float32)
    total = np.float32(0)
    for v in values[0, :, 0]:
        total = np.float32(total + v)
    for _ in range(3):
        np.testing.assert_array_equal(primitives.scatter(values, ids, count, g, 2)[0, 0], np.full(40, total))


def test_more_matrices_than_are_sorted_at_a_time():
    """A gradient of 600 matrices of 8,192 rows each: rounds."""
    r = np.random.default_rng(4)
    values = r.normal(size=(600, 1, 2)).astype(np.float32)
    ids, count = r.integers(0, 8192, values.shape).astype(np.int32), np.full((600, 1), 2, np.int32)
    g = r.normal(size=(600, 1, 1)).astype(np.float32)
    wanted = np.zeros((600, 8192, 1), np.float32)
    np.add.at(wanted[..., 0], (np.arange(600)[:, None], ids[:, 0]), values[:, 0] * g[:, 0])
    np.testing.assert_allclose(primitives.scatter(values, ids, count, g, 8192), wanted, rtol=1e-6)


@pytest.mark.parametrize("columns", [256, 15])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_every_number_of_16_bits(dtype, columns):
    """A list that names a row alone returns it as it is, infinities and the smallest numbers too.

    Those that are subnormal in float32 may become 0: so XLA has its threads.
    """
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    matrix = every[: 2**16 // columns * columns].reshape(1, -1, columns)
    n = matrix.shape[1]
    ids, count = np.arange(n, dtype=np.int32).reshape(1, n, 1), np.ones((1, n), np.int32)
    got = np.asarray(primitives.gather(np.ones((1, n, 1), np.float32), ids, count, jnp.asarray(matrix)))
    wanted = matrix.astype(np.float32)
    tiny = np.abs(wanted) < np.finfo(np.float32).tiny
    np.testing.assert_array_equal(np.where(tiny, 0, got), np.where(tiny, 0, wanted))
    assert np.all(np.abs(got[tiny]) <= np.abs(wanted[tiny]))


def loops_spikes(state, threshold, near, capacity):
    out = []
    for v, high, low in zip(state, threshold, near, strict=True):
        fired = [i for i in range(len(v)) if v[i] > high[i]]
        nearly = [i for i in range(len(v)) if low[i] < v[i] <= high[i]]
        kept = fired[:capacity]
        beside = nearly[: capacity - len(kept)]
        ids = kept + beside + [0] * (capacity - len(kept) - len(beside))
        out.append((ids, len(kept), len(beside), len(fired) - len(kept), len(nearly) - len(beside)))
    return [np.array(x, np.int32) for x in zip(*out, strict=True)]


@pytest.mark.parametrize("threshold", [(1, 1), (9, 1), (1, None), (9, None)])
@pytest.mark.parametrize(
    ("n", "capacity", "dtype"), [(1, 1, "float32"), (5, 0, "float32"), (64, 4, "float64"), (131, 200, "float32")]
)
def test_spikes(n, capacity, dtype, threshold, x64):
    r = np.random.default_rng(n)
    shape = (threshold[0], threshold[1] or n)
    state = np.round(r.uniform(0, 1.5, (9, n)), 1).astype(dtype)  # many at a threshold exactly
    state[r.random(state.shape) < 0.05] = np.nan
    high = np.round(r.uniform(0.8, 1.2, shape), 1).astype(dtype)
    for low_shape in (shape, (1, 1)):
        low = np.round(r.uniform(0.3, 0.9, low_shape), 1).astype(dtype)
        every_high, every_low = (np.broadcast_to(x, state.shape) for x in (high, low))
        got = primitives.spikes(jnp.asarray(state), jnp.asarray(high), jnp.asarray(low), capacity)
        for x, wanted in zip(got, loops_spikes(state, every_high, every_low, capacity), strict=True):
            np.testing.assert_array_equal(np.asarray(x).reshape(wanted.shape), wanted)


def test_spikes_all_and_none():
    state = jnp.ones((2, 70), jnp.float32)
    for high, low, expected in ((0.5, 0.0, (70, 0)), (1.0, 0.5, (0, 70)), (1.0, -np.inf, (0, 70)), (2.0, 1.0, (0, 0))):
        ids, n_spikes, n_near, n_lost, n_dropped = primitives.spikes(
            state, jnp.full((1, 1), high, jnp.float32), jnp.full((1, 1), low, jnp.float32), 70
        )
        assert (int(n_spikes[0]), int(n_near[1])) == expected
        assert not np.any(n_lost) and not np.any(n_dropped)
        np.testing.assert_array_equal(ids[1], np.arange(70) if sum(expected) else np.zeros(70))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 7, 5, 33), (1, 40, 60, 9), (3, 1, 1, 1)])
def test_rows_of_lists(shape, dtype, x64):
    """To the bit: entries of equal ids are added in the order of the list, and the sum is rounded at the end."""
    values, ids, count = lists(np.random.default_rng(2), *shape, wild=True)
    values = values.astype(sums_of(dtype))
    values.flat[:5] = np.inf, np.nan, 1 + 2**-8, 1 + 3 * 2**-8, -0.0
    expected = np.zeros((*count.shape, shape[-1]), values.dtype)
    for q, r, s, i in each(ids, count, shape[-1]):
        expected[q, r, i] += values[q, r, s]
    got = jax.jit(dense.densify, static_argnums=(3, 4))(values, ids, count, shape[-1], dtype)
    assert got.dtype == dtype
    with np.errstate(invalid="ignore"):
        expected = expected.astype(got.dtype)
    np.testing.assert_array_equal(wide(got), wide(expected))
