"""Specs, layouts and embeddings, against their definitions by plain loops."""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import space as S
from ranvier.errors import RanvierError

SPECS = ["inf", "0", "3", "2e0.1", "3g0.25"]


# The definitions.


def slack_factor(e, amount, i, j):
    return 1.0 if e is None else 1 + amount * (0.5 + 0.5 * math.tanh(e[i][j]))


def euclidean_loop(source, target, e, amount):
    out = np.empty((len(source), len(target)))
    for i, p in enumerate(source):
        for j, q in enumerate(target):
            square = 0.0
            for a in range(len(p)):
                square += (p[a] - q[a]) ** 2
            out[i, j] = slack_factor(e, amount, i, j) * math.sqrt(0.01 + square)
    return out


def lattice_points_loop(n, dim):
    side = 1
    while side**dim < n:
        side += 1
    points = []
    for i in range(n):
        digits = []
        for _ in range(dim):
            digits.append(i % side - (side - 1) / 2)
            i //= side
        points.append(digits[::-1])
    return points


def manhattan_loop(source, target, e, amount):
    out = np.empty((len(source), len(target)))
    for i, p in enumerate(source):
        for j, q in enumerate(target):
            out[i, j] = slack_factor(e, amount, i, j) * sum(abs(p[a] - q[a]) for a in range(len(p)))
    return out


def moved(points, scale, origin):
    return [[scale * c + o for c, o in zip(p, origin, strict=True)] for p in points]


def space_delays_loop(space):
    """(d_in, d_rec) of any space, from its parameters as NumPy arrays."""
    p = {name: np.asarray(value, np.float64) for name, value in space.params.items()}
    m, n, x = space.n_in, space.n_hidden, space.spec.slack or 0.0
    if space.spec.kind == "none":
        return np.zeros((m, n)), np.zeros((n, n))
    if space.spec.kind == "free":
        return p["d_in"], p["d_rec"]
    if space.spec.kind == "euclidean":
        x_in, x_rec, delays = p["x_in"], p["x_rec"], euclidean_loop
    else:
        x_in = moved(lattice_points_loop(m, space.spec.dim), p["scale"], p["origin_in"])
        x_rec = moved(lattice_points_loop(n, space.spec.dim), p["scale"], p["origin_rec"])
        delays = manhattan_loop
    return delays(x_in, x_rec, p.get("e_in"), x), delays(x_rec, x_rec, p.get("e_rec"), x)


def make(text, n_in=5, n_hidden=4, **options):
    return S.init_space(text, jax.random.key(0), n_in, n_hidden, **options)


@functools.cache
def scrambled(text, dtype="float32", **options):
    """A space with every parameter moved off its start, so that no test passes because e or an origin is 0."""
    rng = np.random.default_rng(0)
    space = make(text, dtype=dtype, **options)
    return jax.tree.map(lambda p: jnp.asarray(np.asarray(p) + 0.7 * np.abs(rng.normal(size=p.shape)), p.dtype), space)


def positions(space):
    found = space.positions()
    assert found is not None
    return found


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


@jax.jit
def both(space):
    return space.d_in().delays(), space.d_rec().delays()


# Specs.


@pytest.mark.parametrize(
    ("text", "kind", "dim", "slack"),
    [
        ("inf", "free", 0, None),
        ("0", "none", 0, None),
        ("1", "euclidean", 1, None),
        ("12", "euclidean", 12, None),
        ("2e0.1", "euclidean", 2, 0.1),
        ("2e0", "euclidean", 2, 0.0),
        ("3e2", "euclidean", 3, 2.0),
        ("3g0.25", "lattice", 3, 0.25),
        ("1g1e-07", "lattice", 1, 1e-7),
        ("1e1e+22", "euclidean", 1, 1e22),
    ],
)
def test_parse_reads_and_writes_back(text, kind, dim, slack):
    spec = S.parse(text)
    assert spec == S.Spec(kind, dim, slack)
    assert str(spec) == text
    assert S.parse(spec) is spec
    assert spec.has_positions == (kind in ("euclidean", "lattice"))


@pytest.mark.parametrize(
    ("text", "canonical"), [("2e0.10", "2e0.1"), ("2e.5", "2e0.5"), ("03", "3"), ("00", "0"), ("2g-0.0", "2g0")]
)
def test_parse_makes_one_string_of_equal_specs(text, canonical):
    assert str(S.parse(text)) == canonical
    assert S.parse(text) == S.parse(canonical)


