"""The start of a deep network: weights and biases of one layer after the other are fitted to how data drive it."""

from dataclasses import replace
from functools import partial
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import ops
from ranvier.config import Config
from ranvier.deep import DeepLayer, DeepNetwork, products, run_layer
from ranvier.events import Events
from ranvier.ops import SpikeVector

# A layer is fitted when mean and standard deviation of its voltages are this close [1], or after so many passes.
CLOSE, PASSES = 0.02, 100

# Of what a pass asks for so much is done: resets make the voltages no linear function of the weights.
DAMPING = 0.7


class Fit(NamedTuple):
    """What the fit of a layer came to, over all neurons, steps and samples.

    `mean`, `std` : of the voltages before their reset. `activity` : fraction above the threshold. `passes` : how many
    simulations it took. `close` : whether it was reached.
    """

    mean: float
    std: float
    activity: float
    passes: int
    close: bool


class _Search(NamedTuple):
    scale: jax.Array
    shift: jax.Array
    mean: jax.Array
    std: jax.Array
    activity: jax.Array
    passes: jax.Array


def target_mean(config: Config) -> float:
    """Mean of the voltages for which `initial_activity` of a normal distribution is above the threshold.

        mu = threshold - sigma q,  q the quantile of 1 - initial_activity,  sigma = initial_std

    The published -0.32 for a standard deviation of 0.8, threshold 1 and 5 %.
    """
    return config.threshold - config.initial_std * NormalDist().inv_cdf(1.0 - config.initial_activity)


def fit_start(
    network: DeepNetwork, config: Config, events: Events, *, duration: float, capacity: int
) -> tuple[DeepNetwork, list[Fit]]:
    """Fit the start of a network to a batch (docs/equations.md, 41).

        w <- r w,  b <- b + c        until mean and standard deviation of v are those of the options

    One r and one c a layer, which gets the spikes of the fitted layers before it. Without biases c is added to all
    weights. A layer that is read without spikes stays as it is, and so does one that gets no spikes.

    Parameters
    ----------
    network : DeepNetwork
    config : Config
        `initial_std`, `initial_activity`, and the options of the neurons.
    events : Events
        (B, E) training samples.
    duration : float [ms]
    capacity : int
        Room for input events of a step and sample.

    Returns
    -------
    (DeepNetwork, list of Fit)

    References
    ----------
    Mishkin and Matas (2016), "All you need is a good init"; with a mean: Finkbeiner et al. (2023).
    """
    dtype = network.layers[0].w.dtype
    spikes = ops.spikes_from_events(events, duration=duration, dt=config.dt, capacity=capacity, dtype=dtype)
    layers, fits = [], []
    for layer, room in zip(network.layers, network.capacities(config), strict=True):
        layer, found, spikes = _fit_layer(layer, spikes, config=config, capacity=room)
        mean, std, activity, passes = (np.asarray(x).item() for x in found)
        fits.append(Fit(mean, std, activity, passes, _close(mean, std, config)))
        layers.append(layer)
    return replace(network, layers=tuple(layers)), fits


def describe(fits: list[Fit], config: Config) -> list[str]:
    """What to say of the fits of all layers."""
    activity = " ".join(f"{100 * fit.activity:.1f}" for fit in fits)
    lines = [f"initial weights fitted to the data: {activity} % of the neurons of each layer fire in a step"]
    for number, fit in enumerate(fits, 1):
        if not fit.close:
            lines.append(
                f"layer {number}: its voltages have mean {fit.mean:.2f} and standard deviation {fit.std:.2f} after "
                f"{fit.passes} passes, not {target_mean(config):.2f} and {config.initial_std:.2f}; it starts with these"
            )
    return lines


def _close(mean, std, config: Config):
    return (abs(mean - target_mean(config)) < CLOSE) & (abs(std - config.initial_std) < CLOSE)


@partial(jax.jit, static_argnames=("config", "capacity"))
def _fit_layer(
    layer: DeepLayer, spikes: SpikeVector, *, config: Config, capacity: int
) -> tuple[DeepLayer, tuple, SpikeVector]:
    """The fitted layer, its numbers, and the spikes it sends on."""
    # Currents are linear in r and c, so one product serves all passes.
    base = ops.spike_matmul(spikes, layer.w, **products(config))
    if layer.bias is None:
        level = ops.spike_matmul(spikes, jnp.ones((layer.w.shape[0], 1), layer.w.dtype))
    else:
        level = jnp.ones((*base.shape[:2], 1), base.dtype)
    mean_level = jnp.mean(level)

    def measured(scale, shift) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _voltages(lambda t: scale * base[t] + shift * level[t], base, layer.w_rec, config)

    def step(now: _Search) -> _Search:
        ratio = jnp.clip(config.initial_std / jnp.maximum(now.std, 1e-6), 0.1, 10.0) ** DAMPING
        # Without resets a current of 1 leads to a voltage of `gain`, and what the weights make of the mean grows as r.
        level_now = config.gain * mean_level
        expected = (now.mean - level_now * now.shift) * ratio + level_now * now.shift
        shift = now.shift + DAMPING * (target_mean(config) - expected) / jnp.maximum(level_now, 1e-6)
        scale = now.scale * ratio
        return _Search(scale, shift, *measured(scale, shift), now.passes + 1)

    def going(now: _Search) -> jax.Array:
        return ~_close(now.mean, now.std, config) & (now.passes < PASSES) & jnp.any(base != 0)

    one = jnp.ones((), base.dtype)
    found = jax.lax.while_loop(going, step, _Search(one, 0 * one, *measured(one, 0 * one), jnp.int32(1)))
    if layer.bias is None:
        fitted = replace(layer, w=found.scale * layer.w + found.shift)
    else:
        fitted = replace(layer, w=found.scale * layer.w, bias=layer.bias + found.shift)
    sent, _ = run_layer(fitted, config, spikes, config.threshold, capacity)
    return fitted, (found.mean, found.std, found.activity, found.passes), sent


def _voltages(
    current, like: jax.Array, w_rec: jax.Array | None, config: Config
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and standard deviation of the voltages (docs/equations.md, 36) and the fraction above the threshold."""

    def step(carry, t):
        v, n, first, second = carry
        fired = v > config.threshold
        arrived = current(t)
        if w_rec is not None:
            arrived = arrived + jnp.dot(fired.astype(v.dtype), w_rec, precision=jax.lax.Precision.HIGHEST)
        v = config.alpha * jnp.where(fired, 0, v) + config.gain * (1 - config.alpha) * arrived
        return (v, n + (v > config.threshold), first + v, second + v * v), None

    zero = jnp.zeros(like.shape[1:], like.dtype)
    (_, n, first, second), _ = jax.lax.scan(step, (zero,) * 4, jnp.arange(like.shape[0]))
    steps = like.shape[0]
    mean = jnp.mean(first) / steps
    return mean, jnp.sqrt(jnp.maximum(jnp.mean(second) / steps - mean**2, 0)), jnp.mean(n) / steps
