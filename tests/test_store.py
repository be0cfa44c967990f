"""The store: what was written comes back as maps of the file; anything else is refused."""

import numpy as np
import pytest

from ranvier.data import Dataset, store
from ranvier.errors import RanvierError
from tests.test_event_files import same, small


def test_what_was_written_comes_back(tmp_path):
    data = small()
    store.write(tmp_path / "deep" / "a.events", data, key="abc", notes=["one", "zwei ü"])
    back, notes = store.read(tmp_path / "deep" / "a.events")
    same(back, data)
    np.testing.assert_array_equal(back.speaker, data.speaker)
    assert (back.name, notes, store.key_in(tmp_path / "deep" / "a.events")) == ("s", ("one", "zwei ü"), "abc")
    assert back.times.dtype == np.float32 and not back.times.flags.writeable and not back.times.flags.owndata
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.events"]


def test_nothing_at_all(tmp_path):
    none = np.zeros(0, np.int32)
    data = Dataset("n", np.zeros(0, np.float32), none, np.zeros(1, np.int64), none, 5, ("a",), sensor=(1, 1, 5))
    store.write(tmp_path / "a.events", data)
    back = store.read(tmp_path / "a.events")[0]
    assert len(back) == 0 and back.sensor == (1, 1, 5) and back.speaker is None


def test_parts_are_joined(tmp_path):
    data = small(8)
    parts = [data.subset(np.arange(0, 3)), data.subset(np.arange(3, 8))]
    store.join(tmp_path / "a.events", parts, name="s")
    same(store.read(tmp_path / "a.events")[0], data)
    with pytest.raises(RanvierError, match="different channels"):
        store.join(tmp_path / "a.events", [data, Dataset(**{**vars(data), "n_channels": 21})], name="s")
    same(store.read(tmp_path / "a.events")[0], data)


def test_neighbours_stay_in_the_file(tmp_path):
    store.write(tmp_path / "a.events", small())
    data = store.read(tmp_path / "a.events")[0]
    assert np.shares_memory(data.subset([2, 3, 4]).times, data.times)
    np.testing.assert_array_equal(data.subset([2, 3, 5]).times, np.concatenate([data.times[12:24], data.times[30:36]]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw[:-1], "bytes; needs"),
        (lambda raw: raw[:20], "no store"),
        (lambda raw: b"x" + raw[1:], "no store"),
        (lambda raw: raw[:8] + b"\7" + raw[9:], "version 7"),
        (lambda raw: raw[:4100] + b"\xff" + raw[4101:], "times that were changed"),
        (lambda raw: raw[:-2] + b"  ", "a header that was changed"),
    ],
)
def test_a_changed_store_is_refused(tmp_path, change, says):
    path = tmp_path / "a.events"
    store.write(path, small())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RanvierError) as error:
        store.read(path)
    assert says in str(error.value) and "a.events" in str(error.value) and str(error.value).count(";") >= 2


def test_large_stores_are_compared_by_verify_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.events"
    store.write(path, small())
    raw = bytearray(path.read_bytes())
    raw[4100] ^= 255
    path.write_bytes(raw)
    monkeypatch.setattr(store, "CHECKED_BYTES", 0)
    store.read(path)
    with pytest.raises(RanvierError, match="times that were changed"):
        store.verify(path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RanvierError, match="cannot be written"):
        store.write(tmp_path / "file" / "a.events", small())