@pytest.mark.parametrize(
    "bad", ["", "x", "-1", "2.5", "INF", "infe0.1", "2f0.1", " 2", "2\n", "²", "9" * 5000, 2, None]
)
def test_parse_shows_the_forms_for_an_unknown_spec(bad):
    with pytest.raises(RanvierError) as error:
        S.parse(bad)
    assert all(form in str(error.value) for form in ("inf", "0 (none)", "2 (", "2e0.1", "2g0.1"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("0e0.1", "1e0.1"),
        ("0g0.1", "1g0.1"),
        ("2e", "no slack amount"),
        ("2g", "no slack amount"),
        ("2eabc", "the slack 'abc'"),
        ("2e-0.1", "slack -0.1"),
        ("2enan", "slack nan"),
        ("2ginf", "slack inf"),
    ],
)
def test_parse_says_what_is_wrong_with_the_slack(bad, says):
    with pytest.raises(RanvierError, match=says):
        S.parse(bad)


# Embeddings against loops.


@pytest.mark.parametrize(
    ("text", "dtype"), [(text, "float64") for text in [*SPECS, "1", "5e2", "1g0.5", "2g0"]] + [("2e0.1", "float32")]
)
def test_delays_are_their_definition(text, dtype, x64):
    space = scrambled(text, dtype)
    for embedding, delays, loop in zip(
        (space.d_in(), space.d_rec()), both(space), space_delays_loop(space), strict=True
    ):
        assert delays.dtype == dtype
        assert embedding.shape == delays.shape == loop.shape
        np.testing.assert_allclose(delays, loop, rtol=0, atol=1e-12 if dtype == "float64" else 3e-5)


def test_free_delays_are_never_negative_and_can_leave_zero():
    embedding = S.FreeDelay(jnp.array([[-1.0, 0.0, 2.0]]))
    np.testing.assert_array_equal(embedding.delays(), [[0.0, 0.0, 2.0]])
    np.testing.assert_array_equal(jax.grad(lambda e: e.delays().sum())(embedding).d, [[0.0, 1.0, 1.0]])


def test_slack_goes_from_one_to_one_plus_x():
    ends = jnp.array([[-50.0], [0.0], [50.0]])
    points = jnp.zeros((3, 2)), jnp.array([[3.0, 4.0]])
    d = S.Euclidean(*points, ends, 0.2).delays() / S.Euclidean(*points).delays()
    np.testing.assert_allclose(d[:, 0], [1.0, 1.1, 1.2], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 26, 27, 28, 64, 125, 216, 999, 1000, 1001, 2187, 3125])
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 7])
def test_lattice_is_the_smallest_cube_in_c_order(n, dim):
    points = S.lattice(n, dim)
    np.testing.assert_array_equal(points, lattice_points_loop(n, dim))
    assert len(np.unique(points, axis=0)) == n


def test_lattice_in_more_dimensions_than_bits():
    points = S.lattice(3, 100)
    np.testing.assert_array_equal(points[:, -2:], [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5]])


# Gradients.


