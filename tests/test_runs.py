"""The run folder: naming, atomic files, metrics that survive a crash, checkpoints that cannot do harm."""

import json
import math
import os
import pickle
import zipfile
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import runs
from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.runs import Run, default_name, is_run, read_arrays, read_checkpoint, write_atomic


class State(NamedTuple):
    count: jax.Array
    mu: dict


def tree():
    return {
        "w": jnp.arange(6.0).reshape(2, 3),
        "opt": (State(jnp.asarray(3, jnp.int32), {"w": jnp.full((2, 3), jnp.nan)}), ()),
        "key": jax.random.key(7),
        "raw": jax.random.PRNGKey(5),
        "mask": np.array([True, False]),
        "epoch": 4,
        "best": 0.25,
    }


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", Config())


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


# folder


def test_create_and_open(tmp_path):
    config = Config(hidden=7, live=True, post_mortem=True)
    run = Run.create(tmp_path / "a" / "run", config)
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "checkpoints",
        "config.toml",
        "environment.json",
        "figures",
        "metrics.jsonl",
    ]
    again = Run.open(run.folder)
    assert again.config == replace(config, live=False, post_mortem=False) == run.config
    assert run.metrics() == []
    environment = json.loads((run.folder / "environment.json").read_text())
    assert set(environment) == {"python", "platform", "versions", "backend", "devices", "commit"}
    assert environment["versions"]["jax"] == jax.__version__ and environment["versions"]["numpy"] == np.__version__
    assert all(environment["versions"].values())
    assert len(environment["devices"]) == len(jax.devices())


def test_default_name():
    config = Config(data="speech", net="2e0.1", hidden=30, seed=4)
    assert default_name(config) == "speech-2e0.1-30-s4"
    assert default_name(replace(config, tag="x")) == "speech-2e0.1-30-s4-x"
    assert default_name(replace(config, data="/some where/my events.h5.gz")) == "my_events-2e0.1-30-s4"
    assert default_name(replace(config, data="../..")).count("/") == 0


def test_default_folder_never_overwrites(tmp_path):
    config = Config(out=str(tmp_path / "out"))
    names = [Run.create(None, config).folder.name for _ in range(3)]
    assert names == ["speech-3-100-s0", "speech-3-100-s0-2", "speech-3-100-s0-3"]


def test_existing_folder_is_refused(tmp_path, run):
    with pytest.raises(RanvierError, match="exists already") as caught:
        Run.create(run.folder, Config())
    one_line(caught)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RanvierError, match="exists already"):
        Run.create(tmp_path / "file", Config())
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert is_run(Run.create(tmp_path / "empty", Config()).folder)


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path, run):
    run.save("last", {"w": jnp.ones(3)})
    run.log({"step": 1})
    (run.folder / "notes.txt").write_text("mine")
    new = Run.create(run.folder, Config(hidden=5), overwrite=True)
    assert not new.has("last") and new.metrics() == [] and Run.open(new.folder).config.hidden == 5
    assert (run.folder / "notes.txt").read_text() == "mine"

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("precious")
    with pytest.raises(RanvierError, match="not a run folder") as caught:
        Run.create(tmp_path / "other", Config(), overwrite=True)
    one_line(caught)
    assert (tmp_path / "other" / "config.toml").read_text() == "precious"

    config = Config(out=str(tmp_path / "out"))
    assert Run.create(None, config, overwrite=True).folder == Run.create(None, config, overwrite=True).folder


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RanvierError, match="cannot be written") as caught:
        Run.create(tmp_path / "file" / "run", Config())
    one_line(caught)


def test_open_refuses_other_folders(tmp_path):
    with pytest.raises(RanvierError, match="not a run folder") as caught:
        Run.open(tmp_path)
    one_line(caught)
    with pytest.raises(RanvierError, match="not a run folder"):
        Run.open(tmp_path / "none")


