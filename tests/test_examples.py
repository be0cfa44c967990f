"""Each example is a configuration that is taken."""

from pathlib import Path

import pytest

from ranvier.config import Config

FILES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example_is_a_valid_configuration(path):
    Config.from_toml(path).validate()


def test_there_are_examples():
    assert FILES