@pytest.mark.parametrize("text", ["inf", "1", "3", "2e0.1", "2g0.25", "3g0"])
def test_gradient_is_finite_difference(text, x64):
    # Recurrent and input delays in one sum: the position of a neuron is a source, a target and an end of its inputs.
    space = scrambled(text, "float64")
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(4, 4))

    @jax.jit
    def loss(params):
        d_in, d_rec = both(replace(space, params=params))
        return (a * d_in**2).sum() + (b * d_rec**2).sum()

    params = {name: np.array(value) for name, value in space.params.items()}
    grads = jax.jit(jax.grad(loss))(params)
    assert grads.keys() == params.keys()
    for name, grad in grads.items():
        for at in np.ndindex(grad.shape):
            ends = []
            for h in (1e-5, -1e-5):
                moved_by_h = params[name].copy()
                moved_by_h[at] += h
                ends.append(float(loss(params | {name: moved_by_h})))
            np.testing.assert_allclose(np.asarray(grad)[at], (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", ["2e0.1", "2g0.1"])
def test_gradient_is_finite_where_neurons_coincide(text, dtype, x64):
    space = make(text, dtype=dtype)
    space = replace(
        space,
        params={
            n: p if n.startswith("e_") else jnp.asarray(np.zeros(p.shape), p.dtype) for n, p in space.params.items()
        },
    )
    grads = jax.jit(jax.grad(lambda s: sum(d.sum() for d in both(s))))(space)
    for name, grad in grads.params.items():
        assert np.isfinite(grad).all(), name
        if name.startswith(("x_", "origin")):
            np.testing.assert_array_equal(grad, np.zeros_like(grad))
    for delays in both(space):
        np.testing.assert_allclose(delays, 0.1 * 1.05 if "e" in text else 0.0, rtol=1e-6)


def test_a_lattice_neuron_in_line_with_another_is_not_pulled_aside():
    e = S.Lattice(jnp.array(2.0), jnp.zeros(2), jnp.zeros(2), jnp.array([[0.0, 3.0]]), jnp.array([[0.0, 1.0]]))
    grad = jax.grad(lambda e: e.delays().sum())(e)
    np.testing.assert_array_equal(grad.source_origin, [0.0, 1.0])
    np.testing.assert_array_equal(grad.target_origin, [0.0, -1.0])
    assert grad.scale == 2.0


# Transformations.


@pytest.mark.parametrize("text", SPECS)
def test_space_survives_jit_vmap_and_flattening(text):
    space = scrambled(text)
    embedding = space.d_in()
    plain = embedding.delays()
    np.testing.assert_allclose(both(space)[0], plain, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda e: e.delays())(embedding), plain, rtol=1e-6)
    for tree in (space, embedding):
        leaves, structure = jax.tree.flatten(tree)
        again = jax.tree.unflatten(structure, leaves)
        assert type(again) is type(tree)
        assert jax.tree.structure(again) == structure
    # Two members with other numbers, as an ensemble or a per-sample gradient makes them.
    twice = jax.tree.map(lambda p: jnp.asarray(np.stack([p, 2 * np.asarray(p)])), space)
    batch = jax.jit(jax.vmap(both, axis_size=2))(twice)
    for i, factor in enumerate((1, 2)):
        one = jax.tree.map(lambda p, f=factor: jnp.asarray(f * np.asarray(p)), space)
        for delays, alone in zip(batch, both(one), strict=True):
            np.testing.assert_allclose(delays[i], alone, rtol=1e-6)


def test_every_number_is_a_leaf_once():
    space = make("3")
    assert sum(p.size for p in jax.tree.leaves(space)) == (5 + 4) * 3
    assert jax.tree.leaves(make("0")) == []
    assert "e_in" not in make("2g0").params


# Starting values.


def test_random_positions_are_normal_of_width_sigma():
    x_in, x_rec = (np.asarray(x) for x in positions(make("2", 1000, 1000, position_sigma=5.0)))
    for x in (x_in, x_rec):
        assert abs(x.std() - 5) < 0.3
        assert np.abs(x.mean(axis=0)).max() < 0.6
    # Inputs are not the neurons.
    assert not np.array_equal(x_in, x_rec)


@pytest.mark.parametrize("text", ["1", "3e0.1"])
def test_line_puts_the_inputs_on_the_first_axis(text):
    x_in, x_rec = positions(make(text, layout="line", position_sigma=3.0))
    np.testing.assert_allclose(x_in[:, 0], [-6, -3, 0, 3, 6], atol=1e-6)
    np.testing.assert_array_equal(x_in[:, 1:], 0)
    np.testing.assert_array_equal(x_rec, positions(make(text, position_sigma=3.0))[1])


def test_circle_puts_neurons_inside_the_ring_of_inputs():
    x_in, x_rec = positions(make("2", layout="circle", position_sigma=3.0))
    for x, radius in zip((np.asarray(x_in), np.asarray(x_rec)), (6, 3), strict=True):
        np.testing.assert_allclose(np.hypot(*x.T), radius, rtol=1e-6)
        step = np.hypot(*(x - np.roll(x, 1, axis=0)).T)
        np.testing.assert_allclose(step, 2 * radius * math.sin(math.pi / len(x)), rtol=1e-5)


@pytest.mark.parametrize("layout", S.LAYOUTS)
def test_no_neuron_of_a_plane_starts_at_the_origin(layout):
    x_rec = np.asarray(positions(make("2", n_hidden=100, layout=layout))[1])
    assert np.hypot(*x_rec.T).min() > 0.1
    assert len(np.unique(x_rec, axis=0)) == 100


def test_free_delays_start_normal_and_never_negative():
    d_in, d_rec = (np.asarray(make("inf", 40, 40).params[name]) for name in ("d_in", "d_rec"))
    for d in (d_in, d_rec):
        assert abs(d.mean() - 8) < 0.1
        assert abs(d.std() - 1) < 0.1
    assert not np.array_equal(d_in, d_rec)
    short = np.asarray(make("inf", 40, 40, delay_mu=0.0, delay_sigma=0.5).params["d_in"])
    assert short.min() == 0
    assert 0.4 < (short == 0).mean() < 0.6
    assert S.longest(make("inf", delay_mu=2.0, delay_sigma=0.0)) == 2.0


@pytest.mark.parametrize("dim", [1, 3])
def test_lattice_starts_as_long_as_random_positions(dim):
    x, y = np.random.default_rng(0).normal(size=(2, 100_000, dim)) * 7
    random = np.sqrt(((x - y) ** 2).sum(axis=1)).mean()
    d_in = np.asarray(make(f"{dim}g0.1", position_sigma=7.0).d_in().delays())
    # Slack starts in its middle, 1.05.
    np.testing.assert_allclose(d_in.mean() / 1.05, random, rtol=0.01)


def test_lattice_of_one_input_and_one_neuron_starts():
    space = make("2g0.1", 1, 1, position_sigma=7.0)
    assert float(space.params["scale"]) == 7.0
    assert S.longest(space) == 0.0


def test_lattice_positions_are_scale_times_lattice_plus_origin():
    space = scrambled("3g0.25")
    p = {name: np.asarray(value) for name, value in space.params.items()}
    for x, n, end in zip(positions(space), (5, 4), ("in", "rec"), strict=True):
        expected = moved(lattice_points_loop(n, 3), p["scale"], p[f"origin_{end}"])
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["0", "inf"])
def test_no_positions_without_a_space(text):
    assert make(text).positions() is None


