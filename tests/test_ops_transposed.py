"""Matrices that are stored (C, N): the same products as with (N, C), by plain loops, kernels and the reference."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import kernels
from ranvier.ops import primitives, spike_matmul, spikes_from_state
from ranvier.ops.ways import Ways
from tests.test_ops_native import NEAR, TYPES, each, lists, sums_of, wide

HANDLERS = ("ops_gather_turned", "ops_scatter_turned", "ops_dots_turned")
PLATFORM = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
MISSING = not set(HANDLERS) <= set(kernels.status(PLATFORM).handlers)
assert not MISSING or os.environ.get("RANVIER_REQUIRE_NATIVE") != "1", "the compiled library has no turned operators"

# (Q, R, S, N, C): less and more than the squares and tiles that kernels turn, and no multiples of them; so few entries
# that they are read one by one; many lists; one of everything
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 7, 11, 5),
    (1, 5, 40, 150, 67),
    (2, 40, 9, 33, 130),
    (1, 2, 3, 300, 33),
    (1, 600, 4, 9, 3),
]


@jax.jit
def all_three(values, ids, count, matrix, g, ct):
    """Each product with its transposes, the second and third of which are the other products."""
    out, gather_rule = jax.vjp(lambda v, m: primitives.gather(v, ids, count, m, transposed=True), values, matrix)
    dots, dots_rule = jax.vjp(lambda m, g: primitives.dots(ids, count, m, g, transposed=True), matrix, g)
    rows = primitives.scatter(values, ids, count, g, matrix.shape[2], transposed=True)
    return out, rows, dots, gather_rule(g), dots_rule(ct)


def loops(values, ids, count, matrix, g):
    """gather, scatter and dots with a matrix (Q, C, N)."""
    values, matrix, g = wide(values, matrix, g)
    out, rows, dots = np.zeros(g.shape), np.zeros(matrix.shape), np.zeros(ids.shape)
    for q, r, s, i in each(ids, count, matrix.shape[2]):
        out[q, r] += values[q, r, s] * matrix[q, :, i]
        rows[q, :, i] += values[q, r, s] * g[q, r]
        dots[q, r, s] = matrix[q, :, i] @ g[q, r]
    return out, rows, dots


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_products_and_their_derivatives(size, dtype, x64):
    q, n_lists, slots, n, columns = size
    r = np.random.default_rng(n)
    accumulator = sums_of(dtype)
    values, ids, count = lists(r, q, n_lists, slots, n, wild=True)
    values, ct, g = (
        x.astype(accumulator) for x in (values, r.normal(size=ids.shape), r.normal(size=(q, n_lists, columns)))
    )
    matrix = np.asarray(jnp.asarray(r.normal(size=(q, columns, n)), dtype))
    got = all_three(values, ids, count, matrix, g, ct)
    out, rows, dots = loops(values, ids, count, matrix, g)
    by_ct, rows_of_ct, _ = loops(ct, ids, count, matrix, g)

    def close(x, y, of=accumulator):
        scale = np.abs(y).max(initial=1)
        # derivatives of a matrix of 16 bits are rounded to them
        atol = NEAR[of] if x.dtype == of else 0.01 * scale
        np.testing.assert_allclose(wide(x)[0], y, rtol=0, atol=atol)

    for x, y in zip(jax.tree.leaves(got), (out, rows, dots, dots, rows, rows_of_ct, by_ct), strict=True):
        close(x, y)


@pytest.mark.skipif(MISSING, reason="no compiled operators for matrices (C, N)")
def test_the_library_computes_them_without_a_copy():
    q, n_lists, slots, n, columns = 1, 5, 7, 40, 30
    values, ids, count = lists(np.random.default_rng(0), q, n_lists, slots, n)
    matrix, g = np.ones((1, columns, n), np.float32), np.ones((1, n_lists, columns), np.float32)
    text = all_three.lower(values.astype(np.float32), ids, count, matrix, g, values.astype(np.float32)).as_text()
    assert [text.count(f"ranvier_{name}_f32") for name in HANDLERS] == [2, 3, 2]
    assert "stablehlo.transpose" not in text


@pytest.mark.skipif(MISSING or PLATFORM != "cpu", reason="sums have another order on a GPU")
@pytest.mark.parametrize(
    ("dtype", "n", "columns"),
    # the last has so many rows that lists are sorted some at a time, and results come in parts
    [("float32", 200, 70), ("bfloat16", 200, 70), ("float32", 2_500_000, 1)],
)
def test_the_same_bits_as_the_other_way_round(dtype, n, columns):
    """On the CPU what is turned are numbers on their way to the same sums."""
    n_lists = 1100
    values, ids, count = lists(np.random.default_rng(3), 1, n_lists, 30, n)
    ids %= np.int32(200)
    values = values.astype(np.float32)
    matrix = jnp.asarray(np.random.default_rng(4).normal(size=(1, n, columns)), dtype)
    g = np.random.default_rng(5).normal(size=(1, n_lists, columns)).astype(np.float32)
    turned = jnp.swapaxes(matrix, 1, 2)
    same = np.testing.assert_array_equal
    same(primitives.gather(values, ids, count, turned, transposed=True), primitives.gather(values, ids, count, matrix))
    same(primitives.dots(ids, count, turned, g, transposed=True), primitives.dots(ids, count, matrix, g))
    same(
        primitives.scatter(values, ids, count, g, n, transposed=True),
        jnp.swapaxes(primitives.scatter(values, ids, count, g, n), 1, 2),
    )


def test_under_vmap_and_in_dense_mode():
    """A matrix each or one for all; and by dense products, whose transposes are dense products too."""
    r = np.random.default_rng(6)
    state, matrices = r.normal(size=(3, 4, 9)).astype(np.float32), r.normal(size=(3, 5, 9)).astype(np.float32)

    def of(state, matrix, transposed, **options):
        spikes = spikes_from_state(state, 0.5, 0.0, 6)
        return jnp.sin(spike_matmul(spikes, matrix, transposed=transposed, **options)).sum()

    @jax.jit
    def every(state, matrices):
        out = []
        for axes in ((0, 0), (0, None), (None, 0)):
            operands = [x if axis == 0 else x[0] for x, axis in zip((state, matrices), axes, strict=True)]
            for turned, mode in ((False, "sparse"), (True, "sparse"), (True, "dense")):
                here = [operands[0], operands[1] if turned else jnp.swapaxes(operands[1], -1, -2)]
                gradient = jax.grad(lambda s, m, t=turned, w=mode: of(s, m, t, mode=w), argnums=(0, 1))
                by_state, by_matrix = jax.vmap(gradient, axes)(*here)
                out.append((by_state, by_matrix if turned else jnp.swapaxes(by_matrix, -1, -2)))
        return out

    out = every(state, matrices)
    for k in range(0, len(out), 3):
        for other in out[k + 1 : k + 3]:
            for x, y in zip(out[k], other, strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_the_way_is_chosen_for_the_sizes_of_the_other_orientation(monkeypatch):
    """`auto` sees N and C in their places, however the matrix is stored."""
    from ranvier.ops import costs

    seen = []

    def choose(name, ways, size, *rest):
        seen.append((name, size))
        return "sparse"

    monkeypatch.setattr(costs, "choose", choose)
    values, ids, count = lists(np.random.default_rng(0), 1, 2, 3, 17)
    values, matrix, g = (np.ones(shape, np.float32) for shape in ((1, 2, 3), (1, 6, 17), (1, 2, 6)))
    options = {"ways": Ways("auto", "auto", "auto"), "transposed": True}
    primitives.gather(values, ids, count, matrix, **options)
    primitives.scatter(values, ids, count, g, 17, **options)
    assert seen == [("gather", (1, 2, 3, 17, 6)), ("scatter", (1, 2, 3, 17, 6))]
