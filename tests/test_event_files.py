"""Readers of event recordings against plain loops, and each of them with broken files."""

import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from ranvier.data import aedat, gesture, hdf5, hdf5_process, hdf5_writer, nmnist, store
from ranvier.data.convert import convert, source_of
from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError
from tests import event_files
from tests.event_files import TEXT, packet

N_BROKEN = 1000


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message and message.count(";") >= 2, message
    return message


# 40-bit records


def records_by_loop(raw: bytes, height: int = 34, width: int = 34) -> list[tuple[float, int]]:
    events, added = [], 0
    for i in range(0, len(raw), 5):
        x, y, b, c, d = raw[i : i + 5]
        if y == 240:
            added += 2**13
            continue
        us = ((b & 127) << 16 | c << 8 | d) + added
        events.append((us, ((b >> 7) * height + y) * width + x))
    return sorted(events, key=lambda event: event[0])


def test_records_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    blobs = []
    for n in (50, 0, 1, 80):
        raw = bytearray(event_files.random_nmnist(rng, n))
        for i in range(0, n, 7):  # marks that the clock has wrapped; the first record is one, too
            raw[5 * i + 1] = 240
        blobs.append(bytes(raw))
    piece = nmnist.decode(list("abcd"), blobs)
    starts = np.cumsum(piece.counts) - piece.counts
    for i, raw in enumerate(blobs):
        expected = records_by_loop(raw)
        part = slice(starts[i], starts[i] + piece.counts[i])
        np.testing.assert_array_equal(piece.times[part], np.array([us / 1000 for us, _ in expected], np.float32))
        assert piece.channels[part].tolist() == [channel for _, channel in expected]
    assert piece.notes == ("b: no events; kept as an empty sample (and 1 more like it)",)


def test_the_clock_of_a_file_does_not_reach_the_next():
    wrapped = event_files.nmnist_bytes([0, 0, 3], [0, 240, 2], [0, 0, 1], [100, 0, 50])
    piece = nmnist.decode(["a", "b"], [wrapped, event_files.nmnist_bytes([1], [1], [0], [7])])
    np.testing.assert_allclose(piece.times, [0.1, 0.05 + 8.192, 0.007], rtol=1e-6)
    assert piece.counts.tolist() == [2, 1] and piece.channels.tolist() == [0, 34 * 34 + 2 * 34 + 3, 35]


def test_unsorted_records_are_sorted_and_noted():
    piece = nmnist.decode(["a.bin"], [event_files.nmnist_bytes([5, 6], [0, 0], [0, 0], [9000, 2000])])
    assert piece.channels.tolist() == [6, 5] and piece.notes == ("a.bin: unsorted times; sorted",)


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"\0" * 7, "b.bin: got 7 bytes; needs whole records"),
        (event_files.nmnist_bytes([0, 34], [0, 0], [0, 0], [0, 1]), "b.bin: got record 1 at x 34, y 0"),
        (event_files.nmnist_bytes([3], [239], [0], [0]), "record 0 at x 3, y 239"),
    ],
)
def test_broken_records_are_named(blob, says):
    with pytest.raises(RanvierError) as error:
        nmnist.decode(["a.bin", "b.bin"], [event_files.nmnist_bytes([0], [0], [0], [0]), blob])
    assert says in one_line(error)


# AEDAT 3.1


def packets_by_loop(raw: bytes, side: int = 128) -> list[tuple[int, int]]:
    at = raw.index(b"#!END-HEADER\r\n") + len(b"#!END-HEADER\r\n")
    events = []
    while at < len(raw):
        kind, _, size, _, wraps, capacity, number, _ = struct.unpack_from("<HHIIIIII", raw, at)
        for i in range(number if kind == 1 else 0):
            data, us = struct.unpack_from("<II", raw, at + 28 + i * size)
            if data & 1:
                x, y, p = (data >> 17) & 0x1FFF, (data >> 2) & 0x1FFF, (data >> 1) & 1
                events.append((us + wraps * 2**31, (p * side + y) * side + x))
        at += 28 + capacity * size
    return events


