"""`lif_layer` against plain loops in float64, forward and adjoint, and against a dense network under autodiff."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.errors import RanvierError
from ranvier.ops import LIFState, SpikeVector, lif_layer, super_spike, triangular

pytestmark = pytest.mark.usefixtures("x64", "quick_compiler")

T, N = 12, 6
NEAR = 0.6
NAMES = ("currents", "w_rec", "alpha", "gain", "threshold")


def problem(batch, seed=0, per_neuron=True):
    """The arrays named NAMES and directions of all; about every third neuron fires in a step."""
    r = np.random.default_rng(seed)
    shape = (N,) if per_neuron else ()
    arrays = [
        r.normal(0.4, 0.7, (T, *batch, N)),
        r.normal(0, 0.4, (N, N)),
        r.uniform(0.7, 0.95, shape),
        r.uniform(8, 12, shape),
        r.uniform(0.8, 1.1, shape),
    ]
    return arrays, [r.normal(size=x.shape) for x in arrays]


def factor(x):
    return 1 / (10 * np.abs(x) + 1) ** 2


def walk(arrays, capacity, near_threshold=NEAR):
    """One sample: v (T, N), and of each step (spikes, near ones, how many did not fit of both)."""
    currents, w, *parameters = arrays
    alpha, gain, theta = (np.broadcast_to(x, N) for x in parameters)
    v, lists = np.zeros((len(currents), N)), []
    for t in range(len(currents)):
        for i in range(N):
            arrived = currents[t, i] + (sum(w[j, i] for j in lists[t - 1][0]) if t else 0)
            before = v[t - 1, i] if t and v[t - 1, i] <= theta[i] else 0
            v[t, i] = alpha[i] * before + gain[i] * (1 - alpha[i]) * arrived
        fired = [i for i in range(N) if v[t, i] > theta[i]]
        near = [i for i in range(N) if near_threshold < v[t, i] <= theta[i]]
        room = max(capacity - len(fired), 0)
        lists.append((fired[:capacity], near[:room], len(fired[capacity:]), len(near[room:])))
    return v, lists


def walk_back(arrays, v, lists, ct, ct_v):
    """One sample: gradients of the arrays for cotangents of each step's spikes (T, N) and of the last voltages (N,)."""
    currents, w, *parameters = arrays
    alpha, gain, theta = (np.broadcast_to(x, N) for x in parameters)
    by = [np.zeros(currents.shape), np.zeros((N, N)), np.zeros(N), np.zeros(N), np.zeros(N)]
    lam = np.zeros(N)
    for t in reversed(range(len(v))):
        scaled = gain * (1 - alpha) * lam
        lam = np.where(v[t] > theta, 0, alpha * lam) + (ct_v if t == len(v) - 1 else 0)
        for i in lists[t][0] + lists[t][1]:
            slope = factor(v[t, i] - theta[i]) * (ct[t, i] + w[i] @ scaled)
            lam[i] += slope
            by[4][i] -= slope
        for i in range(N):
            before = v[t - 1, i] if t and v[t - 1, i] <= theta[i] else 0
            sent = lists[t - 1][0] if t else []
            arrived = currents[t, i] + sum(w[j, i] for j in sent)
            by[0][t, i] = gain[i] * (1 - alpha[i]) * lam[i]
            by[2][i] += (before - gain[i] * arrived) * lam[i]
            by[3][i] += (1 - alpha[i]) * arrived * lam[i]
            for j in sent:
                by[1][j, i] += gain[i] * (1 - alpha[i]) * lam[i]
    return by[:2] + [x.sum() if np.ndim(p) == 0 else x for x, p in zip(by[2:], parameters, strict=True)]


def run(currents, w_rec, alpha, gain, threshold, capacity=N, near_threshold=NEAR, **options):
    return lif_layer(
        currents,
        w_rec,
        alpha=alpha,
        gain=gain,
        threshold=threshold,
        near_threshold=near_threshold,
        capacity=capacity,
        **options,
    )


def smooth(*arrays, **options):
    """What has a derivative: spikes as (T, ..., N), the last voltages."""
    spikes, state = run(*arrays, **options)
    return spikes.to_dense(), state.v


