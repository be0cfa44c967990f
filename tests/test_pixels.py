"""Fewer pixels of an event camera, against a loop over events."""

from dataclasses import replace

import numpy as np
import pytest

from ranvier import cli, data
from ranvier.config import Config
from ranvier.data import Dataset, Splits, downsample
from ranvier.errors import RanvierError

SENSOR = (2, 7, 10)


def camera(n=4, events=60, sensor=SENSOR):
    rng = np.random.default_rng(1)
    return Dataset(
        "toy",
        np.sort(rng.uniform(0, 9, (n, events)).astype(np.float32)).reshape(-1),
        rng.integers(0, np.prod(sensor), n * events).astype(np.int32),
        events * np.arange(n + 1),
        np.arange(n, dtype=np.int32) % 2,
        int(np.prod(sensor)),
        ("a", "b"),
        np.arange(n, dtype=np.int32),
        sensor=sensor,
    )


@pytest.mark.parametrize(("factor", "shape"), [(2, (4, 5)), (3, (3, 4)), (7, (1, 2)), (10, (1, 1))])
def test_squares_are_joined(factor, shape):
    before = camera()
    after = downsample(before, factor)
    assert after.sensor == (2, *shape) and after.n_channels == 2 * shape[0] * shape[1]
    assert after.channels.dtype == np.int32
    # Counts of the pixels of a square add up.
    wanted = np.zeros((2, *shape), int)
    for channel, joined in zip(before.channels, after.channels, strict=True):
        p, y, x = np.unravel_index(channel, SENSOR)
        wanted[p, y // factor, x // factor] += 1
        assert joined == np.ravel_multi_index((p, y // factor, x // factor), (2, *shape))
    assert (np.bincount(after.channels, minlength=after.n_channels).reshape(wanted.shape) == wanted).all()
    for name in ("times", "offsets", "labels", "speaker"):
        assert getattr(after, name) is getattr(before, name)
    assert np.isfinite(after.batch([1, 3]).time).sum() == 120


def test_a_factor_of_one_changes_nothing():
    assert downsample(before := camera(), 1) is before


@pytest.mark.parametrize(
    ("sensor", "factor", "message"),
    [(None, 2, "no pixels; needs .*camera"), (SENSOR, 0, "from 1 to 10"), (SENSOR, 11, "from 1 to 10")],
)
def test_what_cannot_be_joined_is_refused(sensor, factor, message):
    with pytest.raises(RanvierError, match=message) as caught:
        downsample(replace(camera(), sensor=sensor), factor)
    assert "\n" not in str(caught.value)


def test_the_option_meets_all_parts(monkeypatch):
    whole = camera(10)
    parts = [whole.subset(np.arange(*ends)) for ends in ((0, 6), (6, 8), (8, 10))]
    monkeypatch.setattr(data, "load", lambda *_, **__: Splits(*parts))
    splits = cli._load_data(Config(downsample=4, limit_train=3))
    for part, before in zip((splits.train, splits.validation, splits.test), parts, strict=True):
        assert part.sensor == (2, 2, 3) and part.n_channels == 12
        np.testing.assert_array_equal(
            part.labels, before.labels[splits.index["train"]] if len(part) == 3 else before.labels
        )
    assert len(splits.train) == 3
    assert cli._load_data(Config()).test is parts[2]
    monkeypatch.setattr(data, "load", lambda *_, **__: Splits(*(replace(part, sensor=None) for part in parts)))
    with pytest.raises(RanvierError, match="leave downsample out"):
        cli._load_data(Config(downsample=4))