def test_type_number_and_valid_are_honoured(tmp_path):
    rng = np.random.default_rng(2)
    parts = []
    for k in range(6):
        n = 20 + k
        x, y, p = rng.integers(0, 128, n), rng.integers(0, 128, n), rng.integers(0, 2, n)
        us = np.sort(rng.integers(k * 1000, (k + 1) * 1000, n))
        there = rng.integers(0, 2, n) if k % 2 else None
        parts.append(packet(x, y, p, us, there=there, capacity=n + (5 if k == 3 else 0), kind=2 if k == 4 else 1))
    parts.append(packet([1], [2], [1], [3], wraps=1))
    raw = TEXT + b"".join(parts)
    path = tmp_path / "a.aedat"
    path.write_bytes(raw)
    us, channels, notes = aedat.read(path)
    assert list(zip(us.tolist(), channels.tolist(), strict=True)) == packets_by_loop(raw)
    assert us[-1] == 2**31 + 3 and notes == ()


def test_a_wrong_number_of_valid_events_is_noted(tmp_path):
    path = tmp_path / "a.aedat"
    path.write_bytes(TEXT + packet([1, 2], [1, 2], [0, 0], [5, 6], there=[1, 0], valid=2))
    us, _, notes = aedat.read(path)
    assert us.tolist() == [5] and "says 2 valid events and has 1" in notes[0]


def test_events_that_only_the_header_calls_valid_are_taken(tmp_path):
    path = tmp_path / "a.aedat"
    none = [0, 0]
    unmarked = packet([1, 2], [1, 2], none, [5, 6], there=none, valid=2) + packet([], [], [], [], capacity=1)
    path.write_bytes(TEXT + unmarked + packet([3, 4], [3, 4], none, [7, 8], there=none))
    us, channels, notes = aedat.read(path)
    assert us.tolist() == [5, 6] and channels.tolist() == [129, 258]
    assert notes == ("a.aedat: packet 0 at byte 61 says 2 valid events and marks none; all taken",)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "needs AEDAT 3.1"),
        (b"#!AER-DAT2.0\r\n", "needs AEDAT 3.1"),
        (TEXT[:-16] + packet([1], [1], [1], [1]), "#!END-HEADER"),
        (TEXT + packet([1], [1], [1], [1])[:20], "packet 0 at byte 61 ends in its header"),
        (TEXT + packet([1], [1], [1], [1])[:-1], "packet 0 at byte 61 of 8 bytes, with 7 left"),
        (TEXT + packet([1], [1], [1], [1], number=3, valid=1), "number 3"),
        (TEXT + packet([1], [1], [1], [1], valid=2), "valid 2"),
        (TEXT + packet([1], [1], [1], [1], kind=99), "type 99"),
        (TEXT + packet([128], [1], [1], [1]), "x 128, y 1"),
        (TEXT + packet([1], [1], [1], [1]) + packet([1], [300], [1], [1]), "packet 1 at byte 97 with an event at x 1"),
        (TEXT + packet([1], [1], [1], [2**31]), f"{2**31} us"),
    ],
)
def test_broken_packets_are_named(tmp_path, raw, says):
    path = tmp_path / "a.aedat"
    path.write_bytes(raw)
    with pytest.raises(RanvierError) as error:
        aedat.read(path)
    assert says in one_line(error) and "a.aedat" in str(error.value)


def test_gestures_are_cut_out(tmp_path):
    root = event_files.gesture_folder(tmp_path / "g", users=(7,), gestures=4)
    path = root / "user07_led.aedat"
    piece = gesture.decode(path)
    us, channels, _ = aedat.read(path)
    starts = np.cumsum(piece.counts) - piece.counts
    for k in range(4):
        inside = (us >= k * 250_000) & (us < (k + 1) * 250_000)
        part = slice(starts[k], starts[k] + piece.counts[k])
        assert piece.counts[k] == inside.sum() > 0
        np.testing.assert_allclose(piece.times[part], (us[inside] - k * 250_000) / 1000, rtol=1e-6)
        np.testing.assert_array_equal(piece.channels[part], channels[inside])
    assert piece.labels.tolist() == [0, 1, 2, 3] and piece.speaker.tolist() == [7] * 4 and not piece.notes


