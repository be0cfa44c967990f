"""The compiled backend of the grid scheme: a whole sequence of LIF or AdEx neurons, forward and backward, in one call.

It computes what `grid.py` defines; `primitives.py` makes it differentiable.
"""

from dataclasses import replace

import jax.numpy as jnp

from ranvier import grid, surrogate
from ranvier.events import Events
from ranvier.layer import Layer
from ranvier.neurons import LIF, AdEx
from ranvier.plan import Plan
from ranvier.primitives import Signature, Simulator
from ranvier.spikes import rows

# Rows of the input `neuron`, in the order of csrc/grid_call.h.
NEURON = ("tau_mem", "tau_syn", "v_th", "a", "b", "tau_w", "delta_t", "z0")


def run(layer, d_in, d_rec, events, plan, records):
    """Simulate (B, E) events through N neurons with room for `records` spikes a sample.

    Returns what `ranvier.native.run` returns. Every neuron is looked at in every step, so `plan.pool` is of no concern.
    """
    n, dtype = layer.w_in.shape[1], layer.w_in.dtype
    none = jnp.zeros((0, n), dtype)
    adex = isinstance(layer.neuron, AdEx)
    parameters = [getattr(layer.neuron, name) if adex or name in NEURON[:3] else 1.0 for name in NEURON]
    inputs = {
        "time": events.time.astype(dtype),
        "channel": events.channel.astype(jnp.int32),
        "w_in": layer.w_in,
        "d_in": d_in,
        "w_rec": none if d_rec is None else layer.w_rec,
        "d_rec": none if d_rec is None else d_rec,
        "neuron": jnp.stack([jnp.broadcast_to(jnp.asarray(x, dtype), (n,)) for x in parameters]),
    }
    return _GRID.run(
        inputs,
        dt=plan.dt,
        n_steps=plan.n_steps,
        n_slots=plan.n_slots,
        single=bool(layer.neuron.single_spike),
        adex=adex,
        recurrent=d_rec is not None,
        capacity=records,
        keep=False,
        trace=plan.trace,
        parameters=False,
    )


def _sizes(shapes, options):
    """What the letters of a shape stand for, as in docs/design.md; what is switched off has length 0."""
    q, b, e = shapes["time"]
    _, m, n = shapes["w_in"]
    steps, capacity = options["n_steps"], options["capacity"]
    lengths = {
        "Q": q,
        "B": b,
        "E": e,
        "M": m,
        "N": n,
        "R": n,
        "K": len(NEURON),
        "C": capacity,
        "S": 2,  # slopes of the voltage before and behind a spike
        "t": steps,
        "c": capacity,
        "i": steps,
        "z": steps,
        "v": steps,
        "k": len(NEURON),
        "e": e,
    }
    return lengths | dict.fromkeys(_absent(options), 0)


def _absent(options):
    """Letters of what is switched off."""
    switches = {"R": "recurrent", "t": "keep", "c": "keep", "i": "parameters", "z": "parameters", "v": "trace"}
    off = {letter for letter, switch in (switches | {"k": "parameters"}).items() if not options[switch]}
    off |= set() if options["adex"] else {"z"}
    return off if options.get("times") else off | {"e"}


def _reference(inputs, options):
    """The smooth results of one network by the definition."""
    values = dict(zip(NEURON, inputs["neuron"], strict=True))
    neuron = AdEx(**values) if options["adex"] else LIF(*(values[name] for name in NEURON[:3]))
    neuron = replace(neuron, single_spike=options["single"])
    layer = Layer(inputs["w_in"], w_rec=inputs["w_rec"], neuron=neuron)
    (n_samples, _), (m, n) = inputs["time"].shape, inputs["w_in"].shape
    plan = Plan(options["dt"], options["n_steps"], options["n_slots"], n_samples * n, True, options["trace"])
    d_rec = inputs["d_rec"] if options["recurrent"] else None
    end, lists, trace = grid.run(layer, inputs["d_in"], d_rec, Events(inputs["time"], inputs["channel"], m), plan)
    g, _, _ = rows(lists, 0.0, n_samples, options["capacity"])
    trace = jnp.zeros((n_samples, 0, n), g.dtype) if trace is None else jnp.swapaxes(trace, 0, 1)
    return end.count, end.first_offset, end.cells[0], g, trace


def _forward_options(options, moving):
    return options | {"keep": True, "parameters": "neuron" in moving}


def _backward_options(options, moving, given):
    trace = options["trace"] and "trace" in given
    return options | {"trace": trace, "times": "time" in moving, "unit": surrogate.UNIT}


_ATTRIBUTES = ("dt", "n_steps", "n_slots", "single", "adex", "keep", "trace", "parameters")

_GRID = Simulator(
    Signature(
        name="grid",
        inputs={
            "time": "QBE",
            "channel": "QBE",
            "w_in": "QMN",
            "d_in": "QMN",
            "w_rec": "QRN",
            "d_rec": "QRN",
            "neuron": "QKN",
        },
        results={
            "count": "QBN",
            "first_offset": "QBN",
            "v": "QBN",
            "v_step": "QBtN",
            "i_step": "QBiN",
            "z_step": "QBzN",
            "trace": "QBvN",
            "spike_g": "QBC",
            "spike_state": "QBcS",
            "spike_step": "QBC",
            "spike_neuron": "QBC",
            "n_spikes": "QB",
            "first_step": "QBN",
            "overflow": "QB",
        },
        gradients={
            "time": "QBe",
            "w_in": "QMN",
            "d_in": "QMN",
            "w_rec": "QRN",
            "d_rec": "QRN",
            "neuron": "QkN",
        },
        smooth=("count", "first_offset", "v", "spike_g", "trace"),
        kept=("v_step", "i_step", "z_step", "spike_state", "spike_step", "spike_neuron", "n_spikes", "first_step"),
        whole=frozenset({"channel", "spike_step", "spike_neuron", "n_spikes", "first_step", "overflow"}),
        sizes=_sizes,
        absent=_absent,
        reference=_reference,
        forward_options=_forward_options,
        backward_options=_backward_options,
        forward_attributes=_ATTRIBUTES,
        backward_attributes=(*_ATTRIBUTES, "times", "unit"),
    )
)
