"""Data sets by name: published ones from small stand-ins of their files, digits, delays; divisions; the commands."""

import gzip
import io
import os
import re
import sys
import tarfile
import wave
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ranvier import data, data_cli, data_plots
from ranvier.cli import main
from ranvier.data import catalog, convert, delays, digits, hdf5_writer, images, official, sources, store
from ranvier.data.dataset import Dataset, Splits
from ranvier.data.sound import encode_folder
from ranvier.data.splits import by_speaker, check_apart, check_same, fingerprints, record, shared
from ranvier.errors import RanvierError
from tests import event_files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANVIER_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def spoken(n: int, seed: int, n_classes: int = 20, speakers: int = 6, events: int = 20) -> Dataset:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 900, (n, events)), axis=1).ravel().astype(np.float32)
    channels = rng.integers(0, 700, n * events).astype(np.int32)
    names = tuple(f"word {k}" for k in range(n_classes))
    labels = (np.arange(n) % n_classes).astype(np.int32)
    who = (np.arange(n) % speakers).astype(np.int32)
    return Dataset("s", times, channels, np.arange(n + 1, dtype=np.int64) * events, labels, 700, names, who)


def put_shd(folder):
    for part, n in (("train", 120), ("test", 40)):
        hdf5_writer.write(folder / "shd" / f"shd_{part}.h5.gz", spoken(n, seed=n))


# Published sets


def test_a_set_that_is_not_here_says_what_to_do(folder):
    for name in official.NAMES:
        assert not official.is_here(name)
        with pytest.raises(RanvierError) as error:
            data.load(name)
        message = str(error.value)
        assert f"ranvier data get {name}" in message and str(folder / name) in message and "\n" not in message
    with pytest.raises(RanvierError, match="get it from https://.* and put it at"):
        official.get("dvs-gesture")


def test_files_put_by_hand_are_packed_and_compared(folder):
    put_shd(folder)
    assert official.is_here("shd")
    splits = data.load("shd")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [96, 24, 40]
    lines = "\n".join(splits.notes)
    assert "WARNING: shd_train.h5.gz has MD5" in lines and "not the published file; used as it is" in lines
    assert "WARNING: shd train: 120 samples in place of 8156" in lines
    assert "WARNING: shd test: 40 samples in place of 2264" in lines
    # From now on the store is enough, and it is not made again.
    made = (folder / "shd" / "train.events").stat().st_mtime_ns
    again = data.load("shd")
    np.testing.assert_array_equal(again.train.times, splits.train.times)
    assert again.notes == splits.notes and (folder / "shd" / "train.events").stat().st_mtime_ns == made
    (folder / "shd" / "shd_train.h5.gz").unlink()
    np.testing.assert_array_equal(data.load("shd").train.times, splits.train.times)
    # Another file is packed anew.
    hdf5_writer.write(folder / "shd" / "shd_train.h5.gz", spoken(60, seed=9))
    assert len(data.load("shd").train) == 48


def test_the_known_checksum_is_no_warning(folder, monkeypatch):
    put_shd(folder)
    facts = catalog.FACTS["shd"]
    files = {
        part: replace(file, md5=convert.checksum(folder / "shd" / file.name)) for part, file in facts.files.items()
    }
    known = replace(facts, files=files, samples={"train": 120, "test": 40})
    monkeypatch.setitem(catalog.FACTS, "shd", known)
    assert data.load("shd").notes == ()


def test_validation_by_speaker(folder):
    put_shd(folder)
    splits = data.load("shd", split="speaker", seed=3)
    assert set(splits.train.speaker).isdisjoint(splits.validation.speaker)
    assert len(splits.train) + len(splits.validation) == 120
    with pytest.raises(RanvierError, match="needs one of sample, speaker"):
        data.load("shd", split="voice")
    with pytest.raises(RanvierError, match="whose parts are fixed"):
        data.load("yinyang", split="speaker")


def test_ssc_has_parts_of_its_own(folder):
    for part, n in (("train", 70), ("valid", 35), ("test", 35)):
        hdf5_writer.write(folder / "x.h5", spoken(n, seed=n, n_classes=35))
        (folder / "ssc").mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / "ssc" / f"ssc_{part}.h5.zip", "w") as archive:
            archive.write(folder / "x.h5", f"ssc_{part}.h5")
    splits = data.load("ssc")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [70, 35, 35]
    left = {path.name for path in (folder / "ssc").iterdir()}
    assert not any("unpacked" in name or "work" in name for name in left)


