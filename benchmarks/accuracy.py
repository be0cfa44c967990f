"""How far the schemes are from the exact solution: spike times and gradients, at several dt, in float64 and float32.

    python -m benchmarks.accuracy                      everything, a Markdown table on stdout
    python -m benchmarks.accuracy --networks 5 --kinds plain --dt 0.5 0.1 --no-dense

Sparse: random networks of 4 recurrent neurons, 14 to 50 spikes in 40 ms (`tests.exact.random_network`). Dense: 3
spoken digits of the shipped set into 4 recurrent neurons at 80 to 110 Hz, with positive weights and with both signs.
Spikes are matched neuron by neuron, in order; a neuron with a wrong number of spikes is counted, its times not used.
The error of a network is that of its worst spike time.

The gradient is that of sum_j v_j(end) + the sum of the first spike times (sparse) or of all spike times (dense). Its
error in a network is the Frobenius norm of the difference relative to that of the exact one, the worse of the two
matrices of weights, and of delays; only networks with all spike counts right have one. A single delay can be wrong by
its own size at any dt: the exact derivative by the time of an arrival jumps to zero when the arrival falls behind a
spike of its target, and a bucket that holds both cannot tell.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import ranvier
from tests import exact

SPARSE_DELAY = 8.0
DENSE_DELAY = 20.0
WEIGHTS, DELAYS = ("w_in", "w_rec"), ("d_in", "d_rec")
COLUMNS = (
    "input",
    "scheme",
    "dt",
    "dtype",
    "spike time, median / 95 %",
    "network, median / worst",
    "wrong neurons",
    "gradient of weights, median / worst",
    "of delays",
)
ROW = "| " + " | ".join(["{}"] * len(COLUMNS)) + " |"


@dataclass(frozen=True)
class Case:
    """Networks of one shape with their exact solutions and gradients, to be simulated as one batch."""

    name: str
    nets: list
    solutions: list
    gradients: list
    duration: float
    max_delay: float
    all_spikes: bool

    @classmethod
    def of(cls, name, nets, max_delay, all_spikes):
        solutions = [exact.solve(net) for net in nets]
        gradients = []
        for net, solution in zip(nets, solutions, strict=True):
            summed = np.full(len(solution.spikes), float(all_spikes))
            summed[[k for k in map(solution.first, range(net.n)) if k is not None]] = 1.0
            gradients.append(exact.gradient(net, solution, np.ones(net.n), summed))
        return cls(name, nets, solutions, gradients, nets[0].duration, max_delay, all_spikes)


def sparse(kind, n_networks):
    return Case.of(kind, [exact.random_network(seed, kind) for seed in range(n_networks)], SPARSE_DELAY, False)


def dense(signed):
    """The first 3 test samples with 5,000 to 7,000 events; the input weights are scaled until the rate is in range."""
    test = ranvier.data.load("speech").test
    events = np.diff(test.offsets)
    samples = np.flatnonzero((events >= 5000) & (events <= 7000))[:3]
    duration = float(np.ceil(max(test.times[test.offsets[k + 1] - 1] for k in samples))) + 10.0
    nets = []
    for k in samples:
        rng = np.random.default_rng([int(k), signed])
        here = slice(test.offsets[k], test.offsets[k + 1])
        # A mean of 0 would only give noise: a tenth of the weights' range is added, so that sound excites.
        w_in = rng.uniform(-0.9, 1.1, (700, 4)) if signed else rng.uniform(0.0, 1.0, (700, 4))
        net = exact.Net(
            w_in=w_in,
            d_in=np.clip(rng.normal(8.0, 1.0, (700, 4)), 0.0, DENSE_DELAY),
            w_rec=rng.uniform(-0.1, 0.1, (4, 4)) if signed else rng.uniform(0.0, 0.1, (4, 4)),
            d_rec=rng.uniform(1.0, 8.0, (4, 4)),
            times=test.times[here].astype(float),
            channels=test.channels[here],
            duration=duration,
        )
        nets.append(at_rate(net, float(test.times[here][-1])))
    return Case.of("dense, both signs" if signed else "dense, positive", nets, DENSE_DELAY, True)


def at_rate(net, active_ms, low_hz=80.0, high_hz=110.0):
    """`net` with its input weights scaled (bisection) to a mean rate in range during the `active_ms` of the sample."""
    low, high = 0.0, 1.0
    while True:
        scale = 0.5 * (low + high)
        scaled = replace(net, w_in=scale * net.w_in)
        rate = len(exact.solve(scaled).spikes) / net.n / active_ms * 1e3
        if low_hz <= rate <= high_hz:
            return scaled
        low, high = (scale, high) if rate < low_hz else (low, scale)


def simulate(case, scheme, dt, dtype):
    """For each network of the case: spikes [(time, neuron)] and the gradient, by name of the matrix."""
    matrices = {
        name: jnp.asarray(np.stack([getattr(net, name) for net in case.nets]), dtype) for name in WEIGHTS + DELAYS
    }
    width = max(len(net.times) for net in case.nets)
    times = np.full((len(case.nets), width), np.inf)
    channels = np.zeros((len(case.nets), width), np.int32)
    for k, net in enumerate(case.nets):
        times[k, : len(net.times)], channels[k, : len(net.times)] = net.times, net.channels
    first = case.nets[0]
    neuron = ranvier.LIF(tau_mem=first.tau_mem, tau_syn=first.tau_syn, v_th=first.v_th)
    # Twice the spikes there are, and some: a scheme that is wrong may have more.
    capacity = 2 * max(len(solution.spikes) for solution in case.solutions) + 64

    def loss(matrices, times, channels):
        layer = ranvier.Layer(**matrices, neuron=neuron)
        events = ranvier.Events(times[None], channels[None], first.w_in.shape[0])
        out = ranvier.simulate(
            layer,
            events,
            duration=case.duration,
            dt=dt,
            max_delay=case.max_delay,
            scheme=scheme,
            backend="reference",
            capacity=capacity,
        )
        summed = out.events.time if case.all_spikes else out.first_spike
        return out.v.sum() + jnp.where(jnp.isfinite(summed), summed, 0.0).sum(), (out.events, out.overflow)

    value = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))
    gradient, (events, overflow) = value(matrices, jnp.asarray(times, dtype), jnp.asarray(channels))
    spikes = []
    for time, channel in zip(np.asarray(events.time)[:, 0], np.asarray(events.channel)[:, 0], strict=True):
        real = np.isfinite(time)
        spikes.append(list(zip(time[real].astype(float).tolist(), channel[real].tolist(), strict=True)))
    gradient = {name: np.asarray(x, float) for name, x in gradient.items()}
    return spikes, [{name: x[k] for name, x in gradient.items()} for k in range(len(spikes))], int(np.sum(overflow))


def compare(case, spikes, gradients):
    """Errors of the spike times of each network, wrong neurons of each network, gradient errors of the right ones."""
    by_network, wrong, by_gradient = [], [], []
    for net, solution, got, gradient, expected in zip(
        case.nets, case.solutions, spikes, gradients, case.gradients, strict=True
    ):
        errors, bad = [], 0
        for j in range(net.n):
            times, right = np.array([t for t, i in got if i == j]), solution.of(j)
            if len(times) != len(right):
                bad += 1
            else:
                errors += abs(times - right).tolist()
        by_network.append(errors)
        wrong.append(bad)
        if not bad:
            by_gradient.append([max(relative(gradient[n], getattr(expected, n)) for n in g) for g in (WEIGHTS, DELAYS)])
    return by_network, wrong, np.array(by_gradient).reshape(-1, 2)


def relative(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def row(case, scheme, dt, dtype):
    spikes, gradients, overflow = simulate(case, scheme, dt, dtype)
    by_network, wrong, by_gradient = compare(case, spikes, gradients)
    every = [error for errors in by_network for error in errors]
    worst = [max(errors) for errors in by_network if errors]
    print(
        ROW.format(
            case.name,
            scheme,
            f"{dt:g}",
            dtype,
            pair(every, np.median, partial(np.percentile, q=95)),
            pair(worst, np.median, np.max),
            f"{sum(wrong)} of {sum(net.n for net in case.nets)}" + (f", {overflow} lost" if overflow else ""),
            *(pair(errors, np.median, np.max) for errors in by_gradient.T),
        ),
        flush=True,
    )


def pair(values, first, second):
    return f"{first(values):.0e} / {second(values):.0e}" if len(values) else "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", type=int, default=25, help="random networks of each kind")
    parser.add_argument("--kinds", nargs="*", default=["plain"], choices=exact.KINDS)
    parser.add_argument("--dt", nargs="+", type=float, default=[1.0, 0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"], choices=["float64", "float32"])
    parser.add_argument("--schemes", nargs="+", default=["continuous", "grid"], choices=["continuous", "grid"])
    parser.add_argument("--no-dense", dest="dense", action="store_false", help="leave the spoken digits out")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    command = " ".join(["python -m benchmarks.accuracy", *sys.argv[1:]])
    print(f"`{command}`, commit {commit.stdout.strip() or 'unknown'}, JAX {jax.__version__},")
    print(f"{jax.devices()[0].device_kind} {platform.machine()}. Times in ms.\n")
    print(ROW.format(*COLUMNS))
    print(ROW.format(*["---"] * len(COLUMNS)), flush=True)
    cases = [sparse(kind, options.networks) for kind in options.kinds]
    cases += [dense(signed) for signed in (False, True)] if options.dense else []
    for case in cases:
        for scheme in options.schemes:
            for dtype in options.dtypes:
                for dt in options.dt:
                    row(case, scheme, dt, dtype)


if __name__ == "__main__":
    main()
