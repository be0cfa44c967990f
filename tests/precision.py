"""How many digits a backend keeps in float32: beside the reference in float64, on the same random networks.

Networks are drawn in numbers that float32 holds exactly, so that both precisions compute the same thing. The error of
a number is its distance from the reference in float64, relative to the largest number of its array in its network;
numbers that are 0 there are left out (rows of channels without an event would make every median 0). Only networks
whose float32 and float64 references agree in the spikes of every neuron are compared: the others are another map.
Where the backend alone has another number of spikes, the errors of that neuron's spike times are infinite.
"""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import LIF, Events, Layer, simulate

PARAMETERS = ("w_in", "d_in", "w_rec", "d_rec", "tau_mem", "tau_syn", "v_th", "times")
KINDS = (
    "uniform",
    "each its own",
    "near the step",
    "no input",
    "all silent",
    "all firing",
    "equal times",
    "zero delay",
    "longest delay",
    "tau_mem = tau_syn",
)
# Below this an error needs no explanation, whatever the reference's own.
FLOOR = 1e-6
# What is compared of the errors: the median and the 95th percentile.
PARTS = (0.5, 0.95)


@dataclass(frozen=True)
class Case:
    """A network and one sample: arrays by the names of `PARAMETERS`, channels (E,)."""

    kind: str
    arrays: dict
    channels: np.ndarray

    @property
    def m(self):
        return self.arrays["w_in"].shape[0]

    @property
    def n(self):
        return self.arrays["w_in"].shape[1]


