"""Products of lists computed sparsely and by dense products: the same numbers, and the choice between them."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import kernels
from ranvier.errors import RanvierError
from ranvier.ops import (
    SpikeVector,
    blas,
    costs,
    lif_layer,
    pieces,
    primitives,
    products,
    spike_layer,
    spike_matmul,
    spikes_from_state,
)
from ranvier.ops.ways import Ways

pytestmark = pytest.mark.usefixtures("quick_compiler")

N, C, HIGH, LOW, CAPACITY = 13, 6, 1.0, 0.6, 9
# what a float32 sum of a few products may be off by, of the sum of their sizes
EXACT, ROUNDED = 3e-6, 2e-2
ON_GPU = jax.default_backend() == "gpu"
WHOLE = jax.jit(products.whole)


def problem(seed=0, batch=(2, 3)):
    r = np.random.default_rng(seed)
    state = r.uniform(0, 1.6, (*batch, N)).astype(np.float32)
    matrix, g = (r.normal(size=shape).astype(np.float32) for shape in ((N, C), (*batch, C)))
    return state, matrix, g


def near(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def error_of(word):
    """What a product in the precision `word` may be off by."""
    return ROUNDED if word == "bfloat16" or (word == "tf32" and ON_GPU) else EXACT


def has_dense_product(program):
    return "ranvier_ops_dense" in program if ON_GPU else "dot_general" in program


def derivatives(of, primals, tangents):
    """Value, tangent, gradients, and second derivatives of sin of it, forward over reverse."""

    def loss(*primals):
        return jnp.sum(jnp.sin(of(*primals)))

    value, slope = jax.jvp(of, primals, tangents)
    back = jax.grad(loss, tuple(range(len(primals))))
    return value, slope, jax.jvp(back, primals, tangents)


def test_every_way_gives_the_same_derivatives_of_any_order():
    """Near neurons in the lists, near neurons as spikes, no batch axis; all words in one program."""
    state, matrix, _ = problem()
    d_state, d_matrix, _ = problem(1)

    def of(state, matrix, mode, precision, include_near):
        spikes = spikes_from_state(state, HIGH, LOW, CAPACITY)
        return spike_matmul(spikes, matrix, include_near, mode=mode, precision=precision)

    @jax.jit
    def every(state, matrix, d_state, d_matrix):
        out = {}
        for include_near in (False, True):
            for mode, precision in (
                ("sparse", "float32"),
                ("dense", "float32"),
                ("auto", "float32"),
                ("dense", "tf32"),
            ):
                function = partial(of, mode=mode, precision=precision, include_near=include_near)
                out[include_near, mode, precision] = derivatives(function, (state, matrix), (d_state, d_matrix))
        return out

    out = every(state, matrix, d_state, d_matrix)
    for (include_near, _, precision), got in out.items():
        for x, y in zip(*map(jax.tree.leaves, (got, out[include_near, "sparse", "float32"])), strict=True):
            near(x, y, error_of(precision))


def bilinear(word, real=False):
    """All three products with their derivatives, for lists with entries that name one row twice."""
    ways = Ways(word, word, word, real=real)

    def of(values, ids, count, matrix, g):
        reach = jnp.minimum(count + 1, ids.shape[2])
        return (
            derivatives(
                lambda v, m: primitives.gather(v, ids, count, m, reach, ways), (values, matrix), (values, matrix)
            ),
            derivatives(lambda v, g: primitives.scatter(v, ids, count, g, N, reach, ways), (values, g), (values, g)),
            derivatives(lambda m, g: primitives.dots(ids, count, m, g, ways), (matrix, g), (matrix, g)),
        )

    return of


def test_every_word_computes_all_three_products():
    """Of whole numbers and of others, which split tells apart when it runs."""
    r = np.random.default_rng(3)
    ids = r.integers(0, N, (2, 4, 7)).astype(np.int32)
    ids[0, 0] = 5
    ids[1, 1, :3] = [-1, N, 2**31 - 1]
    count = np.array([[7, 3, 0, 5], [1, 7, 2, 7]], np.int32)
    matrix, g = r.normal(size=(2, N, C)).astype(np.float32), r.normal(size=(2, 4, C)).astype(np.float32)
    words = ("sparse", "float32", "tf32", "split", "bfloat16")
    run = jax.jit(lambda *x: {word: bilinear(word)(*x) for word in words})
    for values in (r.integers(-2, 3, ids.shape), r.normal(size=ids.shape)):
        # behind the count the value is 0 and has a derivative
        values = np.where(np.arange(7) < count[..., None], values, 0).astype(np.float32)
        out = run(values, ids, count, matrix, g)
        for word in words:
            for x, y in zip(*map(jax.tree.leaves, (out[word], out["sparse"])), strict=True):
                near(x, y, error_of(word))
        off = [
            np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (out["bfloat16"], out["sparse"])), strict=True)
        ]
        assert max(off) > 1e-4, "bfloat16 products are as exact as float32 ones"


def test_dense_ways_under_vmap():
    """Over lists, which join, and over matrices, and over all: as one after the other."""
    state, matrix, _ = problem()
    matrices = np.stack([matrix, 2 * matrix])

    def of(state, matrix):
        spikes = spikes_from_state(state, HIGH, LOW, CAPACITY)
        return jax.value_and_grad(lambda w: jnp.sum(spike_matmul(spikes, w, mode="dense") ** 2))(matrix)

    @jax.jit
    def mapped(state, matrices):
        return [
            jax.vmap(of, axes)(state, m)
            for axes, m in (((0, None), matrices[0]), ((None, 0), matrices), ((0, 0), matrices))
        ]

    one_list, all_lists = jax.jit(of), jax.jit(of)
    for got, chosen in zip(mapped(state, matrices), ([0, 0], None, [0, 1]), strict=True):
        for k in range(2):
            if chosen is None:
                one = all_lists(state, matrices[k])
            else:
                one = one_list(state[k], matrices[chosen[k]])
            for x, y in zip(got, one, strict=True):
                near(x[k], y, EXACT)


def split_gather(values, ids, matrix, word="split"):
    count = np.full(ids.shape[:1], ids.shape[1], np.int32)
    ways = Ways(word, word, word)
    return np.asarray(
        jax.jit(partial(primitives.gather, ways=ways))(values[None], ids[None], count[None], matrix[None])[0]
    )


def test_split_keeps_all_digits_of_a_number():
    """One spike: the product is the row of the matrix, to the last bit, whatever its size."""
    r = np.random.default_rng(4)
    matrix = (r.normal(size=(N, 50)) * 10.0 ** r.uniform(-30, 38, (N, 50))).astype(np.float32)
    matrix[0, :4] = [np.finfo(np.float32).max, -np.finfo(np.float32).max, 0.0, 1.0]
    ids = np.arange(N, dtype=np.int32)[:, None]
    np.testing.assert_array_equal(split_gather(np.ones(ids.shape, np.float32), ids, matrix), matrix)


def test_split_is_as_exact_as_float32():
    r = np.random.default_rng(5)
    ids = np.sort(r.permuted(np.tile(np.arange(400), (8, 1)), axis=1)[:, :300]).astype(np.int32)
    matrix = (r.normal(size=(400, 20)) * 10.0 ** r.uniform(-3, 3, (400, 20))).astype(np.float32)
    values = np.ones(ids.shape, np.float32)
    exact = matrix.astype(np.float64)[ids].sum(1)
    sizes = np.abs(matrix.astype(np.float64))[ids].sum(1)
    off = {
        word: (np.abs(split_gather(values, ids, matrix, word) - exact) / sizes).max() for word in ("split", "float32")
    }
    # a GPU's tensor cores cut digits off where they add
    assert off["split"] < (3 if ON_GPU else 1.5) * off["float32"] + 2.0**-24


@pytest.mark.parametrize(
    ("values", "ids", "expected"),
    [
        ([1, 1, 0, 0], [0, 3, 3, 3], True),  # spikes and near neurons
        ([2, -3, 1, 1], [1, 1, 1, 1], True),  # few enough
        ([0.5, 1, 1, 1], [0, 1, 2, 3], False),
        ([np.nan, 1, 1, 1], [0, 1, 2, 3], False),
        ([256, 256, 256, 0], [0, 1, 2, 3], True),  # large ones, of different rows
        ([200, 0, 100, 0], [0, 1, 2, 3], False),  # an order that is not looked into
        ([200, 200, 0, 0], [1, 1, 2, 3], False),
        ([257, 0, 0, 0], [0, 1, 2, 3], False),
    ],
)
def test_what_bfloat16_rows_hold(values, ids, expected):
    values, ids = np.array([[values]], np.float32), np.array([[ids]], np.int32)
    assert bool(WHOLE(values, np.ones(ids.shape, bool), ids)) == expected
    if expected:
        rows = np.zeros(4)
        np.add.at(rows, ids[0, 0], values[0, 0])
        np.testing.assert_array_equal(rows.astype(jnp.bfloat16).astype(np.float64), rows)


def test_split_of_many_entries_that_name_one_row():
    """301 is no bfloat16 number."""
    ids = np.full((1, 301), 2, np.int32)
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(split_gather(np.ones(ids.shape, np.float32), ids, matrix), 301 * matrix[2:3])


@pytest.mark.parametrize("word", ["split", "bfloat16"])
def test_padded_products(word):
    """What a GPU reads begins at 16 bytes; the padding adds nothing."""
    r, run = np.random.default_rng(6), jax.jit(products.product, static_argnums=(0, 3, 4))
    tolerance = EXACT if word == "split" else ROUNDED
    for n in (5, 72):
        rows = np.zeros((1, 4, products.width(n, word, "cuda")), np.float32)
        rows[..., :n] = r.random((1, 4, n)) < 0.4
        matrix, g = r.normal(size=(1, n, 5)).astype(np.float32), r.normal(size=(1, 4, 5)).astype(np.float32)
        assert rows.shape[2] % 8 == 0
        near(run("qrn,qnc->qrc", rows, matrix, word, "cuda"), rows[..., :n] @ matrix, tolerance)
        scattered = run("qrn,qrc->qnc", rows, g, word, "cuda")[:, :n]
        near(scattered, np.swapaxes(rows[..., :n], 1, 2) @ g, tolerance)
        near(run("qrc,qnc->qrn", g, matrix, word, "cuda"), g @ np.swapaxes(matrix, 1, 2), tolerance)


def table(sparse, dense):
    """Costs with one number for sparse and one for each dense way, of which split costs most."""
    ways = {"sparse": sparse, "float32": dense, "bfloat16": dense, "split": {"call": 1e9}, "tf32": dense}
    return {name: {operator: ways for operator in costs.OPERATORS} for name in ("cpu", "gpu")}


@pytest.fixture
def given_costs(tmp_path, monkeypatch):
    def give(content):
        path = tmp_path / "costs.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("RANVIER_COSTS", str(path))
        costs._read.cache_clear()

    return give


def test_auto_takes_what_costs_less(given_costs):
    """Sparse costs 1 an entry and column, dense 0.1 a pair: even at 10 %."""
    given_costs(table({"entries": 1.0}, {"product": 0.1}))
    shape = (1, 20, 50, 100, 8)

    def pick(operator, activity, precision="float32", platform="cpu", **kind):
        ways = Ways("auto", "auto", "auto", precision, activity)
        return costs.choose(
            operator, ways, kind.pop("shape", shape), platform, kind.pop("double", False), kind.pop("sparse", True)
        )

    assert pick("gather", (0.09, 0.5)) == pick("scatter", (0.09, 0.5)) == "sparse"
    assert pick("gather", (0.11, 0.5)) == pick("scatter", (0.11, 0.5)) == "float32"
    # spike gradients read the whole list
    assert pick("dots", (0.09, 0.5)) == "float32"
    assert pick("dots", (0.05, 0.09)) == "sparse"
    # without a word, as many as there is room for
    assert pick("gather", None) == "float32"
    assert pick("gather", None, shape=(1, 20, 9, 100, 8)) == "sparse"
    assert pick("gather", (0.11, 0.5), "bfloat16") == "bfloat16"
    assert pick("gather", (0.11, 0.5), "tf32") == "float32"
    assert pick("gather", (0.11, 0.5), "tf32", "cuda") == "tf32"
    assert pick("gather", (0.01, 0.02), sparse=False) == "float32"
    assert pick("gather", (0.11, 0.5), double=True) == "float32"


def test_split_stands_in_for_float32_where_it_costs_less(given_costs):
    costly = table({"call": 5.0}, {"call": 3.0})
    for ways in costly["gpu"].values():
        ways["split"] = {"call": 1.0}
    given_costs(costly)
    shape = (1, 20, 50, 100, 8)
    for mode in ("dense", "auto"):
        assert costs.choose("gather", Ways(mode, mode, mode), shape, "cuda", False, True) == "split"
        assert costs.choose("gather", Ways(mode, mode, mode, real=True), shape, "cuda", False, True) == "float32"
        assert costs.choose("gather", Ways(mode, mode, mode, "tf32"), shape, "cuda", False, True) == "tf32"


@pytest.mark.skipif("ops_gather" not in kernels.status().handlers, reason="no compiled sparse operators")
def test_what_is_chosen_is_what_is_compiled(given_costs):
    state, matrix, _ = problem()

    def text(activity):
        def of(matrix, state):
            spikes = spikes_from_state(state, HIGH, LOW, CAPACITY)
            return spike_matmul(spikes, matrix, mode="auto", activity=activity)

        return jax.jit(of).lower(matrix, state).as_text()

    # 10 %
    given_costs(table({"entries": 1.0}, {"product": 0.1}))
    assert "ranvier_ops_gather" in text(0.05) and not has_dense_product(text(0.05))
    assert "ranvier_ops_gather" not in text(0.2) and has_dense_product(text(0.2))


@pytest.mark.skipif("ops_gather" not in kernels.status().handlers, reason="no compiled sparse operators")
def test_the_choice_is_that_of_the_sizes_after_vmap(given_costs):
    """36 numbers of one call, 288 of eight."""
    given_costs(table({"columns": 1.0}, {"call": 100.0}))
    state, matrix, _ = problem()

    def of(state):
        return spike_matmul(spikes_from_state(state, HIGH, LOW, CAPACITY), matrix, mode="auto")

    many = np.stack([state] * 8)
    assert not has_dense_product(jax.jit(of).lower(state).as_text())
    assert has_dense_product(jax.jit(jax.vmap(of)).lower(many).as_text())


def test_what_comes_from_far_away():
    """A matrix that a cache does not hold, or the lists' sums that a matrix gradient reads."""
    large = math.ceil(costs.CACHE)
    for many, term, other in (({"n": large}, "far", "spread"), ({"lists": large}, "spread", "far")):
        size = costs.sizes(**({"lists": 1, "slots": 1, "n": 1, "columns": 1, "fraction": 1.0} | many))
        # a quarter of numbers of four bytes fits
        assert size[term] == pytest.approx(0.75 * size["entries"]) and size[other] == 0


