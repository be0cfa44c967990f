"""The compiled backend: a whole sequence of a LIF layer, forward and backward, in one call (continuous scheme, CPU).

It computes what `continuous.py` defines. Its derivative is a hand-written adjoint, so it has reverse mode only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ranvier import kernels, surrogate
from ranvier.errors import RanvierError
from ranvier.neurons import LIF


def refusal(layer, scheme, trace=False):
    """One line why the compiled backend cannot run this, or None."""
    status = kernels.status()
    if not status.found:
        return status.reason
    if scheme != "continuous" or not isinstance(layer.neuron, LIF):
        return "the compiled kernels have LIF neurons in the continuous scheme only"
    if trace:
        return "the compiled kernels keep no voltage trace"
    if jax.default_backend() != "cpu":
        return f"the compiled kernels run on the CPU, and JAX computes on {jax.default_backend()}"
    return None


def run(layer, d_in, d_rec, events, plan, records):
    """Simulate (B, E) events through N neurons with room for `records` spikes a sample.

    Returns a dict of arrays: `count`, `first_offset`, `v` (B, N), `first_step` (B, N), the records `spike_g`,
    `spike_step`, `spike_neuron` (B, C) in the order of steps, `n_spikes` and `overflow` (B,).
    """
    kernels.register()
    w_in = layer.w_in
    n, dtype = w_in.shape[1], w_in.dtype
    none = jnp.zeros((0, n), dtype)
    neuron = layer.neuron
    parameters = [jnp.broadcast_to(jnp.asarray(x, dtype), (n,)) for x in (neuron.tau_mem, neuron.tau_syn, neuron.v_th)]
    w_rec, d_rec = (none, none) if d_rec is None else (layer.w_rec, d_rec)
    op = _sequence(plan.dt, plan.n_steps, bool(neuron.single_spike), records)
    time = events.time.astype(dtype)
    return op(time, events.channel.astype(jnp.int32), w_in, d_in, w_rec, d_rec, *parameters)


_FLOATS = ("count", "first_offset", "v", "v_free", "spike_g", "spike_state")
_INTS = ("spike_step", "spike_neuron", "n_spikes", "first_step", "overflow")
# What backward reads of forward's results, in the order of the handler.
_KEPT = ("v_free", "spike_g", "spike_state", "spike_step", "spike_neuron", "n_spikes", "first_step")


@functools.cache
def _sequence(dt, n_steps, single, records):
    attributes = {"dt": np.float64(dt), "n_steps": np.int64(n_steps), "single": bool(single)}

    def forward(*inputs):
        time, w_in = inputs[0], inputs[2]
        b, n, dtype = time.shape[0], w_in.shape[1], w_in.dtype
        shapes = {
            "count": (b, n),
            "first_offset": (b, n),
            "v": (b, n),
            "v_free": (b, n_steps, n),
            "spike_g": (b, records),
            "spike_state": (b, records, 5),
            "spike_step": (b, records),
            "spike_neuron": (b, records),
            "n_spikes": (b,),
            "first_step": (b, n),
            "overflow": (b,),
        }
        outputs = [jax.ShapeDtypeStruct(shapes[x], dtype) for x in _FLOATS]
        outputs += [jax.ShapeDtypeStruct(shapes[x], jnp.int32) for x in _INTS]
        call = jax.ffi.ffi_call(kernels.target("lif_forward", dtype), outputs, vmap_method="sequential")
        return dict(zip((*_FLOATS, *_INTS), call(*inputs, **attributes), strict=True))

    def public(results):
        return {k: x for k, x in results.items() if k not in ("v_free", "spike_state")}

    @jax.custom_vjp
    def op(*inputs):
        return public(forward(*inputs))

    def op_forward(*inputs):
        if any(x.perturbed for x in inputs[6:]):
            raise RanvierError(
                "simulate: got a derivative for tau_mem, tau_syn or v_th with backend 'native', which has none; "
                "use backend='reference'"
            )
        values = [x.value for x in inputs]
        results = forward(*values)
        return public(results), (values, [results[k] for k in _KEPT])

    def op_backward(kept, cotangents):
        values, results = kept
        time, w_in, w_rec = values[0], values[2], values[4]
        neurons, records = (time.shape[0], w_in.shape[1]), results[_KEPT.index("spike_g")].shape
        given = [(cotangents[k], neurons) for k in ("count", "first_offset", "v")] + [(cotangents["spike_g"], records)]
        given = [jnp.zeros(shape, w_in.dtype) if isinstance(x, SymbolicZero) else x for x, shape in given]
        shapes = [time.shape, w_in.shape, w_in.shape, w_rec.shape, w_rec.shape]
        outputs = [jax.ShapeDtypeStruct(shape, w_in.dtype) for shape in shapes]
        call = jax.ffi.ffi_call(kernels.target("lif_backward", w_in.dtype), outputs, vmap_method="sequential")
        d_time, *rest = call(*values, *results, *given, **attributes, unit=np.float64(surrogate.UNIT))
        return d_time, None, *rest, *(jnp.zeros_like(x) for x in values[6:])

    op.defvjp(op_forward, op_backward, symbolic_zeros=True)
    return op