def draw(kind, m, n, n_events, duration, longest, seed):
    """A `Case` of `kind`: about 30 to 100 Hz, weights of both signs, delays of 0 to `longest` ms."""
    r = np.random.default_rng([seed, KINDS.index(kind), m, n])
    tau_mem, tau_syn = {"tau_mem = tau_syn": (5.0, 5.0), "near the step": (3.0, 0.6)}.get(kind, (10.0, 2.0))
    # else the rounding of one exp(-dt / tau) is in every number
    tau_mem, tau_syn = tau_mem * r.uniform(0.8, 1.2), tau_syn * r.uniform(0.8, 1.2)
    tau_syn = tau_mem if kind == "tau_mem = tau_syn" else tau_syn
    # the mean of uniform(-0.3, 1) is 0.35: the weight at which the mean voltage would be 1 without spikes
    unit = 0.8 * duration / (0.35 * n_events * tau_mem * tau_syn)
    scale = {"all silent": 1e-3, "all firing": 8.0}.get(kind, 1.3) * unit
    spread = 0.1 * (kind in ("each its own", "near the step"))
    times = np.sort(r.uniform(0.0, 0.8 * duration, n_events))
    if kind == "no input":
        times = np.full(n_events, np.inf)
    if kind == "equal times":
        times = np.sort(r.choice(r.uniform(0.0, 0.8 * duration, max(2, n_events // 8)), n_events))
    delays = {"zero delay": (0.0, 0.0), "longest delay": (longest, longest)}.get(kind, (0.0, longest))
    arrays = {
        "w_in": scale * r.uniform(-0.3, 1.0, (m, n)),
        "d_in": r.uniform(*delays, (m, n)),
        "w_rec": scale * r.uniform(-1.0, 1.0, (n, n)) * min(1.0, 5.0 / n),
        "d_rec": r.uniform(*delays, (n, n)),
        "tau_mem": tau_mem * (1 + spread * r.uniform(-1, 1, n)),
        "tau_syn": tau_syn * (1 + spread * r.uniform(-1, 1, n)),
        "v_th": 1 + spread * r.uniform(-1, 1, n),
        "times": times,
    }
    arrays = {name: x.astype(np.float32).astype(np.float64) for name, x in arrays.items()}
    return Case(kind, arrays, r.integers(0, m, n_events))


def padded(case, m, n):
    """The same network among idle channels and neurons: one compiled program of the reference serves many sizes."""
    rest = {"tau_mem": 10.0, "tau_syn": 2.0, "v_th": 1.0}
    sizes = {"w_in": (m, n), "d_in": (m, n), "w_rec": (n, n), "d_rec": (n, n)}
    arrays = dict(case.arrays)
    for name in PARAMETERS[:-1]:
        x = arrays[name]
        to = sizes.get(name, (n,))
        arrays[name] = np.pad(
            x, [(0, b - a) for a, b in zip(x.shape, to, strict=True)], constant_values=rest.get(name, 0.0)
        )
    return replace(case, arrays=arrays)


@cache
def _program(backend, duration, dt, longest, capacity, step_capacity):
    def loss(p, channels, counts):
        """Of the spike counts alone where `counts` is 1; of voltages and spike times alone where it is 0."""
        layer = Layer(p["w_in"], p["d_in"], p["w_rec"], p["d_rec"], LIF(p["tau_mem"], p["tau_syn"], p["v_th"]))
        s = simulate(
            layer,
            Events(p["times"][None], channels[None], p["w_in"].shape[0]),
            duration=duration,
            dt=dt,
            max_delay=longest,
            backend=backend,
            capacity=capacity,
            step_capacity=step_capacity,
            trace=True,
        )
        # a weight of its own for every neuron, the same whatever the number of idle ones
        weight = 1.5 + jnp.sin(jnp.arange(p["w_in"].shape[1], dtype=s.v.dtype))
        first, spikes = (jnp.where(jnp.isfinite(x[0]), x[0] / duration, 0.0) for x in (s.first_spike, s.events.time))
        smooth = (s.v[0] * weight).sum() + (first * weight).sum() + (spikes * weight[s.events.channel[0]]).sum()
        smooth = smooth + (s.trace[0].sum(0) * weight).sum() * dt / duration
        out = {
            "counts": s.spike_count[0],
            "first spike": s.first_spike[0],
            "v": s.v[0],
            "trace": s.trace[0],
            "time": s.events.time[0],
            "neuron": s.events.channel[0],
            "overflow": s.overflow[0],
        }
        return jnp.where(counts, (s.spike_count[0] * weight).sum(), smooth), out

    return jax.jit(jax.vmap(jax.grad(loss, has_aux=True), (0, 0, None)))


def computed(cases, backend, dtype, *, duration, dt, longest, capacity, step_capacity=None, at_a_time=None):
    """A dict of float64 arrays by name for each of `cases`, which have one shape."""
    call = _program(backend, duration, dt, longest, capacity, step_capacity)
    found = []
    each = at_a_time or len(cases)
    for part in (cases[k : k + each] for k in range(0, len(cases), each)):
        with jax.enable_x64(True):
            p = {name: jnp.asarray(np.stack([c.arrays[name] for c in part]), dtype) for name in PARAMETERS}
            channels = jnp.asarray(np.stack([c.channels for c in part]), jnp.int32)
            (by_count, out), (by_time, _) = (jax.device_get(call(p, channels, counts)) for counts in (True, False))
        for k in range(len(part)):
            one = {name: np.asarray(x[k], float) for name, x in out.items()}
            order = np.lexsort((one["time"], one["neuron"], np.isinf(one["time"])))
            real = order[: int(np.isfinite(one["time"]).sum())]
            one["neuron"], one["spike times"] = one["neuron"][real], one.pop("time")[real]
            for name in PARAMETERS:
                one[f"counts by {name}"] = np.asarray(by_count[name][k], float)
                one[f"times and v by {name}"] = np.asarray(by_time[name][k], float)
            found.append(one)
    return found


def by_size(cases, *args, **options):
    """`computed` for networks of several shapes, each as it is."""
    found = [None] * len(cases)
    for size in dict.fromkeys((case.m, case.n) for case in cases):
        here = [k for k, case in enumerate(cases) if (case.m, case.n) == size]
        for k, one in zip(here, computed([cases[k] for k in here], *args, **options), strict=True):
            found[k] = one
    return found


def cropped(one, case):
    """What `padded` added taken away again."""
    m, n = case.m, case.n
    out = {}
    for name, x in one.items():
        what = name.rsplit(" ", 1)[-1]
        if what in ("w_in", "d_in"):
            x = x[:m, :n]
        elif what in ("w_rec", "d_rec"):
            x = x[:n, :n]
        elif what in ("tau_mem", "tau_syn", "v_th", "counts", "v") or name == "first spike":
            x = x[:n]
        elif name == "trace":
            x = x[:, :n]
        out[name] = x
    return out


def agree(a, b):
    """Whether two results have the same spikes of every neuron, and room for all."""
    return np.array_equal(a["counts"], b["counts"]) and a["overflow"] == b["overflow"] == 0


def errors(got, exact):
    """By name, the errors of all numbers of `got` that are not 0 in `exact`."""
    out = {}
    for name, x in exact.items():
        if name in ("counts", "neuron", "overflow"):
            continue
        y = got[name]
        if name == "spike times":
            same = np.flatnonzero(got["counts"] == exact["counts"])
            y = np.full(len(x), np.inf)
            y[np.isin(exact["neuron"], same)] = got[name][np.isin(got["neuron"], same)]
        there = np.isfinite(x) & (x != 0)
        size = np.abs(x[there]).max(initial=0.0)
        out[name] = np.abs(y[there] - x[there]) / size if size else np.zeros(0)
    return out


@dataclass(frozen=True)
class Compared:
    """By name, for each network that could be compared, the errors of a backend and of the reference in float32."""

    every: int
    by_network: list

    def pooled(self):
        """By name, all errors of the backend and all of the reference."""
        names = self.by_network[0][0] if self.by_network else ()
        return {
            name: tuple(np.concatenate([pair[k][name] for pair in self.by_network]) for k in range(2)) for name in names
        }

    def worse(self, name):
        """How many networks have a larger 95th percentile of the backend than of the reference, and how many a smaller.

        The errors of a network stand and fall together: one arrival that falls behind a spike instead of before it is
        in all of them. So many numbers of few networks say less than they seem to, and this says it of each network.
        """
        pairs = [
            [np.quantile(errors[name], PARTS[1]) for errors in pair if len(errors[name])] for pair in self.by_network
        ]
        return sum(p[0] > p[1] for p in pairs if p), sum(p[0] < p[1] for p in pairs if p)

    def apart(self, limit):
        """How many networks have a spike of the backend that is off by more than `limit`, and of the reference.

        Far above rounding: the map has branches (are the arrivals of a step kicks, or one jump at its start?), and a
        number beside an edge may fall to either side. Whatever a neuron does then is passed on.
        """
        pairs = [[e["spike times"].max(initial=0.0) > limit for e in errors] for errors in self.by_network]
        return tuple(sum(pair[k] for pair in pairs) for k in range(2))


def compared(mine, single, double):
    """Errors of `mine` and of the reference in float32, `single`, against the reference in float64."""
    same = [agree(a, b) for a, b in zip(single, double, strict=True)]
    pairs = [(errors(a, c), errors(b, c)) for a, b, c, keep in zip(mine, single, double, same, strict=True) if keep]
    return Compared(len(same), pairs)
