"""Dense products of many lists a piece at a time, so that what lies between lists and result takes little memory."""

import jax
import jax.numpy as jnp

from ranvier.binding import vary_alike

# Bytes of dense rows above which they are not made at once, and of those of a piece.
AT_ONCE, PIECE = 64 << 20, 32 << 20
# A piece has so many times the bytes of the matrix, since each reads, and perhaps rounds, all of it.
MATRICES = 4


def joined(function, arrays, row_bytes, matrix_bytes):
    """`function(*arrays)`, whose result has the lists in the axes that `arrays` have: (Q, R, ...).

    `row_bytes` is the memory that `function` needs for a list, `matrix_bytes` that of what all lists share. The last
    piece may begin inside of the one before: the lists that both have get the same numbers twice.
    """
    pieces, size = _cut(arrays[0].shape, row_bytes, matrix_bytes)
    if pieces == 1:
        return function(*arrays)
    part = jax.eval_shape(function, *(_piece(x, 0, size) for x in arrays))
    shape = (part.shape[0], arrays[0].shape[1], *part.shape[2:])

    def put(k, out):
        begin = _begin(k, size, arrays)
        return jax.lax.dynamic_update_slice_in_dim(out, function(*(_piece(x, begin, size) for x in arrays)), begin, 1)

    return jax.lax.fori_loop(0, pieces, put, _zeros(shape, part.dtype, arrays))


def summed(function, count, arrays, row_bytes, matrix_bytes):
    """`function(count, *arrays)`, which is a sum over lists; `count` (Q, R) of 0 leaves a list out."""
    pieces, size = _cut(count.shape, row_bytes, matrix_bytes)
    if pieces == 1:
        return function(count, *arrays)

    def add(k, total):
        begin = _begin(k, size, [count])
        fresh = begin + jnp.arange(size) >= k * size
        some = jnp.where(fresh[None], _piece(count, begin, size), 0)
        return total + function(some, *(_piece(x, begin, size) for x in arrays))

    like = jax.eval_shape(function, *(_piece(x, 0, size) for x in (count, *arrays)))
    return jax.lax.fori_loop(0, pieces, add, _zeros(like.shape, like.dtype, (count, *arrays)))


def _cut(shape, row_bytes, matrix_bytes):
    """Number of pieces, and lists a piece."""
    n_groups, n_lists = shape[:2]
    total = n_groups * n_lists * row_bytes
    pieces = 1 if total <= AT_ONCE else min(n_lists, -(-total // max(PIECE, MATRICES * matrix_bytes)))
    size = -(-n_lists // pieces)
    return -(-n_lists // size), size


def _begin(k, size, arrays):
    return jnp.minimum(k * size, arrays[0].shape[1] - size)


def _piece(x, begin, size):
    return jax.lax.dynamic_slice_in_dim(x, begin, size, 1)


def _zeros(shape, dtype, arrays):
    return vary_alike([jnp.zeros(shape, dtype), arrays[0]])[0]
