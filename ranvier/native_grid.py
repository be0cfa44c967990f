"""The compiled backend of the grid scheme: a whole sequence of LIF or AdEx neurons, forward and backward, in one call.

It computes what `grid.py` defines; `primitives.py` makes it differentiable.
"""

from dataclasses import replace

import jax.numpy as jnp

from ranvier import grid, native_layer
from ranvier.native_positions import Simulators
from ranvier.neurons import LIF, AdEx
from ranvier.primitives import Signature

# Rows of the input `neuron`, in the order of csrc/grid_call.h.
NEURON = ("tau_mem", "tau_syn", "v_th", "a", "b", "tau_w", "delta_t", "z0")


def run(layer, d_in, d_rec, events, plan, records, longest=None):
    """Simulate (B, E) events through N neurons with room for `records` spikes a sample.

    Returns what `ranvier.native.run` returns. Every neuron is looked at in every step, so `plan.pool` is of no concern.
    """
    n, dtype = layer.w_in.shape[1], layer.w_in.dtype
    adex = isinstance(layer.neuron, AdEx)
    parameters = [getattr(layer.neuron, name) if adex or name in NEURON[:3] else 1.0 for name in NEURON]
    inputs = native_layer.inputs(layer, d_in, d_rec, events)
    inputs["neuron"] = jnp.stack([jnp.broadcast_to(jnp.asarray(x, dtype), (n,)) for x in parameters])
    return _GRID.run(inputs, longest, adex=adex, **native_layer.options(layer, d_rec, plan, records))


def _sizes(shapes, options):
    """What the letters of a shape stand for, as in docs/design.md; what is switched off has length 0."""
    own = {
        "K": len(NEURON),
        "S": 2,  # slopes of the voltage before and behind a spike
        "z": options["n_steps"],
        "k": len(NEURON),
    }
    return native_layer.lengths(shapes, options) | own | dict.fromkeys(_absent(options), 0)


def _absent(options):
    """Letters of what is switched off."""
    off = native_layer.absent(native_layer.SWITCHES | {"z": "parameters", "k": "parameters"}, options)
    return off if options["adex"] else off | {"z"}


def _reference(inputs, options):
    """The smooth results of one network by the definition."""
    values = dict(zip(NEURON, inputs["neuron"], strict=True))
    neuron = AdEx(**values) if options["adex"] else LIF(*(values[name] for name in NEURON[:3]))
    return native_layer.reference(grid, replace(neuron, single_spike=options["single"]), inputs, options)


def _forward_options(options, moving):
    return options | {"keep": True, "parameters": "neuron" in moving}


_ATTRIBUTES = ("dt", "n_steps", "n_slots", "single", "adex", "keep", "trace", "parameters", "positions")

_GRID = Simulators(
    Signature(
        name="grid",
        inputs=native_layer.INPUTS | {"neuron": "QKN"},
        results={
            "count": "QBN",
            "first_offset": "QBN",
            "v": "QBN",
            "v_step": "QBtN",
            "i_step": "QBiN",
            "z_step": "QBzN",
            "trace": "QBvN",
        }
        | native_layer.RECORDS,
        gradients=native_layer.GRADIENTS | {"neuron": "QkN"},
        smooth=native_layer.SMOOTH,
        kept=("v_step", "i_step", "z_step", "spike_state", "spike_step", "spike_neuron", "n_spikes", "first_step"),
        whole=frozenset({"channel", "spike_step", "spike_neuron", "n_spikes", "first_step", "overflow"}),
        sizes=_sizes,
        absent=_absent,
        reference=_reference,
        forward_options=_forward_options,
        backward_options=native_layer.backward_options,
        forward_attributes=_ATTRIBUTES,
        backward_attributes=(*_ATTRIBUTES, "times", "unit"),
    )
)
