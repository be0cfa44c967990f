"""The exponential synapse in closed form, and time split into whole steps and an offset.

With c = 1/tau_syn - 1/tau_mem, for an arrival a time h before now (docs/equations.md, 1 to 4):

    i decays by exp(-h / tau_syn);   q(h) = (exp(c h) - 1) / c;   kappa(h) = exp(-h / tau_syn) q(h)

A bucket keeps three moments of what arrives in its step (Eq. 5): with a = w exp(-h / tau_syn), the sums of a, a q(h)
and a q(h)^2.
The first two move the state to the end of the step exactly; the third says how far the arrivals lay apart.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def _slope_of_phi(x):
    """phi'(x) for phi(x) = (exp(x) - 1) / x, to rounding for every x."""
    series, power = 0.5 * jnp.ones_like(x), jnp.ones_like(x)
    small = jnp.abs(x) < 0.5
    near = jnp.where(small, x, 0.0)
    factorial = 2.0
    for n in range(1, 13):
        power = power * near
        factorial *= n + 2
        series = series + power * ((n + 1) / factorial)
    far = jnp.where(small, 1.0, x)
    return jnp.where(small, series, ((far - 1.0) * jnp.exp(far) + 1.0) / (far * far))


@jax.custom_jvp
def q(h, c):
    """q(h) = (exp(c h) - 1) / c, which is h where c = 0 (equal time constants)."""
    safe = jnp.where(c == 0, 1.0, c)
    return jnp.where(c == 0, h, jnp.expm1(c * h) / safe)


def _q_jvp(primals, tangents):
    (h, c), (dh, dc) = primals, tangents
    out = q(h, c)
    tangent = jnp.zeros_like(out)
    if not isinstance(dh, SymbolicZero):
        tangent = tangent + (1.0 + c * out) * dh
    # c is a parameter that is seldom trained: without this test its series would be evaluated for every event
    if not isinstance(dc, SymbolicZero):
        tangent = tangent + h * h * _slope_of_phi(c * h) * dc
    return out, tangent


q.defjvp(_q_jvp, symbolic_zeros=True)


@jax.custom_jvp
def time_of_q(y, c):
    """The h with q(h) = y: h = log(1 + c y) / c, which is y where c = 0. Needs 1 + c y > 0."""
    safe = jnp.where(c == 0, 1.0, c)
    return jnp.where(c == 0, y, jnp.log1p(c * y) / safe)


def _time_of_q_jvp(primals, tangents):
    (y, c), (dy, dc) = primals, tangents
    h = time_of_q(y, c)
    tangent = jnp.zeros_like(h)
    if not isinstance(dy, SymbolicZero):
        tangent = tangent + dy / (1.0 + c * y)
    if not isinstance(dc, SymbolicZero):
        tangent = tangent - h * h * _slope_of_phi(c * h) / (1.0 + c * y) * dc
    return h, tangent


time_of_q.defjvp(_time_of_q_jvp, symbolic_zeros=True)


def row(parameter, n, dtype):
    """A neuron parameter, () or (N,), as (1, N)."""
    return jnp.broadcast_to(jnp.asarray(parameter, dtype), (n,))[None, :]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Membrane:
    """Constants of the linear flow of (v, i): each (1, N), beside a state (B, N), or (P,) after `at`."""

    tau_mem: jax.Array
    tau_syn: jax.Array
    v_th: jax.Array
    c: jax.Array

    @staticmethod
    def of(neuron, n, dtype):
        """Parameters of `neuron` as arrays (1, N) of `dtype`."""
        tau_mem, tau_syn, v_th = (row(x, n, dtype) for x in (neuron.tau_mem, neuron.tau_syn, neuron.v_th))
        return Membrane(tau_mem, tau_syn, v_th, 1.0 / tau_syn - 1.0 / tau_mem)

    def at(self, neuron):
        """The constants of the neurons named by `neuron` (P,)."""
        return jax.tree.map(lambda x: x[0][neuron], self)

    def kappa(self, h):
        """Voltage, a time h after it, of a unit current kick."""
        return jnp.exp(-h / self.tau_syn) * q(h, self.c)

    def flow(self, v, i, h):
        """(v, i) a time h later (earlier if h < 0) when nothing arrives."""
        decay = jnp.exp(-h / self.tau_syn)
        return v * jnp.exp(-h / self.tau_mem) + i * decay * q(h, self.c), i * decay

    def slope(self, v, i):
        """dv/dt."""
        return i - v / self.tau_mem


def moments(w, h, tau_syn, c):
    """What an arrival of weight w, a time h before the end of its step, adds to its bucket (Eq. 5): (a, a q, a q^2)."""
    a = w * jnp.exp(-h / tau_syn)
    y = q(h, c)
    return jnp.stack([a, a * y, a * y * y], axis=-1)


def split(time, dt):
    """Whole steps (int32) and offset in [0, dt], to rounding, of `time`; derivatives go to the offset.

    Sums of a long recording's time and a delay are formed from the parts: float32 then loses nothing to its duration.
    """
    steps = jnp.floor(jax.lax.stop_gradient(time) / dt)
    return steps.astype(jnp.int32), time - steps * dt
