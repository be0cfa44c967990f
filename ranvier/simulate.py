"""`simulate`: a layer through a recording, in one differentiable call."""

from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Integral, Real

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ranvier import continuous, crossing, grid, native_positions
from ranvier import native as native_backend
from ranvier.errors import RanvierError
from ranvier.events import Events, n_steps
from ranvier.layer import Layer
from ranvier.neurons import LIF, AdEx
from ranvier.plan import Plan
from ranvier.space import Euclidean
from ranvier.spikes import by_time, record

SCHEMES = ("continuous", "grid")
BACKENDS = ("auto", "reference", "native")
# Slots of the delay ring come in this many, so that a slightly longer delay does not compile anew.
SLOTS = 16
# Records a sample when no capacity is given: for a mean rate [1/ms], and at least this many.
RECORD_RATE, RECORD_LEAST = 0.2, 4096


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Simulation:
    """What came out of `simulate`.

    Parameters
    ----------
    spike_count : (B, N)
        Spikes of each neuron; the derivative is the surrogate of Eq. 16.
    first_spike : (B, N) [ms]
        Time of the first spike, +inf if there is none (its cotangent counts as 0). The derivative is exact; in the grid
        scheme it follows the event rules of Eq. 18 to 21, as do those of `v`, `events` and `trace`.
    v : (B, N)
        Voltage at T dt; exact derivative.
    events : Events
        The spikes, (B, capacity), whose times carry exact derivatives, so layers stack.
    overflow : (B,) int32
        What did not fit: spikes beyond `capacity`, which are missing in `events`; neurons beyond `step_capacity`, not
        looked at; LIF neurons that would fire a fifth time in one step. The last two may fire late. 0 is right; where
        spikes have no record, gradients of the compiled kernels lack what those have to say.
    delay_clipped : () int32
        How many delays lay outside of [0, max_delay]; they act at the bound and have no derivative.
    trace : (B, T, N), or None
        Voltage at the end of each step, if asked for.
    """

    spike_count: jax.Array
    first_spike: jax.Array
    v: jax.Array
    events: Events
    overflow: jax.Array
    delay_clipped: jax.Array
    trace: jax.Array | None = None