def test_the_shipped_costs_are_whole():
    shipped = json.loads(costs.SHIPPED.read_text())
    costs.check(costs.SHIPPED, shipped)
    for name, words in (("cpu", ("float32", "bfloat16")), ("gpu", ("float32", "tf32", "bfloat16"))):
        for operator in costs.OPERATORS:
            assert {"sparse", *words} <= set(shipped[name][operator])


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"cpu": 3}', '{"cpu": {"gather": {}}}']
    + [
        json.dumps(table({"entry": 1.0}, {})),
        json.dumps(table({"call": "1"}, {})),
        json.dumps(table({"call": 1e400}, {})),
    ],
)
def test_a_bad_table_is_one_line(given_costs, content):
    given_costs(content)
    with pytest.raises(RanvierError, match=r"costs: .*needs what ranvier bench writes.*") as error:
        costs.table("cpu")
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("RANVIER_COSTS", str(tmp_path / "none"))
    with pytest.raises(RanvierError, match="names .*none, which is no file"):
        costs.table("cpu")
    monkeypatch.delenv("RANVIER_COSTS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    shipped = json.loads(costs.SHIPPED.read_text())["cpu"]
    assert costs.table("cpu") == shipped
    (tmp_path / "ranvier").mkdir()
    (tmp_path / "ranvier" / "costs.json").write_text(json.dumps({"gpu": table({}, {})["gpu"]}))
    assert costs.table("cpu") == shipped and costs.table("cuda") == table({}, {})["gpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "mode is 'fast'; needs sparse, dense, auto"),
        ({"precision": "float16"}, "precision is 'float16'; needs float32, tf32, bfloat16"),
        ({"activity": 1.5}, "activity is 1.5"),
        ({"activity": "0.1"}, "activity is '0.1'"),
        ({"activity": (0.2, 0.1)}, r"activity is \(0.2, 0.1\)"),
        ({"activity": (0.2,)}, r"activity is \(0.2,\)"),
    ],
)
def test_bad_words_are_one_line(options, message):
    state, matrix, _ = problem()
    with pytest.raises(RanvierError, match=message) as error:
        spike_matmul(spikes_from_state(state, HIGH, LOW, CAPACITY), matrix, **options)
    assert "\n" not in str(error.value)


