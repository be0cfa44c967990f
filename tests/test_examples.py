"""Each example is a configuration that is taken, and the small one learns."""

from dataclasses import replace
from pathlib import Path

import pytest

from ranvier.config import Config
from ranvier.data import load
from ranvier.runs import Run
from ranvier.train import fit

FOLDER = Path(__file__).parent.parent / "examples"
FILES = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example_is_a_valid_configuration(path):
    Config.from_toml(path).validate()


def test_there_are_examples():
    assert FILES


@pytest.mark.slow
@pytest.mark.parametrize("net", ["2", "inf"])
def test_yinyang_learns(net, tmp_path):
    config = replace(Config.from_toml(FOLDER / "yinyang.toml"), net=net, epochs=4)
    run = Run.create(tmp_path / "run", config)
    rows = fit(config, load("yinyang"), run).rows
    assert rows[0]["top1"] > 0.75, "a class in three is chance"
    assert all(row["rate_hz"] < 83.4 for row in run.metrics()), "one spike a neuron in 12 ms"
