"""What the README promises: its example runs, its links lead somewhere, its options exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from ranvier.cli import main
from ranvier.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    exec(example, names)
    printed = capsys.readouterr().out
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e[+-]\d+)?", printed)]
    assert len(numbers) == 3 + 6, "three first spikes, and two derivatives for each of three neurons"
    assert all(number > 0 for number in numbers[:3]) and all(number != 0 for number in numbers[3:])


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_options_exist():
    known = {field.name.replace("_", "-") for field in fields(Config)} | {"help"}
    named = set(re.findall(r"--([a-z-]+)", " ".join(re.findall(r"ranvier train (--\S+(?: \S+ --\S+)*)", README))))
    assert {"net", "hidden", "resume"} <= named <= known


def test_commands_exist(capsys):
    for command in set(re.findall(r"^    ranvier ([a-z]+)", README, flags=re.MULTILINE)):
        assert main([command, "--help"]) == 0
        assert f"ranvier {command}" in capsys.readouterr().out


def test_version_is_the_same_everywhere():
    import ranvier

    assert f"version: {ranvier.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {ranvier.__version__} " in (ROOT / "CHANGELOG.md").read_text()