def test_dtype_of_numpy_options_does_not_widen(x64):
    wide = np.float64(2.0)
    for text in ("inf", "3", "3g0.25"):
        space = make(text, position_sigma=wide, delay_mu=wide, delay_sigma=wide, dtype=jnp.float32)
        assert both(space)[0].dtype == jnp.float32


def test_neurons_do_not_depend_on_layout_or_recurrence():
    alone = make("2e0.1", recurrent=False)
    np.testing.assert_array_equal(alone.params["x_rec"], make("2e0.1").params["x_rec"])
    assert alone.params.keys() == {"x_in", "x_rec", "e_in"}
    assert alone.d_rec() is None


# A layer of outputs with positions of its own.


@pytest.mark.parametrize("text", ["3", "2e0.1", "2g0.25"])
def test_output_layer_takes_the_positions_of_the_hidden_neurons(text, x64):
    hidden = scrambled(text, "float64")
    out = scrambled(text, "float64", n_in=4, n_hidden=3, recurrent=False, shared_source=True, position_sigma=0.75)
    assert out.shares_source
    assert not hidden.shares_source
    assert not {"x_in", "origin_in"} & out.params.keys()
    x_rec = hidden.positions()[1]
    loop = manhattan_loop if "g" in text else euclidean_loop
    x_out = out.positions(x_rec)[1]
    e, amount = out.params.get("e_in"), out.spec.slack or 0.0
    np.testing.assert_allclose(out.d_in(x_rec).delays(), loop(x_rec, x_out, e, amount), atol=1e-12)
    assert out.positions(x_rec)[0] is x_rec
    assert S.longest(out, x_rec) == float(out.d_in(x_rec).delays().max())
    # The hidden neurons feel the delays of their outgoing synapses.
    grad = jax.jit(jax.grad(lambda h: out.d_in(h.positions()[1]).delays().sum()))(hidden)
    moves = "x_rec" if "x_rec" in grad.params else "scale"
    assert float(jnp.abs(grad.params[moves]).max()) > 0
    np.testing.assert_array_equal(S.matched_free(out, x_rec).d_in().delays(), out.d_in(x_rec).delays())


@pytest.mark.parametrize("text", ["0", "inf"])
def test_output_layer_without_positions_needs_no_source(text):
    out = make(text, recurrent=False, shared_source=True)
    assert not out.shares_source
    np.testing.assert_array_equal(out.d_in(ones(5, 2)).delays(), out.d_in().delays())


# Other functions.


@pytest.mark.parametrize(("text", "recurrent"), [(text, True) for text in SPECS] + [("2e0.1", False)])
def test_matched_free_starts_with_the_same_delays(text, recurrent):
    space = scrambled(text, recurrent=recurrent)
    free = S.matched_free(space)
    assert str(free.spec) == "inf"
    assert free.params.keys() == ({"d_in", "d_rec"} if recurrent else {"d_in"})
    for found, expected in ((free.d_in(), space.d_in()), (free.d_rec(), space.d_rec())):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            np.testing.assert_array_equal(found.delays(), expected.delays())
    # The same tree as a free space from scratch: a checkpoint of one reads as the other.
    assert jax.tree.structure(free) == jax.tree.structure(make("inf", recurrent=recurrent))


