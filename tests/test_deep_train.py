"""Training a deep network: command line, run folder, stop and resume, notes on its layers, room for input events."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier.cli import main
from ranvier.config import Config
from ranvier.data import Splits
from ranvier.data.recordings import to_device
from ranvier.deep import DeepNetwork
from ranvier.deep_model import DeepLimits, DeepModel
from ranvier.optimizer import labels, make_optimizer, schedule, settled_schedule
from ranvier.runs import Run, default_name
from ranvier.train import fit, init_state, load_network, predict
from tests.test_train import assert_same_run, dataset, trained

pytestmark = pytest.mark.usefixtures("quick_compiler")

M, K = 5, 3
CONFIG = Config.of(
    "deep",
    sizes="12,6",
    epochs=3,
    batch_size=8,
    warmup=0,
    lr=2e-2,
    max_activity=0.5,
    mode="sparse",
    dt=1.0,
    alpha=0.95,
    near_schedule=True,
)
WORDS = "--sizes 12,6 --epochs 3 --batch-size 8 --warmup 0 --lr 2e-2 --max-activity 0.5 --mode sparse --dt 1 "
WORDS += "--alpha 0.95 --near-schedule"
FOLDER = "runs/speech-deep-12-6-s0"


@pytest.fixture(scope="module")
def splits():
    return Splits(dataset(20, 0), dataset(9, 1), dataset(10, 2), {"odd": np.arange(1, 10, 2)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, splits):
    """One run by the command line: its folder, and what it wrote to the two streams."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("deep"))
        patch.setattr("ranvier.cli._load_data", lambda config: splits)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = main(["train", "--model=deep", "--live", *WORDS.split()])
        assert code == 0, err.getvalue()
        again = io.StringIO()
        patch.setattr(sys, "stdout", again)
        assert main(["eval", FOLDER]) == 0
        assert again.getvalue() == out.getvalue()
        folder = Path(FOLDER).absolute()
    return SimpleNamespace(run=Run.open(folder), out=out.getvalue(), err=err.getvalue())


def test_it_learns_and_says_what_its_layers_do(whole):
    assert whole.out.startswith("test top-1 ") and whole.out.endswith(f" run {FOLDER}\n")
    assert "initial weights fitted to the data" in whole.err and "  activity " in whole.err
    assert "a deep network has no positions to draw" in whole.err
    rows = {(r["epoch"], r["split"]): r for r in whole.run.metrics()}
    assert rows[3, "validation"]["loss"] < 0.9 * rows[0, "validation"]["loss"]
    for row in rows.values():
        assert len(row["activity"]) == len(row["lost"]) == len(row["near_dropped"]) == 1
        assert 0 < row["activity"][0] < 1 and row["rate_hz"] == pytest.approx(1000 * row["activity"][0], rel=0.1)
    assert rows[1, "train"]["near_dropped"][0] > rows[3, "validation"]["near_dropped"][0], "the schedule"
    network, meta = load_network(whole.run, "best", M, K)
    assert isinstance(network, DeepNetwork) and meta["n_in"] == M


def test_run_folder(whole):
    run = whole.run
    assert run.config == CONFIG and "net =" not in (run.folder / "config.toml").read_text()
    assert sorted(path.stem for path in (run.folder / "figures").iterdir()) == ["activity", "learning", "raster"]
    samples = run.load_arrays("samples")
    assert samples["layer_sizes"].tolist() == [12] and samples["hidden_neuron"].max() < 12
    assert np.isfinite(samples["hidden_time"]).any(axis=0).all(), "no column is padding alone"


@pytest.mark.parametrize("stop", [2, 6])
def test_resume_equals_an_uninterrupted_run(whole, splits, tmp_path, stop):
    run, _, report = trained(tmp_path / "run", CONFIG, splits, stop=stop)
    assert report.stopped
    fit(CONFIG, splits, Run.open(run.folder), resume=True)
    assert_same_run(whole.run, run)


def test_room_for_input_events(splits):
    model = DeepModel(CONFIG)
    network = jax.eval_shape(lambda: init_state(CONFIG, M, K)).network
    limits = model.limits(network, [splits.train, splits.validation])
    assert limits.duration == 20.0 and limits.capacity == 16 and len(limits.activity) == 2
    assert model.restored(json.loads(json.dumps(limits.__dict__))) == limits
    assert model.more_room(limits, None).capacity == 32
    given = DeepModel(replace(CONFIG, input_capacity=1))
    assert given.limits(network, [splits.train]).capacity == 1
    assert given.lost("in training", 7) == "lost 7 input events in training, over 1 in a step; raise input_capacity"


