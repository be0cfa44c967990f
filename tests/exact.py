"""The yardstick of the simulator: a LIF network with exponential synapses, one event at a time, in float64.

Between two events of a neuron the solution is written down, not stepped; a crossing of the threshold is a root of it.
So nothing here knows of time steps, and nothing here is shared with the code under test.

    dv/dt = -v/tau_mem + i        di/dt = -i/tau_syn        v >= v_th: spike, v -> 0, i is kept
    v(h) = v exp(-h/tau_mem) + i kappa(h)        i(h) = i exp(-h/tau_syn)

The gradient walks the recorded events backwards (EventProp with delays): continuous adjoints between the events, a jump
at each spike. `tests/test_exact.py` holds both against finite differences and against brute force.
"""

import heapq
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

INPUT, RECURRENT, SPIKE, END = range(4)


@dataclass(frozen=True)
class Net:
    """One network with its input: weights and delays source first, times in ms, currents in threshold/ms.

    Parameters
    ----------
    w_in, d_in : (M, N) [1/ms], [ms]
    w_rec, d_rec : (N, N) [1/ms], [ms], or None (no recurrence; no recurrent delay)
    times, channels : (E,) [ms], input channel of each event
    duration : [ms]; nothing at or after it happens
    tau_mem, tau_syn, v_th : () or (N,) [ms], [ms], [1]
    """

    w_in: np.ndarray
    d_in: np.ndarray
    w_rec: Any
    d_rec: Any
    times: np.ndarray
    channels: np.ndarray
    duration: float
    tau_mem: float | np.ndarray = 10.0
    tau_syn: float | np.ndarray = 2.0
    v_th: float | np.ndarray = 1.0

    @property
    def n(self):
        return self.w_in.shape[1]

    def per_neuron(self, name):
        """The parameter `name` as one float a neuron."""
        return np.broadcast_to(np.asarray(getattr(self, name), float), (self.n,)).tolist()


@dataclass(frozen=True)
class Solution:
    """spikes: [(time, neuron)] in order; v, i: (N,) at `duration`; tape: every event, as the backward walk needs it."""

    spikes: list
    v: np.ndarray
    i: np.ndarray
    tape: list

    def of(self, neuron):
        """The spike times of one neuron."""
        return np.array([t for t, j in self.spikes if j == neuron])

    def first(self, neuron):
        """The index in `spikes` of the first spike of one neuron, or None."""
        return next((k for k, (_, j) in enumerate(self.spikes) if j == neuron), None)


@dataclass(frozen=True)
class Gradient:
    """dL by each field of `Net`; the time constants and thresholds always one number a neuron."""

    w_in: np.ndarray
    d_in: np.ndarray
    w_rec: np.ndarray
    d_rec: np.ndarray
    times: np.ndarray
    tau_mem: np.ndarray
    tau_syn: np.ndarray
    v_th: np.ndarray


# ---------------------------------------------------------------------------------------------- one neuron, no events


def kappa(h, tau_mem, tau_syn):
    """integral over s in [0, h] of exp(-(h - s)/tau_mem) exp(-s/tau_syn): the voltage at h of a unit current at 0."""
    c = 1 / tau_syn - 1 / tau_mem
    if c == 0:
        return h * math.exp(-h / tau_mem)
    # The slower exponential is pulled out, so that what remains is bounded.
    if c > 0:
        return math.exp(-h / tau_mem) * -math.expm1(-c * h) / c
    return math.exp(-h / tau_syn) * math.expm1(c * h) / c


