"""`spike_matmul` and `sparse_matmul` against the dense formula in float64, written as plain loops and as dense JAX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.errors import RanvierError
from ranvier.ops import SpikeVector, sparse_matmul, spike_matmul, spikes_from_state, super_spike
from tests.new_process import TWO_DEVICES, in_a_new_process

pytestmark = pytest.mark.usefixtures("x64", "quick_compiler")

HIGH, LOW, N, C = 1.0, 0.6, 8, 5
SHAPES = [(), (3,), (2, 3)]
# of eight neurons four fire and two nearly do: over-full, exactly full, room for all
CAPACITIES = [3, 6, 9]


def problem(batch, seed=0):
    """v, matrix, bias and directions of all three."""
    r = np.random.default_rng(seed)
    levels = np.array([0.1, 0.8, 1.1, 1.4, 0.9, 1.3, 0.3, 1.7])
    v = r.permuted(np.broadcast_to(levels, (*batch, N)), axis=-1) + r.uniform(0, 0.05, (*batch, N))
    arrays = [v, r.normal(size=(N, C)), r.normal(size=C)]
    return arrays, [r.normal(size=x.shape) for x in arrays]


def factor(x):
    return 1 / (10 * np.abs(x) + 1) ** 2


def lists(v, capacity):
    """(spikes, near ones) that a list of `capacity` holds."""
    fired = [i for i in range(N) if v[i] > HIGH]
    near = [i for i in range(N) if LOW < v[i] <= HIGH]
    return fired[:capacity], near[: max(capacity - len(fired), 0)]


def run(v, matrix, bias, capacity, include_near=False):
    return spike_matmul(spikes_from_state(v, HIGH, LOW, capacity), matrix, include_near, bias)


def close(got, expected, tolerance=1e-12):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("include_near", [False, True])
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_forward_and_both_derivatives(batch, capacity, include_near):
    (v, matrix, bias), (dv, d_matrix, d_bias) = problem(batch)
    of = partial(run, capacity=capacity, include_near=include_near)
    ct = np.random.default_rng(1).normal(size=(*batch, C))

    @jax.jit
    def both(primals, tangents, ct):
        return jax.jvp(of, primals, tangents), jax.vjp(of, *primals)[1](ct)

    (got, slope), (by_v, by_matrix, by_bias) = both((v, matrix, bias), (dv, d_matrix, d_bias), ct)
    assert got.shape == (*batch, C) and got.dtype == jnp.float64
    expected, expected_slope = np.zeros(got.shape), np.zeros(got.shape)
    expected_v, expected_matrix = np.zeros(v.shape), np.zeros(matrix.shape)
    for at in np.ndindex(batch):
        fired, near = lists(v[at], capacity)
        expected[at], expected_slope[at] = bias, d_bias
        for i in fired + near if include_near else fired:
            expected[at] += matrix[i]
            expected_slope[at] += d_matrix[i]
            expected_matrix[i] += ct[at]
        for i in fired + near:
            expected_slope[at] += factor(v[at][i] - HIGH) * dv[at][i] * matrix[i]
            expected_v[at][i] = factor(v[at][i] - HIGH) * (matrix[i] @ ct[at])
    close(got, expected)
    close(slope, expected_slope)
    close(by_v, expected_v)
    close(by_matrix, expected_matrix)
    close(by_bias, ct.reshape(-1, C).sum(0))
    close(np.vdot(slope, ct), np.vdot(by_v, dv) + np.vdot(by_matrix, d_matrix) + np.vdot(by_bias, d_bias))


@pytest.mark.parametrize("level", [0.0, 0.8, 2.0])
def test_nobody_nearly_all_and_all(level):
    matrix = problem(())[0][1]
    got, slope = jax.jit(jax.value_and_grad(lambda v: run(v, matrix, None, N).sum()))(jnp.full((2, N), level))
    close(got, 2 * matrix.sum() * (level > HIGH))
    close(slope, np.broadcast_to(matrix.sum(1), (2, N)) * factor(level - HIGH) * (level > LOW))


@jax.custom_jvp
def dense_spikes(v):
    return (v > HIGH).astype(v.dtype)


@dense_spikes.defjvp
def _dense_spikes_jvp(primals, tangents):
    return dense_spikes(*primals), super_spike()(primals[0] - HIGH) * tangents[0]


def test_with_every_neuron_near_it_is_the_dense_surrogate_gradient():
    """First and second derivatives in every mode, of a function that is not linear in the result."""
    (v, matrix, _), (_, direction, _) = problem((3,))

    def dense(v, matrix):
        return jnp.sum(jnp.sin(dense_spikes(v) @ matrix))

    def sparse(v, matrix):
        return jnp.sum(jnp.sin(spike_matmul(spikes_from_state(v, HIGH, -jnp.inf, N), matrix)))

    def every(of):
        first = jax.grad(of, (0, 1))(v, matrix)
        modes = [(a, b) for a in (jax.jacfwd, jax.jacrev) for b in (jax.jacfwd, jax.jacrev)]
        mixed = [outer(inner(of, 0), 1)(v, matrix) for outer, inner in modes]
        twice = [outer(inner(of, 0), 0)(v, matrix) for outer, inner in modes]
        of_matrix = jax.jvp(jax.grad(of, 1), (v, matrix), (v, direction))
        return first, mixed, twice, of_matrix

    for x, y in zip(*map(jax.tree.leaves, jax.jit(lambda: (every(sparse), every(dense)))()), strict=True):
        assert np.abs(y).max() > 0.01
        close(x, y)


def recurrent(v0, matrix, currents, product):
    """A loss of a recurrent network over time; `product(v, matrix)` is what its spikes send."""

    def step(v, current):
        v = 0.8 * v + current + product(v, matrix)
        return v, jnp.mean(v**2)

    return jnp.sum(jax.lax.scan(step, v0, currents)[1])


def test_through_time_with_scan_and_remat():
    r = np.random.default_rng(2)
    v0, matrix, currents = r.normal(size=(3, N)), 0.3 * r.normal(size=(N, N)), r.uniform(0, 0.7, (12, 3, N))

    def sparse(v, matrix):
        return spike_matmul(spikes_from_state(v, HIGH, -jnp.inf, N), matrix)

    def dense(v, matrix):
        return dense_spikes(v) @ matrix

    def loss(product):
        return lambda *x: recurrent(*x, product)

    def every(of):
        gradient = jax.grad(of, (0, 1, 2))(v0, matrix, currents)
        return gradient, jax.jvp(of, (v0, matrix, currents), (v0, matrix, currents))

    expected = jax.tree.leaves(jax.jit(lambda: every(loss(dense)))())
    for of in (loss(sparse), loss(jax.checkpoint(sparse)), jax.checkpoint(loss(sparse))):
        for x, y in zip(jax.tree.leaves(jax.jit(partial(every, of))()), expected, strict=True):
            close(x, y)


@pytest.mark.parametrize("mapped", [(0, None, None), (None, 1, None), (None, None, 0), (0, 1, 0)], ids=str)
def test_vmap_over_states_matrices_and_thresholds(mapped):
    """Values and gradients, against one call after the other."""
    many = [problem((2,), seed)[0] for seed in range(3)]
    levels = np.array([0.9, 1.0, 1.2])

    def of(v, matrix, high):
        return jnp.sum(jnp.sin(spike_matmul(spikes_from_state(v, high, LOW, 6), matrix)))

    every = [np.stack([m[0] for m in many]), np.stack([m[1] for m in many], 1), levels]
    given = [
        x if axis is not None else x[0] if k != 1 else x[:, 0]
        for k, (x, axis) in enumerate(zip(every, mapped, strict=True))
    ]
    both = jax.value_and_grad(of, (0, 1, 2))
    got = jax.jit(jax.vmap(both, mapped))(*given)
    alone = jax.jit(both)
    for k in range(3):
        one = [x if axis is None else np.take(x, k, axis) for x, axis in zip(given, mapped, strict=True)]
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(alone(*one)), strict=True):
            close(x[k], y)


@pytest.mark.parametrize("batch", SHAPES, ids=str)
def test_real_values_on_a_list(batch):
    """Of spikes and near ones; what stands behind them counts for nothing, not even where it is no number."""
    (v, matrix, bias), _ = problem(batch)
    spikes = jax.jit(lambda v: spikes_from_state(v, HIGH, LOW, 9))(v)
    values = np.random.default_rng(3).normal(size=(*batch, 9))
    values[..., 7] = np.nan
    ct = np.random.default_rng(4).normal(size=(*batch, C))
    got, back = jax.vjp(jax.jit(lambda values, matrix: sparse_matmul(values, spikes, matrix, bias)), values, matrix)
    by_values, by_matrix = back(ct)
    expected, expected_values, expected_matrix = np.zeros(got.shape), np.zeros(values.shape), np.zeros(matrix.shape)
    for at in np.ndindex(batch):
        fired, near = lists(v[at], 9)
        expected[at] = bias
        for s, i in enumerate(fired + near):
            expected[at] += values[(*at, s)] * matrix[i]
            expected_values[(*at, s)] = matrix[i] @ ct[at]
            expected_matrix[i] += values[(*at, s)] * ct[at]
    close(got, expected)
    close(by_values, expected_values)
    close(by_matrix, expected_matrix)


def test_forward_mode_is_a_product_of_real_values():
    (v, matrix, _), (dv, _, _) = problem((3,))

    def of(v):
        return spikes_from_state(v, HIGH, LOW, 6)

    @jax.jit
    def both(v, dv):
        _, slope = jax.jvp(lambda v: spike_matmul(of(v), matrix), (v,), (dv,))
        _, values = jax.jvp(lambda v: of(v).value, (v,), (dv,))
        return slope, sparse_matmul(values, of(v), matrix)

    close(*both(v, dv))


@pytest.mark.parametrize("function", ["spike", "sparse"])
def test_transposed(function):
    (v, matrix, bias), _ = problem((3,))
    spikes = jax.jit(lambda v: spikes_from_state(v, HIGH, LOW, 6))(v)

    def of(matrix, **options):
        if function == "spike":
            return spike_matmul(spikes, matrix, bias=bias, **options)
        return sparse_matmul(spikes.factor, spikes, matrix, bias, **options)

    @jax.jit
    def both(matrix):
        direct = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(of(x))))(matrix)
        other = jax.value_and_grad(lambda x: jnp.sum(jnp.sin(of(x, transposed=True))))(matrix.T)
        return direct, other

    (value, slope), (other, other_slope) = both(matrix)
    close(value, other)
    close(slope, other_slope.T)


@pytest.mark.parametrize(
    ("of_state", "of_matrix", "made"),
    [
        ("float32", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float16", "float32"),
        ("float64", "float32", "float64"),
        ("float32", "float64", "float64"),
        ("float64", "bfloat16", "float64"),
    ],
)
def test_types(of_state, of_matrix, made):
    """Sums have 32 bits at least: the result is that of the rounded numbers, and gradients have the type of theirs."""
    (v, matrix, bias), _ = problem((3,))
    v, matrix = jnp.asarray(v, of_state), jnp.asarray(matrix, of_matrix)
    ct = jnp.asarray(np.random.default_rng(5).normal(size=(3, C)), made)

    @jax.jit
    def both(v, matrix, ct):
        out, back = jax.vjp(lambda v, matrix: run(v, matrix, bias, N), v, matrix)
        return out, back(ct), spike_matmul(spikes_from_state(v, HIGH, LOW, N), matrix, dtype=jnp.bfloat16)

    out, (by_v, by_matrix), short = both(v, matrix, ct)
    assert (out.dtype, by_v.dtype, by_matrix.dtype, short.dtype) == (made, of_state, of_matrix, jnp.bfloat16)
    exact_v, exact = np.asarray(v, np.float64), np.asarray(matrix, np.float64)
    fired = (exact_v > HIGH).astype(float)
    close(out, fired @ exact + bias, 1e-12 if made == "float64" else 2e-6)
    close(np.asarray(by_matrix, float), fired.T @ np.asarray(ct, float), 1e-2)
    slope = np.where(exact_v > LOW, factor(exact_v - HIGH), 0) * (np.asarray(ct, float) @ exact.T)
    close(np.asarray(by_v, float), slope, 1e-2 if of_state == "bfloat16" else 2e-6)


def test_many_small_numbers_are_summed_in_32_bits():
    """4,096 rows of 0.001 in 16 bits, whose sum in 16 bits would stop to grow."""
    spikes = SpikeVector.from_dense(np.ones(4096, np.float32), 4096)
    for kind in ("float16", "bfloat16"):
        matrix = jnp.full((4096, 2), 0.001, kind)
        close(jax.jit(spike_matmul)(spikes, matrix), np.full(2, 4096 * float(matrix[0, 0])), 1e-5)


def test_repeated_calls_give_the_same_bits():
    (v, matrix, bias), _ = problem((40,))
    once = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(run(*x, 6))), (0, 1, 2)))
    first = jax.tree.leaves(once(v, matrix, bias))
    for _ in range(3):
        for x, y in zip(jax.tree.leaves(once(v, matrix, bias)), first, strict=True):
            np.testing.assert_array_equal(x, y)


def test_what_is_not_differentiated_costs_nothing():
    """No product with a matrix of zeros where the matrix is fixed, none with spikes that have no derivative."""
    (v, matrix, _), _ = problem((3,))

    def names(function, *xs):
        return str(jax.make_jaxpr(function)(*xs)).count("ranvier_ops_")

    def of(v, matrix):
        return run(v, matrix, None, 6)

    assert names(of, v, matrix) == 2
    assert names(lambda v: jax.jvp(lambda v: of(v, matrix), (v,), (v,)), v) == 3
    assert names(jax.grad(lambda m: of(v, m).sum()), matrix) == 3
    assert names(jax.grad(lambda v: of(v, matrix).sum()), v) == 3


def test_no_rows_and_no_columns():
    def of(batch, n, capacity, columns):
        return jax.jit(lambda x, m: spike_matmul(SpikeVector.from_dense(x, capacity), m))(
            np.ones((batch, n)), np.ones((n, columns))
        )

    assert of(0, N, 3, C).shape == (0, C) and of(2, N, 3, 0).shape == (2, 0)
    close(of(2, N, 0, C), np.zeros((2, C)))
    close(of(2, 0, 3, C), np.zeros((2, C)))


SPIKES = partial(SpikeVector.from_dense, np.ones((2, 3)), 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spike_matmul(np.ones((2, 3)), np.ones((3, 4))), "spikes are ndarray"),
        (lambda: sparse_matmul(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 4))), "spikes are ndarray"),
        (lambda: spike_matmul(SPIKES(), np.ones((4, 3))), r"matrix is float64\[4, 3\]; needs real numbers \(3, C\)"),
        (lambda: spike_matmul(SPIKES(), np.ones((3, 4)), transposed=True), r"needs real numbers \(C, 3\)"),
        (lambda: spike_matmul(SPIKES(), np.ones(3)), r"float64\[3\]"),
        (lambda: spike_matmul(SPIKES(), np.ones((3, 4), int)), r"int64\[3, 4\]"),
        (lambda: spike_matmul(SPIKES(), np.ones((3, 4)), bias=np.ones(3)), r"bias is \(3,\); needs \(4,\)"),
        (lambda: sparse_matmul(np.ones(3), SPIKES(), np.ones((3, 4))), r"values are \(3,\), the lists \(2, 3\)"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(RanvierError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


SHARDED = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from ranvier.ops import spike_matmul, spikes_from_state
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
r = np.random.default_rng(0)
v, matrix, currents = r.normal(size=(4, 6)), r.normal(size=(6, 6)), r.uniform(0, 0.9, (5, 4, 6))

def run(matrix, v, currents):
    def step(v, current):
        v = 0.8 * v + current + spike_matmul(spikes_from_state(v, 1.0, 0.5, 4), matrix)
        return v, v
    return jax.lax.scan(step, v, currents)[1]

@partial(jax.jit, static_argnums=0)
def every(run, *x):
    def value(*x):
        return jnp.sum(jnp.sin(run(*x)))
    return jax.value_and_grad(value, (0, 1, 2))(*x), jax.jvp(value, x, x)

mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
over = jax.shard_map(run, mesh=mesh, in_specs=(P(), P("b"), P(None, "b")), out_specs=P(None, "b"))
got, expected = (jax.tree.leaves(every(f, matrix, v, currents)) for f in (over, run))
for x, y in zip(got, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)
print(len(jax.devices()), "devices")
"""


def test_shard_map_over_the_batch():
    """Two devices share a batch and have a matrix each: its gradient is the sum over both."""
    assert in_a_new_process(SHARDED, **TWO_DEVICES) == "2 devices\n"
