"""`fit` trains a network and `evaluate` measures one; both print nothing."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.augment import Augmentation, augmented_batch, drawn_mates, settled
from ranvier.config import Config
from ranvier.data import Dataset, Splits
from ranvier.data.recordings import Feed, Recordings, to_device
from ranvier.data.splits import check_apart, check_same, record
from ranvier.data.stream import Streamed, too_large
from ranvier.deep_model import DeepModel
from ranvier.errors import RanvierError
from ranvier.events import Events, n_steps
from ranvier.losses import rate_penalty, sample_mean, true_rank
from ranvier.model import Model
from ranvier.model import Result as _Result
from ranvier.network import Network, Output, init_network, project_delays, project_positive
from ranvier.optimizer import make_optimizer, settled_schedule, stop_frozen
from ranvier.report import MEANS, Metrics, Predictions, Quiet, Report, Reporter
from ranvier.runs import Run
from ranvier.sparsify import Masks, all_kept, apply_masks, prune

# Room for spikes per time step and sample at the start: few steps have more. An update that lost one is done again
# with twice the room. Each size compiles once, and the time of a step grows with it.
STEP_CAPACITY = 4

# After an epoch the room in a step goes back to this many times the mean of the busiest sample, if that is much less.
PEAK = 8

# Mean rate [1/ms] for which the spike records of a readout that needs them have room at the start.
RECORD_RATE = 0.05

# A neuron has at most this many spikes in one step.
SPIKES_A_STEP = 4

# Room for delays to grow before the program compiles again.
DELAY_MARGIN = 1.25

# Simulations to find the initial scale of the input weights with, and how close the rate must come.
CALIBRATIONS, CALIBRATED = 24, 0.1

# Updates are sent to the device in blocks, whose results are read at the end: of so many, or about so long [s].
BLOCK, BLOCK_SECONDS = 64, 0.5

# Batches that are measured before their results are read.
MEASURED = 8

# What the random numbers of augmentation are told apart by from those of the initial network.
AUGMENT = 1

# Test samples whose spikes are kept for figures.
SAMPLES = 4


class TrainingDiverged(RuntimeError):
    """A loss or a gradient is no longer a finite number; the message names the first one that is not."""


@dataclass(frozen=True)
class Limits:
    """The static sizes of a simulation; each set of them compiles once.

    Parameters
    ----------
    duration, max_delay : float [ms]
    step_capacity : int
        Spikes of a step and sample that there is room for.
    capacity : int
        Recorded hidden spikes of a sample that there is room for; 0 where the readout needs none.
    """

    duration: float
    max_delay: float
    step_capacity: int
    capacity: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All arrays that training goes on from; the content of every checkpoint.

    Parameters
    ----------
    network : Network or DeepNetwork
    optimizer : Optax state
    masks : dict of (M, N) bool
        Weights that are not held at zero.
    """

    network: Any
    optimizer: Any
    masks: Masks


def fit(config: Config, splits: Splits, run: Run, reporter: Reporter | None = None, resume: bool = False) -> Report:
    """Train a network.

        loss = cross entropy + rate_weight * rate penalty

    After each epoch the network is measured on the validation samples. The one with the highest top-1 accuracy there
    (of equals, the lowest loss) is measured on the test samples, once, at the end. A batch whose spikes or delays did
    not fit is simulated again with more room before its update counts.

    Parameters
    ----------
    config : Config
    splits : Splits
    run : Run
        Where metrics, the checkpoints `initial`, `last`, `best`, and `samples.npz` go.
    reporter : Reporter or None
        None: says nothing.
    resume : bool
        Go on from checkpoint `last`. On a CPU the result equals that of an uninterrupted run bit for bit.

    Returns
    -------
    Report

    Raises
    ------
    RanvierError
        If the data or an option does not fit.
    TrainingDiverged
        If a loss or gradient is not finite; checkpoint `failed` holds the state before that update.

    Notes
    -----
    Without `config.duration` a simulation lasts until the latest event of the training and validation samples plus the
    longest initial delay; later test events are left out, which a note says.
    """
    return _Training(config, splits, run, reporter or Quiet()).run(resume)


