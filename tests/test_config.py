"""Options: round trip through TOML for every field, help for every field, one line for every bad value."""

import ast
import inspect
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ranvier import config as config_module
from ranvier.config import TYPES, Config
from ranvier.errors import RanvierError

# another valid value for every field, and what it needs of others
OTHER = {
    "data": "a 'quoted' \"path\"/events \u00e9\U0001f600.h5",
    "test_data": "test.h5",
    "n_channels": 64,
    "limit_train": 7,
    "limit_validation": 8,
    "limit_test": 9,
    "net": "2e0.1",
    "hidden": 3,
    "recurrent": False,
    "layout": "line",
    "fixed_inputs": True,
    "position_sigma": 1.25,
    "delay_mu": 0.0,
    "delay_sigma": 0.5,
    "match": "2",
    "neuron": "adex",
    "tau_mem": 4.0,
    "tau_syn": 3.0,
    "threshold": 0.5,
    "single_spike": True,
    "adex_a": -0.01,
    "adex_b": 0.5,
    "adex_tau_w": 100.0,
    "adex_delta_t": 0.2,
    "adex_z0": 0.0,
    "readout": "first-spike",
    "output_tau": 1e-3,
    "weight_scale_in": 1200.0,
    "initial_rate_hz": 20.0,
    "weight_scale_rec": 0.0,
    "weight_scale_out": 2.0,
    "constant_weights": True,
    "positive_weights": True,
    "scheme": "grid",
    "backend": "reference",
    "dt": 0.1,
    "duration": 1000.0,
    "max_delay": 21.0,
    "precision": "float64",
    "epochs": 1,
    "batch_size": 256,
    "lr": 1.0000000000000002e-4,
    "delay_lr_scale": 0.0,
    "warmup": 0,
    "augment_shift": 20,
    "augment_jitter": 2.5,
    "augment_stretch": 0.1,
    "augment_drop": 0.1,
    "augment_blend": 0.5,
    "decay_steps": 501,
    "decay_to": 1.0,
    "weight_decay": 0.0,
    "clip": 0.0,
    "target_rate_hz": 40.0,
    "rate_weight": 0.0,
    "population_rate": True,
    "sparsity": 0.9,
    "sparsity_schedule": "gradual",
    "regrow": "published",
    "seed": 2**32 - 1,
    "out": "elsewhere",
    "tag": "trial-1",
    "resume": "runs/a",
    "overwrite": True,
    "live": True,
    "post_mortem": True,
}
NEEDS = {"match": {"net": "inf"}}


def test_every_field_has_another_value():
    assert set(OTHER) == {field.name for field in fields(Config)}
    assert all(OTHER[field.name] != field.default for field in fields(Config))


@pytest.mark.parametrize("name", list(OTHER))
def test_toml_round_trip(name, tmp_path):
    config = replace(Config(), **{name: OTHER[name]}, **NEEDS.get(name, {}))
    (tmp_path / "c.toml").write_text(config.to_toml(), encoding="utf-8")
    back = Config.from_toml(tmp_path / "c.toml")
    assert back == config
    assert type(getattr(back, name)) is type(OTHER[name])


def test_toml_round_trip_of_all_at_once(tmp_path):
    together = {name: value for name, value in OTHER.items() if name not in ("match", "overwrite")}
    config = Config(**together).validate()
    (tmp_path / "c.toml").write_text(config.to_toml(), encoding="utf-8")
    assert Config.from_toml(tmp_path / "c.toml") == config


def test_every_field_has_help_with_a_unit():
    """The text under each field; a number says its unit in brackets, or that it is a fraction, seed or count."""
    body = ast.parse(inspect.getsource(config_module)).body
    node = next(n for n in body if isinstance(n, ast.ClassDef) and n.name == "Config")
    texts = {}
    for statement, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign):
            name = ast.unparse(statement.target)
            assert isinstance(after, ast.Expr), f"{name} has no text under it"
            texts[name] = ast.literal_eval(after.value)
    assert set(texts) == set(TYPES)
    for name, annotation in TYPES.items():
        assert texts[name].strip().endswith((".", "]"))
        if {int, float} & set(typing.get_args(annotation) or (annotation,)) and name != "seed":
            assert "[" in texts[name], f"{name}: no unit"


def test_help_reaches_tyro(capsys):
    import tyro

    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    text = capsys.readouterr().out
    for name in TYPES:
        assert f"--{name.replace('_', '-')}" in text
    assert "Standard deviation of the initial positions [ms]" in text


