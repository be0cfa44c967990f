"""Compiled kernels, JAX reference, and a dense scan without delays: seconds of forward and of forward and gradient.

    python -m benchmarks.backends                                the work described below, on JAX's default device
    python -m benchmarks.backends --work speech                  shipped spoken digits, delays of the 3-D start
    python -m benchmarks.backends --longest 500 --dt 0.1         delays 0-500 ms, 13,705 steps
    python -m benchmarks.backends --hidden 100 256 512 --batch 32 256 --rows kernels dense
    python -m benchmarks.backends --scheme grid --neuron adex    the grid scheme, which alone has compiled AdEx

The work: 700 inputs with 8,000 events a sample, normally distributed around a quarter of 1,370 ms (so most lie in the
first half), N recurrent neurons that fire at `--rate`, uniform delays. The loss is the sum of squared spike counts;
ours gives the gradient for all weights and delays, the dense scan for all weights.

The dense scan is what one writes without a library: inputs as a raster, one matrix product for all steps, a LIF loop
with a surrogate gradient, no delays. It is run in turns with the others, so that all see the same machine. Seconds are
of the whole call after compilation, median (least to most); processor seconds are of all threads, user and system
apart. `lost` counts spikes that found no record: it must be 0. Peak memory is the device's own count since the start of
the process, where it keeps one: for that of one row run that row alone.
"""

# ruff: noqa: T201 - its output is the table

import argparse
import os
import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import LIF, AdEx, Events, Layer, data, kernels, simulate
from ranvier.space import init_space

N_INPUTS = 700
SPEECH_DURATION = 1124.5
NEURONS = {"lif": LIF(), "adex": AdEx()}
# Records a sample: for this many times the rate that is asked for.
ROOM = 5


@dataclass(frozen=True)
class Work:
    """Events (B, E), (w_in, d_in, w_rec, d_rec), and how long it lasts [ms]."""

    events: Events
    arrays: tuple
    duration: float
    longest: float


def random_events(batch, n_events, duration, seed=0):
    r = np.random.default_rng(seed)
    times = r.normal(duration / 4, duration / 8, (batch, n_events))
    times = np.sort(np.where((times >= 0) & (times < duration), times, r.uniform(0, duration / 2, times.shape)), axis=1)
    channel = r.integers(0, N_INPUTS, times.shape)
    return Events(jnp.asarray(times, jnp.float32), jnp.asarray(channel, jnp.int32), N_INPUTS)


def make(options, n, batch):
    r = np.random.default_rng(0)
    w_in = jnp.asarray(0.3 + r.normal(size=(N_INPUTS, n)), jnp.float32)
    w_rec = jnp.asarray(0.1 / np.sqrt(n) * r.normal(size=(n, n)), jnp.float32)
    if options.work == "speech":
        train = data.load("speech").train
        space = init_space("3", jax.random.key(0), N_INPUTS, n)
        events, duration = train.batch(np.arange(batch) % len(train)), SPEECH_DURATION
        d_in, d_rec = space.d_in().delays(), space.d_rec().delays()
    else:
        events, duration = random_events(batch, options.events, options.duration), options.duration
        d_in, d_rec = (
            jnp.asarray(r.uniform(0, options.longest, shape), jnp.float32) for shape in ((N_INPUTS, n), (n, n))
        )
    longest = float(max(d_in.max(), d_rec.max()))
    work = Work(events, (w_in, d_in, w_rec, d_rec), duration, longest)
    scale = options.scale or find_scale(work, options)
    return Work(events, (scale * w_in, d_in, w_rec, d_rec), duration, longest)


def find_scale(work, options):
    """The scale of the input weights at which the first samples fire at the rate asked for."""
    some, neuron = work.events[:4], NEURONS[options.neuron]

    @jax.jit
    def rate_at(scale):
        w_in, *rest = work.arrays
        layer = Layer(scale * w_in, *rest, neuron=neuron)
        s = simulate(layer, some, duration=work.duration, dt=1.0, max_delay=work.longest, scheme=options.scheme)
        return s.spike_count.mean() / work.duration * 1e3

    low, high = 1e-3, 0.1
    for _ in range(12):
        scale = (low * high) ** 0.5
        low, high = (scale, high) if float(rate_at(scale)) < options.rate else (low, scale)
    return scale


def ours(backend, work, dt, options):
    n = work.arrays[0].shape[1]
    records = max(256, int(ROOM * options.rate * n * work.duration / 1e3))

    def loss(arrays, events):
        s = simulate(
            Layer(*arrays, neuron=NEURONS[options.neuron]),
            events,
            duration=work.duration,
            dt=dt,
            max_delay=work.longest,
            scheme=options.scheme,
            backend=backend,
            capacity=records,
            step_capacity=None if backend == "native" else 16,
        )
        return jnp.sum(s.spike_count**2), (s.spike_count, s.overflow.sum())

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
        w_in, w_rec = arrays
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
        return jnp.sum(count**2), (count, 0)

    return loss


