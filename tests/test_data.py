"""Data sets: the container, the HDF5 reader with every kind of broken file, splits, Yin-Yang, the shipped speech."""

import gzip
import hashlib
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from ranvier import data
from ranvier.data import convert, hdf5, packed, speech, yinyang
from ranvier.data.dataset import Dataset
from ranvier.data.splits import stratified, voice_groups
from ranvier.errors import RanvierError

ROOT = Path(__file__).parent.parent


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.count(";") >= 2, "what was got; what is needed; what to do"
    return message


def random_dataset(n: int = 30, n_classes: int = 3, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 20, n)
    times = [np.sort(rng.uniform(0, 50, k)) for k in counts]
    return Dataset(
        name="random",
        times=np.concatenate(times).astype(np.float32),
        channels=rng.integers(0, 12, counts.sum()).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        labels=np.arange(n, dtype=np.int32) % n_classes,
        n_channels=12,
        class_names=tuple("abcdefgh"[:n_classes]),
        speaker=rng.integers(0, 4, n).astype(np.int32),
    )


def speakers(dataset: Dataset) -> np.ndarray:
    assert dataset.speaker is not None
    return dataset.speaker


def rows(values, kind) -> np.ndarray:
    out = np.empty(len(values), object)
    for i, row in enumerate(values):
        out[i] = np.asarray(row, kind)
    return out


def write(path: Path, **changes) -> Path:
    """A file of 10 samples in the layout of SHD; `changes` replace, add or (None) remove datasets, by name."""
    n = 10
    contents = {
        "times": rows([[0.001 * i, 0.002 * i + 0.01] for i in range(n)], np.float16),
        "units": rows([[i, 699 - i] for i in range(n)], np.uint16),
        "labels": np.arange(n, dtype=np.uint16) % 2,
        "speaker": np.arange(n, dtype=np.uint16) % 3,
        "keys": np.array([b"eins", "fünf".encode()]),
    } | changes
    names = {"times": "spikes/times", "units": "spikes/units", "speaker": "extra/speaker", "keys": "extra/keys"}
    with h5py.File(path, "w") as file:
        for name, values in contents.items():
            if values is None:
                continue
            kind = h5py.vlen_dtype(values[0].dtype) if values.dtype == object else values.dtype
            file.create_dataset(names.get(name, name), data=values, dtype=kind)
    return path


# Dataset


def test_dataset_knows_its_sizes():
    dataset = random_dataset()
    counts = np.diff(dataset.offsets)
    assert (len(dataset), dataset.n_classes, dataset.max_events) == (30, 3, counts.max())
    assert dataset.latest == dataset.times.max()


def test_subset_keeps_samples_and_order():
    dataset = random_dataset()
    picked = [7, 2, 29, 2]
    part = dataset.subset(picked)
    assert len(part) == 4 and part.class_names == dataset.class_names
    for new, old in enumerate(picked):
        here, there = slice(*part.offsets[new : new + 2]), slice(*dataset.offsets[old : old + 2])
        assert np.array_equal(part.times[here], dataset.times[there])
        assert np.array_equal(part.channels[here], dataset.channels[there])
        assert part.labels[new] == dataset.labels[old] and speakers(part)[new] == speakers(dataset)[old]
    assert len(dataset.subset([])) == 0 and dataset.subset([]).latest == 0 and dataset.subset([]).max_events == 0


def test_batch_is_the_padded_samples():
    dataset = random_dataset()
    picked = [7, 2, 29]
    events = dataset.batch(picked)
    assert events.time.shape == (3, 256) and events.time.dtype == np.float32 and events.channel.dtype == np.int32
    for row, sample in enumerate(picked):
        first, last = dataset.offsets[sample : sample + 2]
        n = last - first
        assert np.array_equal(events.time[row, :n], dataset.times[first:last])
        assert np.array_equal(events.channel[row, :n], dataset.channels[first:last])
        assert np.all(np.isinf(events.time[row, n:])) and not np.any(events.channel[row, n:])


@pytest.mark.parametrize(("n_events", "capacity"), [(0, 256), (1, 256), (256, 256), (257, 512)])
def test_capacity_is_a_multiple_of_256(n_events, capacity):
    dataset = Dataset(
        "one", np.zeros(n_events, np.float32), np.zeros(n_events, np.int32), np.array([0, n_events]),
        np.zeros(1, np.int32), 1, ("a",),
    )  # fmt: skip
    assert dataset.batch([0]).capacity == capacity


