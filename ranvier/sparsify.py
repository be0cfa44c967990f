"""Masks of pruned weights: which weights go after an epoch, and whether they may come back."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.network import Network

# The readout keeps all its weights.
PRUNED = ("w_in", "w_rec")

Masks = dict[str, jax.Array]


def keep_fraction(config: Config, epoch: int) -> float:
    """Fraction of each matrix that is kept after an epoch.

        keep = 1 - sparsity                               schedule `once`
        keep = max(1 - sparsity, 1 - 0.1 epoch)           schedule `gradual`

    Parameters
    ----------
    config : Config
        `sparsity`, `sparsity_schedule`.
    epoch : int
        Number of epochs done, from 1.

    Returns
    -------
    float

    Raises
    ------
    RanvierError
        If an option is not one of the above.
    """
    if not 0.0 <= config.sparsity < 1.0:
        raise RanvierError(
            f"keep_fraction: got sparsity {config.sparsity!r}; needs a fraction of weights to remove, "
            "0 <= sparsity < 1; set sparsity"
        )
    if config.sparsity_schedule == "once":
        return 1.0 - config.sparsity
    if config.sparsity_schedule == "gradual":
        return max(1.0 - config.sparsity, 1.0 - 0.1 * epoch)
    raise RanvierError(
        f"keep_fraction: got sparsity_schedule {config.sparsity_schedule!r}; needs 'once' or 'gradual'; pick one"
    )


def magnitude_mask(w: jax.Array, keep: float) -> jax.Array:
    """Mask of the largest magnitudes of a matrix.

    Keeps exactly round(keep x size) entries; among equal magnitudes the first in row order stay.

    Parameters
    ----------
    w : (M, N)
    keep : float
        Fraction in [0, 1].

    Returns
    -------
    (M, N) bool jax.Array
    """
    n_keep = round(keep * w.size)
    order = jnp.argsort(-jnp.abs(w).reshape(-1), stable=True)
    return jnp.zeros(w.size, bool).at[order[:n_keep]].set(True).reshape(w.shape)


def all_kept(network: Network) -> Masks:
    """Masks that keep everything, for each matrix that can be pruned: none of a deep network."""
    matrices = {name: getattr(network, name, None) for name in PRUNED}
    return {name: jnp.ones(w.shape, bool) for name, w in matrices.items() if w is not None}


def prune(network: Network, config: Config, epoch: int) -> tuple[Network, Masks]:
    """Remove the smallest weights of each matrix after an epoch.

    With `keep-zero` the masks go on holding the removed weights at zero. With `published` the weights are zeroed once
    and may grow again within the next epoch, so the masks that come back keep everything.

    Parameters
    ----------
    network : Network
    config : Config
        `sparsity`, `sparsity_schedule`, `regrow`.
    epoch : int
        Number of epochs done, from 1.

    Returns
    -------
    (Network, dict of (M, N) bool)

    Raises
    ------
    RanvierError
        If an option is not one of the above.
    """
    if config.regrow not in ("keep-zero", "published"):
        raise RanvierError(f"prune: got regrow {config.regrow!r}; needs 'keep-zero' or 'published'; pick one")
    keep = keep_fraction(config, epoch)
    # The diagonal of w_rec carries no synapse and must not use up places among the kept.
    effective = {"w_in": network.w_in, "w_rec": network.recurrent_weights()}
    masks = {name: magnitude_mask(effective[name], keep) for name in all_kept(network)}
    pruned = apply_masks(network, masks)
    return pruned, (masks if config.regrow == "keep-zero" else all_kept(network))


def apply_masks(network: Network, masks: Masks) -> Network:
    """The network with every weight outside its mask set to zero."""
    return replace(network, **{name: jnp.where(mask, getattr(network, name), 0.0) for name, mask in masks.items()})
