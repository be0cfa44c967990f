"""What handlers of dense products on a GPU get: operands, pieces and buffers, which need no GPU to be looked at."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import kernels
from ranvier.ops import blas, pieces, primitives, products
from ranvier.ops.ways import Ways

Q, R, S, N, C = 2, 5, 3, 13, 6


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_operands(dtype):
    """Rows begin at 16 bytes; parts add up to the matrix, behind it are zeros."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(Q, N, C)), dtype)
    exact = np.asarray(matrix, np.float64)
    parts = {"split": {"float32": 3, "float16": 2, "bfloat16": 1}[dtype]}
    for word in products.WORDS:
        got = blas._operand(matrix, word)
        halves = word in ("bfloat16", "split")
        assert got.dtype == (jnp.bfloat16 if halves else jnp.float32)
        assert got.shape == (parts.get(word, 1), Q, N, 8)
        every = np.asarray(got, np.float64)
        assert (every[..., C:] == 0).all()
        expected = np.asarray(matrix.astype(jnp.bfloat16), np.float64) if word == "bfloat16" else exact
        np.testing.assert_array_equal(every[..., :C].sum(0), expected)
        # what a part leaves is at most half of its last bit
        assert (np.abs(every[1:]) <= np.abs(every[:-1]) * 2.0**-8).all()
        missing = blas._missing(N, word)
        assert missing == (3 if halves else 0)
        higher = np.asarray(blas._operand(matrix, word, missing), np.float64)
        np.testing.assert_array_equal(higher[:, :, :N], every)
        assert higher.shape[2] == N + missing and (higher[:, :, N:] == 0).all()


def test_pieces():
    """32 MiB; more, where a quarter of what is dense is; and no fewer lists than make it worth to read the matrix."""
    few, many = (np.zeros((2, lists), np.int32) for lists in (10, 100_000))
    assert blas._piece(1024, 1024, few) == pieces.PIECE // 1024
    assert blas._piece(1024, 1024, many) == 200_000
    assert blas._piece(pieces.PIECE, 2000, few) == blas.LISTS
    assert blas._piece(pieces.PIECE, 20, few) == 80


def calls(text):
    """Name, attributes, shapes of operands, and shapes of results of the handlers that a program calls."""
    found = re.findall(r"@(ranvier_ops_dense_\w+)\(.*?backend_config = \{(.*?)\}.* : \((.*?)\) -> \(?(.*)", text)
    for name, attributes, operands, results in found:
        given = {key: int(value) for key, value in re.findall(r"(\w+) = (\d+) : i64", attributes)}
        yield name, given, *(re.findall(r"tensor<([^>]*)>", x) for x in (operands, results))


@pytest.mark.parametrize("word", products.WORDS)
@pytest.mark.parametrize("lists", [R, blas.MANY])
def test_calls(monkeypatch, word, lists):
    """The buffers and attributes that csrc/ops_binding.h asks for."""
    monkeypatch.setattr(kernels, "compiled", lambda name, dtype, platform: platform == "cuda")
    monkeypatch.setattr(kernels, "register", lambda: None)

    def three(values, ids, count, matrix, g):
        ways = Ways(word, word, word)
        return (
            primitives.gather(values, ids, count, matrix, ways=ways),
            primitives.scatter(values, ids, count, g, N, ways=ways),
            primitives.dots(ids, count, matrix, g, ways=ways),
        )

    shapes = (((Q, lists, S), "float32"), ((Q, lists, S), "int32"), ((Q, lists), "int32"), ((Q, N, C), "float32"))
    arguments = [jax.ShapeDtypeStruct(*x) for x in (*shapes, ((Q, lists, C), "float32"))]
    text = jax.jit(three).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    parts, kind = {"bfloat16": (1, "bf16"), "split": (3, "bf16")}.get(word, (1, "f32"))
    high = 16 if kind == "bf16" else 13
    turned = word == "tf32" and lists == blas.MANY
    matrix = f"{parts}x2x6x16x{kind}" if turned else f"{parts}x2x{high}x8x{kind}"
    of_lists = [f"2x{lists}x3xf32", f"2x{lists}x3xi32", f"2x{lists}xi32"]
    expected = {
        f"gather_{kind}": ({"n_rows", "turned"}, [*of_lists, matrix], f"2x{lists}x6xf32"),
        "scatter_f32": (set(), [*of_lists, f"2x{lists}x6xf32"], "2x13x6xf32"),
        f"dots_{kind}": (
            {"n_rows"},
            [*of_lists[1:], f"{parts}x2x{high}x8x{kind}", f"2x{lists}x6xf32"],
            f"2x{lists}x3xf32",
        ),
    }
    seen = set()
    for name, given, operands, results in calls(text):
        name = name.removeprefix("ranvier_ops_dense_")
        if word == "split" and given["word"] == products.WORDS.index("float32"):
            continue  # for lists that are no whole numbers
        more, buffers, result = expected[name]
        assert (operands, results) == (buffers, [result])
        assert given.keys() == {"word", "piece"} | more
        assert given["word"] == products.WORDS.index(word) and given["piece"] >= 1
        assert given.get("n_rows", N) == N and given.get("turned", turned) == turned
        seen.add(name)
    assert seen == expected.keys()
