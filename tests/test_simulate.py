"""The continuous scheme of `simulate`: against the exact solution, finite differences, and every edge we know of."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ranvier
from ranvier import continuous, kernels, space
from ranvier.plan import Plan
from tests import exact
from tests.simulated import (
    BATCH,
    CAPACITY,
    NAMES,
    REFERENCE,
    events_of,
    gradient_of,
    layer_of,
    loss,
    margin,
    mixed_weighting,
    moved,
    one,
    one_gradient,
    parameters,
    plain,
    relative,
    run_of,
    simulated,
    small_net,
    solved,
    weighting,
)

KINDS = ("plain", "mixed", "equal")
MISSING = kernels.available("lif_forward") is not None
BACKENDS = ("reference", pytest.param("native", marks=pytest.mark.skipif(MISSING, reason="no compiled library")))


# ------------------------------------------------------------------------------------------- against the exact solution


@functools.cache
def networks():
    """(kind, network, solution, gradient) of BATCH random networks, the same for all tests."""
    numbers = {"plain": 17, "mixed": 17, "equal": 17, "short": 8, "drive": 5}
    assert sum(numbers.values()) == BATCH
    out = []
    for kind, number in numbers.items():
        for seed in range(number):
            net = exact.random_network(seed, kind)
            solution = exact.solve(net)
            firsts = np.zeros(len(solution.spikes))
            firsts[[k for k in map(solution.first, range(net.n)) if k is not None]] = 1.0
            out.append((kind, net, solution, exact.gradient(net, solution, np.ones(net.n), firsts)))
    return out


def time_error(run, solution):
    """The worst spike time, +inf where a count is wrong."""
    pairs = [(run.of(j), solution.of(j)) for j in range(len(run.v))]
    if any(len(got) != len(expected) for got, expected in pairs):
        return np.inf
    return max(abs(got - expected).max(initial=0.0) for got, expected in pairs)


def gradient_error(run, gradient, names=NAMES):
    return max(relative(run.gradient[name], getattr(gradient, name)) for name in names)


def errors(dt, backend, dtype=float):
    """By kind: spike time errors and gradient errors, one a network. `drive` by count and first spike alone."""
    every = networks()
    by_kind = {}
    runs = simulated([net for _, net, *_ in every], dt, dtype=dtype, backend=backend)
    for (kind, _, solution, gradient), run in zip(every, runs, strict=True):
        if kind == "drive":
            counts = np.array([len(solution.of(j)) for j in range(4)])
            firsts = np.array([solution.of(j)[0] for j in range(4)])
            pair = (abs(run.count - counts).max(), abs(run.first - firsts).max())
        else:
            assert run.overflow == 0 and run.clipped == 0
            pair = (time_error(run, solution), gradient_error(run, gradient))
        by_kind.setdefault(kind, []).append(pair)
    return {kind: np.array(pairs).T for kind, pairs in by_kind.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_spike_times_and_gradients_are_exact_at_a_small_step(x64, backend):
    found = errors(0.05, backend)
    times, gradients = np.concatenate([found[kind] for kind in KINDS], axis=1)
    assert len(times) > 50
    assert np.mean(times < 1e-6) >= 0.95 and np.isfinite(times).all()
    assert np.mean(gradients < 1e-5) >= 0.95
    # a recurrent delay below dt is felt up to one step late
    assert np.median(found["short"][0]) < 1e-6 and found["short"][0].max() < 0.05
    counts, firsts = found["drive"]
    assert (counts == 0).all() and firsts.max() < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_median_network_is_exact_at_a_larger_step(x64, backend):
    found = errors(0.25, backend)
    times, gradients = np.concatenate([found[kind] for kind in KINDS], axis=1)
    assert np.median(times) < 1e-6 and np.median(gradients) < 1e-5
    assert np.median(found["plain"][0]) < 5e-3 and times.max() < 0.25
    counts, firsts = found["drive"]
    assert (counts == 0).all() and firsts.max() < 0.25


@pytest.mark.parametrize("backend", [pytest.param("reference", marks=pytest.mark.slow), BACKENDS[1]])
def test_float32(backend):
    found = errors(0.05, backend, np.float32)
    times, gradients = np.concatenate([found[kind] for kind in KINDS], axis=1)
    assert np.mean(times < 5e-4) >= 0.95 and np.mean(gradients < 5e-3) >= 0.95


# ----------------------------------------------------------------------------------- derivatives of the map as computed


def off_edges(dt, number, kinds=("plain", "mixed")):
    """The first networks whose arrivals and spikes stay clear of the edges of the steps, where the map jumps."""
    nets = [exact.random_network(seed, kind) for seed in range(BATCH // len(kinds)) for kind in kinds]
    runs = simulated(nets, dt)
    clear = [net for net, run in zip(nets, runs, strict=True) if margin(net, run, dt) > 4e-4 * dt + 2e-5]
    assert len(clear) >= number
    return clear[:number]


@pytest.mark.parametrize("dt", [0.05, 0.25])
def test_gradient_against_finite_differences_along_random_directions(x64, dt):
    eps, rng, weights = 2e-7, np.random.default_rng(0), mixed_weighting()
    nets = off_edges(dt, 4)
    directions = [{name: rng.normal(size=np.shape(x)) for name, x in parameters(net).items()} for net in nets]
    sides = [
        moved(net, name, sign * eps * direction[name])
        for net, direction in zip(nets, directions, strict=True)
        for name in NAMES
        for sign in (1, -1)
    ]
    assert len(sides) == BATCH
    values = np.array([run.value for run in simulated(sides, dt, weights)]).reshape(len(nets), len(NAMES), 2)
    by_hand = (values[..., 0] - values[..., 1]) / (2 * eps)
    for k, run in enumerate(simulated(nets, dt, weights)):
        for m, name in enumerate(NAMES):
            got = (run.gradient[name] * directions[k][name]).sum()
            scale = np.linalg.norm(run.gradient[name]) * np.linalg.norm(directions[k][name])
            assert abs(got - by_hand[k, m]) < 1e-5 * scale, name


def numeric(value, x, eps=1e-6):
    """Central differences of `value` by each entry of `x`."""
    out = np.zeros(np.shape(x))
    for index in np.ndindex(out.shape):
        step = np.zeros_like(out)
        step[index] = eps
        out[index] = (value(x + step) - value(x - step)) / (2 * eps)
    return out


@functools.cache
def coarse():
    """A network clear of the edges at dt 1, where a step holds several arrivals and spikes."""
    weights = mixed_weighting()
    for seed in range(20):
        net = exact.random_network(seed)
        if margin(net, one(net, weights), 1.0) > 1e-3:
            return net
    raise AssertionError


@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_finite_differences_by_each_entry(x64, name):
    net, weights = coarse(), mixed_weighting()
    x = parameters(net)[name]
    by_hand = numeric(lambda x: one(replace(net, **{name: x}), weights).value, x)
    got = gradient_of(net, weights)[name]
    assert abs(by_hand).max() > 0.01
    assert relative(got, by_hand) < 1e-5


def test_forward_mode_is_reverse_mode(x64):
    net, weights = coarse(), mixed_weighting()
    rng = np.random.default_rng(0)
    gradient = gradient_of(net, weights)
    tangent = {name: rng.normal(size=x.shape) for name, x in parameters(net).items()}

    def value(p):
        events = ranvier.Events(p["times"][None], events_of(net).channel, 6)
        return loss(plain(layer_of(p), events), weights)

    p = {name: jnp.asarray(x) for name, x in parameters(net).items()}
    _, forward = jax.jvp(value, (p,), ({name: jnp.asarray(x) for name, x in tangent.items()},))
    backward = sum((gradient[name] * tangent[name]).sum() for name in NAMES)
    assert float(forward) == pytest.approx(backward, rel=1e-10)


def embeddings():
    """(input, recurrent) delays by each embedding, as a function of a dict of its parameters, with those."""
    rng = np.random.default_rng(3)
    x_in, x_rec, e_in, e_rec = (rng.normal(size=s) for s in ((6, 2), (4, 2), (6, 4), (4, 4)))
    free = {"d_in": rng.uniform(0.5, 6.0, (6, 4)), "d_rec": rng.uniform(1.5, 6.0, (4, 4))}
    far = {"x_in": x_in + 2.0, "x_rec": x_rec}
    grid = {"scale": 1.3, "o_in": np.array([0.21, 0.4]), "o_rec": np.array([-0.35, 0.1])}
    points_in, points_rec = (jnp.asarray(space.layouts.lattice(n, 2), float) for n in (6, 4))
    slack = {"e_in": e_in, "e_rec": e_rec}

    def euclidean(p):
        d_in = space.Euclidean(p["x_in"], p["x_rec"], p.get("e_in"), 0.3)
        return d_in, space.Euclidean(p["x_rec"], p["x_rec"], p.get("e_rec"), 0.3)

    def lattice(p):
        d_in = space.Lattice(p["scale"], p["o_in"], p["o_rec"], points_in, points_rec, p.get("e_in"), 0.3)
        return d_in, space.Lattice(p["scale"], p["o_rec"], p["o_rec"], points_rec, points_rec, p.get("e_rec"), 0.3)

    return {
        "none": (lambda p: (space.NoDelay((6, 4)), space.NoDelay((4, 4))), {}),
        "free": (lambda p: (space.FreeDelay(p["d_in"]), space.FreeDelay(p["d_rec"])), free),
        "euclidean": (euclidean, far),
        "euclidean with slack": (euclidean, far | slack),
        "lattice": (lattice, grid | slack),
    }


@pytest.mark.parametrize("kind", ["free", "euclidean", "euclidean with slack", "lattice"])
def test_gradient_by_positions(x64, kind):
    of, p = embeddings()[kind]
    weights, eps = mixed_weighting(), 1e-6
    p = {name: jnp.asarray(x) for name, x in p.items()}
    net = exact.random_network(4)
    base, events = jax.tree.map(jnp.asarray, layer_of(parameters(net))), events_of(net)

    def simulation(p, layer=base, time=events.time):
        d_in, d_rec = of(p)
        return plain(replace(layer, d_in=d_in, d_rec=d_rec), replace(events, time=time))

    run, (d_in, d_rec) = run_of(simulation(p)), (np.asarray(x.delays()) for x in of(p))
    assert run.clipped == 0 and len(run.spikes) > 5
    assert margin(replace(net, d_in=d_in, d_rec=d_rec), run, 1.0) > 3e-4

    # by all else too: one program serves every embedding
    got = jax.grad(lambda *x: loss(simulation(*x), weights), argnums=(0, 1, 2))(p, base, events.time)[0]
    rng = np.random.default_rng(0)
    for name, x in p.items():
        for _ in range(2):
            direction = rng.normal(size=x.shape)
            sides = [float(loss(simulation(p | {name: x + sign * eps * direction}), weights)) for sign in (1, -1)]
            by_hand, along = (sides[0] - sides[1]) / (2 * eps), (got[name] * direction).sum()
            scale = np.linalg.norm(got[name]) * np.linalg.norm(direction)
            assert scale > 0.01 and abs(along - by_hand) < 1e-5 * scale, name


def test_no_delay_is_a_delay_of_zero(x64):
    net = exact.random_network(4)
    layer, events = jax.tree.map(jnp.asarray, layer_of(parameters(net))), events_of(net)
    expected = plain(replace(layer, d_in=jnp.zeros((6, 4)), d_rec=jnp.zeros((4, 4))), events)
    for d_in, d_rec in ((space.NoDelay((6, 4)), space.NoDelay((4, 4))), (0.0, 0.0), (0.0, None)):
        got = plain(replace(layer, d_in=d_in, d_rec=d_rec), events)
        np.testing.assert_array_equal(got.trace, expected.trace)


# ------------------------------------------------------------------------------------------------------- special cases


def same_spikes(run, solution, atol=1e-9):
    """Every spike time, neuron by neuron."""
    for j in range(len(run.v)):
        np.testing.assert_allclose(run.of(j), solution.of(j), rtol=0, atol=atol)


def timed(*times):
    """10 event times, of which these are real."""
    return np.array([*times, *[np.inf] * (10 - len(times))])


def fed(weights, **others):
    """A network whose 4 neurons each get channel 0 with a weight of their own."""
    w_in = np.zeros((6, 4))
    w_in[0] = weights
    return small_net(w_in=w_in, **others)


def test_several_spikes_in_one_step(x64):
    # 2 to 4 spikes in the first ms; behind the only arrival of a step all is exact
    net = fed([2.5, 3.5, 4.5, 5.8], times=timed(1.05))
    run, solution = one(net), solved(net)
    in_a_step = np.histogram(run.of(3), np.arange(41))[0].max()
    assert in_a_step == 4 and run.overflow == 0
    same_spikes(run, solution)
    got = gradient_of(net, weighting(a=1.0, c=1.0))
    real = replace(net, times=net.times[:1], channels=net.channels[:1])
    expected = exact.gradient(real, exact.solve(real), np.ones(4), np.ones(len(solution.spikes)))
    for name in ("w_in", "d_in", "tau_mem", "tau_syn", "v_th"):
        assert relative(got[name], getattr(expected, name)) < 1e-8, name
    assert got["times"][0] == pytest.approx(expected.times[0], rel=1e-8)


def test_more_spikes_than_a_step_holds_are_counted(x64):
    run = one(fed([20.0, 0.2, 0.2, 0.2], times=timed(1.05)))
    assert run.overflow > 0
    assert np.histogram(run.of(0), np.arange(41))[0].max() == 4
    assert len(run.of(0)) < len(solved(fed([20.0, 0.2, 0.2, 0.2], times=timed(1.05))).of(0))


def test_a_recurrent_delay_below_the_step_is_felt_up_to_one_step_late(x64):
    w_rec, d_rec = np.zeros((4, 4)), np.full((4, 4), 0.05)
    w_rec[0, 1:] = 0.3, 3.0, -0.3
    net = fed([0.9, 0.1, 0.0, 0.1], times=timed(1.3), w_rec=w_rec, d_rec=d_rec)
    run, solution = one(net), solved(net)
    assert len(run.of(0)) == 1 and not run.of(1).size and not run.of(3).size
    # sent in the step from 3, the spike arrives there and is felt from 4 on
    assert 3 < run.of(0)[0] < run.of(0)[0] + 0.05 < solution.of(2)[0] < 4
    assert run.of(2)[0] == 4.0 and len(run.of(2)) == len(solution.of(2)) > 1
    # at the end of the step in which it is felt, and ever after, the state of a neuron that stays silent is exact
    np.testing.assert_allclose(run.v[[0, 1, 3]], solution.v[[0, 1, 3]], rtol=0, atol=1e-12)
    expected = solved(replace(net, duration=5.0))
    np.testing.assert_allclose(run.trace[4, [0, 1, 3]], expected.v[[0, 1, 3]], rtol=0, atol=1e-12)


def test_signs_may_be_mixed_in_a_step(x64):
    # 4 arrivals within the step from 3: v stays below threshold, the end of each step is exact
    w_in = np.zeros((6, 4))
    w_in[:4] = np.array([[0.5, -0.5, 0.3, 0.7], [-0.4, 0.5, -0.3, -0.7], [0.2, 0.3, 0.0, 0.1], [-0.3, -0.2, 0.0, -0.1]])
    net = small_net(w_in=w_in, times=timed(3.1, 3.3, 3.6, 3.8), channels=np.array([0, 1, 2, 3, *[0] * 6]))
    run = one(net)
    assert not run.spikes
    for step in (4, 5, 9, 40):
        expected = solved(replace(net, duration=float(step)))
        np.testing.assert_allclose(run.trace[step - 1], expected.v, rtol=0, atol=1e-14)


def test_two_arrivals_of_one_weight_are_told_apart(x64):
    # "equal a" of Eq. 7: w exp(-h / tau_syn) the same for both, so the two kicks are the two arrivals
    early, late = 3.1, 3.6
    weights = np.array([0.9, 1.2, 1.6, 2.0])
    w_in = np.zeros((6, 4))
    w_in[0], w_in[1] = weights * np.exp((late - early) / -2.0) ** -1, weights
    net = small_net(w_in=w_in, times=timed(early, late), channels=np.array([0, 1, *[0] * 8]))
    run, solution = one(net), solved(net)
    inside = [t for t, _ in solution.spikes if early < t < 4.0]
    assert len(inside) > 2 and min(inside) < late
    same_spikes(run, solution)


@pytest.mark.parametrize("excess, number", [(1e-5, 1), (-1e-5, 0)])
def test_a_peak_inside_a_step_is_found(x64, excess, number):
    # the peak of one arrival lies tau_mem tau_syn / (tau_mem - tau_syn) log(tau_mem / tau_syn) behind it
    after = 2.5 * np.log(5.0)
    weight = (1 + excess) / exact.kappa(after, 10.0, 2.0)
    net = fed([weight] * 4, times=timed(1.2), d_in=np.array([0.2, 0.3, 0.5, 0.7]) * np.ones((6, 1)))
    run, solution = one(net), solved(net)
    assert [len(run.of(j)) for j in range(4)] == [len(solution.of(j)) for j in range(4)] == [number] * 4
    same_spikes(run, solution, 1e-7)
    assert (run.trace.max(0) < 1).all()


def test_a_scalar_delay_of_zero_keeps_its_whole_derivative(x64):
    net = replace(coarse(), d_in=np.zeros((6, 4)))
    weights, eps = weighting(a=np.linspace(0.3, 1.2, 4), b=1.0), 1e-6
    layer, events = jax.tree.map(jnp.asarray, layer_of(parameters(net))), events_of(net)
    assert margin(net, run_of(plain(layer, events)), 1.0) > 1e-3
    _, by_layer, _ = one_gradient(replace(layer, d_in=jnp.asarray(0.0)), events, weights)
    sides = [one(replace(net, times=net.times + sign * eps), weights).value for sign in (1, -1)]
    assert float(by_layer.d_in) == pytest.approx((sides[0] - sides[1]) / (2 * eps), rel=1e-6)


def test_delays_at_and_beyond_the_longest(x64):
    net = coarse()
    d_in, d_rec = net.d_in.copy(), net.d_rec.copy()
    d_in[:, 0], d_in[:, 1], d_in[:, 2] = 9.0, 50.0, -1.0
    d_rec[0, 1] = 9.0 + 1e-9
    net = replace(net, d_in=d_in, d_rec=d_rec)
    inside = replace(net, d_in=np.clip(d_in, 0.0, 9.0), d_rec=np.clip(d_rec, 0.0, 9.0))
    weights = mixed_weighting()
    run, expected = one(net, weights), one(inside, weights)
    assert run.clipped == 13 and expected.clipped == 0
    np.testing.assert_array_equal(run.trace, expected.trace)
    got, whole = gradient_of(net, weights), gradient_of(inside, weights)
    used = np.bincount(net.channels, minlength=6) > 0
    assert (got["d_in"][used, 0] != 0).all() and (got["d_in"][:, 1:3] == 0).all() and got["d_rec"][0, 1] == 0
    assert (whole["d_in"][used] != 0).all() and whole["d_rec"][0, 1] != 0
    np.testing.assert_array_equal(got["d_in"][:, [0, 3]], whole["d_in"][:, [0, 3]])


def test_events_at_and_after_the_end_are_outside(x64):
    net = fed([1.5] * 4, times=timed(1.05), d_in=np.array([0.0, 0.1, 1.0, 5.0]) * np.ones((6, 1)))
    expected = one(net)
    np.testing.assert_array_equal(one(replace(net, times=timed(1.05, 40.0, 41.0, 4000.0))).trace, expected.trace)
    # 39.95 arrives with the first delay alone
    late = one(replace(net, times=timed(1.05, 39.95)))
    assert late.v[0] > expected.v[0]
    np.testing.assert_array_equal(late.v[1:], expected.v[1:])
    np.testing.assert_array_equal(late.trace[:-1], expected.trace[:-1])


def test_no_events(x64):
    layer = jax.tree.map(jnp.asarray, layer_of(parameters(small_net())))
    empty = ranvier.Events(jnp.zeros((1, 0)), jnp.zeros((1, 0), jnp.int32), 6)
    out = ranvier.simulate(layer, empty, duration=4.0, dt=1.0, max_delay=9.0, scheme="grid")
    assert not out.spike_count.any() and not out.v.any()
    shapes = jax.eval_shape(lambda: plain(layer, empty))
    assert shapes.v.shape == (1, 4) and shapes.v.dtype == jnp.float64
    assert shapes.overflow.dtype == shapes.delay_clipped.dtype == jnp.int32
    m = continuous.Membrane.of(layer.neuron, 4, jnp.float64)
    plan = Plan(1.0, 5, 16, 4, False, False)
    buckets = continuous.input_buckets(empty, layer.w_in, layer.d_in, m.tau_syn, m.c, plan)
    assert buckets.shape == (5, 1, 4, 3) and not buckets.any()


def test_all_silent_has_finite_gradients(x64):
    net = fed([0.1] * 4, times=timed(1.05, 2.3))
    with jax.debug_nans(True):
        run = one(net)
        got = gradient_of(net, weighting(a=1.0, b=1.0, c=1.0, s=1.0))
    assert not run.spikes and np.isinf(run.first).all() and not run.count.any()
    assert all(np.isfinite(x).all() for x in got.values())
    assert got["w_in"][0].all() and not got["w_in"][1:].any() and not got["w_rec"].any()


def test_all_firing(x64):
    net = replace(exact.random_network(1), w_in=np.full((6, 4), 1.5))
    run = one(net)
    assert run.overflow == 0 and (run.count > 5).all()
    got = gradient_of(net, weighting(a=1.0, b=1.0, c=1.0, s=1.0))
    assert all(np.isfinite(x).all() and x.any() for x in got.values())


def test_the_trace_is_the_voltage_at_the_end_of_each_step(x64):
    net = fed([0.9, 1.0, 1.2, 1.5], times=timed(1.05))
    run = one(net)
    assert run.trace.shape == (40, 4) and len(run.spikes) >= 4
    np.testing.assert_array_equal(run.trace[-1], run.v)
    for step in (2, 3, 4, 20):
        np.testing.assert_allclose(
            run.trace[step - 1], solved(replace(net, duration=float(step))).v, rtol=0, atol=1e-12
        )


def test_derivative_of_the_count_is_its_definition(x64):
    net, eps, dt = coarse(), 1e-6, 1.0
    rng, weight = np.random.default_rng(1), np.array([1.0, -0.7, 0.4, 1.3])
    got = gradient_of(net, weighting(s=weight))

    def above(net):
        # before its resets: the voltage at the end of a step plus what is left of the thresholds it took away
        run, p = one(net), parameters(net)
        out = run.trace.copy()
        for t, j in run.spikes:
            step = int(t // dt)
            out[step, j] += p["v_th"][j] * np.exp(-((step + 1) * dt - t) / p["tau_mem"][j])
        return out - p["v_th"]

    phi = 1 / (1 + abs(above(net))) ** 2
    for name in NAMES:
        direction = rng.normal(size=np.shape(parameters(net)[name]))
        change = (above(moved(net, name, eps * direction)) - above(moved(net, name, -eps * direction))) / (2 * eps)
        expected = (weight * dt / 0.5 * phi * change).sum()
        scale = np.linalg.norm(got[name]) * np.linalg.norm(direction)
        assert scale > 0.01 and abs((got[name] * direction).sum() - expected) < 1e-5 * scale, name


# -------------------------------------------------------------------------------------------------- shapes of their own


def test_a_delay_acts_when_it_says(x64):
    # one neuron; longer than the ring of the published code, which takes it modulo 21 ms
    net = exact.Net(
        np.array([[1.1]]),
        np.array([[43.5]]),
        np.array([[1.1]]),
        np.array([[43.5]]),
        np.array([1.0]),
        np.array([0]),
        100.0,
    )
    expected = exact.solve(net)
    assert len(expected.spikes) == 2 and expected.spikes[0][0] > 44.5 and expected.spikes[1][0] > 88
    layer = jax.tree.map(jnp.asarray, layer_of(parameters(net)))
    events = ranvier.Events(jnp.array([[1.0]]), jnp.array([[0]]), 1)
    options = dict(duration=100.0, dt=0.5, capacity=8, trace=True) | REFERENCE
    outs = [ranvier.simulate(layer, events, max_delay=longest, **options) for longest in (None, 43.5, 46.0, 120.0)]
    for out in outs:
        same_spikes(run_of(out), expected)
        np.testing.assert_allclose(out.v[0], expected.v, rtol=0, atol=1e-12)
        assert int(out.delay_clipped) == 0
        # the ring of coming arrivals is no part of the result
        np.testing.assert_array_equal(out.trace, outs[0].trace)


@functools.cache
def batch():
    """A layer, 3 samples of events for it, its result at dt 0.25, and the same as 3 networks."""
    net = exact.random_network(0)
    nets = [replace(net, times=other.times, channels=other.channels) for other in map(exact.random_network, range(3))]
    layer = jax.tree.map(jnp.asarray, layer_of(parameters(net)))
    events = ranvier.Events(*(jnp.asarray(np.stack([getattr(n, x) for n in nets])) for x in ("times", "channels")), 6)
    return layer, events, plain(layer, events, 0.25), nets


def assert_same(got, expected, atol=0.0):
    for one_leaf, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one_leaf, other, rtol=0, atol=atol)


def test_a_batch_is_its_samples_and_vmap_is_a_loop(x64):
    # `simulated` is jit of vmap over layers and events, one sample in each
    *_, out, nets = batch()
    for sample, run in enumerate(simulated(nets, 0.25)):
        got = run_of(out, sample=sample)
        assert len(got.spikes) > 5 and [j for _, j in got.spikes] == [j for _, j in run.spikes]
        np.testing.assert_allclose([t for t, _ in got.spikes], [t for t, _ in run.spikes], rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.v, run.v, rtol=0, atol=1e-12)
        np.testing.assert_allclose(got.first, run.first, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(got.count, run.count)


def test_step_capacity(x64):
    layer, events, out, _ = batch()
    assert not out.overflow.any()
    # room for 6 of the 12 neurons of the batch in a step
    some = plain(layer, events, 0.25, step_capacity=2)
    assert not some.overflow.any()
    assert_same(some, out, 1e-13)
    # all 12 reach threshold at one time and 3 a step are looked at, in the order of sample and neuron; the others stay
    # above threshold and fire at the start of a later step
    w_in = jnp.zeros((6, 4)).at[0].set(0.9)
    alike = replace(layer, w_in=w_in, d_in=jnp.full((6, 4), 0.3), w_rec=jnp.zeros((4, 4)))
    at_once = ranvier.Events(jnp.full((3, 10), jnp.inf).at[:, 0].set(1.0), jnp.zeros((3, 10), events.channel.dtype), 6)
    few = plain(alike, at_once, 0.25, step_capacity=1)
    np.testing.assert_array_equal(few.overflow, [1, 2 + 4, 3 + 4 + 4])
    np.testing.assert_array_equal(few.spike_count, np.ones((3, 4)))
    first = np.asarray(few.first_spike)
    np.testing.assert_allclose(first.ravel()[3:] - np.ceil(first[0, 0] / 0.25) * 0.25, np.repeat([0.0, 0.25, 0.5], 3))


def test_record_capacity(x64):
    layer, events, _, _ = batch()
    options = dict(duration=40.0, dt=0.25, max_delay=9.0, scheme="grid")
    out, few, none = (ranvier.simulate(layer, events, capacity=k, **options) for k in (CAPACITY, 5, 0))
    number = np.isfinite(out.events.time).sum(1)
    assert not out.overflow.any() and (number > 5).all()
    np.testing.assert_array_equal(few.overflow, number - 5)
    np.testing.assert_array_equal(few.events.time, out.events.time[:, :5])
    np.testing.assert_array_equal(few.events.channel, out.events.channel[:, :5])
    assert none.events.time.shape == (3, 0) and not none.overflow.any()
    for other in (few, none):
        np.testing.assert_array_equal(other.spike_count, out.spike_count)
        np.testing.assert_array_equal(other.first_spike, out.first_spike)


def test_single_spike(x64):
    net = exact.random_network(0)
    layer = jax.tree.map(jnp.asarray, layer_of(parameters(net), single_spike=True))
    run, solution = run_of(plain(layer, events_of(net), 0.05)), exact.solve(net, single_spike=True)
    np.testing.assert_array_equal(run.count, np.ones(4))
    same_spikes(run, solution)
    np.testing.assert_allclose(run.v, solution.v, rtol=0, atol=1e-9)
    # a record a neuron is enough
    out = plain(layer, events_of(net), 0.05, capacity=None)
    assert out.events.time.shape == (1, 4) and np.isfinite(out.events.time).all() and not out.overflow.any()


def test_layers_stack(x64):
    # two feed-forward layers are one network whose recurrent weights lead from the first 4 neurons to the other 4;
    # both layers have one shape, and so one program
    rng = np.random.default_rng(1)
    w_in, d_in = np.zeros((4, 8)), rng.uniform(0.0, 6.0, (4, 8))
    w_in[:, :4] = rng.uniform(0.3, 0.9, (4, 4))
    w_rec, d_rec = np.zeros((8, 8)), np.zeros((8, 8))
    w_rec[:4, 4:], d_rec[:4, 4:] = rng.uniform(0.05, 0.3, (4, 4)), rng.uniform(1.0, 6.0, (4, 4))
    net = exact.Net(w_in, d_in, w_rec, d_rec, np.array([1.0, 3.0, 4.5, 8.0]), np.arange(4), 30.0)
    solution = exact.solve(net)
    a, b = np.linspace(0.7, -0.4, 8), np.linspace(-0.6, 1.0, 8)
    by_spike = np.zeros(len(solution.spikes))
    firsts = [solution.first(j) for j in range(8)]
    by_spike[firsts] = b
    expected = exact.gradient(net, solution, a, by_spike)
    events = ranvier.Events.from_times([net.times], [net.channels], 4, 16)
    options = dict(duration=30.0, dt=0.02, max_delay=7.0, capacity=16) | REFERENCE

    def value(layers, time):
        outs, total = [replace(events, time=time)], 0.0
        for k, layer in enumerate(layers):
            out = ranvier.simulate(layer, outs[-1] if k == 0 else outs[-1].events, **options)
            here = slice(4 * k, 4 * k + 4)
            # the times of events with weight 0: both layers then have one program for their derivatives too
            times = jnp.where(jnp.isfinite(out.events.time), out.events.time, 0.0)
            total += (a[here] * out.v[0]).sum() + (b[here] * out.first_spike[0]).sum() + 0.0 * times.sum()
            outs.append(out)
        return total, outs[1:]

    layers = [ranvier.Layer(w_in[:, :4], d_in[:, :4]), ranvier.Layer(w_rec[:4, 4:], d_rec[:4, 4:])]
    layers = jax.tree.map(jnp.asarray, layers)
    (by_layer, by_time), outs = jax.grad(value, argnums=(0, 1), has_aux=True)(layers, events.time)
    assert all(out.spike_count.sum() > 4 and not out.overflow.any() for out in outs)
    np.testing.assert_allclose(np.concatenate([out.v[0] for out in outs]), solution.v, rtol=0, atol=1e-9)
    first = np.concatenate([out.first_spike[0] for out in outs])
    np.testing.assert_allclose(first, [solution.spikes[k][0] for k in firsts], rtol=0, atol=1e-9)
    assert relative(by_layer[0].w_in, expected.w_in[:, :4]) < 1e-6
    assert relative(by_layer[0].d_in, expected.d_in[:, :4]) < 1e-6
    assert relative(by_layer[1].w_in, expected.w_rec[:4, 4:]) < 1e-6
    assert relative(by_layer[1].d_in, expected.d_rec[:4, 4:]) < 1e-6
    assert relative(by_time[0, :4], expected.times) < 1e-6


# ------------------------------------------------------------------------------------------------------ what is refused


def good():
    return dict(
        layer=ranvier.Layer(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((3, 3)), jnp.ones((3, 3))),
        events=ranvier.Events(jnp.zeros((1, 4)), jnp.zeros((1, 4), jnp.int32), 2),
        duration=10.0,
        dt=1.0,
    )


def layer_with(**fields):
    return dict(layer=replace(good()["layer"], **fields))


def events_with(**fields):
    return dict(events=replace(good()["events"], **fields))


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(layer=jnp.ones((2, 3))), "ranvier.Layer"),
        (dict(events=jnp.zeros((1, 4))), "ranvier.Events"),
        (layer_with(w_in=jnp.ones(3)), r"w_in of shape \(3,\)"),
        (layer_with(w_in=jnp.ones((2, 0))), "not empty"),
        (layer_with(w_in=jnp.ones((2, 3), int)), "w_in of dtype int32"),
        (layer_with(w_in=jnp.ones((5, 3))), "5 rows|2 rows"),
        (layer_with(w_rec=jnp.ones((2, 3))), "w_rec of shape"),
        (layer_with(w_rec=jnp.ones((3, 3), jnp.bfloat16)), "w_rec of dtype bfloat16"),
        (layer_with(w_rec=None), "d_rec without w_rec"),
        (layer_with(d_in=jnp.ones((3, 3))), "d_in of shape"),
        (layer_with(d_in=space.FreeDelay(jnp.ones((3, 2)))), "d_in of shape"),
        (layer_with(d_rec=jnp.ones(3)), "d_rec of shape"),
        (layer_with(neuron=None), "neuron"),
        (layer_with(neuron=ranvier.LIF(tau_mem=jnp.ones(2))), "tau_mem of shape"),
        (layer_with(neuron=ranvier.LIF(v_th=jnp.ones((1, 3)))), "v_th of shape"),
        (layer_with(neuron=ranvier.AdEx(b=jnp.ones(2))), "b of shape"),
        (layer_with(neuron=ranvier.AdEx(substeps=0)), "substeps 0"),
        (events_with(time=jnp.zeros(4)), r"times \(4,\)"),
        (events_with(channel=jnp.zeros((1, 3), jnp.int32)), r"channels \(1, 3\)"),
        (events_with(time=jnp.zeros((1, 4), int)), "times of dtype int32"),
        (events_with(channel=jnp.zeros((1, 4))), "channels of dtype float32"),
        (events_with(n_channels=7), "7 channels"),
        (dict(duration=0.0), "duration"),
        (dict(dt=0.0), "dt"),
        (dict(dt=-1.0), "dt"),
        (dict(dt=float("nan")), "dt"),
        (dict(max_delay=-1.0), "max_delay -1.0"),
        (dict(max_delay=float("inf")), "max_delay inf"),
        (dict(max_delay=float("nan")), "max_delay nan"),
        (dict(max_delay="long"), "max_delay 'long'"),
        (dict(scheme="euler"), "scheme 'euler'.*continuous, grid"),
        (dict(backend="abacus"), "backend 'abacus'"),
        (dict(capacity=-1), "capacity -1"),
        (dict(capacity=True), "capacity True"),
        (dict(capacity=1.5), "capacity 1.5"),
        (dict(step_capacity=0), "step_capacity 0"),
    ],
)
def test_what_is_refused(change, says):
    with pytest.raises(ranvier.RanvierError, match=says) as caught:
        ranvier.simulate(**(good() | change))
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_the_longest_delay_must_be_known_under_a_transformation():
    given = good()
    layer = given.pop("layer")
    with pytest.raises(ranvier.RanvierError, match="give max_delay") as caught:
        jax.grad(lambda layer: ranvier.simulate(layer, **given).v.sum())(layer)
    assert "\n" not in str(caught.value)
    with pytest.raises(ranvier.RanvierError, match="max_delay"):
        jax.jit(lambda x: ranvier.simulate(layer, **given, max_delay=x))(1.0)


def test_whole_numbers_of_numpy_are_capacities():
    out = ranvier.simulate(**good(), scheme="grid", capacity=np.int64(7), step_capacity=np.int32(2))
    assert out.events.time.shape == (1, 7)
