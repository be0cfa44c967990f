"""The grid scheme against its definition by plain loops, and its event rules against the loops' adjoint."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ranvier
from tests import exact, loops
from tests.simulated import (
    NAMES,
    PER_NEURON,
    events_of,
    gradient_of,
    loss,
    parameters,
    relative,
    run_of,
    simulated,
    weighting,
)

RECURRENT = NAMES[:5]


def rounded(net, dt):
    """`net` with its input times off the edges of the steps, where rounding decides."""
    return replace(net, times=(np.floor(net.times / dt) + 0.5) * dt)


def same_spikes(got, expected):
    assert [j for _, j in got] == [j for _, j in expected]
    np.testing.assert_allclose([t for t, _ in got], [t for t, _ in expected], rtol=0, atol=1e-12)


@pytest.fixture
def nets():
    return [rounded(exact.random_network(seed, kind), 0.5) for kind in ("plain", "mixed", "short") for seed in range(5)]


def test_lif_is_the_loop(x64, nets):
    runs = simulated(nets, 0.5, scheme="grid")
    for net, run in zip(nets, runs, strict=True):
        expected = loops.grid(net, 0.5)
        assert run.overflow == 0 and len(run.spikes) > 5
        same_spikes(run.spikes, expected.spikes(0.5))
        np.testing.assert_allclose(run.v, expected.v[-1], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(run.count, expected.fired.sum(0))


def test_lif_gradient_is_the_adjoint_of_the_loop(x64, nets):
    a, b = np.linspace(0.3, 1.2, 4), np.linspace(1.1, -0.4, 4)
    for net, run in zip(nets, simulated(nets, 0.5, weighting(a=a, b=b), scheme="grid"), strict=True):
        expected = loops.grid_gradient(net, 0.5, loops.grid(net, 0.5), a, b)
        for name in RECURRENT:
            scale = abs(expected[name]).max()
            np.testing.assert_allclose(run.gradient[name], expected[name], rtol=0, atol=1e-10 * scale, err_msg=name)


def test_gradient_converges_to_the_exact_one(x64):
    net = exact.random_network(2)
    net = replace(net, w_in=0.7 * net.w_in, duration=20.0)
    solution = exact.solve(net)
    firsts = np.zeros(len(solution.spikes))
    firsts[[k for k in map(solution.first, range(4)) if k is not None]] = 1.0
    expected = exact.gradient(net, solution, np.ones(4), firsts)
    errors = {name: [] for name in RECURRENT}
    for dt in (0.02, 0.0025):
        got = gradient_of(net, weighting(a=1.0, b=1.0), dt, scheme="grid", duration=20.0, trace=False)
        for name in RECURRENT:
            errors[name].append(relative(got[name], getattr(expected, name)))
    for name, (coarse, fine) in errors.items():
        assert fine < 0.35 * coarse and fine < 0.05, (name, coarse, fine)


# ---------------------------------------------------------------------------------------------- AdEx

ADEX = loops.AdEx(a=0.03, b=0.05, tau_w=20.0, delta_t=0.2, z0=0.05)


def adex_gradient(net, dt, weights, **options):
    """`Run` of an AdEx network with its gradient by weights, delays, times and the neuron's parameters."""
    p = {name: jnp.asarray(x) for name, x in parameters(net).items()}
    p |= {name: jnp.asarray(x) for name, x in asdict(ADEX).items()}

    def value(p):
        neuron = ranvier.AdEx(**{name: p[name] for name in (*PER_NEURON, *asdict(ADEX))})
        layer = ranvier.Layer(p["w_in"], p["d_in"], p["w_rec"], p["d_rec"], neuron)
        events = ranvier.Events(p["times"][None], events_of(net).channel, 6)
        out = ranvier.simulate(
            layer, events, duration=40.0, dt=dt, max_delay=9.0, scheme="grid", capacity=256, **options
        )
        return loss(out, weights), out

    (total, out), gradient = jax.value_and_grad(value, has_aux=True)(p)
    return run_of(out, total, {name: np.asarray(x) for name, x in gradient.items()})


def test_adex_is_the_loop_and_its_adjoint(x64):
    a, b = np.linspace(0.3, 1.2, 4), np.linspace(1.1, -0.4, 4)
    for seed in range(3):
        net = rounded(exact.random_network(seed), 0.5)
        run = adex_gradient(net, 0.5, weighting(a=a, b=b))
        expected = loops.grid(net, 0.5, ADEX)
        assert len(run.spikes) > 5
        same_spikes(run.spikes, expected.spikes(0.5))
        np.testing.assert_allclose(run.v, expected.v[-1], rtol=0, atol=1e-12)
        by_loop = loops.grid_gradient(net, 0.5, expected, a, b, ADEX)
        for name in RECURRENT:
            scale = abs(by_loop[name]).max()
            np.testing.assert_allclose(run.gradient[name], by_loop[name], rtol=0, atol=1e-10 * scale, err_msg=name)


@pytest.mark.parametrize("neuron", [ranvier.LIF(single_spike=True), ranvier.AdEx(single_spike=True)])
def test_single_spike_is_the_loop(x64, neuron):
    net = rounded(exact.random_network(3), 0.5)
    layer = jax.tree.map(jnp.asarray, ranvier.Layer(net.w_in, net.d_in, net.w_rec, net.d_rec, neuron))

    def value(layer):
        out = ranvier.simulate(
            layer, events_of(net), duration=40.0, dt=0.5, max_delay=9.0, scheme="grid", capacity=256, trace=True
        )
        return loss(out, weighting(b=1.0)), out

    (_, out), gradient = jax.value_and_grad(value, has_aux=True)(layer)
    run = run_of(out)
    if isinstance(neuron, ranvier.LIF):
        expected = loops.grid(net, 0.5, single_spike=True)
        same_spikes(run.spikes, expected.spikes(0.5))
        np.testing.assert_allclose(run.v, expected.v[-1], rtol=0, atol=1e-12)
    # AdEx above threshold would run away; the loop does
    np.testing.assert_array_equal(run.count, np.ones(4))
    assert np.isfinite(run.trace).all() and (run.v > 1).all()
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