def kappa_by_taus(h, tau_mem, tau_syn):
    """d kappa/d tau_mem and d kappa/d tau_syn: the same integral with (h - s)/tau_mem^2, or s/tau_syn^2, inside."""
    c = 1 / tau_syn - 1 / tau_mem
    x = c * h
    if abs(x) < 0.1:
        # integral of (h - s) exp(-cs) = h^2 sum (-x)^n/(n+2)!, integral of s exp(-cs) = h^2 sum (-x)^n/(n! (n+2)).
        late = h * h * sum((-x) ** n / math.factorial(n + 2) for n in range(12))
        early = h * h * sum((-x) ** n / (math.factorial(n) * (n + 2)) for n in range(12))
        decay = math.exp(-h / tau_mem)
        return decay * late / tau_mem**2, decay * early / tau_syn**2
    slow, fast = math.exp(-h / tau_mem), math.exp(-h / tau_syn)
    return (fast - slow + x * slow) / c**2 / tau_mem**2, (slow - fast * (1 + x)) / c**2 / tau_syn**2


def voltage(h, v, i, tau_mem, tau_syn):
    """v(h) without events."""
    return v * math.exp(-h / tau_mem) + i * kappa(h, tau_mem, tau_syn)


def crossing(v, i, horizon, tau_mem, tau_syn, v_th):
    """First h in [0, horizon] with v(h) >= v_th, else inf. `horizon` may be inf.

    v' has one zero at most, so v reaches a positive threshold only while it rises from the start, up to the peak
    q(h*) = (tau_mem i - v)/(i + c v), v_peak = tau_mem i exp(-h*/tau_syn), and it is monotone until there.
    """
    if v >= v_th:
        return 0.0
    if i <= 0 or tau_mem * i <= v or max(v, 0.0) + i * horizon < v_th:
        return math.inf
    c = 1 / tau_syn - 1 / tau_mem
    if i + c * v <= 0:
        return math.inf
    q = (tau_mem * i - v) / (i + c * v)
    peak = math.log1p(c * q) / c if c else q
    top = min(peak, horizon)
    if voltage(top, v, i, tau_mem, tau_syn) < v_th:
        return math.inf
    low, high, h = 0.0, top, 0.5 * top
    for _ in range(200):
        value = voltage(h, v, i, tau_mem, tau_syn)
        if value >= v_th:
            high = h
        else:
            low = h
        slope = i * math.exp(-h / tau_syn) - value / tau_mem
        new = h - (value - v_th) / slope if slope > 0 else low
        if not low < new < high:
            new = 0.5 * (low + high)
        if abs(new - h) <= 1e-16 * h or high - low <= 1e-16 * high:
            return new
        h = new
    return h


# ------------------------------------------------------------------------------------------------------- the network


def solve(net, single_spike=False):
    """Simulate `net` exactly. With `single_spike` a neuron that fired never fires again (its v is still reset)."""
    tau_mem, tau_syn, v_th = (net.per_neuron(name) for name in ("tau_mem", "tau_syn", "v_th"))
    n = net.n
    w_in, d_in = np.asarray(net.w_in, float).tolist(), np.asarray(net.d_in, float).tolist()
    recurrent = net.w_rec is not None
    w_rec = np.asarray(net.w_rec, float).tolist() if recurrent else []
    d_rec = np.zeros((n, n)).tolist() if net.d_rec is None else np.asarray(net.d_rec, float).tolist()
    channels = [int(c) for c in net.channels]

    queue = [[] for _ in range(n)]
    for e, t in enumerate(np.asarray(net.times, float).tolist()):
        for j in range(n):
            x = t + d_in[channels[e]][j]
            if x < net.duration:
                queue[j].append((x, INPUT, e))
    for arrivals in queue:
        heapq.heapify(arrivals)

    spikes, tape = [], []
    at, v, i, fired = [0.0] * n, [0.0] * n, [0.0] * n, [False] * n
    spike_at = [math.inf] * n

    def advance(j, t, kind, source):
        h = t - at[j]
        tape.append((kind, j, source, h, v[j], i[j]))
        v[j], i[j] = voltage(h, v[j], i[j], tau_mem[j], tau_syn[j]), i[j] * math.exp(-h / tau_syn[j])
        at[j] = t

    def predict(j):
        # Only up to the next arrival known by now: one that is sent later and comes earlier makes us ask again.
        if not (single_spike and fired[j]):
            horizon = (queue[j][0][0] if queue[j] else net.duration) - at[j]
            spike_at[j] = at[j] + crossing(v[j], i[j], horizon, tau_mem[j], tau_syn[j], v_th[j])

    while True:
        t, j = min((min(spike_at[j], queue[j][0][0] if queue[j] else math.inf), j) for j in range(n))
        if t >= net.duration:
            break
        if spike_at[j] <= t:
            advance(j, t, SPIKE, len(spikes))
            v[j], fired[j], spike_at[j] = 0.0, True, math.inf
            spikes.append((t, j))
            for target in range(n) if recurrent else ():
                x = t + d_rec[j][target]
                if x < net.duration:
                    heapq.heappush(queue[target], (x, RECURRENT, len(spikes) - 1))
        else:
            _, kind, source = heapq.heappop(queue[j])
            advance(j, t, kind, source)
            i[j] += w_in[channels[source]][j] if kind == INPUT else w_rec[spikes[source][1]][j]
        predict(j)
    for j in range(n):
        advance(j, net.duration, END, None)
    return Solution(spikes, np.array(v), np.array(i), tape)