def test_projected_moves_negative_free_delays_to_zero_and_nothing_else():
    free = jax.tree.map(lambda d: jnp.asarray(np.asarray(d) - 8), make("inf"))
    for name, d in free.projected().params.items():
        np.testing.assert_array_equal(d, np.maximum(free.params[name], 0))
    euclidean = make("3")
    assert euclidean.projected() is euclidean


@pytest.mark.parametrize("name", ["d_in", "d_rec"])
def test_longest_refuses_what_is_not_finite(name):
    space = scrambled("inf")
    assert S.longest(space) == max(float(d.max()) for d in both(space))
    for value in (math.nan, math.inf):
        broken = np.array(space.params[name])
        broken[0, 0] = value
        with pytest.raises(RanvierError, match="longest: got a longest delay of (nan|inf)"):
            S.longest(replace(space, params=space.params | {name: jnp.asarray(broken)}))


# Bad input.


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"spec": "z"}, "got the spec 'z'"),
        ({"layout": "square"}, "random, line, circle"),
        ({"spec": "inf", "layout": "line"}, "'line' with the spec inf"),
        ({"spec": "0", "layout": "circle"}, "'circle' with the spec 0"),
        ({"spec": "2g0.1", "layout": "line"}, "'line' with the spec 2g0.1"),
        ({"spec": "3", "layout": "circle"}, "'circle' in 3 dimensions"),
        ({"spec": "1e0.1", "layout": "circle"}, "'circle' in 1 dimensions"),
        ({"layout": "line", "shared_source": True}, "shares its sources"),
        ({"position_sigma": 0.0}, "position_sigma 0.0"),
        ({"position_sigma": -1}, "position_sigma -1"),
        ({"position_sigma": math.nan}, "position_sigma nan"),
        ({"position_sigma": "wide"}, "position_sigma 'wide'"),
        ({"spec": "inf", "delay_sigma": -0.1}, "delay_sigma -0.1"),
        ({"spec": "inf", "delay_sigma": math.inf}, "delay_sigma inf"),
        ({"spec": "inf", "delay_mu": math.nan}, "delay_mu nan"),
        ({"n_in": 0}, "n_in 0"),
        ({"n_hidden": -1}, "n_hidden -1"),
        ({"n_in": 2.5}, "n_in 2.5"),
        ({"dtype": "int32"}, "dtype int32"),
        ({"dtype": "colour"}, "dtype colour"),
        ({"dtype": "float64"}, "64-bit numbers off"),
    ],
)
def test_init_space_refuses(options, says):
    with jax.enable_x64(False), pytest.raises(RanvierError) as error:
        S.init_space(**({"spec": "2", "key": jax.random.key(0), "n_in": 3, "n_hidden": 2} | options))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("embedding", "says"),
    [
        (S.FreeDelay(ones(3)), "d of shape (3,)"),
        (S.Euclidean(ones(3, 2), ones(4, 3)), "2 dimensions and targets in 3"),
        (S.Euclidean(ones(3), ones(4, 3)), "source of shape (3,)"),
        (S.Euclidean(ones(3, 2), ones(4, 2, 1)), "target of shape (4, 2, 1)"),
        (S.Euclidean(ones(3, 2), ones(4, 2), ones(4, 3), 0.1), "slack of shape (4, 3)"),
        (S.Lattice(ones(), ones(2), ones(2), ones(3, 2), ones(4, 1)), "2 dimensions and targets in 1"),
        (S.Lattice(ones(), ones(2), ones(2), ones(3, 2), ones(4, 2), ones(1)), "slack of shape (1,)"),
        (S.Lattice(ones(), ones(1), ones(2), ones(3, 2), ones(4, 2)), "source origin of shape (1,)"),
        (S.Lattice(ones(), ones(2), ones(), ones(3, 2), ones(4, 2)), "target origin of shape ()"),
    ],
)
def test_embeddings_refuse_shapes_that_disagree(embedding, says):
    with pytest.raises(RanvierError) as error:
        embedding.delays()
    assert says in str(error.value)


@pytest.mark.parametrize("text", ["3", "3g0.1"])
def test_source_positions_must_be_given_exactly_when_shared(text):
    own = make(text)
    shared = make(text, recurrent=False, shared_source=True)
    for ask in (S.Space.d_in, S.Space.positions):
        with pytest.raises(RanvierError, match="got no source positions"):
            ask(shared)
        with pytest.raises(RanvierError, match=r"of shape \(5, 2\); needs \(5, 3\)"):
            ask(shared, ones(5, 2))
        with pytest.raises(RanvierError, match="a space with its own"):
            ask(own, ones(5, 3))
