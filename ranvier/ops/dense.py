"""Gather, scatter and dots by dense products (`ranvier.ops.reference` defines them): lists become rows of a matrix."""

import functools

import jax
import jax.numpy as jnp

from ranvier.binding import vary_alike
from ranvier.ops import blas, lowering, pieces, products, reference


def gather(values, ids, count, matrix, reach, *, ways, word, platform):
    n_rows, columns = matrix.shape[1:]
    in_place = blas.usable(values.dtype, platform)

    def rows_of(word, values, ids, count):
        rows = _rows(values, ids, count, n_rows, word, platform)
        return products.product("qrn,qnc->qrc", rows, matrix, word, platform)

    def by(word):
        if in_place:
            return blas.gather(values, ids, count, matrix, word)
        # split makes three products, each of the result's size
        row_bytes = _row_bytes(values, n_rows, word) + (12 * columns if word == "split" else 0)
        return pieces.joined(functools.partial(rows_of, word), (values, ids, count), row_bytes, matrix.nbytes)

    return [_by_word(by, word, values, ids, count, n_rows, ways)]


def scatter(values, ids, count, g, reach, *, n_rows, ways, word, platform):
    columns = g.shape[2]
    in_place = blas.usable(values.dtype, platform)

    def matrix_of(word, count, values, ids, g):
        rows = _rows(values, ids, count, n_rows, word, platform)
        return products.product("qrn,qrc->qnc", rows, g, word, platform)[:, :n_rows]

    def by(word):
        if in_place:
            return blas.scatter(values, ids, count, g, n_rows, word)
        # split makes three parts of `g`
        row_bytes = _row_bytes(values, n_rows, word) + (6 * columns if word == "split" else 0)
        matrix_bytes = 4 * g.shape[0] * n_rows * columns
        return pieces.summed(functools.partial(matrix_of, word), count, (values, ids, g), row_bytes, matrix_bytes)

    return [_by_word(by, word, values, ids, count, n_rows, ways)]


def dots(ids, count, matrix, g, *, ways, word, platform):
    if blas.usable(g.dtype, platform):
        return [blas.dots(ids, count, matrix, g, word)]

    def listed(ids, count, g):
        every = products.product("qrc,qnc->qrn", g, matrix, word, platform)
        return reference.at(every, ids, count)

    # a product with every row, of which few are wanted
    return [pieces.joined(listed, (ids, count, g), g.dtype.itemsize * matrix.shape[1], matrix.nbytes)]


def densify(values, ids, count, n_rows, dtype):
    """The lists as rows (Q, R, n_rows) of numbers of `dtype`; entries of equal ids add up before they are rounded."""
    return _densify.bind(*vary_alike([values, ids, count]), n_rows=n_rows, dtype=jnp.dtype(dtype))[0]


_densify = lowering.primitive(
    "densify",
    lambda values, ids, count, n_rows, dtype: [reference.densify(values, ids, count, n_rows).astype(dtype)],
    lambda values, ids, count, n_rows, dtype: [((*count.shape, n_rows), dtype)],
)


def _rows(values, ids, count, n_rows, word, platform):
    """The lists as rows for a product, of the width and the type that it takes."""
    return densify(values, ids, count, products.width(n_rows, word, platform), _row_type(values, word))


def _row_bytes(values, n_rows, word):
    return _row_type(values, word).itemsize * n_rows


def _row_type(values, word):
    return jnp.dtype(jnp.bfloat16 if products.halves(word) else values.dtype)


def _by_word(by, word, values, ids, count, n_rows, ways):
    """`by` of the word; of float32 where the numbers are none that split can be told of, or known to be none."""
    if values.dtype == jnp.float64 or (word == "split" and ways.real):
        return by("float32")
    if word != "split":
        return by(word)
    whole = products.whole(values, reference.used(ids, count, n_rows), ids)
    return jax.lax.cond(whole, lambda: by("split"), lambda: by("float32"))
