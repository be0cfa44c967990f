"""Options: round trip through TOML for every field, help for every field, one line for every bad value."""

import ast
import inspect
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from ranvier import config as config_module
from ranvier.config import TYPES, USED_BY, Config
from ranvier.errors import RanvierError

# another valid value for every field, and what it needs of others
OTHER = {
    "model": "deep",
    "data": "a 'quoted' \"path\"/events \u00e9\U0001f600.h5",
    "test_data": "test.h5",
    "split": "speaker",
    "n_channels": 64,
    "limit_train": 7,
    "limit_validation": 8,
    "limit_test": 9,
    "stream": "on",
    "net": "2e0.1",
    "hidden": 3,
    "recurrent": False,
    "layout": "line",
    "fixed_inputs": True,
    "position_sigma": 1.25,
    "delay_mu": 0.0,
    "delay_sigma": 0.5,
    "match": "2",
    "sizes": "64,32",
    "depth": 4,
    "alpha": 0.9,
    "gain": 10.0,
    "near_threshold": 0.5,
    "near_schedule": True,
    "near_start": -10.0,
    "max_activity": "0.1,0.05",
    "input_capacity": 48,
    "bias": False,
    "lsuv": False,
    "initial_std": 0.5,
    "initial_activity": 0.1,
    "surrogate": "arctan",
    "surrogate_scale": 3.0,
    "mode": "sparse",
    "pieces": 4,
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
    "readout_interval": 5,
    "count_scale": 0.5,
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
    "warmup_epochs": 2.5,
    "decay": "run",
    "decoupled": True,
    "augment_shift": 20,
    "augment_jitter": 2.5,
    "augment_stretch": 0.1,
    "augment_drop": 0.1,
    "augment_blend": 0.5,
    "augment_time_jitter": 1.5,
    "augment_crop": 4,
    "augment_flip": 0.5,
    "downsample": 2,
    "decay_steps": 501,
    "decay_to": 1.0,
    "weight_decay": 0.0,
    "clip": 0.0,
    "target_rate_hz": 40.0,
    "rate_weight": 0.0,
    "lost_weight": 0.0,
    "sampled": 0.02,
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
STEP_LINEAR = {"model": "deep", "readout": "step-linear"}
NEEDS = {
    "match": {"net": "inf"},
    **{name: STEP_LINEAR for name, models in USED_BY.items() if models == ("deep",)},
    "model": {"readout": "step-linear"},
    "count_scale": {**STEP_LINEAR, "readout": "spike-sum"},
    "max_activity": {**STEP_LINEAR, "sizes": "64,32,16"},
}


def test_every_field_has_another_value():
    assert set(OTHER) == {field.name for field in fields(Config)}
    assert all(OTHER[field.name] != field.default for field in fields(Config))


@pytest.mark.parametrize("name", list(OTHER))
def test_toml_round_trip(name, tmp_path):
    config = replace(Config(), **{**NEEDS.get(name, {}), name: OTHER[name]})
    (tmp_path / "c.toml").write_text(config.to_toml(), encoding="utf-8")
    back = Config.from_toml(tmp_path / "c.toml")
    assert back == config
    assert type(getattr(back, name)) is type(OTHER[name])


@pytest.mark.parametrize("model", ["space", "deep"])
def test_toml_round_trip_of_all_at_once(tmp_path, model):
    apart = ("match", "overwrite", "depth", "count_scale")
    together = {k: v for k, v in OTHER.items() if k not in apart and model in USED_BY.get(k, (model,))}
    if model == "deep":
        together |= {"readout": "step-linear", "sizes": "64,32,16", "precision": "tf32"}
    config = Config(**{**together, "model": model}).validate()
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
    ("model", "flat"),
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
    ("augment_time_jitter", -1.0),
    ("augment_crop", -1),
    ("augment_flip", 1.5),
    ("downsample", 0),
    ("decay_steps", 0),
    ("decay_steps", 50),
    ("warmup_epochs", -1.0),
    ("decay", "never"),
    ("decay_to", 1.5),
    ("weight_decay", -1.0),
    ("clip", -1.0),
    ("target_rate_hz", -1.0),
    ("rate_weight", -1.0),
    ("lost_weight", -1.0),
    ("sampled", 1.0),
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


BAD_DEEP = [
    ("sizes", "64,x"),
    ("sizes", "64"),
    ("sizes", "64,0"),
    ("sizes", ""),
    ("depth", 1),
    ("depth", 7),
    ("alpha", 1.0),
    ("alpha", 0.0),
    ("gain", 0.0),
    ("near_threshold", 1.5),
    ("near_start", 1.5),
    ("max_activity", 0.0),
    ("max_activity", 1.5),
    ("max_activity", "0.1,0.1,0.1"),
    ("max_activity", "much"),
    ("input_capacity", 0),
    ("initial_std", 0.0),
    ("initial_activity", 1.0),
    ("surrogate", "relu"),
    ("surrogate_scale", 0.0),
    ("mode", "fast"),
    ("pieces", 0),
    ("readout", "count"),
    ("readout_interval", 0),
    ("count_scale", 0.0),
    ("net", "inf"),
    ("tau_mem", 4.0),
    ("delay_lr_scale", 1.0),
    ("precision", "float16"),
]


@pytest.mark.parametrize(("name", "value"), BAD_DEEP)
def test_bad_values_of_deep_networks_are_refused_in_one_line(name, value):
    with pytest.raises(RanvierError, match=name) as caught:
        Config.of("deep", **{name: value}).validate()
    assert "\n" not in str(caught.value) and "needs" in str(caught.value)


def test_options_of_another_model_are_refused():
    for name, models in USED_BY.items():
        with pytest.raises(RanvierError, match=f"{name} .* model {models[0]}"):
            other = {"space": "deep", "deep": "space"}[models[0]]
            Config.of(other, **{name: OTHER[name]}).validate()
    with pytest.raises(RanvierError, match="float32 or float64"):
        Config(precision="tf32").validate()


def test_each_model_has_its_defaults(tmp_path):
    (tmp_path / "c.toml").write_text('model = "deep"\nepochs = 3\n')
    assert Config.from_toml(tmp_path / "c.toml") == Config.of("deep", epochs=3) != Config(model="deep", epochs=3)
    (tmp_path / "c.toml").write_text("epochs = 3\n")
    assert Config.from_toml(tmp_path / "c.toml", model="deep") == Config.of("deep", epochs=3)
    assert "net =" not in Config.of("deep").to_toml() and "alpha =" not in Config().to_toml()


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
        {"model": "deep"},
        {"model": "deep", "readout": "step-linear", "sizes": "64,32", "depth": 3},
        {"model": "deep", "readout": "spike-sum", "readout_interval": 2},
        {"model": "deep", "readout": "step-linear", "count_scale": 0.5},
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
