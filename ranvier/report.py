"""What training tells: to whom while it runs, and what it and a measurement came to."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ranvier.errors import RanvierError

# The numbers of a row of metrics that are means over samples.
MEANS = ("loss", "top1", "top3", "rate_hz")


class Reporter(Protocol):
    """What `fit` tells while it runs, and the one thing it asks."""

    def start(self, total_epochs: int, steps_per_epoch: int, epoch: int) -> None:
        """Training starts after `epoch` epochs are done (0 for a new run)."""

    def step(self, epoch: int, step: int, loss: float, top1: float, samples_per_s: float) -> None:
        """Update `step` (from 1) of `epoch` (from 1) is done; loss and top1 are those of its batch."""

    def epoch(self, rows: list[dict]) -> None:
        """Rows of metrics were logged: of an epoch, of the network before training, or of the test at the end."""

    def note(self, line: str) -> None:
        """Something to know that is no metric."""

    def live(self, network: Any) -> None:
        """The network after an epoch."""

    def stop_requested(self) -> bool:
        """Whether to stop after this update and save; asked once an update."""
        ...


class Quiet:
    """The reporter that says nothing and never stops."""

    def start(self, total_epochs: int, steps_per_epoch: int, epoch: int) -> None: ...

    def step(self, epoch: int, step: int, loss: float, top1: float, samples_per_s: float) -> None: ...

    def epoch(self, rows: list[dict]) -> None: ...

    def note(self, line: str) -> None: ...

    def live(self, network: Any) -> None: ...

    def stop_requested(self) -> bool:
        return False


@dataclass(frozen=True)
class Metrics:
    """Means over samples.

    Parameters
    ----------
    loss : float
        Cross entropy, without the rate penalty.
    top1, top3 : float
        Fractions of samples whose class is first, or among the first three.
    rate_hz : float [Hz]
        Mean over samples and hidden neurons.
    n : int
        Number of samples.
    layers : dict from a name to a list of float
        Of a deep network: `activity`, `lost`, `near_dropped` of each layer.
    """

    loss: float
    top1: float
    top3: float
    rate_hz: float
    n: int
    layers: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """What a network says about each sample of a data set.

    Parameters
    ----------
    loss : (n,) float64
    rank : (n,) int32
        Place of the true class: 0 is right.
    predicted : (n,) int32
    rate_hz : (n,) float64 [Hz]
        Mean over hidden neurons.
    lost : int
        Spikes, or input events of a deep network, that no room could be made for.
    layers : dict from a name to (n, L)
        Of a deep network, see `Metrics`.
    """

    loss: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    rate_hz: np.ndarray
    lost: int = 0
    layers: dict[str, np.ndarray] = field(default_factory=dict)

    def metrics(self, indices: np.ndarray | None = None) -> Metrics:
        """Means over all samples, or over those of `indices`."""
        chosen = slice(None) if indices is None else np.asarray(indices)
        loss, rank, rate = self.loss[chosen], self.rank[chosen], self.rate_hz[chosen]
        if len(rank) == 0:
            raise RanvierError("Predictions.metrics: got no samples; needs 1 or more; leave the empty group out")
        means = [float(np.mean(x)) for x in (loss, rank < 1, rank < 3, rate)]
        layers = {name: list(map(float, np.mean(x[chosen], axis=0))) for name, x in self.layers.items()}
        return Metrics(*means, n=len(rank), layers=layers)


@dataclass(frozen=True)
class Report:
    """What `fit` came to.

    Parameters
    ----------
    network : network of the model
        The best one by validation; the last one if the run was stopped.
    epochs : int
        Epochs done.
    best_epoch : int
        Epoch after which the best network was met (0: before training).
    stopped : bool
        Stopped on request before the end.
    rows : list of dict
        The test metrics, as logged; empty if the run was stopped.
    """

    network: Any
    epochs: int
    best_epoch: int
    stopped: bool
    rows: list[dict] = field(default_factory=list)
