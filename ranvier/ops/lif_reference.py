"""The LIF layer over time, its tangents and its walk back, in plain JAX (docs/equations.md, 36 and 37).

Arrays have Q groups of R samples over T steps: currents (Q, T, R, N), lists (Q, T, R, S), parameters (Q, 4, N) with the
rows decay, scale, threshold and near threshold, w_rec (Q, N, N) or, without recurrent weights, (Q, 0, N). Neurons that
fired in a step are bits: neuron n is bit n % 32 of word n // 32, (Q, T, R, W).

`ranvier.ops.lif_loop` has the derivatives of `forward`; `tangent` and `backward` are each other's transpose.
"""

import jax
import jax.numpy as jnp

from ranvier.ops import primitives, reference
from ranvier.ops.spike_vector import take, used

_WORD = 32


def forward(currents, w_rec, parameters, v0, values0, ids0, n_spikes0, window=None, *, capacity):
    """Lists and voltages of all steps, from those of the step before the first.

        v_t = decay (v_{t-1} > threshold ? 0 : v_{t-1}) + scale (I_t + R_t)

    Parameters
    ----------
    currents, w_rec, parameters : as above
    v0 : (Q, R, N) voltages of the step before the first
    values0, ids0, n_spikes0 : (Q, R, S), (Q, R, S), (Q, R) the spikes of that step, with recurrent weights
    window : (Q, T, R, 2) the first neuron of those that are near in a step whatever their voltage, and how many they
        are, going round; or None
    capacity : S

    Returns
    -------
    ids (Q, T, R, S); excess (Q, T, R, S), v - threshold of each entry, 0 where none is; n_spikes, n_near, n_lost,
    n_near_dropped (Q, T, R); fired (Q, T, R, W); v_last (Q, R, N)
    """
    decay, scale, threshold, near = _rows(parameters)
    flat = (v0.shape[0] * v0.shape[1], v0.shape[2])

    def step(before, at):
        v, values, ids, n_spikes = before
        current, window = at
        if w_rec.shape[1]:
            current = current + primitives.gather(values, ids, n_spikes, w_rec)
        v = decay * jnp.where(v > threshold, 0, v) + scale * current
        lowest = near if window is None else jnp.where(inside(window, v.shape[-1]), -jnp.inf, near)
        state, high, low = (jnp.broadcast_to(x, v.shape).reshape(flat) for x in (v, threshold, lowest))
        lists = primitives.spikes(state, high, low, capacity)
        ids, n_spikes, *others = (x.reshape(*v.shape[:2], *x.shape[1:]) for x in lists)
        there = used(n_spikes + others[0], capacity)
        excess = jnp.where(there, take(v, ids) - take(jnp.broadcast_to(threshold, v.shape), ids), 0)
        values = used(n_spikes, capacity).astype(v.dtype)
        return (v, values, ids, n_spikes), (ids, excess, n_spikes, *others, _packed(v > threshold))

    before = (v0, values0, ids0, n_spikes0)
    given = (jnp.moveaxis(currents, 1, 0), None if window is None else jnp.moveaxis(window, 1, 0))
    after, steps = jax.lax.scan(step, before, given)
    return [*(jnp.moveaxis(x, 0, 1) for x in steps), after[0]]


def tangent(
    ids, n_listed, factor, fired, w_rec, parameters, v0, ids0, n_listed0, d_currents, d_offset, d_v0, d_values0
):
    """Tangents of (excess, v_last), linear in the last four operands.

        dv_t = decay (fired in t-1 ? 0 : dv_{t-1}) + scale (dI_t + sum over listed s of t-1 of dvalue[s] w_rec[ids[s]])
        d excess_t[s] = dv_t[ids[s]] + d offset_t[s]        d value_t[s] = factor_t[s] d excess_t[s]

    Parameters
    ----------
    ids, n_listed, factor, fired : (Q, T, R, S), (Q, T, R), (Q, T, R, S), (Q, T, R, W)
    w_rec, parameters, v0 : as `forward` got them
    ids0, n_listed0 : (Q, R, S), (Q, R)
    d_currents, d_offset, d_v0, d_values0 : (Q, T, R, N), (Q, T, R, S), (Q, R, N), (Q, R, S)
    """
    decay, scale, threshold, _ = _rows(parameters)

    def step(before, at):
        dv, d_values, ids_before, n_before = before
        ids, n_listed, factor, fired_before, d_current, d_offset = at
        if w_rec.shape[1]:
            d_current = d_current + primitives.gather(d_values, ids_before, n_before, w_rec)
        dv = decay * jnp.where(unpacked(fired_before, dv.shape[-1]), 0, dv) + scale * d_current
        d_excess = jnp.where(used(n_listed, ids.shape[-1]), take(dv, ids) + d_offset, 0)
        return (dv, factor * d_excess, ids, n_listed), d_excess

    steps = (ids, n_listed, factor, _step_before(v0 > threshold, fired), d_currents, d_offset)
    before = (d_v0, d_values0, ids0, n_listed0)
    (d_v_last, *_), d_excess = jax.lax.scan(step, before, [jnp.moveaxis(x, 1, 0) for x in steps])
    return [jnp.moveaxis(d_excess, 0, 1), d_v_last]


