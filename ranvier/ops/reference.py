"""What the operators compute, in plain JAX (docs/equations.md, 32 and 35); `primitives.py` has their derivatives.

Lists are (Q, R, S): Q matrices, R lists for each of them, S entries a list, of which the first `count` are in use. An
id outside of [0, N) is ignored. Lists become dense rows here, so time and memory are those of a dense product.
"""

import jax
import jax.numpy as jnp


def gather(values, ids, count, matrix):
    """out[q, r] = sum over s < count of values[q, r, s] matrix[q, ids[q, r, s]]: (Q, R, C)."""
    rows = densify(values, ids, count, matrix.shape[1])
    return _product("qrn,qnc->qrc", rows, matrix.astype(values.dtype))


def scatter(values, ids, count, g, n_rows):
    """out[q, i] = sum over r and s < count with ids[q, r, s] = i of values[q, r, s] g[q, r]: (Q, n_rows, C)."""
    return _product("qrn,qrc->qnc", densify(values, ids, count, n_rows), g)


def dots(ids, count, matrix, g):
    """out[q, r, s] = <matrix[q, ids[q, r, s]], g[q, r]> for s < count, else 0: (Q, R, S)."""
    n_rows = matrix.shape[1]
    if n_rows == 0:
        return jnp.zeros(ids.shape, g.dtype)
    return at(_product("qnc,qrc->qrn", matrix.astype(g.dtype), g), ids, count)


def densify(values, ids, count, n_rows):
    """out[q, r, i] = sum over s < count with ids[q, r, s] = i of values[q, r, s]: (Q, R, n_rows)."""
    place = jnp.where(used(ids, count, n_rows), ids, n_rows)
    zero = jnp.zeros((*ids.shape[:-1], n_rows), values.dtype)
    q, r = jnp.ogrid[: ids.shape[0], : ids.shape[1]]
    q, r = (jnp.broadcast_to(x[..., None], ids.shape) for x in (q, r))
    return zero.at[q, r, place].add(values, mode="drop")


def at(rows, ids, count):
    """out[q, r, s] = rows[q, r, ids[q, r, s]] for s < count, else 0: (Q, R, S)."""
    n_rows = rows.shape[-1]
    named = jnp.take_along_axis(rows, jnp.clip(ids, 0, n_rows - 1), axis=-1)
    return jnp.where(used(ids, count, n_rows), named, 0)


def used(ids, count, n_rows):
    """Which slots are in use and name a row: (Q, R, S)."""
    slot = jnp.arange(ids.shape[-1]).reshape((1,) * count.ndim + (-1,))
    return (slot < count[..., None]) & (ids >= 0) & (ids < n_rows)


def spikes(state, threshold, near_threshold, capacity):
    """The spikes of each row of `state` (R, N), then its near-threshold neurons, as ids (R, capacity), and four counts.

    Counts (R,): listed spikes, listed near-threshold neurons, spikes that did not fit, near ones that did not.
    """
    spike = state > threshold
    near = (state <= threshold) & (state > near_threshold)
    n_spikes, n_near = spike.sum(-1, dtype=jnp.int32), near.sum(-1, dtype=jnp.int32)
    kept = jnp.minimum(n_spikes, capacity)
    kept_near = jnp.minimum(n_near, capacity - kept)
    place = jnp.where(spike, _rank(spike), kept[:, None] + _rank(near))
    # a lost spike has a place behind the list too
    place = jnp.where(spike | near, place, capacity)
    row = jnp.broadcast_to(jnp.arange(state.shape[0])[:, None], state.shape)
    neuron = jnp.broadcast_to(jnp.arange(state.shape[1], dtype=jnp.int32)[None], state.shape)
    ids = jnp.zeros((state.shape[0], capacity), jnp.int32).at[row, place].set(neuron, mode="drop")
    return ids, kept, kept_near, n_spikes - kept, n_near - kept_near


def _rank(mask):
    return jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1


def _product(axes, a, b):
    return jnp.einsum(axes, a, b, precision=jax.lax.Precision.HIGHEST)
