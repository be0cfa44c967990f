"""Deep networks: milliseconds and memory of the loss and its gradient, ours beside a dense network in JAX.

    python -m benchmarks.deep                          the two published shapes, batches of 48 and 256
    python -m benchmarks.deep --nets 0 --rows "auto float32" "dense JAX tf32"
    python -m benchmarks.deep --nets small --calls 2   a shape for a CPU

A net is inputs - layers of LIF neurons - leaky outputs with cross entropy at every step. Its weights are fitted to the
input as `ranvier train --model deep` does; inputs spike at random in 2 % of all steps. Ours gets lists and keeps lists
(room for 5 % of a layer, near-threshold neurons from 0.9 on), "in 4" in four pieces of the sequence. The dense one is
what a user writes today: a product for all steps and a `lax.scan` a layer, spikes as numbers, the same surrogate for
all neurons. float32 is that of all bits; the default of JAX on a GPU is TF32.

Milliseconds are of one of `--calls` calls in a row, the median of five such rows. Program MiB are arguments, results
and temporaries as XLA plans them, without what kernels ask for on the way; peak MiB what the device has held at most
since the start, so rows go from small to large.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import ranvier
from ranvier import Events
from ranvier.config import Config
from ranvier.deep import init_deep
from ranvier.deep_start import fit_start
from ranvier.losses import sample_cross_entropy
from ranvier.ops import spikes_from_events

# channels, layers and outputs, steps, batch
NETS = {
    "0": (700, (1024, 512, 128, 20), 500, 48),
    "1": (700, (1024, 512, 128, 20), 500, 256),
    "2": (4608, (1024, 512, 128, 11), 1000, 48),
    "small": (70, (128, 64, 20), 50, 16),
}
INPUT_ACTIVITY = 0.02
OURS = [(mode, precision) for precision in ("tf32", "bfloat16", "float32") for mode in ("auto", "dense")]
ROWS = ["sparse float32", "sparse float32 in 4", *(f"{m} {p}" for m, p in OURS)]
ROWS += ["auto tf32 in 2", "auto tf32 in 4", "auto float32 in 4", "dense JAX tf32", "dense JAX float32"]


@jax.custom_jvp
def spike(x):
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _spike_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return spike(x), dx / jnp.square(10.0 * jnp.abs(x) + 1.0)


def dense_loss(network, spikes, labels, precision):
    """The network as a user of JAX writes it: spikes (T, B, M) as numbers."""
    dot = partial(jnp.dot, precision=precision)
    scale = 20.0 * (1 - 0.95)
    for layer in network.layers:

        def step(v, current):
            v = 0.95 * jnp.where(v > 1.0, 0.0, v) + scale * current
            return v, spike(v - 1.0)

        currents = dot(spikes, layer.w) + layer.bias[None, None, :]
        _, spikes = jax.lax.scan(step, jnp.zeros_like(currents[0]), currents)

    def integrate(v, current):
        v = 0.95 * v + scale * current
        return v, v

    currents = dot(spikes, network.integrator.w) + network.integrator.bias[None, None, :]
    _, u = jax.lax.scan(integrate, jnp.zeros_like(currents[0]), currents)
    logits = dot(u, network.w_out)
    return jnp.mean(jax.vmap(sample_cross_entropy, (0, None))(logits, labels))


def our_loss(network, lists, labels, config, activity):
    out = network.run(config, lists, 0.9, activity)
    return jnp.mean(out.sample_error(labels))


def random_events(channels, steps, batch):
    """Events, and the most that a step has."""
    r = np.random.default_rng(0)
    rows = [np.nonzero(r.random((steps, channels), np.float32) < INPUT_ACTIVITY) for _ in range(batch)]
    room = max(int(np.bincount(t).max()) for t, _ in rows)
    return Events.from_times([t + 0.5 for t, _ in rows], [c for _, c in rows], channels), room


def programs(name, rows):
    """Activity of each layer, and row -> (function, how to make its operands)."""
    channels, sizes, steps, batch = NETS[name]
    events, room = random_events(channels, steps, batch)
    config = Config.of("deep", sizes=",".join(map(str, sizes)), dt=1.0, alpha=0.95)
    network = init_deep(config, jax.random.key(0), channels, sizes[-1])
    network, fits = fit_start(network, config, events[:16], duration=float(steps), capacity=room)
    lists = spikes_from_events(events, duration=float(steps), dt=1.0, capacity=room)
    labels = jnp.arange(batch, dtype=jnp.int32) % sizes[-1]
    activity = (INPUT_ACTIVITY, *(max(fit.activity, 1e-4) for fit in fits))
    found = {}
    for row in rows:
        name, _, pieces = row.partition(" in ")
        kind, _, precision = name.rpartition(" ")
        if kind == "dense JAX":
            exact = {"tf32": jax.lax.Precision.DEFAULT, "float32": jax.lax.Precision.HIGHEST}[precision]
            loss, inputs = partial(dense_loss, precision=exact), lists.to_dense
        else:
            of_row = replace(config, mode=kind, precision=precision, pieces=int(pieces or 1))
            loss, inputs = partial(our_loss, config=of_row, activity=activity), lambda: lists
        operands = partial(lambda inputs: (network, inputs(), labels), inputs)
        found[row] = (jax.jit(jax.value_and_grad(loss)), operands)
    return activity, found


def milliseconds(compiled, operands, calls):
    jax.block_until_ready(compiled(*operands))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            out = compiled(*operands)
        jax.block_until_ready(out)
        times.append(1e3 * (time.perf_counter() - start) / calls)
    return statistics.median(times)


def megabytes(compiled):
    """Of a program as planned, and the most that the device has held."""
    plan = compiled.memory_analysis()
    planned = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    stats = jax.devices()[0].memory_stats() or {}
    return planned / 2**20, stats.get("peak_bytes_in_use", float("nan")) / 2**20


def ready(program):
    """The compiled program."""
    function, operands = program
    return function.lower(*jax.eval_shape(operands)).compile()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["0", "1", "2"], choices=list(NETS))
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, ranvier {ranvier.__version__}\n", flush=True)
    columns = ("net, steps, batch", "row", "ms", "samples/s", "program MiB", "peak MiB", "loss")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for name in options.nets:
        channels, sizes, steps, batch = NETS[name]
        activity, found = programs(name, options.rows)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(ready, found.values()))
        shape = f"{'-'.join(map(str, (channels, *sizes)))}, {steps}, {batch}"
        for row, program in zip(found, compiled, strict=True):
            operands = found[row][1]()
            ms = milliseconds(program, operands, options.calls)
            planned, peak = megabytes(program)
            loss = float(program(*operands)[0])
            numbers = f"{ms:.2f} | {1e3 * batch / ms:.0f} | {planned:.0f} | {peak:.0f} | {loss:.4f}"
            print(f"| {shape} | {row} | {numbers} |", flush=True)
        print(f"\n{shape}: spikes in % of all steps: {' '.join(f'{100 * x:.1f}' for x in activity)}\n", flush=True)


if __name__ == "__main__":
    main()
