"""The Optax chain of a training run and its parameter groups."""

from dataclasses import replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.network import Network

WEIGHT = "weight"
BIAS = "bias"
DELAY = "delay"
FROZEN = "frozen"

_INPUT_POSITIONS = ("x_in", "origin_in")


def labels(network: Network, config: Config) -> Network:
    """The group of each parameter.

    `weight`: all weight matrices. `bias`: constant currents. `delay`: everything that makes delays (free delays,
    positions, slack, lattice scale and origins). `frozen`: delays when `delay_lr_scale` is 0, and input positions when
    `fixed_inputs` is set.

    Parameters
    ----------
    network : Network
    config : Config

    Returns
    -------
    Network
        The same tree with a string at each leaf.
    """

    def group(path: tuple, _leaf: jax.Array) -> str:
        keys = [str(getattr(key, "name", getattr(key, "key", key))) for key in path]
        if "params" not in keys:
            return BIAS if keys[-1] == "bias" else WEIGHT
        inputs = keys[0] == "space" and keys[-1] in _INPUT_POSITIONS
        return FROZEN if config.delay_lr_scale == 0 or (config.fixed_inputs and inputs) else DELAY

    return jax.tree_util.tree_map_with_path(group, network)


def stop_frozen(network: Network, config: Config) -> Network:
    """The network with derivatives cut off at its frozen parameters, so that none are computed for them."""
    return jax.tree.map(
        lambda group, leaf: jax.lax.stop_gradient(leaf) if group == FROZEN else leaf, labels(network, config), network
    )


def schedule(config: Config) -> optax.Schedule:
    """Learning rate at each update: linear warm-up, then a cosine, then constant.

        lr(u) = lr u / warmup                                                        u < warmup
        lr(u) = lr (c + (1 - c) (1 + cos(pi (u - warmup) / (decay_steps - warmup))) / 2)   c = decay_to
        lr(u) = lr c                                                                 u > decay_steps

    Parameters
    ----------
    config : Config
        `lr`, `warmup`, `decay_steps`, `decay_to`.

    Returns
    -------
    callable from the number of the update to the rate

    Raises
    ------
    RanvierError
        If the warm-up does not end before the decay.
    """
    if not 0 <= config.warmup < config.decay_steps:
        raise RanvierError(
            f"schedule: got warmup {config.warmup} and decay_steps {config.decay_steps}; "
            "needs 0 <= warmup < decay_steps, both in updates; lower warmup or raise decay_steps"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup else config.lr,
        peak_value=config.lr,
        warmup_steps=config.warmup,
        decay_steps=config.decay_steps,
        end_value=config.lr * config.decay_to,
    )


def settled_schedule(config: Config, steps: int) -> Config:
    """The options of a run with its schedule in updates alone.

        warmup <- round(warmup_epochs steps)  where above 0        decay_steps <- epochs steps  where decay is "run"

    Parameters
    ----------
    config : Config
    steps : int
        Updates an epoch.

    Returns
    -------
    Config
        With `warmup_epochs` 0 and `decay` "steps".
    """
    warmup = round(config.warmup_epochs * steps) if config.warmup_epochs else config.warmup
    decay_steps = config.epochs * steps if config.decay == "run" else config.decay_steps
    if config.decay == "run":
        warmup = min(warmup, decay_steps - 1)  # a run of few updates warms up all the time
    return replace(config, warmup=warmup, warmup_epochs=0.0, decay="steps", decay_steps=decay_steps)


class Optimizer(Protocol):
    """An Optax transformation of networks."""

    def init(self, params: Network) -> Any:
        """State before the first update."""

    def update(self, updates: Network, state: Any, params: Network) -> tuple[Network, Any]:
        """From the gradient, the state and the network: what to add to the network, and the next state."""
        ...


def make_optimizer(network: Network, config: Config) -> Optimizer:
    """The chain: adaptive clipping, weight decay, Adam, schedule, parameter groups.

        g <- g min(1, clip |p| / |g|)        norms of a column: all that reaches one neuron (unit-wise)
        g <- g + weight_decay p              weights only, before Adam
        p <- p - lr(u) s Adam(g)             s = 1 for weights, delay_lr_scale for delays, 0 for what is frozen

    Where `decoupled`, weight_decay p is added to Adam(g) in place of g (AdamW).

    Parameters
    ----------
    network : Network
        Its structure decides the groups; its numbers do not matter.
    config : Config
        `clip` (0: off), `weight_decay`, `decoupled`, `lr`, `warmup`, `decay_steps`, `decay_to`, `delay_lr_scale`,
        `fixed_inputs`.

    Returns
    -------
    Optimizer

    Raises
    ------
    RanvierError
        If an option is out of range.

    References
    ----------
    Adaptive gradient clipping: Brock, De, Smith and Simonyan (2021), eq. 3. Adam: Kingma and Ba (2015). AdamW:
    Loshchilov and Hutter (2019).
    """
    for name in ("lr", "clip", "weight_decay", "delay_lr_scale", "decay_to"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise RanvierError(
                f"make_optimizer: got {name} {getattr(config, name)!r}; needs a finite number, 0 or more; set {name}"
            )
    groups = labels(network, config)
    is_weight = jax.tree.map(lambda group: group == WEIGHT, groups)
    parts = [optax.adaptive_grad_clip(config.clip)] if config.clip else []
    decay = [optax.add_decayed_weights(config.weight_decay, mask=is_weight)] if config.weight_decay else []
    parts += [optax.scale_by_adam(), *decay] if config.decoupled else [*decay, optax.scale_by_adam()]
    parts += [optax.scale_by_learning_rate(schedule(config)), _scale_groups(groups, config)]
    chain: Any = optax.chain(*parts)
    return chain


def _scale_groups(groups: Network, config: Config) -> optax.GradientTransformation:
    """Last part of the chain: scale the delays' updates, and make frozen updates exactly 0."""

    def one(group: str, update: jax.Array) -> jax.Array:
        if group == FROZEN:
            return jnp.zeros_like(update)
        return update * config.delay_lr_scale if group == DELAY else update

    return optax.stateless(lambda updates, _params: jax.tree.map(one, groups, updates))
