"""Gather, scatter and dots by dense products (`ranvier.ops.reference` defines them): lists become rows of a matrix."""

import jax
import jax.numpy as jnp

from ranvier.binding import vary_alike
from ranvier.ops import lowering, products, reference


def gather(values, ids, count, matrix, reach, *, ways, word, platform):
    def by(rows):
        return products.product("qrn,qnc->qrc", rows, matrix, word, platform)

    return [_by_rows(by, values, ids, count, matrix.shape[1], ways, word)]


def scatter(values, ids, count, g, reach, *, n_rows, ways, word, platform):
    def by(rows):
        return products.product("qrn,qrc->qnc", rows, g, word, platform)

    return [_by_rows(by, values, ids, count, n_rows, ways, word)]


def dots(ids, count, matrix, g, *, ways, word, platform):
    every = products.product("qrc,qnc->qrn", g, matrix, word, platform)
    return [reference.at(every, ids, count)]


def densify(values, ids, count, n_rows, dtype):
    """The lists as rows (Q, R, n_rows) of numbers of `dtype`; entries of equal ids add up before they are rounded."""
    return _densify.bind(*vary_alike([values, ids, count]), n_rows=n_rows, dtype=jnp.dtype(dtype))[0]


_densify = lowering.primitive(
    "densify",
    lambda values, ids, count, n_rows, dtype: [reference.densify(values, ids, count, n_rows).astype(dtype)],
    lambda values, ids, count, n_rows, dtype: [((*count.shape, n_rows), dtype)],
)


def _by_rows(by, values, ids, count, n_rows, ways, word):
    """`by` of the lists as dense rows: of 16 bits where the product rounds them so, or loses nothing."""

    def of(dtype):
        return by(densify(values, ids, count, n_rows, dtype))

    if word == "bfloat16" and values.dtype != jnp.float64:
        return of(jnp.bfloat16)
    if word != "split" or ways.real or values.dtype == jnp.float64:
        return of(values.dtype)
    whole = products.whole(values, reference.used(ids, count, n_rows), ids)
    return jax.lax.cond(whole, lambda: of(jnp.bfloat16), lambda: of(values.dtype))
