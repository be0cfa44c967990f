"""`Space`: the trainable numbers behind the delays of one layer."""

import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.errors import RanvierError
from ranvier.space.embeddings import Embedding, Euclidean, FreeDelay, Lattice, NoDelay, at_least_zero
from ranvier.space.layouts import lattice
from ranvier.space.spec import Spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Space:
    """All trainable numbers behind the delays of one layer, each once. Made by `init_space`.

    Parameters
    ----------
    spec : Spec
        Static.
    params : dict of str to array
        free: `d_in` (M, N), `d_rec` (N, N) [ms]; euclidean: `x_in` (M, k), `x_rec` (N, k) [ms]; lattice: `scale` ()
        [ms], `origin_in`, `origin_rec` (k,) [ms]; with slack: `e_in` (M, N), `e_rec` (N, N). A feed-forward layer has
        no `d_rec` and `e_rec`; one that shares its sources has no `x_in` and `origin_in`.
    n_in, n_hidden : int
        M sources and N neurons; static.
    recurrent : bool
        Static.
    dtype : str
        Type of the delays where there is no parameter to tell it; static.
    """

    spec: Spec = field(metadata={"static": True})
    params: dict[str, jax.Array]
    n_in: int = field(metadata={"static": True})
    n_hidden: int = field(metadata={"static": True})
    recurrent: bool = field(default=True, metadata={"static": True})
    dtype: str = field(default="float32", metadata={"static": True})

    @property
    def shares_source(self) -> bool:
        """Whether the positions of the sources belong to another layer."""
        return self.spec.has_positions and not {"x_in", "origin_in"} & self.params.keys()

    def d_in(self, source: jax.Array | None = None) -> Embedding:
        """Embedding of the synapses from the M sources to the N neurons.

        Parameters
        ----------
        source : (M, k) [ms], optional
            Positions of the sources, for a space made with `shared_source=True`. Without meaning, and ignored, where
            the spec has no positions.

        Returns
        -------
        Embedding

        Raises
        ------
        RanvierError
            Positions missing, given to a space that has its own, or of another shape than (M, k).
        """
        source = self._source("Space.d_in", source)
        return self._embedding(source, "in", (self.n_in, self.n_hidden))

    def d_rec(self) -> Embedding | None:
        """Embedding of the synapses among the N neurons; None for a feed-forward layer."""
        return self._embedding(None, "rec", (self.n_hidden, self.n_hidden)) if self.recurrent else None

    def positions(self, source: jax.Array | None = None) -> tuple[jax.Array, jax.Array] | None:
        """Positions of sources and neurons; on a lattice scale * lattice + origin.

        Parameters
        ----------
        source : (M, k) [ms], optional
            As for `d_in`.

        Returns
        -------
        ((M, k), (N, k)) [ms] or None
            None where the spec has no positions.
        """
        if not self.spec.has_positions:
            return None
        source = self._source("Space.positions", source)
        return self._own_positions("in") if source is None else source, self._own_positions("rec")

    def projected(self) -> "Space":
        """The nearest space without negative free delays: what an optimizer calls after each update."""
        if self.spec.kind != "free":
            return self
        return replace(self, params={name: at_least_zero(d) for name, d in self.params.items()})

    def _source(self, where: str, source: jax.Array | None) -> jax.Array | None:
        if not self.spec.has_positions:
            return None
        shape = (self.n_in, self.spec.dim)
        if self.shares_source and source is None:
            raise RanvierError(
                f"{where}: got no source positions; needs an array {shape}; pass those of the layer before"
            )
        if source is not None and not self.shares_source:
            raise RanvierError(f"{where}: got source positions for a space with its own; needs none; drop them")
        if source is not None and jnp.shape(source) != shape:
            raise RanvierError(
                f"{where}: got source positions of shape {jnp.shape(source)}; needs {shape}; "
                "pass positions of the layer before in the same dimension"
            )
        return source

    def _own_positions(self, end: str) -> jax.Array:
        if self.spec.kind == "euclidean":
            return self.params[f"x_{end}"]
        return self.params["scale"] * self._lattice(end) + self.params[f"origin_{end}"][None, :]

    def _lattice(self, end: str) -> jax.Array:
        points = lattice(self.n_in if end == "in" else self.n_hidden, self.spec.dim)
        return jnp.asarray(points, self.params["scale"].dtype)

    def _embedding(self, source: jax.Array | None, end: str, shape: tuple[int, int]) -> Embedding:
        params, amount = self.params, self.spec.slack or 0.0
        slack = params.get(f"e_{end}")
        if self.spec.kind == "none":
            return NoDelay(shape, self.dtype)
        if self.spec.kind == "free":
            return FreeDelay(params[f"d_{end}"])
        if self.spec.kind == "euclidean":
            return Euclidean(params[f"x_{end}"] if source is None else source, params["x_rec"], slack, amount)
        scale, target_origin, target = params["scale"], params["origin_rec"], self._lattice("rec")
        if source is None:
            return Lattice(scale, params[f"origin_{end}"], target_origin, self._lattice(end), target, slack, amount)
        here = jnp.zeros_like(target_origin)
        return Lattice(scale, here, target_origin, source, target, slack, amount, jnp.ones_like(scale))


def matched_free(space: Space, source: jax.Array | None = None) -> Space:
    """Space of free delays that start with exactly the delays of `space`.

    Parameters
    ----------
    space : Space
    source : (M, k) [ms], optional
        As for `Space.d_in`.

    Returns
    -------
    Space
        Of spec `inf`.
    """
    rec = space.d_rec()
    params = {"d_in": space.d_in(source).delays()} | ({} if rec is None else {"d_rec": rec.delays()})
    return replace(space, spec=Spec("free"), params=params)


def longest(space: Space, source: jax.Array | None = None) -> float:
    """Longest delay of a layer, as a number of the host; not for traced code.

    Parameters
    ----------
    space : Space
    source : (M, k) [ms], optional
        As for `Space.d_in`.

    Returns
    -------
    float [ms]

    Raises
    ------
    RanvierError
        If a delay is not finite.
    """
    # jnp.max and numpy's keep a NaN; Python's max would lose one that comes second.
    result = float(np.max([jnp.max(e.delays()) for e in (space.d_in(source), space.d_rec()) if e is not None]))
    if not math.isfinite(result):
        raise RanvierError(
            f"longest: got a longest delay of {result} ms; needs finite delays; look for NaN among the parameters"
        )
    return result