def test_a_table_as_published(tmp_path):
    # As those of the published set are: a class twice, and two classes not in the order of their numbers.
    kinds = [1, 2, 3, 5, 4, 6, 7, 8, 8, 9, 10, 11]
    path = event_files.gesture_folder(tmp_path / "g", users=(1,)) / "user01_led.aedat"
    rows = [f"{kind},{80_000 * i},{80_000 * i + 70_000}" for i, kind in enumerate(kinds)]
    gesture.table_of(path).write_text("\r\n".join(["class,startTime_usec,endTime_usec", *rows, ""]))
    piece = gesture.decode(path)
    us, channels, _ = aedat.read(path)
    inside = (us < 960_000) & (us % 80_000 < 70_000)
    assert piece.labels.tolist() == [kind - 1 for kind in kinds] and not piece.notes
    assert piece.counts.tolist() == np.bincount(us[inside] // 80_000).tolist()
    np.testing.assert_array_equal(piece.channels, channels[inside])


def test_gestures_that_overlap_are_said(tmp_path):
    path = event_files.gesture_folder(tmp_path / "g", users=(7,), gestures=4) / "user07_led.aedat"
    table = gesture.table_of(path)
    table.write_text(table.read_text().replace("2,250000,500000", "2,250000,600000"))
    (note,) = gesture.decode(path).notes
    assert note.startswith("WARNING: user07_led_labels.csv: class 2 ends at 600000 us, after class 3 starts at 500000")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class,start,end\n", "no gesture"),
        ("class,start,end\n1,2\n", "line 2: '1,2'"),
        ("12,0,5\n", "class 12 from 0 to 5"),
        ("0,0,5\n", "class 0"),
        ("1,5,5\n", "from 5 to 5 us"),
        ("1,-5,5\n", "line 1: '1,-5,5'"),
        ("1,0,1e9\n", "line 1"),
        ("1,0,5\n2,0," + "9" * 30, "line 2"),
    ],
)
def test_broken_tables_are_named(tmp_path, text, says):
    (tmp_path / "a_labels.csv").write_text(text)
    with pytest.raises(RanvierError) as error:
        gesture.gestures(tmp_path / "a_labels.csv")
    assert says in one_line(error)


def test_trials(tmp_path):
    root = event_files.gesture_folder(tmp_path / "g")
    (root / "trials_to_train.txt").write_text("user01_led.aedat\n\nuser02_led.aedat\n")
    assert [path.name for path in gesture.trials(root / "trials_to_train.txt")] == [
        "user01_led.aedat",
        "user02_led.aedat",
    ]
    (root / "trials_to_train.txt").write_text("user01_led.aedat\nuser09_led.aedat\n")
    with pytest.raises(RanvierError, match="1 of 2 recordings missing, the first user09_led.aedat"):
        gesture.trials(root / "trials_to_train.txt")


# Conversion


def same(a: Dataset, b: Dataset) -> None:
    for name in ("times", "channels", "offsets", "labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.n_channels, a.class_names, a.sensor) == (b.n_channels, b.class_names, b.sensor)


def test_a_folder_and_its_archive_are_the_same(tmp_path):
    root = event_files.nmnist_folder(tmp_path / "Train", 3)
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in root.rglob("*.bin"):
            archive.write(path, f"Train/{path.relative_to(root)}")
    sets = []
    for source in (root, tmp_path / "train.zip"):
        convert(source_of(source), tmp_path / "out.events", jobs=2)
        sets.append(store.read(tmp_path / "out.events")[0])
    same(*sets)
    assert len(sets[0]) == 30 and sets[0].class_names == tuple("0123456789") and sets[0].sensor == (2, 34, 34)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Train", "out.events", "train.zip"], "nothing is left behind"


def test_every_format_becomes_every_other(tmp_path):
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 9, 25)
    first = Dataset(
        "a",
        np.concatenate([np.sort(rng.uniform(0, 90, n)) for n in counts]).astype(np.float32),
        rng.integers(0, 12, counts.sum()).astype(np.int32),
        np.concatenate([[0], np.cumsum(counts)]),
        (np.arange(25) % 4).astype(np.int32),
        12,
        ("w", "x", "y", "z"),
        (np.arange(25) % 3).astype(np.int32),
    )
    store.write(tmp_path / "a.events", first)
    for source, out in (("a.events", "b.h5"), ("b.h5", "c.h5.gz"), ("c.h5.gz", "d.events"), ("b.h5", "e.events")):
        convert(source_of(tmp_path / source), tmp_path / out)
    for name in ("d.events", "e.events"):
        last, notes = store.read(tmp_path / name)
        np.testing.assert_allclose(last.times, first.times, rtol=1e-6)
        for field in ("channels", "offsets", "labels", "speaker"):
            np.testing.assert_array_equal(getattr(last, field), getattr(first, field))
        assert last.class_names == first.class_names and "samples without events" in notes[0]
        assert last.n_channels == 12


