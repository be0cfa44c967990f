"""The compiled LIF of the continuous scheme: a whole sequence, forward and backward, in one call.

It computes what `continuous.py` defines; `primitives.py` makes it differentiable.
"""

import jax.numpy as jnp

from ranvier import continuous, native_layer
from ranvier.native_positions import Simulators
from ranvier.neurons import LIF
from ranvier.primitives import Signature

NEURON = ("tau_mem", "tau_syn", "v_th")


def run(layer, d_in, d_rec, events, plan, records, longest=None):
    """As `ranvier.native.run`."""
    n, dtype = layer.w_in.shape[1], layer.w_in.dtype
    inputs = native_layer.inputs(layer, d_in, d_rec, events)
    for name in NEURON:
        inputs[name] = jnp.broadcast_to(jnp.asarray(getattr(layer.neuron, name), dtype), (n,))
    return _LIF.run(inputs, longest, **native_layer.options(layer, d_rec, plan, records))


def _sizes(shapes, options):
    """What the letters of a shape stand for, as in docs/design.md; what is switched off has length 0."""
    lengths = native_layer.lengths(shapes, options)
    # S: v, i at the start of the step, and its bucket
    return lengths | {"S": 5, "n": lengths["N"]} | dict.fromkeys(_absent(options), 0)


def _absent(options):
    """Letters of what is switched off."""
    return native_layer.absent(native_layer.SWITCHES | {"n": "parameters"}, options)


def _reference(inputs, options):
    """The smooth results of one network by the definition."""
    neuron = LIF(**{name: inputs[name] for name in NEURON}, single_spike=options["single"])
    return native_layer.reference(continuous, neuron, inputs, options)


def _forward_options(options, moving):
    return options | {"keep": True, "parameters": any(name in moving for name in NEURON)}


_ATTRIBUTES = ("dt", "n_steps", "n_slots", "single", "keep", "trace", "parameters", "positions")
# Samples' arrays begin with QB, networks' with Q.
_LIF = Simulators(
    Signature(
        name="lif",
        inputs=native_layer.INPUTS | {"tau_mem": "QN", "tau_syn": "QN", "v_th": "QN"},
        results={
            "count": "QBN",
            "first_offset": "QBN",
            "v": "QBN",
            "v_free": "QBtN",
            "i_free": "QBiN",
            "trace": "QBvN",
        }
        | native_layer.RECORDS,
        gradients=native_layer.GRADIENTS | {name: "Qn" for name in NEURON},
        smooth=native_layer.SMOOTH,
        kept=("v_free", "i_free", "spike_g", "spike_state", "spike_step", "spike_neuron", "n_spikes", "first_step"),
        whole=frozenset({"spike_step", "spike_neuron", "n_spikes", "first_step", "overflow"}),
        sizes=_sizes,
        absent=_absent,
        reference=_reference,
        forward_options=_forward_options,
        backward_options=native_layer.backward_options,
        forward_attributes=_ATTRIBUTES,
        backward_attributes=(*_ATTRIBUTES, "unit", "times"),
    )
)
