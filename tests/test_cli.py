"""Every command on a toy task, what goes to which stream, the exit codes, Ctrl-C, and that nothing is left behind."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from types import SimpleNamespace

import h5py
import jax
import numpy as np
import pytest

from ranvier import cli, data
from ranvier.cli import main
from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.runs import Run, is_run
from tests.test_config import OTHER

LINE = re.compile(r"test top-1 [\d.]+ %  top-3 [\d.]+ %  rate [\d.]+ Hz  run (\S+)\n")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Words of a training run that takes seconds: 20 samples of two classes, 8 channels, 5 neurons."""
    folder = tmp_path_factory.mktemp("toy")
    random = np.random.default_rng(0)
    with h5py.File(folder / "toy.h5", "w") as file:
        spikes = file.create_group("spikes")
        times = spikes.create_dataset("times", (20,), dtype=h5py.vlen_dtype(np.float32))
        units = spikes.create_dataset("units", (20,), dtype=h5py.vlen_dtype(np.int32))
        for i in range(20):
            times[i] = np.sort(random.uniform(0, 0.02, 6))
            units[i] = random.integers(0, 4, 6) + 4 * (i % 2)
        file["labels"] = np.arange(20) % 2
        file.create_group("extra")["speaker"] = np.arange(20) % 5
    words = "--n-channels 8 --net 2 --hidden 5 --position-sigma 4 --weight-scale-in 60 --weight-scale-rec 2 "
    words += "--epochs 2 --batch-size 4 --warmup 0 --dt 2 --scheme grid --target-rate-hz 50"
    return ["--data", str(folder / "toy.h5"), "--out", str(folder / "runs"), *words.split()]


