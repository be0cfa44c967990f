"""Training samples made a little different at each epoch, on the device; nothing here touches validation or test."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ranvier.config import Config
from ranvier.data.dataset import Dataset
from ranvier.data.recordings import Recordings
from ranvier.errors import RanvierError
from ranvier.events import Events

# Voices differ in pitch and pace; neighbouring channels are neighbouring frequencies only where the data say so.
SPEECH_SHIFT, SPEECH_STRETCH = 40, 0.1


@dataclass(frozen=True)
class Augmentation:
    """How much samples are changed; the zero of each number is off.

    Parameters
    ----------
    shift : int
        All events of a sample move by one whole number of channels, uniform in [-shift, shift]; not of a camera.
    jitter : float
        Each event moves by a normal number of channels with this standard deviation, rounded; of a camera by a number
        of rows and another one of columns.
    stretch : float
        All times of a sample are multiplied by one factor, uniform in [1 - stretch, 1 + stretch].
    drop : float
        Probability that an event is left out.
    blend : float
        Probability that a sample is blended with another one of its class.
    time_jitter : float [ms]
        Each event moves by a normal time with this standard deviation.
    crop : int
        Of a camera: all events of a sample move by one whole number of rows and another one of columns, each uniform in
        [-crop, crop]. What is left is what a window of the size of the sensor sees.
    flip : float
        Of a camera: probability that left and right of a sample change places.
    """

    shift: int = 0
    jitter: float = 0.0
    stretch: float = 0.0
    drop: float = 0.0
    blend: float = 0.0
    time_jitter: float = 0.0
    crop: int = 0
    flip: float = 0.0

    @classmethod
    def of(cls, config: Config) -> "Augmentation":
        """That of the options of a run; an option that is None is off, see `settled`."""
        return cls(
            config.augment_shift or 0,
            config.augment_jitter,
            config.augment_stretch or 0.0,
            config.augment_drop,
            config.augment_blend,
            config.augment_time_jitter,
            config.augment_crop,
            config.augment_flip,
        )

    @property
    def off(self) -> bool:
        """Whether samples stay as they are."""
        return self == Augmentation()


def settled(config: Config, dataset: Dataset) -> Config:
    """The options of a run with what they leave open about augmentation taken from its training samples.

    Raises
    ------
    RanvierError
        If an option does not go with the samples: one of cameras and others, or the other way round.
    """
    speech = dataset.name == "speech"
    shift, stretch = config.augment_shift, config.augment_stretch
    config = replace(
        config,
        augment_shift=SPEECH_SHIFT * speech if shift is None else shift,
        augment_stretch=SPEECH_STRETCH * speech if stretch is None else stretch,
    )
    _refuse_unfit(Augmentation.of(config), dataset.sensor, f"data set {dataset.name}")
    return config


def _refuse_unfit(how: Augmentation, sensor: tuple[int, int, int] | None, samples: str) -> None:
    if sensor is not None and how.shift:
        raise RanvierError(
            f"augment: got augment_shift {how.shift} for {samples}, whose channels are rows of pixels; needs channels "
            "in one line; leave it out, or use augment_crop"
        )
    for name in ("crop", "flip"):
        if sensor is None and getattr(how, name):
            raise RanvierError(
                f"augment: got augment_{name} {getattr(how, name)} for {samples}, whose channels are no pixels; needs "
                "recordings of an event camera; leave it out"
            )


def augmented_batch(key: jax.Array, recordings: Recordings, indices: jax.Array, how: Augmentation) -> Events:
    """Samples of a data set, changed at random.

        blend:  samples a, b of one class move half way towards each other in mean time and mean channel;
                each event of a and each of b is then taken with probability 1/2
        then:   t <- f t + time_jitter m,  f ~ U(1 - stretch, 1 + stretch), m ~ N(0, 1)   one f a sample, one m an event
                c <- c + s + round(jitter n),  s ~ U{-shift, ..., shift}, n ~ N(0, 1)    one s a sample, one n an event

    In recordings of a camera c is the row and, with random numbers of its own, the column of a pixel; s then comes from
    {-crop, ..., crop}, and before it moves the column x of all events of a sample becomes width - 1 - x with
    probability `flip`. An event keeps its polarity.

    What leaves the channels, the sensor, or [0, latest event of the data set] is left out. Same key, same result.

    Parameters
    ----------
    key : PRNG key
    recordings : Recordings
    indices : (B,) int
    how : Augmentation

    Returns
    -------
    Events
        (B, E): E as `recordings.row`; with blending, some more, see `blended_row`. Nothing is changed bit for bit if
        `how.off`.

    Raises
    ------
    RanvierError
        If `how` asks a camera for a shift of channels, or others for what cameras alone have.

    References
    ----------
    Shift of channels and blending: Nowotny, Turner and Knight (2025), "Loss shaping enhances exact gradient learning
    with Eventprop in spiking neural networks".
    """
    events = recordings.batch(indices)
    if how.off:
        return events
    sensor = recordings.sensor
    _refuse_unfit(how, sensor, "these samples")
    k_mate, k_blend, k_take, k_shift, k_jitter, k_stretch, k_late, k_crop, k_flip = _keys(key)
    time, n_rows = events.time, events.time.shape[0]
    place, plane = _placed(events.channel, sensor)
    chance = jnp.full((n_rows, 1), 1.0 - how.drop, time.dtype)
    if how.blend:
        other = recordings.batch(recordings.classmates(k_mate, indices))
        blended = jax.random.uniform(k_blend, (n_rows, 1)) < how.blend
        there, other_plane = _placed(other.channel, sensor)
        time, place = _aligned((events.time, place), (other.time, there), blended)
        plane = jnp.concatenate([plane, other_plane], axis=1)
        chance = _columns(jnp.where(blended, 0.5 * chance, chance), jnp.where(blended, 0.5 * chance, 0.0), events.time)
    taken = jnp.isfinite(time)
    if how.drop or how.blend:
        taken &= jax.random.uniform(k_take, time.shape) < chance
    sizes = jnp.array((recordings.n_channels,) if sensor is None else sensor[1:], jnp.int32)[:, None, None]
    if how.flip:
        mirrored = jax.random.uniform(k_flip, (n_rows, 1)) < how.flip
        place = place.at[-1].set(jnp.where(mirrored, sizes[-1] - 1 - place[-1], place[-1]))
    most = how.crop if how.crop else how.shift
    if most:
        k_move = k_crop if how.crop else k_shift
        place = place + jax.random.randint(k_move, (len(sizes), n_rows, 1), -most, most + 1)
    if how.jitter:
        moved = jnp.round(how.jitter * jax.random.normal(k_jitter, place.shape))
        place = place + moved.astype(jnp.int32)
    if how.stretch:
        factor = jax.random.uniform(k_stretch, (n_rows, 1), minval=1.0 - how.stretch, maxval=1.0 + how.stretch)
        time = time * factor
    if how.time_jitter:
        time = time + how.time_jitter * jax.random.normal(k_late, time.shape)
    taken &= (time >= 0) & (time <= recordings.latest) & ((place >= 0) & (place < sizes)).all(axis=0)
    channel = place[0] if sensor is None else (plane * sensor[1] + place[0]) * sensor[2] + place[1]
    channel = channel.astype(jnp.int32)  # random whole numbers have 64 bits where floats do
    row = blended_row(events.time.shape[1]) if how.blend else events.time.shape[1]
    if how.time_jitter:
        return _sorted(time, channel, taken, row, events.n_channels)
    return _packed(time, channel, taken, events.time.shape[1], row, events.n_channels)


def drawn_mates(key: jax.Array, recordings: Recordings, indices: jax.Array) -> jax.Array:
    """The samples that `augmented_batch` blends the samples `indices` (B,) with at the same key: (B,) int32."""
    return recordings.classmates(_keys(key)[0], indices)


def _keys(key: jax.Array) -> jax.Array:
    return jax.random.split(key, 9)


def blended_row(row: int) -> int:
    """Room for a blend of two samples of at most `row` events.

    Of 2 E events with probability 1/2 more than E + 8 sqrt(E / 2), eight standard deviations over the mean, come once
    in 10^15 blends; what is more is then left out.
    """
    return min(2 * row, row + int(8 * (row / 2) ** 0.5) + 1)


def _placed(channel: jax.Array, sensor: tuple[int, int, int] | None) -> tuple[jax.Array, jax.Array]:
    """Where events are: (1, B, E) channels, or (2, B, E) rows and columns of a camera; and their polarity (B, E)."""
    if sensor is None:
        return channel[None], jnp.zeros_like(channel)
    _, height, width = sensor
    return jnp.stack([channel // width % height, channel % width]), channel // (height * width)


def _columns(left: jax.Array, right: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.broadcast_to(left, like.shape), jnp.broadcast_to(right, like.shape)], axis=1)


def _aligned(
    a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array], blended: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Times (B, 2 E) and places (axes, B, 2 E) of a and b side by side, those of blended rows at their common mean."""
    there = [jnp.isfinite(time) for time, _ in (a, b)]

    def mean(values: jax.Array, present: jax.Array) -> jax.Array:
        n = jnp.maximum(present.sum(axis=-1, keepdims=True), 1)
        return jnp.where(present, values, 0).sum(axis=-1, keepdims=True) / n

    both = blended & there[0].any(axis=1, keepdims=True) & there[1].any(axis=1, keepdims=True)
    late = jnp.where(both, (mean(b[0], there[1]) - mean(a[0], there[0])) / 2, 0.0)
    up = jnp.round((mean(b[1], there[1][None]) - mean(a[1], there[0][None])) / 2)
    up = jnp.where(both, up, 0.0).astype(jnp.int32)
    time = jnp.concatenate([a[0] + late, b[0] - late], axis=1)
    return time, jnp.concatenate([a[1] + up, b[1] - up], axis=2)