def test_batch_is_float32_also_with_64_bits(x64):
    assert random_dataset().batch([0, 1]).time.dtype == np.float32


def test_too_small_a_capacity_names_the_sample():
    dataset = random_dataset()
    longest = int(np.argmax(np.diff(dataset.offsets)))
    assert dataset.batch([longest], capacity=dataset.max_events).capacity == dataset.max_events
    with pytest.raises(RanvierError) as error:
        dataset.batch([0, longest], capacity=dataset.max_events - 1)
    assert f"sample {longest} with {dataset.max_events} events" in one_line(error)


@pytest.mark.parametrize("indices", [[30], [-1], [0.5], [[0]], 3, [True, False], "a"])
@pytest.mark.parametrize("method", ["batch", "subset"])
def test_bad_indices_are_refused(method, indices):
    with pytest.raises(RanvierError) as error:
        getattr(random_dataset(), method)(indices)
    assert f"Dataset.{method}" in one_line(error)


# HDF5


@pytest.mark.parametrize("packed_file", [False, True])
def test_file_is_read(tmp_path, packed_file):
    path = write(tmp_path / "a.h5")
    if packed_file:
        (tmp_path / "a.h5.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "a.h5.gz"
    dataset, notes = hdf5.read(path)
    assert notes == () and dataset.name == path.name
    assert (len(dataset), dataset.n_channels, dataset.class_names) == (10, 700, ("eins", "fünf"))
    for i in range(10):
        first, last = dataset.offsets[i : i + 2]
        seconds = np.array([0.001 * i, 0.002 * i + 0.01], np.float16)
        assert np.array_equal(dataset.times[first:last], (seconds.astype(np.float64) * 1000).astype(np.float32))
        assert np.array_equal(dataset.channels[first:last], [i, 699 - i])
    assert np.array_equal(dataset.labels, np.arange(10) % 2)
    assert np.array_equal(speakers(dataset), np.arange(10) % 3)
    assert [getattr(dataset, k).dtype for k in ("times", "channels", "offsets", "labels", "speaker")] == [
        np.float32, np.int32, np.int64, np.int32, np.int32,
    ]  # fmt: skip


@pytest.mark.parametrize(("time_kind", "unit_kind"), [("f4", "i8"), ("f8", "u1"), ("i4", "f4"), ("f2", "u8")])
def test_any_type_of_number_is_read(tmp_path, time_kind, unit_kind):
    path = write(
        tmp_path / "a.h5",
        times=rows([[1, 2]] * 4, time_kind),
        units=rows([[3, 5]] * 4, unit_kind),
        labels=np.array([0.0, 1, 1, 0]),
        speaker=None,
        keys=None,
    )
    dataset, _ = hdf5.read(path)
    assert np.array_equal(dataset.times, [1000, 2000] * 4) and np.array_equal(dataset.channels, [3, 5] * 4)
    assert dataset.speaker is None and dataset.class_names == ("0", "1")


def test_unsorted_times_are_sorted_with_a_note(tmp_path):
    times = [[0.1, 0.2], [0.3, 0.1, 0.2], [], [0.4, 0.2], [0.1]]
    units = [[0, 1], [2, 3, 4], [], [5, 6], [7]]
    path = write(
        tmp_path / "a.h5", times=rows(times, "f4"), units=rows(units, "u2"), labels=np.zeros(5, int), speaker=None
    )
    dataset, notes = hdf5.read(path)
    assert np.allclose(dataset.times, [100, 200, 100, 200, 300, 200, 400, 100])
    assert np.array_equal(dataset.channels, [0, 1, 3, 4, 2, 6, 5, 7])
    assert notes == (
        "a.h5: 2 samples with unsorted times, first sample 1; sorted",
        "a.h5: 1 samples without events, first sample 2; kept",
    )


def test_equal_times_keep_their_order_and_samples_do_not_mix(tmp_path):
    times, units = [[], [0.3, 0.3, 0.1], [0.2], []], [[], [9, 4, 6], [1], []]
    path = write(
        tmp_path / "a.h5", times=rows(times, "f4"), units=rows(units, "u2"), labels=np.zeros(4, int), speaker=None
    )
    dataset, notes = hdf5.read(path)
    assert np.array_equal(dataset.channels, [6, 9, 4, 1]) and np.array_equal(dataset.offsets, [0, 0, 3, 4, 4])
    assert "1 samples with unsorted times" in notes[0] and "2 samples without events, first sample 0" in notes[1]


def test_only_empty_samples_are_kept(tmp_path):
    path = write(
        tmp_path / "a.h5", times=rows([[], []], "f4"), units=rows([[], []], "u2"), labels=np.zeros(2, int), speaker=None
    )
    dataset, notes = hdf5.read(path)
    assert (len(dataset), dataset.max_events, len(notes)) == (2, 0, 1)


GOOD_TIMES = [[0.1], [0.1, 0.2], [0.1]]
GOOD_UNITS = [[1], [1, 2], [1]]


def three(times=GOOD_TIMES, units=GOOD_UNITS, time_kind="f4", unit_kind="i4", **changes) -> dict:
    changes = {"labels": np.zeros(3, int), "speaker": None, "keys": None} | changes
    return {"times": rows(times, time_kind), "units": rows(units, unit_kind)} | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"times": None}, "no dataset spikes/times"),
        ({"units": None}, "no dataset spikes/units"),
        ({"times": None, "units": None}, "no dataset spikes/times"),
        ({"labels": None}, "no dataset labels"),
        ({"labels": np.zeros(9, int)}, "spikes/times 10, spikes/units 10, labels 9, extra/speaker 10"),
        ({"speaker": np.zeros(11, int)}, "extra/speaker 11"),
        (three(times=GOOD_TIMES[:2]), "spikes/times 2, spikes/units 3, labels 3"),
        (three(units=[[1], [1], [1]]), "sample 1 has 2 times and 1 units"),
        (three(units=[[1], [1, 700], [1]]), "sample 1 has unit 700"),
        (three(units=[[1], [1, 2], [-1]]), "sample 2 has unit -1"),
        (three(units=[[1], [1, 2.5], [1]], unit_kind="f4"), "sample 1 has unit 2.5"),
        (three(units=[[np.nan], [1, 2], [1]], unit_kind="f4"), "sample 0 has unit nan"),
        (three(times=[[0.1], [0.1, np.nan], [0.1]]), "sample 1 has time nan"),
        (three(times=[[0.1], [0.1, 0.2], [np.inf]]), "sample 2 has time inf"),
        (three(times=[[1e300], [0.1, 0.2], [0.1]], time_kind="f8"), "sample 0 has time 1e+300"),
        (three(times=[[0.1], [-0.1, 0.2], [0.1]]), "sample 1 has time -0.1"),
        (three(labels=np.array([0, -1, 0])), "sample 1 has label -1"),
        (three(labels=np.array([0, 0, 0.5])), "sample 2 has label 0.5"),
        (three(labels=np.array([0, np.nan, 0])), "sample 1 has label nan"),
        (three(labels=np.array([0, 0, 10**9])), "sample 2 has label 1000000000"),
        (three(labels=np.array([0, 2, 0]), keys=np.array([b"a", b"b"])), "sample 1 has label 2"),
        (three(labels=np.array([b"a", b"b", b"c"])), "labels of shape (3,) and type |S1"),
        (three(labels=np.zeros((3, 2))), "labels of shape (3, 2)"),
        (three(speaker=np.array([0, -1, 0])), "sample 1 has speaker -1"),
        (three(unit_kind=">i2"), "spikes/units in foreign byte order"),
        (three(time_kind=">f4"), "spikes/times in foreign byte order"),
        ({"times": np.zeros((10, 2))}, "spikes/times of shape (10, 2)"),
        ({"times": np.zeros(10)}, "spikes/times of shape (10,)"),
    ],
)  # fmt: skip
def test_broken_contents_are_refused(tmp_path, changes, says):
    path = write(tmp_path / "broken.h5", **changes)
    for reader in (hdf5.read, data.load):
        with pytest.raises(RanvierError) as error:
            reader(path)
        assert f"{path}: " in one_line(error) and says in one_line(error)


