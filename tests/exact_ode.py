"""The yardstick for AdEx, and a second one for LIF: the equations integrated at high accuracy from event to event.

    dv/dt = -v/tau_mem + i - z + delta_t exp((v - 0.5)/delta_t)        dz/dt = -z/tau_w + a v        di/dt = -i/tau_syn
    v >= v_th: spike, v -> 0, z -> z + b, i is kept

AdEx has no closed form: an eighth-order Runge-Kutta method at tight tolerance, with i exact, takes the whole network
from one event to the next.
"""

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

RTOL, ATOL = 1e-12, 1e-13


@dataclass(frozen=True)
class OdeSolution:
    """spikes: [(time, neuron)] in order; v, i, z: (N,) at `duration`."""

    spikes: list
    v: np.ndarray
    i: np.ndarray
    z: np.ndarray


def solve_ode(net, adex=None):
    """Simulate `net` (`tests.exact.Net`): LIF, or AdEx with the parameters `adex` (`tests.loops.AdEx`)."""
    n = net.n
    tau_mem, tau_syn, v_th = (np.array(net.per_neuron(name)) for name in ("tau_mem", "tau_syn", "v_th"))
    d_rec = np.zeros((n, n)) if net.d_rec is None else net.d_rec
    waiting = [
        (t + net.d_in[c, j], j, net.w_in[c, j])
        for t, c in zip(net.times, net.channels, strict=True)
        for j in range(n)
        if t + net.d_in[c, j] < net.duration
    ]

    def rate(h, state, i):
        v, z = state[:n], state[n:]
        slope = -v / tau_mem + i * np.exp(-h / tau_syn)
        if adex is None:
            return np.concatenate([slope, 0 * z])
        # Only trial stages beyond a spike get past 1.5 thresholds; they must stay finite.
        rise = adex.delta_t * np.exp((np.minimum(v, 1.5 * v_th) - 0.5) / adex.delta_t)
        return np.concatenate([slope - z + rise, -z / adex.tau_w + adex.a * v])

    def integrate(state, i, h, events=None):
        return solve_ivp(rate, (0.0, h), state, method="DOP853", args=(i,), events=events, rtol=RTOL, atol=ATOL)

    def reaches(j):
        def above(h, state, i):
            return state[j] - v_th[j]

        above.terminal, above.direction = True, 1.0
        return above

    events = [reaches(j) for j in range(n)]
    spikes, t = [], 0.0
    state, i = np.concatenate([np.zeros(n), np.full(n, adex.z0 if adex else 0.0)]), np.zeros(n)
    while t < net.duration:
        waiting.sort()
        until = waiting[0][0] if waiting else net.duration
        if until > t:
            solved = integrate(state, i, until - t, events)
            fired = next((j for j in range(n) if solved.t_events[j].size), None)
            if fired is not None:
                # The crossing comes from an interpolant: two Newton steps on the integration itself make it exact.
                h = float(solved.t_events[fired][0])
                for _ in range(2):
                    end = integrate(state, i, h).y[:, -1]
                    h -= float((end[fired] - v_th[fired]) / rate(h, end, i)[fired])
            else:
                h = until - t
            state = integrate(state, i, h).y[:, -1] if h > 0 else state
            i = i * np.exp(-h / tau_syn)
            t = until if fired is None else t + h
            if fired is not None:
                state[fired], state[n + fired] = 0.0, state[n + fired] + (adex.b if adex else 0.0)
                spikes.append((t, fired))
                if net.w_rec is not None:
                    sent = [(t + d_rec[fired, j], j, net.w_rec[fired, j]) for j in range(n)]
                    waiting += [arrival for arrival in sent if arrival[0] < net.duration]
                continue
        if waiting:
            _, j, weight = waiting.pop(0)
            i[j] += weight
    return OdeSolution(spikes, state[:n], i, state[n:])
