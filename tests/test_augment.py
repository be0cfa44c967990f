"""Augmentation against plain loops with the same random numbers, its limits, and that it meets training alone."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from ranvier import train
from ranvier.augment import Augmentation, augmented_batch, blended_row, settled
from ranvier.config import Config
from ranvier.data import Dataset, Splits
from ranvier.data.recordings import to_device
from ranvier.errors import RanvierError
from ranvier.runs import Run
from tests.toy import TOY

pytestmark = pytest.mark.usefixtures("quick_compiler")

M, K = 40, 3
SENSOR = (2, 4, 5)  # a camera of M channels
LABELS = np.array([0, 1, 0, 2, 1, 0, 1, 2], np.int32)
COUNTS = (30, 25, 0, 40, 12, 33, 1, 40)
INDICES = np.array([3, 0, 2, 6, 6, 5])

KINDS = {
    "shift": Augmentation(shift=7),
    "jitter": Augmentation(jitter=2.0),
    "stretch": Augmentation(stretch=0.3),
    "drop": Augmentation(drop=0.4),
    "blend": Augmentation(blend=0.6),
    "always blended": Augmentation(blend=1.0),
    "all": Augmentation(shift=9, jitter=1.5, stretch=0.2, drop=0.2, blend=0.7),
    "time jitter": Augmentation(time_jitter=5.0),
    "all with time jitter": Augmentation(shift=9, jitter=1.5, stretch=0.2, drop=0.2, blend=0.7, time_jitter=2.0),
}
OF_CAMERAS = {
    "crop": Augmentation(crop=2),
    "flip": Augmentation(flip=0.5),
    "jitter of pixels": Augmentation(jitter=1.0),
    "blend of pixels": Augmentation(blend=0.6),
    "all of pixels": Augmentation(crop=1, flip=0.5, jitter=0.5, stretch=0.2, drop=0.2, blend=0.7, time_jitter=2.0),
}
CASES = [(how, None) for how in KINDS.values()] + [(how, SENSOR) for how in OF_CAMERAS.values()]
each = pytest.mark.parametrize(("how", "sensor"), CASES, ids=[*KINDS, *OF_CAMERAS])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    # Whole milliseconds: equal times in a sample and between samples.
    times = [np.sort(rng.integers(0, 60, n)).astype(np.float32) for n in COUNTS]
    channels = rng.integers(0, M, sum(COUNTS)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(COUNTS)]).astype(np.int64)
    return Dataset("toy", np.concatenate(times), channels, offsets, LABELS, M, ("a", "b", "c"))


def rows(events):
    """The events of each row as (time, channel), after a look at the padding."""
    result = []
    for time, channel in zip(np.asarray(events.time), np.asarray(events.channel), strict=True):
        n = int(np.isfinite(time).sum())
        assert np.isinf(time[n:]).all() and (channel[n:] == 0).all()
        result.append(list(zip(time[:n].tolist(), channel[:n].tolist(), strict=True)))
    return result


def by_loops(key, data, device, indices, how):
    """The definition, an event at a time."""
    # The first six are those of the time before there were more kinds.
    k_mate, k_blend, k_take, k_shift, k_jitter, k_stretch = jax.random.split(key, 6)
    k_late, k_crop, k_flip = jax.random.split(key, 9)[6:]
    sizes = (M,) if data.sensor is None else data.sensor[1:]
    axes = len(sizes)
    width, n = device.row, len(indices)
    columns = 2 * width if how.blend else width
    mate = np.asarray(device.classmates(k_mate, indices))
    blended = np.asarray(jax.random.uniform(k_blend, (n, 1)))[:, 0] < how.blend
    luck = np.asarray(jax.random.uniform(k_take, (n, columns)))
    shift = np.asarray(jax.random.randint(k_shift, (n, 1), -how.shift, how.shift + 1))[:, 0]
    crop = np.asarray(jax.random.randint(k_crop, (axes, n, 1), -how.crop, how.crop + 1))[:, :, 0]
    flipped = np.asarray(jax.random.uniform(k_flip, (n, 1)))[:, 0] < how.flip
    jitter = np.asarray(jax.random.normal(k_jitter, (axes, n, columns)))
    delay = np.asarray(jax.random.normal(k_late, (n, columns)))
    factor = np.asarray(jax.random.uniform(k_stretch, (n, 1), minval=1 - how.stretch, maxval=1 + how.stretch))[:, 0]

    def sample(i):
        """Polarity, time, and place on each axis of every event."""
        part = slice(data.offsets[i], data.offsets[i + 1])
        shape = (1, M) if data.sensor is None else data.sensor
        places = [np.unravel_index(channel, shape) for channel in data.channels[part]]
        return [(int(p), time, *map(int, at)) for time, (p, *at) in zip(data.times[part].tolist(), places, strict=True)]

    result = []
    for b, i in enumerate(indices):
        own, other = sample(i), sample(mate[b]) if blended[b] else []
        move = [0.0] * (1 + axes)
        if own and other:
            move = [(np.mean([e[k] for e in other]) - np.mean([e[k] for e in own])) / 2 for k in range(1, 2 + axes)]
        late, *up = move
        taken = []
        for first, events, sign in ((0, own, 1), (width, other, -1)):
            for column, (polarity, time, *at) in enumerate(events, first):
                if luck[b, column] >= (1 - how.drop) * (0.5 if blended[b] else 1.0):
                    continue
                time = (time + sign * late) * float(factor[b]) + how.time_jitter * float(delay[b, column])
                at = [x + sign * round(u) for x, u in zip(at, up, strict=True)]
                if flipped[b]:
                    at[-1] = sizes[-1] - 1 - at[-1]
                for k in range(axes):
                    at[k] += int(shift[b]) + int(crop[k, b]) + round(how.jitter * float(jitter[k, b, column]))
                if 0 <= time <= data.latest and all(0 <= x < size for x, size in zip(at, sizes, strict=True)):
                    channel = polarity
                    for x, size in zip(at, sizes, strict=True):
                        channel = channel * size + x
                    taken.append((time, channel))
        result.append(sorted(taken, key=lambda event: event[0]))
    return result


@each
def test_a_batch_is_that_of_the_loops(data, how, sensor):
    data = replace(data, sensor=sensor)
    device = to_device(data)
    seen = 0
    for seed in range(4):
        key = jax.random.key(seed)
        got, wanted = (rows(augmented_batch(key, device, INDICES, how)), by_loops(key, data, device, INDICES, how))
        for x, y in zip(got, wanted, strict=True):
            assert len(x) == len(y)
            np.testing.assert_allclose([e[0] for e in x], [e[0] for e in y], rtol=1e-5, atol=1e-4)
            # Times that rounding cannot tell apart may change places.
            for t in {round(e[0], 2) for e in y}:
                assert sorted(c for s, c in x if abs(s - t) < 0.02) == sorted(c for s, c in y if abs(s - t) < 0.02)
            seen += len(x)
    assert seen > 100


@each
def test_events_are_sorted_and_in_range(data, how, sensor):
    device = to_device(replace(data, sensor=sensor))
    for seed in range(4, 8):
        events = augmented_batch(jax.random.key(seed), device, INDICES, how)
        assert events.n_channels == M and events.time.dtype == np.float32 and events.channel.dtype == np.int32
        assert events.time.shape == (len(INDICES), blended_row(40) if how.blend else 40)
        for row in rows(events):
            times, channels = [e[0] for e in row], [e[1] for e in row]
            assert times == sorted(times) and all(0 <= t <= data.latest for t in times)
            assert all(0 <= c < M for c in channels)


@each
def test_a_key_decides_the_batch(data, how, sensor):
    device = to_device(replace(data, sensor=sensor))
    a, b, c = (rows(augmented_batch(jax.random.key(k), device, INDICES, how)) for k in (1, 1, 2))
    assert a == b and a != c


def test_off_changes_no_bit(data):
    device = to_device(data, 64)
    assert Augmentation().off and not any(how.off for how in KINDS.values())
    got, plain = augmented_batch(jax.random.key(0), device, INDICES, Augmentation()), device.batch(INDICES)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_blend_is_of_two_samples_of_one_class():
    # Each sample fires on a channel of its own, once a millisecond, with the same mean time; no channel moves:
    # samples of a class are two apart around an even middle, so the common mean is the channel between them.
    n, width = 6, 50
    own = np.array([10, 12, 20, 22, 30, 32])
    times = np.tile(np.arange(width, dtype=np.float32), n)
    data = Dataset(
        "toy",
        times,
        np.repeat(own, width).astype(np.int32),
        width * np.arange(n + 1),
        np.repeat(np.arange(3), 2).astype(np.int32),
        M,
        ("a", "b", "c"),
    )
    events = augmented_batch(jax.random.key(0), to_device(data), np.arange(n), Augmentation(blend=1.0))
    mates = to_device(data).classmates(jax.random.split(jax.random.key(0), 6)[0], np.arange(n))
    assert set((np.asarray(mates) // 2 == np.arange(n) // 2).tolist()) == {True}
    mixed = 0
    for i, row in enumerate(rows(events)):
        middle = round((own[i] + own[int(mates[i])]) / 2)
        assert {c for _, c in row} == {middle} and 25 <= len(row) <= 75
        # An event of each at one time can only come from two samples.
        mixed += len(row) > len({t for t, _ in row})
    assert mixed == n


def test_options_of_a_run():
    config = Config(augment_shift=3, augment_jitter=1.0, augment_stretch=0.1, augment_drop=0.2, augment_blend=0.3)
    assert Augmentation.of(config) == Augmentation(3, 1.0, 0.1, 0.2, 0.3)
    config = Config(augment_time_jitter=0.5, augment_crop=2, augment_flip=0.25)
    assert Augmentation.of(config) == Augmentation(time_jitter=0.5, crop=2, flip=0.25)


def test_what_options_leave_open_depends_on_the_data(data):
    speech = replace(data, name="speech")
    assert Augmentation.of(settled(Config(), speech)) == Augmentation(shift=40, stretch=0.1)
    assert Augmentation.of(settled(Config(augment_shift=0), speech)) == Augmentation(stretch=0.1)
    assert Augmentation.of(settled(Config(augment_shift=0, augment_stretch=0.0), speech)).off
    # Channels of other data may be in any order, and their times mean something, whatever `config.data` says.
    assert Augmentation.of(settled(Config(), data)).off and Augmentation.of(Config()).off
    asked = Config(augment_shift=3, augment_stretch=0.2)
    assert settled(asked, data) == settled(asked, speech) == asked


@pytest.mark.parametrize(
    ("how", "sensor", "needs"),
    [
        ({"augment_shift": 3}, SENSOR, "augment_crop"),
        ({"augment_crop": 3}, None, "camera"),
        ({"augment_flip": 0.5}, None, "camera"),
    ],
)
def test_what_does_not_go_with_the_data_is_refused(data, how, sensor, needs):
    data = replace(data, sensor=sensor)
    name, value = next(iter(how.items()))
    for call in (
        lambda: settled(Config(**how), data),
        lambda: augmented_batch(jax.random.key(0), to_device(data), INDICES, Augmentation.of(Config(**how))),
    ):
        with pytest.raises(RanvierError, match=f"{name} {value} .* needs .*{needs}") as caught:
            call()
        assert "\n" not in str(caught.value)
    other = replace(data, sensor=None if sensor else SENSOR)
    assert settled(replace(Config(**how), augment_stretch=0.0, augment_shift=how.get("augment_shift", 0)), other)


def test_a_crop_moves_a_sample_as_a_whole_and_a_flip_mirrors_it():
    # Every pixel of both polarities once, at the time of its number.
    n, pixels = len(INDICES), np.arange(M)
    times = np.tile(pixels, n).astype(np.float32)
    zero, names = np.zeros(n, np.int32), ("a",)
    data = Dataset("toy", times, times.astype(np.int32), M * np.arange(n + 1), zero, M, names, sensor=SENSOR)
    polarity, y, x = np.unravel_index(pixels, SENSOR)
    windows = {
        (down, right): [
            (t, np.ravel_multi_index((p, v + down, u + right), SENSOR))
            for t, p, v, u in zip(pixels, polarity, y, x, strict=True)
            if 0 <= v + down < 4 and 0 <= u + right < 5
        ]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    }
    key, device, indices = jax.random.key(0), to_device(data), np.arange(n)
    found = [
        [move for move, window in windows.items() if row == window]
        for row in rows(augmented_batch(key, device, indices, Augmentation(crop=1)))
    ]
    assert all(len(moves) == 1 for moves in found) and len({moves[0] for moves in found}) >= 4
    mirror = list(zip(pixels, np.ravel_multi_index((polarity, y, 4 - x), SENSOR), strict=True))
    for row in rows(augmented_batch(key, device, indices, Augmentation(flip=1.0))):
        assert row == mirror


@pytest.mark.parametrize("row", [1, 2, 40, 15360])
def test_room_for_a_blend(row):
    assert row < blended_row(row) <= 2 * row
    assert blended_row(row) == min(2 * row, row + math.floor(8 * math.sqrt(row / 2)) + 1)


# in training ----------------------------------------------------------------------------------------------------------

CONFIG = replace(
    TOY,
    dt=2.0,
    duration=64.0,
    epochs=2,
    batch_size=4,
    target_rate_hz=Config.target_rate_hz,
    augment_shift=5,
    augment_jitter=1.0,
    augment_stretch=0.2,
    augment_drop=0.2,
    augment_blend=0.5,
    augment_time_jitter=1.0,
)


@pytest.fixture(scope="module")
def splits(data):
    return Splits(data, data.subset(np.array([0, 1])), data.subset(np.array([3, 4])))


class StopsAfter(train.Quiet):
    def __init__(self, n):
        self.left = n

    def step(self, *_):
        self.left -= 1

    def stop_requested(self):
        return self.left == 0


@pytest.fixture(scope="module", autouse=True)
def room():
    """Room for all spikes from the start, as each smaller size would compile anew; and blocks of one update."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "STEP_CAPACITY", CONFIG.hidden)
        patch.setattr(train, "BLOCK", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, splits):
    run = Run.create(tmp_path_factory.mktemp("whole") / "run", CONFIG)
    return run, train.fit(CONFIG, splits, run)


