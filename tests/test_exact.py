"""The yardsticks against what is known without them: closed forms, an ODE solver, finite differences, convergence."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import lambertw

from tests import exact, loops
from tests.exact_ode import solve_ode

PARAMETERS = ("w_in", "d_in", "w_rec", "d_rec", "times", "tau_mem", "tau_syn", "v_th")


def one_neuron(weight, times=(1.0,), **others):
    weights, delays = np.array([[weight]]), np.array([[0.5]])
    return exact.Net(weights, delays, None, None, np.array(times), np.zeros(len(times), int), 30.0, **others)


def all_losses(net, solution):
    """Weights a of the final voltages and b of all spike times, so that no term can hide behind another."""
    return np.linspace(0.3, 1.2, net.n), np.cos(np.arange(len(solution.spikes)))


def relative(got, expected):
    return abs(got - expected).max() / abs(expected).max()


def with_spikes(net, number):
    """`net` cut after its first `number` spikes."""
    spikes = exact.solve(net).spikes
    return replace(net, duration=0.5 * (spikes[number - 1][0] + spikes[number][0])) if len(spikes) > number else net


def close_spikes(got, expected, atol):
    assert [j for _, j in got] == [j for _, j in expected]
    np.testing.assert_allclose([t for t, _ in got], [t for t, _ in expected], rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------- exact.solve


def test_spike_time_with_tau_mem_twice_tau_syn():
    # v = w tau_mem (y - y^2) with y = exp(-h/tau_mem): a quadratic equation for the crossing.
    weight, tau_mem = 0.6, 10.0
    solution = exact.solve(one_neuron(weight, tau_mem=tau_mem, tau_syn=5.0))
    h = -tau_mem * math.log((1 + math.sqrt(1 - 4 / (weight * tau_mem))) / 2)
    assert solution.spikes[0][0] == pytest.approx(1.5 + h, abs=1e-14)


def test_spike_time_with_equal_time_constants():
    # v = w h exp(-h/tau): the Lambert function.
    weight, tau = 0.4, 10.0
    expected = 1.5 - tau * lambertw(-1 / (weight * tau)).real
    for tau_syn in (tau, tau * (1 + 1e-12), tau * (1 - 1e-12)):
        solution = exact.solve(one_neuron(weight, tau_mem=tau, tau_syn=tau_syn))
        assert solution.spikes[0][0] == pytest.approx(expected, abs=1e-10 if tau_syn != tau else 1e-14)


@pytest.mark.parametrize("excess, spikes", [(-1e-9, 0), (1e-9, 1)])
def test_a_peak_that_just_misses_or_grazes_the_threshold(excess, spikes):
    # The peak of w tau_mem (y - y^2) is w tau_mem / 4.
    solution = exact.solve(one_neuron(0.4 * (1 + excess), tau_mem=10.0, tau_syn=5.0))
    assert len(solution.spikes) == spikes


def test_a_peak_cut_short_by_inhibition_is_still_found():
    net = one_neuron(0.0, times=(1.0, 1.6))
    net = replace(net, w_in=np.array([[2.0], [-9.0]]), d_in=np.zeros((2, 1)), channels=np.array([0, 1]))
    assert len(exact.solve(net).spikes) == 1
    assert len(exact.solve(replace(net, times=np.array([1.0, 1.4]))).spikes) == 0


@pytest.mark.parametrize("kind", exact.KINDS)
def test_network_against_an_ode_solver(kind):
    net = with_spikes(exact.random_network(0, kind), 12)
    solution, expected = exact.solve(net), solve_ode(net)
    assert len(solution.spikes) == 12
    close_spikes(solution.spikes, expected.spikes, 1e-9)
    np.testing.assert_allclose(solution.v, expected.v, rtol=0, atol=1e-9)
    np.testing.assert_allclose(solution.i, expected.i, rtol=0, atol=1e-9)


def test_parameters_of_each_neuron():
    net = exact.random_network(1)
    taus = {"tau_mem": [5.0, 8.0, 10.0, 20.0], "tau_syn": [1.0, 2.0, 10.0, 25.0], "v_th": [0.5, 1.0, 1.5, 2.0]}
    net = replace(net, w_rec=None, d_rec=None, **{name: np.array(values) for name, values in taus.items()})
    together = exact.solve(net)
    for j in range(4):
        alone = replace(net, w_in=net.w_in[:, [j]], d_in=net.d_in[:, [j]], **{k: x[j] for k, x in taus.items()})
        np.testing.assert_array_equal(exact.solve(alone).of(0), together.of(j))


def test_edges():
    net = exact.random_network(0)
    solution = exact.solve(net)
    assert solution.spikes == sorted(solution.spikes)
    # nothing at or after the duration exists; what came before does not know of it
    cut = exact.solve(replace(net, duration=solution.spikes[-1][0]))
    assert cut.spikes == solution.spikes[:-1]
    late = replace(net, times=np.append(net.times, 40.0), channels=np.append(net.channels, 0))
    assert exact.solve(late).spikes == solution.spikes
    # no recurrent delay is a delay of 0
    assert exact.solve(replace(net, d_rec=None)).spikes == exact.solve(replace(net, d_rec=np.zeros((4, 4)))).spikes
    once = exact.solve(net, single_spike=True)
    assert [len(once.of(j)) for j in range(4)] == [min(1, len(solution.of(j))) for j in range(4)]
    silent = exact.solve(replace(net, times=np.zeros(0), channels=np.zeros(0, int)))
    assert silent.spikes == [] and not silent.v.any()


def test_two_arrivals_at_one_time_are_one_of_their_sum():
    twice = exact.solve(one_neuron(0.7, times=(1.0, 1.0)))
    once = exact.solve(one_neuron(1.4))
    close_spikes(twice.spikes, once.spikes, 1e-14)


# ---------------------------------------------------------------------------------------------- exact.gradient


@pytest.mark.parametrize("kind", exact.KINDS)
def test_gradient_against_finite_differences(kind):
    net = with_spikes(exact.random_network(0, kind), 40)
    solution = exact.solve(net)
    a, b = all_losses(net, solution)
    got, expected = exact.gradient(net, solution, a, b), exact.finite_differences(net, a, b, eps=1e-6)
    assert set(expected) == set(PARAMETERS)
    for name in PARAMETERS:
        assert relative(getattr(got, name), expected[name]) < 1e-6, name


def test_gradient_with_parameters_of_each_neuron():
    net = exact.random_network(3)
    # the last two pairs lie around the switch to the series in kappa_by_taus
    net = replace(net, tau_mem=np.array([5.0, 20.0, 9.9, 10.0]), tau_syn=np.array([8.0, 1.0, 10.0, 10.0]))
    net = replace(net, w_in=0.5 * net.w_in, w_rec=0.5 * net.w_rec, v_th=np.array([0.5, 1.0, 1.5, 2.0]))
    solution = exact.solve(net)
    a, b = all_losses(net, solution)
    assert len(solution.spikes) > 10
    got, expected = exact.gradient(net, solution, a, b), exact.finite_differences(net, a, b, eps=1e-6)
    for name in PARAMETERS:
        assert relative(getattr(got, name), expected[name]) < 1e-6, name


def test_series_of_kappa_meets_its_closed_form():
    for h in (0.999, 1.001):
        got = np.array(exact.kappa_by_taus(h, 10.0, 5.0)), np.array(exact.kappa_by_taus(1.0, 10.0, 5.0))
        np.testing.assert_allclose(*got, rtol=5e-3)
    eps = 1e-5
    for tau_mem, tau_syn, h in ((10, 2, 7.0), (10, 5, 0.9), (10, 5, 1.1), (10, 10, 3.0), (2, 10, 4.0)):
        by_mem = (exact.kappa(h, tau_mem + eps, tau_syn) - exact.kappa(h, tau_mem - eps, tau_syn)) / (2 * eps)
        by_syn = (exact.kappa(h, tau_mem, tau_syn + eps) - exact.kappa(h, tau_mem, tau_syn - eps)) / (2 * eps)
        assert exact.kappa_by_taus(h, tau_mem, tau_syn) == pytest.approx((by_mem, by_syn), rel=1e-7)


# ---------------------------------------------------------------------------------------------- random networks


@pytest.mark.parametrize("kind", exact.KINDS)
def test_random_networks_are_as_described(kind):
    nets = [exact.random_network(seed, kind) for seed in range(5)]
    counts = [len(exact.solve(net).spikes) for net in nets]
    assert min(counts) >= 14
    assert kind == "drive" or max(counts) <= 50
    assert nets[0].w_in.shape == (6, 4) and nets[0].w_rec.shape == (4, 4) and nets[0].times.shape == (10,)
    assert not np.array_equal(nets[0].w_in, nets[1].w_in)
    np.testing.assert_array_equal(nets[0].w_in, exact.random_network(0, kind).w_in)
    signs = np.sign(np.concatenate([net.w_in for net in nets]))
    assert (signs.min() < 0) == (kind == "mixed")
    shortest = min(net.d_rec.min() for net in nets)
    assert shortest < 0.1 if kind == "short" else shortest >= 1.0
    assert (nets[0].tau_mem == nets[0].tau_syn) == (kind == "equal")


def test_arrivals_are_kept_off_the_edges():
    net = exact.random_network(0, off_edges=0.1, margin=1e-4)
    solution = exact.solve(net)
    for moments in (exact.arrivals(net, solution), np.array([t for t, _ in solution.spikes])):
        assert (abs(moments - 0.1 * np.round(moments / 0.1)) > 0.99e-4).all()


# ---------------------------------------------------------------------------------------------- the grid scheme


def test_grid_by_hand():
    # event in step 2, 1 step of delay (0.5 / 0.4 = 1.25), so i moves in step 4 and v in step 5
    net = replace(one_neuron(4.0), duration=2.8)
    run = loops.grid(net, 0.4)
    assert run.v.shape == (8, 1) and run.fired.shape == (7, 1)
    np.testing.assert_array_equal(run.arrivals[:, 0], [0, 0, 0, 4, 0, 0, 0])
    alpha, beta = math.exp(-0.2), math.exp(-0.04)
    v5, v6 = 1.6, 0.0
    np.testing.assert_allclose(run.i[:, 0], [0, 0, 0, 0, 4, 4 * alpha, 4 * alpha**2, 4 * alpha**3], rtol=1e-14)
    np.testing.assert_allclose(run.v[:, 0], [0, 0, 0, 0, 0, v5, v6, beta * v6 + 0.4 * 4 * alpha**2], rtol=1e-14)
    assert run.spikes(0.4) == [(2.0, 0)]


def test_grid_recurrence_and_single_spike():
    net = replace(one_neuron(4.0), w_rec=np.array([[2.0]]), d_rec=np.array([[0.3]]), duration=8.0)
    run = loops.grid(net, 0.1)
    first, second = (round(t / 0.1) for t, _ in run.spikes(0.1)[:2])
    assert run.arrivals[first + 3, 0] == 2.0 and run.arrivals[second + 3, 0] == 2.0
    assert not run.arrivals[first + 1 : first + 3].any()
    now = loops.grid(replace(net, d_rec=None), 0.1)
    assert now.arrivals[first, 0] == 2.0
    assert loops.grid(net, 0.1, single_spike=True).fired.sum() == 1


def test_grid_converges_to_the_exact_solution():
    net = replace(exact.random_network(2), duration=15.0)
    expected = exact.solve(net)
    errors = []
    for dt in (0.008, 0.002):
        got = loops.grid(net, dt).spikes(dt)
        assert len(got) == len(expected.spikes) > 3
        errors.append(max(abs(t - s) for (t, _), (s, _) in zip(got, expected.spikes, strict=True)))
    assert errors[1] < 0.4 * errors[0] < 0.1


def test_grid_adjoint_converges_to_the_exact_gradient():
    net = exact.random_network(2)
    net = replace(net, w_in=0.7 * net.w_in, duration=20.0)
    solution = exact.solve(net)
    a, first, b = np.linspace(0.3, 1.2, 4), np.ones(4), np.zeros(len(solution.spikes))
    b[[k for k in map(solution.first, range(4)) if k is not None]] = 1.0
    expected = exact.gradient(net, solution, a, b)
    assert len(solution.spikes) > 5
    errors = {}
    for dt in (0.02, 0.0025):
        run = loops.grid(net, dt)
        assert [run.fired[:, j].sum() for j in range(4)] == [len(solution.of(j)) for j in range(4)]
        got = loops.grid_gradient(net, dt, run, a, first)
        for name in ("w_in", "d_in", "w_rec", "d_rec", "times"):
            errors.setdefault(name, []).append(relative(got[name], getattr(expected, name)))
    for name, (coarse, fine) in errors.items():
        assert fine < 0.35 * coarse and fine < 0.03, (name, coarse, fine)


def test_grid_adjoint_where_spikes_and_arrivals_share_a_step():
    # Without a delay each spike reaches its own neuron in the step of the reset.
    net = replace(one_neuron(1.2, times=(1.0, 4.0)), w_rec=np.array([[0.2]]), duration=7.0)
    solution = exact.solve(net)
    expected = exact.gradient(net, solution, np.ones(1))
    assert len(solution.spikes) > 3
    run = loops.grid(net, 0.001)
    assert run.fired.sum() == len(solution.spikes)
    got = loops.grid_gradient(net, 0.001, run, np.ones(1))
    # Not d_rec: shifted within the step of the reset, an arrival does not say on which side of the reset it is.
    for name in ("w_in", "d_in", "w_rec", "times"):
        assert relative(got[name], getattr(expected, name)) < 0.03, name


# ---------------------------------------------------------------------------------------------- AdEx


def test_adex_ode_in_closed_form_without_spikes():
    # Without its exponential (delta_t -> 0) and with a = 0, AdEx below threshold is LIF with an extra decaying current.
    adex = loops.AdEx(a=0.0, delta_t=1e-3, z0=0.1, tau_w=5.0)
    net = one_neuron(0.2)
    net = replace(net, v_th=0.45)
    solution = solve_ode(net, adex)
    h = 30.0 - 1.5
    v = 0.2 * exact.kappa(h, 10.0, 2.0) - 0.1 * exact.kappa(30.0, 10.0, 5.0)
    assert solution.v[0] == pytest.approx(v, abs=1e-11)
    assert solution.z[0] == pytest.approx(0.1 * math.exp(-6.0), abs=1e-12)


def test_adex_grid_and_its_adjoint_converge():
    net = replace(one_neuron(1.1, times=(0.5, 2.0, 4.0)), duration=6.0)
    # all parts of the adaptation are large enough to be missed
    adex = loops.AdEx(a=0.2, b=0.05, tau_w=8.0, delta_t=0.5)
    expected = solve_ode(net, adex)
    eps, by_hand = 1e-5, []
    for name in ("w_in", "times"):
        values = []
        for sign in (1, -1):
            moved = np.array(getattr(net, name))
            moved.flat[0] += sign * eps
            values.append(solve_ode(replace(net, **{name: moved}), adex).v[0])
        by_hand.append((values[0] - values[1]) / (2 * eps))
    errors = []
    for dt in (0.002, 0.0005):
        run = loops.grid(net, dt, adex)
        assert run.fired.sum() == len(expected.spikes) > 2
        got = loops.grid_gradient(net, dt, run, np.ones(1), adex=adex)
        found = got["w_in"][0, 0], got["times"][0]
        errors.append(
            [abs(run.v[-1, 0] - expected.v[0]), *(abs(x / y - 1) for x, y in zip(found, by_hand, strict=True))]
        )
    assert all(fine < 0.4 * coarse and fine < 0.2 for coarse, fine in zip(*errors, strict=True)), errors
