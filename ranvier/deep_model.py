"""`DeepModel`: a deep network as training asks for it; its input lists grow until no event is lost."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import ops
from ranvier.config import Config
from ranvier.data import Dataset
from ranvier.data.recordings import Recordings
from ranvier.deep import DeepNetwork, DeepOutput, init_deep
from ranvier.deep_start import describe, fit_start
from ranvier.events import Events, n_steps
from ranvier.model import Result

# Room for input events is a multiple of this many, so that data sets of similar size share one compiled program.
ROOM_STEP = 16

# A layer is silent where a smaller fraction of its neurons fires in a step, and saturated where a larger fraction of
# its spikes finds no room, or where so much of the room is taken in the mean.
SILENT, SATURATED, FULL = 1e-4, 0.01, 0.9


@dataclass(frozen=True)
class DeepLimits:
    """The static sizes of a deep network's run.

    Parameters
    ----------
    duration : float [ms]
    capacity : int
        Room for input events of a step and sample.
    """

    duration: float
    capacity: int


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
        if config.input_capacity is not None:
            return DeepLimits(float(duration), config.input_capacity)
        busiest = max(ops.events_a_step(x.times, x.offsets, duration, config.dt) for x in datasets)
        # Samples that are sped up have more events in a step.
        room = busiest / (1.0 - (config.augment_stretch or 0.0))
        return DeepLimits(float(duration), max(1, math.ceil(room / ROOM_STEP)) * ROOM_STEP)

    def sample_limits(self, limits: DeepLimits) -> DeepLimits:
        return limits

    def restored(self, limits: dict) -> DeepLimits:
        return DeepLimits(**limits)

    def start(
        self, network: DeepNetwork, recordings: Recordings, indices: np.ndarray, limits: DeepLimits
    ) -> tuple[DeepNetwork, DeepLimits, list[str]]:
        """Fit the initial weights and biases to training samples, where `lsuv` asks for it."""
        if not self.config.lsuv:
            return network, limits, []
        # Samples of a file may be sorted by class; these are of all parts of it.
        chosen = np.linspace(0, len(recordings.label) - 1, len(indices)).round().astype(np.int32)
        network, fits = fit_start(network, self.config, recordings.batch(jnp.asarray(chosen)), **asdict(limits))
        return network, limits, describe(fits, self.config)

    def apply(self, network: DeepNetwork, events: Events, limits: DeepLimits, update: Any = None) -> DeepOutput:
        return network.apply(self.config, events, update=update, **asdict(limits))

    def penalty(self, out: DeepOutput, limits: DeepLimits, weight: jax.Array) -> float:
        return 0.0

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
        """What is wrong with the layers, after epochs 1, 2, 4, 8, ...: it may stay so."""
        if epoch & (epoch - 1):
            return limits, []
        steps = n_steps(limits.duration, self.config.dt)
        activity, lost = (np.asarray(sums["layers"][name]) / sums["n"] for name in ("activity", "lost"))
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

    def lost(self, where: str, n: int) -> str:
        return f"lost {n} input events {where}, over {self.config.input_capacity} in a step; raise input_capacity"
