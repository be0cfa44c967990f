"""The command line: with data_cli, the only file that parses arguments or prints.

Results go to standard output, everything else to standard error. Exit codes: 0 done; 1 training diverged; 2 bad input,
said in one line; 130 interrupted.
"""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from ranvier import data_cli
from ranvier.config import READOUTS, Config
from ranvier.errors import RanvierError
from ranvier.runs import Run

INTERRUPTED = 130
ON_RESUME = ("epochs", "backend", "stream", "live", "post_mortem", "resume")  # may differ from those of the run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : words after `ranvier`; None: those of this process

    Returns
    -------
    int : exit code
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments == ["--version"]:
            import ranvier

            print(f"ranvier {ranvier.__version__}")
            return 0
        if arguments[:1] == ["data"]:  # has commands of its own
            return _data(arguments)
        command, options = _parse(arguments, Config.of(_named_model(arguments) or Config.model))
        return command(arguments, **options)
    except SystemExit as stop:  # how tyro ends after --help and after words that it does not know
        return stop.code if isinstance(stop.code, int) else 0
    except RanvierError as error:
        _say(f"ranvier: {error}")
        return 2
    except KeyboardInterrupt:
        _say("ranvier: interrupted")
        return INTERRUPTED


def _named_model(arguments: list[str]) -> str | None:
    """The value of --model, whose defaults the other options have; None if there is none that is known."""
    for word, after in itertools.pairwise([*arguments, ""]):
        if word.split("=")[0] == "--model":
            name = word.partition("=")[2] or after
            return name if name in READOUTS else None
    return None


def _parse(arguments: list[str], default: Config) -> tuple[Any, dict[str, Any]]:
    """The command that the arguments name, and its options; `default` has the values of those they do not name."""
    import tyro

    def train(options: Annotated[Config, tyro.conf.arg(name="")] = default, config: str | None = None):
        """Train a network and measure the best one, by validation, on the test samples.

        Args:
            config: TOML file with options; flags override it.
        """
        return _train, {"config": options, "file": config}

    def evaluate(run: tyro.conf.Positional[str], data: str | None = None, test_data: str | None = None):
        """Measure the best network of a run on its test samples.

        Args:
            run: Run folder.
            data: Measure on the test samples of this data set instead: a name, or the path of an event file.
            test_data: Path of the file with the test samples.
        """
        return _eval, {"folder": run, "data": data, "test_data": test_data}

    def plot(run: tyro.conf.Positional[str]):
        """Draw the figures of a run into its folder.

        Args:
            run: Run folder.
        """
        return _plot, {"folder": run}

    def info():
        """Show versions, devices and compiled kernels."""
        return _info, {}

    def data():
        """List the data sets, look at them, fetch and convert them: see ranvier data --help."""
        return _data, {}

    def bench(quick: bool = False, out: str | None = None):
        """Measure where sparse and dense products win on this machine, for networks with mode auto.

        Args:
            quick: Fewer sizes.
            out: File for the result instead of the one that is read: RANVIER_COSTS, or costs.json of the user.
        """
        return _bench, {"quick": quick, "out": out}

    return tyro.extras.subcommand_cli_from_dict(
        {"train": train, "eval": evaluate, "plot": plot, "info": info, "data": data, "bench": bench},
        prog="ranvier",
        description="Train spiking neural networks that live in space and time.",
        args=arguments,
    )


# commands --------------------------------------------------------------------------------------------------------


def _train(arguments: list[str], config: Config, file: str | None) -> int:
    if config.resume is not None:
        if file is not None:
            raise RanvierError(
                "train: got --config and --resume; needs one, as a run has its options; leave out --config"
            )
        run = Run.open(config.resume)
        config = _parse(arguments, run.config)[1]["config"].validate()
        _check_resume(run.config, config)
        run.update(config)
    else:
        run = None
        if file is not None:  # again, now with the file's values where no flag is given
            config = _parse(arguments, Config.from_toml(file, _named_model(arguments)))[1]["config"]
        config.validate()
    try:
        return _train_run(config, run)
    except (RanvierError, KeyboardInterrupt):
        raise
    except Exception:
        if config.post_mortem:
            import pdb
            import traceback

            traceback.print_exc()
            pdb.post_mortem()
        raise


