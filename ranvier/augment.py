"""Training samples made a little different at each epoch, on the device; nothing here touches validation or test."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ranvier.config import Config
from ranvier.data.dataset import Dataset
from ranvier.data.recordings import Recordings
from ranvier.events import Events

# Voices differ in pitch and pace; neighbouring channels are neighbouring frequencies only where the data say so.
SPEECH_SHIFT, SPEECH_STRETCH = 40, 0.1


@dataclass(frozen=True)
class Augmentation:
    """How much samples are changed; the zero of each number is off.

    Parameters
    ----------
    shift : int
        All events of a sample move by one whole number of channels, uniform in [-shift, shift].
    jitter : float
        Each event moves by a normal number of channels with this standard deviation, rounded.
    stretch : float
        All times of a sample are multiplied by one factor, uniform in [1 - stretch, 1 + stretch].
    drop : float
        Probability that an event is left out.
    blend : float
        Probability that a sample is blended with another one of its class.
    """

    shift: int = 0
    jitter: float = 0.0
    stretch: float = 0.0
    drop: float = 0.0
    blend: float = 0.0

    @classmethod
    def of(cls, config: Config) -> "Augmentation":
        """That of the options of a run; an option that is None is off, see `settled`."""
        return cls(
            config.augment_shift or 0,
            config.augment_jitter,
            config.augment_stretch or 0.0,
            config.augment_drop,
            config.augment_blend,
        )

    @property
    def off(self) -> bool:
        """Whether samples stay as they are."""
        return self == Augmentation()


def settled(config: Config, dataset: Dataset) -> Config:
    """The options of a run with what they leave open about augmentation taken from its training samples."""
    speech = dataset.name == "speech"
    shift, stretch = config.augment_shift, config.augment_stretch
    return replace(
        config,
        augment_shift=SPEECH_SHIFT * speech if shift is None else shift,
        augment_stretch=SPEECH_STRETCH * speech if stretch is None else stretch,
    )


def augmented_batch(key: jax.Array, recordings: Recordings, indices: jax.Array, how: Augmentation) -> Events:
    """Samples of a data set, changed at random.

        blend:  samples a, b of one class move half way towards each other in mean time and mean channel;
                each event of a and each of b is then taken with probability 1/2
        then:   t <- f t,  f ~ U(1 - stretch, 1 + stretch)            one f a sample
                c <- c + s + round(jitter n),  s ~ U{-shift, ..., shift}, n ~ N(0, 1)    one s a sample, one n an event

    What leaves the channels, or [0, latest event of the data set], is left out. Same key, same result.

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

    References
    ----------
    Shift of channels and blending: Nowotny, Turner and Knight (2025), "Loss shaping enhances exact gradient learning
    with Eventprop in spiking neural networks".
    """
    events = recordings.batch(indices)
    if how.off:
        return events
    k_mate, k_blend, k_take, k_shift, k_jitter, k_stretch = jax.random.split(key, 6)
    time, channel, n_rows = events.time, events.channel, events.time.shape[0]
    chance = jnp.full((n_rows, 1), 1.0 - how.drop, time.dtype)
    if how.blend:
        other = recordings.batch(recordings.classmates(k_mate, indices))
        blended = jax.random.uniform(k_blend, (n_rows, 1)) < how.blend
        time, channel = _aligned(events, other, blended)
        chance = _columns(jnp.where(blended, 0.5 * chance, chance), jnp.where(blended, 0.5 * chance, 0.0), events.time)
    taken = jnp.isfinite(time)
    if how.drop or how.blend:
        taken &= jax.random.uniform(k_take, time.shape) < chance
    if how.shift:
        channel = channel + jax.random.randint(k_shift, (n_rows, 1), -how.shift, how.shift + 1)
    if how.jitter:
        moved = jnp.round(how.jitter * jax.random.normal(k_jitter, channel.shape))
        channel = channel + moved.astype(jnp.int32)
    if how.stretch:
        factor = jax.random.uniform(k_stretch, (n_rows, 1), minval=1.0 - how.stretch, maxval=1.0 + how.stretch)
        time = time * factor
    taken &= (time >= 0) & (time <= recordings.latest) & (channel >= 0) & (channel < events.n_channels)
    row = blended_row(events.time.shape[1]) if how.blend else events.time.shape[1]
    return _packed(time, channel, taken, events.time.shape[1], row, events.n_channels)


def blended_row(row: int) -> int:
    """Room for a blend of two samples of at most `row` events.

    Of 2 E events with probability 1/2 more than E + 8 sqrt(E / 2), eight standard deviations over the mean, come once
    in 10^15 blends; what is more is then left out.
    """
    return min(2 * row, row + int(8 * (row / 2) ** 0.5) + 1)


def _columns(left: jax.Array, right: jax.Array, like: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.broadcast_to(left, like.shape), jnp.broadcast_to(right, like.shape)], axis=1)


def _aligned(a: Events, b: Events, blended: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times and channels of a and b side by side, (B, 2 E), those of blended rows moved to the common mean."""
    there = [jnp.isfinite(x.time) for x in (a, b)]

    def mean(values: jax.Array, present: jax.Array) -> jax.Array:
        n = jnp.maximum(present.sum(axis=1, keepdims=True), 1)
        return jnp.where(present, values, 0).sum(axis=1, keepdims=True) / n

    both = blended & there[0].any(axis=1, keepdims=True) & there[1].any(axis=1, keepdims=True)
    late = jnp.where(both, (mean(b.time, there[1]) - mean(a.time, there[0])) / 2, 0.0)
    up = jnp.round((mean(b.channel, there[1]) - mean(a.channel, there[0])) / 2)
    up = jnp.where(both, up, 0.0).astype(jnp.int32)
    time = jnp.concatenate([a.time + late, b.time - late], axis=1)
    return time, jnp.concatenate([a.channel + up, b.channel - up], axis=1)


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
