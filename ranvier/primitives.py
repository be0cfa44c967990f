"""A compiled simulator as JAX primitives: forward, its derivative and the adjoint, under every transformation.

    forward  : inputs -> results                      a handler of the compiled library
    tangent  : inputs, kept, tangents -> tangents     the JAX reference in forward mode; linear in the tangents
    backward : inputs, kept, cotangents -> gradients  a handler; it is the transpose of `tangent`

So reverse mode runs compiled code alone, and forward mode runs the reference. A call simulates Q networks on B samples
each. An axis of `jax.vmap` joins B where networks are shared, and Q elsewhere. Inside of `jax.shard_map` all operands
are made to vary over the same axes of devices, whose transpose sums gradients of what was replicated.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ranvier import kernels
from ranvier.binding import PLATFORMS, alone, results_like, vary_alike
from ranvier.errors import RanvierError


@dataclass(frozen=True)
class Signature:
    """What the arrays of a simulator are called and how they are shaped.

    An array's axes are letters, Q B ... for one a sample and Q ... for one a network, whose lengths `sizes` tells.

    Parameters
    ----------
    name : of the handlers, `NAME_forward` and `NAME_backward`
    inputs, results : name -> axes, in the order of the handlers
    gradients : name of the input -> axes, for the inputs that have a derivative
    smooth : results that have one
    kept : results that backward reads
    whole : results and inputs that are int32
    sizes : (shapes of the inputs by name, options) -> letter -> length
    absent : options -> letters of length 0; without need of the arrays that have them
    reference : (inputs of one network by name, options) -> smooth results
    forward_options : (options, moving inputs) -> options of a forward pass that keeps what backward needs
    backward_options : (options, moving inputs, smooth results with a cotangent) -> options of backward
    forward_attributes, backward_attributes : the options that handlers read
    """

    name: str
    inputs: dict[str, str]
    results: dict[str, str]
    gradients: dict[str, str]
    smooth: tuple[str, ...]
    kept: tuple[str, ...]
    whole: frozenset[str]
    sizes: Callable
    absent: Callable
    reference: Callable
    forward_options: Callable
    backward_options: Callable
    forward_attributes: tuple[str, ...]
    backward_attributes: tuple[str, ...]


class Simulator:
    """The primitives of a `Signature`; `run` is the function to call."""

    def __init__(self, signature: Signature):
        self.of = signature
        name = f"ranvier_{signature.name}"
        self.forward = self._primitive(f"{name}_forward", self._forward_shapes, self._forward_axes)
        self.tangent = self._primitive(f"{name}_tangent", self._tangent_shapes, self._tangent_axes)
        self.backward = self._primitive(f"{name}_backward", self._backward_shapes, self._backward_axes)
        self._compiled(self.forward, f"{signature.name}_forward", signature.forward_attributes)
        self._compiled(self.backward, f"{signature.name}_backward", signature.backward_attributes)
        mlir.register_lowering(self.tangent, mlir.lower_fun(self._tangent_by_reference, multiple_results=True))
        ad.primitive_jvps[self.forward] = self._forward_jvp
        ad.primitive_jvps[self.tangent] = self._tangent_jvp
        ad.primitive_jvps[self.backward] = self._backward_jvp
        ad.primitive_transposes[self.tangent] = self._tangent_transpose
        ad.primitive_transposes[self.backward] = _refuse_second

    def run(self, inputs: dict, **options) -> dict:
        """Results by name of one network on (B, ...) samples; `inputs` have no axis Q."""
        kernels.register()
        out = self.forward.bind(*vary_alike([inputs[name][None] for name in self.of.inputs]), **options)
        return {name: x[0] for name, x in zip(self.of.results, out, strict=True)}

    # Shapes of what comes out

    def _shaped(self, axes, names, avals, options):
        """(shape, dtype) by name of the arrays in `axes`, for operands that begin with the inputs `names`."""
        sizes = self.of.sizes({name: aval.shape for name, aval in zip(names, avals, strict=False)}, options)
        number, whole = avals[0].dtype, jnp.dtype(jnp.int32)
        return {
            name: (tuple(sizes[letter] for letter in letters), whole if name in self.of.whole else number)
            for name, letters in axes.items()
        }

    def _forward_shapes(self, *avals, **options):
        return self._shaped(self.of.results, self.of.inputs, avals, options)

    def _tangent_shapes(self, *avals, moving, **options):
        return self._shaped({x: self.of.results[x] for x in self.of.smooth}, self._present(options), avals, options)

    def _backward_shapes(self, *avals, **options):
        return self._shaped(self.of.gradients, self.of.inputs, avals, options)

    def _present(self, options):
        """Axes of the operands of `tangent` but for the tangents, by name, inputs first.

        Empty arrays are left out: XLA of JAX 0.11 crashes where one goes from a forward to a backward `shard_map`.
        """
        every = self.of.inputs | {name: self.of.results[name] for name in self.of.kept}
        absent = self.of.absent(options)
        return {name: letters for name, letters in every.items() if not absent & set(letters)}

    def _complete(self, operands, options):
        """All inputs and kept results by name, from the `operands` that are present."""
        present = self._present(options)
        every = self.of.inputs | {name: self.of.results[name] for name in self.of.kept}
        shapes = self._shaped(every, present, operands, options)
        there = dict(zip(present, operands, strict=True))
        return {name: there[name] if name in there else jnp.zeros(*shapes[name]) for name in every}

    # Axes of operands and results, for batching: "QB" begins those of samples, "Q" those of networks

    def _forward_axes(self, **_):
        return list(self.of.inputs.values()), list(self.of.results.values())

    def _tangent_axes(self, moving, **options):
        tangents = [self.of.inputs[name] for name in moving]
        return [*self._present(options).values(), *tangents], [self.of.results[name] for name in self.of.smooth]

    def _backward_axes(self, **_):
        given = [self.of.results[name] for name in (*self.of.kept, *self.of.smooth)]
        return [*self.of.inputs.values(), *given], list(self.of.gradients.values())

    # How they are computed

    def _primitive(self, name, shapes, axes):
        primitive = Primitive(name)
        primitive.multiple_results = True
        primitive.def_impl(lambda *operands, **options: alone(primitive, tuple(sorted(options.items())))(*operands))
        primitive.def_abstract_eval(lambda *avals, **options: results_like(shapes(*avals, **options).values(), avals))
        batching.primitive_batchers[primitive] = functools.partial(_batch, primitive, axes)
        return primitive

    def _compiled(self, primitive, handler, names):
        def lower(ctx, *operands, **options):
            attributes = {name: _attribute(options[name]) for name in names}
            return jax.ffi.ffi_lowering(kernels.target(handler, ctx.avals_in[0].dtype))(ctx, *operands, **attributes)

        for platform in PLATFORMS:
            mlir.register_lowering(primitive, lower, platform=platform)

    def _tangent_by_reference(self, *operands, moving, **options):
        fixed = len(operands) - len(moving)
        every = self._complete(operands[:fixed], options)
        inputs = {name: every[name] for name in self.of.inputs}

        def one(inputs, tangents):
            def reference(moved):
                return self.of.reference(inputs | moved, options)

            return jax.jvp(reference, ({name: inputs[name] for name in moving},), (tangents,))[1]

        return list(jax.vmap(one)(inputs, dict(zip(moving, operands[fixed:], strict=True))))

    # How they are differentiated

    def _forward_jvp(self, primals, tangents, **options):
        moving = {name: t for name, t in zip(self.of.inputs, tangents, strict=True) if type(t) is not ad.Zero}
        keeping = self.of.forward_options(options, tuple(moving))
        results = dict(zip(self.of.results, self.forward.bind(*primals, **keeping), strict=True))
        every = dict(zip(self.of.inputs, primals, strict=True)) | results
        operands = [*(every[name] for name in self._present(keeping)), *moving.values()]
        slopes = self.tangent.bind(*vary_alike(operands), moving=tuple(moving), **keeping)
        slopes = dict(zip(self.of.smooth, slopes, strict=True))
        out, out_tangents = [], []
        for name, (shape, _) in self._forward_shapes(*primals, **options).items():
            x = results[name]
            out.append(x if x.shape == shape else jax.lax.slice(x, (0,) * x.ndim, shape))
            out_tangents.append(slopes[name] if name in slopes else ad.Zero(jax.typeof(out[-1]).to_tangent_aval()))
        return out, out_tangents

    def _tangent_jvp(self, primals, tangents, **options):
        return _linear_jvp(self.tangent, len(primals) - len(options["moving"]), primals, tangents, options)

    def _backward_jvp(self, primals, tangents, **options):
        return _linear_jvp(self.backward, len(primals) - len(self.of.smooth), primals, tangents, options)

    def _tangent_transpose(self, cotangents, *operands, moving, **options):
        fixed = operands[: len(operands) - len(moving)]
        given = {x: ct for x, ct in zip(self.of.smooth, cotangents, strict=True) if type(ct) is not ad.Zero}
        backward = self.of.backward_options(options, moving, tuple(given))
        smooth = {name: self.of.results[name] for name in self.of.smooth}
        shapes = self._shaped(smooth, self._present(options), fixed, backward)
        cotangents = [given[name] if name in given else jnp.zeros(*shapes[name]) for name in smooth]
        every = self._complete(fixed, options)
        gradients = self.backward.bind(*vary_alike([*every.values(), *cotangents]), **backward)
        gradients = dict(zip(self.of.gradients, gradients, strict=True))
        return [None] * len(fixed) + [gradients[name] for name in moving]


def _linear_jvp(primitive, fixed, primals, tangents, options):
    """Of a primitive that is linear in its operands behind the first `fixed`, of which it has no derivative."""
    if any(type(t) is not ad.Zero for t in tangents[:fixed]):
        _refuse_second()
    linear = [ad.instantiate_zeros(t) for t in tangents[fixed:]]
    out = primitive.bind(*primals, **options)
    return out, primitive.bind(*vary_alike([*primals[:fixed], *linear]), **options)


def _attribute(value):
    """A Python value as the typed attribute that a handler reads: bool, f64 or i64."""
    if isinstance(value, bool):
        return value
    return np.float64(value) if isinstance(value, float) else np.int64(value)


def _batch(primitive, axes, operands, dims, **options):
    """One call for all entries of a mapped axis V: part of B where every network is shared, else part of Q."""
    operand_axes, result_axes = axes(**options)
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    networks = any(d is not None for d, letters in zip(dims, operand_axes, strict=True) if letters[1] != "B")
    # gradients of a shared network are wanted for each entry apart
    networks = networks or any(letters[1] != "B" for letters in result_axes)
    at = 0 if networks else 1

    def join(x, d, letters):
        if not networks and letters[1] != "B":
            return x
        x = jnp.broadcast_to(jnp.expand_dims(x, at), (*x.shape[:at], size, *x.shape[at:])) if d is None else x
        x = x if d is None else jnp.moveaxis(x, d, at)
        return x.reshape(*x.shape[:at], size * x.shape[at + 1], *x.shape[at + 2 :])

    # Q or B of one entry, asked of an operand of samples: where V has length 0, no result tells it
    own = [length for k, length in enumerate(operands[0].shape) if k != dims[0]][at]
    operands = [join(x, d, letters) for x, d, letters in zip(operands, dims, operand_axes, strict=True)]
    out = primitive.bind(*operands, **options)
    return [x.reshape(*x.shape[:at], size, own, *x.shape[at + 1 :]) for x in out], [at] * len(out)


def _refuse_second(*_, **__):
    raise RanvierError(
        "simulate: got a second derivative with the compiled kernels, which have first derivatives only; "
        "use backend='reference'"
    )
