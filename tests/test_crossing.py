"""Spike times inside a step: stand-in kicks by their moments, crossings against `tests.exact.crossing`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import crossing, synapse
from ranvier.neurons import LIF
from tests import exact

DT, TAU_MEM, TAU_SYN = 0.5, 10.0, 2.0


def membrane(n, tau_mem=TAU_MEM, tau_syn=TAU_SYN):
    return synapse.Membrane.of(LIF(tau_mem, tau_syn), n, jnp.float64).at(jnp.arange(n))


def q(h, c):
    return math.expm1(c * h) / c if c else h


def bucket(weights, h, tau_mem=TAU_MEM, tau_syn=TAU_SYN):
    """(JI, JV, JQ) by Eq. 5, one arrival at a time."""
    out = np.zeros(3)
    for w, x in zip(weights, h, strict=True):
        a, y = w * math.exp(-x / tau_syn), q(x, 1 / tau_syn - 1 / tau_mem)
        out += [a, a * y, a * y * y]
    return out


@jax.jit
def stand_in(buckets, m):
    return crossing.stand_in(buckets, m, DT)


def kicks_of(buckets, **taus):
    m = membrane(len(buckets), **taus)
    return [np.asarray(x) for x in stand_in(jnp.asarray(np.array(buckets)), m)]


def moments_of(kicks, k, **taus):
    """What the kicks and the jump at the start leave at the end of the step."""
    x1, x2, w1, w2, dv, di = (x[k] for x in kicks)
    out = bucket([w1, w2], [DT - x1, DT - x2], **taus)
    tau_mem, tau_syn = taus.get("tau_mem", TAU_MEM), taus.get("tau_syn", TAU_SYN)
    out[0] += di * math.exp(-DT / tau_syn)
    out[1] += exact.voltage(DT, dv, di, tau_mem, tau_syn)
    return out


TAUS = [dict(), dict(tau_syn=10.0), dict(tau_mem=2.0, tau_syn=10.0)]


@pytest.mark.parametrize("taus", TAUS)
def test_kicks_leave_what_the_arrivals_leave(x64, taus):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 6, 60)
    weights = [rng.uniform(-1.0 if k % 2 else 0.1, 1.5, n) for k, n in enumerate(numbers)]
    # some of the arrivals were due up to a step before this one
    h = [rng.uniform(0.0, DT * (2 if k % 3 == 0 else 1), n) for k, n in enumerate(numbers)]
    buckets = [bucket(w, x, **taus) for w, x in zip(weights, h, strict=True)]
    kicks = kicks_of(buckets, **taus)
    jumps = 0
    for k, expected in enumerate(buckets):
        got = moments_of(kicks, k, **taus)
        scale = abs(weights[k]).sum() + 1e-300
        np.testing.assert_allclose(got[:2], expected[:2], rtol=0, atol=1e-14 * scale)
        x1, x2, _, _, dv, di = (x[k] for x in kicks)
        jumps += bool(dv or di)
        assert -1e-12 < x1 <= x2 + 1e-12 and x2 < DT + 1e-12
    assert 10 < jumps < 50


def test_third_moment_where_the_kicks_fit(x64):
    rng = np.random.default_rng(1)
    # around the middle of the step no clamp is needed
    buckets = [bucket(rng.uniform(0.5, 1.0, 4), rng.uniform(0.15, 0.35, 4)) for _ in range(10)]
    kicks = kicks_of(buckets)
    for k, expected in enumerate(buckets):
        np.testing.assert_allclose(moments_of(kicks, k), expected, rtol=1e-12)
        assert kicks[2][k] * math.exp(-(DT - kicks[0][k]) / TAU_SYN) == pytest.approx(0.5 * expected[0])


@pytest.mark.parametrize("taus", TAUS)
def test_one_arrival_and_two_of_equal_weight_are_exact(x64, taus):
    tau_syn = taus.get("tau_syn", TAU_SYN)
    times = [0.0, 1e-7, 0.2, 0.5 - 1e-7, 0.5]
    pairs = [(0.4, 0.1), (0.5, 0.0), (0.31, 0.3), (0.2, 0.2)]
    one = [bucket([0.7], [h], **taus) for h in times]
    two = [bucket([0.7 * math.exp(a / tau_syn), 0.7 * math.exp(b / tau_syn)], [a, b], **taus) for a, b in pairs]
    x1, x2, w1, w2, dv, di = kicks_of(one + two, **taus)
    assert not dv.any() and not di.any()
    for k, h in enumerate(times):
        np.testing.assert_allclose([x1[k], x2[k]], DT - h, rtol=0, atol=1e-13)
        assert w1[k] + w2[k] == pytest.approx(0.7, rel=1e-12)
    for k, (a, b) in enumerate(pairs, len(times)):
        np.testing.assert_allclose([x1[k], x2[k]], [DT - a, DT - b], rtol=0, atol=1e-7)
        np.testing.assert_allclose([w1[k], w2[k]], [0.7 * math.exp(x / tau_syn) for x in (a, b)], rtol=1e-6)


def test_derivatives_of_the_stand_in_are_finite(x64):
    # nothing, one arrival, two at one time, at the edges, both signs, a sum of 0
    rows = [([], []), ([0.7], [0.2]), ([0.7, 0.3], [0.2, 0.2]), ([0.7], [0.0]), ([0.7], [0.5])]
    rows += [([0.7, -0.3], [0.4, 0.1]), ([0.5, -0.5], [0.3, 0.3]), ([0.7, -0.5], [0.1, 0.4])]
    buckets = jnp.asarray(np.array([bucket(*row) for row in rows]))
    gradient = jax.grad(lambda b: sum(x.sum() for x in stand_in(b, membrane(len(rows)))))(buckets)
    assert np.isfinite(gradient).all()


# ----------------------------------------------------------------------------------------------------------- crossings


def spikes_by_loop(v, i, kicks):
    """Spikes of one neuron within the step, one piece at a time; those beyond the first only if v_end >= 1."""
    x1, x2, w1, w2, dv, di = kicks
    v, i, t, waiting, out = v + dv, i + di, 0.0, [(x1, w1), (x2, w2)], []
    while True:
        end = waiting[0][0] if waiting else DT
        h = exact.crossing(v, i, max(end - t, 0.0), TAU_MEM, TAU_SYN, 1.0)
        if h < math.inf:
            # a jump of the state above threshold takes one threshold away, a crossing leaves 0
            v = v - 1.0 if v >= 1.0 else 0.0
            i, t = i * math.exp(-h / TAU_SYN), t + h
            out.append(t)
        elif waiting:
            v, i = exact.voltage(end - t, v, i, TAU_MEM, TAU_SYN), i * math.exp(-(end - t) / TAU_SYN)
            t = end
            i += waiting.pop(0)[1]
        else:
            return out, exact.voltage(DT - t, v, i, TAU_MEM, TAU_SYN)


@jax.jit
def step(v, i, buckets, m):
    kicks = crossing.stand_in(buckets, m, DT)
    v_end, i_end = m.flow(v, i, jnp.full_like(v, DT))
    v_end, i_end = v_end + buckets[:, 1], i_end + buckets[:, 0]
    look = crossing.may_fire(v, i, v_end, i_end, m, DT)
    fired = crossing.spikes_of_step(
        crossing.begin(v, i, v_end, kicks), kicks, i_end, m, DT, jnp.ones(v.shape, bool), False
    )
    return kicks, look, v_end, fired


def test_spikes_of_a_step(x64):
    rng, n = np.random.default_rng(0), 400
    v, i = rng.uniform(-0.2, 0.999, n), rng.uniform(-0.3, 3.0, n)
    buckets = []
    for k in range(n):
        number = rng.integers(0, 4)
        buckets.append(bucket(rng.uniform(-1.0 if k % 4 == 0 else 0.0, 4.0, number), rng.uniform(0.0, DT, number)))
    kicks, look, v_free, (fired, g, v_end, more) = jax.device_get(
        step(jnp.asarray(v), jnp.asarray(i), jnp.asarray(np.array(buckets)), membrane(n))
    )
    seen = dict.fromkeys(range(5), 0)
    for k in range(n):
        expected, v_last = spikes_by_loop(v[k], i[k], [x[k] for x in kicks])
        number = int(fired[k].sum())
        assert fired[k, :number].all()
        # a second one whose peak is over again at the end of the step is left out
        assert number == min(len(expected), 4) or (number == 1 and v_end[k] < 1), k
        np.testing.assert_allclose(g[k, :number], expected[:number], rtol=0, atol=1e-9)
        taken = sum(math.exp(-(DT - t) / TAU_MEM) for t in expected[:number])
        assert v_end[k] == pytest.approx(v_free[k] - taken, abs=1e-9)
        if number == len(expected):
            assert v_end[k] == pytest.approx(v_last, abs=1e-9)
        assert more[k] == (len(expected) > 4 and v_end[k] >= 1)
        # what is not looked at does not fire, unless a peak between arrivals is over at the end
        assert look[k] or not number or v_free[k] < 1
        seen[number] += 1
    assert min(seen.values()) > 3, seen


def test_every_crossing_without_arrivals_is_looked_at(x64):
    rng, n = np.random.default_rng(1), 3000
    v, i = rng.uniform(0.996, 1.0002, n), rng.uniform(0.08, 0.15, n)
    _, look, v_free, (fired, g, *_) = jax.device_get(
        step(jnp.asarray(v), jnp.asarray(i), jnp.zeros((n, 3)), membrane(n))
    )
    expected = np.array([exact.crossing(*x, DT, TAU_MEM, TAU_SYN, 1.0) for x in zip(v, i, strict=True)])
    crosses = np.isfinite(expected)
    peaks = crosses & (v < 1) & (v_free < 1)
    assert peaks.sum() > 20
    np.testing.assert_array_equal(fired[:, 0], crosses)
    assert look[crosses].all() and (~look).sum() > n / 4
    np.testing.assert_allclose(g[crosses, 0], expected[crosses], rtol=0, atol=1e-7)
