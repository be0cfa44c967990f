"""What training asks of a kind of network: the seam between `fit` and the two models."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from ranvier.data import Dataset
from ranvier.data.recordings import Recordings
from ranvier.data.stream import Streamed
from ranvier.events import Events


class Result(NamedTuple):
    """What a compiled call gives back.

    `values` : what was asked for. `overflow`, `clipped` : spikes and delays that did not fit. `longest` : the longest
    delay. `busiest` : spikes of the sample that has most. `fits` : more room would not help. Of an update also `going`,
    whether it and all before it in its block changed the state, and the next `state`, which stays on the device.
    `layers` : numbers of each layer of a deep network by name.
    """

    values: Any
    overflow: Any
    clipped: Any
    longest: Any
    busiest: Any
    fits: Any
    going: Any = None
    state: Any = None
    layers: Any = None


class Output(Protocol):
    """What a network says about a batch."""

    @property
    def logits(self) -> jax.Array:
        """Class scores: (B, K)."""
        ...

    def sample_error(self, labels: jax.Array) -> jax.Array:
        """Cross entropy of each sample: (B,)."""
        ...

    def rate_hz(self, duration: float) -> jax.Array:
        """Mean rate over the neurons: (B,) [Hz]."""
        ...

    def layers(self) -> dict[str, jax.Array]:
        """Numbers of each layer by name: (B, L)."""
        ...

    def hidden_events(self, dt: float) -> Events:
        """Spikes of all neurons: (B, E)."""
        ...


class Model(Protocol):
    """A kind of network, made from the options of a run.

    Networks are pytrees with `n_in` and `n_classes`. Limits are a frozen dataclass of the static sizes of a simulation
    with a `duration`; each set of them compiles once.
    """

    def init(self, key: jax.Array, n_in: int, n_classes: int) -> Any:
        """A network before training."""

    def limits(
        self,
        network: Any,
        datasets: Sequence[Dataset],
        *,
        duration: float | None = None,
        max_delay: float | None = None,
    ) -> Any:
        """Limits to start with."""

    def sample_limits(self, limits: Any) -> Any:
        """Limits with room for the record of all spikes."""

    def restored(self, limits: dict) -> Any:
        """Limits from their fields."""

    def start(
        self, network: Any, recordings: Recordings | Streamed, indices: np.ndarray, limits: Any
    ) -> tuple[Any, Any, list[str]]:
        """The network fitted to some samples, limits that were enough, and what to say."""
        ...

    def apply(self, network: Any, events: Events, limits: Any, update: Any = None) -> Output:
        """Simulate a batch and read it out; `update` is the number of the update in training."""
        ...

    def penalty(self, out: Any, limits: Any, weight: jax.Array) -> Any:
        """What the loss has beside the cross entropy."""

    def projected(self, network: Any) -> Any:
        """The network after an update, back in what is allowed."""

    def result(self, values: Any, out: Any, network: Any, limits: Any) -> Result:
        """What a compiled call gives back, with what did not fit."""
        ...

    def more_room(self, limits: Any, result: Result) -> Any:
        """Larger limits after a result, on the host, that does not fit."""

    def after_epoch(self, network: Any, limits: Any, sums: dict, epoch: int) -> tuple[Any, list[str]]:
        """Limits to go on with, and what to say."""
        ...

    def lost(self, where: str, n: int) -> str:
        """What to say of `n` spikes that no room could be made for."""
        ...
