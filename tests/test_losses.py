"""Cross entropy, rate penalty and ranks against plain loops; silent networks without NaN."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.errors import RanvierError
from ranvier.losses import cross_entropy, lost_spikes, rate_penalty, sample_mean, true_rank
from ranvier.ops import spikes_from_state


@pytest.fixture
def no_nan():
    jax.config.update("jax_debug_nans", True)
    yield
    jax.config.update("jax_debug_nans", False)


def test_cross_entropy_is_its_definition():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1])
    expected = 0.0
    for z, k in zip(logits.astype(float), labels, strict=True):
        expected += (math.log(sum(math.exp(x) for x in z)) - z[k]) / len(labels)
    assert float(cross_entropy(jnp.asarray(logits), jnp.asarray(labels))) == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[-120_100.0, -120_100.0, -30.0]])
    assert float(cross_entropy(logits, jnp.array([2]))) == 0.0
    assert float(cross_entropy(logits, jnp.array([0]))) == 120_070.0


def test_cross_entropy_refuses_shapes_that_do_not_fit():
    with pytest.raises(RanvierError, match=r"logits \(2, 3\) and labels \(3,\)"):
        cross_entropy(jnp.zeros((2, 3)), jnp.zeros(3, int))


def test_rows_of_padding_count_for_nothing():
    values, weight = jnp.array([1.0, 3.0, jnp.inf]), jnp.array([1.0, 1.0, 0.0])
    assert float(sample_mean(values, weight)) == 2.0
    gradient = jax.grad(lambda x: sample_mean(jnp.log(x), weight))(jnp.array([1.0, 2.0, 5.0]))
    np.testing.assert_allclose(gradient, [0.5, 0.25, 0.0])


def test_rate_penalty_is_its_definition():
    count, duration, target = np.array([[0.0, 5.0], [20.0, 1.0], [3.0, 3.0]]), 500.0, 10.0
    neurons = population = 0.0
    for row in count:
        neurons += sum((c / duration - target / 1000.0) ** 2 for c in row) / 3
        population += (sum(c / duration for c in row) / 2 - target / 1000.0) ** 2 / 3
    assert float(rate_penalty(jnp.asarray(count), duration, target)) == pytest.approx(neurons, rel=1e-5)
    assert float(rate_penalty(jnp.asarray(count), duration, target, True)) == pytest.approx(population, rel=1e-5)


def test_hz_are_hz():
    count = jnp.full((2, 4), 7.0)  # 7 spikes in 700 ms are 10 Hz
    assert float(rate_penalty(count, 700.0, 10.0)) == pytest.approx(0.0, abs=1e-15)
    assert float(rate_penalty(count, 700.0, 40.0)) == pytest.approx(4 * 0.03**2, rel=1e-5)


def test_a_silent_network_has_finite_losses_and_gradients(no_nan):
    def loss(count):
        return cross_entropy(count, jnp.array([0, 1])) + rate_penalty(count, 100.0, 10.0)

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 3)))
    assert float(value) == pytest.approx(math.log(3) + 3 * 0.01**2, rel=1e-5)
    assert np.isfinite(gradient).all() and float(jnp.abs(gradient).max()) > 0


def test_rank_of_the_true_class():
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, jnp.nan]])
    labels = jnp.array([2, 0, 2, 1])
    np.testing.assert_array_equal(true_rank(logits, labels), [1, 0, 2, 3])


def test_rank_zero_is_argmax():
    logits = jnp.asarray(np.random.default_rng(1).integers(0, 3, (50, 4)).astype(np.float32))
    labels = jnp.asarray(np.random.default_rng(2).integers(0, 4, 50))
    np.testing.assert_array_equal(true_rank(logits, labels) == 0, jnp.argmax(logits, axis=1) == labels)


def test_lost_spikes_are_their_number_and_fall_with_the_listed():
    """Room for 2: sample 0 loses 1 and 0 spikes in its steps, sample 1 none and 3."""
    v = jnp.array([[[2.0, 2.0, 2.0, 0.0, 0.0], [2.0, 0.9, 0.0, 0.0, 0.0]], [[2.0, 2.0, 0.9, 0.0, 0.0], [2.0] * 5]])
    share = jnp.array([1.0, 10.0])
    value, gradient = jax.value_and_grad(lambda v: lost_spikes(spikes_from_state(v, 1.0, 0.5, 2)) @ share)(v)
    np.testing.assert_allclose(value, 0.5 * (1 + 10 * 3))
    factor = 1 / (1 + 10.0) ** 2
    expected = np.zeros(v.shape)
    expected[0, 0, :2] = 0.5 * factor
    expected[1, 1, :2] = 0.5 * 10 * factor
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
