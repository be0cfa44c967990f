"""The compiled LIF of the continuous scheme: a whole sequence, forward and backward, in one call.

It computes what `continuous.py` defines; `primitives.py` makes it differentiable.
"""

import jax.numpy as jnp

from ranvier import continuous, surrogate
from ranvier.events import Events
from ranvier.layer import Layer
from ranvier.neurons import LIF
from ranvier.plan import Plan
from ranvier.primitives import Signature, Simulator
from ranvier.spikes import rows

NEURON = ("tau_mem", "tau_syn", "v_th")


def run(layer, d_in, d_rec, events, plan, records):
    """As `ranvier.native.run`."""
    n, dtype = layer.w_in.shape[1], layer.w_in.dtype
    none = jnp.zeros((0, n), dtype)
    inputs = {
        "time": events.time.astype(dtype),
        "channel": events.channel.astype(jnp.int32),
        "w_in": layer.w_in,
        "d_in": d_in,
        "w_rec": none if d_rec is None else layer.w_rec,
        "d_rec": none if d_rec is None else d_rec,
    }
    for name in NEURON:
        inputs[name] = jnp.broadcast_to(jnp.asarray(getattr(layer.neuron, name), dtype), (n,))
    return _LIF.run(
        inputs,
        dt=plan.dt,
        n_steps=plan.n_steps,
        n_slots=plan.n_slots,
        single=bool(layer.neuron.single_spike),
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
        "C": capacity,
        "S": 5,  # v, i at the start of the step, and its bucket
        "t": steps,
        "c": capacity,
        "i": steps,
        "v": steps,
        "n": n,
        "e": e,
    }
    return lengths | dict.fromkeys(_absent(options), 0)


def _absent(options):
    """Letters of what is switched off."""
    switches = {"R": "recurrent", "t": "keep", "c": "keep", "i": "parameters", "v": "trace", "n": "parameters"}
    off = {letter for letter, switch in switches.items() if not options[switch]}
    return off if options.get("times") else off | {"e"}


def _reference(inputs, options):
    """The smooth results of one network by the definition."""
    neuron = LIF(**{name: inputs[name] for name in NEURON}, single_spike=options["single"])
    layer = Layer(inputs["w_in"], w_rec=inputs["w_rec"], neuron=neuron)
    (n_samples, _), (m, n) = inputs["time"].shape, inputs["w_in"].shape
    plan = Plan(options["dt"], options["n_steps"], options["n_slots"], n_samples * n, True, options["trace"])
    d_rec = inputs["d_rec"] if options["recurrent"] else None
    end, lists, trace = continuous.run(layer, inputs["d_in"], d_rec, Events(inputs["time"], inputs["channel"], m), plan)
    g, _, _ = rows(lists, 0.0, n_samples, options["capacity"])
    trace = jnp.zeros((n_samples, 0, n), g.dtype) if trace is None else jnp.swapaxes(trace, 0, 1)
    return end.count, end.first_offset, end.cells[0], g, trace


def _forward_options(options, moving):
    return options | {"keep": True, "parameters": any(name in moving for name in NEURON)}


def _backward_options(options, moving, given):
    trace = options["trace"] and "trace" in given
    return options | {"trace": trace, "times": "time" in moving, "unit": surrogate.UNIT}


_ATTRIBUTES = ("dt", "n_steps", "n_slots", "single", "keep", "trace", "parameters")
# Samples' arrays begin with QB, networks' with Q.
_LIF = Simulator(
    Signature(
        name="lif",
        inputs={
            "time": "QBE",
            "channel": "QBE",
            "w_in": "QMN",
            "d_in": "QMN",
            "w_rec": "QRN",
            "d_rec": "QRN",
            "tau_mem": "QN",
            "tau_syn": "QN",
            "v_th": "QN",
        },
        results={
            "count": "QBN",
            "first_offset": "QBN",
            "v": "QBN",
            "v_free": "QBtN",
            "i_free": "QBiN",
            "trace": "QBvN",
            "spike_g": "QBC",
            "spike_state": "QBcS",
            "spike_step": "QBC",
            "spike_neuron": "QBC",
            "n_spikes": "QB",
            "first_step": "QBN",
            "overflow": "QB",
        },
        gradients={"time": "QBe", "w_in": "QMN", "d_in": "QMN", "w_rec": "QRN", "d_rec": "QRN"}
        | {name: "Qn" for name in NEURON},
        smooth=("count", "first_offset", "v", "spike_g", "trace"),
        kept=("v_free", "i_free", "spike_g", "spike_state", "spike_step", "spike_neuron", "n_spikes", "first_step"),
        whole=frozenset({"spike_step", "spike_neuron", "n_spikes", "first_step", "overflow"}),
        sizes=_sizes,
        absent=_absent,
        reference=_reference,
        forward_options=_forward_options,
        backward_options=_backward_options,
        forward_attributes=_ATTRIBUTES,
        backward_attributes=(*_ATTRIBUTES, "unit", "times"),
    )
)
