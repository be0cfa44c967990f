"""One layer of LIF neurons over all steps, forward and gradient, ours beside Spyx: milliseconds and memory.

    python -m benchmarks.one_layer                                  16,384 neurons, as many inputs, batch 16, 500 steps
    python -m benchmarks.one_layer --neurons 512 --activity 0.1     another size
    python -m benchmarks.one_layer --rows spyx,auto-tf32            some rows alone, one process a row

A linear layer and LIF neurons hear random spikes (the public comparison of libraries of spiking networks: batch 16, 500
steps); the gradient of the sum of all spikes is taken for the weights. Rows:

    spyx            its user's way: spyx.nn.run over Sequential(nnx.Linear, spyx.nn.LIF), the product inside of the loop
    spyx-batched    the product for all steps at once, then spyx.nn.run over the neurons
    MODE-PRECISION  ours: spike_matmul with that mode and precision over lists of input spikes, then lif_layer

Spyx (1.0) runs where it can be imported; its products are those of JAX's default precision, TF32 on a GPU. Each row is
a process of its own, so that memory is its own: of arrays beyond the inputs and the weights, at the peak. The models
differ: Spyx subtracts the threshold, we set to zero; its gradient is dense, ours is that of lists with `--room` of the
layer and theta_2 0.9.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROWS = ("spyx", "spyx-batched", "auto-tf32", "auto-float32", "sparse-float32", "dense-tf32", "dense-bfloat16")


def spyx(options, batched):
    """A function of weights and inputs, and the two."""
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from spyx import axn, nn

    n = options.neurons
    neurons = nn.LIF((n,), beta=0.95, activation=axn.superspike(), rngs=nnx.Rngs(0))

    class Steps(nnx.Module):
        """What Sequential of one linear and one spiking layer does in a step."""

        def __init__(self, weights):
            self.weights, self.neurons = weights, neurons

        def __call__(self, x, state):
            return self.neurons(x @ self.weights, state)

        def initial_state(self, batch):
            return self.neurons.initial_state(batch)

    def total(weights, inputs):
        if batched:
            spikes, _ = nn.run(neurons, inputs @ weights)
        else:
            spikes, _ = nn.run(Steps(weights), inputs)
        return jnp.sum(spikes)

    return total, jax.random.bernoulli(jax.random.key(0), options.activity, (options.steps, options.batch, n)).astype(
        jnp.float32
    )


def ours(options, mode, precision):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ranvier.ops import SpikeVector, lif_layer, spike_matmul

    n = options.neurons
    capacity = max(1, int(options.room * n))
    draw = np.random.default_rng(0)
    most = int(n * options.activity + 8 * np.sqrt(n * options.activity) + 8)
    lists = (options.steps, options.batch, min(most, n))
    ids, count = np.zeros(lists, np.int32), np.zeros(lists[:2], np.int32)
    for step in range(options.steps):
        for sample in range(options.batch):
            fired = np.flatnonzero(draw.random(n) < options.activity)
            ids[step, sample, : len(fired)], count[step, sample] = fired, len(fired)
    value = (np.arange(lists[2]) < count[..., None]).astype(np.float32)
    none = np.zeros_like(count)
    inputs = SpikeVector(*map(jnp.asarray, (ids, value, value, count, none, none, none)), n)

    def total(weights, inputs):
        currents = spike_matmul(inputs, weights, mode=mode, precision=precision, activity=options.activity)
        spikes, _ = lif_layer(currents, alpha=0.95, near_threshold=0.9, capacity=capacity)
        return jnp.sum(spikes.value)

    return total, jax.tree.map(jax.block_until_ready, inputs)


def measure(row, options):
    """The row's figures."""
    import jax

    if row.startswith("spyx"):
        total, inputs = spyx(options, row == "spyx-batched")
    else:
        total, inputs = ours(options, *row.split("-"))
    n = options.neurons
    weights = 0.3 / (n * options.activity) ** 0.5 * jax.random.normal(jax.random.key(1), (n, n))
    jax.block_until_ready((weights, inputs))
    stats = jax.devices()[0].memory_stats() or {}
    before = stats.get("bytes_in_use", 0)
    times = {}
    for name, call in (("forward", jax.jit(total)), ("both", jax.jit(jax.value_and_grad(total)))):
        spikes = jax.block_until_ready(call(weights, inputs))
        of_call = []
        for _ in range(options.repeats):
            started = time.perf_counter()
            jax.block_until_ready(call(weights, inputs))
            of_call.append(1e3 * (time.perf_counter() - started))
        times[name] = (statistics.median(of_call), min(of_call), max(of_call))
    stats = jax.devices()[0].memory_stats() or {}
    spikes = float(spikes[0])
    activity = spikes / (options.steps * options.batch * n)
    return times | {"memory": stats.get("peak_bytes_in_use", 0) - before, "activity": activity}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--activity", type=float, default=0.02, help="part of the inputs that spike in a step")
    parser.add_argument("--room", type=float, default=0.05, help="room in a list, as a part of the layer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options)))
        return
    print(f"{options.neurons} neurons, batch {options.batch}, {options.steps} steps, inputs {options.activity:.1%}")
    print("| row | forward ms | forward and gradient ms | memory GiB | activity |\n|---|---|---|---|---|", flush=True)
    for row in options.rows.split(","):
        call = [sys.executable, "-m", "benchmarks.one_layer", *sys.argv[1:], "--row", row]
        done = subprocess.run(call, env=os.environ, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {row} | {done.stderr.strip().splitlines()[-1][:150]} | | | |", flush=True)
            continue
        got = json.loads(done.stdout.strip().splitlines()[-1])
        cells = [f"{a:.2f} ({b:.2f} to {c:.2f})" for a, b, c in (got["forward"], got["both"])]
        print(f"| {row} | {' | '.join(cells)} | {got['memory'] / 2**30:.2f} | {got['activity']:.2%} |", flush=True)


if __name__ == "__main__":
    main()
