"""The continuous scheme: steps only bucket the arrivals, spike times and delays stay real numbers.

Each step takes its bucket of arrivals, lets the cells advance (`lif.py`, `adex.py`), and puts the arrivals that their
spikes cause into the buckets of later steps (docs/equations.md, 5 to 15).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ranvier import adex, lif, surrogate
from ranvier.neurons import AdEx
from ranvier.plan import Plan
from ranvier.synapse import Membrane, moments, split

# Synapses whose arrivals are formed at a time: small enough for the cache, large enough to be worth a loop turn.
CHUNK = 1 << 18


class State(NamedTuple):
    """What one step hands to the next, in both schemes.

    `cells` begins with v (B, N); `ring` (R, B N, 3), or (R, B N, 2) on the grid, holds the coming arrivals; the step of
    the first spike is -1 while there is none.
    """

    cells: tuple[jax.Array, ...]
    ring: jax.Array | None
    first_step: jax.Array
    first_offset: jax.Array
    count: jax.Array
    overflow: jax.Array


def input_buckets(events, w, d, tau_syn, c, plan):
    """Moments (T, B, N, 3) of all input arrivals: they do not depend on the state, so they are formed in bulk.

    An arrival enters the bucket of its own time; those outside of [0, duration) are left out.
    """
    n_samples, n_events = events.time.shape
    n = w.shape[1]
    d_step, d_offset = split(d, plan.dt)
    chunk = max(1, min(n_events, CHUNK // max(1, n_samples * n)))
    n_chunks = -(-n_events // chunk)
    pad = ((0, 0), (0, n_chunks * chunk - n_events))
    time = jnp.pad(events.time, pad, constant_values=jnp.inf).reshape(n_samples, n_chunks, chunk).swapaxes(0, 1)
    channel = jnp.pad(events.channel, pad).reshape(n_samples, n_chunks, chunk).swapaxes(0, 1)
    sample = jnp.arange(n_samples)[:, None, None]
    target = jnp.arange(n)[None, None, :]
    dropped = plan.n_steps * n_samples * n

    @jax.checkpoint
    def arrivals(time, channel, w, d_offset):
        real = time < plan.n_steps * plan.dt
        step, offset = split(jnp.where(real, time, 0.0), plan.dt)
        x = offset.astype(w.dtype)[..., None] + d_offset[channel]
        carry = jnp.floor(jax.lax.stop_gradient(x) / plan.dt)
        h = (carry + 1.0) * plan.dt - x
        bucket = step[..., None] + d_step[channel] + carry.astype(jnp.int32)
        place = (bucket * n_samples + sample) * n + target
        place = jnp.where(real[..., None] & (bucket < plan.n_steps), place, dropped)
        return place, moments(w[channel], h, tau_syn[None], c[None])

    def add(buckets, chunk):
        place, values = arrivals(*chunk, w, d_offset)
        return buckets.at[place.reshape(-1)].add(values.reshape(-1, 3), mode="drop"), None

    buckets = jnp.zeros((dropped, 3), w.dtype)
    buckets, _ = jax.lax.scan(add, buckets, (time, channel))
    return buckets.reshape(plan.n_steps, n_samples, n, 3)


def run(layer, d_in, d_rec, events, plan: Plan):
    """Simulate (B, E) events through N neurons.

    Returns the last `State`, the spike lists (T, P) if recorded and the voltage (T, B, N) if traced.
    """
    n_samples, n = events.time.shape[0], layer.w_in.shape[1]
    dtype, dt = layer.w_in.dtype, plan.dt
    m = Membrane.of(layer.neuron, n, dtype)
    single = layer.neuron.single_spike
    cells = (adex if isinstance(layer.neuron, AdEx) else lif).Cells(layer.neuron, m, n_samples, plan)
    inputs = input_buckets(events, layer.w_in, d_in, m.tau_syn, m.c, plan)
    if d_rec is not None:
        d_step, d_offset = split(d_rec, dt)

    @jax.checkpoint
    def arrivals(spikes, step, w, d_offset):
        """Where in the ring (P, N), and with which moments (P, N, 3), the spikes of a step arrive."""
        x = spikes.g[:, None] + d_offset[spikes.neuron]
        carry = jnp.floor(jax.lax.stop_gradient(x) / dt).astype(jnp.int32)
        # never into the step that is being computed: a delay below dt is felt up to one step late
        ahead = jnp.maximum(d_step[spikes.neuron] + carry, 1)
        h = (ahead - d_step[spikes.neuron] + 1).astype(dtype) * dt - x
        place = ((step + ahead) % plan.n_slots * n_samples + spikes.sample[:, None]) * n + jnp.arange(n)[None, :]
        place = jnp.where(spikes.valid[:, None], place, plan.n_slots * n_samples * n)
        return place, moments(w[spikes.neuron], h, m.tau_syn, m.c)

    def body(state, xs):
        step, bucket = xs
        ring = state.ring
        if ring is not None:
            slot = step % plan.n_slots
            bucket = bucket + jax.lax.dynamic_index_in_dim(ring, slot, keepdims=False).reshape(n_samples, n, 3)
            ring = jax.lax.dynamic_update_index_in_dim(ring, jnp.zeros_like(ring[0]), slot, 0)
        silent = state.first_step >= 0 if single else jnp.zeros((n_samples, n), bool)
        moved, v_free, spikes, fired, missed = cells.advance(state.cells, bucket, silent)
        over = jnp.where(silent, 0.0, v_free - m.v_th)
        count = surrogate.count(fired[..., 0], over, jnp.where(silent, 0.0, dt / surrogate.UNIT).astype(dtype))
        if ring is not None:
            place, values = arrivals(spikes, step, layer.w_rec, d_offset)
            flat = ring.reshape(-1, 3).at[place.reshape(-1)].add(values.reshape(-1, 3), mode="drop")
            ring = flat.reshape(ring.shape)
        new = (state.first_step < 0) & (fired[..., 0] > 0)
        state = State(
            moved,
            ring,
            jnp.where(new, step, state.first_step),
            jnp.where(new, fired[..., 1], state.first_offset),
            state.count + count,
            state.overflow + missed,
        )
        return state, (spikes if plan.record else None, moved[0] if plan.trace else None)

    zero = jnp.zeros((n_samples, n), dtype)
    ring = None if d_rec is None else jnp.zeros((plan.n_slots, n_samples * n, 3), dtype)
    never = jnp.full((n_samples, n), -1, jnp.int32)
    start = State(cells.start(), ring, never, zero, zero, jnp.zeros(n_samples, jnp.int32))
    end, (lists, trace) = jax.lax.scan(body, start, (jnp.arange(plan.n_steps, dtype=jnp.int32), inputs))
    return end, lists, trace