def close(got, expected, tolerance=1e-11):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


# of six neurons nobody is listed, lists are full or over-full, there is room for all
@pytest.mark.parametrize(
    ("batch", "capacity", "per_neuron"),
    [((), 2, True), ((3,), 0, False), ((3,), 3, False), ((2, 2), N, True)],
    ids=str,
)
def test_forward_and_both_derivatives(batch, capacity, per_neuron):
    arrays, directions = problem(batch, 2, per_neuron)
    r = np.random.default_rng(1)
    ct = (r.normal(size=(T, *batch, N)), r.normal(size=(*batch, N)))

    @jax.jit
    def every(arrays, directions, ct):
        of = partial(smooth, capacity=capacity)
        pull = jax.vjp(of, *arrays)[1]
        return run(*arrays, capacity=capacity), jax.jvp(of, arrays, directions)[1], pull(ct)

    (spikes, state), slope, got = every(arrays, directions, ct)
    assert spikes.shape == (T, *batch, N) and spikes.capacity == capacity and state.v.dtype == jnp.float64
    spikes, state = jax.tree.map(np.asarray, (spikes, state))
    by = [np.zeros(x.shape) for x in arrays]
    counts = np.zeros(4, int)
    for at in np.ndindex(batch):
        sample = [arrays[0][(slice(None), *at)], *arrays[1:]]
        v, lists = walk(sample, capacity)
        for t, (fired, near, n_lost, n_near_dropped) in enumerate(lists):
            one = spikes[(t, *at)]
            n = len(fired) + len(near)
            np.testing.assert_array_equal(one.ids[:n], fired + near)
            expected = (len(fired), len(near), n_lost, n_near_dropped)
            assert (one.n_spikes, one.n_near, one.n_lost, one.n_near_dropped) == expected
            counts += expected
        close(state.v[at], v[-1])
        np.testing.assert_array_equal(state.spikes[at].ids, spikes[(-1, *at)].ids)
        of_sample = walk_back(sample, v, lists, ct[0][(slice(None), *at)], ct[1][at])
        by[0][(slice(None), *at)] = of_sample[0]
        by[1:] = [x + y for x, y in zip(by[1:], of_sample[1:], strict=True)]
    assert (counts > 0).tolist() == [capacity > 0, capacity > 0, capacity < N, capacity < N]
    for name, x, y in zip(NAMES, got, by, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11, err_msg=name)
    forward = sum(np.vdot(a, b) for a, b in zip(slope, ct, strict=True))
    close(forward, sum(np.vdot(a, b) for a, b in zip(by, directions, strict=True)))


@jax.custom_jvp
def dense_spikes(x):
    return (x > 0).astype(x.dtype)


@dense_spikes.defjvp
def _dense_spikes_jvp(primals, tangents):
    return dense_spikes(*primals), super_spike()(primals[0]) * tangents[0]


def dense(currents, w_rec, alpha, gain, threshold):
    """The dense network that the published code trains: all neurons, products with whole vectors of spikes."""

    v = z = jnp.zeros(currents.shape[1:])
    steps = []
    # no scan: in one, the gradient's own derivative would miss that of the spikes
    for current in currents:
        v = alpha * v * (1 - jax.lax.stop_gradient(z)) + gain * (1 - alpha) * (current + z @ w_rec)
        z = dense_spikes(v - threshold)
        steps.append(z)
    return jnp.stack(steps), v


def test_with_every_neuron_near_it_is_the_dense_network():
    """Results, gradient, and a second derivative, of a function that is not linear in the result."""
    arrays, directions = problem((3,), 2, per_neuron=False)

    def every(of):
        def loss(*arrays):
            z, v = of(*arrays)
            return jnp.sum(jnp.sin(jnp.cumsum(z, 0))) + jnp.sum(jnp.cos(v))

        def gradient(*arrays):
            return jax.grad(loss, range(5))(*arrays)

        return of(*arrays), jax.jvp(gradient, arrays, directions)

    got, expected = (jax.jit(every, static_argnums=0)(of) for of in (partial(smooth, near_threshold=-jnp.inf), dense))
    assert np.sum(expected[0][0]) > T
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        close(x, y, 1e-9)


