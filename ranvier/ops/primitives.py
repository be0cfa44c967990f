"""The bilinear primitives gather, scatter and dots, and the lists of spikes, under every transformation.

    gather(values, ids, count, matrix)      -> (Q, R, C)    linear in values and in matrix
    scatter(values, ids, count, g, n_rows)  -> (Q, N, C)    linear in values and in g
    dots(ids, count, matrix, g)             -> (Q, R, S)    linear in matrix and in g

with values (Q, R, S), ids (Q, R, S), count (Q, R), matrix (Q, N, C), g (Q, R, C); `ranvier.ops.reference` defines them.
The trilinear form behind all three is the sum of values[q, r, s] <matrix[q, ids[q, r, s]], g[q, r]>, so the transposes
of each in one operand are the other two, and derivatives of any order stay among them.

`reach` (Q, R), at least `count`, says that the entries from `count` to there have the value 0 *and* a derivative: the
product leaves them out, and wherever the values are differentiated it takes them in.

Each one is a handler of the compiled library where that has it, and the reference elsewhere. An axis of `jax.vmap`
joins R where matrices are shared, and Q elsewhere.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ranvier import kernels
from ranvier.binding import PLATFORMS, alone, results_like, vary_alike
from ranvier.ops import reference


def gather(values, ids, count, matrix, reach=None):
    """Sums of the rows of `matrix` that lists name, each times its value: (Q, R, C)."""
    return _gather.bind(*vary_alike([values, ids, count, matrix, count if reach is None else reach]))[0]


def scatter(values, ids, count, g, n_rows, reach=None):
    """The rows of `g`, each times its value, added to the rows that lists name: (Q, n_rows, C)."""
    reach = count if reach is None else reach
    return _scatter.bind(*vary_alike([values, ids, count, g, reach]), n_rows=n_rows)[0]


def dots(ids, count, matrix, g):
    """Products of the rows of `matrix` that lists name with those of `g`: (Q, R, S)."""
    return _dots.bind(*vary_alike([ids, count, matrix, g]))[0]


def spikes(state, threshold, near_threshold, capacity):
    """Lists of spikes and near-threshold neurons as `ranvier.ops.reference.spikes`; no derivative.

    `state` is (R, N), the thresholds are (R or 1, N or 1).
    """
    operands = [jax.lax.stop_gradient(x) for x in (state, threshold, near_threshold)]
    return _spikes.bind(*vary_alike(operands), capacity=capacity)


# How they are computed


def _primitive(name, definition, shapes, dtype_of):
    """`dtype_of` is the position of the operand whose type is in the handler's name."""
    primitive = Primitive(f"ranvier_ops_{name}")
    primitive.multiple_results = True
    primitive.def_impl(lambda *operands, **options: alone(primitive, tuple(sorted(options.items())))(*operands))
    primitive.def_abstract_eval(lambda *avals, **options: results_like(shapes(*avals, **options), avals))
    by_reference = mlir.lower_fun(definition, multiple_results=True)
    mlir.register_lowering(primitive, by_reference)

    def lower(platform, ctx, *operands, **options):
        dtype = ctx.avals_in[dtype_of].dtype
        empty = any(0 in aval.shape for aval in (*ctx.avals_in, *ctx.avals_out))
        if empty or not kernels.compiled(f"ops_{name}", dtype, platform):
            return by_reference(ctx, *operands, **options)
        kernels.register()
        # without `reach`, which is the fifth
        ctx = ctx.replace(avals_in=ctx.avals_in[:4])
        return jax.ffi.ffi_lowering(kernels.target(f"ops_{name}", dtype))(ctx, *operands[:4])

    for platform in PLATFORMS:
        mlir.register_lowering(primitive, functools.partial(lower, platform), platform=platform)
    return primitive


_gather = _primitive(
    "gather",
    lambda values, ids, count, matrix, reach: [reference.gather(values, ids, count, matrix)],
    lambda values, ids, count, matrix, reach: [((*count.shape, matrix.shape[2]), values.dtype)],
    dtype_of=3,
)
_scatter = _primitive(
    "scatter",
    lambda values, ids, count, g, reach, n_rows: [reference.scatter(values, ids, count, g, n_rows)],
    lambda values, ids, count, g, reach, n_rows: [((g.shape[0], n_rows, g.shape[2]), values.dtype)],
    dtype_of=0,
)
_dots = _primitive(
    "dots",
    lambda ids, count, matrix, g: [reference.dots(ids, count, matrix, g)],
    lambda ids, count, matrix, g: [(ids.shape, g.dtype)],
    dtype_of=2,
)
_spikes = _primitive(
    "spikes",
    lambda state, high, low, capacity: list(reference.spikes(state, high, low, capacity)),
    lambda state, threshold, near_threshold, capacity: (
        [((state.shape[0], capacity), jnp.dtype(jnp.int32))] + [((state.shape[0],), jnp.dtype(jnp.int32))] * 4
    ),
    dtype_of=0,
)


