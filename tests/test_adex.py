"""AdEx in the continuous scheme: towards a high-order solution as dt shrinks, and derivatives of what is computed."""

import functools
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np

import ranvier
from tests import exact, loops
from tests.exact_ode import solve_ode
from tests.simulated import REFERENCE, loss, margin, parameters, run_of, weighting

# all parts of the adaptation are large enough to be missed
ADEX = loops.AdEx(a=0.03, b=0.05, tau_w=20.0, delta_t=0.2, z0=0.05)
DURATION = 20.0


def named(net):
    """All parameters of the network and of its neurons."""
    p = parameters(net) | {name: np.full(net.n, x) for name, x in asdict(ADEX).items()}
    return {name: jnp.asarray(x) for name, x in p.items()}


def simulation(p, channels, dt, single_spike=False):
    neuron = ranvier.AdEx(
        **{name: p[name] for name in ("tau_mem", "tau_syn", "v_th", *asdict(ADEX))}, single_spike=single_spike
    )
    layer = ranvier.Layer(p["w_in"], p["d_in"], p["w_rec"], p["d_rec"], neuron)
    events = ranvier.Events(p["times"][None], jnp.asarray(channels)[None], 6)
    options = dict(duration=DURATION, dt=dt, max_delay=9.0, capacity=256, trace=True) | REFERENCE
    return ranvier.simulate(layer, events, **options)


@functools.cache
def network(seed):
    return replace(exact.random_network(seed), duration=DURATION)


@functools.cache
def solution(seed):
    return solve_ode(network(seed), ADEX)


def error(seed, dt):
    net, expected = network(seed), solution(seed)
    run = run_of(simulation(named(net), net.channels, dt))
    assert run.overflow == 0
    worst = 0.0
    for j in range(net.n):
        right = [t for t, k in expected.spikes if k == j]
        assert len(run.of(j)) == len(right)
        worst = max(worst, abs(run.of(j) - right).max(initial=0.0))
    return worst, abs(run.v - expected.v).max()


def test_converges_to_the_exact_solution(x64):
    coarse, fine = (np.array([error(seed, dt) for seed in range(3)]) for dt in (0.5, 0.05))
    assert sum(len(solution(seed).spikes) for seed in range(3)) > 15
    assert np.median(fine[:, 0]) < 1e-5 and np.median(fine[:, 0]) < 0.01 * np.median(coarse[:, 0])
    assert fine[:, 0].max() < 1e-3


def test_gradient_against_finite_differences(x64):
    eps, rng, dt = 1e-6, np.random.default_rng(0), 0.5
    weights = weighting(a=np.linspace(0.3, 1.2, 4), b=np.linspace(1.1, 0.2, 4), c=np.cos(np.arange(256)))
    for seed in (0, 1, 3):
        net = network(seed)
        p = named(net)
        run = run_of(simulation(p, net.channels, dt))
        assert margin(net, run, dt) > 3e-4
        got = jax.grad(lambda p, net=net: loss(simulation(p, net.channels, dt), weights))(p)
        for name, x in p.items():
            direction = rng.normal(size=x.shape)
            sides = [p | {name: x + sign * eps * direction} for sign in (1, -1)]
            up, down = (float(loss(simulation(side, net.channels, dt), weights)) for side in sides)
            scale = np.linalg.norm(got[name]) * np.linalg.norm(direction)
            assert abs((got[name] * direction).sum() - (up - down) / (2 * eps)) < 1e-5 * scale, name


def test_silence_and_a_single_spike_are_finite(x64):
    # after its only spike a neuron stays above threshold, where the exponential must not run away
    net = replace(network(0), w_in=3.0 * network(0).w_in)
    run = run_of(simulation(named(net), net.channels, 0.5, single_spike=True))
    np.testing.assert_array_equal(run.count, np.ones(4))
    assert np.isfinite(run.trace).all() and run.v.max() > 1
    weights = weighting(a=1.0, b=1.0, c=1.0, s=1.0)
    silent = named(replace(net, w_in=0.01 * net.w_in))
    got = jax.grad(lambda p: loss(simulation(p, net.channels, 0.5), weights))(silent)
    assert all(np.isfinite(x).all() for x in got.values()) and got["w_in"].any()
