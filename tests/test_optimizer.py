"""The chain of updates: groups, frozen parameters, schedule, decay, clipping."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.network import init_network
from ranvier.optimizer import labels, make_optimizer, schedule, stop_frozen

CONFIG = Config(
    hidden=6,
    net="2e0.1",
    warmup=0,
    decay_steps=100,
    decay_to=1.0,
    lr=1e-3,
    delay_lr_scale=10.0,
    clip=0.0,
    weight_decay=0.0,
)


def network_of(config):
    return init_network(config, jax.random.key(0), 5, 3)


def updates_of(config, n_updates=1, gradient=None):
    network = network_of(config)
    optimizer = make_optimizer(network, config)
    state = optimizer.init(network)
    gradient = jax.tree.map(jnp.ones_like, network) if gradient is None else gradient
    for _ in range(n_updates):
        updates, state = optimizer.update(gradient, state, network)
    return updates


def test_groups():
    groups = labels(network_of(CONFIG), CONFIG)
    assert (groups.w_in, groups.w_rec, groups.w_out) == ("weight",) * 3
    assert set(groups.space.params) == {"x_in", "x_rec", "e_in", "e_rec"}
    assert set(groups.space.params.values()) == {"delay"}


def test_groups_of_spiking_outputs():
    config = replace(CONFIG, readout="first-spike", fixed_inputs=True)
    groups = labels(network_of(config), config)
    assert groups.w_out == "weight"
    assert groups.space.params["x_in"] == "frozen" and groups.space.params["x_rec"] == "delay"
    assert groups.output is not None
    assert set(groups.output.params) == {"x_rec", "e_in"} and set(groups.output.params.values()) == {"delay"}


def test_first_update_of_adam_is_the_learning_rate_times_the_group():
    updates = updates_of(CONFIG)
    np.testing.assert_allclose(updates.w_in, -1e-3, rtol=1e-4)
    np.testing.assert_allclose(updates.w_out, -1e-3, rtol=1e-4)
    for leaf in updates.space.params.values():
        np.testing.assert_allclose(leaf, -1e-2, rtol=1e-4)


def test_no_delay_learning_means_no_drift_at_all():
    config = replace(CONFIG, delay_lr_scale=0.0, weight_decay=0.1)
    for leaf in jax.tree.leaves(updates_of(config, 3).space):
        np.testing.assert_array_equal(leaf, 0.0)


def test_a_frozen_update_is_zero_even_after_a_nan():
    config = replace(CONFIG, delay_lr_scale=0.0)
    gradient = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), network_of(config))
    np.testing.assert_array_equal(updates_of(config, gradient=gradient).space.params["x_in"], 0.0)


@pytest.mark.parametrize(("net", "name"), [("2", "x_in"), ("2g0.1", "origin_in")])
def test_fixed_inputs(net, name):
    config = replace(CONFIG, net=net, fixed_inputs=True)
    params = updates_of(config).space.params
    np.testing.assert_array_equal(params.pop(name), 0.0)
    for leaf in params.values():
        np.testing.assert_allclose(leaf, -1e-2, rtol=1e-4)


def test_nothing_is_derived_for_frozen_parameters():
    config = replace(CONFIG, fixed_inputs=True)

    def loss(network):
        params = stop_frozen(network, config).space.params
        return params["x_in"].sum() + params["x_rec"].sum()

    gradient = jax.grad(loss)(network_of(config)).space.params
    assert (gradient["x_in"] == 0).all() and (gradient["x_rec"] == 1).all()


def test_weight_decay_acts_on_weights_alone():
    config = replace(CONFIG, weight_decay=0.1)
    updates = updates_of(config, gradient=jax.tree.map(jnp.zeros_like, network_of(config)))
    np.testing.assert_allclose(updates.w_in, -1e-3, rtol=1e-2)  # Adam makes lr x sign of it
    for leaf in updates.space.params.values():
        np.testing.assert_array_equal(leaf, 0.0)


def test_clipping_is_by_column():
    config = replace(CONFIG, clip=2.0)
    network = network_of(config)
    gradient = jax.tree.map(jnp.zeros_like, network)
    # Column 0 far above its weights, column 1 far below: the first moment of Adam shows what went in.
    gradient = replace(gradient, w_in=gradient.w_in.at[:, 0].set(1e3).at[:, 1].set(1e-6))
    optimizer = make_optimizer(network, config)
    _, state = optimizer.update(gradient, optimizer.init(network), network)
    moments = [
        leaf.mu.w_in for leaf in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu")
    ]
    norm = jnp.linalg.norm(moments[0] / 0.1, axis=0)
    np.testing.assert_allclose(norm[0], 2.0 * jnp.linalg.norm(network.w_in[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(moments[0][:, 1] / 0.1, 1e-6, rtol=1e-5)


def test_schedule():
    rate: Callable = schedule(replace(CONFIG, warmup=10, decay_steps=110, decay_to=0.1, lr=2e-3))
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(1e-3)
    assert float(rate(10)) == pytest.approx(2e-3)
    assert float(rate(60)) == pytest.approx(2e-3 * 0.55)
    assert float(rate(110)) == pytest.approx(2e-4)
    assert float(rate(10_000)) == pytest.approx(2e-4)
    rate = schedule(CONFIG)
    assert float(rate(0)) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"warmup": 100}, "warmup 100 and decay_steps 100"),
        ({"warmup": -1}, "warmup -1"),
        ({"lr": -1.0}, "lr -1.0"),
        ({"clip": float("nan")}, "clip nan"),
        ({"delay_lr_scale": float("inf")}, "delay_lr_scale inf"),
        ({"weight_decay": -0.1}, "weight_decay -0.1"),
    ],
)
def test_bad_options_are_refused(bad, message):
    config = replace(CONFIG, **bad)
    with pytest.raises(RanvierError, match=message):
        make_optimizer(network_of(CONFIG), config)
