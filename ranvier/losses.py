"""What training minimises: cross entropy, penalties on rates and on lost spikes; and where the true class stands."""

import jax
import jax.numpy as jnp

from ranvier.errors import RanvierError
from ranvier.ops import SpikeVector


def sample_mean(values: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean over the samples of a batch, padding left out.

        mean = sum_b weight_b values_b / sum_b weight_b

    Parameters
    ----------
    values : (B,)
    weight : (B,) or None
        1 for a sample, 0 for a row that only fills the last batch up; None: all 1.

    Returns
    -------
    () jax.Array
    """
    if weight is None:
        return jnp.mean(values)
    # A row of padding may hold anything, so it is replaced before the product: 0 x inf would be NaN.
    total = jnp.sum(jnp.where(weight > 0, values, 0.0) * weight)
    return total / jnp.maximum(jnp.sum(weight), 1.0)


def sample_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of each sample.

        L_b = log sum_k exp(z_bk) - z_b,label

    Parameters
    ----------
    logits : (B, K)
    labels : (B,) int

    Returns
    -------
    (B,) jax.Array

    Raises
    ------
    RanvierError
        If the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise RanvierError(
            f"cross_entropy: got logits {logits.shape} and labels {labels.shape}; needs (B, K) and (B,); "
            "pass one label a sample"
        )
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


def cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean cross entropy over the samples.

        L = mean_b ( log sum_k exp(z_bk) - z_b,label )

    Parameters
    ----------
    logits : (B, K)
    labels : (B,) int
    weight : (B,) or None
        See `sample_mean`.

    Returns
    -------
    () jax.Array

    Raises
    ------
    RanvierError
        If the shapes do not fit.
    """
    return sample_mean(sample_cross_entropy(logits, labels), weight)


def rate_penalty(
    spike_count: jax.Array,
    duration: float,
    target_hz: float,
    population: bool = False,
    weight: jax.Array | None = None,
) -> jax.Array:
    """Squared distance of the firing rates from a target.

        R = mean_b sum_n ( count_bn / T - target )^2                 population=False
        R = mean_b ( mean_n count_bn / T - target )^2                population=True

    Parameters
    ----------
    spike_count : (B, N)
    duration : () [ms]
        T.
    target_hz : () [Hz]
        Real Hz: 10 Hz is 0.01 spikes per ms.
    population : bool
        Hold the mean over the neurons at the target, and leave each neuron free.
    weight : (B,) or None
        See `sample_mean`.

    Returns
    -------
    () [1/ms^2] jax.Array
    """
    excess = spike_count / duration - target_hz / 1000.0
    if population:
        return sample_mean(jnp.mean(excess, axis=1) ** 2, weight)
    return sample_mean(jnp.sum(excess**2, axis=1), weight)


def lost_spikes(spikes: SpikeVector) -> jax.Array:
    """Spikes that found no room in the list of a step, mean over the steps (docs/equations.md, 42).

        L_b = mean_t lost_tb        d L_b = mean_t ( lost_tb > 0 ? sum_s d value_tbs : 0 )

    Parameters
    ----------
    spikes : SpikeVector of batch shape (T, B)

    Returns
    -------
    (B,) jax.Array
    """
    listed = jnp.sum(spikes.value, axis=-1)
    slope = jnp.where(spikes.n_lost > 0, listed - jax.lax.stop_gradient(listed), 0)
    return jnp.mean(spikes.n_lost + slope, axis=0)


def true_rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Place of the true class among the logits: 0 is a top-1 hit, 0 to 2 a top-3 hit.

    Ties go to the lower class, as in argmax; a row with a NaN is a miss at every place.

    Parameters
    ----------
    logits : (B, K)
    labels : (B,) int

    Returns
    -------
    (B,) int32 jax.Array
    """
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)
    before = jnp.arange(logits.shape[1])[None, :] < labels[:, None]
    rank = jnp.sum((logits > chosen) | ((logits == chosen) & before), axis=1)
    return jnp.where(jnp.any(jnp.isnan(logits), axis=1), logits.shape[1], rank).astype(jnp.int32)