def _train_run(config: Config, run: Run | None) -> int:
    _set_precision(config)
    import jax

    from ranvier.augment import settled
    from ranvier.train import TrainingDiverged, fit, init_state

    splits = _load_data(config)
    for line in splits.notes:
        _say(line)
    resume = run is not None
    if run is None:
        # What cannot be made, or does not fit the data, is found out before --overwrite replaces a run.
        settled(config, splits.train)
        jax.eval_shape(lambda: init_state(config, splits.train.n_channels, splits.train.n_classes))
        run = Run.create(None, config, overwrite=config.overwrite)
    _say(f"run {run.folder}")
    reporter = _Terminal(run, live=config.live)
    try:
        with reporter:
            report = fit(run.config, splits, run, reporter, resume=resume)
    except TrainingDiverged as error:
        _say(f"ranvier: {error}")
        return 1
    except BaseException:
        run.discard()
        raise
    if report.stopped:
        _say(f"stopped and saved; to go on: ranvier train --resume {run.folder}")
        return INTERRUPTED
    from ranvier.plots import plot_run

    _say(f"{len(plot_run(run.folder))} figures in {run.folder / 'figures'}")
    _print_test({row["split"]: row for row in report.rows}, run.folder)
    return 0


def _eval(arguments: list[str], folder: str, data: str | None, test_data: str | None) -> int:
    run = Run.open(folder)
    _set_precision(run.config)
    from ranvier.runs import read_checkpoint
    from ranvier.train import evaluate, load_network

    meta = read_checkpoint(run.folder / "checkpoints" / "best.npz")[1]
    network, meta = load_network(run, "best", meta["n_in"], meta["n_classes"])
    own = data is None and test_data is None
    config = run.config
    if not own:
        # A file that does not say its channels has those of the network, unless these are of joined pixels.
        n_in = meta["n_in"] if config.downsample == 1 else config.n_channels
        new = {"data": data or config.data, "test_data": test_data, "limit_test": None, "n_channels": n_in}
        config = replace(config, **new).validate()
    splits = _load_data(config)
    # Rates are per simulated time: the run's own, where these are the run's own samples.
    duration = meta["limits"]["duration"] if own else None
    measured = evaluate(network, splits.test, run.config, duration=duration, groups=splits.test_groups)
    for line in splits.notes:
        _say(line)
    _say(f"best network, of epoch {meta['epoch']}")
    for row in run.metrics():  # on sparse runs also before pruning
        if row["epoch"] == meta["epoch"] and row["split"].startswith("validation"):
            _say(_describe(row["split"], row))
    _print_test({"test" if name == "all" else f"test {name}": vars(m) for name, m in measured.items()}, run.folder)
    return 0


def _plot(arguments: list[str], folder: str) -> int:
    from ranvier.plots import plot_run

    for path in plot_run(folder):
        print(path)
    return 0


def _info(arguments: list[str]) -> int:
    from ranvier.kernels import find
    from ranvier.runs import environment

    try:
        facts = environment()
        devices = f"{facts['backend']}: {', '.join(facts['devices'])}"
    except RuntimeError as error:  # what JAX raises when a backend does not start
        facts, devices = {"versions": {}}, f"none, the JAX backend does not start: {' '.join(str(error).split())}"
    lines = dict(facts["versions"])
    lines |= {name: facts[name] for name in ("python", "platform", "commit") if facts.get(name)}
    lines["devices"] = devices
    for name, value in lines.items():
        print(f"{name:10}{value}")
    for device in ("cpu", "cuda"):
        kernels = find(device)
        print(f"{'kernels' if device == 'cpu' else '':10}{device:6}{kernels.path if kernels.found else 'none'}")
        print(f"{'':16}{kernels.reason}")
        if device == "cuda" and kernels.found and facts.get("backend") == "cpu":
            print(f"{'':16}JAX does not see the GPU: install ranvier[cuda], and leave JAX_PLATFORMS unset")
    return 0


