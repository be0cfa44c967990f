"""`DeepModel`: a deep network as training asks for it; its input lists grow until no event is lost."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import ops
from ranvier.config import Config
from ranvier.data import Dataset
from ranvier.data.recordings import Recordings
from ranvier.data.stream import Streamed
from ranvier.deep import DeepNetwork, DeepOutput, init_deep
from ranvier.deep_start import describe, fit_start
from ranvier.events import Events, n_steps
from ranvier.losses import lost_spikes, sample_mean
from ranvier.model import Result

# Room for input events is a multiple of this many, so that data sets of similar size share one compiled program.
ROOM_STEP = 16

# A layer is silent where a smaller fraction of its neurons fires in a step, and saturated where a larger fraction of
# its spikes finds no room, or where so much of the room is taken in the mean.
SILENT, SATURATED, FULL = 1e-4, 0.05, 0.9


# The activity by which sparse or dense products are chosen follows the measured one when that is so many times as large
# or as small; it never goes below the least.
CHANGED, LEAST = 4.0, 2.0**-12


@dataclass(frozen=True)
class DeepLimits:
    """The static sizes of a deep network's run.

    Parameters
    ----------
    duration : float [ms]
    capacity : int
        Room for input events of a step and sample.
    activity : tuple of float
        Fraction of the channels, and of the neurons of each layer, that spike in a step: what mode `auto` chooses by,
        so only a power of 2.
    """

    duration: float
    capacity: int
    activity: tuple[float, ...]


class DeepModel:
    """A deep network; see `ranvier.model.Model`."""

    def __init__(self, config: Config):
        self.config = config

    def init(self, key: jax.Array, n_in: int, n_classes: int) -> DeepNetwork:
        return init_deep(self.config, key, n_in, n_classes)

    def limits(
        self,
        network: DeepNetwork,
        datasets: Sequence[Dataset],
        *,
        duration: float | None = None,
        max_delay: float | None = None,
    ) -> DeepLimits:
        config = self.config
        duration = duration or config.duration
        if duration is None:
            # A whole number of steps, so that the latest event itself is inside.
            duration = (math.floor(max(dataset.latest for dataset in datasets) / config.dt) + 1) * config.dt
        samples, events = (sum(n) for n in zip(*((len(x), len(x.times)) for x in datasets), strict=True))
        mean = events / max(1, samples * n_steps(duration, config.dt) * network.n_in)
        # Before any measurement the layers are taken to be half as active as their lists have room for.
        rooms = zip(network.capacities(config), network.sizes, strict=True)
        activity = (_coarse(mean), *(_coarse(0.5 * room / size) for room, size in rooms))
        if config.input_capacity is not None:
            return DeepLimits(float(duration), config.input_capacity, activity)
        busiest = max(ops.events_a_step(x.times, x.offsets, duration, config.dt) for x in datasets)
        # Samples that are sped up have more events in a step.
        room = busiest / (1.0 - (config.augment_stretch or 0.0))
        return DeepLimits(float(duration), max(1, math.ceil(room / ROOM_STEP)) * ROOM_STEP, activity)

    def sample_limits(self, limits: DeepLimits) -> DeepLimits:
        return limits

    def restored(self, limits: dict) -> DeepLimits:
        return DeepLimits(**{**limits, "activity": tuple(limits["activity"])})

    def start(
        self, network: DeepNetwork, recordings: Recordings | Streamed, indices: np.ndarray, limits: DeepLimits
    ) -> tuple[DeepNetwork, DeepLimits, list[str]]:
        """Fit the initial weights and biases to training samples, where `lsuv` asks for it."""
        if not self.config.lsuv:
            return network, limits, []
        # Samples of a file may be sorted by class; these are of all parts of it.
        chosen = np.linspace(0, len(recordings) - 1, len(indices)).round().astype(np.int32)
        part, chosen = recordings.at(chosen)
        network, fits = fit_start(
            network,
            self.config,
            part.batch(jnp.asarray(chosen)),
            duration=limits.duration,
            capacity=limits.capacity,
        )
        return network, self._measured(limits, [fit.activity for fit in fits]), describe(fits, self.config)

    def apply(self, network: DeepNetwork, events: Events, limits: DeepLimits, update: Any = None) -> DeepOutput:
        return network.apply(self.config, events, update=update, **asdict(limits))

    def penalty(self, out: DeepOutput, limits: DeepLimits, weight: jax.Array | None) -> jax.Array:
        return self.config.lost_weight * sample_mean(reduce(jnp.add, map(lost_spikes, out.lists)), weight)

    def projected(self, network: DeepNetwork) -> DeepNetwork:
        return network

    def result(self, values: Any, out: DeepOutput, network: DeepNetwork, limits: DeepLimits) -> Result:
        lost, none = jnp.sum(out.input_lost), jnp.zeros((), jnp.int32)
        fits = (lost == 0) | (self.config.input_capacity is not None)
        return Result(values, lost, none, none, none, fits, layers=out.layers())

    def more_room(self, limits: DeepLimits, result: Result) -> DeepLimits:
        return replace(limits, capacity=2 * limits.capacity)

    def after_epoch(
        self, network: DeepNetwork, limits: DeepLimits, sums: dict, epoch: int
    ) -> tuple[DeepLimits, list[str]]:
        """Follow the activity; say what is wrong with the layers after epochs 1, 2, 4, 8, ...: it may stay so."""
        steps = n_steps(limits.duration, self.config.dt)
        activity, lost = (np.asarray(sums["layers"][name]) / sums["n"] for name in ("activity", "lost"))
        limits = self._measured(limits, activity)
        if epoch & (epoch - 1):
            return limits, []
        sizes, rooms = np.asarray(network.sizes), np.asarray(network.capacities(self.config))
        lost = lost / np.maximum(activity * steps * sizes, 1e-9)
        notes = []
        for k in range(len(sizes)):
            said = partial("epoch {}: layer {} is {}: {}; {}".format, epoch, k + 1)
            if activity[k] < SILENT:
                notes.append(
                    said(
                        "silent",
                        f"{100 * activity[k]:.2g} % of its neurons fire in a step",
                        "raise initial_activity or lower lr",
                    )
                )
            elif lost[k] > SATURATED or (rooms[k] < sizes[k] and activity[k] > FULL * rooms[k] / sizes[k]):
                notes.append(
                    said(
                        "saturated",
                        f"{100 * activity[k]:.2g} % of its neurons fire in a step, {100 * lost[k]:.2g} % of the spikes "
                        f"find no room among {rooms[k]}",
                        "raise max_activity or lower initial_activity",
                    )
                )
        return limits, notes

    def _measured(self, limits: DeepLimits, layers: Sequence[float] | np.ndarray) -> DeepLimits:
        """Limits with the activity of the layers where it has changed a lot, as each change compiles again."""
        pairs = zip(limits.activity[1:], map(_coarse, layers), strict=True)
        kept = (old if max(old, new) <= CHANGED * min(old, new) else new for old, new in pairs)
        return replace(limits, activity=(limits.activity[0], *kept))

    def lost(self, where: str, n: int) -> str:
        return f"lost {n} input events {where}, over {self.config.input_capacity} in a step; raise input_capacity"


def _coarse(fraction: float) -> float:
    """The nearest power of 2, so that few programs are compiled."""
    return min(1.0, 2.0 ** round(math.log2(max(float(fraction), LEAST))))
