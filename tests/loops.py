"""The grid scheme by its definition: one step, one neuron, one synapse at a time, in float64; and its adjoint.

    v[t+1] = (1 - S[t]) (beta v[t] + dt i[t])        i[t+1] = alpha i[t] + arrivals[t]        S[t] = v[t] >= v_th
    AdEx:  v[t+1] = (1 - S[t]) (v[t] + dt (-v[t]/tau_mem + i[t] - z[t] + delta_t exp((v[t] - 0.5)/delta_t)))
           z[t+1] = z[t] + dt (-z[t]/tau_w + a v[t]) + b S[t]

An input event of time s belongs to step floor(s/dt), a delay is rounded to k whole steps, a spike of step s is in
arrivals[s + k].
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AdEx:
    """What AdEx has beyond LIF; numbers, the same for all neurons."""

    a: float = 0.01
    b: float = 0.02
    tau_w: float = 200.0
    delta_t: float = 0.1
    z0: float = 0.1


@dataclass(frozen=True)
class GridRun:
    """State at the start of each step, v, i, z: (T + 1, N); within each step, arrivals: (T, N), fired: (T, N) bool."""

    v: np.ndarray
    i: np.ndarray
    z: np.ndarray
    arrivals: np.ndarray
    fired: np.ndarray

    def spikes(self, dt):
        """[(time, neuron)] in order."""
        return [(t * dt, j) for t, j in np.argwhere(self.fired).tolist()]


def steps_of(d, dt):
    """Delay in whole steps, rounded to nearest."""
    return int(np.rint(d / dt))


def grid(net, dt, adex=None, single_spike=False):
    """Simulate `net` (`tests.exact.Net`) in the grid scheme: LIF, or AdEx with the parameters `adex`."""
    n, n_steps = net.n, math.ceil(net.duration / dt - 1e-9)
    tau_mem, tau_syn, v_th = (net.per_neuron(name) for name in ("tau_mem", "tau_syn", "v_th"))
    arrivals = np.zeros((n_steps, n))
    for t, channel in zip(net.times, net.channels, strict=True):
        for j in range(n):
            step = math.floor(t / dt) + steps_of(net.d_in[channel, j], dt)
            if step < n_steps:
                arrivals[step, j] += net.w_in[channel, j]
    v, i, z = (np.zeros((n_steps + 1, n)) for _ in range(3))
    z[0] = adex.z0 if adex else 0.0
    fired = np.zeros((n_steps, n), bool)
    for t in range(n_steps):
        for j in range(n):
            fired[t, j] = v[t, j] >= v_th[j] and not (single_spike and fired[:t, j].any())
            if fired[t, j] and net.w_rec is not None:
                for target in range(n):
                    step = t + (0 if net.d_rec is None else steps_of(net.d_rec[j, target], dt))
                    if step < n_steps:
                        arrivals[step, target] += net.w_rec[j, target]
        for j in range(n):
            if fired[t, j]:
                v[t + 1, j] = 0.0
            elif adex:
                v[t + 1, j] = v[t, j] + dt * rate(v[t, j], i[t, j], z[t, j], tau_mem[j], adex)
            else:
                v[t + 1, j] = math.exp(-dt / tau_mem[j]) * v[t, j] + dt * i[t, j]
            i[t + 1, j] = math.exp(-dt / tau_syn[j]) * i[t, j] + arrivals[t, j]
            if adex:
                z[t + 1, j] = z[t, j] + dt * (-z[t, j] / adex.tau_w + adex.a * v[t, j]) + adex.b * fired[t, j]
    return GridRun(v, i, z, arrivals, fired)


def rate(v, i, z, tau_mem, adex):
    """dv/dt."""
    out = i - v / tau_mem
    return out - z + adex.delta_t * math.exp((v - 0.5) / adex.delta_t) if adex else out


def grid_gradient(net, dt, run, a=None, first=None, adex=None):
    """Event-rule gradient of L = sum_j a_j v_j[T] + sum_j first_j (time of the first spike of j), as a dict.

    LIF, with M the derivative by the time of an arrival of unit weight, k the delay in steps, v'- and v'+ the slopes of
    v before and after the reset:

        M_i[t] = lam_i[t+1]/tau_syn - (1 - S[t]) lam_v[t+1]
        G_j[t] = sum_i w_ji M_i[t + k_ji] (+ first_j)
        lam_v[t] = (v'+/v'- if S[t] else beta) lam_v[t+1] - S[t] G_j[t]/v'-
        lam_i[t] = alpha lam_i[t+1] + (1 - S[t]) dt lam_v[t+1]
        dL/dw_ji = sum over spikes s of lam_i[s + k + 1]        dL/dd_ji = w_ji sum over spikes s of M_i[s + k]

    AdEx adds lam_z. At a spike z' falls by b/tau_w (z rises by b) and by a v_th (v falls to 0), so there
    dz = (b/tau_w + a v_th) dt_s: with either part left out the gradient does not converge.
    """
    n, n_steps = net.n, len(run.fired)
    tau_mem, tau_syn, v_th = (net.per_neuron(name) for name in ("tau_mem", "tau_syn", "v_th"))
    lam_v, lam_i, lam_z, by_time = (np.zeros((n_steps + 1, n)) for _ in range(4))
    lam_v[n_steps] = 0.0 if a is None else a
    firsts = [run.fired[:, j].argmax() if run.fired[:, j].any() else None for j in range(n)]

    for t in reversed(range(n_steps)):
        for j in range(n):
            by_time[t, j] = lam_i[t + 1, j] / tau_syn[j] - (0.0 if run.fired[t, j] else lam_v[t + 1, j])
        for j in range(n):
            v, i, z = run.v[t, j], run.i[t, j], run.z[t, j]
            lam_i[t, j] = math.exp(-dt / tau_syn[j]) * lam_i[t + 1, j]
            if run.fired[t, j]:
                before = rate(v, i, z, tau_mem[j], adex)
                after = rate(0.0, i + run.arrivals[t, j], z + (adex.b if adex else 0.0), tau_mem[j], adex)
                by_spike = first[j] if first is not None and firsts[j] == t else 0.0
                if net.w_rec is not None:
                    for target in range(n):
                        step = t + (0 if net.d_rec is None else steps_of(net.d_rec[j, target], dt))
                        if step < n_steps:
                            by_spike += net.w_rec[j, target] * by_time[step, target]
                lam_v[t, j] = (after * lam_v[t + 1, j] - by_spike) / before
                if adex:
                    lam_v[t, j] -= (adex.b / adex.tau_w + adex.a * v_th[j]) / before * lam_z[t + 1, j]
            else:
                lam_i[t, j] += dt * lam_v[t + 1, j]
                if adex:
                    growth = 1 + dt * (math.exp((v - 0.5) / adex.delta_t) - 1 / tau_mem[j])
                    lam_v[t, j] = growth * lam_v[t + 1, j]
                    lam_z[t, j] = -dt * lam_v[t + 1, j]
                else:
                    lam_v[t, j] = math.exp(-dt / tau_mem[j]) * lam_v[t + 1, j]
            if adex:
                lam_v[t, j] += dt * adex.a * lam_z[t + 1, j]
                lam_z[t, j] += (1 - dt / adex.tau_w) * lam_z[t + 1, j]

    out = {"w_in": np.zeros(net.w_in.shape), "d_in": np.zeros(net.w_in.shape), "times": np.zeros(len(net.times))}
    for e, (s, channel) in enumerate(zip(net.times, net.channels, strict=True)):
        for j in range(n):
            step = math.floor(s / dt) + steps_of(net.d_in[channel, j], dt)
            if step < n_steps:
                out["w_in"][channel, j] += lam_i[step + 1, j]
                out["d_in"][channel, j] += net.w_in[channel, j] * by_time[step, j]
                out["times"][e] += net.w_in[channel, j] * by_time[step, j]
    if net.w_rec is not None:
        out |= {"w_rec": np.zeros((n, n)), "d_rec": np.zeros((n, n))}
        for s, j in np.argwhere(run.fired).tolist():
            for target in range(n):
                step = s + (0 if net.d_rec is None else steps_of(net.d_rec[j, target], dt))
                if step < n_steps:
                    out["w_rec"][j, target] += lam_i[step + 1, target]
                    out["d_rec"][j, target] += net.w_rec[j, target] * by_time[step, target]
    return out