def test_nmnist_from_its_archives(folder):
    for part, n in (("Train", 4), ("Test", 2)):
        root = event_files.nmnist_folder(folder / part, n, seed=n)
        (folder / "nmnist").mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / "nmnist" / f"{part}.zip", "w") as archive:
            for path in root.rglob("*.bin"):
                archive.write(path, f"{part}/{path.relative_to(root)}")
    splits = data.load("nmnist")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [32, 8, 20]
    assert splits.test.sensor == (2, 34, 34) and splits.test.class_names == tuple("0123456789")


def test_gestures_from_their_archive(folder):
    root = event_files.gesture_folder(folder / "DvsGesture", users=(1, 2, 3), gestures=11)
    (root / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_led.aedat\n")
    (root / "trials_to_test.txt").write_text("user03_led.aedat\n")
    (folder / "dvs-gesture").mkdir()
    with tarfile.open(folder / "dvs-gesture" / "DvsGesture.tar.gz", "w:gz") as archive:
        archive.add(root, "DvsGesture")
    splits = data.load("dvs-gesture", split="speaker")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [11, 11, 11]
    assert set(splits.test.speaker) == {3} and splits.test.n_classes == 11
    assert sorted(p.name for p in (folder / "dvs-gesture").iterdir()) == [
        "DvsGesture.tar.gz",
        "checksums.json",
        "test.events",
        "train.events",
    ]


def test_an_archive_that_reaches_outside_is_refused(folder):
    (folder / "dvs-gesture").mkdir(parents=True)
    (folder / "trials").write_text("nothing")
    with tarfile.open(folder / "dvs-gesture" / "DvsGesture.tar.gz", "w:gz") as archive:
        archive.add(folder / "trials", "../../outside")
    with pytest.raises(RanvierError, match=r"DvsGesture\.tar\.gz.*outside"):
        data.load("dvs-gesture")
    assert not (folder / "outside").exists()


@pytest.mark.parametrize("name", ["ssc_train.h5.zip", "shd_train.h5.gz", "DvsGesture.tar.gz", "Train.zip"])
def test_a_broken_archive_is_named(folder, name):
    (which,) = [n for n in official.NAMES if any(f.name == name for f in catalog.FACTS[n].files.values())]
    for file in catalog.FACTS[which].files.values():
        (folder / which).mkdir(parents=True, exist_ok=True)
        (folder / which / file.name).write_bytes(gzip.compress(b"nothing")[:-4] if "gz" in name else b"PK\3\4nothing")
    with pytest.raises(RanvierError) as error:
        data.load(which)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_facts_are_of_all_names():
    assert tuple(catalog.FACTS) == data.names()
    for name in ("speech", "yinyang", "delays"):
        splits = data.load(name)
        for part in ("train", "validation", "test"):
            assert official.compared(name, part, getattr(splits, part)) == []


def test_a_folder_of_recordings_is_packed_once(folder, tmp_path, monkeypatch):
    root = event_files.nmnist_folder(tmp_path / "mine", 5)
    first = data.load(root)
    assert [len(part) for part in (first.train, first.validation, first.test)] == [30, 10, 10]
    monkeypatch.setattr(convert, "convert", lambda *_, **__: pytest.fail("packed again"))
    np.testing.assert_array_equal(data.load(root).test.times, first.test.times)
    store.write(tmp_path / "a.events", first.train)
    assert len(data.load(tmp_path / "a.events").test) == 6


# Tasks that are made


def test_digits_by_latency_and_row():
    pixels = np.array([[[0.0, 1.0], [0.5, 0.0]], [[0.25, 0.0], [0.0, 0.0]]])
    early = images.by_latency(pixels, [3, 4], t_early=1.0, t_late=5.0)
    assert early.times.tolist() == [1.0, 3.0, 4.0] and early.channels.tolist() == [1, 2, 0]
    assert early.offsets.tolist() == [0, 2, 3] and early.labels.tolist() == [3, 4]
    rows = images.by_row(pixels, [3, 4], row_ms=10.0)
    assert rows.times.tolist() == [0.0, 15.0, 7.5] and rows.channels.tolist() == [1, 0, 0] and rows.n_channels == 2
    turned = images.by_row(pixels, [3, 4], row_ms=10.0, order=np.array([3, 2, 1, 0]))
    assert turned.times.tolist() == [5.0, 10.0, 17.5] and turned.channels.tolist() == [1, 0, 1]
    for bad in (pixels * 3, pixels[0], pixels[:0]):
        with pytest.raises(RanvierError, match="divide by the largest value"):
            images.by_latency(bad, [0] * len(bad))
    with pytest.raises(RanvierError, match="needs each of 4 once"):
        images.by_row(pixels, [3, 4], order=np.array([0, 0, 1, 2]))


def test_digits_by_rate():
    pixels = np.broadcast_to(np.array([[0.0, 0.5], [1.0, 1.0]]), (400, 2, 2))
    made = images.by_rate(pixels, np.zeros(400), rate_hz=200.0, duration=100.0, seed=1)
    mean = np.bincount(made.channels, minlength=4) / 400
    # Poisson numbers of mean 20: 0.22 is the standard deviation of their mean over 400 samples.
    assert mean[0] == 0 and abs(mean[1] - 10) < 1 and abs(mean[2] - 20) < 1.2 and made.latest < 100
    again = images.by_rate(pixels, np.zeros(400), rate_hz=200.0, duration=100.0, seed=1)
    np.testing.assert_array_equal(made.times, again.times)


def test_digits_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RanvierError, match="needs the package scikit-learn; pip install scikit-learn"):
        data.load("digits")