def gradient(net, solution, a=None, b=None):
    """Exact gradient of L = sum_j a_j v_j(duration) + sum_k b_k t_k.

    Parameters
    ----------
    solution : of `solve(net)`
    a : (N,), b : (number of spikes,), None for zero
    """
    tau_mem, tau_syn, v_th = (net.per_neuron(name) for name in ("tau_mem", "tau_syn", "v_th"))
    n = net.n
    lam_v = np.zeros(n).tolist() if a is None else np.asarray(a, float).tolist()
    lam_i = [0.0] * n
    by_spike = np.zeros(len(solution.spikes)) if b is None else np.array(b, float)
    channels = [int(c) for c in net.channels]
    shapes = {"w_in": net.w_in.shape, "d_in": net.w_in.shape, "w_rec": (n, n), "d_rec": (n, n), "times": len(channels)}
    out = Gradient(**{f.name: np.zeros(shapes.get(f.name, n)) for f in fields(Gradient)})
    for kind, j, source, h, v0, i0 in reversed(solution.tape):
        if kind == SPIKE:
            # dt_s = (dv_th - dv)/slope with dv at a fixed time; then dv after the reset = -i dt_s.
            current = i0 * math.exp(-h / tau_syn[j])
            by_time = (by_spike[source] - lam_v[j] * current) / (current - v_th[j] / tau_mem[j])
            out.v_th[j] += by_time
            lam_v[j] = -by_time
        elif kind != END:
            if kind == INPUT:
                row, weight = channels[source], net.w_in[channels[source]][j]
                by_weight, by_delay = out.w_in, out.d_in
            else:
                row = solution.spikes[source][1]
                weight, by_weight, by_delay = net.w_rec[row][j], out.w_rec, out.d_rec
            by_arrival = weight * (lam_i[j] / tau_syn[j] - lam_v[j])
            by_weight[row, j] += lam_i[j]
            by_delay[row, j] += by_arrival
            if kind == INPUT:
                out.times[source] += by_arrival
            else:
                by_spike[source] += by_arrival
        slow, fast = math.exp(-h / tau_mem[j]), math.exp(-h / tau_syn[j])
        by_mem, by_syn = kappa_by_taus(h, tau_mem[j], tau_syn[j])
        out.tau_mem[j] += lam_v[j] * (v0 * h / tau_mem[j] ** 2 * slow + i0 * by_mem)
        out.tau_syn[j] += lam_v[j] * i0 * by_syn + lam_i[j] * i0 * h / tau_syn[j] ** 2 * fast
        lam_i[j] = fast * lam_i[j] + kappa(h, tau_mem[j], tau_syn[j]) * lam_v[j]
        lam_v[j] = slow * lam_v[j]
    return out