def evaluate(
    network: Any,
    dataset: Dataset,
    config: Config,
    *,
    duration: float | None = None,
    max_delay: float | None = None,
    groups: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Metrics]:
    """Measure a network on a data set.

    Parameters
    ----------
    network : Network or DeepNetwork
    dataset : Dataset
    config : Config
        That of its training.
    duration : float or None [ms]
        None: `config.duration`, else up to the latest event plus the longest delay.
    max_delay : float or None [ms]
        None: enough for the longest delay.
    groups : mapping from a name to indices, or None
        Parts of the data set to measure as well.

    Returns
    -------
    dict of Metrics
        `all`, and each group by its name.

    Raises
    ------
    RanvierError
        If the data set is empty or does not fit the network.
    """
    _check_data(network, dataset)
    limits = _model(config).limits(network, [dataset], duration=duration, max_delay=max_delay)
    source = Streamed(dataset) if _streams(config, [dataset]) else to_device(dataset)
    predictions, _ = predict(network, source, config, limits)
    return {"all": predictions.metrics()} | {
        name: predictions.metrics(indices) for name, indices in (groups or {}).items() if len(indices)
    }


def load_network(run: Run, name: str, n_in: int, n_classes: int) -> tuple[Any, dict]:
    """The network of a checkpoint.

    Parameters
    ----------
    run : Run
    name : str
        `initial`, `last`, `best` or `failed`.
    n_in, n_classes : int
        Channels and classes of the data.

    Returns
    -------
    (network, dict)
        The dict is the checkpoint's `meta`: `epoch`, `step`, `limits` (`duration`, `max_delay`, ...), `best`, ...

    Raises
    ------
    RanvierError
        If there is no such checkpoint, or it is of another network.
    """
    like = jax.eval_shape(lambda: init_state(run.config, n_in, n_classes))
    state, meta = run.load(name, like)
    return state.network, meta


def init_state(config: Config, n_in: int, n_classes: int) -> TrainState:
    """State before the first update, from `config.seed`."""
    network = _model(config).init(jax.random.key(config.seed), n_in, n_classes)
    return TrainState(network, make_optimizer(network, config).init(network), all_kept(network))


def initial_limits(
    network: Network, config: Config, latest: float, *, duration: float | None = None, max_delay: float | None = None
) -> Limits:
    """Sizes to start a simulation of a network in space with.

    Parameters
    ----------
    network : Network
    config : Config
        `duration`, `max_delay`, `dt`.
    latest : float [ms]
        Latest event.
    duration, max_delay : float or None [ms]
        Instead of those of `config`.

    Returns
    -------
    Limits
    """
    longest = float(network.longest_delay())
    duration = duration or config.duration
    if duration is None:
        # A whole number of steps, so that an event at `latest` itself is inside.
        duration = (math.floor((latest + longest) / config.dt) + 1) * config.dt
    max_delay = max_delay or config.max_delay or max(DELAY_MARGIN * longest, config.dt)
    # The compiled kernels go back along the recorded spikes, whatever the readout.
    native = network.backend(config) == "native"
    needed = config.readout != "count" or native
    capacity = _records(config, duration) if needed else 0
    # The kernels look at every neuron; the reference is the slower the more it looks at.
    step_capacity = config.hidden if native else min(STEP_CAPACITY, config.hidden)
    return Limits(float(duration), float(max_delay), step_capacity, capacity)


def predict(network: Any, recordings: Recordings | Streamed, config: Config, limits: Any) -> tuple[Predictions, Any]:
    """What a network says about each sample.

    Parameters
    ----------
    network : Network or DeepNetwork
    recordings : Recordings or Streamed
        A data set on the device, see `to_device`, or one that is sent batch by batch.
    config : Config
        `batch_size` and the options of the simulation.
    limits : those of the model

    Returns
    -------
    (Predictions, limits)
        The limits that were enough.
    """
    batches = _batches(np.arange(len(recordings)), config.batch_size)
    rows: list[_Result] = []
    with recordings.feed(np.stack([indices for indices, _ in batches])) as feed:
        while len(rows) < len(batches):
            part = range(len(batches))[len(rows) : len(rows) + min(MEASURED, feed.at_once)]
            sent = [_measure(network, *feed[k], config=config, limits=limits) for k in part]
            for row in jax.device_get(sent):
                if not row.fits:
                    limits = _model(config).more_room(limits, row)
                    break
                rows.append(row)
    columns = zip(*(row.values for row in rows), strict=True)
    kept = np.concatenate([weight for _, weight in batches]) > 0
    loss, rank, predicted, rate = (np.concatenate(column)[kept] for column in columns)
    lost = sum(int(row.overflow) for row in rows)
    layers = {name: np.concatenate([row.layers[name] for row in rows])[kept] for name in rows[0].layers}
    return Predictions(loss.astype(np.float64), rank, predicted, rate.astype(np.float64), lost, layers), limits