def _sorted(time: jax.Array, channel: jax.Array, taken: jax.Array, row: int, n_channels: int) -> Events:
    """The taken events in order of time: (B, row). `_packed` is faster where no event overtakes another one."""
    time, channel = jax.lax.sort((jnp.where(taken, time, jnp.inf), jnp.where(taken, channel, 0)), num_keys=1)
    return Events(time[:, :row], channel[:, :row], n_channels)


def _packed(time: jax.Array, channel: jax.Array, taken: jax.Array, width: int, row: int, n_channels: int) -> Events:
    """The taken events in order of time: (B, row).

    Columns come in parts of `width`, each sorted; the place of an event is the number of taken ones before it.
    """
    # The number of taken events of a part before each of its columns, and after the last.
    parts = [slice(x, x + width) for x in range(0, time.shape[1], width)]
    before = [jnp.pad(jnp.cumsum(taken[:, part], axis=1), ((0, 0), (1, 0))) for part in parts]
    places = []
    for k, part in enumerate(parts):
        place = before[k][:, :-1]
        for j, other in enumerate(parts):
            if j != k:
                # Of equal times those of the first part come first.
                find = jax.vmap(lambda x, y, side="left" if j > k else "right": jnp.searchsorted(x, y, side=side))
                place = place + jnp.take_along_axis(before[j], find(time[:, other], time[:, part]), axis=1)
        places.append(place)
    place = jnp.where(taken, jnp.concatenate(places, axis=1), row)
    rows = jnp.arange(time.shape[0])[:, None]
    empty = jnp.full((time.shape[0], row), jnp.inf, time.dtype)
    return Events(
        empty.at[rows, place].set(time, mode="drop"),
        jnp.zeros((time.shape[0], row), jnp.int32).at[rows, place].set(channel, mode="drop"),
        n_channels,
    )