# How they are differentiated


def _bilinear(primitive, places, transposes):
    """Derivatives of a primitive that is linear in the operands at two `places`, whose transposes are given."""

    def jvp(primals, tangents, **options):
        out = primitive.bind(*primals, **options)[0]
        terms = []
        for place in places:
            if type(tangents[place]) is not ad.Zero:
                operands = [*primals[:place], tangents[place], *primals[place + 1 :]]
                if place == 0:
                    # tangents of values reach further than values do
                    operands[2] = operands[4]
                terms.append(primitive.bind(*vary_alike(operands), **options)[0])
        return [out], [functools.reduce(jnp.add, terms)]

    def transpose(cotangents, *operands, **options):
        (cotangent,) = cotangents
        out: list = [None] * len(operands)
        for place, rule in zip(places, transposes, strict=True):
            if ad.is_undefined_primal(operands[place]):
                aval = operands[place].aval
                zero = type(cotangent) is ad.Zero
                out[place] = ad.Zero(aval) if zero else rule(cotangent, *operands).astype(aval.dtype)
        return out

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose


_bilinear(
    _gather,
    (0, 3),
    (
        lambda ct, values, ids, count, matrix, reach: dots(ids, reach, matrix, ct),
        lambda ct, values, ids, count, matrix, reach: scatter(values, ids, count, ct, matrix.aval.shape[1], reach),
    ),
)
_bilinear(
    _scatter,
    (0, 3),
    (
        lambda ct, values, ids, count, g, reach: dots(ids, reach, ct, g),
        lambda ct, values, ids, count, g, reach: gather(values, ids, count, ct, reach),
    ),
)
_bilinear(
    _dots,
    (2, 3),
    (
        lambda ct, ids, count, matrix, g: scatter(ct, ids, count, g, matrix.aval.shape[1]),
        lambda ct, ids, count, matrix, g: gather(ct, ids, count, matrix),
    ),
)


# How they are batched


def _batch(primitive, shared, own, operands, dims, **options):
    """One call for all entries of a mapped axis V.

    `shared` are the operands that the R lists of a matrix share. Where none of them is mapped, V becomes part of R;
    otherwise, and where the result is itself one a matrix (`own`), part of Q.
    """
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    at = 0 if own or any(dims[k] is not None for k in shared) else 1

    def join(x, d):
        x = jnp.expand_dims(x, at) if d is None else jnp.moveaxis(x, d, at)
        x = jnp.broadcast_to(x, (*x.shape[:at], size, *x.shape[at + 1 :]))
        return x.reshape(*x.shape[:at], size * x.shape[at + 1], *x.shape[at + 2 :])

    # Q or R of one entry, asked of an operand: where V has length 0, the result does not tell it
    length = [n for k, n in enumerate(operands[0].shape) if k != dims[0]][at]
    joined = [x if at == 1 and k in shared else join(x, d) for k, (x, d) in enumerate(zip(operands, dims, strict=True))]
    out = primitive.bind(*vary_alike(joined), **options)
    return [x.reshape(*x.shape[:at], size, length, *x.shape[at + 1 :]) for x in out], [at] * len(out)


def _batch_spikes(operands, dims, *, capacity):
    """Mapped states and thresholds become rows; a threshold that all rows share stays one row."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    n_rows = next(x.shape[0] if d is None else x.shape[0 if d else 1] for x, d in zip(operands, dims, strict=True))

    def join(x, d, alike):
        if d is None and alike and x.shape[0] == 1:
            return x
        x = x[None] if d is None else jnp.moveaxis(x, d, 0)
        return jnp.broadcast_to(x, (size, n_rows, x.shape[2])).reshape(size * n_rows, x.shape[2])

    state, high, low = (join(x, d, k > 0) for k, (x, d) in enumerate(zip(operands, dims, strict=True)))
    out = spikes(state, high, low, capacity)
    return [x.reshape(size, n_rows, *x.shape[1:]) for x in out], [0] * len(out)


batching.primitive_batchers[_gather] = functools.partial(_batch, _gather, (3,), False)
batching.primitive_batchers[_scatter] = functools.partial(_batch, _scatter, (), True)
batching.primitive_batchers[_dots] = functools.partial(_batch, _dots, (2,), False)
batching.primitive_batchers[_spikes] = _batch_spikes