def measured(run):
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in run.metrics()]


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_equals_an_uninterrupted_run(whole, splits, tmp_path, stop):
    run = Run.create(tmp_path / "run", CONFIG)
    assert train.fit(CONFIG, splits, run, StopsAfter(stop)).stopped
    train.fit(CONFIG, splits, run, resume=True)
    assert measured(run) == measured(whole[0])
    for name in ("initial", "best", "last"):
        files = [dict(np.load(r.folder / "checkpoints" / f"{name}.npz")) for r in (run, whole[0])]
        assert files[0].keys() == files[1].keys()
        for key in files[0].keys() - {"__ranvier__"}:
            np.testing.assert_array_equal(files[0][key], files[1][key])


def test_only_training_is_augmented(whole, splits):
    run, report = whole
    off = dict.fromkeys(
        ("augment_jitter", "augment_stretch", "augment_drop", "augment_blend", "augment_time_jitter"), 0.0
    )
    plain = replace(CONFIG, augment_shift=0, **off)
    assert Augmentation.of(plain).off
    test = train.evaluate(report.network, splits.test, plain, duration=64.0)["all"]
    for name in train.MEANS:
        assert measured(run)[-1][name] == pytest.approx(getattr(test, name), rel=1e-5)


def test_each_update_has_random_numbers_of_its_own(whole, splits):
    # The same samples and network, and no program that the run has not compiled.
    state = train.init_state(CONFIG, M, K)
    limits = train.initial_limits(state.network, CONFIG, splits.train.latest)
    batch = to_device(splits.train), np.arange(4), np.ones(4, np.float32)
    a, b, c = (
        float(train._train_step(state, True, *batch, np.int32(u), config=CONFIG, limits=limits).values[0])
        for u in (0, 1, 0)
    )
    assert a == c != b
