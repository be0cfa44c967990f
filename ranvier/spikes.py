"""The spikes of one step as a short list, and the record of all of them.

A step looks at few neurons: those are compacted from (B, N) to a list of P entries shared by the samples of the batch
(P = B times the capacity a sample), in the order of sample and neuron, and the list of their spikes has a few entries
more. What does not fit is counted a sample.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ranvier.events import Events

# Entries of a step's spike list beyond one for each neuron looked at: room for those that fire twice.
SPARE = 64


class SpikeList(NamedTuple):
    """Spikes of a step, arrays of one length: sample, neuron, offset g [ms] in the step, whether the entry is one."""

    sample: jax.Array
    neuron: jax.Array
    g: jax.Array
    valid: jax.Array


def compact(mask, size):
    """Flat positions of the first `size` true entries of `mask` (any shape), and which of them are real."""
    flat = mask.reshape(-1)
    if size >= flat.size:
        return jnp.arange(flat.size, dtype=jnp.int32), flat
    rank = jnp.cumsum(flat, dtype=jnp.int32) - 1
    place = jnp.where(flat, rank, size)
    ids = jnp.zeros(size, jnp.int32).at[place].set(jnp.arange(flat.size, dtype=jnp.int32), mode="drop")
    return ids, jnp.arange(size) < rank[-1] + 1


def lost(sample, valid, kept, n_samples):
    """How many of the `valid` entries lie behind the first `kept` of them, for each sample (B,)."""
    rank = jnp.cumsum(valid, dtype=jnp.int32)
    return jnp.zeros(n_samples, jnp.int32).at[sample].add((valid & (rank > kept)).astype(jnp.int32))


def spike_list(sample, neuron, fired, g, size, n_samples):
    """The spikes of a step from `fired` and `g` (P, S), up to S for each of P neurons, and how many were lost (B,)."""
    room = min(fired.size, size + SPARE)
    slot, valid = compact(fired, room)
    source = slot // fired.shape[1]
    spikes = SpikeList(sample[source], neuron[source], g.reshape(-1)[slot], valid)
    if room == fired.size:
        return spikes, jnp.zeros(n_samples, jnp.int32)
    return spikes, lost(jnp.repeat(sample, fired.shape[1]), fired.reshape(-1), room, n_samples)


def record(lists, dt, n_samples, n_neurons, capacity):
    """`Events` of shape (B, capacity) from the lists of all steps, sorted by time, and how many did not fit (B,).

    `lists` is a `SpikeList` of arrays (T, P); times keep their derivatives.
    """
    times, channels, unrecorded = rows(lists, dt, n_samples, capacity)
    return by_time(times, channels, n_neurons), unrecorded


def rows(lists, dt, n_samples, capacity):
    """As `record`: times and channels (B, capacity), in the order of steps, neurons and times, and what did not fit."""
    n_steps, size = lists.valid.shape
    here = (lists.sample[:, None, :] == jnp.arange(n_samples)[None, :, None]) & lists.valid[:, None, :]
    per_step = here.sum(-1, dtype=jnp.int32)
    before = jnp.cumsum(per_step, axis=0) - per_step
    # the list of a step is ordered by sample: the rank in it is the position less that of the sample's first spike
    first = jnp.cumsum(per_step, axis=1) - per_step
    place = before - first
    step = jnp.arange(n_steps)[:, None]
    rank = jnp.cumsum(lists.valid, axis=1, dtype=jnp.int32) - 1
    column = jnp.where(lists.valid, place[step, lists.sample] + rank, capacity)
    time = step.astype(lists.g.dtype) * dt + lists.g
    times = jnp.full((n_samples, capacity), jnp.inf, time.dtype).at[lists.sample, column].set(time, mode="drop")
    channels = jnp.zeros((n_samples, capacity), jnp.int32).at[lists.sample, column].set(lists.neuron, mode="drop")
    return times, channels, jnp.maximum(per_step.sum(0, dtype=jnp.int32) - capacity, 0)


def by_time(times, channels, n_neurons):
    """`Events` of rows in any order, sorted."""
    order = jnp.argsort(jax.lax.stop_gradient(times), axis=1, stable=True)
    return Events(jnp.take_along_axis(times, order, 1), jnp.take_along_axis(channels, order, 1), n_neurons)
