"""`Events`: padded, batched spike trains, and the ways in and out of them."""

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.errors import RanvierError


def n_steps(duration: float, dt: float) -> int:
    """Number of steps of `dt` that cover `duration`.

        T = ceil(duration / dt)

    A quotient within 1e-9 (relative) of a whole number counts as that number: 3 * 0.1 / 0.1 is 3 steps, not 4.

    Parameters
    ----------
    duration : () [ms]
    dt : () [ms]

    Returns
    -------
    int

    Raises
    ------
    RanvierError
        If `dt` or `duration` is not a positive finite number.
    """
    for name, value in (("dt", dt), ("duration", duration)):
        _require_positive("n_steps", name, value)
    quotient = duration / dt
    if not math.isfinite(quotient):
        raise RanvierError(
            f"n_steps: got duration {duration!r} and dt {dt!r}; needs a countable number of steps; use a larger dt"
        )
    nearest = round(quotient)
    if nearest >= 1 and abs(quotient - nearest) <= 1e-9 * quotient:
        return nearest
    return math.ceil(quotient)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Events:
    """Spike trains of a batch, as padded rows of (time, channel).

    The constructor checks nothing, so that JAX transformations can rebuild it; `from_times` and `from_dense` check.

    Parameters
    ----------
    time : (B, E) [ms]
        Sorted in each row, padded with +inf. Differentiable.
    channel : (B, E) int32
        Input channel of each event, 0 in the padding.
    n_channels : int
        Number of channels M; static.
    """

    time: jax.Array
    channel: jax.Array
    n_channels: int = field(metadata={"static": True})

    @classmethod
    def from_times(cls, times: Sequence, channels: Sequence, n_channels: int, capacity: int | None = None) -> "Events":
        """Events from one array of times and one of channels a sample.

        Parameters
        ----------
        times : B arrays (n_b,) [ms]
            In any order; sorted stably, so equal times keep their order. The result is float64 where the input is and
            `jax_enable_x64` is set, else float32.
        channels : B integer arrays (n_b,)
        n_channels : int
        capacity : int, optional
            Length E of the rows; by default that of the longest sample.

        Returns
        -------
        Events

        Raises
        ------
        RanvierError
            On negative or non-finite times, channels outside [0, n_channels) or not integer, lengths that differ,
            anything but 1-D rows, more events than `capacity`.
        """
        where = "Events.from_times"
        n_channels = _require_count(where, "n_channels", n_channels)
        if not hasattr(times, "__len__") or not hasattr(channels, "__len__"):
            raise RanvierError(
                f"{where}: got times or channels without a length; needs one 1-D array a sample; pass lists"
            )
        if len(times) != len(channels):
            raise RanvierError(
                f"{where}: got times of {len(times)} samples and channels of {len(channels)}; "
                "needs one array of each a sample; pass lists of equal length"
            )
        rows = [_checked_row(where, b, t, c, n_channels) for b, (t, c) in enumerate(zip(times, channels, strict=True))]
        return pad_rows([t for t, _ in rows], [c for _, c in rows], n_channels, capacity)

    @classmethod
    def from_dense(cls, raster: np.ndarray | jax.Array, dt: float) -> "Events":
        """Events from a raster of spike counts.

            time = (step + 1/2) dt

        The centre of the bin, so that `to_dense` with the same `dt` gives back the same raster whatever the rounding.

        Parameters
        ----------
        raster : (B, T, M)
            Non-negative whole numbers; a count of n gives n events.
        dt : () [ms]

        Returns
        -------
        Events
            Times float64 if `jax_enable_x64` is set, else float32.

        Raises
        ------
        RanvierError
            On negative or fractional counts, a raster that is not 3-D, dt <= 0, more steps than the
            type of the times resolves.
        """
        where = "Events.from_dense"
        _require_positive(where, "dt", dt)
        raster = np.asarray(raster)
        if raster.ndim != 3 or raster.dtype.kind not in "biuf":
            raise RanvierError(
                f"{where}: got a raster of shape {raster.shape} and type {raster.dtype}; "
                "needs numbers of shape (B, T, M); add the missing axis or convert"
            )
        n_channels = _require_count(where, "raster channels", raster.shape[2])
        if raster.dtype.kind == "f" and not (np.isfinite(raster).all() and (raster == np.floor(raster)).all()):
            raise RanvierError(
                f"{where}: got fractional or non-finite counts; needs whole numbers of spikes; round first"
            )
        if raster.dtype.kind in "if" and (raster < 0).any():
            raise RanvierError(f"{where}: got a negative count; needs counts >= 0; remove signs or rectify first")
        dtype = _time_type(np.dtype(np.float64))
        number = np.finfo(dtype)
        # Beyond these the centre of a bin, rounded, is no longer inside the bin.
        if raster.shape[1] * 4 * number.eps > 1 or dt < number.tiny or raster.shape[1] * float(dt) > float(number.max):
            raise RanvierError(
                f"{where}: got {raster.shape[1]} steps of {dt!r} ms; "
                f"needs bins that {dtype} tells apart; use fewer steps or another dt"
            )
        times, channels = [], []
        for sample in raster:
            step, channel = np.nonzero(sample)
            count = sample[step, channel].astype(np.int64)
            times.append(np.repeat((step + 0.5) * float(dt), count))
            channels.append(np.repeat(channel, count))
        return pad_rows(times, channels, n_channels, None)

    @classmethod
    def concatenate(cls, parts: Sequence["Events"]) -> "Events":
        """Batches one after the other along the batch axis, padded to the longest row.

        Raises
        ------
        RanvierError
            If there is nothing to join or the numbers of channels differ.
        """
        parts = list(parts)
        sizes = sorted({part.n_channels for part in parts})
        if len(sizes) != 1:
            raise RanvierError(
                f"Events.concatenate: got {len(parts)} parts with n_channels {sizes}; "
                "needs at least one part and the same n_channels in all; build them with one n_channels"
            )
        capacity = max(part.capacity for part in parts)
        pads = [((0, 0), (0, capacity - part.capacity)) for part in parts]
        time = [jnp.pad(part.time, pad, constant_values=np.inf) for part, pad in zip(parts, pads, strict=True)]
        channel = [jnp.pad(part.channel, pad) for part, pad in zip(parts, pads, strict=True)]
        return cls(jnp.concatenate(time), jnp.concatenate(channel), sizes[0])

    @property
    def capacity(self) -> int:
        """Length E of the padded rows."""
        return self.time.shape[-1]

    def counts(self) -> jax.Array:
        """Number of real events of each sample.

        Returns
        -------
        (B,) int32
        """
        return jnp.isfinite(self.time).sum(-1, dtype=jnp.int32)

    def to_dense(self, dt: float, duration: float) -> jax.Array:
        """Raster of spike counts; events at or beyond `duration` are left out.

            step = floor(time / dt),  T = n_steps(duration, dt)

        Piecewise constant in `time`, so it has no gradient. Works under `jit` and `vmap`.

        Parameters
        ----------
        dt : () [ms]
        duration : () [ms]

        Returns
        -------
        (B, T, M) int32

        Raises
        ------
        RanvierError
            If `dt` or `duration` is not a positive finite number.
        """
        steps = n_steps(duration, dt)
        *batch, capacity = self.time.shape
        time = self.time.reshape(-1, capacity)
        dense = _histogram(time, self.channel.reshape(-1, capacity), dt, duration, steps, self.n_channels)
        return dense.reshape(*batch, steps, self.n_channels)

    def __len__(self) -> int:
        return self.time.shape[0]

    def __getitem__(self, index) -> "Events":
        """Samples `index`: an integer (kept as a batch of one), a slice, or a 1-D array of integers or booleans."""
        if not isinstance(index, slice):
            index = self._sample_index(index)
        return Events(self.time[index], self.channel[index], self.n_channels)

    def __iter__(self) -> Iterator["Events"]:
        return (self[i] for i in range(len(self)))

    def _sample_index(self, index):
        n = len(self)
        try:
            array = np.atleast_1d(np.asarray(index))
        except jax.errors.TracerArrayConversionError:
            # A traced index has no value to check; JAX clamps one that is out of range.
            return jnp.atleast_1d(index)
        if array.size == 0 and array.ndim == 1 and not isinstance(index, (np.ndarray, jax.Array)):
            array = array.astype(np.int32)
        if array.ndim == 1 and array.dtype == bool and len(array) == n:
            return np.nonzero(array)[0]
        if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and not -n <= array.min() <= array.max() < n):
            raise RanvierError(
                f"Events: got sample index {index!r} for {n} samples; needs integers in [-{n}, {n}), a slice, or one "
                "boolean a sample; correct the index"
            )
        return array


