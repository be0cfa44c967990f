"""Masks: how many weights stay, which, and whether the others come back."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.network import init_network
from ranvier.sparsify import all_kept, apply_masks, keep_fraction, magnitude_mask, prune

CONFIG = Config(hidden=6, net="2", sparsity=0.7)


@pytest.fixture
def network():
    return init_network(CONFIG, jax.random.key(0), 5, 3)


def test_schedules():
    assert [keep_fraction(CONFIG, e) for e in (1, 2, 9)] == pytest.approx([0.3, 0.3, 0.3])
    gradual = replace(CONFIG, sparsity_schedule="gradual")
    assert [keep_fraction(gradual, e) for e in (1, 2, 7, 9)] == pytest.approx([0.9, 0.8, 0.3, 0.3])
    assert keep_fraction(replace(CONFIG, sparsity=0.0), 3) == 1.0


@pytest.mark.parametrize("bad", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"sparsity_schedule": "later"}])
def test_bad_options_are_refused(bad):
    with pytest.raises(RanvierError, match="keep_fraction"):
        keep_fraction(replace(CONFIG, **bad), 1)


def test_bad_regrow_is_refused(network):
    with pytest.raises(RanvierError, match="regrow 'never'"):
        prune(network, replace(CONFIG, regrow="never"), 1)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
def test_mask_keeps_the_largest(keep):
    w = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    mask = np.asarray(magnitude_mask(jnp.asarray(w), keep))
    assert mask.sum() == round(keep * 20)
    if 0 < keep < 1:
        assert np.abs(w[mask]).min() > np.abs(w[~mask]).max()


def test_equal_magnitudes_do_not_all_stay():
    assert magnitude_mask(jnp.ones((4, 5)), 0.3).sum() == 6


def test_keep_zero_holds_what_was_removed(network):
    pruned, masks = prune(network, CONFIG, 1)
    for name in ("w_in", "w_rec"):
        np.testing.assert_array_equal(getattr(pruned, name) != 0, masks[name])
        assert masks[name].sum() == round(0.3 * masks[name].size)
        np.testing.assert_array_equal(getattr(pruned, name)[masks[name]], getattr(network, name)[masks[name]])
    np.testing.assert_array_equal(pruned.w_out, network.w_out)
    grown = replace(pruned, w_in=pruned.w_in + 1.0)
    np.testing.assert_array_equal(apply_masks(grown, masks).w_in != 0, masks["w_in"])


def test_published_lets_weights_come_back(network):
    pruned, masks = prune(network, replace(CONFIG, regrow="published"), 1)
    assert (pruned.w_in == 0).sum() == 30 - 9
    grown = replace(pruned, w_in=pruned.w_in + 1.0)
    assert (apply_masks(grown, masks).w_in != 0).all()


def test_the_diagonal_takes_no_place_among_the_kept(network):
    large = replace(network, w_rec=network.w_rec + 100.0 * jnp.eye(6))
    _, masks = prune(large, CONFIG, 1)
    assert not masks["w_rec"].diagonal().any() and masks["w_rec"].sum() == round(0.3 * 36)


def test_a_feed_forward_network_has_one_mask():
    network = init_network(replace(CONFIG, recurrent=False), jax.random.key(0), 5, 3)
    assert list(all_kept(network)) == ["w_in"]
    assert prune(network, CONFIG, 1)[0].w_rec is None
