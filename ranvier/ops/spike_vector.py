"""`SpikeVector`: the few neurons of a layer that matter in a step, as a list."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.errors import RanvierError
from ranvier.ops import primitives


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("ids", "value", "factor", "n_spikes", "n_near", "n_lost", "n_near_dropped"),
    meta_fields=("n_neurons",),
)
@dataclass(frozen=True)
class SpikeVector:
    """Vectors of spikes as lists of at most S neurons: those that fired, then those near the threshold.

        z[i] = sum over listed s with ids[s] = i of value[s]                    (docs/equations.md, 32)

    Batch axes (...) are any. An entry that is not in use has id, value and factor 0. Nothing is dropped in silence:
    what did not fit is counted.

    Parameters
    ----------
    ids : (..., S) int32, first the `n_spikes` neurons that fired, then the `n_near` near ones, each group ascending
    value : (..., S) 1 for a spike, 0 for a near neuron; carries the derivative
    factor : (..., S) surrogate derivative of each entry
    n_spikes, n_near : (...) int32 listed spikes, listed near-threshold neurons
    n_lost, n_near_dropped : (...) int32 spikes, and near-threshold neurons, that did not fit
    n_neurons : length of the vector, static
    """

    ids: jax.Array
    value: jax.Array
    factor: jax.Array
    n_spikes: jax.Array
    n_near: jax.Array
    n_lost: jax.Array
    n_near_dropped: jax.Array
    n_neurons: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., n_neurons): the shape of `to_dense()`."""
        return (*self.ids.shape[:-1], self.n_neurons)

    @property
    def capacity(self) -> int:
        """S: how many entries a list has room for."""
        return self.ids.shape[-1]

    @property
    def n_listed(self) -> jax.Array:
        """(...) int32: entries in use, spikes and near-threshold neurons."""
        return self.n_spikes + self.n_near

    def to_dense(self) -> jax.Array:
        """(..., n_neurons): the vector; derivatives of spikes and of near-threshold neurons pass."""
        rows = (self.n_spikes.size, self.capacity)
        place = jnp.where(used(self.n_listed, self.capacity), self.ids, self.n_neurons).reshape(rows)
        row = jnp.broadcast_to(jnp.arange(rows[0])[:, None], rows)
        zero = jnp.zeros((rows[0], self.n_neurons), self.value.dtype)
        return zero.at[row, place].add(self.value.reshape(rows), mode="drop").reshape(self.shape)

    @staticmethod
    def from_dense(dense, capacity: int) -> "SpikeVector":
        """The entries of `dense` (..., N) that are not 0, as spikes; `value` holds them, with their derivative.

        Parameters
        ----------
        dense : (..., N) 0 where no spike is
        capacity : room in a list, static

        Returns
        -------
        SpikeVector with `factor` 1 for each entry and no near-threshold neurons

        Raises
        ------
        RanvierError
            `dense` has no axis, or `capacity` is not a whole number from 0 on.
        """
        dense = jnp.asarray(dense)
        if dense.ndim == 0:
            raise RanvierError("SpikeVector.from_dense: got a number; needs (..., N); give it an axis of neurons")
        check_capacity("SpikeVector.from_dense", capacity)
        if not jnp.issubdtype(dense.dtype, jnp.floating):
            dense = dense.astype(jnp.float32)
        there = (dense != 0).astype(jnp.float32).reshape(rows_of(dense.shape))
        half = jnp.full((1, 1), 0.5, jnp.float32)
        lists = primitives.spikes(there, half, half, capacity)
        ids, n_spikes, n_near, n_lost, n_near_dropped = (x.reshape(*dense.shape[:-1], *x.shape[1:]) for x in lists)
        there = used(n_spikes, capacity)
        value = jnp.where(there, take(dense, ids), 0)
        return SpikeVector(
            ids, value, there.astype(dense.dtype), n_spikes, n_near, n_lost, n_near_dropped, dense.shape[-1]
        )

    def __getitem__(self, index) -> "SpikeVector":
        """Lists of a part of the batch axes, as `index` of an array of their shape picks it."""
        index = index if isinstance(index, tuple) else (index,)
        try:
            # JAX moves a fixed index that is out of range into it, NumPy refuses it
            fixed = not any(isinstance(x, jax.Array) for x in index)
            (np.empty(self.n_spikes.shape, bool) if fixed else self.n_spikes)[index]
        except (IndexError, TypeError, ValueError) as error:
            raise RanvierError(
                f"SpikeVector[]: got an index that does not fit batch axes {self.n_spikes.shape} "
                f"({str(error).splitlines()[0]}); needs one of their shape; the list itself is no axis"
            ) from None
        lists = (*index, slice(None)) if any(x is Ellipsis for x in index) else index
        return jax.tree.map(lambda x: x[lists if x.ndim > self.n_spikes.ndim else index], self)

    @staticmethod
    def stack(vectors, axis: int = 0) -> "SpikeVector":
        """Join `vectors` of one shape and capacity along a new batch axis."""
        return _joined("stack", jnp.stack, vectors, axis, new=True)

    @staticmethod
    def concatenate(vectors, axis: int = 0) -> "SpikeVector":
        """Join `vectors` of one capacity along a batch axis that they have."""
        return _joined("concatenate", jnp.concatenate, vectors, axis, new=False)


def used(count, capacity):
    """(..., S) which of the slots are in use, for `count` (...) entries."""
    return jnp.arange(capacity).reshape((1,) * count.ndim + (-1,)) < count[..., None]


def rows_of(shape):
    """(R, N) for (..., N)."""
    return math.prod(shape[:-1]), shape[-1]


def take(x, ids):
    """x (..., N) at `ids` (..., S), which lie in it."""
    if x.shape[-1] == 0:
        return jnp.zeros(ids.shape, x.dtype)
    return jnp.take_along_axis(x, ids, axis=-1, mode="promise_in_bounds")


def check_capacity(where, capacity):
    if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 0:
        raise RanvierError(
            f"{where}: capacity is {capacity!r}; needs a whole number from 0 on; say how many fit in a list"
        )


def _joined(name, join, vectors, axis, new):
    """`vectors` joined along a batch axis, one that is `new` or one that they have."""
    vectors = list(vectors)
    if not vectors:
        raise RanvierError(f"SpikeVector.{name}: got no vectors; needs one or more; leave out the call")
    kinds = sorted({(x.n_neurons, x.capacity) for x in vectors})
    if len(kinds) > 1:
        raise RanvierError(
            f"SpikeVector.{name}: got (neurons, capacity) {kinds}; needs the same of all; make lists of one capacity"
        )
    axes = vectors[0].n_spikes.ndim + new
    if not -axes <= axis < axes:
        raise RanvierError(f"SpikeVector.{name}: axis is {axis}; needs one of {axes} batch axes; change it")
    shapes = sorted({x.n_spikes.shape for x in vectors})
    others = {shape if new else (*shape[: axis % axes], *shape[axis % axes + 1 :]) for shape in shapes}
    if len(others) > 1 or len({len(shape) for shape in shapes}) > 1:
        raise RanvierError(f"SpikeVector.{name}: got batch axes {shapes}; needs those that join; reshape before")
    return jax.tree.map(lambda *xs: join(xs, axis=axis % axes), *vectors)
