"""What docs/ promises: the guide runs, links and options exist, every equation that is cited has its number."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ranvier.bench import bench
from ranvier.cli import main
from ranvier.config import Config
from ranvier.data_cli import COMMANDS

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs/guide.md").read_text()
EQUATIONS = (ROOT / "docs/equations.md").read_text()
SOURCES = [path for folder in ("ranvier", "csrc") for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]


def numbers(text):
    """All whole numbers named by "Eq. 1", "Eq. 7, 8", "Eq. 5 to 15" or "equations.md, 9 to 14"."""
    found = set()
    for places in re.findall(r"(?:Eq\.|equations\.md[,:])\s+(\d+(?:(?:, | and | to )\d+)*)", text):
        parts = re.split(r"(, | and | to )", places)
        found.add(int(parts[0]))
        for joint, last, before in zip(parts[1::2], parts[2::2], parts[0::2], strict=False):
            found |= set(range(int(before) if joint == " to " else int(last), int(last) + 1))
    return found


def test_numbers_are_read():
    assert numbers("(Eq. 1), Eq. 7, 8; docs/equations.md, 9 to 11 and 16. In 2007 (see 99)") == {1, 7, 8, 9, 10, 11, 16}


def defined():
    return [int(number) for number in re.findall(r"^    \((\d+)\)  ", EQUATIONS, flags=re.MULTILINE)]


def test_equations_are_numbered_once_and_in_order():
    assert defined() == list(range(1, max(defined()) + 1))


def test_cited_equations_exist():
    suffixes = {".py", ".h", ".cc", ".cu", ".cuh"}
    cited = {path: numbers(path.read_text()) for path in SOURCES if path.suffix in suffixes}
    cited |= {path: numbers(path.read_text()) for path in (ROOT / "docs").glob("*.md")}
    assert set.union(*cited.values()) > {1, 16, 21}
    assert {path.name: wrong for path, found in cited.items() if (wrong := found - set(defined()))} == {}


@pytest.mark.slow
def test_guide_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/guide.md, block {number}", "exec"), names)
    capsys.readouterr()
    assert names["losses"][-1] < 0.1 * names["losses"][0], "the neurons learn to fire in time"
    assert not (names["grid"].first_spike % 0.5).any() and (names["result"].first_spike % 0.5).all()
    assert names["entropies"][-1] < 0.2 * names["entropies"][0], "the two classes are told apart"
    assert not names["spikes"].n_lost.any() and not names["spikes"].n_near_dropped.any()
    assert np.isfinite(names["out"].first_spike).all() and not names["out"].overflow.any()
    splits = names["splits"]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 6, 6)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / "docs" / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / "docs" / link).exists()] == []


def test_options_exist(capsys):
    known = {field.name.replace("_", "-") for field in fields(Config)} | {"help", "config"}
    named = set(re.findall(r"--([a-z][a-z-]*)", GUIDE)) - {"no-recurrent"}
    of_bench = set(inspect.signature(bench).parameters) - {"say"}
    for command in COMMANDS:
        assert main(["data", command, "--help"]) == 0
    of_data = set(re.findall(r"--([a-z][a-z-]*)", capsys.readouterr().out))
    assert {"net", "resume", "dt"} <= named <= known | of_bench | of_data
