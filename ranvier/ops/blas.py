"""Dense products of lists on a GPU, by cuBLAS: a piece of all lists after the other, operands and results in place.

XLA would copy what a piece reads and what it writes; see `ranvier.ops.pieces` for what has no such handler.
"""

import jax.numpy as jnp
import numpy as np

from ranvier import kernels
from ranvier.binding import vary_alike
from ranvier.ops import lowering, pieces, products

# Where there are many columns, a piece has at least so many lists, since each reads all of the matrix; and it has this
# part of the bytes of what is dense anyway: the currents, or their derivative.
LISTS, PART = 4096, 4
# so many lists of a matrix, and it may be turned
MANY = 2048


def usable(sums, platform) -> bool:
    """Whether there are handlers for sums of this type."""
    return platform == "cuda" and sums == jnp.float32 and kernels.compiled("ops_dense_gather", sums, platform)


def gather(values, ids, count, matrix, word):
    n_rows, columns = matrix.shape[1:]
    # tensor cores want side by side what they sum over; to turn a matrix takes as long as some lists
    turned = word == "tf32" and count.shape[1] >= MANY
    operand = _operand(jnp.swapaxes(matrix, 1, 2), word) if turned else _operand(matrix, word, _missing(n_rows, word))
    operands = vary_alike([values, ids, count, operand])
    piece = _piece(_bytes(word) * n_rows, columns, count)
    how = {"word": products.WORDS.index(word), "piece": piece, "turned": int(turned)}
    return _gather.bind(*operands, n_rows=n_rows, columns=columns, **how)[0]


def scatter(values, ids, count, g, n_rows, word):
    operands = vary_alike([values, ids, count, g])
    piece = _piece(_bytes(word) * n_rows + _bytes_of_parts(word) * g.shape[2], g.shape[2], count)
    return _scatter.bind(*operands, n_rows=n_rows, word=products.WORDS.index(word), piece=piece)[0]


def dots(ids, count, matrix, g, word):
    operands = vary_alike([ids, count, _operand(matrix, word, _missing(matrix.shape[1], word)), g])
    piece = _piece(4 * matrix.shape[1] + _bytes_of_parts(word) * g.shape[2], g.shape[2], count)
    return _dots.bind(*operands, n_rows=matrix.shape[1], word=products.WORDS.index(word), piece=piece)[0]


def _missing(n_rows, word):
    """Rows up to a height that products of numbers of 16 bits are fast at."""
    return -n_rows % 8 if products.halves(word) else 0


def _operand(matrix, word, rows=0):
    """The matrix as cuBLAS takes it: (parts, Q, N and so many rows, columns and what makes rows begin at 16 bytes)."""
    parts = products.parts(matrix, word)
    multiple = 16 // _bytes(word)
    x = jnp.stack(parts) if len(parts) > 1 else parts[0][None]
    return jnp.pad(x, [(0, 0), (0, 0), (0, rows), (0, -x.shape[3] % multiple)])


def _piece(list_bytes, columns, count):
    """Lists of a piece, each with so many bytes between list and result."""
    total = max(pieces.PIECE, count.size * 4 * columns // PART)
    # with few columns the rows of few lists are as large as the matrix
    return max(total // list_bytes, min(LISTS, pieces.MATRICES * columns))


def _bytes(word):
    return 2 if products.halves(word) else 4


def _bytes_of_parts(word):
    """Of what a number of the derivative is split into; others are read where they are."""
    return {"bfloat16": 2, "split": 6}.get(word, 0)


def _primitive(name, shapes, dtype_of, attributes=("word", "piece")):
    def never(*_, **__):
        raise AssertionError(f"dense_{name} has no definition but ranvier.ops.dense")

    return lowering.primitive(f"dense_{name}", never, shapes, dtype_of, attributes=dict.fromkeys(attributes, np.int64))


_gather = _primitive(
    "gather",
    lambda values, ids, count, matrix, n_rows, columns, word, piece, turned: [
        ((*count.shape, columns), jnp.dtype(jnp.float32))
    ],
    3,
    ("word", "piece", "n_rows", "turned"),
)
_scatter = _primitive(
    "scatter",
    lambda values, ids, count, g, n_rows, word, piece: [((g.shape[0], n_rows, g.shape[2]), jnp.dtype(jnp.float32))],
    3,
)
_dots = _primitive(
    "dots",
    lambda ids, count, matrix, g, n_rows, word, piece: [(ids.shape, jnp.dtype(jnp.float32))],
    2,
    ("word", "piece", "n_rows"),
)
