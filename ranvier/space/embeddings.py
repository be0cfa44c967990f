"""Embeddings: what a delay of one synapse matrix is made of."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from ranvier.errors import RanvierError


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class NoDelay:
    """Synapses without delay.

        d_ij = 0

    Parameters
    ----------
    shape : (int, int)
        (M, N); static.
    dtype : str
        Static.
    """

    shape: tuple[int, int] = field(metadata={"static": True})
    dtype: str = field(default="float32", metadata={"static": True})

    def delays(self) -> jax.Array:
        """Delays (M, N) [ms]."""
        return jnp.zeros(self.shape, self.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FreeDelay:
    """One free delay a synapse.

        d_ij = d_ij if d_ij >= 0, else 0

    The derivative is 1 at 0, so that a delay that starts there can grow, and 0 below, where a delay would be stuck:
    an optimizer projects with `Space.projected` after each update.

    Parameters
    ----------
    d : (M, N) [ms]
    """

    d: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        return _matrix("FreeDelay", "d", self.d)

    def delays(self) -> jax.Array:
        """Delays (M, N) [ms], never negative."""
        _matrix("FreeDelay.delays", "d", self.d)
        return at_least_zero(self.d)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Euclidean:
    """Delays that are distances, with slack a synapse if asked for.

        d_ij = (1 + x (0.5 + 0.5 tanh e_ij)) sqrt(0.01 + sum_a (p_ia - q_ja)^2)

    The 0.01 keeps the derivative finite where two neurons coincide; the shortest delay is 0.1 ms.

    Parameters
    ----------
    source : (M, k) [ms]
        Positions p.
    target : (N, k) [ms]
        Positions q. For recurrent synapses pass the same array twice: both ends get a gradient.
    slack : (M, N) or None
        e. None: the first factor is 1.
    amount : float
        x; static.
    """

    source: jax.Array
    target: jax.Array
    slack: jax.Array | None = None
    amount: float = field(default=0.0, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        return _pair_shape("Euclidean", self.source, self.target, self.slack)

    def delays(self) -> jax.Array:
        """Delays (M, N) [ms]."""
        _pair_shape("Euclidean.delays", self.source, self.target, self.slack)
        difference = self.source[:, None, :] - self.target[None, :, :]
        return _slack(self.slack, self.amount, jnp.sqrt(0.01 + jnp.sum(difference * difference, axis=-1)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Lattice:
    """Manhattan distances between the points of two lattices, with slack a synapse.

        d_ij = (1 + x (0.5 + 0.5 tanh e_ij)) sum_a |s' p_ia + o_a - s q_ja - o'_a|

    The derivative of |y| is taken as 0 at y = 0, the middle of its subgradients (`jnp.abs` has 1 there, which would
    pull all neurons of a row of the lattice to one side).

    Parameters
    ----------
    scale : () [ms]
        s.
    source_origin, target_origin : (k,) [ms]
        o, o'. For recurrent synapses pass the same array twice: it cancels.
    source : (M, k)
        Lattice points p.
    target : (N, k)
        Lattice points q.
    slack : (M, N) or None
        e. None: the first factor is 1.
    amount : float
        x; static.
    source_scale : () [ms] or None
        s'. None: s. Pass 1 where `source` holds positions of another layer.
    """

    scale: jax.Array
    source_origin: jax.Array
    target_origin: jax.Array
    source: jax.Array
    target: jax.Array
    slack: jax.Array | None = None
    amount: float = field(default=0.0, metadata={"static": True})
    source_scale: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return _pair_shape("Lattice", self.source, self.target, self.slack)

    def delays(self) -> jax.Array:
        """Delays (M, N) [ms]."""
        _pair_shape("Lattice.delays", self.source, self.target, self.slack)
        for name, origin in (("source", self.source_origin), ("target", self.target_origin)):
            if jnp.shape(origin) != self.source.shape[1:]:
                raise RanvierError(
                    f"Lattice.delays: got a {name} origin of shape {jnp.shape(origin)}; needs the shape "
                    f"{self.source.shape[1:]} of one point; pass one number a dimension"
                )
        source_scale = self.scale if self.source_scale is None else self.source_scale
        source = source_scale * self.source + self.source_origin[None, :]
        target = self.scale * self.target + self.target_origin[None, :]
        difference = source[:, None, :] - target[None, :, :]
        return _slack(self.slack, self.amount, jnp.sum(difference * jnp.sign(difference), axis=-1))


Embedding = NoDelay | FreeDelay | Euclidean | Lattice


def _slack(e: jax.Array | None, amount: float, distance: jax.Array) -> jax.Array:
    return distance if e is None else (1 + amount * (0.5 + 0.5 * jnp.tanh(e))) * distance


def at_least_zero(d: jax.Array) -> jax.Array:
    # Not jnp.maximum: its derivative is 1/2 at 0. A NaN stays one, so that `longest` can see it.
    return jnp.where(d < 0, jnp.zeros_like(d), d)


def _matrix(where: str, name: str, array: jax.Array) -> tuple[int, int]:
    if jnp.ndim(array) != 2:
        raise RanvierError(f"{where}: got {name} of shape {jnp.shape(array)}; needs a matrix; pass a 2-D array")
    rows, columns = array.shape
    return rows, columns


def _pair_shape(where: str, source: jax.Array, target: jax.Array, slack: jax.Array | None) -> tuple[int, int]:
    (m, k), (n, k_target) = _matrix(where, "source", source), _matrix(where, "target", target)
    if k != k_target:
        raise RanvierError(
            f"{where}: got sources in {k} dimensions and targets in {k_target}; "
            "needs one space; pass positions (M, k) and (N, k)"
        )
    if slack is not None and jnp.shape(slack) != (m, n):
        raise RanvierError(
            f"{where}: got slack of shape {jnp.shape(slack)} for {m} sources and {n} targets; "
            f"needs {(m, n)}; pass one number a synapse"
        )
    return m, n
