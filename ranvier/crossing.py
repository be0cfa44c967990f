"""Spike times inside one step of the continuous scheme.

All arrays are (P,): one entry for each neuron that may fire in this step. Times are offsets from the start of the step.
Where a crossing lies is found without derivatives; then its derivative is that of the implicit function
(docs/equations.md, 9 to 14), so that autodiff of a spike time equals finite differences of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from ranvier.synapse import q, time_of_q

# A Newton step doubles the digits; the bisections that guard it cover the first few steps near a flat top.
ITERATIONS = 10
# Spikes that a neuron can fire in one step; more are counted, never dropped without a word.
SPIKES_PER_STEP = 4
# Slope [1/ms] below which a crossing counts as touching: keeps the derivative of a grazing spike finite.
SLOPE_FLOOR = 1e-6


class Kicks(NamedTuple):
    """What stands for the arrivals of a step: kicks w1, w2 of the current at x1 <= x2, a jump (dv, di) at the start."""

    x1: jax.Array
    x2: jax.Array
    w1: jax.Array
    w2: jax.Array
    dv: jax.Array
    di: jax.Array


class Progress(NamedTuple):
    """Where a neuron is inside the step: state (v, i) at time s, kicks still to come, free end state with resets."""

    s: jax.Array
    v: jax.Array
    i: jax.Array
    first: jax.Array
    second: jax.Array
    v_end: jax.Array


def stand_in(bucket, m, dt):
    """Two equal kicks with the moments of the arrivals in `bucket` (P, 3): exact for one arrival (Eq. 7, 8).

    Where two would not fit into the step, or the variance is negative (weights of both signs), they move together, down
    to one kick: the first two moments stay. Where even their mean lies outside of the step (weights of both signs, or
    an arrival due before the step) the whole is applied at the start. The end of the step is exact in every case.
    """
    ji, jv, jq = bucket[:, 0], bucket[:, 1], bucket[:, 2]
    longest = q(jnp.full_like(ji, dt), m.c)
    rounding = 64 * jnp.finfo(ji.dtype).eps
    some = ji != 0
    safe = jnp.where(some, ji, 1.0)
    mean = jv / safe
    inside = some & (mean >= -rounding * longest) & (mean <= (1 + rounding) * longest)
    mean = jnp.where(inside, mean, 0.5 * longest)
    square = jq / safe
    variance = square - mean * mean
    # equal to one arrival within rounding: the square root has no derivative there
    apart = inside & (variance > rounding * jnp.abs(square))
    spread = jnp.sqrt(jnp.where(apart, variance, 1.0))
    spread = jnp.where(apart, jnp.minimum(spread, jnp.minimum(mean, longest - mean)), 0.0)
    h1, h2 = time_of_q(mean + spread, m.c), time_of_q(mean - spread, m.c)
    half = jnp.where(inside, 0.5 * ji, 0.0)
    di = jnp.where(inside, 0.0, ji * jnp.exp(dt / m.tau_syn))
    dv = jnp.where(inside, 0.0, (jv - ji * longest) * jnp.exp(dt / m.tau_mem))
    return Kicks(dt - h1, dt - h2, half * jnp.exp(h1 / m.tau_syn), half * jnp.exp(h2 / m.tau_syn), dv, di)


def begin(v, i, v_end, kicks):
    """The start of the step, with `v_end` (P,) the voltage at its end if nothing fires."""
    waiting = jnp.ones(v.shape, bool)
    return Progress(jnp.zeros_like(v), v + kicks.dv, i + kicks.di, waiting, waiting, v_end)


def next_spike(at, kicks, i_end, m, dt):
    """The first crossing after `at`: (fired (P,) bool, time g (P,), `Progress` just after the reset); Eq. 9 to 13."""
    # three pieces: up to the first kick, up to the second, up to the end; a kick that is over has length 0
    x1 = jnp.where(at.first, kicks.x1, at.s)
    w1 = jnp.where(at.first, kicks.w1, 0.0)
    x2 = jnp.where(at.second, kicks.x2, x1)
    w2 = jnp.where(at.second, kicks.w2, 0.0)
    v1, i1 = m.flow(at.v, at.i, x1 - at.s)
    i1 = i1 + w1
    v2, i2 = m.flow(v1, i1, x2 - x1)
    i2 = i2 + w2

    starts = [(at.s, at.v, at.i), (x1, v1, i1), (x2, v2, i2)]
    ends = [x1, x2, jnp.full_like(x1, dt)]
    piece, high, fired = _first_hit(stop_gradient(starts), stop_gradient(ends), stop_gradient(m))
    start = [jnp.select([piece == 0, piece == 1], [a, b], c) for a, b, c in zip(*starts, strict=True)]
    immediate = fired & (piece == 0) & (at.v >= m.v_th)
    g = _newton(stop_gradient(start), high, stop_gradient(m))

    # Behind the last kick the state is that of the end of the step moved back: it depends on the sums alone, not on
    # where the two kicks were put.
    last = piece == 2
    base = [jnp.where(last, x, y) for x, y in zip((jnp.full_like(g, dt), at.v_end, i_end), start, strict=True)]
    v_g, i_g = m.flow(base[1], base[2], g - base[0])
    rate = jnp.maximum(m.slope(v_g, i_g), SLOPE_FLOOR)
    g = g - (v_g - stop_gradient(v_g) - (m.v_th - stop_gradient(m.v_th))) / stop_gradient(rate)
    g = jnp.where(fired & ~immediate, g, jnp.where(immediate, at.s, 0.0))

    _, i_g = m.flow(base[1], base[2], g - base[0])
    v_left = at.v_end - jnp.where(fired, m.v_th * jnp.exp(-(dt - g) / m.tau_mem), 0.0)
    after = Progress(
        jnp.where(fired, g, at.s),
        jnp.where(fired, jnp.where(immediate, at.v - m.v_th, 0.0), at.v),
        jnp.where(fired, jnp.where(immediate, at.i, i_g), at.i),
        jnp.where(fired, at.first & (piece < 1), at.first),
        jnp.where(fired, at.second & (piece < 2), at.second),
        v_left,
    )
    return fired, g, after


def spikes_of_step(begin, kicks, i_end, m, dt, real, single):
    """All spikes of a step: (fired (P, S), times (P, S), end voltage with resets (P,), more than S (P,)) (Eq. 14).

    `real` (P,) entries are looked at; with `single` none fires twice.
    """
    fired, g, at = next_spike(begin, kicks, i_end, m, dt)
    fired = fired & real
    at = _where(fired, at, begin)
    again = jnp.zeros_like(fired) if single else fired & (at.v_end >= m.v_th)

    def repeat(at):
        def once_more(carry, _):
            at, more = carry
            hit, time, after = next_spike(at, kicks, i_end, m, dt)
            more = more & hit & (at.v_end >= m.v_th)
            return (_where(more, after, at), more), (more, time)

        (at, more), (hits, times) = jax.lax.scan(once_more, (at, again), length=SPIKES_PER_STEP - 1)
        return hits.T, times.T, at.v_end, more & (at.v_end >= m.v_th)

    def done(at):
        none = jnp.zeros((fired.size, SPIKES_PER_STEP - 1), bool)
        return none, none.astype(g.dtype), at.v_end, jnp.zeros_like(fired)

    hits, times, v_end, still = jax.lax.cond(again.any(), repeat, done, at)
    return jnp.concatenate([fired[:, None], hits], 1), jnp.concatenate([g[:, None], times], 1), v_end, still


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def top(v, i, length, m):
    """Time and height of the highest voltage of a free flow from (v, i) within [0, length] (Eq. 11)."""
    v_end, i_end = m.flow(v, i, length)
    rises, falls = m.slope(v, i), m.slope(v_end, i_end)
    between = (rises > 0) & (falls < 0)
    y = jnp.where(between, m.tau_mem * rises / jnp.where(between, i + m.c * v, 1.0), 0.0)
    y = jnp.where(m.c * y > -1.0, y, 0.0)
    h = jnp.where(between, jnp.clip(time_of_q(y, m.c), 0.0, length), length)
    return h, jnp.where(between, m.flow(v, i, h)[0], v_end)


def may_fire(v, i, v_end, i_end, m, dt):
    """Which neurons (B, N) need a look: above threshold at the end, or perhaps between (Eq. 12).

    The flow without the arrivals of the step, forward from its start, and the flow back from its end.
    """
    length = jnp.full_like(v, dt)
    _, ahead = top(v, i, length, m)
    v_back, i_back = m.flow(v_end, i_end, -length)
    _, back = top(v_back, i_back, length, m)
    falling = m.slope(v_end, i_end) < 0
    return (v_end >= m.v_th) | (v >= m.v_th) | (ahead >= m.v_th) | (falling & (jnp.maximum(back, v_back) >= m.v_th))


def _first_hit(starts, ends, m):
    """Number of the first piece that reaches threshold, the time when it is at or above it, whether any does."""
    piece, high, fired = jnp.zeros(m.c.shape, jnp.int32), jnp.zeros_like(m.c), jnp.zeros(m.c.shape, bool)
    for number, ((t, v, i), end) in enumerate(zip(starts, ends, strict=True)):
        h, v_top = top(v, i, jnp.maximum(end - t, 0.0), m)
        hit = ~fired & ((v_top >= m.v_th) | (v >= m.v_th)) & ((end > t) | (v >= m.v_th))
        piece = jnp.where(hit, number, piece)
        high = jnp.where(hit, t + h, high)
        fired = fired | hit
    return piece, high, fired


def _newton(start, high, m):
    """The crossing from the start of its piece to `high`: Newton's steps, bisection where they leave the bracket."""
    t, v, i = start
    high = high - t
    v_high, _ = m.flow(v, i, high)
    secant = high * (m.v_th - v) / jnp.where(v_high > v, v_high - v, 1.0)

    def step(_, bracket):
        low, high, x = bracket
        v_x, i_x = m.flow(v, i, x)
        above = v_x >= m.v_th
        low, high = jnp.where(above, low, x), jnp.where(above, x, high)
        slope = m.slope(v_x, i_x)
        new = x - (v_x - m.v_th) / jnp.where(slope > 0, slope, 1.0)
        inside = (slope > 0) & (new >= low) & (new <= high)
        return low, high, jnp.where(inside, new, 0.5 * (low + high))

    return t + jax.lax.fori_loop(0, ITERATIONS, step, (jnp.zeros_like(t), high, jnp.clip(secant, 0.0, high)))[2]