def test_discard(run):
    assert run.discard() and not run.folder.exists()
    again = Run.create(run.folder, Config())
    (again.folder / "notes.txt").write_text("mine")
    assert again.discard() and (again.folder / "notes.txt").exists()


def test_discard_keeps_a_checkpoint(run):
    run.save("initial", {"w": jnp.ones(3)})
    assert not run.discard() and run.has("initial")


def test_update(run):
    run.update(replace(run.config, epochs=40, resume="x"))
    assert Run.open(run.folder).config == replace(run.config, epochs=40, resume=None)


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# metrics


def test_metrics(run):
    run.log({"epoch": 1, "step": np.int64(5), "split": "train", "loss": np.float32(0.5), "top1": jnp.asarray(0.25)})
    run.log({"epoch": 1, "step": 5, "split": "validation", "loss": float("nan"), "top1": np.float32("inf")})
    first, second = Run.open(run.folder).metrics()
    assert first == {"epoch": 1, "step": 5, "split": "train", "loss": 0.5, "top1": 0.25}
    assert math.isnan(second["loss"]) and math.isnan(second["top1"])
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()  # not JSON


def test_truncated_last_line(run):
    run.log({"step": 1})
    path = run.folder / "metrics.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert run.metrics() == [{"step": 1}]
    run.log({"step": 3})
    assert run.metrics() == [{"step": 1}, {"step": 3}]


def test_corrupt_line_is_refused(run):
    (run.folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(RanvierError, match="line 2") as caught:
        run.metrics()
    one_line(caught)
    (run.folder / "metrics.jsonl").write_bytes(b"[1]\n")
    with pytest.raises(RanvierError, match="line 1"):
        run.metrics()


def test_rewind_gives_the_file_of_an_uninterrupted_run(run, tmp_path):
    losses = ((1, 0.1), (2, math.nan))
    rows = [{"epoch": e, "step": 10 * e, "split": s, "loss": loss} for e, loss in losses for s in "ab"]
    whole = Run.create(tmp_path / "whole", Config())
    for row in rows:
        whole.log(row)
    for row in rows[:3]:
        run.log(row)
    run.log({"epoch": 3, "step": 30})
    with open(run.folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"st')
    run.rewind(10)
    for row in rows[2:]:
        run.log(row)
    assert (run.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()


# checkpoints


def test_checkpoint_round_trip(run):
    saved = tree()
    run.save("last", saved, {"step": 12, "best": -math.inf, "top1": np.float32(0.5)})
    loaded, meta = run.load("last", tree())
    assert meta == {"step": 12, "best": -math.inf, "top1": 0.5}
    assert jax.tree_util.tree_structure(loaded) == jax.tree_util.tree_structure(saved)
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(loaded), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    assert jax.random.normal(loaded["key"]) == jax.random.normal(saved["key"])


def test_names_of_leaves(run):
    run.save("best", tree(), {"step": 1})
    arrays, meta = read_checkpoint(run.folder / "checkpoints" / "best.npz")
    assert (
        set(arrays) == {"w", "opt/0/count", "opt/0/mu/w", "key", "raw", "mask", "epoch", "best"} and meta["step"] == 1
    )
    assert arrays["key"].dtype == np.uint32


def test_awkward_trees(run):
    run.save("bare", jnp.arange(3))
    np.testing.assert_array_equal(run.load("bare", jnp.zeros(3, jnp.int32))[0], [0, 1, 2])
    names = {"file": jnp.ones(2), "allow_pickle": jnp.zeros(1), "__ranvier__x": jnp.ones(())}
    run.save("names", names)
    assert set(run.load("names", names)[0]) == set(names)
    run.save("empty", {})
    assert run.load("empty", {}) == ({}, {})
    with pytest.raises(RanvierError, match="two leaves"):
        run.save("double", {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_like_may_be_shapes(run):
    run.save("last", {"w": jnp.ones((2, 3))})
    loaded, _ = run.load("last", {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)})
    assert isinstance(loaded["w"], jax.Array)


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"w": np.ones((3, 2), np.float32)}, r"float32\[2, 3\]; needs float32\[3, 2\]"),
        ({"w": np.ones((2, 3), np.float64)}, r"needs float64\[2, 3\]"),
        ({"w": np.ones((2, 3), np.int32)}, "needs int32"),
        ({"v": np.ones((2, 3), np.float32)}, "lacks v"),
        ({}, "has w too many"),
    ],
)
def test_other_networks_are_refused(run, like, words):
    run.save("last", {"w": jnp.ones((2, 3))})
    with pytest.raises(RanvierError, match=words) as caught:
        run.load("last", like)
    one_line(caught)


