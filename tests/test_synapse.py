"""The exponential synapse: closed forms against integrals, their derivatives, and time split into steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import ranvier
from ranvier import synapse
from ranvier.neurons import LIF
from tests import exact

# 1/tau_syn - 1/tau_mem of both signs, equal time constants and all but equal ones
RATES = [0.4, -0.4, 0.0, 1e-3, -1e-6, 1e-9, 1e-15, 3.0]
TIMES = np.array([0.0, 1e-9, 1e-3, 0.3, 0.5, 1.2, 7.0])


def integral(h, c):
    """q(h) = integral of exp(c s) over [0, h]."""
    return quad(lambda s: math.exp(c * s), 0.0, h, epsrel=1e-13)[0]


def moment(h, c):
    """dq/dc = integral of s exp(c s) over [0, h]."""
    return quad(lambda s: s * math.exp(c * s), 0.0, h, epsrel=1e-13)[0]


@pytest.mark.parametrize("c", RATES)
def test_q_and_its_derivatives_are_integrals(x64, c):
    h = jnp.asarray(TIMES)
    rate = jnp.full_like(h, c)
    np.testing.assert_allclose(synapse.q(h, rate), [integral(x, c) for x in TIMES], rtol=1e-12)
    by_h = jax.jvp(lambda h: synapse.q(h, rate), (h,), (jnp.ones_like(h),))[1]
    by_c = jax.jvp(lambda c: synapse.q(h, c), (rate,), (jnp.ones_like(h),))[1]
    np.testing.assert_allclose(by_h, np.exp(c * TIMES), rtol=1e-13)
    np.testing.assert_allclose(by_c, [moment(x, c) for x in TIMES], rtol=1e-12)


@pytest.mark.parametrize("c", RATES)
def test_time_of_q_is_its_inverse(x64, c):
    h = jnp.asarray(TIMES)
    rate = jnp.full_like(h, c)
    y = synapse.q(h, rate)
    np.testing.assert_allclose(synapse.time_of_q(y, rate), TIMES, rtol=1e-9)
    # along h the inverse undoes q, along c it moves against it
    both = jax.jvp(lambda h, c: synapse.time_of_q(synapse.q(h, c), c), (h, rate), (jnp.ones_like(h), jnp.ones_like(h)))
    np.testing.assert_allclose(both[1], np.ones_like(TIMES), rtol=1e-9)
    by_c = jax.jvp(lambda c: synapse.time_of_q(y, c), (rate,), (jnp.ones_like(h),))[1]
    np.testing.assert_allclose(by_c, [-moment(x, c) * math.exp(-c * x) for x in TIMES], rtol=1e-9)


def test_derivatives_are_finite_in_reverse_mode_and_float32():
    h, c = jnp.array([0.0, 0.0, 1.0, 1.0], jnp.float32), jnp.array([0.0, 0.4, 0.0, -0.4], jnp.float32)
    for function in (synapse.q, synapse.time_of_q):
        for gradient in jax.grad(lambda h, c, function=function: function(h, c).sum(), argnums=(0, 1))(h, c):
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("tau_mem, tau_syn", [(10.0, 2.0), (2.0, 10.0), (5.0, 5.0), (5.0, 5.0 + 1e-9)])
def test_the_flow_is_the_closed_form(x64, tau_mem, tau_syn):
    m = synapse.Membrane.of(LIF(tau_mem, tau_syn), 2, jnp.float64)
    h = jnp.array([[0.3, 4.0]])
    kappa = [exact.kappa(x, tau_mem, tau_syn) for x in (0.3, 4.0)]
    np.testing.assert_allclose(m.kappa(h)[0], kappa, rtol=1e-13)
    v, i = jnp.array([[0.7, -0.2]]), jnp.array([[0.4, 1.3]])
    v_end, i_end = m.flow(v, i, h)
    for j, x in enumerate((0.3, 4.0)):
        assert float(v_end[0, j]) == pytest.approx(exact.voltage(x, float(v[0, j]), float(i[0, j]), tau_mem, tau_syn))
        assert float(i_end[0, j]) == pytest.approx(float(i[0, j]) * math.exp(-x / tau_syn))
    # back again, and its derivative at 0
    for got, start in zip(m.flow(v_end, i_end, -h), (v, i), strict=True):
        np.testing.assert_allclose(got, start, rtol=1e-12)
    _, (by_v, by_i) = jax.jvp(lambda h: m.flow(v, i, h), (0 * h,), (jnp.ones_like(h),))
    np.testing.assert_allclose(by_v, m.slope(v, i), rtol=1e-13)
    np.testing.assert_allclose(by_i, -i / tau_syn, rtol=1e-13)


def test_parameters_may_differ_by_neuron(x64):
    m = synapse.Membrane.of(LIF(jnp.array([10.0, 4.0]), 2.0, jnp.array([1.0, 0.5])), 2, jnp.float64)
    np.testing.assert_allclose(m.c, [[0.4, 0.25]])
    some = m.at(jnp.array([1, 1, 0]))
    np.testing.assert_array_equal(some.tau_mem, [4.0, 4.0, 10.0])
    np.testing.assert_array_equal(some.v_th, [0.5, 0.5, 1.0])


def test_moments_move_the_state_to_the_end_of_the_step(x64):
    tau_mem, tau_syn, dt = 10.0, 2.0, 0.5
    weights, h = np.array([0.3, -0.8, 1.1]), np.array([0.5, 0.1, 0.33])
    tau, c = jnp.full(3, tau_syn), jnp.full(3, 0.4)
    total = np.asarray(synapse.moments(jnp.asarray(weights), jnp.asarray(h), tau, c)).sum(0)
    v = sum(w * exact.kappa(x, tau_mem, tau_syn) for w, x in zip(weights, h, strict=True))
    i = sum(w * math.exp(-x / tau_syn) for w, x in zip(weights, h, strict=True))
    square = sum(w * math.exp(-x / tau_syn) * integral(x, 0.4) ** 2 for w, x in zip(weights, h, strict=True))
    np.testing.assert_allclose(total, [i, v, square], rtol=1e-13)
    assert dt >= h.max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_split(x64, dtype):
    for dt in (0.5, 0.1, 0.25, 1.0):
        time = np.concatenate([np.random.default_rng(0).uniform(0, 2000, 200), np.arange(20) * dt, [1999.9]]).astype(
            dtype
        )
        step, offset = jax.device_get(synapse.split(jnp.asarray(time), dt))
        assert step.dtype == np.int32 and offset.dtype == dtype
        # an offset leaves [0, dt] by rounding alone, and the sum is the time
        rounding = np.spacing(time)
        assert (offset >= -rounding).all() and (offset <= dt + rounding).all()
        np.testing.assert_allclose(step * np.float64(dt) + offset, time, rtol=0, atol=2 * rounding.max())
    by_time = jax.vmap(jax.grad(lambda x: synapse.split(x, 0.5)[1]))(jnp.asarray(time))
    np.testing.assert_array_equal(by_time, np.ones_like(time))


def test_the_layer_evaluates_its_delays():
    w = jnp.ones((2, 3))
    layer = ranvier.Layer(w, 1.5, jnp.ones((3, 3)))
    d_in, d_rec = layer.delays()
    np.testing.assert_array_equal(d_in, np.full((2, 3), 1.5))
    np.testing.assert_array_equal(d_rec, np.zeros((3, 3)))
    assert d_in.dtype == d_rec.dtype == jnp.float32
    d_in, d_rec = ranvier.Layer(w, ranvier.space.FreeDelay(2 * w)).delays()
    np.testing.assert_array_equal(d_in, 2 * w)
    assert d_rec is None