def test_file_without_samples_is_refused(tmp_path):
    path = tmp_path / "none.h5"
    with h5py.File(path, "w") as file:
        for name, kind in (("spikes/times", "f4"), ("spikes/units", "u2")):
            file.create_dataset(name, (0,), h5py.vlen_dtype(np.dtype(kind)))
        file.create_dataset("labels", (0,), "u2")
    with pytest.raises(RanvierError) as error:
        hdf5.read(path)
    assert "labels 0" in one_line(error)


def broken_files(folder: Path) -> dict[str, Path]:
    whole = write(folder / "whole.h5").read_bytes()
    contents = {
        "truncated.h5": whole[: len(whole) // 2],
        "empty.h5": b"",
        "text.h5": b"spikes/times\n" * 100,
        "truncated.h5.gz": gzip.compress(whole)[:-100],
        "empty.h5.gz": b"",
        "plain.h5.gz": whole,
        "text.h5.gz": gzip.compress(b"no events"),
        "scrambled.h5.gz": gzip.compress(whole)[:50] + bytes(range(256)),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.h5").mkdir()
    return {name: folder / name for name in [*contents, "folder.h5", "missing.h5"]}


def test_broken_files_are_refused(tmp_path):
    for path in broken_files(tmp_path).values():
        with pytest.raises(RanvierError) as error:
            hdf5.read(path)
        assert f"{path}: " in one_line(error)
    with pytest.raises(RanvierError) as error:
        hdf5.read(tmp_path / "missing.h5")
    assert "no such file" in one_line(error)


def test_number_of_channels_is_an_option(tmp_path):
    path = write(tmp_path / "a.h5", **three(units=[[11], [1, 2], [0]]))
    assert hdf5.read(path, n_channels=12)[0].n_channels == 12
    with pytest.raises(RanvierError) as error:
        hdf5.read(path, n_channels=11)
    assert "sample 0 has unit 11" in one_line(error) and "[0, 11)" in one_line(error)


def test_a_file_says_its_channels_itself(tmp_path):
    path = write(tmp_path / "a.h5", **three(units=[[11], [1, 2], [0]]))
    assert hdf5.read(path)[0].n_channels == 700 and hdf5.read(path, otherwise=30)[0].n_channels == 30

    def say(**attributes):
        with h5py.File(path, "r+") as file:
            file.attrs.clear()
            for name, value in attributes.items():
                file.attrs[name] = value
        return path

    assert hdf5.read(say(n_channels=12))[0].n_channels == 12
    assert hdf5.read(say(n_channels=np.uint16(18), sensor=[2, 3, 3]))[0].sensor == (2, 3, 3)
    assert hdf5.read(say(sensor=[1, 4, 3]))[0].n_channels == 12
    assert hdf5.read(say(n_channels=12), n_channels=12)[0].n_channels == 12
    for attributes, says in (
        ({"n_channels": 11}, "sample 0 has unit 11"),
        ({"n_channels": 0}, "attribute n_channels 0"),
        ({"n_channels": 2**31}, "attribute n_channels 2147483648"),
        ({"n_channels": "12"}, "attribute n_channels of shape () and type"),
        ({"n_channels": 12.0}, "attribute n_channels of shape () and type float64"),
        ({"n_channels": [12, 12]}, "attribute n_channels of shape (2,)"),
        ({"n_channels": 12, "sensor": [2, 3, 3]}, "attribute sensor [2, 3, 3] of 12 channels"),
        ({"n_channels": 12, "sensor": [-2, -3, 2]}, "attribute sensor [-2, -3, 2]"),
        ({"sensor": [4, 3]}, "attribute sensor of shape (2,)"),
    ):
        with pytest.raises(RanvierError) as error:
            hdf5.read(say(**attributes))
        assert says in one_line(error)
    for reader in (hdf5.read, convert.source_of, data.load):
        with pytest.raises(RanvierError) as error:
            reader(say(n_channels=12), n_channels=700)
        assert "n_channels 700 for a file of 12 channels; needs what the file says" in one_line(error)


# Splits


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (0.8, 0.2), (1.0,)])
@pytest.mark.parametrize("sizes", [(10, 10), (7, 3, 1), (1,) * 11, (100, 2), (0,)])
def test_parts_are_disjoint_whole_and_stratified(shares, sizes):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    parts = stratified(labels, shares, seed=0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part, share in zip(parts, shares, strict=True):
        assert np.array_equal(part, np.sort(part))
        assert abs(len(part) - share * len(labels)) <= 1
        for k, size in enumerate(sizes):
            assert abs((labels[part] == k).sum() - share * size) <= 2


def test_parts_follow_the_seed():
    labels = np.arange(100) % 5
    first, again, other = (stratified(labels, (0.6, 0.2, 0.2), seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_voice_groups():
    groups = voice_groups(np.array([0, 1, 1]), np.array([1, 5, 0, 5]))
    assert np.array_equal(groups["known voices"], [0, 2]) and np.array_equal(groups["unseen voices"], [1, 3])
    assert voice_groups(None, np.array([1])) == {} and voice_groups(np.array([1]), None) == {}
    assert voice_groups(np.array([1]), np.array([1])) == {} and voice_groups(np.array([1]), np.array([2])) == {}


def identities(dataset: Dataset) -> list[int]:
    """Which sample of `write` each one is: its first channel, which is its number."""
    return dataset.channels[dataset.offsets[:-1]].tolist()


def numbered(path: Path, n: int, first: int = 0, speaker=None) -> Path:
    return write(
        path,
        times=rows([[0.01]] * n, "f4"),
        units=rows([[first + i] for i in range(n)], "u2"),
        labels=np.arange(n) % 2,
        speaker=speaker,
    )


def test_one_file_is_divided(tmp_path):
    path = numbered(tmp_path / "a.h5", 50)
    splits = data.load(path, seed=1)
    parts = [identities(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [30, 10, 10]
    assert sorted(sum(parts, [])) == list(range(50))
    assert all(
        np.bincount(p.labels).tolist() == [len(p) // 2] * 2 for p in (splits.train, splits.validation, splits.test)
    )
    assert identities(data.load(str(path), seed=1).test) == parts[2] != identities(data.load(path, seed=2).test)
    assert splits.test_groups == {} and splits.notes == ()


def test_a_second_file_is_the_test_set(tmp_path):
    path = numbered(tmp_path / "a.h5", 50, speaker=np.arange(50) % 3)
    test = numbered(tmp_path / "b.h5", 8, first=100, speaker=np.array([0, 1, 5, 5, 2, 0, 5, 1]))
    for seed in (0, 1):
        splits = data.load(path, test=test, seed=seed)
        assert identities(splits.test) == list(range(100, 108))
        assert sorted(identities(splits.train) + identities(splits.validation)) == list(range(50))
        assert len(splits.validation) == 10 and np.bincount(splits.validation.labels).tolist() == [5, 5]
    assert np.array_equal(splits.test_groups["unseen voices"], [2, 3, 6])
    assert np.array_equal(splits.test_groups["known voices"], [0, 1, 4, 5, 7])


def test_notes_of_both_files_are_handed_on(tmp_path):
    unusual = three(times=[[0.1], [0.2, 0.1], []], units=[[1], [1, 2], []])
    names = np.array([b"eins", "fünf".encode()])
    splits = data.load(numbered(tmp_path / "a.h5", 10), test=write(tmp_path / "b.h5", **unusual | {"keys": names}))
    assert [note.split(":")[0] for note in splits.notes] == ["b.h5", "b.h5"]


def test_classes_of_two_files_agree(tmp_path):
    first = numbered(tmp_path / "a.h5", 10)
    longer = write(tmp_path / "b.h5", keys=np.array([b"eins", "fünf".encode(), b"sechs"]))
    splits = data.load(first, test=longer)
    assert (
        splits.train.class_names
        == splits.validation.class_names
        == splits.test.class_names
        == ("eins", "fünf", "sechs")
    )
    with pytest.raises(RanvierError) as error:
        data.load(first, test=write(tmp_path / "c.h5", keys=np.array([b"eins", b"zwei"])))
    assert "a.h5 and c.h5" in one_line(error)


def test_channels_of_two_files_agree(tmp_path):
    first, test = numbered(tmp_path / "a.h5", 10), numbered(tmp_path / "b.h5", 10, first=20)
    with h5py.File(first, "r+") as file:
        file.attrs["n_channels"] = 30
    assert data.load(first, test=test).test.n_channels == 30
    for n_channels, says in ((29, "sample 9 has unit 29"), (31, "b.h5 of 31 channels beside a.h5 of 30")):
        with h5py.File(test, "r+") as file:
            file.attrs["n_channels"] = n_channels
        with pytest.raises(RanvierError) as error:
            data.load(first, test=test)
        assert says in one_line(error)


def test_what_cannot_be_loaded_is_refused(tmp_path):
    path = numbered(tmp_path / "a.h5", 10)
    link = tmp_path / "link.h5"
    os.symlink(path, link)
    small = numbered(tmp_path / "small.h5", 3)
    (tmp_path / "empty").mkdir()
    for arguments, says in [
        (("speach",), "needs one of speech, yinyang, delays"),
        ((tmp_path / "missing.h5",), "missing.h5"),
        ((tmp_path / "empty",), "needs recordings of a known format"),
        (("speech", path), "leave test out"),
        ((path, path), "needs two files"),
        ((path, link), "needs two files"),
        ((path, tmp_path / "missing.h5"), "no such file"),
        ((small,), "3 samples in small.h5"),
    ]:
        with pytest.raises(RanvierError) as error:
            data.load(arguments[0], test=arguments[1] if len(arguments) > 1 else None)
        assert says in one_line(error)


def test_names():
    assert data.names()[:3] == ("speech", "yinyang", "delays") and "shd" in data.names()


# Yin-Yang


@pytest.mark.parametrize(
    ("which", "digest"),
    [
        (yinyang.TRAIN, "3dcfbb1895fd5f75"),
        (yinyang.VALIDATION, "03d1c9e01d7b2ab9"),
        (yinyang.TEST, "01e8a4f15d4b0d4d"),
    ],
)
def test_points_are_the_published_ones(which, digest):
    features, labels = yinyang.points(*which)
    assert hashlib.sha256(features.astype("<f8").tobytes() + labels.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_yinyang_is_one_spike_a_coordinate():
    splits = data.load("yinyang")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [5000, 1000, 1000]
    features, labels = yinyang.points(*yinyang.TEST)
    test = splits.test
    assert np.array_equal(test.labels, labels) and test.n_channels == 4 and test.class_names == ("yin", "yang", "dot")
    for i in range(50):
        row = slice(4 * i, 4 * i + 4)
        assert sorted(test.channels[row]) == [0, 1, 2, 3]
        assert np.all(np.diff(test.times[row]) >= 0)
        assert np.allclose(test.times[row], 0.1 + 4.0 * features[i, test.channels[row]], rtol=0, atol=1e-6)
    later = yinyang.encode(features, labels, t_early=1.0, t_late=2.0)
    assert 1.0 <= later.times.min() and later.latest <= 2.0


# Packed and shipped


def grid(dataset: Dataset) -> list[tuple]:
    """All events as sorted (sample, millisecond, channel)."""
    sample = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    return sorted(
        zip(sample.tolist(), np.floor(dataset.times).astype(int).tolist(), dataset.channels.tolist(), strict=True)
    )


@pytest.mark.parametrize("scale", [0.1, 1, 1e5])
def test_packing_loses_nothing_but_fractions_of_a_millisecond(tmp_path, scale):
    source = random_dataset()
    source = Dataset(**{**vars(source), "times": source.times * np.float32(scale)})
    packed.pack(tmp_path / "a.packed", source)
    back = packed.unpack(tmp_path / "a.packed", "back")
    assert grid(back) == grid(source)
    assert len(set(grid(source))) < len(source.times) or scale > 0.1, "the smallest scale has equal events"
    for name in ("offsets", "labels", "speaker"):
        assert np.array_equal(getattr(back, name), getattr(source, name))
    assert (back.name, back.n_channels, back.class_names) == ("back", 12, source.class_names)
    assert all(np.all(np.diff(back.times[a:b]) >= 0) for a, b in zip(back.offsets[:-1], back.offsets[1:], strict=True))
    if scale <= 1:
        assert np.array_equal(back.times % 1, np.full(len(back.times), 0.5))


def test_what_cannot_be_packed_is_refused(tmp_path):
    whole = random_dataset()
    for changes in ({"speaker": None}, {"times": whole.times * np.float32(1e9)}):
        with pytest.raises(RanvierError) as error:
            packed.pack(tmp_path / "a.packed", Dataset(**{**vars(whole), **changes}))
        one_line(error)


def test_packing_script(tmp_path):
    script = runpy.run_path(str(ROOT / "tools/pack_speech.py"))
    for part in ("train", "test"):
        write(tmp_path / f"{part}.h5")
    script["main"]([str(tmp_path / "train.h5"), str(tmp_path / "test.h5"), "--folder", str(tmp_path)])
    assert grid(packed.unpack(tmp_path / "test.packed", "a")) == grid(hdf5.read(tmp_path / "test.h5")[0])


@pytest.fixture(scope="module")
def shipped():
    return data.load("speech")


def test_shipped_parts(shipped):
    train, validation, test = shipped.train, shipped.validation, shipped.test
    assert [len(part) for part in (train, validation, test)] == [400, 200, 360]
    assert [len(part.times) for part in (train, validation, test)] == [2_729_081, 1_349_196, 2_441_102]
    for part in (train, validation, test):
        assert part.n_channels == 700 and part.n_classes == 20 and 0 <= part.channels.min() <= part.channels.max() < 700
        assert np.unique(np.bincount(part.labels)).size == 1
    assert train.class_names[:2] == ("zero", "one") and train.class_names[15] == "fünf"
    assert max(part.latest for part in (train, validation, test)) == 1124.5
    assert max(part.max_events for part in (train, validation, test)) == 15_250
    assert set(train.speaker) == set(validation.speaker) == set(range(10))
    known, unseen = shipped.test_groups["known voices"], shipped.test_groups["unseen voices"]
    assert (len(known), len(unseen)) == (200, 160) and np.array_equal(np.sort([*known, *unseen]), np.arange(360))
    assert set(test.speaker[known]) == set(range(10)) and set(test.speaker[unseen]) == {10, 11}
    card = (speech.FOLDER / "README.md").read_text()
    for count in (
        len(train.times),
        len(validation.times),
        len(test.subset(known).times),
        len(test.subset(unseen).times),
    ):
        assert f"{count:,}" in card


def test_shipped_takes_do_not_overlap(shipped):
    """One take of each voice and class validates, two train; no two samples of any part have the same events."""
    for part, takes in ((shipped.train, 2), (shipped.validation, 1)):
        pairs = part.speaker * 20 + part.labels
        assert np.array_equal(np.bincount(pairs), np.full(200, takes))
    digests = [
        hashlib.sha256(part.times[a:b].tobytes() + part.channels[a:b].tobytes()).digest()
        for part in (shipped.train, shipped.validation, shipped.test)
        for a, b in zip(part.offsets[:-1], part.offsets[1:], strict=True)
    ]
    assert len(set(digests)) == 960


def test_validation_is_the_last_take_in_file_order():
    dataset = random_dataset(40)
    expected = {}
    for i in range(40):
        expected[speakers(dataset)[i], dataset.labels[i]] = i
    assert speech.last_takes(dataset).tolist() == sorted(expected.values())


@pytest.mark.parametrize(("part", "digest"), [("train", "d83db53e683ed985"), ("test", "1f88851db1800b21")])
def test_shipped_events_are_the_packed_ones(part, digest):
    """The digest was taken when the events equalled those of the source on the 1 ms grid."""
    dataset = packed.unpack(speech.FOLDER / f"{part}.packed", "speech")
    assert np.array_equal(np.unique(dataset.times % 1), [0.5])
    arrays = (np.floor(dataset.times), dataset.channels, dataset.offsets, dataset.labels, speakers(dataset))
    assert hashlib.sha256(b"".join(a.astype("<i8").tobytes() for a in arrays)).hexdigest()[:16] == digest


def test_shipped_files_are_small_and_load_quickly():
    assert sum(file.stat().st_size for file in speech.FOLDER.iterdir()) < 6e6
    started = time.process_time()
    data.load("speech")
    assert time.process_time() - started < 1.0


def test_importing_reads_no_file():
    code = (
        "import sys\n"
        "opened = []\n"
        "import jax.numpy\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(str(args[0])))\n"
        "import ranvier.data\n"
        "print([name for name in opened if not name.endswith(('.py', '.pyc'))], 'h5py' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.stdout.strip() == "[] False", done.stderr