@pytest.fixture(scope="module")
def trained(toy):
    """A finished run: its folder, and what it wrote to the two streams."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        code = main(["train", *toy])
    assert code == 0, err.getvalue()
    match = LINE.fullmatch(out.getvalue())
    assert match, out.getvalue()
    return SimpleNamespace(folder=match[1], out=out.getvalue(), err=err.getvalue())


def rows(folder, *, timings=False):
    """The metrics of a run, without what depends on the clock."""
    skip = () if timings else ("seconds", "samples_per_s")
    return [{k: v for k, v in row.items() if k not in skip} for row in Run.open(folder).metrics()]


def refused(capsys, *words) -> str:
    assert main(list(words)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def one_line(text: str) -> str:
    assert text.startswith("ranvier: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text


# train


def test_train_ends_with_one_line_and_says_the_rest_to_stderr(trained):
    lines = trained.err.splitlines()
    assert f"run {trained.folder}" in lines
    assert sum(line.startswith("epoch 1/2  train loss") for line in lines) == 1
    assert sum(line.startswith("epoch 2/2  train loss") for line in lines) == 1
    assert any(line.startswith("test ") and "voices top-1" in line for line in lines)
    assert is_run(trained.folder)
    assert trained.folder.endswith("toy-2-5-s0")
    test = next(row for row in rows(trained.folder) if row["split"] == "test")
    assert f"test top-1 {100 * test['top1']:.1f} %" in trained.out


def test_stored_options(trained, toy):
    config = Run.open(trained.folder).config
    assert (config.hidden, config.net, config.dt, config.batch_size, config.scheme) == (5, "2", 2.0, 4, "grid")


def test_a_file_of_options_and_flags_that_override_it(tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text("hidden = 7\nlr = 0.5\n")
    seen = []
    monkeypatch.setattr(cli, "_train_run", lambda config, run: seen.append(config) or 0)
    assert main(["train", "--config", str(tmp_path / "c.toml"), "--lr", "0.25"]) == 0
    assert seen == [replace(Config(), hidden=7, lr=0.25)]


def test_every_option_has_a_flag(monkeypatch):
    """All at once, from their default to another value, and the flags that are on back to off."""
    seen = []
    monkeypatch.setattr(cli, "_train", lambda arguments, config, file: seen.append(config) or 0)
    words = []
    for name, value in OTHER.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    assert main(["train", *words]) == 0
    assert seen == [Config(**OTHER)]
    assert {field.name for field in fields(Config)} == set(OTHER)


def test_refusals_leave_nothing_behind(tmp_path, capsys, toy):
    out = ["--out", str(tmp_path / "runs")]
    assert "dt is -1.0" in one_line(refused(capsys, "train", *out, "--dt", "-1"))
    assert "nowhere.h5" in one_line(refused(capsys, "train", *out, "--data", "nowhere.h5"))
    assert "2q" in one_line(refused(capsys, "train", *out, "--net", "2q"))
    assert "needs whole units in [0, 3)" in one_line(refused(capsys, "train", *toy, *out, "--n-channels", "3"))
    (tmp_path / "c.toml").write_text("hiden = 7\n")
    assert "did you mean hidden?" in one_line(refused(capsys, "train", *out, "--config", str(tmp_path / "c.toml")))
    (tmp_path / "c.toml").write_text("hidden = 7.0\n")
    assert "whole number" in one_line(refused(capsys, "train", *out, "--config", str(tmp_path / "c.toml")))
    assert "cannot be read" in one_line(refused(capsys, "train", *out, "--config", str(tmp_path / "none.toml")))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train", "--hiden", "3"],
        ["train", "--hidden", "3.5"],
        ["train", "--layout", "square"],
        ["eval"],
        ["plot"],
        ["info", "x"],
    ],
)
def test_unknown_words(capsys, words):
    assert refused(capsys, *words)


def fit_that(act):
    def fit(config, splits, run, reporter, resume=False):
        return act(run)

    return fit


def test_a_failed_start_removes_its_folder(monkeypatch, tmp_path, toy, capsys):
    def fail(run):
        raise RanvierError("fit: no")

    monkeypatch.setattr("ranvier.train.fit", fit_that(fail))
    assert main(["train", *toy, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("ranvier: fit: no\n")
    assert not any(tmp_path.iterdir())

    def fail_later(run):
        run.save("initial", {"w": np.ones(1)})
        raise RanvierError("fit: no")

    monkeypatch.setattr("ranvier.train.fit", fit_that(fail_later))
    assert main(["train", *toy, "--out", str(tmp_path)]) == 2
    assert is_run(tmp_path / "toy-2-5-s0")


def test_overwrite(monkeypatch, tmp_path, toy):
    seen = []

    def stop(run):
        seen.append(run.folder)
        run.save("initial", {"w": np.ones(1)})
        return SimpleNamespace(stopped=True)

    monkeypatch.setattr("ranvier.train.fit", fit_that(stop))
    words = ["train", *toy, "--out", str(tmp_path)]
    assert [main(words), main(words), main([*words, "--overwrite"])] == [130] * 3
    assert [folder.name for folder in seen] == ["toy-2-5-s0", "toy-2-5-s0-2", "toy-2-5-s0"]


def test_an_option_that_makes_no_network_does_not_cost_the_run_it_would_overwrite(monkeypatch, tmp_path, toy):
    run = Run.create(tmp_path / "toy-2-5-s0", Config())
    run.save("best", {"w": np.ones(1)})

    def refuse(*_):
        raise RanvierError("init_state: no")

    monkeypatch.setattr("ranvier.train.init_state", refuse)
    assert main(["train", *toy, "--out", str(tmp_path), "--overwrite"]) == 2
    assert run.has("best")


def test_diverged(monkeypatch, tmp_path, toy, capsys):
    from ranvier.train import TrainingDiverged

    def diverge(run):
        run.save("failed", {"w": np.ones(1)})
        raise TrainingDiverged("fit: loss is not finite; needs finite numbers; lower lr")

    monkeypatch.setattr("ranvier.train.fit", fit_that(diverge))
    assert main(["train", *toy, "--out", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.endswith(
        "ranvier: fit: loss is not finite; needs finite numbers; lower lr\n"
    )


def test_post_mortem(monkeypatch, tmp_path, toy, capsys):
    def fail(run):
        raise ZeroDivisionError("unexpected")

    entered = []
    monkeypatch.setattr("pdb.post_mortem", lambda: entered.append(sys.exc_info()[0]))
    monkeypatch.setattr("ranvier.train.fit", fit_that(fail))
    words = ["train", *toy, "--out", str(tmp_path)]
    with pytest.raises(ZeroDivisionError):
        main(words)
    assert entered == []
    with pytest.raises(ZeroDivisionError):
        main([*words, "--post-mortem"])
    assert entered == [ZeroDivisionError]
    assert not any(tmp_path.iterdir())


def test_float64_is_on_before_the_data_is_read(monkeypatch, toy):
    seen = []

    def load(config):
        seen.append(jax.config.read("jax_enable_x64"))
        raise RanvierError("stop")

    monkeypatch.setattr(cli, "_load_data", load)
    before = jax.config.read("jax_enable_x64")
    try:
        assert main(["train", *toy]) == 2
        assert main(["train", *toy, "--precision", "float64"]) == 2
    finally:
        jax.config.update("jax_enable_x64", before)
    assert seen == [before, True]


# Ctrl-C and resume


def test_interrupted_and_resumed_equals_uninterrupted(monkeypatch, toy, trained, capsys):
    def interrupt(self, epoch, step, loss, top1, samples_per_s):
        if (epoch, step) == (1, 2):
            signal.raise_signal(signal.SIGINT)
            assert self.interrupts.requested.wait(10)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(cli._Terminal, "step", interrupt)
        assert main(["train", *toy]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    output = capsys.readouterr()
    assert output.out == ""
    resume = re.search(r"to go on: ranvier (train --resume (\S+))\n$", output.err)
    assert resume, output.err
    folder = resume[2]
    assert folder != trained.folder and len(rows(folder)) < len(rows(trained.folder))

    assert main(resume[1].split()) == 0
    assert capsys.readouterr().out == trained.out.replace(trained.folder, folder)
    assert rows(folder) == rows(trained.folder)


def test_resume_refuses_other_options(trained, capsys, tmp_path):
    text = one_line(refused(capsys, "train", "--resume", trained.folder, "--hidden", "6"))
    assert "got hidden 6 for a run with 5" in text
    assert "leave out --config" in one_line(refused(capsys, "train", "--resume", trained.folder, "--config", "x"))
    assert "not a run folder" in one_line(refused(capsys, "train", "--resume", str(tmp_path)))
    assert Run.open(trained.folder).config.hidden == 5


def test_more_epochs_on_resume(trained, monkeypatch):
    """`epochs` may change, and the run folder says so."""
    before = Run.open(trained.folder).config
    seen = []
    monkeypatch.setattr(cli, "_train_run", lambda config, run: seen.append((config, run.config)) or 0)
    assert main(["train", "--resume", trained.folder, "--epochs", "3"]) == 0
    assert seen[0][0] == replace(before, epochs=3, resume=trained.folder)
    assert seen[0][1] == replace(before, epochs=3) == Run.open(trained.folder).config
    Run.open(trained.folder).update(before)


BUSY = """
import hashlib, os, signal
from ranvier.cli import _Interrupts
signal.alarm(30)
with _Interrupts(lambda: os.write(1, b"first "), lambda: os.write(1, b"second")) as interrupts:
    os.write(1, b"ready ")
    if {wait}:
        interrupts.requested.wait()
        os.write(1, b"done")
    else:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # one call into C: Python runs no handler until it returns