def loss(solution, a=None, b=None):
    """sum_j a_j v_j(duration) + sum_k b_k t_k."""
    value = 0.0 if a is None else float(np.dot(a, solution.v))
    return value if b is None else value + float(np.dot(b, [t for t, _ in solution.spikes]))


def finite_differences(net, a=None, b=None, names=None, eps=1e-5):
    """The gradient again by central differences of `solve`, as a dict; refuses where a spike appears or disappears."""
    order = [j for _, j in solve(net).spikes]
    out = {}
    for name in names or [f.name for f in fields(Gradient)]:
        if getattr(net, name) is None:
            continue
        per_neuron = name in ("tau_mem", "tau_syn", "v_th")
        base = np.array(net.per_neuron(name) if per_neuron else getattr(net, name), float)
        out[name] = np.zeros(base.shape)
        for index in np.ndindex(base.shape):
            values = []
            for sign in (1, -1):
                moved = base.copy()
                moved[index] += sign * eps
                solution = solve(replace(net, **{name: moved}))
                assert [j for _, j in solution.spikes] == order, f"the spikes change within eps of {name}{index}"
                values.append(loss(solution, a, b))
            out[name][index] = (values[0] - values[1]) / (2 * eps)
    return out


def arrivals(net, solution):
    """All arrival times (input and recurrent) before `duration`, sorted."""
    found = [t + d for t, c in zip(net.times, net.channels, strict=True) for d in net.d_in[int(c)]]
    if net.w_rec is not None:
        d_rec = np.zeros((net.n, net.n)) if net.d_rec is None else net.d_rec
        found += [t + d for t, j in solution.spikes for d in d_rec[j]]
    return np.sort([x for x in found if x < net.duration])


# -------------------------------------------------------------------------------------------------- random networks

KINDS = ("plain", "mixed", "short", "drive", "equal")


def random_network(seed, kind="plain", off_edges=None, margin=1e-4):
    """6 inputs, 4 recurrent neurons, 10 input spikes, 40 ms, strong weights, 14 to 50 output spikes.

    Parameters
    ----------
    kind : plain, mixed (signs), short (recurrent delays from 0.02 ms), drive (six-fold input, any number of spikes
        from 14), equal (tau_mem = tau_syn)
    off_edges : [ms] or None. Draw again until all arrivals and spikes are `margin` away from its multiples (finite
        differences of a scheme with steps are meaningful only there)
    """
    assert kind in KINDS
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    while True:
        # A spike brings its target about 2 w spikes: the recurrent mean stays below 1/8, or four neurons run away.
        low_in, high_in, low_rec, high_rec = {
            "plain": (0.1, 0.7, 0.0, 0.12),
            "mixed": (-0.4, 1.2, -0.4, 0.4),
            "short": (0.1, 0.8, -0.2, 0.2),
            "drive": (0.6, 4.8, 0.0, 0.1),
            "equal": (0.02, 0.16, 0.0, 0.03),
        }[kind]
        net = Net(
            w_in=rng.uniform(low_in, high_in, (6, 4)),
            d_in=rng.uniform(0.0, 8.0, (6, 4)),
            w_rec=rng.uniform(low_rec, high_rec, (4, 4)),
            d_rec=rng.uniform(0.02, 0.5, (4, 4)) if kind == "short" else rng.uniform(1.0, 8.0, (4, 4)),
            times=np.sort(rng.uniform(0.0, 30.0, 10)),
            channels=rng.integers(0, 6, 10),
            duration=40.0,
            tau_mem=10.0,
            tau_syn=10.0 if kind == "equal" else 2.0,
        )
        solution = solve(net)
        if len(solution.spikes) < 14 or (kind != "drive" and len(solution.spikes) > 50):
            continue
        if off_edges is not None:
            moments = np.concatenate([arrivals(net, solution), [t for t, _ in solution.spikes]])
            distance = np.abs(moments - off_edges * np.round(moments / off_edges))
            if distance.min() < margin:
                continue
        return net