def pad_rows(times: Sequence, channels: Sequence, n_channels: int, capacity: int | None) -> Events:
    """Padded `Events` from rows that are already sorted and checked.

    Parameters
    ----------
    times : B arrays (n_b,) [ms]
    channels : B arrays (n_b,)
    n_channels : int
    capacity : int or None
        Length E of the rows; None: that of the longest.

    Returns
    -------
    Events

    Raises
    ------
    RanvierError
        If a row is longer than `capacity`.
    """
    counts = np.array([len(row) for row in times], np.int64)
    longest = int(counts.max(initial=0))
    # A row has at least one slot, so that nobody downstream meets an axis of length zero.
    capacity = max(longest, 1) if capacity is None else _require_count("Events", "capacity", capacity)
    if longest > capacity:
        sample = int(np.argmax(counts > capacity))
        raise RanvierError(
            f"Events: got {counts[sample]} events in sample {sample} for a capacity of {capacity}; "
            f"needs capacity >= {longest}, the longest sample; raise capacity or leave it out"
        )
    dtype = _time_type(np.result_type(np.float32, *times))
    time = np.full((len(times), capacity), np.inf, dtype)
    channel = np.zeros((len(times), capacity), np.int32)
    real = np.arange(capacity) < counts[:, None]
    if longest:
        time[real] = np.concatenate(times)
        channel[real] = np.concatenate(channels)
    return Events(jnp.asarray(time), jnp.asarray(channel), n_channels)


