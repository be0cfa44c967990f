"""`product`: dense products in several precisions.

A product is named by a word:

    float32    operands and sums of 32 bits (64 bits where the operands have them)
    tf32       operands rounded to 11 significant bits inside of a GPU's tensor cores; elsewhere the same as float32
    bfloat16   operands rounded to 8 significant bits, sums of 32
    split      operands as sums of bfloat16 numbers, so that the products of the parts, which are exact, give the digits
               of float32 at the speed of tensor cores

24 significant bits are those of three bfloat16 numbers, 11 (float16) those of two, 8 those of one: each rounds what the
ones before it left. Where an operand is whole numbers up to 256 it is a bfloat16 number itself, and with spikes on one
side the product is the sum of three, with no other error than that of sums. For two real operands the six products
whose parts are largest are summed; what is left out is about the last bit of a product. A number below 2^-110 loses
digits to the smallest bfloat16 number, 2^-133. As in every dense product, a row of the matrix that is not finite makes
no number of all sums, those of the lists that do not name it, too; beyond that, in the product of two real operands, a
sum that would be infinite may be no number.
"""

import jax
import jax.numpy as jnp
from jax.lax import DotAlgorithmPreset, Precision

WORDS = ("float32", "tf32", "bfloat16", "split")
# significant bits of a type, over those of bfloat16
_PARTS = {"float32": 3, "float16": 2, "bfloat16": 1}


def product(axes, a, b, word, platform):
    """`jnp.einsum(axes, a, b)` in the precision of `word`; sums are of 32 bits, or 64 where an operand has them.

    The axis `n` of `a` may be longer than that of `b`, by what `width` adds; where only `a` has it, so does the result.
    """
    sums = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    if sums == jnp.float64 or word == "float32" or (word == "tf32" and platform != "cuda"):
        return jnp.einsum(axes, a.astype(sums), b.astype(sums), precision=Precision.HIGHEST)
    inputs, out = axes.split("->")
    of_a, of_b = inputs.split(",")
    # b has the length of an axis that rows in a are wider than
    lengths = dict(zip(of_a, a.shape, strict=True)) | dict(zip(of_b, b.shape, strict=True))
    wide = {x: n if x in "qr" else width(n, word, platform, 64 if x == "n" else 8) for x, n in lengths.items()}
    a, b = (_padded(x, [wide[y] for y in of_x]) for x, of_x in ((a, of_a), (b, of_b)))
    result = _by_tensor_cores(axes, a, b, word)
    return result if wide == lengths else result[tuple(slice(lengths[x]) for x in out)]


def width(n, word, platform, multiple=64):
    """Length to which an axis of `n` is padded: the rows of what a GPU's tensor cores read begin at 16 bytes."""
    aligned = {"tf32": 4, "bfloat16": 8, "split": 8}.get(word, 1)
    return n if platform != "cuda" or n % aligned == 0 else -(-n // multiple) * multiple


def _padded(x, shape):
    return x if x.shape == tuple(shape) else jnp.pad(x, [(0, n - m) for n, m in zip(shape, x.shape, strict=True)])


def halves(word):
    """Whether the word's products take numbers of 16 bits."""
    return word in ("bfloat16", "split")


def parts(x, word):
    """What `x` is the sum of, in the numbers that the word's products take."""
    if not halves(word):
        return [x.astype(jnp.float32)]
    return _parts(x, 1 if word == "bfloat16" else _PARTS[str(x.dtype)])


def _by_tensor_cores(axes, a, b, word):
    left, right = parts(a, word), parts(b, word)
    if word == "tf32":
        return jnp.einsum(axes, *left, *right, precision=DotAlgorithmPreset.TF32_TF32_F32)
    most = max(len(left), len(right))
    pairs = [(i, j) for i in range(len(left)) for j in range(len(right)) if i + j < most]
    # small ones first
    terms = [_dot(axes, left[i], right[j]) for i, j in sorted(pairs, key=sum, reverse=True)]
    return sum(terms[1:], terms[0])


def _dot(axes, a, b):
    return jnp.einsum(axes, a, b, precision=Precision.DEFAULT, preferred_element_type=jnp.float32)


def _parts(x, n):
    """`n` bfloat16 arrays, each what the ones before it leave of `x`, rounded."""
    if x.dtype == jnp.bfloat16:
        return [x]
    rest, out = x.astype(jnp.float32), []
    largest = float(jnp.finfo(jnp.bfloat16).max)
    for _ in range(n):
        # not a cast there and back, which XLA may leave out
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        if n > 1:
            # a number above the largest of bfloat16 must not become infinite
            part = jnp.where(jnp.isinf(rest), rest, jnp.clip(part, -largest, largest))
            rest = jnp.where(jnp.isinf(rest), 0, rest - part)
        out.append(part.astype(jnp.bfloat16))
    return out


def whole(values, used, ids):
    """Whether lists become rows of whole numbers up to 256, which bfloat16 holds as they are: bool.

    Entries of equal ids add up, so either even all entries of a list make no more, or no id comes twice: those of the
    values that are not 0 come first and ascend, as in a list of spikes.
    """
    here = jnp.where(used, values, 0)
    most = jnp.max(jnp.abs(here))
    few = most * ids.shape[-1] <= 256
    ascending = (here[..., 1:] == 0) | ((here[..., :-1] != 0) & (ids[..., :-1] < ids[..., 1:]))
    return jnp.all(here == jnp.round(here)) & (few | ((most <= 256) & jnp.all(ascending)))
