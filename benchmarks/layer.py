"""A LIF layer over time: milliseconds of forward, and of forward and gradient.

    python -m benchmarks.layer                        shapes for a GPU, or smaller ones for a CPU
    python -m benchmarks.layer --shapes 500,48,1024 500,48,1024,rec --calls 5

A shape is steps, batch, neurons, and `rec` for recurrent weights. Input currents are random numbers that make some 5 %
of the neurons fire in a step; lists have room for an eighth of the neurons, near-threshold neurons count from 0.9 on.
The gradient is that for the currents and the weights. Beside our kernels stand the same layer in JAX, without the
compiled library (`definition`), and what a user writes today (`dense`): a `lax.scan` over vectors of all neurons with
the same surrogate for all of them, all bits of float32 in products.

Milliseconds are of one of `--calls` calls in a row, the median of five such rows. GB/s are of what a layer cannot do
without: its currents are read, and for a gradient, also written. Read once more, and nothing else, is `copy`'s rate.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import ranvier
from ranvier import kernels
from ranvier.ops import lif_layer

GPU = ["500,48,1024", "500,256,1024", "500,256,512", "500,256,128", "500,16,16384"]
GPU += ["500,48,128,rec", "500,48,1024,rec", "500,256,256,rec"]
CPU = ["100,48,1024", "500,48,128", "50,16,16384", "100,48,256,rec", "100,48,1024,rec"]
ALPHA = 0.95


@jax.custom_jvp
def spike(x):
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _spike_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return spike(x), dx / jnp.square(10.0 * jnp.abs(x) + 1.0)


def dense(currents, w_rec):
    """All neurons of a step as numbers."""

    def step(carry, current):
        v, z = carry
        if w_rec is not None:
            current = current + jnp.dot(z, w_rec, precision="float32")
        v = ALPHA * jnp.where(v > 1.0, 0.0, v) + current
        z = spike(v - 1.0)
        return (v, z), z

    zero = jnp.zeros_like(currents[0])
    (v, _), z = jax.lax.scan(step, (zero, zero), currents)
    return z, v


def ours(currents, w_rec):
    spikes, state = lif_layer(currents, w_rec, alpha=ALPHA, capacity=currents.shape[-1] // 8)
    return spikes.value, state.v, spikes


def milliseconds(call, calls):
    jax.block_until_ready(call())
    rows = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            out = call()
        jax.block_until_ready(out)
        rows.append((time.perf_counter() - start) / calls * 1e3)
    return statistics.median(rows)


def both(layer, currents, w_rec, calls):
    """Milliseconds of forward, and of forward and gradient."""

    def loss(currents, w_rec):
        z, v, *_ = layer(currents, w_rec)
        weight = jnp.arange(1.0, 1.0 + z.shape[-1], dtype=z.dtype) / z.shape[-1]
        return jnp.sum(z * weight.reshape(1, 1, -1)) + jnp.sum(v)

    forward = jax.jit(layer)
    gradient = jax.jit(jax.value_and_grad(loss, 0 if w_rec is None else (0, 1)))
    return milliseconds(lambda: forward(currents, w_rec), calls), milliseconds(lambda: gradient(currents, w_rec), calls)


def rows(shape, calls):
    steps, batch, n, *words = shape.split(",")
    steps, batch, n, recurrent = int(steps), int(batch), int(n), words == ["rec"]
    rng = np.random.default_rng(0)
    currents = jnp.asarray(rng.standard_normal((steps, batch, n), np.float32) * 0.35 + 0.05)
    w_rec = jnp.asarray(rng.standard_normal((n, n), np.float32) * 0.4 / np.sqrt(n)) if recurrent else None
    *_, spikes = jax.jit(ours)(currents, w_rec)
    part, lost = float(jnp.mean(spikes.n_spikes) / n), int(spikes.n_lost.sum())
    size = currents.nbytes / 1e6
    print(f"{shape}: {part:.1%} fire, {lost} spikes lost, currents {size:.0f} MB", flush=True)
    copy = jax.jit(lambda x: x + 1)
    took = milliseconds(lambda: copy(currents), calls)
    print(f"  {'copy':12} {took:9.3f} ms {2 * size / took:7.0f} GB/s", flush=True)
    compiled = kernels.compiled
    for name, layer in (("ours", ours), ("definition", ours), ("dense", dense)):
        kernels.compiled = (lambda *_: False) if name == "definition" else compiled
        jax.clear_caches()
        forward, gradient = both(layer, currents, w_rec, calls if name == "ours" else max(1, calls // 4))
        kernels.compiled = compiled
        rates = f"{size / forward:7.0f} {2 * size / gradient:7.0f} GB/s"
        print(f"  {name:12} forward {forward:9.3f} ms, with gradient {gradient:9.3f} ms {rates}", flush=True)


def main():
    parser = argparse.ArgumentParser(description="A LIF layer over time, timed.")
    parser.add_argument("--shapes", nargs="+", default=CPU if jax.default_backend() == "cpu" else GPU)
    parser.add_argument("--calls", type=int, default=4 if jax.default_backend() == "cpu" else 20)
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"ranvier {ranvier.__version__}, JAX {jax.__version__}, {device.device_kind}, {os.cpu_count()} cores")
    print(f"library: {kernels.available('ops_lif_forward') or 'ours'}")
    for shape in options.shapes:
        rows(shape, options.calls)


if __name__ == "__main__":
    main()
