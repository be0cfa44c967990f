"""Positions inside: a compiled simulator that takes the positions of neurons in place of matrices of delays.

It computes D_ij of Eq. 24 and the derivatives of Eq. 25 by itself, so neither delays nor their gradients, (M, N) and
(N, N), exist outside of it.
"""

from dataclasses import replace

import jax.numpy as jnp

from ranvier.primitives import Signature, Simulator
from ranvier.space import Euclidean


class Simulators:
    """Both simulators of a `Signature`: with matrices of delays, and with positions."""

    def __init__(self, of: Signature):
        self.by_delays, self.by_positions = Simulator(of), Simulator(_signature(of))

    def run(self, inputs: dict, longest, **options) -> dict:
        """As `Simulator.run`; `d_in` and `d_rec` of `inputs` may be `Euclidean`, not beyond `longest` () [ms]."""
        if isinstance(inputs["d_in"], Euclidean):
            return self.by_positions.run(_with_positions(inputs, longest), positions=True, **options)
        return self.by_delays.run(inputs, positions=False, **options)


def refusal(layer):
    """One line why the delays of a layer cannot be formed from positions inside of the kernels, or None."""
    for name, d in (("d_in", layer.d_in), ("d_rec", layer.d_rec)):
        if name == "d_rec" and layer.w_rec is None:
            continue
        if not isinstance(d, Euclidean):
            return f"{name} is of type {type(d).__name__}"
        if d.slack is not None:
            return f"{name} has slack, a number a synapse"
    return None


def beyond(d, longest):
    """How many of the `Euclidean` delays `d` exceed `longest` [ms]: () int32. XLA fuses it: no matrix is formed."""
    square = 0.01
    for a in range(d.source.shape[1]):
        square = square + (d.source[:, None, a] - d.target[None, :, a]) ** 2
    return jnp.sum(jnp.broadcast_to(jnp.sqrt(square) > longest, d.shape), dtype=jnp.int32)


def _signature(of):
    """The signature of the same simulator with positions.

    `x_in` (M + N, D) and `x_rec` (2 N, D) hold the sources, then the targets; `longest` (1,) [ms].
    """

    def sizes(shapes, options):
        _, m, n = shapes["w_in"]
        own = {"X": m + n, "Y": 2 * n if options["recurrent"] else 0, "D": shapes["x_in"][2], "L": 1}
        return of.sizes(shapes, options) | own

    def absent(options):
        return of.absent(options) | (set() if options["recurrent"] else {"Y"})

    def reference(inputs, options):
        return of.reference(_delays(inputs), options)

    return replace(
        of,
        inputs=_exchanged(of.inputs, {"d_in": {"x_in": "QXD"}, "d_rec": {"x_rec": "QYD", "longest": "QL"}}),
        gradients=_exchanged(of.gradients, {"d_in": {"x_in": "QXD"}, "d_rec": {"x_rec": "QYD"}}),
        sizes=sizes,
        absent=absent,
        reference=reference,
    )


def _exchanged(arrays, by):
    """`arrays` by name in the same order, but for those that are given `by` name, which have arrays in their place."""
    out = {}
    for name, x in arrays.items():
        out |= by.get(name, {name: x})
    return out


def _with_positions(inputs, longest):
    d_in, d_rec, dtype = inputs["d_in"], inputs["d_rec"], inputs["w_in"].dtype
    recurrent = isinstance(d_rec, Euclidean)
    dims = max(1, d_in.source.shape[1], d_rec.source.shape[1] if recurrent else 0)
    x_rec = _ends(d_rec, dims, dtype) if recurrent else jnp.zeros((0, dims), dtype)
    rec = {"x_rec": x_rec, "longest": jnp.asarray(longest, dtype)[None]}
    return _exchanged(inputs, {"d_in": {"x_in": _ends(d_in, dims, dtype)}, "d_rec": rec})


def _ends(d, dims, dtype):
    ends = jnp.concatenate([jnp.asarray(d.source, dtype), jnp.asarray(d.target, dtype)])
    return jnp.pad(ends, ((0, 0), (0, dims - ends.shape[1])))


def _delays(inputs):
    """The definition: inputs with delays in place of positions."""
    (longest,) = inputs["longest"]

    def of(ends, weights):
        d = Euclidean(ends[: len(weights)], ends[len(weights) :]).delays()
        return jnp.where(d > longest, longest, d)

    d_rec = of(inputs["x_rec"], inputs["w_rec"]) if len(inputs["w_rec"]) else inputs["w_rec"]
    made = {"x_in": {"d_in": of(inputs["x_in"], inputs["w_in"])}, "x_rec": {"d_rec": d_rec}, "longest": {}}
    return _exchanged(inputs, made)
