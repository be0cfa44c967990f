"""`ranvier bench`: what is measured, and the costs that are fitted to it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from ranvier import bench, cli, kernels
from ranvier.bench import Point
from ranvier.errors import RanvierError
from ranvier.ops import costs

needs_kernels = pytest.mark.skipif("ops_gather" not in kernels.status().handlers, reason="no compiled operators")
TINY = [
    Point(operator, n, 8, 4, activity) for operator in costs.OPERATORS for n in (16, 32) for activity in (0.05, 0.3)
]


def timings(planted):
    """Rows as `measure` gives them, of costs that are known."""
    for point in bench.grid(True, "cpu"):
        for way, coefficients in planted.items():
            us = costs.microseconds(coefficients, point.size())
            fields = {name: getattr(point, name) for name in ("operator", "n", "columns", "lists", "activity")}
            yield {**fields, "way": way, "us": us}


def test_the_fit_finds_the_costs():
    planted = {"sparse": {"call": 7.0, "entries": 2e-4}, "float32": {"call": 30.0, "product": 1e-5, "rows": 3e-4}}
    rows = list(timings(planted))
    table = bench.fit(rows)
    for operator in costs.OPERATORS:
        for way, coefficients in planted.items():
            got = {term: x for term, x in table[operator][way].items() if x > 1e-9}
            assert got == pytest.approx(coefficients, rel=1e-3)
    assert max(x for _, x in bench.regret(rows, table, "float32")) < 1e-6
    # 7 + 2e-4 a = 30 + 1e-5 1024 1024 + 3e-4 1024 where a = x 1024 1024
    even = bench.break_even(table, "gather", "float32", 1024, 1024, 1)
    assert even == pytest.approx((23 + 10.48576 + 0.3072) / 209.7152, rel=1e-3)
    table["gather"]["sparse"] = {"call": 1e9}
    assert max(x for _, x in bench.regret(rows, table, "float32")) > 1


def test_a_dense_product_costs_what_it_did_where_it_was_timed():
    rows = []
    for point in bench.grid(True, "cpu"):
        timed_at = 0.2 if point.activity >= bench.LONG else 0.005
        us = costs.microseconds({"product": 1e-5, "listed": 0.05}, replace(point, activity=timed_at).size())
        rows.append({**asdict(point), "way": "float32", "us": us, "timed_at": timed_at})
    table = bench.fit(rows)
    for operator in ("gather", "scatter"):
        assert {x: c for x, c in table[operator]["float32"].items() if c > 1e-9} == pytest.approx(
            {"product": 1e-5, "listed": 0.05}, rel=1e-3
        )


def test_no_cost_is_below_zero():
    r = np.random.default_rng(0)
    x = r.random((20, 4))
    c = bench._not_negative(x / (x @ [1.0, 2.0, 0.0, 3.0])[:, None])
    np.testing.assert_allclose(c, [1, 2, 0, 3], atol=1e-9)
    assert (bench._not_negative(x / (x @ [1.0, 2.0, -0.5, 3.0])[:, None]) >= 0).all()


def test_the_lists_that_are_timed():
    point = Point("dots", 50, 3, 400, 0.1)
    shapes = bench.Operands().shapes(point)
    arrays = dict(zip(shapes, bench.Operands().arrays(point, shapes), strict=True))
    for name, shape in shapes.items():
        assert (arrays[name].shape, arrays[name].dtype) == (shape.shape, shape.dtype)
    spikes, listed = np.asarray(arrays["n_spikes"][0]), np.asarray(arrays["n_listed"][0])
    assert abs(spikes.mean() - 5) < 0.5 and abs(listed.mean() - 10) < 0.7
    for ids, values, a, b in zip(
        np.asarray(arrays["ids"][0]), np.asarray(arrays["values"][0]), spikes, listed, strict=True
    ):
        assert len(set(ids[:b])) == b and (np.diff(ids[:a]) > 0).all() and (np.diff(ids[a:b]) > 0).all()
        assert not ids[b:].any() and values.sum() == a and values[:a].all()


@needs_kernels
def test_the_command(tmp_path, monkeypatch, capsys):
    """A tiny grid; what is written is what `auto` reads; other platforms in the file stay."""
    path = tmp_path / "new" / "costs.json"
    path.parent.mkdir()
    kept = json.loads(costs.SHIPPED.read_text())["gpu"]
    path.write_text(json.dumps({"gpu": kept}))
    monkeypatch.setattr(bench, "grid", lambda quick, platform: TINY)
    assert cli.main(["bench", "--out", str(path)]) == 0
    out = capsys.readouterr().out
    for words in ("matrix gradient", "32 x 8", "float32: of", f"written to {path}"):
        assert words in out
    content = json.loads(path.read_text())
    assert content["gpu"] == kept and content["cpu is"]["jax"]
    monkeypatch.setenv("RANVIER_COSTS", str(path))
    assert costs.table("cpu") == content["cpu"]
    assert set(content["cpu"]["dots"]) == {"sparse", "float32", "bfloat16"}


@needs_kernels
def test_what_takes_too_long_is_left_out(monkeypatch):
    said = []
    assert list(bench.measure(TINY[:1], ("sparse", "float32"), said.append, limit=0.0)) == []
    assert said == ["2 timings left out: above 0 ms, or no time left for them"]


@needs_kernels
def test_a_dense_product_is_timed_for_short_lists_and_for_long_ones():
    points = [Point("gather", 16, 8, 4, activity) for activity in (0.05, 0.07, 0.2, 0.3)]
    rows = list(bench.measure(points, ("sparse", "float32"), print))
    timed_at = {way: [row["timed_at"] for row in rows if row["way"] == way] for way in ("sparse", "float32")}
    assert timed_at == {"sparse": [0.05, 0.07, 0.2, 0.3], "float32": [0.05, 0.05, 0.2, 0.2]}
    dense = [row["us"] for row in rows if row["way"] == "float32"]
    assert dense[0] == dense[1] and dense[2] == dense[3]


def test_without_kernels_there_is_nothing_to_time(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "available", lambda name: "no compiled library")
    with pytest.raises(RanvierError, match="bench: no compiled library; needs compiled sparse operators to time"):
        bench.bench(True, None, print)


@needs_kernels
def test_a_file_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        bench, "measure", lambda *_: iter(list(timings({"sparse": {"call": 1.0}, "float32": {"call": 2.0}})))
    )
    (tmp_path / "costs.json").write_text("{")
    assert cli.main(["bench", "--out", str(tmp_path / "costs.json")]) == 2
    assert "cannot write" in capsys.readouterr().err
