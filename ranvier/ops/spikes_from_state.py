"""Who fired and who nearly did: states and two thresholds become a `SpikeVector`."""

import jax
import jax.numpy as jnp

from ranvier.errors import RanvierError
from ranvier.ops import primitives
from ranvier.ops.spike_vector import SpikeVector, check_capacity, rows_of, take, used
from ranvier.ops.surrogates import super_spike

_SUPER_SPIKE = super_spike()


def spikes_from_state(state, threshold, near_threshold, capacity, surrogate=_SUPER_SPIKE) -> SpikeVector:
    """Neurons above `threshold`, then those between the two thresholds, as lists (docs/equations.md, 32 and 33).

        spike: v > threshold        near: near_threshold < v <= threshold
        d value[s] = surrogate(x[s]) dx[s]        x = (v - threshold)[ids]

    Parameters
    ----------
    state : (..., N) voltages v
    threshold, near_threshold : () or (N,) or any shape that broadcasts to that of `state`; near may be -inf
    capacity : room in a list, static; spikes come first, near-threshold neurons get what is left
    surrogate : function of v - threshold; SuperSpike with beta 10 unless given

    Returns
    -------
    SpikeVector of batch shape (...); float32 for states of 16 bit

    Raises
    ------
    RanvierError
        `state` has no axis or whole numbers, a threshold does not broadcast to it, or `capacity` is not a whole number.

    Notes
    -----
    With near_threshold -inf and a capacity of N the derivative is that of a dense surrogate. `factor` itself has no
    derivative; `value` has those of any order that the surrogate has.

    References
    ----------
    Finkbeiner et al. 2023 (arXiv 2311.04386).
    """
    state = jnp.asarray(state)
    if state.ndim == 0 or not jnp.issubdtype(state.dtype, jnp.floating):
        raise RanvierError(
            f"spikes_from_state: state is {state.dtype}{list(state.shape)}; needs real numbers (..., N); "
            "give it an axis of neurons"
        )
    check_capacity("spikes_from_state", capacity)
    batch, n = state.shape[:-1], state.shape[-1]
    state = state.astype(jnp.promote_types(state.dtype, jnp.float32))
    threshold = _fitting("threshold", threshold, state)
    near_threshold = _fitting("near_threshold", near_threshold, state)
    lists = primitives.spikes(
        state.reshape(rows_of(state.shape)), _rows(threshold, batch), _rows(near_threshold, batch), capacity
    )
    ids, n_spikes, n_near, n_lost, n_near_dropped = (x.reshape(*batch, *x.shape[1:]) for x in lists)
    x = take(state, ids) - _named(threshold, ids, state.shape)
    listed = used(n_spikes + n_near, capacity)
    factor = jnp.where(listed, surrogate(jnp.where(listed, x, 0)), 0).astype(state.dtype)
    value = with_slope(used(n_spikes, capacity).astype(state.dtype), factor, x)
    factor = jax.lax.stop_gradient(factor)
    return SpikeVector(ids, value, factor, n_spikes, n_near, n_lost, n_near_dropped, n)


@jax.custom_jvp
def with_slope(value, factor, x):
    """`value`, with the derivative factor dx. The factor is an operand, so that second derivatives see its own."""
    del factor, x
    return value


@with_slope.defjvp
def _with_slope_jvp(primals, tangents):
    # not the bare operand: a second derivative goes through both results
    return with_slope(*primals), primals[1] * tangents[2]


def _fitting(name, threshold, state):
    """The threshold in the type of the state, with as many axes where it has more than one."""
    threshold = jnp.asarray(threshold, state.dtype)
    try:
        fits = jnp.broadcast_shapes(threshold.shape, state.shape) == state.shape
    except ValueError:
        fits = False
    if not fits:
        raise RanvierError(
            f"spikes_from_state: {name} is {threshold.shape}, state {state.shape}; "
            "needs a number, one a neuron, or what broadcasts to the state; change its shape"
        )
    return threshold.reshape((1,) * (state.ndim - threshold.ndim) + threshold.shape)


def _rows(threshold, batch):
    """(R or 1, N or 1) for states whose batch axes are joined to R."""
    last = threshold.shape[-1]
    if all(length == 1 for length in threshold.shape[:-1]):
        return threshold.reshape(1, last)
    return jnp.broadcast_to(threshold, (*batch, last)).reshape(rows_of((*batch, last)))


def _named(threshold, ids, shape):
    """The threshold of each entry of a list, with its derivative."""
    if threshold.shape[-1] == 1 and shape[-1] != 1:
        return jnp.broadcast_to(threshold, (*threshold.shape[:-1], 1))
    return take(jnp.broadcast_to(threshold, shape), ids)