class _Training:
    """One call of `fit`: what stays fixed in it, and the position in the run."""

    def __init__(self, config: Config, splits: Splits, folder: Run, reporter: Reporter):
        enabled = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
        if (config.precision == "float64") != enabled:
            raise RanvierError(
                f"fit: got precision {config.precision} and jax_enable_x64 {enabled}; needs it for float64 and only "
                "then; call jax.config.update('jax_enable_x64', ...) first"
            )
        self.steps = -(-len(splits.train) // config.batch_size)
        config = settled_schedule(settled(config, splits.train), self.steps)
        self.model = _model(config)
        self.config, self.splits, self.folder, self.reporter = config, splits, folder, reporter
        self.state: TrainState = init_state(config, splits.train.n_channels, splits.train.n_classes)
        for dataset in (splits.train, splits.validation, splits.test):
            _check_data(self.state.network, dataset)
        self.limits = self.model.limits(self.state.network, [splits.train, splits.validation])
        # One length of rows for what is measured: each further shape would compile again.
        row = max(1, splits.validation.max_events, splits.test.max_events)
        self.streams = _streams(config, [splits.train, splits.validation, splits.test])
        self.put = Streamed if self.streams else to_device
        self.train, self.validation = self.put(splits.train), self.put(splits.validation, row)
        self.row = row
        self.block = 1  # updates that are sent before their results are read
        self.done = 0  # epochs
        self.step = 0  # updates of the epoch under way
        self.sums = _no_sums()
        self.best: dict = {}

    def run(self, resume: bool) -> Report:
        """Train to the end, or until asked to stop."""
        if resume:
            self._restore()
        self.reporter.start(self.config.epochs, self.steps, self.done)
        if self.streams and self.config.stream == "auto":
            self.reporter.note("samples are sent batch by batch: all would take too much of the device's free memory")
        if not resume:
            self._begin()
        while self.done < self.config.epochs:
            if not self._epoch():
                self._save("last")
                return Report(self.state.network, self.done, self.best["epoch"], stopped=True)
        return self._finish()

    def _begin(self) -> None:
        for line in check_apart(self.splits):
            self.reporter.note(line)
        self.folder.save_arrays("splits", **record(self.splits))
        late = int(np.sum(self.splits.test.times >= self.limits.duration))
        if late:
            self.reporter.note(
                f"{late} test events come after the simulated {self.limits.duration:g} ms and are left out"
            )
        indices, _ = _batches(np.arange(len(self.splits.train)), self.config.batch_size)[0]
        network, self.limits, notes = self.model.start(self.state.network, self.train, indices, self.limits)
        self.state = replace(self.state, network=network)
        for line in notes:
            self.reporter.note(line)
        self._save("initial")
        row = self._validate("validation")
        self._log([row])
        self._choose(row)
        self._save("last")

    def _epoch(self) -> bool:
        """Go through the rest of an epoch; False if asked to stop."""
        # The order depends on seed and epoch alone, so that a resumed run sees the same batches.
        order = np.random.default_rng([self.config.seed, self.done + 1]).permutation(len(self.splits.train))
        batches = _batches(order, self.config.batch_size)
        with self._feed(np.stack([indices for indices, _ in batches])) as feed:
            while self.step < self.steps:
                weights = [weight for _, weight in batches[self.step :][: min(self.block, feed.at_once)]]
                self._updates_of(feed, weights)
                if self.step < self.steps and self.reporter.stop_requested():
                    return False
        self._end_epoch()
        return self.done == self.config.epochs or not self.reporter.stop_requested()

    def _feed(self, order: np.ndarray) -> Feed:
        """The batches of an epoch, where they are streamed with the classmates that their updates will draw."""
        if not (isinstance(self.train, Streamed) and self.config.augment_blend):
            return self.train.feed(order)
        updates = np.arange(len(order), dtype=np.int32) + self.done * self.steps
        mates = _mates(self.train.without_events, updates, order, config=self.config)
        return self.train.feed(order, np.asarray(mates))

    def _updates_of(self, feed: Feed, weights: list[np.ndarray]) -> None:
        """Do the updates of a block, up to the first that needs more room; what they report is read at the end.

        An update that does not fit, or is not finite, changes nothing, and neither do those sent after it. So the
        results do not depend on where blocks begin.
        """
        started, first = time.perf_counter(), self._updates
        sent, going = [], np.True_
        for k, weight in enumerate(weights):
            part, indices = feed[self.step + k]
            limits = self.limits
            result = _train_step(
                self.state, going, part, indices, weight, np.int32(first + k), config=self.config, limits=limits
            )
            self.state, going = result.state, result.going
            sent.append(result._replace(state=None))
        rows = jax.device_get(sent)
        done = sum(bool(row.going) for row in rows)
        seconds = time.perf_counter() - started
        for weight, row in zip(weights[:done], rows, strict=False):
            self._count(row, int(weight.sum()), seconds / done)
        if done < len(rows):
            self._refuse_infinite(rows[done])
            self.limits = self.model.more_room(self.limits, rows[done])
        if seconds > BLOCK_SECONDS:
            self.block = max(1, self.block // 2)
        elif seconds < BLOCK_SECONDS / 2:
            self.block = min(BLOCK, 2 * self.block)

    def _count(self, row: "_Result", n: int, seconds: float) -> None:
        """Add an update to the sums of its epoch, and report it."""
        means = {name: float(value) for name, value in zip(MEANS, row.values[: len(MEANS)], strict=True)}
        self.step += 1
        for name in MEANS:
            self.sums[name] += means[name] * n
        for name, value in (("n", n), ("lost", int(row.overflow)), ("seconds", seconds)):
            self.sums[name] += value
        self.sums["busiest"] = max(self.sums["busiest"], float(row.busiest))
        self.sums["latest"] = float(row.busiest)
        for name, values in row.layers.items():
            before = self.sums["layers"].get(name, [0.0] * len(values))
            self.sums["layers"][name] = [x + float(y) * n for x, y in zip(before, values, strict=True)]
        self.reporter.step(self.done + 1, self.step, means["loss"], means["top1"], n / seconds)

    def _refuse_infinite(self, row: "_Result") -> None:
        finite = row.values[-1]
        if row.fits and not finite.all():
            name = _quantities(self.state.network)[int(np.argmin(finite))]
            where = f"{name} at epoch {self.done + 1} step {self.step + 1}"
            self._save("failed", failed=where)
            raise TrainingDiverged(
                f"fit: got a {where} that is not finite; needs finite numbers; lower lr or set clip "
                "(checkpoint 'failed' has the state before this update)"
            )

    def _end_epoch(self) -> None:
        """Measure, prune, log, choose and save."""
        sums = self.sums
        self.done, self.step, self.sums = self.done + 1, 0, _no_sums()
        means = {name: sums[name] / sums["n"] for name in MEANS}
        means["layers"] = {name: [x / sums["n"] for x in values] for name, values in sums["layers"].items()}
        rows = [self._row("train", means, sums["seconds"], sums["n"])]
        self._note_lost("in training", int(sums["lost"]))
        self.limits, notes = self.model.after_epoch(self.state.network, self.limits, sums, self.done)
        for line in notes:
            self.reporter.note(line)
        if self.config.sparsity:
            network, masks = prune(self.state.network, self.config, self.done)
            if any(bool(jnp.any(getattr(network, name) != getattr(self.state.network, name))) for name in masks):
                rows.append(self._validate("validation before pruning"))
            self.state = replace(self.state, network=network, masks=masks)
        rows.append(self._validate("validation"))
        self._log(rows)
        self._choose(rows[-1])
        self._save("last")
        self.reporter.live(self.state.network)

    def _finish(self) -> Report:
        """Measure the best network on the test samples, once: a finished run that is resumed reads what it logged."""
        best, meta = self.folder.load("best", self.state)
        parts: dict[str, np.ndarray | None] = {"test": None}
        parts |= {f"test {name}": part for name, part in self.splits.test_groups.items() if len(part)}
        logged = {row["split"]: row for row in self.folder.metrics() if row["step"] == self._updates}
        if not parts.keys() <= logged.keys():
            self._keep_samples(best.network)
            started = time.perf_counter()
            predictions = self._predict(best.network, self.put(self.splits.test, self.row))
            seconds, n = time.perf_counter() - started, len(self.splits.test)
            for split, part in parts.items():
                row = self._row(split, asdict(predictions.metrics(part)), seconds, n)
                logged.setdefault(split, row | {"best_epoch": meta["epoch"]})
            written = {row["split"] for row in self.folder.metrics() if row["step"] == self._updates}
            self._log([logged[split] for split in parts if split not in written])
        rows = [logged[split] for split in parts]
        return Report(best.network, self.done, meta["epoch"], stopped=False, rows=rows)

    def _keep_samples(self, network: Any) -> None:
        """Keep input and hidden spikes of the first test sample of each of a few classes."""
        test = self.splits.test
        indices = np.sort(np.unique(test.labels, return_index=True)[1][:SAMPLES])
        events = test.batch(indices, self.row)
        limits = self.model.sample_limits(self.limits)
        result, _ = _with_room(partial(_spikes, network, events, config=self.config), limits, self.config)
        predicted, hidden = result.values
        width = max(1, int(np.isfinite(hidden.time).sum(axis=1).max()))
        self.folder.save_arrays(
            "samples",
            input_time=events.time,
            input_channel=events.channel,
            hidden_time=hidden.time[:, :width],
            hidden_neuron=hidden.channel[:, :width],
            layer_sizes=np.array(network.sizes),
            label=test.labels[indices],
            prediction=predicted,
            index=indices,
            duration=self.limits.duration,
            class_names=np.array(test.class_names),
        )

    def _validate(self, split: str) -> dict:
        """A row of metrics on the validation samples."""
        started = time.perf_counter()
        metrics = self._predict(self.state.network, self.validation).metrics()
        return self._row(split, asdict(metrics), time.perf_counter() - started, metrics.n)

    def _predict(self, network: Any, recordings: Recordings | Streamed) -> Predictions:
        predictions, self.limits = predict(network, recordings, self.config, self.limits)
        self._note_lost("in measuring", predictions.lost)
        return predictions

    def _note_lost(self, where: str, lost: int) -> None:
        if lost:
            self.reporter.note(f"epoch {self.done}: {self.model.lost(where, lost)}")

    @property
    def _updates(self) -> int:
        """Updates since the start of the run."""
        return self.done * self.steps + self.step

    def _row(self, split: str, means: Mapping[str, Any], seconds: float, n: float) -> dict:
        row = {"epoch": self.done, "step": self._updates, "split": split}
        row |= {name: means[name] for name in MEANS} | {"seconds": seconds, "samples_per_s": n / seconds}
        return row | means["layers"]

    def _log(self, rows: list[dict]) -> None:
        for row in rows:
            self.folder.log(row)
        self.reporter.epoch(rows)

    def _choose(self, row: dict) -> None:
        """Keep the network if it is the best on the validation samples so far."""
        if not self.best or (row["top1"], -row["loss"]) > (self.best["top1"], -self.best["loss"]):
            self.best = {name: row[name] for name in ("epoch", "top1", "loss")}
            self._save("best")

    def _save(self, name: str, **more: Any) -> None:
        meta = {
            "epoch": self.done,
            "step": self._updates,
            "steps_per_epoch": self.steps,
            "n_train": len(self.splits.train),
            "n_in": self.splits.train.n_channels,
            "n_classes": self.splits.train.n_classes,
            "limits": asdict(self.limits),
            "sums": self.sums,
            "best": self.best,
        }
        self.folder.save(name, self.state, meta | more)

    def _restore(self) -> None:
        """Take up the state and the position of checkpoint `last`."""
        self.state, meta = self.folder.load("last", self.state)
        n, steps = len(self.splits.train), self.steps
        if (meta["n_train"], meta["steps_per_epoch"]) != (n, steps):
            raise RanvierError(
                f"fit: got {n} training samples in {steps} batches; needs the {meta['n_train']} in "
                f"{meta['steps_per_epoch']} that this run began with; resume with the same data and batch_size"
            )
        if (self.folder.folder / "splits.npz").is_file():  # not in the folders of earlier versions
            check_same(self.folder.load_arrays("splits"), self.splits)
        self.done, self.step = divmod(meta["step"], steps)
        # The sizes of the simulation decide in which order numbers are added, so they belong to the state.
        self.limits = self.model.restored(meta["limits"])
        self.sums, self.best = _no_sums() | meta["sums"], meta["best"]
        self.folder.rewind(meta["step"])


class _SpaceModel:
    """One layer in space; see `ranvier.model.Model`."""

    def __init__(self, config: Config):
        self.config = config

    def init(self, key: jax.Array, n_in: int, n_classes: int) -> Network:
        network = init_network(self.config, key, n_in, n_classes)
        return project_positive(network) if self.config.positive_weights else network

    def limits(
        self,
        network: Network,
        datasets: Sequence[Dataset],
        *,
        duration: float | None = None,
        max_delay: float | None = None,
    ) -> Limits:
        latest = max(dataset.latest for dataset in datasets)
        return initial_limits(network, self.config, latest, duration=duration, max_delay=max_delay)

    def sample_limits(self, limits: Limits) -> Limits:
        return replace(limits, capacity=limits.capacity or _records(self.config, limits.duration))

    def restored(self, limits: dict) -> Limits:
        return Limits(**limits)

    def start(
        self, network: Network, recordings: Recordings | Streamed, indices: np.ndarray, limits: Limits
    ) -> tuple[Network, Limits, list[str]]:
        """Scale the input weights such that the samples make the network fire at `initial_rate_hz`.

        The scale is doubled from a small one, so that a far too active network is never simulated, then bisected.
        """
        if self.config.weight_scale_in is not None:
            return network, limits, []
        part, indices = recordings.at(indices)
        start, target = network, self.config.initial_rate_hz
        low, high, factor, rate = 0.0, math.inf, 2.0**-10, 0.0
        for _ in range(CALIBRATIONS):
            network = replace(start, w_in=start.w_in * factor)
            call = partial(_measure, network, part, indices, config=self.config)
            result, limits = _with_room(call, limits, self.config)
            rate = float(np.mean(result.values[3]))
            if abs(rate - target) <= CALIBRATED * target:
                break
            low, high = (factor, high) if rate < target else (low, factor)
            factor = 2.0 * factor if high == math.inf else math.sqrt(low * high) if low else 0.5 * high
        return (
            network,
            limits,
            [f"initial input weights x {factor:.4g}: the untrained network fires at {rate:.1f} Hz"],
        )

    def apply(self, network: Network, events: Events, limits: Limits, update: Any = None) -> Output:
        return stop_frozen(network, self.config).apply(self.config, events, **asdict(limits))

    def penalty(self, out: Output, limits: Limits, weight: jax.Array) -> Any:
        config = self.config
        penalty = rate_penalty(out.spike_count, limits.duration, config.target_rate_hz, config.population_rate, weight)
        return config.rate_weight * penalty

    def projected(self, network: Network) -> Network:
        network = project_delays(network)
        return project_positive(network) if self.config.positive_weights else network

    def result(self, values: Any, out: Output, network: Network, limits: Limits) -> _Result:
        return _result(values, out, network, self.config, limits)

    def more_room(self, limits: Limits, result: _Result) -> Limits:
        return _more_room(limits, result, self.config)

    def after_epoch(self, network: Network, limits: Limits, sums: dict, epoch: int) -> tuple[Limits, list[str]]:
        """Give back room that is no longer needed."""
        enough = _step_capacity(self.config, limits, PEAK * sums["busiest"])
        if 4 * enough <= limits.step_capacity and network.backend(self.config) == "reference":
            limits = replace(limits, step_capacity=enough)
        # A burst needs room once; every later update would pay for it.
        least = _records(self.config, limits.duration)
        enough = _capacity(self.config, limits, 2 * sums["latest"], least)
        if 4 * enough <= limits.capacity:
            limits = replace(limits, capacity=enough)
        longest, allowed = float(network.longest_delay()), self.config.max_delay
        if allowed is not None and longest > allowed:
            return limits, [f"epoch {epoch}: the longest delay, {longest:.4g} ms, acts as {allowed:g} ms"]
        return limits, []

    def lost(self, where: str, n: int) -> str:
        return f"lost {n} spikes {where}, over {SPIKES_A_STEP} of a neuron in one step; lower dt"


def _streams(config: Config, datasets: Sequence[Dataset]) -> bool:
    return config.stream == "on" or (config.stream == "auto" and too_large(datasets))


@lru_cache
def _model(config: Config) -> Model:
    return DeepModel(config) if config.model == "deep" else _SpaceModel(config)


def _result(values: Any, out: Output, network: Network, config: Config, limits: Limits) -> _Result:
    busiest = jnp.max(jnp.sum(out.spike_count, axis=1) + out.overflow)
    result = _Result(
        values, jnp.sum(out.overflow), out.delay_clipped, network.longest_delay(), busiest, None, layers={}
    )
    delays, spikes = _short_of(limits, result, config)
    return result._replace(fits=~(delays | spikes))


def _short_of(limits: Limits, result: _Result, config: Config) -> tuple[Any, Any]:
    """Whether there is too little room for delays, and for spikes, and more would help; on the device or the host."""
    delays = (result.clipped > 0) & (result.longest > limits.max_delay) & (result.longest < math.inf)
    records = result.busiest > limits.capacity if 0 < limits.capacity < _most(config, limits) else False
    spikes = (result.overflow > 0) & ((limits.step_capacity < config.hidden) | records)
    return delays & (config.max_delay is None), spikes


def _most(config: Config, limits: Limits) -> int:
    """Records that are enough for every spike of a sample there can be."""
    return SPIKES_A_STEP * config.hidden * n_steps(limits.duration, config.dt)


def _more_room(limits: Limits, result: _Result, config: Config) -> Limits:
    """Larger limits after a result, on the host, that does not fit."""
    delays, _ = _short_of(limits, result, config)
    if delays:
        return replace(limits, max_delay=DELAY_MARGIN * float(result.longest))
    # The mean over the steps may already show that twice the room is not enough.
    mean = _step_capacity(config, limits, 2 * float(result.busiest))
    step_capacity = min(config.hidden, max(2 * limits.step_capacity, mean))
    # Records are large: there are more only where the busiest sample needs them.
    capacity = _capacity(config, limits, float(result.busiest), limits.capacity)
    return replace(limits, step_capacity=step_capacity, capacity=capacity)


def _capacity(config: Config, limits: Limits, spikes: float, least: int) -> int:
    """Records for so many spikes, `least` doubled as often as needed: of few sizes, like `_step_capacity`."""
    doublings = math.ceil(math.log2(max(1.0, spikes / least))) if least else 0
    return min(_most(config, limits), least * 2**doublings)


def _with_room(call: Callable[..., _Result], limits: Any, config: Config) -> tuple[_Result, Any]:
    """Call with `limits`, and again with larger ones as long as spikes or delays did not fit."""
    while True:
        result = jax.device_get(call(limits=limits))
        if result.fits:
            return result, limits
        limits = _model(config).more_room(limits, result)


def _augment_key(config: Config, update: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), AUGMENT), update)