"""


def interrupted(wait: bool, signals: int) -> tuple[int, bytes]:
    process = subprocess.Popen([sys.executable, "-c", BUSY.format(wait=wait)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stdout:
        try:
            output = os.read(stdout.fileno(), 6)
            for _ in range(signals):
                process.send_signal(signal.SIGINT)
                output += os.read(stdout.fileno(), 6)
            return process.wait(20), output + stdout.read()
        finally:
            process.kill()
            process.wait()


def test_first_interrupt_asks_and_second_ends_at_once():
    assert interrupted(wait=True, signals=1) == (0, b"ready first done")
    assert interrupted(wait=False, signals=2) == (130, b"ready first second")


def test_interrupt_outside_of_training(monkeypatch, toy, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load_data", interrupt)
    assert main(["train", *toy]) == 130
    assert one_line(capsys.readouterr().err)


# progress and the live picture


def test_progress_bar_on_a_terminal(tmp_path):
    from rich.console import Console

    terminal = cli._Terminal(Run(tmp_path, Config()), live=False)
    screen = io.StringIO()
    terminal.console = Console(file=screen, force_terminal=True, width=120, highlight=False, markup=False)
    row = {"epoch": 1, "split": "train", "loss": 0.5, "top1": 0.25, "rate_hz": 3.0, "samples_per_s": 99.0}
    with terminal:
        terminal.start(3, 10, 0)
        terminal.step(1, 4, 0.75, 0.5, 812.0)
        assert terminal.progress is not None
        terminal.progress.refresh()
        terminal.epoch([row])
    text = screen.getvalue()
    assert "epoch 1/3" in text and "4/10" in text and "loss 0.750  top-1 50 %  812 samples/s" in text
    assert "epoch 1/3  train loss 0.500 top-1 25.0 %  rate 3.0 Hz  99 samples/s" in text


@pytest.mark.parametrize("net", ["2", "inf"])
def test_live_picture(net, tmp_path, capsys, monkeypatch):
    from ranvier.network import init_network

    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    run = Run.create(tmp_path / "run", Config(net=net, hidden=3, readout="first-spike"))
    terminal = cli._Terminal(run, live=True)
    terminal.live(init_network(run.config, jax.random.key(0), 4, 2))
    picture = run.folder / "figures" / "live.png"
    if net == "inf":
        assert "no positions" in capsys.readouterr().err and not picture.exists()
    else:
        assert "no display" in capsys.readouterr().err
        assert picture.read_bytes().startswith(b"\x89PNG") and list(picture.parent.iterdir()) == [picture]


# the other commands


def test_eval_repeats_the_last_line_of_train(trained, capsys):
    assert main(["eval", trained.folder]) == 0
    output = capsys.readouterr()
    assert output.out == trained.out
    assert "best network, of epoch" in output.err and "voices top-1" in output.err and "validation top-1" in output.err


def test_eval_on_other_data(trained, toy, capsys):
    path = toy[toy.index("--data") + 1]
    assert main(["eval", trained.folder, "--data", path]) == 0
    assert LINE.fullmatch(capsys.readouterr().out)
    assert "8 channels" in one_line(refused(capsys, "eval", trained.folder, "--data", "yinyang"))


def test_eval_refusals(tmp_path, capsys):
    assert "not a run folder" in one_line(refused(capsys, "eval", str(tmp_path)))
    Run.create(tmp_path / "run", Config())
    assert "there is no file" in one_line(refused(capsys, "eval", str(tmp_path / "run")))


def test_plot(trained, capsys):
    assert main(["plot", trained.folder]) == 0
    output = capsys.readouterr()
    names = {os.path.basename(line) for line in output.out.splitlines()}
    assert names == {"learning.png", "raster.png", "positions.png", "delays.png", "weights.png"}
    assert output.err == "" and all(os.path.getsize(line) > 10_000 for line in output.out.splitlines())


def test_plot_refuses_other_folders(tmp_path, capsys):
    assert "not a run folder" in one_line(refused(capsys, "plot", str(tmp_path)))


def test_info(capsys, monkeypatch):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for word in ("ranvier", "jax", "jaxlib", "numpy", "optax", "python", "devices   cpu: cpu", "kernels"):
        assert word in text

    def fail():
        raise RuntimeError("Unable to initialize backend\nsecond line")

    monkeypatch.setattr(jax, "default_backend", fail)
    assert main(["info"]) == 0
    assert "does not start: Unable to initialize backend second line" in capsys.readouterr().out


def test_version(capsys):
    import ranvier

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ranvier {ranvier.__version__}\n"


def test_data(capsys, toy):
    assert main(["data"]) == 0
    assert tuple(line.split()[0] for line in capsys.readouterr().out.splitlines()) == data.names()
    path = toy[toy.index("--data") + 1]
    assert main(["data", path, "--n-channels", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"train +12 +72 +6 \(6 to 6\) +[\d.]+ ms", lines[1])
    assert re.fullmatch(r"channels +8", lines[4])
    assert re.fullmatch(r"classes +2  0, 1", lines[5])
    assert one_line(refused(capsys, "data", "nowhere"))


def test_sample_limits(toy):
    path = toy[toy.index("--data") + 1]
    config = Config(data=path, n_channels=8)
    whole = cli._load_data(config)
    cut = cli._load_data(replace(config, limit_train=5, limit_validation=100, limit_test=2))
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (5, len(whole.validation), 2)
    assert whole.test.speaker is not None and cut.test.speaker is not None
    voices = {name: set(whole.test.speaker[group]) for name, group in whole.test_groups.items()}
    assert sum(len(group) for group in cut.test_groups.values()) == 2
    for name, group in cut.test_groups.items():
        assert set(cut.test.speaker[group]) <= voices[name]


def test_importing_the_command_line_starts_no_backend():
    code = "import ranvier.cli, sys; print([m for m in ('tyro', 'rich', 'matplotlib', 'h5py') if m in sys.modules])"
    start = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(output.stdout.replace("'", '"')) == [] and time.perf_counter() - start < 60
