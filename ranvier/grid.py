"""The grid scheme, as in published networks: a spike belongs to a step, a delay is a whole number of steps.

    v[t+1] = (1 - S[t]) (beta v[t] + dt i[t]),   i[t+1] = alpha i[t] + arrivals[t],   S[t] = v[t] >= v_th

Derivatives follow the event rules (docs/equations.md, 17 to 21): the time of a spike is an unseen real number with
dt_s = -dv / v', and an arrival carries its shift in time beside its weight. Both have the value 0 and a derivative, so
forward and reverse mode are plain autodiff.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ranvier import surrogate
from ranvier.continuous import CHUNK, State
from ranvier.neurons import AdEx
from ranvier.spikes import spike_list
from ranvier.synapse import row

# Slope [1/ms] of the voltage at a spike below which its time has no usable derivative.
SLOPE_FLOOR = 1e-3


def shift(x):
    """0 with the derivative of x."""
    return x - stop_gradient(x)


def whole_steps(d, dt):
    """The delay `d` in steps, rounded to nearest."""
    return jnp.round(stop_gradient(d) / dt).astype(jnp.int32)


def input_arrivals(events, w, d, plan):
    """(sum of weights, sum of weight times shift) (T, B, N, 2) of the input arrivals of each step."""
    n_samples, n_events = events.time.shape
    n = w.shape[1]
    delay = whole_steps(d, plan.dt)
    dropped = plan.n_steps * n_samples * n
    chunk = max(1, min(n_events, CHUNK // max(1, n_samples * n)))
    n_chunks = -(-n_events // chunk)
    pad = ((0, 0), (0, n_chunks * chunk - n_events))
    time = jnp.pad(events.time, pad, constant_values=jnp.inf).reshape(n_samples, n_chunks, chunk).swapaxes(0, 1)
    channel = jnp.pad(events.channel, pad).reshape(n_samples, n_chunks, chunk).swapaxes(0, 1)
    sample, target = jnp.arange(n_samples)[:, None, None], jnp.arange(n)[None, None, :]

    @jax.checkpoint
    def arrivals(time, channel, w, d):
        real = time < plan.n_steps * plan.dt
        time = jnp.where(real, time, 0.0)
        bucket = jnp.floor(stop_gradient(time) / plan.dt).astype(jnp.int32)[..., None] + delay[channel]
        place = jnp.where(
            real[..., None] & (bucket < plan.n_steps), (bucket * n_samples + sample) * n + target, dropped
        )
        weight = w[channel]
        moved = weight * (shift(time).astype(w.dtype)[..., None] + shift(d)[channel])
        return place, jnp.stack([weight, moved], -1)

    def add(buckets, chunk):
        place, values = arrivals(*chunk, w, d)
        return buckets.at[place.reshape(-1)].add(values.reshape(-1, 2), mode="drop"), None

    buckets, _ = jax.lax.scan(add, jnp.zeros((dropped, 2), w.dtype), (time, channel))
    return buckets.reshape(plan.n_steps, n_samples, n, 2)


def run(layer, d_in, d_rec, events, plan):
    """Simulate (B, E) events through N neurons; returns as `ranvier.continuous.run`."""
    n_samples, n = events.time.shape[0], layer.w_in.shape[1]
    dtype, dt, neuron = layer.w_in.dtype, plan.dt, layer.neuron
    tau_mem, tau_syn, v_th = (row(x, n, dtype) for x in (neuron.tau_mem, neuron.tau_syn, neuron.v_th))
    alpha, beta = jnp.exp(-dt / tau_syn), jnp.exp(-dt / tau_mem)
    adex = isinstance(neuron, AdEx)
    names = ("a", "b", "tau_w", "delta_t", "z0")
    a, b, tau_w, delta_t, z0 = (row(getattr(neuron, x) if adex else 1.0, n, dtype) for x in names)  # LIF uses none
    inputs = input_arrivals(events, layer.w_in, d_in, plan)
    sample, index = (x.reshape(-1) for x in jnp.indices((n_samples, n), jnp.int32))

    def slope(v, i, z):
        rate = i - v / tau_mem
        return rate - z + delta_t * jnp.exp((v - 0.5) / delta_t) if adex else rate

    def euler(v, i, z):
        # a neuron that has fired its single spike stays above threshold: the exponential must stay finite there
        held = jnp.where(v < v_th, v, v_th)
        return v + dt * (slope(held, i, z) - (v - held) / tau_mem)

    def body(state, xs):
        step, arrived = xs
        v, i, *rest = state.cells
        z = rest[0] if adex else None
        silent = state.first_step >= 0 if neuron.single_spike else jnp.zeros(v.shape, bool)
        fired = (v >= v_th) & ~silent
        # slopes at a spike are taken at the threshold's side of it, where the exponential is still finite
        before = stop_gradient(slope(jnp.where(fired, v, 0.0), i, z))
        before = jnp.where(jnp.abs(before) < SLOPE_FLOOR, jnp.where(before < 0, -SLOPE_FLOOR, SLOPE_FLOOR), before)
        moved = jnp.where(fired, -shift(v - v_th) / before, 0.0)
        spikes, missed = spike_list(sample, index, fired.reshape(-1, 1), moved.reshape(-1, 1), plan.pool, n_samples)

        ring = state.ring
        if ring is not None:
            delay = whole_steps(d_rec, dt)[spikes.neuron]
            place = ((step + delay) % plan.n_slots * n_samples + spikes.sample[:, None]) * n + jnp.arange(n)[None, :]
            place = jnp.where(spikes.valid[:, None], place, plan.n_slots * n_samples * n)
            weight = layer.w_rec[spikes.neuron]
            values = jnp.stack([weight, weight * (spikes.g[:, None] + shift(d_rec)[spikes.neuron])], -1)
            ring = ring.reshape(-1, 2).at[place.reshape(-1)].add(values.reshape(-1, 2), mode="drop").reshape(ring.shape)
            slot = step % plan.n_slots
            arrived = arrived + jax.lax.dynamic_index_in_dim(ring, slot, keepdims=False).reshape(n_samples, n, 2)
            ring = jax.lax.dynamic_update_index_in_dim(ring, jnp.zeros_like(ring[0]), slot, 0)

        kick, late = arrived[..., 0], arrived[..., 1]
        after = stop_gradient(slope(jnp.zeros_like(v), i + kick, None if z is None else z + b))
        resting = jnp.where(fired, 0.0, v)
        free = euler(resting, i, z) if adex else beta * resting + dt * i
        v_next = jnp.where(fired, -after * moved, free - late)
        i_next = alpha * i + kick + late / tau_syn
        cells = (v_next, i_next)
        if z is not None:
            # v stays in the drive of z in the step of the spike, as published; there z' falls by a v_th and b / tau_w
            z_next = z + dt * (-z / tau_w + a * v) + jnp.where(fired, b + (b / tau_w + a * v_th) * moved, 0.0)
            cells = (v_next, i_next, z_next)

        over = jnp.where(silent, 0.0, v - v_th)
        count = surrogate.count(fired.astype(dtype), over, jnp.where(silent, 0.0, dt / surrogate.UNIT).astype(dtype))
        new = fired & (state.first_step < 0)
        state = State(
            cells,
            ring,
            jnp.where(new, step, state.first_step),
            jnp.where(new, moved, state.first_offset),
            state.count + count,
            state.overflow + missed,
        )
        return state, (spikes if plan.record else None, v_next if plan.trace else None)

    zero = jnp.zeros((n_samples, n), dtype)
    ring = None if d_rec is None else jnp.zeros((plan.n_slots, n_samples * n, 2), dtype)
    cells = (zero, zero, zero + z0) if adex else (zero, zero)
    never = jnp.full((n_samples, n), -1, jnp.int32)
    start = State(cells, ring, never, zero, zero, jnp.zeros(n_samples, jnp.int32))
    end, (lists, trace) = jax.lax.scan(body, start, (jnp.arange(plan.n_steps, dtype=jnp.int32), inputs))
    return end, lists, trace