def _data(arguments: list[str]) -> int:
    return data_cli.main(arguments[1:])


def _bench(arguments: list[str], quick: bool, out: str | None) -> int:
    from ranvier.bench import bench

    for line in bench(quick, out, _say):
        print(line)
    return 0


# what commands share ---------------------------------------------------------------------------------------------


def _set_precision(config: Config) -> None:
    """64-bit numbers are switched on before the first array is made."""
    if config.precision == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)


def _load_data(config: Config):
    """The data of a run, cut to its sample limits."""
    import numpy as np

    from ranvier import data

    # The division of a file is fixed: runs that differ in their seed are measured on the same samples.
    splits = data_cli.load(config.data, test=config.test_data, split=config.split, n_channels=config.n_channels)
    limits = {"train": config.limit_train, "validation": config.limit_validation, "test": config.limit_test}
    for part, limit in limits.items():
        dataset = getattr(splits, part)
        if limit is None or limit >= len(dataset):
            continue
        # At random, as samples may be sorted by class; always the same ones.
        chosen = np.sort(np.random.default_rng(0).permutation(len(dataset))[:limit])
        index = splits.index | {part: splits.index.get(part, np.arange(len(dataset)))[chosen]}
        splits = replace(splits, **{part: dataset.subset(chosen)}, index=index)
        if part == "test":
            groups = {name: np.flatnonzero(np.isin(chosen, g)) for name, g in splits.test_groups.items()}
            splits = replace(splits, test_groups={name: g for name, g in groups.items() if len(g)})
    if config.downsample > 1:
        smaller = {part: data.downsample(getattr(splits, part), config.downsample) for part in limits}
        splits = replace(splits, **smaller)
    return splits


def _check_resume(old: Config, new: Config) -> None:
    for field in fields(Config):
        before, now = getattr(old, field.name), getattr(new, field.name)
        if before != now and field.name not in ON_RESUME:
            raise RanvierError(
                f"train: got {field.name} {now} for a run with {before}; needs the options of the run, "
                f"only epochs, backend and stream may change; leave out --{field.name.replace('_', '-')}"
            )


def _print_test(rows: dict[str, dict], folder: Path) -> None:
    """The groups of the test set, and last the one line on standard output that a command ends with."""
    for split, row in rows.items():
        if split != "test":
            _say(_describe(split, row))
    row = rows["test"]
    print(f"{_scores('test', row)}  rate {row['rate_hz']:.1f} Hz  run {folder}")


def _scores(split: str, row: dict) -> str:
    return f"{split} top-1 {100 * row['top1']:.1f} %  top-3 {100 * row['top3']:.1f} %"


def _describe(split: str, row: dict) -> str:
    return f"{_scores(split, row)}  loss {row['loss']:.3f}  rate {row['rate_hz']:.1f} Hz"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Interrupts:
    """Ctrl-C: the first asks for a stop, the second ends the process at once.

    Python runs signal handlers only between its own instructions, and an update or a compilation is one long call. The
    wakeup descriptor is written by the C handler itself, so a thread that reads it sees each Ctrl-C when it comes.
    """

    def __init__(self, on_first, before_exit):
        self.requested = threading.Event()
        self._on_first, self._before_exit = on_first, before_exit

    def __enter__(self):
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._old_handler = signal.signal(signal.SIGINT, lambda *_: None)
            self._old_descriptor = signal.set_wakeup_fd(self._write)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_):
        if self._active:
            signal.set_wakeup_fd(self._old_descriptor)
            signal.signal(signal.SIGINT, self._old_handler)
            os.close(self._write)  # the thread reads the end of the pipe and returns
            self._thread.join()
            os.close(self._read)

    def _watch(self) -> None:
        while byte := os.read(self._read, 1):
            if byte[0] != signal.SIGINT:
                continue
            if self.requested.is_set():
                self._before_exit()
                os._exit(INTERRUPTED)
            self._on_first()  # before the request, so that what it says comes before what the request makes others say
            self.requested.set()