def test_64_bits_are_not_rounded(x64):
    state, matrix, _ = (x.astype(np.float64) for x in problem())
    spikes = spikes_from_state(state, HIGH, LOW, CAPACITY)
    exact = np.where(state > HIGH, 1, 0) @ matrix
    np.testing.assert_allclose(spike_matmul(spikes, matrix, mode="dense"), exact, rtol=0, atol=1e-14)
    with pytest.raises(RanvierError, match="precision is bfloat16 for arrays of 64 bits"):
        spike_matmul(spikes, matrix, mode="dense", precision="bfloat16")


def test_spike_layer_is_the_product_and_the_neurons():
    r = np.random.default_rng(7)
    spikes = SpikeVector.from_dense(jnp.asarray(r.random((5, 2, N)) < 0.4, jnp.float32), N)
    w_in, w_rec, bias = (r.normal(size=shape).astype(np.float32) for shape in ((N, C), (C, C), C))
    options = {"alpha": 0.9, "gain": 10.0, "near_threshold": 0.5, "capacity": 4}

    @jax.jit
    def both(w_in):
        layer = [
            spike_layer(spikes, w_in, w_rec, bias=bias, mode=mode, **options)[0] for mode in ("sparse", "dense", "auto")
        ]
        return *layer, lif_layer(spike_matmul(spikes, w_in, bias=bias), w_rec, **options)[0]

    *layers, expected = both(w_in)
    assert int(expected.n_spikes.sum()) > 10
    for layer in layers:
        jax.tree.map(lambda x, y: near(x, y, EXACT), layer, expected)