def test_a_sequence_in_two_parts_is_the_sequence():
    """States hand over voltages, lists and their derivatives; a part may have no step."""
    arrays, _ = problem((2,), 3)
    ct = np.random.default_rng(4).normal(size=(T, 2, N))

    @partial(jax.jit, static_argnums=0)
    def parts(cuts, arrays):
        def loss(currents, *rest):
            state, spikes = None, []
            for a, b in zip((0, *cuts), (*cuts, T), strict=True):
                part, state = run(currents[a:b], *rest, capacity=3, state=state)
                spikes.append(part)
            spikes = SpikeVector.concatenate(spikes)
            return jnp.vdot(spikes.to_dense(), ct) + state.v.sum(), spikes

        return jax.value_and_grad(loss, range(5), has_aux=True)(*arrays)

    for x, y in zip(jax.tree.leaves(parts((), arrays)), jax.tree.leaves(parts((0, 5), arrays)), strict=True):
        close(x, y)


def test_nobody_nearly_all_and_all():
    """One step; with alpha 0.95 and gain 20 its voltages are the currents."""
    level = np.array([0.0, 0.8, 2.0])
    currents = np.broadcast_to(level[:, None], (1, 3, N))

    @jax.jit
    def every(currents):
        def total(currents):
            spikes, state = lif_layer(currents, alpha=0.95, near_threshold=0.5, capacity=N)
            return spikes.to_dense().sum(), (spikes, state)

        return jax.value_and_grad(total, has_aux=True)(currents)

    (_, (spikes, state)), slope = every(currents)
    close(state.v, currents[0])
    assert spikes.n_spikes.tolist() == [[0, 0, N]] and spikes.n_near.tolist() == [[0, N, 0]]
    close(slope, factor(currents - 1) * (currents > 0.5))


def test_who_is_lost_is_reset_too():
    currents = jnp.full((2, N), 2.0)
    spikes, state = jax.jit(partial(lif_layer, alpha=0.95, capacity=2))(currents)
    assert spikes.n_spikes.tolist() == [2, 2] and spikes.n_lost.tolist() == [N - 2] * 2
    close(state.v, currents[1])


def test_vmap_and_another_surrogate():
    """Samples one by one, each with parameters of its own; a derivative that is not SuperSpike's."""
    arrays, _ = problem((3,), 5, per_neuron=False)
    parameters = [x + np.array([0, 0.05, -0.05]) for x in arrays[2:]]

    def total(*arrays, **options):
        return jnp.vdot(smooth(*arrays, capacity=4, **options)[0], np.arange(T * N).reshape(T, N))

    gradient = jax.grad(partial(total, surrogate=triangular(0.5)), range(5))
    mapped = jax.jit(jax.vmap(gradient, (1, None, 0, 0, 0)))(*arrays[:2], *parameters)
    single = jax.jit(gradient)
    for k in range(3):
        alone = single(arrays[0][:, k], arrays[1], *(x[k] for x in parameters))
        for x, y in zip(mapped, alone, strict=True):
            close(x[k], y)
    assert all(np.any(np.asarray(x) != 0) for x in mapped)
    assert not np.allclose(jax.jit(jax.grad(total))(arrays[0][:, 2], arrays[1], *(x[2] for x in parameters)), alone[0])