class _Terminal:
    """What `fit` reports to: a progress bar on a terminal, one line an epoch elsewhere; Ctrl-C; the live picture."""

    def __init__(self, run: Run, *, live: bool):
        from rich.console import Console

        self.run = run
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.progress = None
        self.picture = _live_picture(run) if live else None
        self.interrupts = _Interrupts(self._note_stop, self._abandon)
        self.total_epochs = self.last_epoch = 0

    def __enter__(self):
        self.interrupts.__enter__()
        return self

    def __exit__(self, *error):
        if self.progress is not None:
            self.progress.stop()
        self.interrupts.__exit__(*error)

    def start(self, total_epochs: int, steps_per_epoch: int, epoch: int) -> None:
        self.total_epochs = total_epochs
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[scores]}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, transient=True, expand=True)
        self.task = self.progress.add_task(
            "train", total=steps_per_epoch, epoch=min(epoch + 1, total_epochs), epochs=total_epochs, scores="compiling"
        )
        self.progress.start()

    def step(self, epoch: int, step: int, loss: float, top1: float, samples_per_s: float) -> None:
        if self.progress is not None:
            scores = f"loss {loss:.3f}  top-1 {100 * top1:.0f} %  {samples_per_s:.0f} samples/s"
            self.progress.update(self.task, completed=step, epoch=epoch, scores=scores)

    def epoch(self, rows: list[dict]) -> None:
        self.last_epoch = rows[-1]["epoch"]
        if any(row["split"].startswith("test") for row in rows):
            return  # said at the end, by the command
        parts = [f"epoch {rows[0]['epoch']}/{self.total_epochs}"]
        for row in rows:
            parts.append(f"{row['split']} loss {row['loss']:.3f} top-1 {100 * row['top1']:.1f} %")
        parts.append(f"rate {rows[-1]['rate_hz']:.1f} Hz")
        if "activity" in rows[0]:
            parts.append("activity " + " ".join(f"{100 * x:.2f}" for x in rows[0]["activity"]) + " %")
            parts.append("lost " + " ".join(f"{x:.3g}" for x in rows[0]["lost"]))
        parts += [f"{row['samples_per_s']:.0f} samples/s" for row in rows if row["split"] == "train"]
        self.note("  ".join(parts))

    def note(self, line: str) -> None:
        self.console.print(line)

    def live(self, network) -> None:
        if self.picture is not None:
            self.picture(network, f"after epoch {self.last_epoch}")

    def stop_requested(self) -> bool:
        return self.interrupts.requested.is_set()

    def _abandon(self) -> None:
        self.console.show_cursor(True)
        self.run.discard()

    def _note_stop(self) -> None:
        self.note("stopping after this step, to save everything; Ctrl-C again ends at once, without")


def _live_picture(run: Run):
    """A function that draws the positions of a network into `figures/live.png`, and a window where a display is.

    None, after a note, for a network without positions.
    """
    import numpy as np

    from ranvier.plots import open_window, position_map, save_figure
    from ranvier.space import parse

    if run.config.model == "deep" or not parse(run.config.net).has_positions:
        what = "a deep network" if run.config.model == "deep" else f"net {run.config.net}"
        _say(f"live: {what} has no positions to draw")
        return None
    path, window = run.folder / "figures" / "live.png", open_window()
    _say(f"live: {path} is drawn after each epoch{'' if window else '; no display for a window'}")

    def draw(network, title: str) -> None:
        inputs, hidden = network.space.positions()
        points = {"inputs": np.asarray(inputs), "hidden": np.asarray(hidden)}
        if network.output is not None:
            points["outputs"] = np.asarray(network.output.positions(hidden)[1])
        save_figure(position_map({title: points}), path)
        if window is not None:
            window(path)

    return draw