@partial(jax.jit, static_argnames=("steps", "n_channels"))
def _histogram(time: jax.Array, channel: jax.Array, dt, duration, steps: int, n_channels: int) -> jax.Array:
    inside = time < duration
    # Rounding may lift an event just below `duration` into step T. Padding gets a meaningless step and adds nothing.
    step = jnp.minimum(jnp.floor(time / dt).astype(jnp.int32), steps - 1)
    sample = jnp.arange(time.shape[0])[:, None]
    dense = jnp.zeros((time.shape[0], steps, n_channels), jnp.int32)
    return dense.at[sample, step, channel].add(inside.astype(jnp.int32))


def _checked_row(where: str, sample: int, times, channels, n_channels: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        time, channel = np.asarray(times), np.asarray(channels)
    except ValueError as error:
        raise RanvierError(
            f"{where}: got ragged rows in sample {sample}; needs 1-D arrays; pass one a sample"
        ) from error
    if time.ndim != 1 or channel.ndim != 1 or len(time) != len(channel):
        raise RanvierError(
            f"{where}: got times of shape {time.shape} and channels of shape {channel.shape} in sample {sample}; "
            "needs two 1-D arrays of equal length; pass one channel for each time"
        )
    if time.dtype.kind not in "iuf":
        raise RanvierError(
            f"{where}: got times of type {time.dtype} in sample {sample}; needs numbers in ms; convert them"
        )
    if channel.size and channel.dtype.kind not in "iu":
        raise RanvierError(
            f"{where}: got channels of type {channel.dtype} in sample {sample}; needs integers; convert them"
        )
    # Check what will be stored: a large float64 is infinite in float32.
    with np.errstate(over="ignore"):
        time = time.astype(_time_type(time.dtype))
    if not np.isfinite(time).all() or (time < 0).any():
        bad = time[~(np.isfinite(time) & (time >= 0))][0]
        raise RanvierError(f"{where}: got time {bad} in sample {sample}; needs finite times >= 0 ms; drop or shift it")
    if channel.size and not 0 <= channel.min() <= channel.max() < n_channels:
        bad = channel[(channel < 0) | (channel >= n_channels)][0]
        raise RanvierError(
            f"{where}: got channel {bad} in sample {sample}; needs channels in [0, {n_channels}); correct it"
        )
    order = np.argsort(time, kind="stable")
    return time[order], channel[order].astype(np.int32)


def _time_type(given: np.dtype) -> np.dtype:
    """Type in which times given in type `given` are kept: JAX's own float for wide ones, else float32."""
    return np.dtype(jnp.result_type(float) if given.kind == "f" and given.itemsize > 4 else np.float32)


def _require_count(where: str, name: str, value) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise RanvierError(f"{where}: got {name} {value!r}; needs a whole number >= 1; correct it")
    return count


def _require_positive(where: str, name: str, value) -> None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise RanvierError(f"{where}: got {name} {value!r}; needs a finite number of ms > 0; correct it")
