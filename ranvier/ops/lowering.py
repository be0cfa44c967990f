"""A primitive of ours for XLA: by a handler of the compiled library, by its definition, or by a dense product."""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir

from ranvier import kernels
from ranvier.binding import PLATFORMS, alone, results_like
from ranvier.ops import costs

# Of `matrix_of`: the result is the matrix.
RESULT = -1


def primitive(name, definition, shapes, dtype_of=None, by_product=None, matrix_of=None, attributes=()):
    """The primitive `name`: by the handler of that name where the library has it, else by `definition`.

    Parameters
    ----------
    definition : function of operands and options, in JAX
    shapes : function of the same, as abstract values: (shape, type) of each result
    dtype_of : position of the operand whose type is in the handler's name; None: the option `dtype` is
    attributes : of the handler: name of an option -> type
    by_product : function of the same and of (word, platform) that computes it by a dense product; it makes the option
        `ways` one of the primitive, which neither `definition` nor `shapes` get
    matrix_of : position of the matrix (Q, N, C) among the operands, or RESULT; it makes the option `transposed` one of
        the primitive: the matrix is (Q, C, N). `definition` and `by_product` get and give it as (Q, N, C)
    """
    self = Primitive(f"ranvier_ops_{name}")
    self.multiple_results = True

    def without_ways(function):
        return lambda *operands, ways=None, **options: function(*operands, **options)

    def either_way(function):
        """`function` of (Q, N, C) for both ways that the matrix may lie."""

        def of(*operands, transposed=False, **options):
            if not transposed:
                return function(*operands, **options)
            turned = [jnp.swapaxes(x, 1, 2) if k == matrix_of else x for k, x in enumerate(operands)]
            out = function(*turned, **options)
            return [jnp.swapaxes(out[0], 1, 2)] if matrix_of == RESULT else out

        return of

    self.def_impl(lambda *operands, **options: alone(self, tuple(sorted(options.items())))(*operands))
    self.def_abstract_eval(lambda *avals, **options: results_like(without_ways(shapes)(*avals, **options), avals))
    by_definition = mlir.lower_fun(either_way(without_ways(definition)), multiple_results=True)
    mlir.register_lowering(self, by_definition)

    def lower(platform, ctx, *operands, **options):
        dtype = options["dtype"] if dtype_of is None else ctx.avals_in[dtype_of].dtype
        empty = any(0 in aval.shape for aval in (*ctx.avals_in, *ctx.avals_out))
        compiled = not empty and kernels.compiled(f"ops_{name}", dtype, platform)
        transposed = options.get("transposed", False)
        if by_product is not None and not empty:
            word = _word(name, options["ways"], ctx, transposed, platform, compiled)
            if word != "sparse":
                function = either_way(functools.partial(by_product, word=word, platform=platform))
                return mlir.lower_fun(function, multiple_results=True)(ctx, *operands, **options)
        if not compiled:
            return by_definition(ctx, *operands, **options)
        handler = f"ops_{name}"
        if transposed:
            handler += "_turned"
            if not kernels.compiled(handler, dtype, platform):
                function = either_way(lambda *x, **other: self.bind(*x, transposed=False, **other))
                return mlir.lower_fun(function, multiple_results=True)(ctx, *operands, **options)
        kernels.register()
        # without `reach`, which is the fifth
        ctx = ctx.replace(avals_in=ctx.avals_in[:4])
        given = {name: kind(options[name]) for name, kind in dict(attributes).items()}
        return jax.ffi.ffi_lowering(kernels.target(handler, dtype))(ctx, *operands[:4], **given)

    for platform in PLATFORMS:
        mlir.register_lowering(self, functools.partial(lower, platform), platform=platform)
    return self


def _word(name, ways, ctx, transposed, platform, compiled):
    """How to compute gather, scatter or dots of the sizes of a call."""
    inputs, (out,) = ctx.avals_in, ctx.avals_out
    ids = inputs[0 if name == "dots" else 1].shape
    matrix = out if name == "scatter" else inputs[3 if name == "gather" else 2]
    sums = inputs[0] if name == "scatter" else out
    n, c = matrix.shape[2 if transposed else 1], matrix.shape[1 if transposed else 2]
    return costs.choose(name, ways, (*ids, n, c), platform, sums.dtype == jnp.float64, compiled)