def test_sampled_neurons_give_the_dense_gradient_in_the_mean():
    """Also where a window goes round the end; one mapped key is the key alone."""
    r = np.random.default_rng(0)
    n, keys = 11, jax.random.split(jax.random.key(0), 3000)
    currents, weights = r.normal(0.2, 0.7, (4, 2, n)), r.normal(size=(4, 2, n))
    # one near threshold for each neuron
    near = jnp.asarray(r.uniform(0.4, 0.9, n))

    def gradient(key, sampled, near=near):
        def loss(currents):
            spikes, _ = lif_layer(
                currents, alpha=0.9, gain=10.0, near_threshold=near, capacity=n, sampled=sampled, key=key
            )
            return jnp.vdot(spikes.to_dense(), weights)

        return jax.grad(loss)(jnp.asarray(currents))

    every = jax.jit(jax.vmap(partial(gradient, sampled=3)))(keys)
    near_alone, dense = jax.jit(lambda: (gradient(None, 0), gradient(None, 0, -jnp.inf)))()
    mean, error = every.mean(0), every.std(0) / np.sqrt(len(keys))
    moved = error > 1e-9
    assert moved.mean() > 0.5
    z = np.where(moved, (mean - dense) / np.where(moved, error, 1), 0)
    assert 0.5 < np.sqrt((z[moved] ** 2).mean()) < 1.3 and abs(z).max() < 4.5
    np.testing.assert_allclose(mean, dense, atol=0.15 * abs(dense).max())
    assert abs(near_alone - dense).max() > 5 * abs(mean - dense).max()
    np.testing.assert_allclose(jax.jit(partial(gradient, sampled=3))(keys[5]), every[5], rtol=1e-12)


def test_types():
    """Voltages of 16-bit currents have 32 bits; weights of more bits do not change that."""
    layer = partial(lif_layer, alpha=np.float64(0.5), capacity=2)
    for w_rec in (jnp.zeros((N, N), jnp.bfloat16), jnp.zeros((N, N))):
        spikes, state = jax.eval_shape(layer, jnp.ones((3, 2, N), jnp.bfloat16), w_rec)
        assert state.v.dtype == spikes.value.dtype == jnp.float32


def zeros(*shape):
    return np.zeros(shape)


def state_of(*shape, capacity=2):
    """Shapes and types are all that a check looks at."""
    return jax.eval_shape(lambda x: LIFState(x, SpikeVector.from_dense(x, capacity)), np.zeros(shape))


@pytest.mark.parametrize(
    ("currents", "options", "words"),
    [
        (zeros(4), {}, r"currents are float64\[4\]"),
        (np.zeros((4, 2, N), int), {}, "needs real numbers"),
        (zeros(4, 2, N), {"w_rec": zeros(N, 2)}, r"w_rec is \(6, 2\)"),
        (zeros(4, 2, N), {"w_rec": np.zeros((N, N), int)}, "needs real numbers"),
        (zeros(4, 2, N), {"alpha": zeros(2)}, r"alpha is \(2,\)"),
        (zeros(4, 2, N), {"gain": zeros(2, N)}, r"gain is \(2, 6\)"),
        (zeros(4, 2, N), {"threshold": zeros(N, 1)}, r"threshold is \(6, 1\)"),
        (zeros(4, 2, N), {"near_threshold": zeros(1, N)}, r"near_threshold is \(1, 6\)"),
        (zeros(4, 2, N), {"capacity": 2.0}, "lif_layer: capacity is 2.0"),
        (zeros(4, 2, N), {"capacity": -1}, "capacity is -1"),
        (zeros(4, 2, N), {"sampled": 7}, "sampled is 7; needs a whole number from 0 to 6"),
        (zeros(4, 2, N), {"sampled": 0.5}, "sampled is 0.5"),
        (zeros(4, 2, N), {"sampled": 1}, "sampled is 1, key None"),
        (zeros(4, 2, N), {"state": zeros(2, N)}, "needs a LIFState"),
        (zeros(4, 2, N), {"state": partial(state_of, 3, N)}, r"\(3, 6\).* needs \(\(2, 6\)"),
        (zeros(4, 2, N), {"state": partial(state_of, 2, N, capacity=3)}, r"\(2, 6\), 3\); needs"),
        (zeros(4, 2, N).astype(np.float32), {"state": partial(state_of, 2, N)}, "float64.* needs .*float32"),
    ],
)
def test_bad_input_is_one_line(currents, options, words):
    options = {name: x() if callable(x) else x for name, x in options.items()}
    with pytest.raises(RanvierError, match=words) as error:
        lif_layer(currents, **{"alpha": 0.9, "capacity": 2, **options})
    assert "\n" not in str(error.value)