def test_what_the_package_of_the_digits_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("")
    (tmp_path / "sklearn" / "datasets.py").write_text("import joblib_of_tomorrow.parallel")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(RanvierError) as error:
        data.load("digits")
    message = str(error.value)
    assert message.endswith(
        "needs the package joblib_of_tomorrow, which scikit-learn imports; pip install joblib_of_tomorrow"
    )
    for name in ("sklearn", "sklearn.datasets"):
        sys.modules.pop(name, None)


def test_digits_of_the_package(monkeypatch):
    rng = np.random.default_rng(0)
    bunch = SimpleNamespace(images=rng.integers(0, 17, (1797, 8, 8)).astype(float), target=np.arange(1797) % 10)
    monkeypatch.setitem(sys.modules, "sklearn", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sklearn.datasets", SimpleNamespace(load_digits=lambda: bunch))
    for name in ("digits", "digits-rate", "digits-rows", "digits-permuted"):
        splits = data.load(name)
        assert [official.compared(name, part, getattr(splits, part)) for part in ("train", "validation", "test")] == [
            [],
            [],
            [],
        ]
        joined = np.sort(np.concatenate([splits.index[part] for part in ("train", "validation", "test")]))
        np.testing.assert_array_equal(joined, np.arange(1797))
    assert sorted(digits.permutation()) == list(range(64))


def test_rates_say_nothing_about_delays():
    splits = data.load("delays")
    for part in (splits.train, splits.validation, splits.test):
        channels = part.channels.reshape(len(part), -1)
        assert np.array_equal(np.sort(channels, axis=1), np.tile(np.arange(delays.N_CHANNELS), (len(part), 1)))
        assert part.times.min() > 0
    assert sorted(map(sorted, delays.patterns().tolist())) == [sorted(delays.patterns()[0])] * delays.N_CLASSES


def test_the_best_accuracy_on_delays_is_the_documented_one():
    labels = np.arange(20_000) % delays.N_CLASSES
    times = delays.times_of(labels, seed=99)
    accuracy = np.mean(delays.posterior(times).argmax(axis=1) == labels)
    # Of 20,000 samples: the standard deviation is 0.0009.
    assert abs(accuracy - 0.984) < 0.003 and "98.4 %" in delays.__doc__ and "98.4 %" in catalog.FACTS["delays"].title
    # Coincidence alone, each channel delayed by what its pattern lacks: nearly as good.
    spread = (times[:, None, :] - delays.patterns()[None]).std(axis=2)
    assert np.mean(spread.argmin(axis=1) == labels) > accuracy - 0.01


# Divisions


def test_no_speaker_is_in_two_parts():
    rng = np.random.default_rng(0)
    for n_speakers, shares in ((3, (0.6, 0.2, 0.2)), (10, (0.6, 0.2, 0.2)), (2, (0.8, 0.2)), (30, (0.9, 0.1))):
        speaker = np.concatenate([np.arange(n_speakers), rng.integers(0, n_speakers, 500)]) + 7
        parts = by_speaker(speaker, shares, seed=1)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(speaker)))
        groups = [set(speaker[part]) for part in parts]
        assert all(groups) and sum(map(len, groups)) == n_speakers
        if n_speakers >= 10:
            assert all(abs(len(part) / len(speaker) - share) < 0.08 for part, share in zip(parts, shares, strict=True))
    first, again, other = (by_speaker(np.arange(200) % 20, (0.5, 0.5), seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_shared_samples_are_found():
    one, two = spoken(50, seed=1), spoken(30, seed=2)
    assert shared(one, two).tolist() == []
    mixed = Dataset(
        **{
            **vars(two),
            "times": np.concatenate([two.times, one.subset([7, 3]).times]),
            "channels": np.concatenate([two.channels, one.subset([7, 3]).channels]),
            "offsets": np.arange(33, dtype=np.int64) * 20,
            "labels": np.concatenate([two.labels, one.labels[[7, 3]]]),
        }
    )
    assert shared(one, mixed).tolist() == [[7, 30], [3, 31]]
    assert shared(one.subset([]), mixed).tolist() == [] and shared(one, mixed.subset([])).tolist() == []
    changed = one.times.copy()
    changed[20 * 7 + 11] += 0.5
    assert shared(Dataset(**{**vars(one), "times": changed}), mixed).tolist() == [[3, 31]]
    assert len(np.unique(fingerprints(one))) == 50
    few = [spoken(10, seed=1, events=5)] * 2
    assert shared(*few).tolist() == [], "few events may be equal by chance"


def test_a_test_file_that_was_trained_on_is_refused(tmp_path):
    hdf5_writer.write(tmp_path / "a.h5", spoken(60, seed=1))
    hdf5_writer.write(tmp_path / "b.h5", spoken(60, seed=1).subset(np.arange(40, 50)))
    with pytest.raises(RanvierError, match="10 samples of b.h5 that are also in a.h5, such as 0 and 40"):
        data.load(tmp_path / "a.h5", test=tmp_path / "b.h5")
    hdf5_writer.write(tmp_path / "b.h5", spoken(10, seed=2))
    splits = data.load(tmp_path / "a.h5", test=tmp_path / "b.h5", split="speaker")
    assert set(splits.train.speaker).isdisjoint(splits.validation.speaker)
    hdf5_writer.write(tmp_path / "c.h5", replace(spoken(60, seed=1), speaker=None))
    with pytest.raises(RanvierError, match="of unknown speakers"):
        data.load(tmp_path / "c.h5", split="speaker")


# Commands


def run(capsys, *words) -> tuple[int, str, str]:
    code = main(["data", *map(str, words)])
    return code, *capsys.readouterr()


def test_list_and_info(folder, capsys):
    _, listed, _ = run(capsys, "list")
    assert listed.endswith("not here: ranvier data info dvs-gesture\n"), "nobody can get it from the network"
    code, out, err = run(capsys, "info", "dvs-gesture")
    assert "32768  2 polarities of 128 x 128 pixels" in out and "get DvsGesture.tar.gz from https://" in err
    assert run(capsys)[1] == listed and "shd" in listed and "ranvier data get shd" in listed
    code, out, err = run(capsys, "info", "shd")
    assert code == 0 and "MD5 d47c9825dee33347913e8ce0f2be08b0  not here" in out and "ranvier data get shd" in err
    put_shd(folder)
    code, out, _ = run(capsys, "info", "shd")
    assert re.search(r"^train +96 ", out, re.MULTILINE) and "WARNING" in out
    assert "ranvier data get shd" not in run(capsys, "list")[1]


def test_get(folder, capsys):
    code, out, err = run(capsys, "get", "shdd")
    assert code == 2 and "needs one of shd, ssc, nmnist, dvs-gesture" in err and err.count("\n") == 1
    assert run(capsys, "get", "speech") == (0, "", "speech needs no download\n")
    put_shd(folder)
    code, out, err = run(capsys, "get", "shd")
    assert (code, out) == (0, f"{folder / 'shd'}\n")
    assert "packing shd train: done" in err and "WARNING: shd_train.h5.gz" in err


def test_check_and_convert(folder, tmp_path, capsys):
    root = event_files.nmnist_folder(tmp_path / "n", 2)
    assert run(capsys, "convert", root, tmp_path / "n.events")[:2] == (0, f"{tmp_path / 'n.events'}\n")
    assert run(capsys, "convert", tmp_path / "n.events", tmp_path / "n.h5")[0] == 0
    tables = [run(capsys, "check", path)[1] for path in (root, tmp_path / "n.h5")]
    tables.append(run(capsys, "check", tmp_path / "n.events")[1])
    assert "20" in tables[0] and tables[0] == tables[1] == tables[2]
    raw = bytearray((tmp_path / "n.events").read_bytes())
    raw[5000] ^= 1
    (tmp_path / "n.events").write_bytes(raw)
    code, out, err = run(capsys, "check", tmp_path / "n.events")
    assert code == 2 and "times that were changed" in err and err.count("\n") == 1
    assert run(capsys, "check", root, "--sensor", "20,20")[0] == 2
    assert "needs height,width" in run(capsys, "check", root, "--sensor", "20")[2]
    put_shd(folder)
    code, out, err = run(capsys, "check", folder / "shd" / "shd_test.h5.gz")
    assert code == 0 and "WARNING: shd_test.h5.gz has MD5" in err and "40 samples in place of 2264" in err
    code, out, err = run(capsys, "check", "shd")
    assert code == 0 and "shd_train.h5.gz" in out and "in place of 8156" in err
    assert run(capsys, "check", "yinyang")[::2] == (0, "")


def test_check_of_published_archives(folder, tmp_path, capsys):
    root = event_files.nmnist_folder(tmp_path / "Train", 1, n_events=12_345)
    with zipfile.ZipFile(tmp_path / "Train.zip", "w") as archive:
        for path in root.rglob("*.bin"):
            archive.write(path, path.relative_to(tmp_path))
    code, out, err = run(capsys, "check", tmp_path / "Train.zip")
    assert code == 0 and "WARNING: Train.zip has MD5" in err and "10 samples in place of 60000" in err
    assert out.splitlines()[1].split()[:7] == ["all", "10", "123450", "12345", "(12345", "to", "12345)"]
    code, _, err = run(capsys, "check", root, "--sensor", "20,20")
    assert code == 2 and "name the size of the sensor" in err
    for name, which in (("DvsGesture.tar.gz", "dvs-gesture"), ("ssc_train.h5.zip", "ssc")):
        (tmp_path / name).write_bytes(b"not it")
        code, _, err = run(capsys, "check", tmp_path / name)
        assert code == 0 and f"WARNING: {name} has MD5" in err
        assert f"put it at {folder / which / name} and type `ranvier data check {which}`" in err


@pytest.mark.parametrize("out", ["r.events", "r.h5"])
def test_what_is_half_written_lies_in_the_folder_that_goes_away(tmp_path, monkeypatch, out):
    source = convert.source_of(event_files.nmnist_folder(tmp_path / "records"))
    seen, real = [], os.replace

    def replaced(first, second):
        seen.append([path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")])
        real(first, second)

    monkeypatch.setattr(os, "replace", replaced)
    convert.convert(source, tmp_path / out)
    assert seen and not any(seen)
    assert {path.name for path in tmp_path.iterdir()} == {"records", out}
    (tmp_path / f"2{out}").mkdir()
    with pytest.raises(RanvierError, match=f"2{out}: got a path that cannot be written"):
        convert.convert(source, tmp_path / f"2{out}")


def noises(where, n_a_class):
    """A folder of sounds of 50 ms of two classes."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (where / label).mkdir(parents=True)
        for i in range(n_a_class):
            with wave.open(str(where / label / f"x_{i % 2}_{i}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                file.writeframes(rng.normal(0, 3000, 400).astype("<i2").tobytes())


def test_sounds_are_loaded_as_they_are_converted(folder, tmp_path, monkeypatch):
    noises(tmp_path / "sounds", 3)
    splits = data.load(tmp_path / "sounds", n_channels=20)
    assert (len(splits.train), splits.train.n_channels, splits.train.class_names) == (4, 20, ("a", "b"))
    encode_folder(tmp_path / "sounds", tmp_path / "s.h5", channels=20)
    same = data.load(tmp_path / "s.h5", n_channels=20)
    for part in ("train", "validation", "test"):
        one, other = getattr(splits, part), getattr(same, part)
        np.testing.assert_allclose(one.times, other.times, rtol=1e-6)
        for name in ("channels", "offsets", "labels", "speaker"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    # Packed once.
    monkeypatch.setattr(convert, "convert", None)
    assert len(data.load(tmp_path / "sounds", n_channels=20).train) == 4
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,split\nsounds/a/x_0_0.wav,a,train\nsounds/b/x_0_0.wav,b,test\n")
    with pytest.raises(RanvierError, match="a manifest of several parts; needs one part; type `ranvier data convert"):
        data.load(manifest)
    manifest.write_text("path,label\nsounds/none.wav,a\n")
    with pytest.raises(RanvierError, match=r"none\.wav: got no such file; needs a sound file; correct m\.csv"):
        data.load(manifest)


def test_what_takes_long_is_said(folder, tmp_path, capsys, monkeypatch):
    noises(tmp_path / "sounds", 3)
    words = (tmp_path / "sounds", "--n-channels", "4")
    code, out, err = run(capsys, "info", *words)
    first, last = err.splitlines()
    by = "the cochlea model with 4 channels and seed 0"
    assert code == 0 and first.startswith(f"{tmp_path / 'sounds'}: 6 sounds are encoded once, by {by}, and kept in ")
    (kept,) = (folder / "paths").iterdir()
    assert f" {kept}; ranvier data convert has other encoders" in first
    assert re.fullmatch(r"encoding sounds: done after [0-9.]+ s", last)
    assert run(capsys, "info", *words) == (0, out, ""), "once"
    code, _, err = run(capsys, "check", *words)
    assert code == 0 and "6 sounds are encoded by the cochlea model" in err and "nothing is kept" in err
    # Recordings only if it takes long.
    event_files.nmnist_folder(tmp_path / "few", 2)
    assert run(capsys, "info", tmp_path / "few")[::2] == (0, "")
    event_files.nmnist_folder(tmp_path / "many", 30)
    monkeypatch.setattr(sources, "SLOW_S", 0.0)
    code, _, err = run(capsys, "show", tmp_path / "many", "--out", tmp_path / "a.png")
    told = rf"{tmp_path}/many: packed once, and kept in {folder}/paths/many-\w+\.events"
    assert code == 0 and re.fullmatch(rf"{told}\npacking many: done after .* s\n", err)
    run(capsys, "info", tmp_path / "sounds", "--n-channels", "5")
    assert all(path.name.endswith(".events") for path in (folder / "paths").iterdir())


def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch):
    from rich.console import Console

    with data_cli._Progress() as progress:
        screen = io.StringIO()
        progress.console = Console(file=screen, force_terminal=True, width=120)
        assert screen.getvalue() == ""
        progress("encoding a", 0, 4)
        progress("encoding a", 1, 4)
        progress.bars.refresh()
    assert "encoding a" in screen.getvalue() and " 25 %" in screen.getvalue()


@pytest.mark.parametrize("out", ["s.h5", "s.events"])
def test_convert_sounds(folder, tmp_path, capsys, out):
    noises(tmp_path / "sounds", 2)
    (tmp_path / "sounds" / "b" / "broken.wav").write_bytes(b"RIFF and no more")
    with pytest.raises(RanvierError, match=r"broken\.wav: got a file that cannot be read"):
        data.load(tmp_path / "sounds")
    words = ("--encoder", "mel", "--n-channels", "32")
    code, printed, err = run(capsys, "convert", tmp_path / "sounds", tmp_path / out, *words)
    assert code == 1 and printed == f"{tmp_path / out}\n" and "broken.wav" in err and "1 of 5 sounds left out" in err
    code, printed, _ = run(capsys, "check", tmp_path / out)
    assert re.search(r"^channels +32$", printed, re.MULTILINE)
    assert re.search(r"^all +4 ", printed, re.MULTILINE) and "a, b" in printed
    assert not list(tmp_path.glob("[!.]*encoded*"))
    code, _, err = run(capsys, "convert", tmp_path / "sounds", tmp_path / "s.txt")
    assert code == 2 and "needs a name in .events, .h5" in err
    words = ("--encoder", "mel", "--n-channels", "33")
    code, _, err = run(capsys, "convert", tmp_path / "sounds", tmp_path / out, *words)
    assert code == 2 and "got 33 channels for mel, which has two a filter; needs an even number" in err


@pytest.mark.parametrize("name", ["recordings", "delays"])
def test_show(folder, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name == "recordings":
        event_files.gesture_folder(tmp_path / name, users=range(1, 6))
    code, out, _ = run(capsys, "show", name, "--sample", "3", "--part", "test" if name == "delays" else "train")
    assert code == 0 and (tmp_path / out.strip()).read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, "show", name, "--sample", "100000", "--out", tmp_path / "a.png")
    assert code == 2 and "got sample 100000" in err


def test_a_picture_of_few_channels():
    """Every dot is inside, channels and counts have marks at whole numbers alone, histograms begin at 0."""
    dataset = data.load("delays").test
    figure = data_plots.summary(dataset, 3)
    axes = {axis.get_title(loc="left"): axis for axis in figure.axes}
    raster, beside = axes[f"delays: sample 3, class pattern {dataset.labels[3]}"], axes["by channel"]
    figure.canvas.draw()
    assert raster.get_ylim() == (-0.5, 7.5) and raster.get_xlim()[1] > dataset.latest
    assert raster.collections[0].get_offsets().shape == (8, 2)
    assert beside.get_xlim()[0] == 0 and axes["by time, bins of 0.502 ms"].get_ylim()[0] == 0
    counts = axes["events a sample"]
    assert counts.get_xlim() == (4.5, 11.5) and [bar.get_width() for bar in counts.patches] == [1.0]
    for marks in (raster.get_yticks(), counts.get_xticks(), counts.get_yticks(), axes["by class"].get_yticks()):
        assert 2 <= len(marks) <= 8 and np.array_equal(marks, np.round(marks))


def test_a_picture_without_events_and_with_wide_bins():
    whole = spoken(12, seed=1)
    for part in (whole, replace(whole, times=whole.times[:0], channels=whole.channels[:0], offsets=np.zeros(13, int))):
        titles = {axis.get_title(loc="left") for axis in data_plots.summary(part, 5).axes}
        assert {"by channel, bins of 7", "by class", "events a sample"} <= titles
    edges, width = data_plots._bins(3, 1000, 60)
    assert width == 17 and edges[0] == 2.5 and edges[-2] < 1000 < edges[-1] and len(edges) <= 61


# Kept with a run


def test_other_samples_are_refused():
    whole = spoken(60, seed=1)
    parts = [whole.subset(np.arange(a, b)) for a, b in ((0, 40), (40, 50), (50, 60))]
    index = {"train": np.arange(40), "validation": np.arange(40, 50), "test": np.arange(50, 60)}
    splits = Splits(*parts, index=index)
    kept = record(splits)
    assert kept["test"].tolist() == list(range(50, 60)) and len(kept["train_samples"]) == 40
    check_same(kept, splits)
    swapped = replace(splits, train=parts[0].subset([1, 0, *range(2, 40)]))
    with pytest.raises(RanvierError, match=r"another train set \(40 samples, 40 of them the same\)"):
        check_same(kept, swapped)
    with pytest.raises(RanvierError, match=r"another validation set \(9 samples, 9 of them the same\)"):
        check_same(kept, replace(splits, validation=parts[1].subset(np.arange(9))))


def test_test_samples_cannot_choose_the_network():
    whole = spoken(60, seed=1)
    train, validation, test = (whole.subset(np.arange(a, b)) for a, b in ((0, 30), (30, 50), (50, 60)))
    assert check_apart(Splits(train, validation, test)) == []
    with pytest.raises(RanvierError, match="10 of 10 validation samples among the test samples"):
        check_apart(Splits(train, test, test))
    few = whole.subset([*range(30, 49), 55])
    assert check_apart(Splits(train, few, test)) == ["WARNING: 1 of 20 validation samples are among the test samples"]
    assert check_apart(Splits(whole, validation, test)) == [
        "WARNING: 10 of 60 train samples are among the test samples"
    ]