def test_saving_something_else_is_refused(run):
    with pytest.raises(RanvierError, match="dtype"):
        run.save("last", {"a": "text"})
    assert not run.has("last")
    with pytest.raises(RanvierError, match="file name"):
        run.save("../last", {})
    with pytest.raises(RanvierError, match="dtype object"):
        run.save_arrays("samples", a=np.array([{}], object))


def test_every_truncation_and_every_flipped_byte(run):
    """A damaged file is refused, or what it says is still exactly what was saved."""
    saved = {"w": jnp.arange(3.0)}
    run.save("last", saved, {"step": 1})
    path = run.folder / "checkpoints" / "last.npz"
    content = path.read_bytes()
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(RanvierError) as caught:
            run.load("last", saved)
        one_line(caught)
    refused = 0
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            loaded, meta = run.load("last", saved)
            np.testing.assert_array_equal(loaded["w"], saved["w"])
            assert meta == {"step": 1}
        except RanvierError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["RANVIER_TEST_EVIL"],)


def test_loading_cannot_execute_code(run, tmp_path, monkeypatch):
    trap = tmp_path / "executed"
    monkeypatch.setenv("RANVIER_TEST_EVIL", str(trap))
    path = run.folder / "checkpoints" / "last.npz"
    np.savez(path, w=np.array([Evil()], object))
    like = {"w": np.zeros(1)}
    for _ in range(2):
        with pytest.raises(RanvierError, match="cannot be read") as caught:
            run.load("last", like)
        one_line(caught)
        path.write_bytes(pickle.dumps(Evil()))  # and a bare pickle
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil()))  # the trap does work
    assert trap.exists()


def test_foreign_files_are_refused(run):
    path = run.folder / "checkpoints" / "last.npz"
    like = {"w": np.zeros(1)}
    with pytest.raises(RanvierError, match="there is no file"):
        run.load("last", like)
    np.savez(path, w=np.zeros(1))
    with pytest.raises(RanvierError, match="not a checkpoint"):
        run.load("last", like)
    header = np.frombuffer(json.dumps({"format": "other", "meta": {}}).encode(), np.uint8)
    np.savez(path, **{runs.HEADER: header, "w": np.zeros(1)})
    with pytest.raises(RanvierError, match="not a checkpoint"):
        run.load("last", like)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(RanvierError) as caught:
        run.load("last", like)
    one_line(caught)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(RanvierError):
        run.load("last", like)


def test_plain_arrays(run):
    run.save_arrays("samples", times=np.arange(3.0), names=np.array(["a", "bc"]), flag=True)
    arrays = run.load_arrays("samples")
    assert list(arrays["names"]) == ["a", "bc"] and arrays["flag"] and arrays["times"].shape == (3,)
    assert read_arrays(run.folder / "samples.npz").keys() == arrays.keys()


def test_equal_trees_give_equal_files(run):
    run.save("last", tree(), {"step": 1})
    run.save("best", tree(), {"step": 1})
    files = [run.folder / "checkpoints" / f"{name}.npz" for name in ("last", "best")]
    assert files[0].read_bytes() == files[1].read_bytes()