@partial(jax.jit, static_argnames="config")
def _mates(recordings: Recordings, updates: jax.Array, order: jax.Array, *, config: Config) -> jax.Array:
    """The classmates that updates (k,) of the samples `order` (k, B) will draw: (k, B) int32."""

    def of_one(batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return drawn_mates(_augment_key(config, batch[0]), recordings, batch[1])

    return jax.lax.map(of_one, (updates, order))


@partial(jax.jit, static_argnames=("config", "limits"))
def _train_step(
    state: TrainState,
    going: jax.Array,
    recordings: Recordings,
    indices: jax.Array,
    weight: jax.Array,
    update: jax.Array,
    *,
    config: Config,
    limits: Any,
) -> _Result:
    """One update, from the numbers of its samples; the state stays as it is unless `going`, and the update fits.

    The random numbers of augmentation depend on the seed and the number of the update alone.
    """
    events = augmented_batch(_augment_key(config, update), recordings, indices, Augmentation.of(config))
    labels = recordings.label[indices]

    model = _model(config)

    def objective(network: Any) -> tuple[jax.Array, tuple]:
        out = model.apply(network, events, limits, update)
        error = sample_mean(out.sample_error(labels), weight)
        return error + model.penalty(out, limits, weight), (error, out)

    (loss, (error, out)), gradient = jax.value_and_grad(objective, has_aux=True)(state.network)
    finite = [jnp.isfinite(out.logits).all(), jnp.isfinite(loss)]
    finite += [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]
    # A removed weight takes no part in the norms that gradients are clipped by.
    gradient = apply_masks(gradient, state.masks)
    updates, optimizer = make_optimizer(state.network, config).update(gradient, state.optimizer, state.network)
    network = model.projected(jax.tree.map(jnp.add, state.network, updates))
    network = apply_masks(network, state.masks)

    rank = true_rank(out.logits, labels)
    means = [sample_mean(x, weight) for x in (rank < 1, rank < 3, out.rate_hz(limits.duration))]
    result = model.result((error, *means, jnp.stack(finite)), out, state.network, limits)
    layers = {name: jax.vmap(sample_mean, (1, None))(x, weight) for name, x in result.layers.items()}
    going = going & result.fits & jnp.stack(finite).all()
    after = TrainState(network, optimizer, state.masks)
    after = jax.tree.map(partial(jnp.where, going), after, state)
    return result._replace(going=going, state=after, layers=layers)


def _quantities(network: Any) -> list[str]:
    """What the flags `finite` of an update speak of, in the order in which they are computed."""
    paths = jax.tree_util.tree_flatten_with_path(network)[0]
    leaves = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    return ["logit", "loss"] + [f"gradient of {leaf}" for leaf in leaves]


@partial(jax.jit, static_argnames=("config", "limits"))
def _measure(network: Any, recordings: Recordings, indices: jax.Array, *, config: Config, limits: Any) -> _Result:
    """Cross entropy, rank of the true class, predicted class and rate [Hz] of each sample."""
    labels = recordings.label[indices]
    model = _model(config)
    out = model.apply(network, recordings.batch(indices), limits)
    error, rank = out.sample_error(labels), true_rank(out.logits, labels)
    values = (error, rank, jnp.argmax(out.logits, axis=1), out.rate_hz(limits.duration))
    return model.result(values, out, network, limits)


@partial(jax.jit, static_argnames=("config", "limits"))
def _spikes(network: Any, events: Events, *, config: Config, limits: Any) -> _Result:
    """Predicted class and hidden spikes of each sample."""
    model = _model(config)
    out = model.apply(network, events, limits)
    return model.result((jnp.argmax(out.logits, axis=1), out.hidden_events(config.dt)), out, network, limits)


def _step_capacity(config: Config, limits: Limits, spikes: float) -> int:
    """Room in a step for the mean of `spikes` over all steps: of few sizes, so that few programs are compiled."""
    mean = spikes / n_steps(limits.duration, config.dt)
    doublings = max(0, math.ceil(math.log2(max(mean, 1.0) / STEP_CAPACITY)))
    return min(config.hidden, STEP_CAPACITY * 2**doublings)


def _records(config: Config, duration: float) -> int:
    if config.single_spike:
        return config.hidden
    return max(64, math.ceil(RECORD_RATE * config.hidden * duration))


def _batches(order: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(indices (size,), weight (size,)) of each batch; the last one is filled up with a sample of weight 0."""
    batches = []
    for start in range(0, len(order), size):
        part = order[start : start + size]
        weight = (np.arange(size) < len(part)).astype(np.float32)
        batches.append((np.concatenate([part, np.full(size - len(part), part[0])]).astype(np.int32), weight))
    return batches


def _check_data(network: Any, dataset: Dataset) -> None:
    n_in, n_classes = network.n_in, network.n_classes
    if len(dataset) == 0:
        raise RanvierError(f"train: got no samples in data set {dataset.name}; needs 1 or more; use more data")
    if dataset.n_channels != n_in or dataset.n_classes > n_classes:
        raise RanvierError(
            f"train: got data set {dataset.name} of {dataset.n_channels} channels and {dataset.n_classes} classes; "
            f"needs {n_in} channels and at most {n_classes} classes; use the data that the network was made for"
        )


def _no_sums() -> dict[str, Any]:
    return dict.fromkeys((*MEANS, "n", "lost", "seconds", "busiest", "latest"), 0) | {"layers": {}}