def test_events_that_find_no_room_are_told(whole, splits):
    network, recordings = load_network(whole.run, "best", M, K)[0], to_device(splits.test)
    small = DeepLimits(20.0, 1, (0.25, 0.25))
    given = replace(CONFIG, input_capacity=1)
    predictions, limits = predict(network, recordings, given, small)
    assert predictions.lost > 0 and limits == small
    out = SimpleNamespace(input_lost=np.array([0, 3]), layers=dict)
    assert DeepModel(given).result(None, out, network, small).fits
    assert not DeepModel(CONFIG).result(None, out, network, small).fits, "an update with lost events is done again"


def test_the_penalty_is_the_lost_spikes_of_all_layers():
    lists = [SimpleNamespace(value=jnp.ones((5, 2, 3)), n_lost=jnp.full((5, 2), n)) for n in (1, 0, 4)]
    out, weight = SimpleNamespace(lists=lists), jnp.array([1.0, 0.0])
    for share in (0.0, 0.5):
        model = DeepModel(replace(CONFIG, lost_weight=share))
        assert float(model.penalty(out, None, weight)) == 5 * share == float(model.penalty(out, None, None))


def test_troubled_layers_are_named_now_and_then():
    config = replace(CONFIG, sizes="12,10,8,6")
    network = jax.eval_shape(lambda: init_state(config, M, K)).network
    limits = DeepLimits(20.0, 16, (0.25, 0.25, 0.25, 0.25))
    # 10 samples: nobody fires; 1 of 10 steps, a tenth lost; 1 of 10 steps, none lost
    layers = {"activity": [0.0, 1.0, 1.0], "lost": [0.0, 20.0, 0.0], "near_dropped": [0.0] * 3}
    model, sums = DeepModel(config), {"n": 10, "layers": layers}
    after, notes = model.after_epoch(network, limits, sums, 4)
    assert [note.split(":")[1] for note in notes] == [" layer 1 is silent", " layer 2 is saturated"]
    assert "10 % of its neurons fire in a step, 10 % of the spikes find no room among 5" in notes[1]
    assert model.after_epoch(network, limits, sums, 5)[1] == []
    assert after.activity == (0.25, 2.0**-12, 0.25, 0.25), "only what has changed a lot"
    full = {"n": 1, "layers": {"activity": [0.5] * 3, "lost": [0.0] * 3}}
    assert len(model.after_epoch(network, limits, full, 1)[1]) == 3


def test_schedule_in_epochs_and_decoupled_decay():
    config = settled_schedule(replace(CONFIG, warmup_epochs=1.5, epochs=10), 20)
    assert (config.warmup, config.decay_steps, config.decay, config.warmup_epochs) == (30, 200, "steps", 0.0)
    assert float(schedule(config)(30)) == pytest.approx(2e-2) and float(schedule(config)(200)) == pytest.approx(4e-4)
    assert settled_schedule(config, 7) == config
    assert settled_schedule(replace(CONFIG, epochs=1, warmup=10), 3).warmup == 2
    shapes = jax.eval_shape(lambda: init_state(CONFIG, M, K).network)
    network = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    groups = labels(network, config)
    assert groups.layers[0].w == groups.w_out == "weight" and groups.layers[0].bias == "bias"
    decaying = replace(CONFIG, weight_decay=0.5, decay="steps", decay_to=1.0)
    chain, zero = make_optimizer(network, decaying), jax.tree.map(np.zeros_like, network)
    updates, _ = jax.jit(lambda x: chain.update(zero, chain.init(x), x))(network)
    np.testing.assert_allclose(updates.w_out, -2e-2 * 0.5 * network.w_out, rtol=1e-5)
    assert not updates.layers[0].bias.any()


def test_names():
    assert default_name(CONFIG) == "speech-deep-12-6-s0"
    assert default_name(Config.of("deep", depth=2, tag="x")) == "speech-deep-512-128-s0-x"


def test_command_line(whole, tmp_path, capsys, monkeypatch):
    assert main(["train", "--resume", str(whole.run.folder), "--max-activity", "0.1"]) == 2
    assert "max_activity" in capsys.readouterr().err
    assert main(["train", "--model", "deep", "--hidden", "7"]) == 2
    assert "model space" in capsys.readouterr().err
    assert main(["train", "--model", "deeper"]) == 2
    capsys.readouterr()
    assert main(["train", "--help", "--model", "deep"]) == 0
    assert "step-linear" in capsys.readouterr().out
    (tmp_path / "c.toml").write_text('model = "deep"\nsizes = "9,7"\n')
    seen = []
    monkeypatch.setattr("ranvier.cli._train_run", lambda config, run: seen.append(config) or 0)
    assert main(["train", "--config", str(tmp_path / "c.toml"), "--lr", "0.25"]) == 0
    (tmp_path / "c.toml").write_text("epochs = 7\n")
    assert main(["train", "--config", str(tmp_path / "c.toml"), "--model", "deep"]) == 0
    assert seen == [Config.of("deep", sizes="9,7", lr=0.25), Config.of("deep", epochs=7)]
