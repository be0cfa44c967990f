"""`lif_layer`: LIF neurons over all steps of a sequence, with surrogate gradients for the neurons on short lists."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ranvier.errors import RanvierError
from ranvier.ops.lif_loop import lif_loop
from ranvier.ops.spike_vector import SpikeVector, check_capacity
from ranvier.ops.surrogates import super_spike

_SUPER_SPIKE = super_spike()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LIFState:
    """What a layer hands to its next step: enough to go on as if a sequence had not been cut.

    Parameters
    ----------
    v : (..., N) voltages at the end of a step, before the reset
    spikes : SpikeVector of batch shape (...), the list of that step
    """

    v: jax.Array
    spikes: SpikeVector


def lif_layer(
    currents,
    w_rec=None,
    *,
    alpha,
    gain=20.0,
    threshold=1.0,
    near_threshold=0.9,
    capacity,
    surrogate=_SUPER_SPIKE,
    sampled=0,
    key=None,
    state=None,
):
    """A layer of LIF neurons over T steps (docs/equations.md, 36).

        v_t = alpha (v_{t-1} <= threshold ? v_{t-1} : 0) + gain (1 - alpha) (I_t + R_t)
        R_t = sum over spikes s of step t-1 of w_rec[ids[s]]        lists of step t: those of v_t

    Lists and their derivatives are those of `spikes_from_state`; the reset has no derivative.

    Parameters
    ----------
    currents : (T, ..., N) I_t, all that comes from outside, such as `spike_matmul` of lists over (T, ...)
    w_rec : (N, N) recurrent weights, source first, or None; a spike arrives one step after it was sent
    alpha : () or (N,) what is left of a voltage after a step, exp(-dt/tau_mem)
    gain : () or (N,) voltage that a constant current of 1 leads to
    threshold, near_threshold : () or (N,); near may be -inf
    capacity : room in the list of a step, static; spikes come first, near-threshold neurons get what is left
    surrogate : function of v - threshold; SuperSpike with beta 10 unless given
    sampled : neurons that get the room of near ones in each step, static, whatever their voltages: they follow one
        drawn by `key`. What the surrogate gives those below `near_threshold` counts N / sampled times, so that the mean
        over keys is the gradient of near_threshold -inf, as far as lists have room
    key : PRNG key, for `sampled`
    state : LIFState that an earlier call returned; voltages 0 and no spikes unless given

    Returns
    -------
    (SpikeVector of batch shape (T, ...), LIFState of the last step)

    Raises
    ------
    RanvierError
        `currents` have not two axes of real numbers; another array does not fit them; `capacity` or `sampled` is not a
        whole number, or there is no `key` for it; `state` is no LIFState, or one of other sizes.

    Notes
    -----
    Voltages are float32, or float64 where currents are, and recurrent weights are used in that type. A spike that does
    not fit in the list is not sent, has no derivative, and is counted in `n_lost` of its step; its neuron is reset all
    the same.

    References
    ----------
    Finkbeiner et al. 2023 (arXiv 2311.04386): alpha 0.95, gain 20.
    """
    currents = jnp.asarray(currents)
    if currents.ndim < 2 or not jnp.issubdtype(currents.dtype, jnp.floating):
        raise RanvierError(
            f"lif_layer: currents are {currents.dtype}{list(currents.shape)}; needs real numbers (T, ..., N); "
            "give them an axis of steps and one of neurons"
        )
    check_capacity("lif_layer", capacity)
    currents = currents.astype(jnp.promote_types(currents.dtype, jnp.float32))
    n_steps, at_step = currents.shape[0], currents.shape[1:]
    _check_sampled(sampled, key, at_step[-1])
    alpha, gain, threshold, near_threshold = (
        _per_neuron(name, x, at_step, currents.dtype)
        for name, x in (
            ("alpha", alpha),
            ("gain", gain),
            ("threshold", threshold),
            ("near_threshold", near_threshold),
        )
    )
    n = at_step[-1]
    if w_rec is None:
        w_rec = jnp.zeros((0, n), currents.dtype)
    elif jnp.shape(w_rec) != (n, n) or not jnp.issubdtype(jnp.result_type(w_rec), jnp.floating):
        raise RanvierError(
            f"lif_layer: w_rec is {jnp.shape(w_rec)} {jnp.result_type(w_rec)}, currents are {currents.shape}; "
            f"needs real numbers ({n}, {n}), a weight for each pair of neurons; change its shape or type"
        )
    if state is None:
        state = LIFState(jnp.zeros(at_step, currents.dtype), _silent(at_step, capacity, currents.dtype))
    else:
        _check_state(state, at_step, capacity, currents.dtype)
    rows = math.prod(at_step[:-1])
    window = None
    if key is not None and sampled and n_steps and rows:
        first = jax.random.randint(key, (1, n_steps, rows), 0, n, jnp.int32)
        window = jnp.stack([first, jnp.full_like(first, sampled)], axis=-1)
    last = state.spikes
    before = (
        state.v.reshape(1, rows, n),
        last.value.astype(currents.dtype).reshape(1, rows, capacity),
        last.ids.reshape(1, rows, capacity),
        *(x.reshape(1, rows) for x in (last.n_spikes, last.n_listed)),
    )
    value, factor, ids, n_spikes, n_near, n_lost, n_near_dropped, v = lif_loop(
        currents.reshape(1, n_steps, rows, n),
        jnp.asarray(w_rec, currents.dtype)[None],
        alpha,
        gain * (1 - alpha),
        threshold,
        near_threshold,
        before,
        surrogate,
        window,
    )
    lists = (ids, value, factor, n_spikes, n_near, n_lost, n_near_dropped)
    spikes = SpikeVector(*(x.reshape(n_steps, *at_step[:-1], *x.shape[3:]) for x in lists), n_neurons=n)
    return spikes, LIFState(v.reshape(at_step), spikes[-1] if n_steps else last)


def _per_neuron(name, x, at_step, dtype):
    """(N,) of a number or of one a neuron."""
    x = jnp.asarray(x, dtype)
    if x.shape not in ((), at_step[-1:]):
        raise RanvierError(
            f"lif_layer: {name} is {x.shape}, a step {at_step}; needs a number or ({at_step[-1]},); change its shape"
        )
    return jnp.broadcast_to(x, at_step[-1:])


def _check_sampled(sampled, key, n):
    """A number of neurons, and what draws them."""
    if isinstance(sampled, bool) or not isinstance(sampled, int) or not 0 <= sampled <= n:
        raise RanvierError(f"lif_layer: sampled is {sampled}; needs a whole number from 0 to {n}; change it")
    if sampled and key is None:
        raise RanvierError(f"lif_layer: sampled is {sampled}, key None; needs a key; pass jax.random.key(0)")


def _silent(at_step, capacity, dtype):
    """Lists of nobody."""
    whole, real = (jnp.zeros((*at_step[:-1], capacity), x) for x in (jnp.int32, dtype))
    nobody = jnp.zeros(at_step[:-1], jnp.int32)
    return SpikeVector(whole, real, real, nobody, nobody, nobody, nobody, at_step[-1])


def _check_state(state, at_step, capacity, dtype):
    """A loop over time needs a state of the very kind that it returns."""
    if not isinstance(state, LIFState):
        raise RanvierError(
            f"lif_layer: state is {type(state).__name__}; needs a LIFState; hand over what an earlier call returned"
        )
    got = (state.v.shape, state.v.dtype.name, state.spikes.shape, state.spikes.capacity)
    needs = (at_step, dtype.name, at_step, capacity)
    if got != needs:
        raise RanvierError(
            f"lif_layer: state has (v, type, spikes, capacity) {got}; needs {needs}; "
            "hand over what an earlier call of the same sizes returned"
        )
