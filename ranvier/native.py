"""The compiled backend: which kernel computes a layer, if any does."""

import jax
import jax.numpy as jnp

from ranvier import kernels, native_grid, native_lif
from ranvier.neurons import LIF, AdEx

_SIMULATORS = {
    ("continuous", LIF): ("lif", native_lif),
    ("grid", LIF): ("grid", native_grid),
    ("grid", AdEx): ("grid", native_grid),
}
# Neurons that one block of a GPU can hold, by the bytes of a number (csrc/lif_cuda.cu, csrc/grid_cuda.cu).
_MOST_ON_GPU = {"lif": {4: 2048, 8: 1024}, "grid": {4: 8192, 8: 8192}}


def refusal(layer, scheme):
    """One line why the compiled backend cannot run this, or None."""
    neuron = type(layer.neuron)
    if (scheme, neuron) not in _SIMULATORS:
        return f"the compiled kernels have no {neuron.__name__} in the {scheme} scheme"
    if (dtype := jnp.result_type(layer.w_in)) not in (jnp.float32, jnp.float64):
        return f"the compiled kernels compute in float32 and float64, and w_in is {dtype}"
    name, _ = _SIMULATORS[scheme, neuron]
    most, n = _MOST_ON_GPU[name][dtype.itemsize], layer.w_in.shape[1]
    if jax.default_backend() in ("gpu", "cuda") and n > most:
        return f"the compiled kernels hold {most} neurons of {dtype} on a GPU, and the layer has {n}"
    return kernels.available(f"{name}_forward") or kernels.available(f"{name}_backward")


def run(layer, scheme, d_in, d_rec, events, plan, records, longest=None):
    """Simulate (B, E) events through N neurons with room for `records` spikes a sample; `refusal` must be None.

    Delays are matrices, or all `Euclidean` without slack, formed inside from positions and cut to `longest` () [ms].

    Returns a dict of arrays: `count`, `first_offset`, `v` (B, N), `first_step` (B, N), `trace` (B, T, N) if traced, the
    records `spike_g`, `spike_step`, `spike_neuron` (B, C) in the order of steps, of which `n_spikes` (B,) are real and
    the rest is anything, and `overflow` (B,).
    """
    _, simulator = _SIMULATORS[scheme, type(layer.neuron)]
    return simulator.run(layer, d_in, d_rec, events, plan, records, longest)
