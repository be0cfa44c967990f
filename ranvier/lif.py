"""LIF neurons through one step of the continuous scheme (docs/equations.md, 6 to 14)."""

from functools import partial

import jax
import jax.numpy as jnp

from ranvier import crossing
from ranvier.spikes import compact, lost, spike_list


class Cells:
    """N neurons of B samples: `start` gives their state (v, i), `advance` takes it through a step."""

    def __init__(self, neuron, m, n_samples, plan):
        self.m, self.n_samples, self.plan, self.single = m, n_samples, plan, neuron.single_spike
        self.n = m.c.shape[1]
        dt = jnp.asarray(plan.dt, m.c.dtype)
        self.alpha, self.beta, self.kappa = jnp.exp(-dt / m.tau_syn), jnp.exp(-dt / m.tau_mem), m.kappa(dt[None, None])

    def start(self):
        zero = jnp.zeros((self.n_samples, self.n), self.m.c.dtype)
        return zero, zero

    def advance(self, cells, bucket, silent):
        """One step from (v, i) with the arrivals in `bucket` (B, N, 3); `silent` (B, N) neurons do not fire.

        Returns the state after it, the voltage without resets (B, N), the spikes, what fired (B, N, 2: number of
        spikes, offset of the first) and how much did not fit (B,): neurons not looked at, or that would fire once more.
        """
        v, i = cells
        v_free = v * self.beta + i * self.kappa + bucket[..., 1]
        i_free = i * self.alpha + bucket[..., 0]
        fire = jax.checkpoint(partial(_fire, self.plan, self.single))
        spikes, change, missed = fire(v, i, bucket, v_free, i_free, silent, self.m)
        return (v_free - change[..., 2], i_free), v_free, spikes, change[..., :2], missed


def _fire(plan, single, v, i, bucket, v_free, i_free, silent, m):
    """The spikes of a step; for each neuron their number, the offset of the first and the sum of decayed thresholds."""
    n_samples, n = v.shape
    look = crossing.may_fire(v, i, v_free, i_free, m, plan.dt) & ~silent
    place, real = compact(look, plan.pool)
    sample, neuron = place // n, place % n
    some = m.at(neuron)

    def pick(x):
        return x.reshape(n_samples * n, *x.shape[2:])[place]

    kicks = crossing.stand_in(pick(bucket), some, plan.dt)
    begin = crossing.begin(pick(v), pick(i), pick(v_free), kicks)
    fired, g, v_end, still = crossing.spikes_of_step(begin, kicks, pick(i_free), some, plan.dt, real, single)
    first = jnp.where(fired[:, 0], g[:, 0], 0.0)
    per_neuron = jnp.stack([fired.sum(1).astype(v.dtype), first, begin.v_end - v_end], -1)
    change = jnp.zeros((n_samples * n, 3), v.dtype).at[place].add(per_neuron).reshape(n_samples, n, 3)

    spikes, missed = spike_list(sample, neuron, fired, g, plan.pool, n_samples)
    missed = missed.at[sample].add(still.astype(jnp.int32))
    if plan.pool < look.size:
        missed += lost(jnp.repeat(jnp.arange(n_samples), n), look.reshape(-1), plan.pool, n_samples)
    return spikes, change, missed
