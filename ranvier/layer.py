"""`Layer`: weights, delays and a neuron model, all that a simulation needs."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ranvier.neurons import LIF, AdEx


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layer:
    """N neurons, their synapses from M inputs and, if recurrent, from each other.

    Parameters
    ----------
    w_in : (M, N) [1/ms]
        Input weights, source first: what an arrival adds to the current.
    d_in : (M, N), scalar or embedding [ms]
        Input delays; an embedding of `ranvier.space` is evaluated by the simulator.
    w_rec, d_rec : (N, N), or None
        Recurrent weights and delays; the diagonal is used as given.
    neuron : LIF or AdEx
        The neuron model.
    """

    w_in: jax.Array
    d_in: Any = 0.0
    w_rec: jax.Array | None = None
    d_rec: Any = None
    neuron: LIF | AdEx = LIF()

    def delays(self):
        """(d_in (M, N), d_rec (N, N) or None) [ms], evaluated; a d_rec left out beside recurrent weights means 0."""
        d_in = _evaluate(self.d_in, self.w_in)
        if self.w_rec is None:
            return d_in, None
        return d_in, _evaluate(0.0 if self.d_rec is None else self.d_rec, self.w_rec)


def _evaluate(d, w):
    d = d.delays() if hasattr(d, "delays") else jnp.asarray(d)
    dtype = jnp.result_type(w)
    return jnp.broadcast_to(d, w.shape).astype(dtype) if d.ndim == 0 else d.astype(dtype)
