"""Input events become lists: one of each step and sample."""

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.errors import RanvierError
from ranvier.events import Events, n_steps
from ranvier.ops.spike_vector import SpikeVector, check_capacity, used


def spikes_from_events(events, *, duration, dt, capacity, dtype=jnp.float32) -> SpikeVector:
    """The events of each step as a list of spikes (docs/equations.md, 32).

        step = floor(time / dt),  T = n_steps(duration, dt)

    Parameters
    ----------
    events : Events (B, E) of M channels
    duration : () [ms] events at or after it are no spikes of any step
    dt : () [ms]
    capacity : room in the list of a step, static
    dtype : of the values

    Returns
    -------
    SpikeVector of batch shape (T, B) and M neurons, without near-threshold neurons

    Raises
    ------
    RanvierError
        `events` are no Events, `duration` or `dt` is no positive number, `capacity` is not a whole number from 0 on.

    Notes
    -----
    A list is in the order of its events, not of their channels; two events of a channel in one step are two entries,
    which add up. The first `capacity` events of a step are on its list, `n_lost` counts the rest. There is no
    derivative for the times.
    """
    if not isinstance(events, Events):
        raise RanvierError(
            f"spikes_from_events: events are {type(events).__name__}; needs Events; use Events.from_times"
        )
    check_capacity("spikes_from_events", capacity)
    steps = n_steps(duration, dt)
    n_rows, n_events = events.time.shape
    step = _step(jnp, events.time, duration, dt, steps)
    # Rows are sorted, so the events of a step are a range of a row: those from before[t] to before[t + 1].
    search = jax.vmap(lambda row: jnp.searchsorted(row, jnp.arange(steps + 1), method="scan_unrolled"), out_axes=1)
    before = search(step).astype(jnp.int32)
    count = before[1:] - before[:-1]
    kept = jnp.minimum(count, capacity)
    there = used(kept, capacity)
    place = before[:-1, :, None] + jnp.arange(capacity, dtype=jnp.int32)[None, None, :]
    row = jnp.arange(events.time.shape[0])[None, :, None]
    ids = events.channel.at[row, place].get(mode="fill", fill_value=0)
    value, zero = there.astype(dtype), jnp.zeros_like(kept)
    return SpikeVector(jnp.where(there, ids, 0), value, value, kept, zero, count - kept, zero, events.n_channels)


def events_a_step(times, offsets, duration, dt) -> int:
    """The most events that a step of a sample has, on the host.

    Parameters
    ----------
    times : (S,) [ms] of all samples, one after the other
    offsets : (n + 1,) sample i has the events `offsets[i]` to `offsets[i + 1]`
    duration, dt : () [ms]

    Returns
    -------
    int : the `capacity` with which `spikes_from_events` loses none of them
    """
    steps = n_steps(duration, dt)
    step = _step(np, np.asarray(times), duration, dt, steps)
    sample = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    inside = step < steps
    return int(np.bincount((sample * steps + step)[inside], minlength=1).max())


def _step(xp, time, duration, dt, steps):
    """The step of each event, `steps` for those that come too late, as whole numbers."""
    # Rounding may lift an event just below `duration` into step T.
    step = xp.minimum(xp.floor(time / dt), steps - 1)
    return xp.where(time < duration, step, steps).astype(np.int32)