class Row:
    """One line of the table: two compiled programs and how long their calls took."""

    def __init__(self, name, loss, arrays, inputs):
        self.name, self.arguments = name, (arrays, inputs)
        self.calls = [jax.jit(loss), jax.jit(jax.value_and_grad(loss, has_aux=True))]
        self.seconds, self.processor = ([], []), []
        started = time.perf_counter()
        for call in self.calls:
            out = jax.block_until_ready(call(*self.arguments))
        self.compilation = time.perf_counter() - started
        (_, (count, lost)), _ = out
        self.count, self.lost = float(count.mean()), int(lost)

    def run(self):
        for call, seconds in zip(self.calls, self.seconds, strict=True):
            before, started = os.times(), time.perf_counter()
            jax.block_until_ready(call(*self.arguments))
            seconds.append(time.perf_counter() - started)
        after = os.times()
        self.processor.append((after.user - before.user, after.system - before.system))

    def cells(self, work):
        batch = len(work.events)
        spread = [f"{statistics.median(x):.4f} ({min(x):.4f} to {max(x):.4f})" for x in self.seconds]
        user, system = (statistics.median(x) for x in zip(*self.processor, strict=True))
        rate = f"{self.count / work.duration * 1e3:.1f}"
        per_second = f"{batch / statistics.median(self.seconds[1]):.0f}"
        return [*spread, f"{user:.2f} + {system:.2f}", rate, str(self.lost), per_second, f"{self.compilation:.1f}"]


def peak():
    stats = jax.local_devices()[0].memory_stats()
    return f"{stats['peak_bytes_in_use'] / 2**20:.0f}" if stats and "peak_bytes_in_use" in stats else ""


def rows(options, work, dt):
    out = []
    if "kernels" in options.rows and kernels.status().found:
        out.append(Row("compiled kernels", ours("native", work, dt, options), work.arrays, work.events))
    if "reference" in options.rows:
        out.append(Row("JAX reference", ours("reference", work, dt, options), work.arrays, work.events))
    if "dense" in options.rows:
        raster = jnp.swapaxes(work.events.to_dense(dt, work.duration), 0, 1).astype(jnp.float32)
        out.append(Row("dense scan, no delays", dense(dt), work.arrays[::2], raster))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", choices=("random", "speech"), default="random")
    add("--scheme", choices=("continuous", "grid"), default="continuous")
    add("--neuron", choices=NEURONS, default="lif", help="adex: compiled for the grid scheme alone")
    add("--rows", nargs="+", choices=("kernels", "dense", "reference"), default=["kernels", "dense"])
    add("--hidden", type=int, nargs="+", default=[100], help="N")
    add("--batch", type=int, nargs="+", default=[32])
    add("--dt", type=float, nargs="+", default=[0.5], help="ms")
    add("--duration", type=float, default=1370.5, help="ms, random work")
    add("--longest", type=float, default=20.0, help="ms, longest delay of the random work")
    add("--events", type=int, default=8000, help="a sample of the random work")
    add("--rate", type=float, default=10.0, help="Hz of a hidden neuron at dt 1")
    add("--scale", type=float, help="of the input weights, instead of a search for the rate")
    add("--repeats", type=int, default=7)
    add("--device", action="store_true", help="print the devices and stop")
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"JAX {jax.__version__}, {jax.default_backend()}, {device.device_kind}, {os.cpu_count()} processors")
    print(kernels.status().reason)
    print(f"{options.scheme} scheme, {type(NEURONS[options.neuron]).__name__}")
    if options.device:
        return
    head = (
        "what | N | batch | dt | longest delay ms | forward s | forward and gradient s | processor s | rate Hz | lost"
    )
    print(f"\n| {head} | samples/s | compilation s | peak MiB |\n|{'---|' * 13}")
    for n in options.hidden:
        for batch in options.batch:
            work = make(options, n, batch)
            for dt in options.dt:
                table = rows(options, work, dt)
                for _ in range(options.repeats):
                    for row in table:
                        row.run()
                for row in table:
                    setting = [row.name, str(n), str(batch), f"{dt:g}", f"{work.longest:.0f}"]
                    print("| " + " | ".join([*setting, *row.cells(work), peak()]) + " |", flush=True)
                if len(table) > 1 and options.rows[-1] == "dense":
                    times = [b / a for a, b in zip(table[0].seconds[1], table[-1].seconds[1], strict=True)]
                    print(f"\n{table[0].name}: {statistics.median(times):.1f} times as fast as the dense scan "
                          f"({min(times):.1f} to {max(times):.1f})\n", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