def backward(ids, n_listed, factor, fired, w_rec, parameters, v0, ids0, n_listed0, ct_excess, ct_v_last):
    """The transpose of `tangent`: cotangents of (d_currents, d_offset, d_v0, d_values0).

    e_t[s] = ct_excess_t[s] + factor_t[s] <w_rec[ids[s]], dI_{t+1}>        dI_t = scale lam_t
    lam_t = decay (fired in t ? 0 : lam_{t+1}) + sum over listed s of e_t[s] at ids[s]
    """
    decay, scale, threshold, _ = _rows(parameters)
    n = v0.shape[-1]

    def step(after, at):
        passed, d_current = after
        ids, n_listed, factor, fired_before, e = at
        if w_rec.shape[1]:
            e = e + factor * primitives.dots(ids, n_listed, w_rec, d_current)
        e = jnp.where(used(n_listed, ids.shape[-1]), e, 0)
        lam = passed + reference.densify(e, ids, n_listed, n)
        d_current = scale * lam
        return (decay * jnp.where(unpacked(fired_before, n), 0, lam), d_current), (d_current, e)

    steps = (ids, n_listed, factor, _step_before(v0 > threshold, fired), ct_excess)
    after = (ct_v_last, jnp.zeros_like(ct_v_last))
    (d_v0, d_current), steps = jax.lax.scan(step, after, [jnp.moveaxis(x, 1, 0) for x in steps], reverse=True)
    d_values0 = (
        primitives.dots(ids0, n_listed0, w_rec, d_current) if w_rec.shape[1] else jnp.zeros_like(ct_excess[:, 0])
    )
    return [*(jnp.moveaxis(x, 0, 1) for x in steps), d_v0, d_values0]


def kept(currents, parameters, v0, fired):
    """What the reset before a step leaves of the voltages, (Q, T, R, N).

    `currents` have the recurrent ones in them, `fired` is that of `forward`.
    """
    decay, scale, threshold, _ = _rows(parameters)

    def step(v, at):
        current, fired_before = at
        left = jnp.where(unpacked(fired_before, v.shape[-1]), 0, v)
        return decay * left + scale * current, left

    steps = [jnp.moveaxis(x, 1, 0) for x in (currents, _step_before(v0 > threshold, fired))]
    return jnp.moveaxis(jax.lax.scan(step, v0, steps)[1], 0, 1)


def inside(window, n):
    """(..., N) whether a neuron is in a window (..., 2)."""
    neuron = jnp.arange(n, dtype=window.dtype).reshape((1,) * (window.ndim - 1) + (-1,))
    return (neuron - window[..., :1]) % n < window[..., 1:]


def n_words(n):
    """Words that hold a bit for each of `n` neurons."""
    return -(-n // _WORD)


def unpacked(words, n):
    """(..., N) whether the bit of each neuron is set, for `words` (..., W)."""
    bits = (words[..., None] >> jnp.arange(_WORD, dtype=jnp.uint32).reshape((1,) * words.ndim + (-1,))) & 1
    return bits.reshape(*words.shape[:-1], words.shape[-1] * _WORD)[..., :n] != 0


def _packed(mask):
    n = mask.shape[-1]
    mask = jnp.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, n_words(n) * _WORD - n)])
    bits = mask.reshape(*mask.shape[:-1], n_words(n), _WORD).astype(jnp.uint32)
    place = jnp.arange(_WORD, dtype=jnp.uint32).reshape((1,) * mask.ndim + (-1,))
    return jnp.sum(bits << place, axis=-1, dtype=jnp.uint32)


def _step_before(fired0, fired):
    """Who fired in the step before each step, as bits."""
    return jnp.concatenate([_packed(fired0)[:, None], fired], axis=1)[:, :-1]


def _rows(parameters):
    """decay, scale, threshold and near threshold, each (Q, 1, N)."""
    return (parameters[:, k, None] for k in range(4))