def simulate(
    layer: Layer,
    events: Events,
    *,
    duration: float,
    dt: float,
    max_delay: float | None = None,
    scheme: str = "continuous",
    backend: str = "auto",
    capacity: int | None = None,
    step_capacity: int | None = None,
    trace: bool = False,
    positions_inside: bool = False,
) -> Simulation:
    """Simulate N neurons of `layer` on a batch of `events` (B, E).

    Works under `jax.jit`, `jax.grad`, `jax.jvp`, `jax.vmap` (over events and over the layer's arrays), `jax.lax.scan`
    and `jax.checkpoint`; compiled also under `jax.shard_map`, with the batch split and the layer replicated.

    Parameters
    ----------
    layer : Layer
        Weights (M, N), delays, neuron model; its dtype is that of the computation.
    events : Events
        Inputs, `n_channels` = M. Arrivals at or after T dt are outside of the run.
    duration, dt : float [ms]
        T = ceil(duration / dt) steps. In the continuous scheme dt bounds how exactly several arrivals within one step
        are told apart; spike times and delays are not rounded to it, but a recurrent delay below dt may act late.
    max_delay : float [ms], optional
        Longest delay that the ring of coming arrivals holds; longer ones act as this one and are counted in
        `delay_clipped`.
        None takes it from the delays, which must then be known (not traced).
    scheme : "continuous" or "grid"
        Exact times (default), or the published scheme with everything rounded to steps.
    backend : "auto", "reference" or "native"
        The reference, written in JAX, defines the result. "native" is compiled code for LIF in both schemes and AdEx on
        the grid: the same result to rounding, many times faster. Its reverse mode is compiled too; forward mode
        computes its tangents by the reference, and there are no second derivatives. It looks at every neuron and keeps
        every spike, so `step_capacity` is of no concern to it. "auto" is "native" where that can run, else the
        reference.
    capacity : int, optional
        Spike records a sample; 0 for none (nothing is then counted as lost for want of records). None has room for a
        mean of 200 Hz, or one spike a neuron with `single_spike`. The native backend needs records to go back along and
        makes room for as many when it is 0.
    step_capacity : int, optional
        Neurons looked at in one step, a sample (shared by the samples of the batch). None is N: all of them, slow.
    trace : bool
        Return the voltage at the end of each step.
    positions_inside : bool
        Let the compiled kernels form delays from positions: a layer then holds M k + N k numbers, and no matrix of
        delays or of their gradients exists outside of the kernels (but for one where `max_delay` is None). Needs
        `space.Euclidean` delays without slack. The same result to rounding; the reference forms the delays as ever.

    Returns
    -------
    Simulation

    Raises
    ------
    RanvierError
        If shapes, channels, times or options do not fit; the message says which.

    References
    ----------
    `docs/equations.md`, Eq. 1 to 23; the adjoint is Eq. 26 to 31.
    """
    _check(layer, events, scheme, backend, capacity, step_capacity)
    why = "" if backend == "reference" else native_backend.refusal(layer, scheme)
    if backend == "native" and why:
        raise RanvierError(f"simulate: got backend 'native', but {why}; use backend='reference'")
    steps = n_steps(duration, dt)
    n_samples, n = events.time.shape[0], layer.w_in.shape[1]
    if positions_inside and (unfit := native_positions.refusal(layer)):
        raise RanvierError(
            f"simulate: got positions_inside, but {unfit}; needs space.Euclidean without slack for all delays; "
            "leave positions_inside out"
        )
    inside = positions_inside and why is None
    d_in, d_rec = (layer.d_in, layer.d_rec) if inside else layer.delays()
    _check_delays(layer, d_in, d_rec)
    if max_delay is None:
        max_delay = _longest(*layer.delays()) if inside else _longest(d_in, d_rec)
        # kernels may round a distance otherwise, and none is to be cut
        max_delay *= 1 + 1e-6 if inside else 1
    elif not isinstance(max_delay, Real) or not 0 <= max_delay < float("inf"):
        raise RanvierError(f"simulate: got max_delay {max_delay!r}; it must be a finite number >= 0 (ms)")
    if capacity is None:
        capacity = _room(layer.neuron, n, steps, dt)
    plan = Plan(
        dt=float(dt),
        n_steps=steps,
        n_slots=-(-(int(max_delay / dt) + 2) // SLOTS) * SLOTS,
        pool=n_samples * min(n, step_capacity or n),
        record=capacity > 0,
        trace=trace,
    )
    # what the delays are made of stays outside: one compiled program serves every embedding
    layer, longest = replace(layer, d_in=None, d_rec=None), jnp.asarray(max_delay, jnp.result_type(layer.w_in))
    return _simulate(layer, d_in, d_rec, events, longest, plan, scheme, capacity, why is None)


@partial(jax.jit, static_argnames=("plan", "scheme", "capacity", "native"))
def _simulate(layer, d_in, d_rec, events, max_delay, plan, scheme, capacity, native):
    dtype = jnp.result_type(layer.w_in)
    d_in, outside = _clip(d_in, max_delay)
    if d_rec is not None:
        d_rec, more = _clip(d_rec, max_delay)
        outside = outside + more
    n_samples, n = events.time.shape[0], layer.w_in.shape[1]
    if native:
        room = _room(layer.neuron, n, plan.n_steps, plan.dt)
        out = native_backend.run(layer, scheme, d_in, d_rec, events, plan, capacity or room, max_delay)
        count, v, overflow = out["count"], out["v"], out["overflow"]
        trace = out["trace"] if plan.trace else None
        first_step, first_offset = out["first_step"], out["first_offset"]
        if plan.record:
            here = jnp.arange(capacity)[None, :] < out["n_spikes"][:, None]
            times = out["spike_step"].astype(v.dtype) * plan.dt + out["spike_g"]
            times = jnp.where(here, times, jnp.inf)
            spikes = by_time(times, jnp.where(here, out["spike_neuron"], 0), n)
    else:
        run = continuous.run if scheme == "continuous" else grid.run
        end, lists, trace = run(layer, d_in, d_rec, events, plan)
        count, v, overflow = end.count, end.cells[0], end.overflow
        first_step, first_offset = end.first_step, end.first_offset
        if plan.record:
            spikes, unrecorded = record(lists, plan.dt, n_samples, n, capacity)
            overflow = overflow + unrecorded
        trace = None if trace is None else jnp.swapaxes(trace, 0, 1)
    if not plan.record:
        spikes = Events(jnp.zeros((n_samples, 0), dtype), jnp.zeros((n_samples, 0), jnp.int32), n)
    first = jnp.where(first_step >= 0, first_step.astype(dtype) * plan.dt + first_offset, jnp.inf)
    return Simulation(count, first, v, spikes, overflow, outside, trace)


def _clip(d, longest):
    """`d` within [0, longest] and how many lay outside; a delay on a bound keeps its whole derivative.

    Positions stay: the kernels cut what they form.
    """
    if isinstance(d, Euclidean):
        return d, native_positions.beyond(d, longest)
    low, high = d < 0, d > longest
    return jnp.where(low, 0.0, jnp.where(high, longest, d)), (low | high).sum(dtype=jnp.int32)


def _room(neuron, n, steps, dt):
    """Records a sample that are enough for nearly everything; for single spikes, for everything."""
    most = n if neuron.single_spike else crossing.SPIKES_PER_STEP * n * steps
    return min(most, max(RECORD_LEAST, int(n * steps * dt * RECORD_RATE)))


def _longest(*delays):
    if any(isinstance(d, Tracer) for d in delays):
        raise RanvierError("simulate: got delays under a JAX transformation and no max_delay; give max_delay in ms")
    return max(0.0, *(float(d.max()) for d in delays if d is not None and d.size))


def _check(layer, events, scheme, backend, capacity, step_capacity):
    if not isinstance(layer, Layer):
        raise RanvierError(f"simulate: got a layer of type {type(layer).__name__}; give ranvier.Layer")
    if not isinstance(events, Events):
        raise RanvierError(f"simulate: got events of type {type(events).__name__}; give ranvier.Events")
    shape = jnp.shape(layer.w_in)
    if len(shape) != 2 or 0 in shape:
        raise RanvierError(f"simulate: got w_in of shape {shape}; it must be (M, N), inputs first, and not empty")
    dtype = jnp.result_type(layer.w_in)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise RanvierError(f"simulate: got w_in of dtype {dtype}; give float32 or float64")
    if jnp.ndim(events.time) != 2 or jnp.shape(events.time) != jnp.shape(events.channel):
        raise RanvierError(
            f"simulate: got event times {jnp.shape(events.time)} and channels {jnp.shape(events.channel)}; "
            "both must be (B, E), see Events.from_times"
        )
    kinds = jnp.result_type(events.time), jnp.result_type(events.channel)
    if not jnp.issubdtype(kinds[0], jnp.floating) or not jnp.issubdtype(kinds[1], jnp.integer):
        raise RanvierError(
            f"simulate: got event times of dtype {kinds[0]} and channels of dtype {kinds[1]}; "
            "times must be floating and channels integer, see Events.from_times"
        )
    if events.n_channels != shape[0]:
        raise RanvierError(
            f"simulate: got events of {events.n_channels} channels and w_in of shape {shape}; w_in must have "
            f"{events.n_channels} rows"
        )
    if layer.w_rec is not None and jnp.shape(layer.w_rec) != (shape[1], shape[1]):
        raise RanvierError(f"simulate: got w_rec of shape {jnp.shape(layer.w_rec)}; it must be {(shape[1], shape[1])}")
    if layer.w_rec is not None and jnp.result_type(layer.w_rec) != dtype:
        raise RanvierError(f"simulate: got w_rec of dtype {jnp.result_type(layer.w_rec)}; it must be {dtype} like w_in")
    if layer.w_rec is None and layer.d_rec is not None:
        raise RanvierError("simulate: got d_rec without w_rec; give both or neither")
    neuron = layer.neuron
    if not isinstance(neuron, LIF | AdEx):
        raise RanvierError(f"simulate: got a neuron of type {type(neuron).__name__}; give ranvier.LIF or ranvier.AdEx")
    for field in fields(neuron):
        parameter = jnp.shape(getattr(neuron, field.name))
        if parameter not in ((), (shape[1],)):
            raise RanvierError(f"simulate: got {field.name} of shape {parameter}; it must be () or {(shape[1],)}")
    if isinstance(neuron, AdEx) and not (isinstance(neuron.substeps, Integral) and neuron.substeps >= 1):
        raise RanvierError(f"simulate: got substeps {neuron.substeps!r}; it must be a whole number >= 1")
    if scheme not in SCHEMES:
        raise RanvierError(f"simulate: got scheme {scheme!r}; use one of {', '.join(SCHEMES)}")
    if backend not in BACKENDS:
        raise RanvierError(f"simulate: got backend {backend!r}; use one of {', '.join(BACKENDS)}")
    for name, value, least in (("capacity", capacity, 0), ("step_capacity", step_capacity, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
            raise RanvierError(f"simulate: got {name} {value!r}; it must be a whole number >= {least}")


def _check_delays(layer, d_in, d_rec):
    for name, d, w in (("d_in", d_in, layer.w_in), ("d_rec", d_rec, layer.w_rec)):
        if d is not None and d.shape != jnp.shape(w):
            raise RanvierError(f"simulate: got {name} of shape {d.shape}; it must be {jnp.shape(w)} like the weights")