def test_a_file_of_a_camera_keeps_its_sensor(tmp_path):
    event_files.nmnist_folder(tmp_path / "n", 2)
    for source, out in (("n", "n.h5"), ("n.h5", "n.h5.gz"), ("n.h5.gz", "n.events")):
        convert(source_of(tmp_path / source), tmp_path / out)
    whole = store.read(tmp_path / "n.events")[0]
    assert whole.sensor == (2, 34, 34)
    same(whole, hdf5.read(tmp_path / "n.h5")[0])


def test_a_stopped_conversion_goes_on(tmp_path, monkeypatch):
    from ranvier.data import convert as module

    monkeypatch.setattr(module, "RECORDS_A_PIECE", 4)
    root = event_files.nmnist_folder(tmp_path / "a", 2)
    source = source_of(root)
    assert len(source.pieces) == 5
    read = []

    def spoiled(i, piece):
        def call():
            if i >= 3 and None not in read:
                raise KeyboardInterrupt
            read.append(i)
            return piece()

        return call

    pieces = [spoiled(i, piece) for i, piece in enumerate(source.pieces)]
    stopped = module.Source(**{**vars(source), "pieces": pieces})
    with pytest.raises(KeyboardInterrupt):
        convert(stopped, tmp_path / "a.events", jobs=1)
    assert not (tmp_path / "a.events").exists() and read == [0, 1, 2]
    (work,) = tmp_path.glob(".a.events.*.work")
    part = sorted(work.iterdir())[1]
    part.write_bytes(part.read_bytes()[:-3])  # cut when the machine stopped
    read.append(None)
    seen = []
    convert(stopped, tmp_path / "a.events", jobs=1, progress=lambda done, total: seen.append((done, total)))
    assert read[4:] == [1, 3, 4] and seen == [(i, 5) for i in range(1, 6)]
    monkeypatch.undo()
    convert(source_of(root), tmp_path / "b.events")
    same(store.read(tmp_path / "a.events")[0], store.read(tmp_path / "b.events")[0])


def test_keys_differ_with_all_that_matters(tmp_path):
    from ranvier.data.convert import key_of

    root = event_files.nmnist_folder(tmp_path / "a", 1)
    keys = {key_of(source_of(root)), key_of(source_of(root, sensor=(40, 40)))}
    assert key_of(source_of(root)) in keys
    (root / "0" / "00000.bin").write_bytes(b"\0" * 5)
    keys.add(key_of(source_of(root)))
    keys.add(key_of(source_of(event_files.gesture_folder(tmp_path / "g"))))
    assert len(keys) == 4


def test_what_is_no_recording_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    event_files.nmnist_folder(tmp_path / "both" / "Train", 1)
    event_files.nmnist_folder(tmp_path / "both" / "Test", 1)
    for name, says in [
        ("empty", "needs recordings of a known format"),
        ("a.zip", "a.zip"),
        ("b.h5", "cannot be read"),
        ("nowhere", "no such file"),
        ("both", "2 groups of classes (Test, Train)"),
        ("both/Test/3", "1 .bin files in no folder; needs one folder a class; name the folder above"),
    ]:
        with pytest.raises(RanvierError) as error:
            source_of(tmp_path / name)
        assert says in one_line(error)
    root = event_files.nmnist_folder(tmp_path / "n", 1)
    (root / "3" / "00000.bin").write_bytes(b"\0" * 6)
    with pytest.raises(RanvierError, match="3/00000.bin: got 6 bytes"):
        convert(source_of(root), tmp_path / "n.events")
    with pytest.raises(RanvierError, match="an ending that is not known"):
        convert(source_of(root), tmp_path / "n.txt")


# Broken files, many of them


