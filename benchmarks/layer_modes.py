"""Whole layers through lists, `auto` beside `sparse` and `dense`: milliseconds of forward, and of forward and gradient.

    python -m benchmarks.layer_modes                              shapes for a GPU, or smaller ones for a CPU
    python -m benchmarks.layer_modes --shapes 500,48,700,1024 --activity 0.02 0.1 --precision float32

A shape is steps, batch, inputs, neurons, and `rec` for recurrent weights. The layer is `spike_layer`: a product for all
steps, then the neurons over time. Inputs spike independently with the probability `--activity`, and as many are near
the threshold, so that the gradient is that for the weights and for the entries of the lists: all three products. `auto`
is told the activity. Lists of the layer have room for a sixteenth of its neurons.

Milliseconds are of one call of several in a row, the median of `--turns` turns, in each of which every mode has one
after the other. `auto / better` is the time of `auto` over that of the faster of the two others, the median of the
turns; `picks` are what its costs chose for forward, matrix gradient and spike gradient.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

import ranvier
from ranvier import kernels
from ranvier.bench import Point
from ranvier.ops import costs, spike_layer, spikes_from_state
from ranvier.ops.ways import MODES, ways_of

GPU = ["500,48,700,1024", "500,48,1024,512", "500,48,512,128", "500,256,700,1024", "500,256,1024,512"]
GPU += ["500,256,512,128", "1000,48,4608,1024", "500,32,4096,4096", "500,48,700,512,rec", "500,16,16384,16384"]
CPU = ["50,16,256,256", "50,32,700,512", "20,64,1024,1024", "50,16,256,128,rec"]
PASSES = ("forward", "with gradient")


def layer(spikes, w_in, w_rec, activity, mode, precision):
    how = {"mode": mode, "precision": precision, "activity": activity}
    return spike_layer(spikes, w_in, w_rec, alpha=0.95, capacity=max(1, w_in.shape[1] // 16), **how)


def loss(given, spikes, activity, mode, precision):
    value, w_in, w_rec = given
    out, state = layer(replace(spikes, value=value), w_in, w_rec, activity, mode, precision)
    return jnp.sum(out.value) + jnp.sum(state.v)


def operands(steps, batch, inputs, neurons, recurrent, activity):
    """Lists, and matrices with which some 2 % of the neurons fire."""
    keys = jax.random.split(jax.random.key(0), 3)
    capacity = Point("dots", inputs, neurons, steps * batch, activity).slots

    def lists(key):
        state = jax.random.uniform(key, (steps, batch, inputs))
        return spikes_from_state(state, 1 - activity, 1 - 2 * activity, capacity)

    w_in = 0.15 / (inputs * activity) ** 0.5 * jax.random.normal(keys[1], (inputs, neurons))
    w_rec = 0.1 / neurons**0.5 * jax.random.normal(keys[2], (neurons, neurons)) if recurrent else None
    return jax.jit(lists)(keys[0]), w_in, w_rec


def program(name, mode, precision, activity, given):
    """Compiled for arrays like those given."""
    spikes, *weights = given
    if name == "forward":
        function = partial(layer, activity=activity, mode=mode, precision=precision)
        return jax.jit(function).lower(spikes, *weights).compile(), given
    function = jax.value_and_grad(partial(loss, activity=activity, mode=mode, precision=precision))
    of_loss = ((spikes.value, *weights), spikes)
    return jax.jit(function).lower(*of_loss).compile(), of_loss


def row_of_calls(run, calls):
    call, given = run
    start = time.perf_counter()
    for _ in range(calls):
        out = call(*given)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls * 1e3


def in_turns(runs, turns):
    """Mode -> milliseconds of each turn."""
    first = {}
    for mode, run in runs.items():
        row_of_calls(run, 1)
        first[mode] = row_of_calls(run, 1)
    calls = max(1, min(20, round(20 / min(first.values()))))
    times = {mode: [] for mode in runs}
    for _ in range(turns):
        for mode, run in runs.items():
            times[mode].append(row_of_calls(run, calls))
    return times


def picks(shape, capacity, activity, precision):
    """What `auto` chooses for the three products."""
    steps, batch, inputs, neurons = shape
    ways = ways_of("layer_modes", "auto", precision, activity)
    platform = "cpu" if jax.default_backend() == "cpu" else "cuda"
    size = (1, steps * batch, capacity, inputs, neurons)
    return [costs.choose(x, ways, size, platform, False, True) for x in costs.OPERATORS]


def rows(text, activity, precisions, turns, pool):
    *words, recurrent = text.split(",") if text.endswith(",rec") else (*text.split(","), "")
    steps, batch, inputs, neurons = shape = tuple(map(int, words))
    given = operands(steps, batch, inputs, neurons, recurrent == "rec", activity)
    every = [(p, name, mode) for p in precisions for name in PASSES for mode in MODES]
    compiled = pool.map(lambda x: program(x[1], x[2], x[0], activity, given), every)
    programs = dict(zip(every, compiled, strict=True))
    fired = float(jnp.mean(programs[precisions[0], "forward", "sparse"][0](*given)[0].n_spikes)) / neurons
    for precision in precisions:
        chosen = picks(shape, given[0].ids.shape[-1], activity, precision)
        for name in PASSES:
            times = in_turns({mode: programs[precision, name, mode] for mode in MODES}, turns)
            ms = {mode: statistics.median(x) for mode, x in times.items()}
            better = min(("sparse", "dense"), key=ms.__getitem__)
            ratio = statistics.median(a / b for a, b in zip(times["auto"], times[better], strict=True))
            about = {"shape": text, "activity": activity, "precision": precision, "pass": name, "fired": fired}
            yield {**about, "picks": chosen if name == "with gradient" else chosen[:1], "ms": ms, "ratio": ratio}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cpu = jax.default_backend() == "cpu"
    parser.add_argument("--shapes", nargs="+", default=CPU if cpu else GPU)
    parser.add_argument("--activity", type=float, nargs="+", default=[0.005, 0.02, 0.1])
    parser.add_argument("--precision", nargs="+", default=["float32"] if cpu else ["float32", "tf32", "bfloat16"])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1e9, help="no shape is begun after that")
    parser.add_argument("--out", help="a file of JSON, too")
    options = parser.parse_args()
    device, started, found = jax.devices()[0], time.monotonic(), []
    print(f"{device.device_kind}, JAX {jax.__version__}, ranvier {ranvier.__version__}")
    own = costs.file() if costs.file().is_file() else "those of the package"
    print(f"library: {kernels.available('ops_lif_forward') or 'ours'}; costs: {own}\n")
    columns = ("steps, batch, inputs, neurons", "activity", "fire", "precision", "pass", *(f"{x} ms" for x in MODES))
    print(f"| {' | '.join((*columns, 'auto / better', 'picks'))} |\n{'|---' * (len(columns) + 2)}|", flush=True)
    with ThreadPoolExecutor(1 if cpu else os.cpu_count()) as pool:
        for text in options.shapes:
            for activity in options.activity:
                if time.monotonic() > started + options.seconds:
                    print(f"{text} at {activity}: no time left", flush=True)
                    continue
                for row in rows(text, activity, options.precision, options.turns, pool):
                    found.append(row)
                    ms = " | ".join(f"{row['ms'][mode]:.3f}" for mode in MODES)
                    what = f"{row['shape']} | {100 * activity:g} % | {100 * row['fired']:.1f} %"
                    of_row = f"{what} | {row['precision']} | {row['pass']} | {ms}"
                    print(f"| {of_row} | {row['ratio']:.3f} | {' '.join(row['picks'])} |", flush=True)
                if options.out:
                    Path(options.out).write_text(json.dumps(found) + "\n")
    for name in PASSES:
        ratios = sorted((row["ratio"] for row in found if row["pass"] == name), reverse=True)
        if ratios:
            slower = sum(x > 1.05 for x in ratios)
            print(f"{name}: auto more than 5 % slower than the better at {slower} of {len(ratios)}, worst {ratios[:3]}")


if __name__ == "__main__":
    main()
