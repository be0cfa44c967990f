"""`Events`: built from times and rasters, turned back, carried through JAX, refused where the input is bad."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranvier.errors import RanvierError
from ranvier.events import Events, n_steps

TIMES = [[3.0, 1.0, 2.0], [], [0.5]]
CHANNELS = [[0, 1, 2], [], [4]]


def example() -> Events:
    return Events.from_times(TIMES, CHANNELS, 5)


def raster_by_loops(events: Events, dt: float, steps: int) -> np.ndarray:
    raster = np.zeros((len(events), steps, events.n_channels), int)
    for b in range(len(events)):
        for t, c in zip(np.asarray(events.time)[b], np.asarray(events.channel)[b], strict=True):
            if t < steps * dt:
                raster[b, math.floor(t / dt), c] += 1
    return raster


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.count(";") == 2, "what was got; what is needed; what to do"
    return message


# From times


def test_rows_are_sorted_and_padded():
    events = example()
    assert np.array_equal(events.time, [[1, 2, 3], [np.inf] * 3, [0.5, np.inf, np.inf]])
    assert np.array_equal(events.channel, [[1, 2, 0], [0, 0, 0], [4, 0, 0]])
    assert events.channel.dtype == jnp.int32
    assert np.array_equal(events.counts(), [3, 0, 1])
    assert (len(events), events.capacity, events.n_channels) == (3, 3, 5)


def test_equal_times_keep_their_order():
    # Enough of them: NumPy sorts a short array stably whatever it is told.
    channels = np.arange(200)
    events = Events.from_times([channels % 2], [channels], 200)
    assert np.array_equal(events.channel[0], [*range(0, 200, 2), *range(1, 200, 2)])


def test_capacity_pads_further_and_an_empty_batch_keeps_one_slot():
    assert Events.from_times(TIMES, CHANNELS, 5, capacity=7).time.shape == (3, 7)
    assert Events.from_times([[], []], [[], []], 5).time.shape == (2, 1)


@pytest.mark.parametrize("given_type", [np.float16, np.float32, np.float64, np.longdouble, np.int64])
def test_times_are_float32_without_64_bits(given_type):
    assert Events.from_times([np.ones(2, given_type)], [[0, 1]], 5).time.dtype == jnp.float32


@pytest.mark.parametrize(
    ("given_type", "kept"), [(np.float32, np.float32), (np.float64, np.float64), (np.int32, np.float32)]
)
def test_times_keep_their_type_with_64_bits(x64, given_type, kept):
    assert Events.from_times([np.ones(2, given_type)], [[0, 1]], 5).time.dtype == kept


@pytest.mark.parametrize(
    ("times", "channels", "n_channels", "capacity", "says"),
    [
        ([[1.0], [-1.0]], [[0], [0]], 5, None, "time -1.0 in sample 1"),
        ([[np.nan]], [[0]], 5, None, "time nan in sample 0"),
        ([[np.inf]], [[0]], 5, None, "time inf in sample 0"),
        ([[1e300]], [[0]], 5, None, "time inf in sample 0"),
        ([["a"]], [[0]], 5, None, "times of type"),
        ([[1.0, 2.0]], [[0, 5]], 5, None, "channel 5 in sample 0"),
        ([[1.0]], [[-1]], 5, None, "channel -1 in sample 0"),
        ([[1.0]], [[0.0]], 5, None, "channels of type float64 in sample 0"),
        ([[1.0]], [[True]], 5, None, "channels of type bool in sample 0"),
        ([[1.0], [1.0]], [[0]], 5, None, "times of 2 samples and channels of 1"),
        ([[1.0], [1.0, 2.0]], [[0], [0]], 5, None, "shape (2,) and channels of shape (1,) in sample 1"),
        ([1.0], [0], 5, None, "shape ()"),
        (1.0, 0, 5, None, "without a length"),
        ([[[1.0]]], [[[0]]], 5, None, "shape (1, 1)"),
        ([[[1.0], [1.0, 2.0]]], [[0, 0]], 5, None, "ragged rows in sample 0"),
        ([[1.0]], [[0]], 0, None, "n_channels 0"),
        ([[1.0]], [[0]], 2.5, None, "n_channels 2.5"),
        ([[1.0], [1.0, 2.0, 3.0]], [[0], [0, 1, 2]], 5, 2, "3 events in sample 1 for a capacity of 2"),
        ([[1.0]], [[0]], 5, 0, "capacity 0"),
    ],
)
def test_bad_times_are_refused(times, channels, n_channels, capacity, says):
    with pytest.raises(RanvierError) as error:
        Events.from_times(times, channels, n_channels, capacity)
    assert says in one_line(error)


# Rasters


def test_raster_is_the_one_of_the_definition():
    rng = np.random.default_rng(0)
    times = [rng.uniform(0, 12, n) for n in (30, 0, 11)]
    events = Events.from_times(times, [rng.integers(0, 4, len(t)) for t in times], 4)
    dense = events.to_dense(0.5, 10.0)
    assert dense.shape == (3, 20, 4)
    assert np.array_equal(dense, raster_by_loops(events, 0.5, 20))


def test_events_at_or_beyond_the_duration_are_left_out():
    events = Events.from_times([[0.0, 1.9, 2.0, 5.0]], [[0, 0, 0, 0]], 1)
    assert np.array_equal(events.to_dense(1.0, 2.0)[0, :, 0], [1, 1])
    # The last step is only half inside.
    assert np.array_equal(events.to_dense(1.0, 1.5)[0, :, 0], [1, 0])
    assert np.array_equal(events.to_dense(1.5, 2.0)[0, :, 0], [1, 1])


def test_rounding_at_the_end_loses_no_event():
    """The largest float32 below the duration divides to exactly T."""
    dt, steps = 0.9, 7
    time = np.nextafter(np.float32(steps * dt), np.float32(0))
    assert np.floor(time / np.float32(dt)) == steps
    events = Events.from_times([[time]], [[0]], 1)
    assert np.array_equal(events.to_dense(dt, steps * dt)[0, :, 0], [0] * 6 + [1])


def check_round_trip(raster: np.ndarray, dt: float) -> None:
    events = Events.from_dense(raster, dt)
    n_samples, steps, _ = raster.shape
    time, channel = np.asarray(events.time), np.asarray(events.channel)
    assert np.array_equal(np.isfinite(time).sum(1), raster.sum((1, 2)))
    # One capacity for all examples: each new shape compiles.
    pad = ((0, 0), (0, max(0, 256 - events.capacity)))
    events = Events(
        jnp.asarray(np.pad(time, pad, constant_values=np.inf)), jnp.asarray(np.pad(channel, pad)), events.n_channels
    )
    assert np.array_equal(events.to_dense(dt, steps * dt), raster)
    assert all((np.diff(time[b][np.isfinite(time[b])]) >= 0).all() for b in range(n_samples))


rasters = st.builds(
    lambda shape, seed, mean: np.random.default_rng(seed).poisson(mean, shape),
    st.sampled_from([(1, 1, 1), (2, 7, 3)]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 3.0]),
)
steps_of_time = st.one_of(st.sampled_from([0.1, 0.3, 0.7, 1 / 3, 0.5, 1.0]), st.floats(1e-6, 1e6))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rasters, steps_of_time)
def test_raster_to_events_and_back(raster, dt):
    check_round_trip(raster, dt)


@pytest.mark.parametrize("dt", [0.1, 1 / 3, 0.7, 1e-3, 123.4])
def test_long_raster_to_events_and_back(dt):
    check_round_trip(np.random.default_rng(1).poisson(0.5, (1, 20_000, 1)), dt)


@pytest.mark.parametrize("dt", [0.1, 1 / 3, 0.7])
def test_raster_to_events_and_back_with_64_bits(x64, dt):
    raster = np.random.default_rng(2).poisson(0.5, (2, 3000, 2))
    assert Events.from_dense(raster, dt).time.dtype == jnp.float64
    check_round_trip(raster, dt)


def test_every_type_of_counts_is_taken():
    raster = np.random.default_rng(3).poisson(0.5, (2, 5, 3)).clip(0, 1)
    for kind in (bool, np.uint8, np.int64, np.float32):
        assert np.array_equal(Events.from_dense(raster.astype(kind), 1.0).to_dense(1.0, 5.0), raster)


@pytest.mark.parametrize(
    ("raster", "dt", "says"),
    [
        (np.full((1, 2, 3), 0.5), 1.0, "fractional"),
        (np.full((1, 2, 3), np.nan), 1.0, "non-finite"),
        (np.full((1, 2, 3), -1), 1.0, "negative count"),
        (np.full((1, 2, 3), -1.0), 1.0, "negative count"),
        (np.zeros((2, 3), int), 1.0, "shape (2, 3)"),
        (np.zeros((1, 2, 3), complex), 1.0, "complex128"),
        (np.zeros((1, 2, 0), int), 1.0, "raster channels 0"),
        (np.zeros((1, 2, 3), int), 0.0, "dt 0.0"),
        (np.zeros((1, 2, 3), int), -1.0, "dt -1.0"),
        (np.zeros((1, 2, 3), int), np.nan, "dt nan"),
        (np.zeros((1, 2, 3), int), "fast", "dt 'fast'"),
    ],
)
def test_bad_raster_is_refused(raster, dt, says):
    with pytest.raises(RanvierError) as error:
        Events.from_dense(raster, dt)
    assert says in one_line(error)


@pytest.mark.parametrize(("steps", "dt"), [(2, 3e38), (2, 1e-45), (2**21 + 1, 1.0)])
def test_bins_that_float32_cannot_tell_apart_are_refused(steps, dt):
    with pytest.raises(RanvierError) as error:
        Events.from_dense(np.ones((1, steps, 1), bool), dt)
    assert "float32" in one_line(error)


def test_the_largest_number_of_steps_is_still_exact():
    raster = np.zeros((1, 2**21, 1), bool)
    raster[:, -5000:] = True
    check_round_trip(raster, 0.1)


# Steps


@pytest.mark.parametrize(
    ("duration", "dt", "steps"),
    [
        (1.0, 1.0, 1),
        (1.5, 1.0, 2),
        (0.1, 1.0, 1),
        (0.6, 0.1, 6),
        (1.1, 0.1, 11),
        (3 * 0.1, 0.1, 3),
        (1000, 0.1, 10_000),
    ],
)
def test_number_of_steps(duration, dt, steps):
    assert n_steps(duration, dt) == steps


@pytest.mark.parametrize("steps", [1, 3, 7, 1201, 99_999])
@pytest.mark.parametrize("dt", [0.1, 0.01, 1 / 3, 0.7])
def test_number_of_steps_of_a_multiple(steps, dt):
    assert n_steps(steps * dt, dt) == steps


@pytest.mark.parametrize(
    ("duration", "dt"), [(0.0, 1.0), (-1.0, 1.0), (np.inf, 1.0), (1.0, 0.0), (1.0, None), (1e300, 1e-300)]
)
def test_bad_steps_are_refused(duration, dt):
    with pytest.raises(RanvierError) as error:
        n_steps(duration, dt)
    one_line(error)


# Samples


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0, 2], [2, 0, 2]),
        (np.array([True, False, True]), [0, 2]),
        (jnp.array([1, 2]), [1, 2]),
        ([], []),
    ],
)
def test_samples_keep_the_batch_axis(index, rows):
    events = example()
    part = events[index]
    assert np.array_equal(part.time, np.asarray(events.time)[rows].reshape(-1, 3))
    assert np.array_equal(part.channel, np.asarray(events.channel)[rows].reshape(-1, 3))
    assert part.n_channels == 5


@pytest.mark.parametrize("index", [3, -4, [0, 3], [[0]], 1.0, "a", np.array([True, False])])
def test_bad_sample_is_refused(index):
    with pytest.raises(RanvierError) as error:
        example()[index]
    assert "3 samples" in one_line(error)


def test_iteration_gives_each_sample():
    assert [int(one.counts()[0]) for one in example()] == [3, 0, 1]


def test_batches_join():
    events = example()
    other = Events.from_times([[7.0, 8.0, 9.0, 10.0]], [[1, 1, 1, 1]], 5)
    joined = Events.concatenate([events, other, events[2]])
    assert joined.time.shape == (5, 4)
    assert np.array_equal(joined.counts(), [3, 0, 1, 4, 1])
    assert np.array_equal(joined.to_dense(1.0, 20.0)[:3], events.to_dense(1.0, 20.0))
    assert np.array_equal(joined.channel[3], other.channel[0])


def test_batches_that_cannot_join_are_refused():
    with pytest.raises(RanvierError) as error:
        Events.concatenate([example(), Events.from_times([[1.0]], [[0]], 4)])
    assert "[4, 5]" in one_line(error)
    with pytest.raises(RanvierError) as error:
        Events.concatenate([])
    one_line(error)


# JAX


def test_jit_vmap_and_tree_map():
    events = example()
    expected = events.to_dense(0.5, 4.0)
    assert np.array_equal(jax.jit(lambda e: e.to_dense(0.5, 4.0))(events), expected)
    assert np.array_equal(jax.vmap(lambda e: e.to_dense(0.5, 4.0))(events), expected)
    assert np.array_equal(jax.vmap(lambda e: e.counts())(events), [3, 0, 1])
    assert np.array_equal(jax.jit(lambda e, i: e[i].time)(events, 2), events[2].time)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, events)
    assert np.array_equal(doubled.time, 2 * events.time) and doubled.n_channels == 5
    assert len(jax.tree.leaves(events)) == 2


def test_number_of_channels_is_static():
    traced = []

    @jax.jit
    def f(events):
        traced.append(events.n_channels)
        return events.time

    f(example())
    f(example())
    f(Events.from_times(TIMES, CHANNELS, 6))
    assert traced == [5, 6]


def test_gradient_for_times_is_finite_also_in_the_padding():
    events = example()

    def loss(time):
        moved = Events(time, events.channel, events.n_channels)
        real = jnp.where(jnp.isfinite(moved.time), moved.time, 0.0)
        return jnp.sum(moved.to_dense(0.5, 4.0).astype(time.dtype)) + jnp.sum(real**2)

    gradient = jax.grad(loss)(events.time)
    assert np.array_equal(gradient, np.where(np.isfinite(events.time), 2 * np.asarray(events.time), 0))