def broken(raw: bytes, rng: np.random.Generator) -> bytes:
    """The file cut at some byte, or with up to 8 bytes changed; half of the changes are near the beginning."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return raw[: rng.integers(0, len(raw))]
    changed = bytearray(raw)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(0, min(len(raw), 200) if kind == 1 else len(raw))] ^= 1 << rng.integers(0, 8)
    return bytes(changed)


def replace(path: Path, blob: bytes) -> None:
    path.unlink()  # cutting a file that is there may wait for the disk
    path.write_bytes(blob)


def check(dataset_or_piece, n_channels: int) -> None:
    times, channels = dataset_or_piece.times, dataset_or_piece.channels
    assert np.isfinite(times).all() and (times >= 0).all()
    assert len(channels) == len(times) and ((channels >= 0) & (channels < n_channels)).all()


def tally(read, raw: bytes, n_channels: int, seed: int) -> int:
    """How many of 1,000 broken files were refused, each in one line; the rest has to make sense."""
    rng = np.random.default_rng(seed)
    refused = 0
    for _ in range(N_BROKEN):
        try:
            check(read(broken(raw, rng)), n_channels)
        except RanvierError as error:
            assert "\n" not in str(error)
            refused += 1
    return refused


def test_a_thousand_broken_record_files():
    raw = event_files.random_nmnist(np.random.default_rng(0), 60)
    assert tally(lambda blob: nmnist.decode(["a.bin"], [blob]), raw, 2312, 0) > 400


def test_a_thousand_broken_recordings(tmp_path):
    root = event_files.gesture_folder(tmp_path / "g", users=(1,), n_events=120)
    path = root / "user01_led.aedat"
    raw = path.read_bytes()

    def read(blob):
        replace(path, blob)
        us, channels, _ = aedat.read(path)
        return SimpleNamespace(times=us, channels=channels)

    assert tally(read, raw, 32768, 1) > 500


def test_a_thousand_broken_tables(tmp_path):
    root = event_files.gesture_folder(tmp_path / "g", users=(1,), n_events=5)
    table = root / "user01_led_labels.csv"
    raw = table.read_bytes()

    def read(blob):
        replace(table, blob)
        rows = gesture.gestures(table)
        assert ((rows[:, 0] < 11) & (rows[:, 1] < rows[:, 2])).all()
        return SimpleNamespace(times=rows[:, 1], channels=rows[:, 0])

    assert tally(read, raw, 11, 2) > 200


def small(n: int = 8) -> Dataset:
    rng = np.random.default_rng(5)
    times = np.concatenate([np.sort(rng.uniform(0, 100, 6)) for _ in range(n)]).astype(np.float32)
    channels = rng.integers(0, 20, 6 * n).astype(np.int32)
    labels = (np.arange(n) % 2).astype(np.int32)
    return Dataset("s", times, channels, np.arange(n + 1) * 6, labels, 20, ("a", "b"), labels)


def test_a_thousand_broken_hdf5_files(tmp_path, monkeypatch):
    """Some of them end the HDF5 library or keep it for ever; its process is ended and the file is named."""
    monkeypatch.setattr(hdf5_process, "PATIENCE_S", 0.3)
    path = tmp_path / "a.h5"
    hdf5_writer.write(path, small())
    raw = path.read_bytes()

    def read(blob):
        replace(path, blob)
        return hdf5.read(path, n_channels=20)[0]

    assert tally(read, raw, 20, 3) > 300


def test_a_thousand_broken_stores(tmp_path):
    path = tmp_path / "a.events"
    store.write(path, small(), key="k", notes=["n"])
    raw = path.read_bytes()
    whole = store.read(path)[0]
    # The gaps between the arrays are no content: broken there, a store is what it was.
    rng = np.random.default_rng(4)
    for _ in range(N_BROKEN):
        replace(path, broken(raw, rng))
        try:
            same(store.read(path)[0], whole)
        except RanvierError as error:
            assert "\n" not in str(error)


def test_events_outside_are_not_taken_by_h5(tmp_path):
    path = tmp_path / "a.h5"
    hdf5_writer.write(path, small())
    with h5py.File(path, "r+") as file:
        row = file["spikes/units"][3]
        row[0] = 20
        file["spikes/units"][3] = row
    with pytest.raises(RanvierError, match="sample 3 has unit 20"):
        hdf5.read(path, n_channels=20, start=2)
