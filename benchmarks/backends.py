"""Forward and gradient of one batch of shipped speech: compiled kernels, reference, and a dense scan without delays.

    python -m benchmarks.backends                  700 inputs, 100 recurrent neurons, batch 32, dt 1, 0.5 and 0.25
    python -m benchmarks.backends --reference      with the JAX reference, which takes minutes on a CPU

The dense scan is what one writes without a library: inputs as a raster, one matrix product for all steps, a LIF loop
with a surrogate gradient, no delays. Seconds are of the whole call after compilation: median (least to most) of the
repeats.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import Layer, data, simulate
from ranvier.space import init_space

DURATION = 1124.5


def problem(batch, n):
    """Events, and (w_in, d_in, w_rec, d_rec) of the 3-D start with some inhibition: about 15 Hz."""
    events = data.load("speech").train.batch(np.arange(batch))
    space = init_space("3", jax.random.key(0), 700, n)
    r = np.random.default_rng(0)
    w_in = jnp.asarray(0.003 + 0.01 * r.normal(size=(700, n)), jnp.float32)
    w_rec = jnp.asarray(0.01 * r.normal(size=(n, n)), jnp.float32)
    return events, (w_in, space.d_in().delays(), w_rec, space.d_rec().delays())


def ours(backend, dt, step_capacity):
    def loss(arrays, events):
        s = simulate(
            Layer(*arrays),
            events,
            duration=DURATION,
            dt=dt,
            max_delay=200.0,
            backend=backend,
            capacity=8192 if backend == "native" else 0,
            step_capacity=step_capacity,
        )
        return jnp.sum(s.spike_count**2), s.spike_count

    return loss


@jax.custom_jvp
def fires(over):
    return (over >= 0).astype(over.dtype)


@fires.defjvp
def _fires_jvp(primals, tangents):
    (over,), (tangent,) = primals, tangents
    return fires(over), tangent / jnp.square(1.0 + jnp.abs(over))


def dense(dt):
    """A LIF network on a raster (T, B, M), without delays."""
    alpha, beta = np.float32(np.exp(-dt / 2.0)), np.float32(np.exp(-dt / 10.0))

    def loss(arrays, raster):
        w_in, w_rec = arrays[0], arrays[2]
        drive = raster @ w_in

        def step(carry, x):
            v, i, s = carry
            i = alpha * i + x + s @ w_rec
            v = beta * v * (1.0 - jax.lax.stop_gradient(s)) + dt * i
            s = fires(v - 1.0)
            return (v, i, s), s

        zero = jnp.zeros_like(drive[0])
        _, spikes = jax.lax.scan(step, (zero, zero, zero), drive)
        count = spikes.sum(0)
        return jnp.sum(count**2), count

    return loss


def measure(name, dt, loss, arrays, inputs, repeats):
    row = [name, f"{dt:g}"]
    for call in (jax.jit(loss), jax.jit(jax.value_and_grad(loss, has_aux=True))):
        out = jax.block_until_ready(call(arrays, inputs))
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            jax.block_until_ready(call(arrays, inputs))
            seconds.append(time.perf_counter() - started)
        row.append(f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})")
    count = out[0][1]
    row.append(f"{float(count.mean()) / DURATION * 1e3:.1f}")
    row.append(f"{len(count) / statistics.median(seconds):.0f}")
    print("| " + " | ".join(row) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--dt", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    events, arrays = problem(options.batch, options.hidden)
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, batch {options.batch}, {options.hidden} neurons\n")
    print("| what | dt | forward s | forward and gradient s | rate Hz | samples/s |\n|---|---|---|---|---|---|")
    for dt in options.dt:
        if jax.default_backend() == "cpu":
            measure("compiled kernels", dt, ours("native", dt, None), arrays, events, options.repeats)
        raster = jnp.swapaxes(events.to_dense(dt, DURATION), 0, 1).astype(jnp.float32)
        measure("dense scan, no delays", dt, dense(dt), arrays, raster, options.repeats)
        if options.reference:
            measure("JAX reference", dt, ours("reference", dt, 16), arrays, events, max(1, options.repeats // 2))


if __name__ == "__main__":
    main()
