"""What the compiled simulators share: a layer and its events as inputs of the kernels, and the reference beside."""

import jax.numpy as jnp

from ranvier import surrogate
from ranvier.events import Events
from ranvier.layer import Layer
from ranvier.plan import Plan
from ranvier.spikes import rows

# Shapes of inputs, results and gradients that every simulator has; `lengths` says what the letters stand for.
INPUTS = {"time": "QBE", "channel": "QBE", "w_in": "QMN", "d_in": "QMN", "w_rec": "QRN", "d_rec": "QRN"}
RECORDS = {
    "spike_g": "QBC",
    "spike_state": "QBcS",
    "spike_step": "QBC",
    "spike_neuron": "QBC",
    "n_spikes": "QB",
    "first_step": "QBN",
    "overflow": "QB",
}
GRADIENTS = {"time": "QBe", "w_in": "QMN", "d_in": "QMN", "w_rec": "QRN", "d_rec": "QRN"}
SMOOTH = ("count", "first_offset", "v", "spike_g", "trace")
SWITCHES = {"R": "recurrent", "t": "keep", "c": "keep", "i": "parameters", "v": "trace"}


def inputs(layer, d_in, d_rec, events):
    """The six inputs `INPUTS`, of the layer's dtype; delays as given, arrays or `Euclidean`."""
    n, dtype = layer.w_in.shape[1], layer.w_in.dtype
    none = jnp.zeros((0, n), dtype)
    return {
        "time": events.time.astype(dtype),
        "channel": events.channel.astype(jnp.int32),
        "w_in": layer.w_in,
        "d_in": d_in,
        "w_rec": none if d_rec is None else layer.w_rec,
        "d_rec": none if d_rec is None else d_rec,
    }


def options(layer, d_rec, plan, records):
    """What a simulator is asked for, without derivatives; `records` is the room for spikes of a sample."""
    return {
        "dt": plan.dt,
        "n_steps": plan.n_steps,
        "n_slots": plan.n_slots,
        "single": bool(layer.neuron.single_spike),
        "recurrent": d_rec is not None,
        "capacity": records,
        "keep": False,
        "trace": plan.trace,
        "parameters": False,
    }


def lengths(shapes, options):
    """Lengths of the letters that every simulator has, from the shapes of `time` and `w_in`."""
    q, b, e = shapes["time"]
    _, m, n = shapes["w_in"]
    steps, capacity = options["n_steps"], options["capacity"]
    return {
        "Q": q,
        "B": b,
        "E": e,
        "M": m,
        "N": n,
        "R": n,
        "C": capacity,
        "t": steps,
        "c": capacity,
        "i": steps,
        "v": steps,
        "e": e,
    }


def absent(switches, options):
    """Letters of what is switched off: those of `switches`, and `e` without derivatives of the times."""
    off = {letter for letter, switch in switches.items() if not options[switch]}
    return off if options.get("times") else off | {"e"}


def reference(scheme, neuron, inputs, options):
    """The smooth results of one network by the definition, module `scheme`."""
    layer = Layer(inputs["w_in"], w_rec=inputs["w_rec"], neuron=neuron)
    (n_samples, _), (m, n) = inputs["time"].shape, inputs["w_in"].shape
    plan = Plan(options["dt"], options["n_steps"], options["n_slots"], n_samples * n, True, options["trace"])
    d_rec = inputs["d_rec"] if options["recurrent"] else None
    end, lists, trace = scheme.run(layer, inputs["d_in"], d_rec, Events(inputs["time"], inputs["channel"], m), plan)
    g, _, _ = rows(lists, 0.0, n_samples, options["capacity"])
    trace = jnp.zeros((n_samples, 0, n), g.dtype) if trace is None else jnp.swapaxes(trace, 0, 1)
    return end.count, end.first_offset, end.cells[0], g, trace


def backward_options(options, moving, given):
    """Those of the forward pass, as backward needs them: for the inputs `moving` and the cotangents `given`."""
    trace = options["trace"] and "trace" in given
    return options | {"trace": trace, "times": "time" in moving, "unit": surrogate.UNIT}
