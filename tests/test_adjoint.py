"""The adjoint that docs/equations.md states (Eq. 26 to 31), by plain loops, against autodiff of the scheme."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests import exact
from tests.simulated import CAPACITY, relative, simulated

DT = 1.0
NAMES = ("w_in", "d_in", "w_rec", "d_rec", "times", "v_th")


@dataclass
class Step:
    """One neuron in one step: state at its start, moments, spikes (g, index), where the kicks are, what arrived."""

    v: float
    i: float
    bucket: np.ndarray
    spikes: list
    arrivals: list
    v_free: float = 0.0
    i_free: float = 0.0
    fits: bool = False
    limit: str = ""
    y: float = 0.0
    s: float = 0.0
    kicks: tuple = field(default=(0.0, 0.0))


class Walk:
    """A network whose spikes are known: forward by Eq. 5 to 8 and 14 to 15, backward by Eq. 26 to 31."""

    def __init__(self, net, spikes, n_steps):
        self.net, self.n_steps, self.spikes = net, n_steps, spikes
        self.tau_mem, self.tau_syn, self.theta = net.tau_mem, net.tau_syn, net.v_th
        self.c = 1 / self.tau_syn - 1 / self.tau_mem
        self.met = Counter()
        self.steps = self.forward()

    def q(self, h):
        return h if self.c == 0 else math.expm1(self.c * h) / self.c

    def kappa(self, h):
        return math.exp(-h / self.tau_syn) * self.q(h)

    def forward(self):
        net, n = self.net, self.net.n
        waiting = [[[] for _ in range(n)] for _ in range(self.n_steps)]
        fired = [[[] for _ in range(n)] for _ in range(self.n_steps)]
        for k, (t, j) in enumerate(self.spikes):
            step = math.floor(t / DT)
            fired[step][j].append((t - step * DT, k))
            for o in range(n):
                x = t - step * DT + net.d_rec[j, o]
                ahead = max(math.floor(x / DT), 1)
                if step + ahead < self.n_steps:
                    arrival = (net.w_rec[j, o], (ahead + 1) * DT - x, "rec", j, k)
                    waiting[step + ahead][o].append(arrival)
        for e, (t, m) in enumerate(zip(net.times, net.channels, strict=True)):
            for o in range(n if math.isfinite(t) else 0):
                b = math.floor((t + net.d_in[m, o]) / DT)
                if b < self.n_steps:
                    waiting[b][o].append((net.w_in[m, o], (b + 1) * DT - t - net.d_in[m, o], "in", m, e))
        steps, v, i = [], np.zeros(n), np.zeros(n)
        for t in range(self.n_steps):
            for j in range(n):
                step = self.step(v[j], i[j], fired[t][j], waiting[t][j])
                steps.append(step)
                v[j] = step.v_free - sum(self.theta * math.exp(-(DT - g) / self.tau_mem) for g, _ in step.spikes)
                i[j] = step.i_free
        self.v = v
        return steps

    def step(self, v, i, spikes, arrivals):
        bucket = np.zeros(3)
        for w, h, *_ in arrivals:
            bucket += w * math.exp(-h / self.tau_syn) * self.q(h) ** np.arange(3)
        ji, jv, jq = bucket
        out = Step(v, i, bucket, spikes, arrivals)
        out.v_free = v * math.exp(-DT / self.tau_mem) + i * self.kappa(DT) + jv
        out.i_free = i * math.exp(-DT / self.tau_syn) + ji
        longest = self.q(DT)
        if ji != 0 and -1e-13 < jv / ji < longest + 1e-13:
            y = jv / ji
            variance = jq / ji - y * y
            s = math.sqrt(variance) if variance > 1e-13 * abs(jq / ji) else 0.0
            room = min(y, longest - y)
            if s > room:
                s, out.limit = room, "start" if room < y else "end"
            times = [DT - (z if self.c == 0 else math.log1p(self.c * z) / self.c) for z in (y + s, y - s)]
            out.fits, out.y, out.s, out.kicks = True, y, s, tuple(times)
        return out

    def backward(self, a, by_time, by_count):
        """Gradient by name of sum a v + sum by_time t + sum by_count count."""
        net = self.net
        out = {name: np.zeros(np.shape(getattr(net, name))) for name in NAMES}
        out["v_th"] = np.zeros(net.n)
        by_spike = np.array(by_time, float)
        lv, li = np.array(a, float), np.zeros(net.n)
        for t in reversed(range(self.n_steps)):
            for j in range(net.n):
                step = self.steps[t * net.n + j]
                lv[j], li[j], for_moments, for_theta = self.step_back(step, lv[j], li[j], by_spike, by_count[j])
                out["v_th"][j] += for_theta
                for w, h, kind, row, source in step.arrivals:
                    f, q = math.exp(-h / self.tau_syn), self.q(h)
                    a_, b_, c_ = for_moments
                    out[f"w_{kind}"][row, j] += f * (a_ + q * b_ + q * q * c_)
                    slope = f - self.kappa(h) / self.tau_mem
                    bend = f * q * (2 + q * (1 / self.tau_syn - 2 / self.tau_mem))
                    by_arrival = w * (f / self.tau_syn * a_ - slope * b_ - bend * c_)
                    out[f"d_{kind}"][row, j] += by_arrival
                    if kind == "in":
                        out["times"][source] += by_arrival
                    else:
                        by_spike[source] += by_arrival
        return out

    def step_back(self, step, lv, li, by_spike, by_count):
        tau_mem, theta, y, s = self.tau_mem, self.theta, step.y, step.s
        gs = [g for g, _ in step.spikes]
        ls, us = [by_spike[k] for _, k in step.spikes], [0.0] * len(gs)
        surrogate = by_count * DT / 0.5 / (1 + abs(step.v_free - theta)) ** 2
        start_v = start_i = a = b = c = 0.0
        end_v, end_i, for_theta = lv + surrogate, li, -surrogate
        for k in reversed(range(len(gs))):
            g, e, back = gs[k], math.exp((DT - gs[k]) / tau_mem), self.kappa(gs[k] - DT)
            late = sum(us[m] * math.exp(-(gs[m] - g) / tau_mem) for m in range(k + 1, len(gs)))
            ls[k] -= theta / tau_mem * (lv * math.exp(-(DT - g) / tau_mem) + late)
            for_theta -= lv * math.exp(-(DT - g) / tau_mem)
            if g == 0.0:
                self.met["at once again" if k else "at once"] += 1
                continue
            first, second = step.kicks
            piece = "end" if not step.fits or g > second else "between" if g > first else "before"
            self.met[piece + (step.limit if piece == "between" else "")] += 1
            self.met["again"] += k > 0
            current = step.i * math.exp(-g / self.tau_syn)
            if piece == "end":
                current = step.i_free * math.exp((DT - g) / self.tau_syn)
            elif piece == "between":
                current += step.bucket[0] / 2 * math.exp((DT - g) / self.tau_syn)
            u = us[k] = -ls[k] / (current - theta / tau_mem)
            for_theta -= u * (1 + sum(math.exp(-(g - x) / tau_mem) for x in gs[:k]))
            if piece == "end":
                end_v, end_i = end_v + u * e, end_i + u * back
                continue
            start_v, start_i = start_v + u * math.exp(-g / tau_mem), start_i + u * self.kappa(g)
            if piece == "between" and not step.limit:
                a += u * (back / 2 + e * (y * y + s * s) / (4 * s))
                b += u * e * (1 - y / s) / 2
                c += u * e / (4 * s)
            elif piece == "between" and step.limit == "end":
                a, b = a + u * back / 2, b + u * e
            elif piece == "between":
                a += u * (back + e * self.q(DT)) / 2
        before_v = math.exp(-DT / tau_mem) * end_v + start_v
        before_i = math.exp(-DT / self.tau_syn) * end_i + self.kappa(DT) * end_v + start_i
        return before_v, before_i, (a + end_i, b + end_v, c), for_theta


@pytest.mark.slow
def test_the_stated_adjoint_is_the_derivative_of_the_reference(x64):
    nets = [exact.random_network(seed, kind) for kind in exact.KINDS for seed in range(4)]
    # So strong an input that neurons stay above threshold for steps; few events, so that the spikes can be recorded.
    burst = np.where(np.arange(10) < 4, 1.0, np.inf)
    nets += [replace(net, times=net.times * burst, w_in=2 * net.w_in) for net in nets if net.w_in.max() > 2]
    rng = np.random.default_rng(0)
    a, by_time, by_count = rng.normal(size=4), rng.normal(size=CAPACITY), rng.normal(size=4)
    runs = simulated(nets, DT, (a, np.zeros(4), by_time, by_count))
    met, compared = Counter(), 0
    for net, run in zip(nets, runs, strict=True):
        if len(run.spikes) == CAPACITY:
            continue
        compared += 1
        walk = Walk(net, run.spikes, round(net.duration / DT))
        assert np.abs(walk.v - run.v).max() < 1e-11
        gradient = walk.backward(a, by_time[: len(run.spikes)], by_count)
        met += walk.met
        for name in NAMES:
            assert relative(gradient[name], run.gradient[name]) < 1e-9, name
    assert compared >= 12
    every = {"before", "between", "betweenstart", "betweenend", "end", "again", "at once", "at once again"}
    assert every <= set(met), f"a branch was never taken: {met}"
