"""The loop over time of `lif_layer`: definition and handlers against plain loops in float64, derivatives, vmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import kernels
from ranvier.ops import LIFState, SpikeVector, lif_layer, lif_loop, lif_reference
from tests.new_process import TWO_DEVICES, in_a_new_process

pytestmark = pytest.mark.usefixtures("x64", "quick_compiler")

WORD = 32


def problem(q, t, r, n, s, recurrent, seed=0, drive=0.5, near=0.6, wild=False):
    """Operands of the loop; `wild` adds ids of no neuron, ids twice and counts that are none to the first list."""
    rng = np.random.default_rng(seed)
    currents = rng.normal(drive, 0.7, (q, t, r, n))
    w_rec = rng.normal(0, 1 / np.sqrt(n), (q, n if recurrent else 0, n))
    levels = (rng.uniform(low, high, (q, n)) for low, high in ((0.7, 0.95), (0.8, 1.2), (0.9, 1.1)))
    parameters = np.stack([*levels, np.full((q, n), near)], axis=1)
    ids = rng.integers(0, n, (q, r, s)).astype(np.int32)
    count = rng.integers(0, s + 1, (q, r)).astype(np.int32)
    if wild:
        ids = np.where(rng.random(ids.shape) < 0.3, rng.choice([-1, n, 2**31 - 1, -(2**31)], ids.shape), ids)
        count = np.where(rng.random(count.shape) < 0.5, rng.choice([-3, s + 5], count.shape), count)
    v0 = rng.normal(0.5, 0.7, (q, r, n))
    return [currents, w_rec, parameters, v0, rng.normal(size=(q, r, s)), ids.astype(np.int32), count.astype(np.int32)]


def words(fired):
    """Bits of (..., N) as words (..., W)."""
    out = np.zeros((*fired.shape[:-1], -(-fired.shape[-1] // WORD)), np.uint32)
    for i in range(fired.shape[-1]):
        out[..., i // WORD] |= fired[..., i].astype(np.uint32) << np.uint32(i % WORD)
    return out


def in_use(ids, count, n):
    """(slot, neuron) of the slots of a list that are in use and name a neuron."""
    return [(k, i) for k, i in enumerate(ids[: max(count, 0)]) if 0 <= i < n]


def loops_forward(currents, w_rec, parameters, v0, values0, ids0, n_spikes0, s, window=None):
    q, steps, r, n = currents.shape
    counts = np.zeros((4, q, steps, r), int)
    ids, excess = np.zeros((q, steps, r, s), int), np.zeros((q, steps, r, s))
    fired, v_last = np.zeros((q, steps, r, n), bool), np.zeros((q, r, n))
    for a, b in np.ndindex(q, r):
        decay, scale, threshold, near = parameters[a]
        v, sent = v0[a, b], [(values0[a, b, k], i) for k, i in in_use(ids0[a, b], n_spikes0[a, b], n)]
        for t in range(steps):
            arrived = np.zeros(n)
            for value, i in sent if w_rec.shape[1] else ():
                arrived = arrived + value * w_rec[a, i]
            v = decay * np.where(v > threshold, 0, v) + scale * (currents[a, t, b] + arrived)
            spikes = [i for i in range(n) if v[i] > threshold[i]]
            first, many = (0, 0) if window is None else window[a, t, b]
            taken = {(first + k) % n for k in range(many)}
            nearly = [i for i in range(n) if (-np.inf if i in taken else near[i]) < v[i] <= threshold[i]]
            kept, room = spikes[:s], max(s - len(spikes), 0)
            listed = kept + nearly[:room]
            ids[a, t, b, : len(listed)], excess[a, t, b, : len(listed)] = listed, (v - threshold)[listed]
            counts[:, a, t, b] = len(kept), len(nearly[:room]), len(spikes[s:]), len(nearly[room:])
            fired[a, t, b] = v > threshold
            sent = [(1.0, i) for i in kept]
        v_last[a, b] = v
    return [ids, excess, *counts, words(fired), v_last]


def loops_backward(ids, n_listed, factor, fired, w_rec, parameters, v0, ids0, n_listed0, ct_excess, ct_v_last):
    q, steps, r, s = ids.shape
    n = v0.shape[-1]
    d_currents, d_excess = np.zeros((q, steps, r, n)), np.zeros(ids.shape)
    d_v0, d_values0 = np.zeros(v0.shape), np.zeros(ids0.shape)
    bits = np.array([fired[..., i // WORD] >> np.uint32(i % WORD) & 1 for i in range(n)]) != 0
    for a, b in np.ndindex(q, r):
        decay, scale, threshold, _ = parameters[a]
        passed, later = ct_v_last[a, b].copy(), np.zeros(n)
        for t in reversed(range(steps)):
            lam = passed
            for k, i in in_use(ids[a, t, b], n_listed[a, t, b], n):
                back = w_rec[a, i] @ later if w_rec.shape[1] else 0
                d_excess[a, t, b, k] = ct_excess[a, t, b, k] + factor[a, t, b, k] * back
                lam[i] += d_excess[a, t, b, k]
            later = d_currents[a, t, b] = scale * lam
            before = bits[:, a, t - 1, b] if t else v0[a, b] > threshold
            passed = np.where(before, 0, decay * lam)
        d_v0[a, b] = passed
        for k, i in in_use(ids0[a, b], n_listed0[a, b], n) if w_rec.shape[1] else ():
            d_values0[a, b, k] = w_rec[a, i] @ later
    return d_currents, d_excess, d_v0, d_values0


def walk_back_of(operands, out, seed=1):
    """Operands of the walk back through what the loop returned."""
    rng = np.random.default_rng(seed)
    ids, excess, n_spikes, n_near, _, _, fired, v_last = map(np.asarray, out)
    _, w_rec, parameters, v0, _, ids0, n_spikes0 = operands
    n_listed = n_spikes + n_near
    factor = 1 / (1 + np.abs(excess)) ** 2
    ct = rng.normal(size=excess.shape).astype(excess.dtype), rng.normal(size=v_last.shape).astype(excess.dtype)
    return [ids, n_listed, factor.astype(excess.dtype), fired, w_rec, parameters, v0, ids0, n_spikes0, *ct]


def forward(*operands, capacity):
    return lif_loop._forward.bind(*map(jnp.asarray, operands), capacity=capacity)


def backward(*operands):
    return lif_loop._backward.bind(*map(jnp.asarray, operands))


def agree(got, expected, tolerance=1e-11):
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=tolerance, atol=tolerance)


def check(operands, capacity, forward, backward, *window):
    """Both directions against plain loops."""
    out = forward(*operands, *window, capacity=capacity)
    expected = loops_forward(*operands, capacity, *window)
    # whole numbers and bits are the same, not nearly so
    for x, y in zip([out[0], *out[2:7]], [expected[0], *expected[2:7]], strict=True):
        np.testing.assert_array_equal(x, y)
    agree(out, expected)
    back = walk_back_of(operands, out)
    agree(backward(*back), loops_backward(*back))
    return expected


SIZES = [
    # groups, steps, samples, neurons, slots
    pytest.param((1, 1, 1, 1, 1), id="one of everything"),
    pytest.param((1, 2, 3, 31, 40), id="less than a word, room to spare"),
    pytest.param((2, 37, 2, 33, 9), id="more than a word, over-full"),
    pytest.param((1, 5, 7, 257, 257), id="words and one, room for all"),
    pytest.param((3, 4, 1, 64, 1), id="one slot"),
]


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
@pytest.mark.parametrize("sizes", SIZES)
def test_against_plain_loops(sizes, recurrent):
    """By the handlers where the library has them."""
    operands = problem(*sizes, recurrent, wild=True)
    check(operands, sizes[-1], forward, backward)


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
def test_the_definition_against_plain_loops(recurrent):
    operands = problem(2, 7, 3, 35, 9, recurrent, wild=True)
    by_definition = jax.jit(lif_reference.forward, static_argnames="capacity")
    *_, n_lost, n_near_dropped, _, _ = check(operands, 9, by_definition, jax.jit(lif_reference.backward))
    assert n_lost.any() and n_near_dropped.any()


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
@pytest.mark.parametrize("sizes", [SIZES[0], SIZES[1], SIZES[2], pytest.param((1, 18, 1, 2100, 60), id="by neurons")])
def test_windows_against_plain_loops(sizes, recurrent):
    """Neurons from a first one on are near whatever their voltages, round the end, none of them or all."""
    recurrent = recurrent and sizes[3] < 1000
    operands = problem(*sizes, recurrent, near=0.9)
    rng = np.random.default_rng(2)
    many = rng.choice([0, 1, sizes[3] // 2, sizes[3]], sizes[:3])
    window = np.stack([rng.integers(0, sizes[3], sizes[:3]), many], axis=-1).astype(np.int32)
    _, _, _, n_near, _, n_dropped, *_ = check(operands, sizes[4], forward, backward, window)
    without = loops_forward(*operands, sizes[4])
    assert sizes[3] == 1 or (n_near + n_dropped).sum() > (without[3] + without[5]).sum()
    if sizes is SIZES[2].values[0]:
        by_definition = jax.jit(lif_reference.forward, static_argnames="capacity")
        check(operands, sizes[4], by_definition, backward, window)


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
@pytest.mark.parametrize(("drive", "near", "part"), [(9.0, 0.6, 1.0), (-9.0, 0.6, 0.0), (-9.0, -np.inf, 0.0)])
def test_all_fire_or_none(drive, near, part, recurrent):
    operands = problem(1, 3, 2, 40, 40, recurrent, drive=drive, near=near)
    operands[1] = 0.01 * operands[1]
    _, _, n_spikes, n_near, *_ = check(operands, 40, forward, backward)
    assert (n_spikes == part * 40).all() and (n_near == (40 if near < 0 else 0)).all()


def test_no_number_is_no_spike():
    operands = problem(1, 4, 1, 33, 33, False)
    operands[0][0, 1, 0, [0, 32]] = np.nan, np.inf
    check(operands, 33, forward, backward)


@pytest.mark.parametrize("n", [33, 2100])
def test_no_number_is_in_no_window(n):
    operands = problem(1, 4, 1, n, n, False)
    operands[0][0, 1, 0, [0, 5, n - 1]] = np.nan, np.inf, -np.inf
    check(operands, n, forward, backward, np.tile(np.array([1, n], np.int32), (1, 4, 1, 1)))


@pytest.mark.parametrize("n", [5000, 257])
@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
def test_float32_and_the_same_bits_at_every_call(n, recurrent):
    """One sample of many neurons has its own way through the CPU's threads; a few steps stay near those in float64."""
    operands = problem(1, 19 if n > 1000 else 3, 1, n, n // 4, recurrent and n < 1000, near=0.9)
    single = [x.astype(np.float32) if x.dtype == np.float64 else x for x in operands]
    out = forward(*single, capacity=n // 4)
    for x, y in zip(out, forward(*single, capacity=n // 4), strict=True):
        np.testing.assert_array_equal(x, y)
    exact = loops_forward(*operands, n // 4)
    assert abs(int(out[2].sum()) - exact[2].sum()) <= 2
    np.testing.assert_allclose(out[7], exact[7], rtol=0, atol=2e-5)
    back = walk_back_of(single, out)
    got = backward(*back)
    agree(got, loops_backward(*(x.astype(np.float64) if x.dtype == np.float32 else x for x in back)), 2e-4)
    for x, y in zip(got, backward(*back), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "recurrent"])
def test_the_walk_back_is_the_transpose_of_the_tangents(recurrent):
    operands = problem(2, 6, 3, 35, 12, recurrent)
    back = walk_back_of(operands, forward(*operands, capacity=12))
    rng = np.random.default_rng(3)
    u = [rng.normal(size=x) for x in ((2, 6, 3, 35), (2, 6, 3, 12), (2, 3, 35), (2, 3, 12))]
    forth = jax.jit(lif_reference.tangent)(*back[:9], *u)
    last = backward(*back)
    if not recurrent:
        assert not np.any(last[3])
    there, here = (sum(np.vdot(x, y) for x, y in zip(a, b, strict=True)) for a, b in ((forth, back[9:]), (u, last)))
    np.testing.assert_allclose(there, here, rtol=1e-12)


def layer(currents, w_rec, alpha, gain, threshold, v0, **options):
    """What is smooth: the voltages at the end, where no spike is near and none has a derivative of its own."""
    zero = jnp.zeros_like(v0)
    state = LIFState(v0, SpikeVector.from_dense(zero, 4))
    return lif_layer(
        currents,
        w_rec,
        alpha=alpha,
        gain=gain,
        threshold=threshold,
        near_threshold=0.5,
        capacity=4,
        state=state,
        **options,
    )


def test_finite_differences():
    """Without a surrogate, last voltages are smooth as long as the same neurons fire."""
    rng = np.random.default_rng(5)
    x = [rng.normal(0.5, 0.7, (6, 2, 9)), rng.normal(0, 0.3, (9, 9))]
    x += [rng.uniform(0.7, 0.9, 9), rng.uniform(8, 12, 9), rng.uniform(0.9, 1.1, 9), rng.normal(size=(2, 9))]
    directions = [rng.normal(size=y.shape) for y in x]

    @jax.jit
    def value(*x):
        spikes, state = layer(*x, surrogate=jnp.zeros_like)
        return jnp.sum(jnp.sin(state.v)), spikes.ids

    moved = [value(*(y + h * d for y, d in zip(x, directions, strict=True))) for h in (1e-6, -1e-6)]
    np.testing.assert_array_equal(moved[0][1], moved[1][1])
    slopes, ids = jax.jit(jax.grad(value, range(6), has_aux=True))(*x)
    assert np.any(ids)
    along = [np.vdot(y, d) for y, d in zip(slopes, directions, strict=True)]
    np.testing.assert_allclose(sum(along), (moved[0][0] - moved[1][0]) / 2e-6, rtol=1e-7)
    # the threshold moves no voltage here
    assert [bool(y) for y in along] == [True] * 4 + [False, True]


def smooth(currents, w_rec, alpha, gain, threshold, v0):
    spikes, state = layer(currents, w_rec, alpha, gain, threshold, v0)
    return jnp.vdot(jnp.cumsum(spikes.value.ravel()), spikes.value.ravel()) + jnp.sum(jnp.sin(state.v))


# of currents, weights, threshold and first voltages
SMOOTH = (0, 1, 4, 5)
gradient_of_smooth = jax.jit(jax.grad(smooth, SMOOTH))


def sample(*batch, seed=7):
    rng = np.random.default_rng(seed)
    x = [rng.normal(0.5, 0.7, (5, *batch, 9)), rng.normal(0, 0.3, (9, 9))]
    return [*x, rng.uniform(0.7, 0.9, 9), np.full(9, 9.0), np.ones(9), rng.normal(size=(*batch, 9))]


def test_second_derivatives_agree_in_all_modes():
    """A Hessian times a direction: tangents of the gradient, gradient of the tangent, tangent of the tangent."""
    x = sample(2)
    d = tuple(np.random.default_rng(1).normal(size=y.shape) for y in x)

    @jax.jit
    def every(*x):
        gradient = jax.grad(smooth, range(6))

        def slope(*x):
            return jax.jvp(smooth, x, d)[1]

        return jax.jvp(gradient, x, d)[1], jax.grad(slope, range(6))(*x), jax.jvp(slope, x, d)[1]

    first, second, forth_forth = every(*x)
    agree(first, second, 1e-10)
    np.testing.assert_allclose(sum(np.vdot(y, z) for y, z in zip(first, d, strict=True)), forth_forth, rtol=1e-10)


def test_a_surrogate_with_a_parameter_of_its_own():
    """It moves no spike, but the gradient of the others."""
    x = sample(2)

    def gradient(beta, at):
        def total(currents):
            return layer(currents, *at[1:], surrogate=lambda v: 1 / (1 + beta * jnp.abs(v)))[0].value.sum()

        return jax.grad(total)(at[0]).sum()

    slope = jax.jit(jax.grad(gradient))(2.0, x)
    by_difference = [jax.jit(gradient)(2.0 + h, x) for h in (1e-5, -1e-5)]
    np.testing.assert_allclose(slope, (by_difference[0] - by_difference[1]) / 2e-5, rtol=1e-6)


def test_scan_and_remat_over_parts_of_a_sequence():
    x = sample(2)

    def parts(currents, w_rec, alpha, gain, threshold, v0):
        @jax.checkpoint
        def part(state, currents):
            spikes, state = lif_layer(
                currents,
                w_rec,
                alpha=alpha,
                gain=gain,
                threshold=threshold,
                near_threshold=0.5,
                capacity=4,
                state=state,
            )
            return state, spikes

        state = LIFState(v0, SpikeVector.from_dense(jnp.zeros_like(v0), 4))
        state, spikes = jax.lax.scan(part, state, currents[:, None])
        value = spikes.value.ravel()
        return jnp.vdot(jnp.cumsum(value), value) + jnp.sum(jnp.sin(state.v))

    agree(jax.jit(jax.grad(parts, SMOOTH))(*x), gradient_of_smooth(*x))


def test_vmap():
    """Over currents alone samples become more; over weights or parameters groups do."""
    x, y = sample(2), sample(2, seed=8)
    gradient = jax.grad(smooth, SMOOTH)
    for mapped, shape in (((0,), "1x5x4x9"), ((1, 5), "2x5x2x9")):
        both = [np.stack([a, b]) if k in mapped else a for k, (a, b) in enumerate(zip(x, y, strict=True))]
        over = jax.jit(jax.vmap(gradient, [0 if k in mapped else None for k in range(6)])).lower(*both)
        if lif_loop_is_compiled():
            calls = [line for line in over.as_text().splitlines() if "ranvier_ops_lif" in line]
            assert len(calls) == 2 and all(f"tensor<{shape}xf64>" in line for line in calls)
        got = over.compile()(*both)
        for k in range(2):
            agree([a[k] for a in got], gradient_of_smooth(*(a[k] if j in mapped else a for j, a in enumerate(both))))


def lif_loop_is_compiled():
    """For what the tests run on."""
    return kernels.available("ops_lif_forward") is None


def test_axes_of_length_0():
    x = sample(2)
    empty = [np.stack([y])[:0] if k in (0, 5) else y for k, y in enumerate(x)]
    gradient = jax.grad(smooth, range(6))
    got = jax.eval_shape(jax.vmap(gradient, (0, None, None, None, None, 0)), *empty)
    assert [y.shape for y in got] == [(0, *y.shape) for y in x]

    def problem(*shape):
        n = shape[-1]
        return [np.zeros(shape), np.zeros((n, n)), *[np.ones(n)] * 3, np.zeros(shape[1:])]

    nothing = [problem(*shape) for shape in ((0, 2, 9), (5, 0, 9), (5, 2, 0))]
    assert not np.any(jax.jit(lambda every: [smooth(*x) for x in every])(nothing))
    for x in nothing:
        assert [y.shape for y in jax.eval_shape(gradient, *x)] == [y.shape for y in x]


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
from ranvier.ops import lif_layer
r = np.random.default_rng(0)
x = [r.normal(0.5, 0.7, (5, 4, 9)), r.normal(0, 0.3, (9, 9)), np.ones(9)]

def run(currents, w_rec, threshold):
    spikes, state = lif_layer(currents, w_rec, alpha=0.8, threshold=threshold, near_threshold=0.5, capacity=4)
    return jnp.cumsum(spikes.to_dense(), 0), state.v

def every(run):
    def value(*x):
        return sum(jnp.sum(jnp.sin(y)) for y in run(*x))
    return jax.jit(lambda *x: (jax.value_and_grad(value, range(3))(*x), jax.jvp(value, x, x)))(*x)

mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
specs = (P(None, "b"), P(), P())
over = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(P(None, "b"), P("b")))
for a, b in zip(*(jax.tree.leaves(every(f)) for f in (over, run)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
print(len(jax.devices()), "devices")
"""


def test_shard_map_over_the_batch():
    """Two devices share a batch and have the weights each: their gradient is the sum over both."""
    assert in_a_new_process(SHARDED, **TWO_DEVICES) == "2 devices\n"


def test_the_library_is_what_computes():
    if not lif_loop_is_compiled():
        pytest.skip("no compiled loop over time")
    text = jax.jit(jax.grad(lambda x: smooth(x, *sample(2)[1:]))).lower(sample(2)[0]).as_text()
    assert text.count("ranvier_ops_lif_forward_f64") == text.count("ranvier_ops_lif_backward_f64") == 1
    operands = [*problem(1, 2, 3, 9, 4, True), np.zeros((1, 2, 3, 2), np.int32)]
    for dtype, suffix in ((np.float32, "f32"), (np.float64, "f64")):
        given = [x.astype(dtype) if x.dtype == np.float64 else x for x in operands]
        text = jax.jit(partial(forward, capacity=4)).lower(*given).as_text()
        assert text.count(f"ranvier_ops_lif_forward_sampled_{suffix}") == 1


def test_nothing_dense_is_kept_for_the_gradient():
    """Between forward and backward there are lists and bits of a sequence, no voltages."""
    currents = np.ones((50, 3, 64), np.float32)
    run = partial(lif_layer, alpha=0.9, capacity=5)
    pull = jax.eval_shape(lambda x: jax.vjp(lambda x: run(x)[0].value, x)[1], currents)
    assert max(x.size for x in jax.tree.leaves(pull)) <= 50 * 3 * 5
