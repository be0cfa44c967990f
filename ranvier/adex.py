"""AdEx neurons through one step of the continuous scheme (docs/equations.md, 22 and 23).

(v, z) is not linear in v, so it is integrated: the step is cut at its two stand-in arrivals into three pieces, each
piece into `substeps` classical Runge-Kutta steps of order 4, with i exact. A substep that ends at or above threshold
is cut at the crossing (Newton inside a shrinking bracket on the length of the Runge-Kutta step, differentiated
implicitly), the neuron restarts from (0, z + b), and the rest of the substep follows. At most one spike a substep; a
second crossing fires at the start of the next one.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ranvier import crossing
from ranvier.spikes import spike_list
from ranvier.synapse import row

ITERATIONS = 12


class Cells:
    """N neurons of B samples: `start` gives their state (v, i, z), `advance` takes it through a step."""

    def __init__(self, neuron, m, n_samples, plan):
        self.m, self.n_samples, self.plan, self.neuron = m, n_samples, plan, neuron
        self.n = m.c.shape[1]
        names = ("a", "b", "tau_w", "delta_t", "z0")
        self.a, self.b, self.tau_w, self.delta_t, self.z0 = (row(getattr(neuron, x), self.n, m.c.dtype) for x in names)

    def start(self):
        zero = jnp.zeros((self.n_samples, self.n), self.m.c.dtype)
        return zero, zero, zero + self.z0

    def rate(self, v, i, z):
        """(dv/dt, dz/dt)."""
        # cut off above threshold: only trial stages get there, and they must stay finite
        rise = self.delta_t * jnp.exp((jnp.where(v < self.m.v_th, v, self.m.v_th) - 0.5) / self.delta_t)
        return -v / self.m.tau_mem + i - z + rise, -z / self.tau_w + self.a * v

    def runge_kutta(self, v, i, z, h):
        """(v, z) a time `h` later; i at the start of it."""
        middle, end = i * jnp.exp(-0.5 * h / self.m.tau_syn), i * jnp.exp(-h / self.m.tau_syn)
        v1, z1 = self.rate(v, i, z)
        v2, z2 = self.rate(v + 0.5 * h * v1, middle, z + 0.5 * h * z1)
        v3, z3 = self.rate(v + 0.5 * h * v2, middle, z + 0.5 * h * z2)
        v4, z4 = self.rate(v + h * v3, end, z + h * z3)
        return v + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), z + h / 6 * (z1 + 2 * z2 + 2 * z3 + z4)

    def advance(self, cells, bucket, silent):
        """One step from (v, i, z) with the arrivals in `bucket` (B, N, 3); `silent` (B, N) neurons do not fire.

        Returns as `ranvier.lif.Cells.advance`; the voltage without resets is that at the end of the step plus the
        threshold for each spike.
        """
        shape, dt = silent.shape, self.plan.dt
        flat = self.m.at(jnp.tile(jnp.arange(self.n), self.n_samples))
        kicks = crossing.Kicks(*(x.reshape(shape) for x in crossing.stand_in(bucket.reshape(-1, 3), flat, dt)))
        v, i, z = cells
        ends = jnp.stack([kicks.x1, kicks.x2, jnp.full(shape, dt, v.dtype)])
        begins = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:2]])
        # substeps in turn: when each begins, how long it is, and what arrives behind it
        parts = jnp.arange(self.neuron.substeps, dtype=v.dtype)[None, :, None, None]
        lengths = jnp.broadcast_to(jnp.maximum(ends - begins, 0.0)[:, None] / parts.size, (3, parts.size, *shape))
        starts = begins[:, None] + lengths * parts
        last = (parts == parts.size - 1).astype(v.dtype)
        arrivals = last * jnp.stack([kicks.w1, kicks.w2, jnp.zeros_like(v)])[:, None]
        single = self.neuron.single_spike

        def part(carry, xs):
            v, i, z, silent = carry
            start, h, arrival = xs
            v, z, hit, cut = self.substep(v, i, z, h, silent)
            i = i * jnp.exp(-h / self.m.tau_syn) + arrival
            return (v, i, z, silent | hit if single else silent), (hit, jnp.clip(start + cut, 0.0, dt))

        segments = tuple(x.reshape(-1, *shape) for x in (starts, lengths, arrivals))
        (v, i, z, _), (hits, times) = jax.lax.scan(part, (v + kicks.dv, i + kicks.di, z, silent), segments)
        fired, g = jnp.moveaxis(hits, 0, -1), jnp.moveaxis(times, 0, -1)
        which = jnp.argmax(fired, -1)[..., None]
        number = fired.sum(-1).astype(v.dtype)
        first = jnp.where(number > 0, jnp.take_along_axis(g, which, -1)[..., 0], 0.0)
        sample, neuron = (x.reshape(-1) for x in jnp.indices(shape, jnp.int32))
        every = fired.reshape(-1, fired.shape[-1])
        spikes, missed = spike_list(sample, neuron, every, g.reshape(every.shape), self.plan.pool, self.n_samples)
        return (v, i, z), v + self.m.v_th * number, spikes, jnp.stack([number, first], -1), missed

    def substep(self, v, i, z, h, silent):
        """(v, z) a time `h` later with at most one spike, whether it fired, and when."""
        v_end, z_end = self.runge_kutta(v, i, z, h)
        hit = ((v_end >= self.m.v_th) | (v >= self.m.v_th)) & ~silent & (h > 0)
        late = v >= self.m.v_th

        def cut(v, i, z, h):
            v_0, i_0, z_0, h_0 = stop_gradient((v, i, z, h))
            x = jnp.where(late, 0.0, self.length_to_threshold(v_0, i_0, z_0, h_0))
            slope = stop_gradient(self.height(v_0, i_0, z_0, x)[1])
            level = self.runge_kutta(v, i, z, x)[0] - self.m.v_th
            moved = x - (level - stop_gradient(level)) / jnp.maximum(slope, crossing.SLOPE_FLOOR)
            x = jnp.where(hit & ~late, moved, x)
            _, z_x = self.runge_kutta(v, i, z, x)
            rest = self.runge_kutta(jnp.zeros_like(v), i * jnp.exp(-x / self.m.tau_syn), z_x + self.b, h - x)
            return jnp.where(hit, rest[0], v_end), jnp.where(hit, rest[1], z_end), jnp.where(hit, x, 0.0)

        def through(v, i, z, h):
            return v_end, z_end, jnp.zeros_like(h)

        v, z, x = jax.lax.cond(hit.any(), cut, through, v, i, z, h)
        return v, z, hit, x

    def height(self, v, i, z, h):
        """Voltage after a Runge-Kutta step of length `h`, and its derivative with respect to `h` (that of the step)."""
        return jax.jvp(lambda h: self.runge_kutta(v, i, z, h)[0], (h,), (jnp.ones_like(h),))

    def length_to_threshold(self, v, i, z, h):
        """The Runge-Kutta step within [0, h] that ends at threshold: Newton's steps inside a shrinking bracket."""

        def newton(_, bracket):
            low, high, x = bracket
            v_x, slope = self.height(v, i, z, x)
            above = v_x >= self.m.v_th
            low, high = jnp.where(above, low, x), jnp.where(above, x, high)
            step = x - (v_x - self.m.v_th) / jnp.where(slope > 0, slope, 1.0)
            inside = (slope > 0) & (step >= low) & (step <= high)
            return low, high, jnp.where(inside, step, 0.5 * (low + high))

        return jax.lax.fori_loop(0, ITERATIONS, newton, (jnp.zeros_like(h), h, 0.5 * h))[2]