BAD = [
    ("dt", -0.5),
    ("dt", 0.0),
    ("dt", float("nan")),
    ("dt", float("inf")),
    ("dt", "1"),
    ("dt", True),
    ("epochs", 0),
    ("epochs", 2.0),
    ("epochs", True),
    ("hidden", 0),
    ("batch_size", -1),
    ("limit_train", 0),
    ("n_channels", 0),
    ("limit_validation", 0),
    ("limit_test", 0),
    ("layout", "square"),
    ("neuron", "hh"),
    ("readout", "vote"),
    ("scheme", "exact"),
    ("backend", "cuda"),
    ("precision", "float16"),
    ("sparsity", 1.0),
    ("sparsity", -0.1),
    ("sparsity_schedule", "late"),
    ("regrow", "yes"),
    ("seed", -1),
    ("seed", 2**32),
    ("tau_mem", 0.0),
    ("tau_syn", -2.0),
    ("threshold", 0.0),
    ("adex_tau_w", 0.0),
    ("adex_delta_t", 0.0),
    ("adex_a", float("inf")),
    ("output_tau", 0.0),
    ("position_sigma", 0.0),
    ("delay_mu", -1.0),
    ("delay_sigma", -1.0),
    ("delay_lr_scale", -1.0),
    ("weight_scale_in", -1.0),
    ("initial_rate_hz", 0.0),
    ("weight_scale_rec", -1.0),
    ("weight_scale_out", -1.0),
    ("duration", 0.0),
    ("max_delay", -1.0),
    ("lr", 0.0),
    ("warmup", -1),
    ("augment_shift", -1),
    ("augment_shift", 1.5),
    ("augment_jitter", -1.0),
    ("augment_stretch", 1.0),
    ("augment_drop", 1.0),
    ("augment_blend", 1.5),
    ("decay_steps", 0),
    ("decay_steps", 50),
    ("decay_to", 1.5),
    ("weight_decay", -1.0),
    ("clip", -1.0),
    ("target_rate_hz", -1.0),
    ("rate_weight", -1.0),
    ("recurrent", 1),
    ("data", ""),
    ("data", None),
    ("test_data", " "),
    ("out", ""),
    ("resume", ""),
    ("tag", "a/b"),
    ("match", "3"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_in_one_line(name, value):
    with pytest.raises(RanvierError, match=name) as caught:
        replace(Config(), **{name: value}).validate()
    assert "\n" not in str(caught.value)
    assert "needs" in str(caught.value)


@pytest.mark.parametrize("spec", ["", "x", "-1", "2e", "inf2"])
def test_bad_spec(spec):
    with pytest.raises(RanvierError):
        replace(Config(), net=spec).validate()


@pytest.mark.parametrize(
    "options",
    [
        {"net": "inf", "layout": "line"},
        {"net": "0", "layout": "circle"},
        {"net": "1", "layout": "circle"},
        {"net": "3", "layout": "circle"},
        {"net": "2g0.1", "layout": "line"},
        {"net": "inf", "match": "3", "layout": "circle"},
        {"net": "inf", "fixed_inputs": True},
        {"net": "inf", "match": "inf"},
        {"net": "inf", "match": "0"},
        {"resume": "runs/a", "overwrite": True},
        {"warmup": 20_000},
    ],
)
def test_options_that_contradict_each_other(options):
    with pytest.raises(RanvierError, match="needs") as caught:
        replace(Config(), **options).validate()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"net": "2", "layout": "circle"},
        {"net": "1", "layout": "line"},
        {"net": "inf"},
        {"net": "inf", "match": "2e0.1", "layout": "circle"},
    ],
)
def test_options_that_agree(options):
    config = replace(Config(), **options)
    assert config.validate() is config


def refused(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "c.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RanvierError) as caught:
        Config.from_toml(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_toml_refusals(tmp_path):
    assert "did you mean batch_size?" in refused(tmp_path, "batchsize = 3")
    assert "did you mean batch_size?" in refused(tmp_path, "batch-size = 3")
    assert "did you mean hidden?" in refused(tmp_path, "hiden = 3")
    assert "ranvier train --help" in refused(tmp_path, "zzzzzz = 3")
    assert "unknown option network" in refused(tmp_path, "[network]\nhidden = 3")
    assert "needs text" in refused(tmp_path, "net = 3")
    assert "a whole number" in refused(tmp_path, "hidden = 3.0")
    assert "a finite number" in refused(tmp_path, "dt = true")
    assert "a finite number" in refused(tmp_path, "dt = nan")
    assert "true or false" in refused(tmp_path, "live = 1")
    assert "one of random, line, circle" in refused(tmp_path, "layout = 'square'")
    assert "one of random, line, circle" in refused(tmp_path, "layout = ['line']")
    assert "is not TOML" in refused(tmp_path, "hidden 3")
    assert "is not TOML" in refused(tmp_path, b"\xff\xfe")


def test_a_whole_number_will_do_for_a_float(tmp_path):
    (tmp_path / "c.toml").write_text("dt = 1\nmax_delay = 20\nepochs = 3\n")
    config = Config.from_toml(tmp_path / "c.toml")
    assert (config.dt, config.max_delay, config.epochs) == (1.0, 20.0, 3)
    assert type(config.dt) is float and type(config.max_delay) is float


def test_missing_file(tmp_path):
    with pytest.raises(RanvierError, match="cannot be read"):
        Config.from_toml(tmp_path / "none.toml")
    with pytest.raises(RanvierError, match="cannot be read"):
        Config.from_toml(tmp_path)
