"""The compiled backend: which kernel computes a layer, if any does."""

import jax.numpy as jnp

from ranvier import kernels, native_lif
from ranvier.neurons import LIF


def refusal(layer, scheme):
    """One line why the compiled backend cannot run this, or None."""
    if scheme != "continuous" or not isinstance(layer.neuron, LIF):
        return "the compiled kernels have LIF neurons in the continuous scheme only"
    if (dtype := jnp.result_type(layer.w_in)) not in (jnp.float32, jnp.float64):
        return f"the compiled kernels compute in float32 and float64, and w_in is {dtype}"
    return kernels.available("lif_forward") or kernels.available("lif_backward")


def run(layer, scheme, d_in, d_rec, events, plan, records):
    """Simulate (B, E) events through N neurons with room for `records` spikes a sample; `refusal` must be None.

    Returns a dict of arrays: `count`, `first_offset`, `v` (B, N), `first_step` (B, N), `trace` (B, T, N) if traced, the
    records `spike_g`, `spike_step`, `spike_neuron` (B, C) in the order of steps, of which `n_spikes` (B,) are real and
    the rest is anything, and `overflow` (B,).
    """
    assert scheme == "continuous"
    return native_lif.run(layer, d_in, d_rec, events, plan, records)