@pytest.mark.parametrize("word", ["float32", "tf32", "bfloat16", "split"])
def test_dense_products_in_pieces(monkeypatch, word):
    """Pieces that do not divide the lists give what all lists at once give."""
    r = np.random.default_rng(3)
    ids = np.sort(np.argsort(r.random((3, 11, N)), axis=2)[..., :5], axis=2).astype(np.int32)
    count = r.integers(0, 6, (3, 11)).astype(np.int32)
    values = (np.arange(5) < count[..., None]).astype(np.float32)
    matrix, g = r.normal(size=(3, N, C)).astype(np.float32), r.normal(size=(3, 11, C)).astype(np.float32)
    ways = Ways(word, word, word)

    def three(values, ids, count, matrix, g):
        return (
            primitives.gather(values, ids, count, matrix, ways=ways),
            primitives.scatter(values, ids, count, g, N, ways=ways),
            primitives.dots(ids, count, matrix, g, ways=ways),
        )

    whole = jax.jit(three)(values, ids, count, matrix, g)
    monkeypatch.setattr(pieces, "AT_ONCE", 0)
    monkeypatch.setattr(pieces, "MATRICES", 0)
    # some lists of a group, and on a GPU two groups as well
    for size, lists in ((0, 4), (0, 25)) if ON_GPU else ((3 * 4 * 4 * N, 0),):
        monkeypatch.setattr(pieces, "PIECE", size)
        monkeypatch.setattr(blas, "LISTS", lists)
        monkeypatch.setattr(blas, "PART", 2**30)
        in_pieces = jax.jit(lambda *operands: three(*operands)).lower(values, ids, count, matrix, g)
        loops = 0 if ON_GPU else 5 if word == "split" else 3
        assert in_pieces.as_text().count("stablehlo.while") == loops
        cut = in_pieces.compile()(values, ids, count, matrix, g)
        for a, b in zip(whole, cut, strict=True):
            near(b, a, error_of(word) if word == "tf32" else EXACT)
