"""The bilinear primitives gather, scatter and dots, and the lists of spikes, under every transformation.

    gather(values, ids, count, matrix)      -> (Q, R, C)    linear in values and in matrix
    scatter(values, ids, count, g, n_rows)  -> (Q, N, C)    linear in values and in g
    dots(ids, count, matrix, g)             -> (Q, R, S)    linear in matrix and in g

with values (Q, R, S), ids (Q, R, S), count (Q, R), matrix (Q, N, C), g (Q, R, C); `ranvier.ops.reference` defines them.
The trilinear form behind all three is the sum of values[q, r, s] <matrix[q, ids[q, r, s]], g[q, r]>, so the transposes
of each in one operand are the other two, and derivatives of any order stay among them.

`reach` (Q, R), at least `count`, says that the entries from `count` to there have the value 0 *and* a derivative: the
product leaves them out, and wherever the values are differentiated it takes them in.

Each one is a handler of the compiled library where that has it, and the reference elsewhere; or a dense product, where
the static option `ways` (`ranvier.ops.ways`) says so, which all derivatives take over. So they do the static option
`transposed`: the matrix, and its derivative, is (Q, C, N). An axis of `jax.vmap` joins R where matrices are shared, and
Q elsewhere.
"""

import functools

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from ranvier.binding import vary_alike
from ranvier.ops import dense, lowering, reference
from ranvier.ops.ways import SPARSE


def gather(values, ids, count, matrix, reach=None, ways=SPARSE, transposed=False):
    """Sums of the rows of `matrix` that lists name, each times its value: (Q, R, C)."""
    operands = vary_alike([values, ids, count, matrix, count if reach is None else reach])
    return _gather.bind(*operands, ways=ways, transposed=transposed)[0]


def scatter(values, ids, count, g, n_rows, reach=None, ways=SPARSE, transposed=False):
    """The rows of `g`, each times its value, added to the rows that lists name: (Q, n_rows, C)."""
    operands = vary_alike([values, ids, count, g, count if reach is None else reach])
    return _scatter.bind(*operands, n_rows=n_rows, ways=ways, transposed=transposed)[0]


def dots(ids, count, matrix, g, ways=SPARSE, transposed=False):
    """Products of the rows of `matrix` that lists name with those of `g`: (Q, R, S)."""
    return _dots.bind(*vary_alike([ids, count, matrix, g]), ways=ways, transposed=transposed)[0]


def spikes(state, threshold, near_threshold, capacity):
    """Lists of spikes and near-threshold neurons as `ranvier.ops.reference.spikes`; no derivative.

    `state` is (R, N), the thresholds are (R or 1, N or 1).
    """
    operands = [jax.lax.stop_gradient(x) for x in (state, threshold, near_threshold)]
    return _spikes.bind(*vary_alike(operands), capacity=capacity)


# How they are computed


_gather = lowering.primitive(
    "gather",
    lambda values, ids, count, matrix, reach: [reference.gather(values, ids, count, matrix)],
    lambda values, ids, count, matrix, reach, transposed: [
        ((*count.shape, matrix.shape[1 if transposed else 2]), values.dtype)
    ],
    dtype_of=3,
    by_product=dense.gather,
    matrix_of=3,
)
_scatter = lowering.primitive(
    "scatter",
    lambda values, ids, count, g, reach, n_rows: [reference.scatter(values, ids, count, g, n_rows)],
    lambda values, ids, count, g, reach, n_rows, transposed: [
        ((g.shape[0], *((g.shape[2], n_rows) if transposed else (n_rows, g.shape[2]))), values.dtype)
    ],
    dtype_of=0,
    by_product=dense.scatter,
    matrix_of=lowering.RESULT,
)
_dots = lowering.primitive(
    "dots",
    lambda ids, count, matrix, g: [reference.dots(ids, count, matrix, g)],
    lambda ids, count, matrix, g, transposed: [(ids.shape, g.dtype)],
    dtype_of=2,
    by_product=dense.dots,
    matrix_of=2,
)
_spikes = lowering.primitive(
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
                changed = options
                if place == 0:
                    # tangents of values reach further than values do
                    operands[2] = operands[4]
                    changed = options | {"ways": options["ways"].of_real()}
                terms.append(primitive.bind(*vary_alike(operands), **changed)[0])
        return [out], [functools.reduce(jnp.add, terms)]

    def transpose(cotangents, *operands, ways, transposed, **_):
        how = {"ways": ways, "transposed": transposed}
        (cotangent,) = cotangents
        out: list = [None] * len(operands)
        for place, rule in zip(places, transposes, strict=True):
            if ad.is_undefined_primal(operands[place]):
                aval = operands[place].aval
                zero = type(cotangent) is ad.Zero
                out[place] = ad.Zero(aval) if zero else rule(how, cotangent, *operands).astype(aval.dtype)
        return out

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose


def _rows(matrix, how):
    return matrix.aval.shape[2 if how["transposed"] else 1]


def _of_real(how):
    return how | {"ways": how["ways"].of_real()}


_bilinear(
    _gather,
    (0, 3),
    (
        lambda how, ct, values, ids, count, matrix, reach: dots(ids, reach, matrix, ct, **how),
        lambda how, ct, values, ids, count, matrix, reach: scatter(
            values, ids, count, ct, _rows(matrix, how), reach, **how
        ),
    ),
)
_bilinear(
    _scatter,
    (0, 3),
    (
        lambda how, ct, values, ids, count, g, reach: dots(ids, reach, ct, g, **how),
        lambda how, ct, values, ids, count, g, reach: gather(values, ids, count, ct, reach, **how),
    ),
)
_bilinear(
    _dots,
    (2, 3),
    (
        lambda how, ct, ids, count, matrix, g: scatter(ct, ids, count, g, _rows(matrix, how), **_of_real(how)),
        lambda how, ct, ids, count, matrix, g: gather(ct, ids, count, matrix, **_of_real(how)),
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
