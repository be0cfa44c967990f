"""How many digits the compiled kernels keep in float32, beside the reference: small networks and large, short and long.

    python -m benchmarks.precision                     everything, a Markdown table on stdout
    python -m benchmarks.precision --groups small long

The measure is that of `tests/precision.py`: errors against the reference in float64, median and 95th percentile over
networks whose float32 and float64 references have the same spikes. A row's `worst` is the larger of the two quotients
error of the kernel / max(error of the reference, half of 1e-6), which should not be above 2; `networks` counts those in
which the kernel's 95th percentile is the larger, and those in which it is the smaller. The errors of one network stand
and fall together, so with few networks the second says more. Behind the table: in how many networks a spike is so far
off, of the kernel and of the reference in float32, that a number beside an edge of the map must have fallen to its
other side. Such a network stays in the table. `all` pools the
groups: the criterion is about networks of every size.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import platform
import time
from dataclasses import dataclass

import jax
import numpy as np

from tests import precision

DT, LONGEST = 0.5, 20.0
# A spike that is off by more than this [ms] took another branch of the map.
APART = 1e-3


@dataclass(frozen=True)
class Group:
    """Networks of `kinds` in all `sizes` (M, N), for the reference padded to the largest; times in steps of DT."""

    kinds: tuple
    sizes: tuple
    steps: int
    events: int
    seeds: int
    capacity: int
    step_capacity: int | None = None
    at_a_time: int | None = None


PLAIN = ("uniform", "each its own", "zero delay", "tau_mem = tau_syn")
GROUPS = {
    "small": Group(precision.KINDS, ((1, 1), (700, 1), (1, 3), (700, 3), (1, 32), (700, 32)), 160, 160, 1, 8192),
    "middle": Group(precision.KINDS, ((700, 100), (1, 257)), 80, 80, 1, 16384, None, 10),
    "large": Group((*PLAIN, "equal times", "all firing"), ((700, 1000),), 40, 40, 1, 65536, None, 1),
    "long": Group(PLAIN, ((700, 33),), 3000, 3000, 2, 16384, 16, 8),
}


def measure(group):
    """The comparison of all networks of the group (`precision.Compared`)."""
    duration = group.steps * DT
    cases = [
        precision.draw(kind, *size, group.events, duration, LONGEST, seed)
        for kind in group.kinds
        for size in group.sizes
        for seed in range(group.seeds)
    ]
    options = {"duration": duration, "dt": DT, "longest": LONGEST, "capacity": group.capacity}
    most = [max(size[k] for size in group.sizes) for k in range(2)]
    alike = [precision.padded(case, *most) for case in cases]
    by_reference = []
    for dtype in ("float32", "float64"):
        found = precision.computed(
            alike,
            "reference",
            dtype,
            **options,
            step_capacity=group.step_capacity,
            at_a_time=group.at_a_time,
        )
        by_reference.append([precision.cropped(one, case) for one, case in zip(found, cases, strict=True)])
    mine = precision.by_size(cases, "native", "float32", **options, at_a_time=group.at_a_time)
    return precision.compared(mine, *by_reference)


def rows(name, found):
    """Lines of the table, one a result."""
    for result, (mine, reference) in found.pooled().items():
        got, own = (np.quantile(x, precision.PARTS) if len(x) else np.zeros(2) for x in (mine, reference))
        worst = max(got / np.maximum(own, 0.5 * precision.FLOOR))
        more, less = found.worse(result)
        parts = [f"{a:.1e} / {b:.1e}" for a, b in zip(got, own, strict=True)]
        yield f"| {name} | {result} | {len(mine)} | {parts[0]} | {parts[1]} | {worst:.2f} | {more} : {less} |"


def main():
    parser = argparse.ArgumentParser(description="float32 errors of the compiled kernels beside the reference's own")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, {platform.machine()}, JAX {jax.__version__}\n")
    print("| group | result | numbers | median, kernel / reference | 95th percentile | worst | networks |")
    print("|---|---|---|---|---|---|---|")
    summary, everything = [], []
    for name in options.groups:
        begin = time.perf_counter()
        found = measure(GROUPS[name])
        everything.append(found)
        print(*rows(name, found), sep="\n", flush=True)
        seconds = time.perf_counter() - begin
        of_kernel, of_reference = found.apart(APART / (GROUPS[name].steps * DT))
        split = f"{of_kernel} of the kernel and {of_reference} of the reference"
        compared = f"{len(found.by_network)} of {found.every} networks compared"
        summary.append(f"{name}: {compared}, a spike on another branch in {split}; {seconds:.0f} s")
    if len(everything) > 1:
        networks = [pair for found in everything for pair in found.by_network]
        print(*rows("all", precision.Compared(sum(found.every for found in everything), networks)), sep="\n")
    print("", *summary, sep="\n")


if __name__ == "__main__":
    main()
