"""Sparse operators and the dense products they stand for: milliseconds of each, in turns.

    python -m benchmarks.ops                                          1,024 x 1,024, batch 128, 1 % and 5 %
    python -m benchmarks.ops --work 8192x8192x256 --activity 0.01     states x columns x batch; more than one may follow
    python -m benchmarks.ops --dtype bfloat16 --rows ours             weights of another type; without dense products
    python -m benchmarks.ops --transposed                             matrices and their gradients stored columns first
    python -m benchmarks.ops --calls 20                               so many calls at a time: what a GPU needs without
                                                                      the time until it is asked for the next one

Forward: the sum of the rows of a matrix that spikes name, against the product with the spikes as numbers. Matrix
gradient: rows of the output's gradient added to those rows. Spike gradient: products with the rows named by spikes and
by as many near-threshold neurons. Gradients: the last two in one program. Neurons spike independently with the
probability `--activity`. Milliseconds are of a call after compilation, median (least to most), and the dense one over
ours of the same turn is how many times as fast ours is. Forward and matrix gradient are checked against the dense ones
before anything is timed.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import kernels
from ranvier.ops import primitives

OPERATORS = ("forward", "matrix gradient", "spike gradient", "gradients")


def lists(batch, n, activity, seed=0):
    """Spikes and then near-threshold neurons as ids (1, B, S); how many of each (1, B)."""
    draw = np.random.default_rng(seed).random((batch, n))
    fired = [np.flatnonzero(x < activity) for x in draw]
    nearly = [np.flatnonzero((x >= activity) & (x < 2 * activity)) for x in draw]
    both = [np.concatenate(pair) for pair in zip(fired, nearly, strict=True)]
    ids = np.zeros((1, batch, max(1, *map(len, both))), np.int32)
    for k, x in enumerate(both):
        ids[0, k, : len(x)] = x
    counts = [np.array([list(map(len, x))], np.int32) for x in (fired, nearly)]
    return ids, *counts


def programs(n, columns, batch, activity, dtype, transposed):
    """Name -> {row: (compiled program, operands)}."""
    r = np.random.default_rng(1)
    ids, n_spikes, n_near = lists(batch, n, activity)
    matrix = jnp.asarray(r.normal(size=(columns, n) if transposed else (n, columns)), dtype)
    g = jnp.asarray(r.normal(size=(batch, columns)), jnp.float32)
    slot = np.arange(ids.shape[2])
    value = jnp.asarray(slot < n_spikes[..., None], jnp.float32)
    spikes = np.zeros((batch, n), np.float32)
    for k in range(batch):
        spikes[k, ids[0, k, : n_spikes[0, k]]] = 1
    spikes, ids, n_spikes = jnp.asarray(spikes), jnp.asarray(ids), jnp.asarray(n_spikes)
    count = n_spikes + n_near

    def dense(a, b):
        return jnp.dot(a, b, preferred_element_type=jnp.float32)

    def dense_forward(s, w):
        return dense(s.astype(w.dtype), w.T if transposed else w)

    def dense_of_matrix(s, g):
        return dense(g.T, s) if transposed else dense(s.T, g)

    def dense_of_spikes(g, w):
        return dense(g.astype(w.dtype), w if transposed else w.T)

    def ours_forward(value, ids, n_spikes, matrix):
        return primitives.gather(value, ids, n_spikes, matrix[None], transposed=transposed)[0]

    def ours_scatter(value, ids, n_spikes, g):
        return primitives.scatter(value, ids, n_spikes, g[None], n, transposed=transposed)[0]

    def ours_dots(ids, count, matrix, g):
        return primitives.dots(ids, count, matrix[None], g[None], transposed=transposed)[0]

    return {
        "forward": {
            "dense": (dense_forward, (spikes, matrix)),
            "ours": (ours_forward, (value, ids, n_spikes, matrix)),
        },
        "matrix gradient": {
            "dense": (dense_of_matrix, (spikes, g)),
            "ours": (ours_scatter, (value, ids, n_spikes, g)),
        },
        "spike gradient": {
            "dense": (dense_of_spikes, (g, matrix)),
            "ours": (ours_dots, (ids, count, matrix, g)),
        },
        "gradients": {
            "dense": (lambda s, g, w: (dense_of_matrix(s, g), dense_of_spikes(g, w)), (spikes, g, matrix)),
            "ours": (
                lambda value, ids, n, count, w, g: (ours_scatter(value, ids, n, g), ours_dots(ids, count, w, g)),
                (value, ids, n_spikes, count, matrix, g),
            ),
        },
    }


class Row:
    """A compiled program and how long its calls took."""

    def __init__(self, function, operands):
        self.call, self.operands, self.ms = jax.jit(function), operands, []
        self.out = jax.block_until_ready(self.call(*operands))

    def run(self, calls):
        started = time.perf_counter()
        for _ in range(calls):
            out = self.call(*self.operands)
        jax.block_until_ready(out)
        self.ms.append((time.perf_counter() - started) * 1e3 / calls)

    def cell(self):
        return f"{statistics.median(self.ms):.3f} ({min(self.ms):.3f} to {max(self.ms):.3f})"


def check(name, rows, exact):
    if len(rows) == 2 and name in OPERATORS[:2]:
        dense, ours = (np.asarray(row.out) for row in rows.values())
        error = np.abs(dense - ours).max() / np.abs(dense).max()
        assert error < (1e-4 if exact else 1e-2), f"{name}: off by {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", nargs="+", default=["1024x1024x128"], help="states x columns x batch")
    add("--activity", type=float, nargs="+", default=[0.01, 0.05])
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the matrix")
    add("--rows", nargs="+", choices=("dense", "ours"), default=["dense", "ours"])
    add("--transposed", action="store_true", help="matrices are columns x states")
    add("--operators", nargs="+", choices=OPERATORS, default=OPERATORS)
    add("--precision", default="highest", help="of dense products: highest, or tensorfloat32 on a GPU")
    add("--repeats", type=int, default=50)
    add("--calls", type=int, default=1, help="timed together")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", options.precision)
    device = jax.devices()[0]
    print(f"JAX {jax.__version__}, {jax.default_backend()}, {device.device_kind}, {os.cpu_count()} processors")
    platform = "cpu" if jax.default_backend() == "cpu" else "cuda"
    compiled = kernels.compiled("ops_gather", options.dtype, platform)
    print(kernels.status(platform).reason if compiled else "no compiled operators: ours is the JAX reference")
    print("\n| states x columns, batch | activity | matrix | operator | dense ms | ours ms | times as fast |")
    print(f"|{'---|' * 7}")
    for work in options.work:
        n, columns, batch = map(int, work.split("x"))
        for activity in options.activity:
            for name, pair in programs(n, columns, batch, activity, options.dtype, options.transposed).items():
                if name not in options.operators:
                    continue
                rows = {row: Row(*pair[row]) for row in options.rows}
                check(name, rows, options.dtype == "float32" and options.precision == "highest")
                for _ in range(options.repeats):
                    for row in rows.values():
                        row.run(options.calls)
                cells = [rows[row].cell() if row in rows else "" for row in ("dense", "ours")]
                ratio = ""
                if len(rows) == 2:
                    each = [a / b for a, b in zip(rows["dense"].ms, rows["ours"].ms, strict=True)]
                    ratio = f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})"
                setting = [f"{n:,} x {columns:,}, {batch:,}", f"{100 * activity:g} %", options.dtype, name]
                print("| " + " | ".join([*setting, *cells, ratio]) + " |", flush=True)


if __name__ == "__main__":
    main()
