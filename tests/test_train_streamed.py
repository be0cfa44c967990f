"""Training on samples that are sent batch by batch: the bits of training on samples that are on the device."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ranvier import train
from ranvier.config import Config
from ranvier.data import Splits, stream
from ranvier.data.dataset import Dataset
from ranvier.data.recordings import to_device
from ranvier.data.stream import Streamed, too_large
from ranvier.errors import RanvierError
from ranvier.runs import Run
from ranvier.train import evaluate, fit
from tests.test_augment import room as room
from tests.test_recordings import dataset as uneven
from tests.test_train import assert_equal, assert_same_run, dataset, trained
from tests.toy import TOY

pytestmark = pytest.mark.usefixtures("quick_compiler")

# Blending asks for samples that are not in the batch.
CONFIG = replace(TOY, net="0", recurrent=False, dt=2.0, duration=20.0, epochs=2, augment_blend=0.5)
STREAMED = replace(CONFIG, stream="on")


@pytest.fixture(scope="module")
def splits():
    return Splits(dataset(20, 0), dataset(10, 1), dataset(10, 2), {"odd": np.arange(1, 10, 2)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, splits):
    return trained(tmp_path_factory.mktemp("whole") / "run", CONFIG, splits)


def threads():
    return sum(thread.name.startswith("ranvier stream") for thread in threading.enumerate())


def test_a_streamed_run_equals_one_on_the_device(whole, splits, tmp_path, monkeypatch):
    sent = []
    part = Streamed._part
    monkeypatch.setattr(Streamed, "_part", lambda self, n, indices: sent.append(len(indices)) or part(self, n, indices))
    run, recorder, report = trained(tmp_path / "run", STREAMED, splits)
    assert_same_run(whole[0], run)
    assert_equal(whole[2].network, report.network)
    assert recorder.notes == whole[1].notes and threads() == 0
    # 2 x 3 updates with classmates; 3 x 2 batches of validation samples and 2 of test samples.
    assert (sent.count(16), sent.count(8)) == (6, 8)


@pytest.mark.parametrize("stop", [1, 4])
def test_resume_equals_an_uninterrupted_run(whole, splits, tmp_path, stop):
    run, recorder, report = trained(tmp_path / "run", STREAMED, splits, stop=stop)
    assert report.stopped and len(recorder.steps) == stop and threads() == 0
    fit(STREAMED, splits, Run.open(run.folder), resume=True)
    assert_same_run(whole[0], run)


def test_an_update_without_room_is_done_again(whole, splits, tmp_path, monkeypatch):
    real, refused = train._train_step, []

    def step(state, going, part, indices, weight, update, **options):
        result = real(state, going, part, indices, weight, update, **options)
        if update != 1 or refused:
            return result
        refused.append(update)
        return result._replace(going=np.False_, state=state, fits=np.False_)

    monkeypatch.setattr(train, "_train_step", step)
    monkeypatch.setattr(train._SpaceModel, "more_room", lambda self, limits, result: limits)
    monkeypatch.setattr(train, "BLOCK", 2)  # the second block is refused at its first update
    monkeypatch.setattr(train, "BLOCK_SECONDS", 1e9)
    run, _, _ = trained(tmp_path / "run", STREAMED, splits)
    assert refused and threads() == 0
    assert_same_run(whole[0], run)


def test_evaluate(whole, splits):
    network = whole[2].network
    assert evaluate(network, splits.test, STREAMED) == evaluate(network, splits.test, CONFIG)


def test_batches_are_those_of_recordings():
    data, order = uneven(), np.array([[0, 3], [5, 1], [2, 2], [4, 0]])
    mates = np.array([[2, 3], [0, 4], [5, 0], [1, 2]])
    device, streamed = to_device(data, 7), Streamed(data, 7)
    assert len(streamed) == len(device) == 6
    with streamed.feed(order, mates) as feed:
        # Back, and from there on; past batches.
        for k in (0, 1, 2, 1, 2, 3, 0, 3):
            part, indices = feed[k]
            assert_equal(part.batch(indices), device.batch(order[k]))
            assert_equal(part.batch(part.classmates(jax.random.key(0), indices)), device.batch(mates[k]))
            np.testing.assert_array_equal(part.label[indices], data.labels[order[k]])
            assert part.latest == device.latest and part.row == device.row
            assert threads() <= stream.AHEAD
    assert threads() == 0
    part, indices = streamed.at(order[1])
    assert_equal(part.batch(indices), device.batch(order[1]))
    with pytest.raises(RanvierError, match="got 2 samples of a larger data set; needs their classmates"):
        part.classmates(jax.random.key(0), indices)


def test_what_goes_wrong(monkeypatch):
    class Broken(Dataset):
        def subset(self, indices):
            raise OSError("the disk is gone")

    with Streamed(Broken(**vars(uneven()))).feed(np.array([[0, 1]])) as feed, pytest.raises(OSError, match="is gone"):
        feed[0]
    with pytest.raises(RanvierError, match="got row 4 for data set toy; needs at least 5"):
        Streamed(uneven(), 4)
    monkeypatch.setattr(stream, "MOST_EVENTS", 9)
    with pytest.raises(RanvierError, match="batches of 2 samples with up to 5 events; needs at most 9 in all"):
        Streamed(uneven()).feed(np.array([[0, 1]]))


@pytest.mark.parametrize(
    ("platform", "memory", "expected"),
    [
        ("cpu", {"bytes_limit": 1}, False),
        ("gpu", None, False),
        # 16 events and 6 samples take 224 bytes.
        ("gpu", {"bytes_limit": 448}, False),
        ("gpu", {"bytes_limit": 447}, True),
        ("gpu", {"bytes_limit": 900, "bytes_in_use": 453}, True),
    ],
)
def test_auto(monkeypatch, platform, memory, expected):
    device = SimpleNamespace(platform=platform, memory_stats=lambda: memory)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert too_large([uneven()]) == expected
    assert [train._streams(Config(stream=x), [uneven()]) for x in ("auto", "on", "off")] == [expected, True, False]
    monkeypatch.setattr(stream, "MOST_EVENTS", 15)
    assert too_large([uneven()]) == (platform != "cpu")
