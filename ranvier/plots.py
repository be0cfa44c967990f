"""Figures from a run folder alone: what `ranvier plot` writes.

Colours are those of Okabe and Ito (2008) and viridis, which readers with any colour vision can tell apart.
Every function that draws takes arrays and returns a matplotlib figure that belongs to no window.
"""

import contextlib
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.runs import is_run, read_arrays, read_checkpoint, read_metrics, write_atomic
from ranvier.space import Spec, lattice, parse

BLUE, SKY, ORANGE, AMBER = "#0072B2", "#56B4E9", "#D55E00", "#E69F00"
GREEN, PINK, GREY, INK = "#009E73", "#CC79A7", "#9A9A9A", "#262626"
SPLITS = {"train": BLUE, "validation": ORANGE, "validation before pruning": SKY, "test": GREEN}
GROUPS = (AMBER, PINK, "#7A5C00", INK)  # named groups of the test set
LAYERS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER, INK)
LAYER_LINES = {"train": "--", "validation": "-o"}
STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 180,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same figure
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}


def plot_run(folder: str | Path) -> list[Path]:
    """Draw every figure that a run folder has the data for, into its `figures` folder.

    Parameters
    ----------
    folder : run folder

    Returns
    -------
    list of Path : the PNG files written: `learning`, `raster`, `positions`, `delays`, `weights`; of a deep network
        `learning`, `activity`, `raster`

    Raises
    ------
    RanvierError : it is no run folder, or a file in it cannot be read
    """
    folder = Path(folder)
    if not is_run(folder):
        raise RanvierError(
            f"plot_run: {folder} is not a run folder; needs a folder with config.toml and checkpoints/; "
            "give the folder that the last line of ranvier train names"
        )
    config = Config.from_toml(folder / "config.toml")
    rows = read_metrics(folder)
    figures = _deep_figures(folder, rows) if config.model == "deep" else _space_figures(folder, config, rows)
    (folder / "figures").mkdir(exist_ok=True)
    return [save_figure(figure, folder / "figures" / f"{name}.png") for name, figure in figures.items()]


def _space_figures(folder: Path, config: Config, rows: list[dict]) -> dict[str, Any]:
    spec = parse(config.net)
    found = {stage: _read_network(folder, name) for stage, name in (("before", "initial"), ("after", "best"))}
    stages = {stage: network for stage, network in found.items() if network is not None}
    figures = {}
    if rows:
        target = config.target_rate_hz if config.rate_weight > 0 else None
        n_classes = stages["before"]["w_out"].shape[1] if "before" in stages else None
        figures["learning"] = learning_curves(rows, target_rate_hz=target, n_classes=n_classes)
    if "after" in stages and (folder / "samples.npz").is_file():
        figures["raster"] = raster(read_arrays(folder / "samples.npz"), *stages["after"]["w_in"].shape)
    if stages and spec.has_positions:
        titles = {"before": "before training", "after": "after training"}
        figures["positions"] = position_map({titles[s]: network_positions(spec, n) for s, n in stages.items()})
    if stages and spec.kind != "none":
        figures["delays"] = delay_histograms({stage: network_delays(spec, n) for stage, n in stages.items()})
        network = stages.get("after", stages.get("before", {}))
        figures["weights"] = delay_weight_maps(network_delays(spec, network), network_weights(network))
    return figures


def _deep_figures(folder: Path, rows: list[dict]) -> dict[str, Any]:
    figures = {}
    samples = read_arrays(folder / "samples.npz") if (folder / "samples.npz").is_file() else None
    best = folder / "checkpoints" / "best.npz"
    n_in, n_classes = (read_checkpoint(best)[1][x] for x in ("n_in", "n_classes")) if best.is_file() else (None, None)
    if rows:
        figures["learning"] = learning_curves(rows, n_classes=n_classes)
        figures["activity"] = activity_curves(rows)
    if samples is not None and n_in is not None:
        sizes = samples["layer_sizes"]
        figures["raster"] = raster(samples, n_in, int(sizes.sum()), sizes=sizes.tolist())
    return figures


def save_figure(figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically: a viewer that reloads the file never sees half of it.

    Parameters
    ----------
    figure : matplotlib Figure
    path : PNG file

    Returns
    -------
    Path : the file
    """
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
    return Path(path)


def open_window() -> Callable[[Path], None] | None:
    """A window for a PNG file that changes.

    Returns
    -------
    function that shows the file at a path, or None where there is no display or no toolkit for windows
    """
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    import matplotlib

    try:
        import matplotlib.pyplot as plt
        from matplotlib.backends import BackendFilter, backend_registry

        windowed = [name.lower() for name in backend_registry.list_builtin(BackendFilter.INTERACTIVE)]
        if str(matplotlib.get_backend()).lower() not in windowed:
            return None
        plt.ion()
        figure = plt.figure("ranvier", figsize=(6, 5.2))
    except Exception:  # each toolkit has errors of its own for a display that is not there
        return None
    axes = figure.add_axes((0, 0, 1, 1))

    def show(path: Path) -> None:
        with contextlib.suppress(Exception):  # a closed window or a lost display must not end the training
            axes.clear()
            axes.set_axis_off()
            axes.imshow(plt.imread(path))
            figure.canvas.draw()
            figure.canvas.flush_events()

    return show


# what a checkpoint says ------------------------------------------------------------------------------------------


def network_positions(spec: Spec, network: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Positions of all neurons of a network.

    Parameters
    ----------
    spec : of `Config.net`
    network : leaves of the network by tree path, `w_in`, `space/params/x_in`, ...

    Returns
    -------
    dict : `inputs` (M, k), `hidden` (N, k), and `outputs` (K, k) where output neurons have positions [ms]
    """
    n_in, n_hidden = network["w_in"].shape
    space = _params(network, "space/params/")
    result = {"inputs": _points(spec, space, "in", n_in), "hidden": _points(spec, space, "rec", n_hidden)}
    output = _params(network, "output/params/")
    if output:
        result["outputs"] = _points(spec, output, "rec", network["w_out"].shape[1])
    return result


def network_delays(spec: Spec, network: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Delays of all synapses of a network, in NumPy.

        none 0;  free d;  euclidean s sqrt(0.01 + |p - q|^2);  lattice s |p - q|_1;   s = 1 + x (0.5 + 0.5 tanh e)

    Parameters
    ----------
    spec : of `Config.net`
    network : as `network_positions`

    Returns
    -------
    dict : `input` (M, N), `recurrent` (N, N) with nan where no synapse is, `output` (N, K) [ms]; only those there are
    """
    shapes = {name: w.shape for name, w in network_weights(network).items()}
    space, output = _params(network, "space/params/"), _params(network, "output/params/")
    points = network_positions(spec, network) if spec.has_positions else {}
    result = {"input": _delays(spec, space, "in", shapes["input"], points.get("inputs"), points.get("hidden"))}
    if "recurrent" in shapes:
        d = _delays(spec, space, "rec", shapes["recurrent"], points.get("hidden"), points.get("hidden"))
        result["recurrent"] = np.where(np.eye(len(d), dtype=bool), np.nan, d)
    if output:
        result["output"] = _delays(spec, output, "in", shapes["output"], points.get("hidden"), points.get("outputs"))
    return result


def network_weights(network: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weight matrices of a network.

    Parameters
    ----------
    network : as `network_positions`

    Returns
    -------
    dict : `input` (M, N), `recurrent` (N, N), `output` (N, K) [1/ms]; only those there are
    """
    names = {"input": "w_in", "recurrent": "w_rec", "output": "w_out"}
    return {name: network[leaf] for name, leaf in names.items() if leaf in network}


def _read_network(folder: Path, name: str) -> dict[str, np.ndarray] | None:
    path = folder / "checkpoints" / f"{name}.npz"
    if not path.is_file():
        return None
    network = _params(read_checkpoint(path)[0], "network/")
    if not {"w_in", "w_out"} <= network.keys():
        raise RanvierError(
            f"plot_run: {path} holds no network; needs network/w_in and network/w_out; use a run of ranvier train"
        )
    return network


def _params(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _points(spec: Spec, params: dict[str, np.ndarray], end: str, n: int) -> np.ndarray:
    if spec.kind == "lattice":
        return params["scale"] * lattice(n, spec.dim) + params[f"origin_{end}"]
    return params[f"x_{end}"]


def _delays(spec, params, end, shape, source, target) -> np.ndarray:
    if spec.kind == "none":
        return np.zeros(shape)
    if spec.kind == "free":
        return np.maximum(params[f"d_{end}"], 0.0)
    distance = np.zeros(shape)
    for axis in range(spec.dim):  # one axis at a time: (M, N, k) at once may not fit
        difference = source[:, None, axis] - target[None, :, axis]
        distance += np.abs(difference) if spec.kind == "lattice" else difference**2
    if spec.kind == "euclidean":
        distance = np.sqrt(0.01 + distance)
    slack = params.get(f"e_{end}")
    return distance if slack is None else (1 + spec.slack * (0.5 + 0.5 * np.tanh(slack))) * distance


# figures ---------------------------------------------------------------------------------------------------------


def learning_curves(rows: list[dict], *, target_rate_hz: float | None = None, n_classes: int | None = None):
    """Loss, accuracy and firing rate of each epoch.

    Parameters
    ----------
    rows : metrics rows: `epoch`, `split`, `loss`, `top1`, `top3`, `rate_hz`
    target_rate_hz : [Hz] drawn as a line
    n_classes : draws the accuracy of guessing

    Returns
    -------
    Figure
    """
    with _style() as figure_of:
        figure, axes = figure_of(1, 3, width=11, height=3.6)
        found = dict.fromkeys(row["split"] for row in rows)
        splits = [split for split in SPLITS if split in found] + [split for split in found if split not in SPLITS]
        colours = dict(zip((split for split in splits if split not in SPLITS), itertools.cycle(GROUPS), strict=False))
        colours |= SPLITS
        for axis, key, scale in zip(axes, ("loss", "top1", "rate_hz"), (1, 100, 1), strict=True):
            for split in splits:
                mine = [row for row in rows if row["split"] == split and key in row]
                epoch, value = [row["epoch"] for row in mine], [scale * row[key] for row in mine]
                colour = colours[split]
                if split.startswith("test"):
                    marker, size = ("*", 10) if split == "test" else ("D", 5)
                    axis.plot(epoch, value, marker, ms=size, color=colour, mec="white", mew=0.6, label=split,
                              zorder=5 if split == "test" else 4, clip_on=False)  # fmt: skip
                    continue
                axis.plot(epoch, value, "-o", ms=3 if len(mine) > 1 else 6, color=colour, label=split, zorder=3)
                if key == "top1" and split in ("train", "validation"):
                    top3 = [100 * row.get("top3", math.nan) for row in mine]
                    axis.plot(epoch, top3, "--", color=colour, lw=1.2, alpha=0.8, zorder=2)
            axis.set_xlabel("epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.margins(x=0.04)
        axes[0].set(title="Loss", ylabel="cross entropy [nat]")
        axes[1].set(title="Accuracy", ylabel="correct [%]", ylim=(0, 102))
        axes[1].plot([], [], "--", color=GREY, lw=1.2, label="class among the first 3")
        axes[2].set(title="Activity", ylabel="firing rate [Hz]")
        if n_classes:
            axes[1].axhline(100 / n_classes, color=GREY, ls=":", lw=1.3, label="guessing")
        if target_rate_hz is not None:
            axes[2].axhline(target_rate_hz, color=GREY, ls=":", lw=1.3, label="target")
        axes[2].set_ylim(0, 1.04 * axes[2].get_ylim()[1])
        legend = {}
        for axis in axes:
            legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(
            legend.values(),
            legend.keys(),
            loc="outside lower center",
            ncols=len(legend) if len(legend) < 7 else math.ceil(len(legend) / 2),
        )
        return figure


def activity_curves(rows: list[dict]):
    """Activity, and spikes that found no room, of each layer of a deep network in each epoch.

    Parameters
    ----------
    rows : metrics rows: `epoch`, `split`, and one number a layer in `activity`, `lost`, `near_dropped`

    Returns
    -------
    Figure
    """
    from matplotlib.lines import Line2D

    panels = (
        ("activity", 100, "Activity", "neurons that fire in a step [%]"),
        ("lost", 1, "Lost spikes", "a sample"),
        ("near_dropped", 1, "Dropped near the threshold", "neurons a sample"),
    )
    n_layers = max((len(row.get("activity", ())) for row in rows), default=0)
    with _style() as figure_of:
        figure, axes = figure_of(1, 3, width=11, height=3.6)
        for axis, (key, scale, title, label) in zip(axes, panels, strict=True):
            for split, style in LAYER_LINES.items():
                mine = [row for row in rows if row["split"] == split and key in row]
                for layer in range(n_layers if mine else 0):
                    epoch, value = [row["epoch"] for row in mine], [scale * row[key][layer] for row in mine]
                    axis.plot(epoch, value, style, ms=3, color=LAYERS[layer % len(LAYERS)], zorder=3)
            axis.set(title=title, xlabel="epoch", ylabel=label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.margins(x=0.04)
            if key == "activity":
                axis.set_ylim(0, max(1.04 * axis.get_ylim()[1], 1e-3))
            else:
                # Most epochs lose a few or none, the first ones thousands.
                axis.set_yscale("symlog", linthresh=1.0)
                axis.set_ylim(-0.05, max(2.0 * axis.get_ylim()[1], 1.0))
        marks = {f"layer {k + 1}": Line2D([], [], color=LAYERS[k % len(LAYERS)]) for k in range(n_layers)}
        marks |= {split: Line2D([], [], color=GREY, ls=style.strip("o")) for split, style in LAYER_LINES.items()}
        figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=len(marks))
        return figure


def raster(samples: dict[str, np.ndarray], n_in: int, n_hidden: int, sizes: Sequence[int] | None = None):
    """Input events above hidden spikes of the first three test samples.

    Parameters
    ----------
    samples : `input_time`, `hidden_time` (B, E) [ms] padded with +inf; `input_channel`, `hidden_neuron` (B, E);
        `label`, `prediction` (B,); `duration` () [ms]; `class_names` (K,) text
    n_in, n_hidden : number of channels and of hidden neurons
    sizes : of the layers, whose neurons are counted on from one to the next; None: one layer

    Returns
    -------
    Figure
    """
    label, prediction, names = samples["label"], samples["prediction"], samples["class_names"]
    shown = min(3, len(label))
    with _style() as figure_of:
        figure, axes = figure_of(2, shown, width=3.9 * shown + 1.2, height=5.4, sharex=True)
        axes = np.asarray(axes).reshape(2, shown)
        for b in range(shown):
            layers = (("input_time", "input_channel", n_in, BLUE), ("hidden_time", "hidden_neuron", n_hidden, ORANGE))
            for axis, (times, channels, n, colour) in zip(axes[:, b], layers, strict=True):
                time, channel = samples[times][b], samples[channels][b]
                real = np.isfinite(time)
                size = float(np.clip(9000 / max(real.sum(), 1), 0.6, 14))  # so that dense trains stay legible
                axis.scatter(time[real], channel[real], s=size, lw=0, color=colour, rasterized=True)
                axis.set(xlim=(0, float(samples["duration"])), ylim=(-0.5 - 0.01 * n, n - 0.5 + 0.01 * n))
                axis.yaxis.get_major_locator().set_params(integer=True)
                axis.grid(axis="y", visible=False)
            right = label[b] == prediction[b]
            axes[0, b].set_title(f"{names[label[b]]}, read as {names[prediction[b]]}",
                                 color=GREEN if right else ORANGE)  # fmt: skip
            axes[1, b].set_xlabel("time [ms]")
            for first in np.cumsum(sizes or [])[:-1]:
                axes[1, b].axhline(first - 0.5, color=GREY, lw=0.8)
        axes[0, 0].set_ylabel("input channel")
        axes[1, 0].set_ylabel("hidden neuron" if sizes is None else "neuron, layer on layer")
        figure.align_ylabels(axes[:, 0])
        return figure


def position_map(stages: dict[str, dict[str, np.ndarray]]):
    """Where the neurons are; one panel a stage, all with the same limits.

    In 1-D the inputs stand above the line at the height of their channel; beyond 3-D the first three axes are shown.

    Parameters
    ----------
    stages : title -> what `network_positions` gives

    Returns
    -------
    Figure
    """
    first = next(iter(stages.values()))
    n_in, dim = first["inputs"].shape
    every = np.concatenate([x for stage in stages.values() for x in stage.values()])
    with _style() as figure_of:
        # mplot3d would sort whole groups of points by their mean depth, and so differently in each panel
        kind = {"projection": "3d", "computed_zorder": False} if dim > 2 else {}
        figure, axes = figure_of(1, len(stages), width=4.9 * len(stages) + 0.7, height=4.8, **kind)
        axes = np.atleast_1d(axes)
        for axis, (title, points) in zip(axes, stages.items(), strict=True):
            draw = {1: _draw_line, 2: _draw_plane}.get(dim, _draw_volume)
            dots = draw(axis, points, every)
            axis.set_title(title + (f" (axes 1 to 3 of {dim})" if dim > 3 else ""))
        bar = figure.colorbar(dots, ax=list(axes), shrink=0.75, aspect=28, pad=0.09 if dim > 2 else 0.02)
        bar.set_label("input channel")
        bar.outline.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure


def delay_histograms(stages: dict[str, dict[str, np.ndarray]]):
    """How long the delays are, before and after training; one panel a weight matrix.

    Parameters
    ----------
    stages : `before` and `after` -> what `network_delays` gives

    Returns
    -------
    Figure
    """
    names = list(next(iter(stages.values())))
    with _style() as figure_of:
        figure, axes = figure_of(1, len(names), width=4.6 * len(names) + 0.4, height=3.6)
        for axis, name in zip(np.atleast_1d(axes), names, strict=True):
            values = {stage: delays[name][np.isfinite(delays[name])] for stage, delays in stages.items()}
            longest = max((v.max() for v in values.values() if v.size), default=1.0)
            bins = np.linspace(0, max(longest, 1e-6) * 1.02, 61)
            for stage, value in values.items():
                share = 100 * np.histogram(value, bins)[0] / max(value.size, 1)
                colour = GREY if stage == "before" else BLUE
                middle = f"{stage}, median {np.median(value):.3g} ms" if value.size else f"{stage}, no synapses"
                axis.stairs(share, bins, color=colour, fill=stage == "before", alpha=0.45 if stage == "before" else 1,
                            lw=1.6, label=middle)  # fmt: skip
            axis.set(title=f"{name.capitalize()} delays", xlabel="delay [ms]", ylabel="synapses in the bin [%]")
            axis.set_xlim(0, bins[-1])
            axis.set_ylim(0, axis.get_ylim()[1] * 1.22)  # room for the legend above the highest bar
            axis.legend(loc="upper right")
        return figure


def delay_weight_maps(delays: dict[str, np.ndarray], weights: dict[str, np.ndarray]):
    """Which delays have which weights: a 2-D histogram a weight matrix; weights of exactly 0 are left out.

    Parameters
    ----------
    delays : what `network_delays` gives
    weights : what `network_weights` gives

    Returns
    -------
    Figure
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    with _style() as figure_of:
        figure, axes = figure_of(1, len(delays), width=5.0 * len(delays) + 0.4, height=4.0)
        for axis, name in zip(np.atleast_1d(axes), delays, strict=True):
            synapse = np.isfinite(delays[name])
            used = synapse & (weights[name] != 0)
            x, y = delays[name][used], weights[name][used]
            title = f"{name.capitalize()} synapses"
            if used.sum() < synapse.sum():
                title += f", {100 * used.sum() / synapse.sum():.3g} % in use"
            axis.set(title=title, xlabel="delay [ms]", ylabel="weight [1/ms]")
            if not x.size:
                axis.text(0.5, 0.5, "no weight differs from 0", transform=axis.transAxes, ha="center")
                continue
            if x.size < 500:
                axis.scatter(x, y, s=12, lw=0, color=BLUE, alpha=0.7)
                axis.set(xlim=_range(x, at_zero=True), ylim=_range(y))
                axis.axhline(0, color=ORANGE, lw=1)
                continue
            bins = int(np.clip(math.sqrt(x.size) / 2, 12, 60))  # some synapses a bin where they are dense
            count, x_edges, y_edges = np.histogram2d(x, y, bins=bins, range=[_range(x, at_zero=True), _range(y)])
            image = axis.pcolormesh(x_edges, y_edges, np.ma.masked_equal(count.T, 0), cmap="viridis",
                                    norm=LogNorm(1, max(count.max(), 2)), rasterized=True)  # fmt: skip
            axis.axhline(0, color=ORANGE, lw=1)
            ticks = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "{x:g}"}
            bar = figure.colorbar(image, ax=axis, pad=0.02, **ticks)
            bar.ax.minorticks_off()
            bar.set_label("synapses in the bin")
            bar.outline.set_visible(False)
        return figure


@contextlib.contextmanager
def _style() -> Iterator[Callable[..., tuple[Any, Any]]]:
    """The common look; gives a function that makes a figure outside pyplot, which keeps no global state."""
    import matplotlib
    from matplotlib.figure import Figure

    def figure_of(rows, columns, *, width, height, sharex=False, **subplot):
        figure = Figure(figsize=(width, height))
        return figure, figure.subplots(rows, columns, sharex=sharex, subplot_kw=subplot)

    with matplotlib.rc_context(STYLE):
        yield figure_of


def _range(values: np.ndarray, *, at_zero: bool = False) -> tuple[float, float]:
    low, high = (0.0 if at_zero else float(values.min())), float(values.max())
    margin = 0.03 * (high - low) or max(abs(high), 1e-6) * 0.1  # all equal: some width around the one value
    return (low if at_zero else low - margin), high + margin


def _cube(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and half the side of a cube around all points: one length is one delay along every axis."""
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, 0.53 * float((high - low).max()) + 1e-6


def _draw_line(axis, points, every):
    n_in = len(points["inputs"])
    strip = -0.09 * max(n_in - 1, 1)
    channel = np.arange(n_in)
    dots = axis.scatter(points["inputs"][:, 0], channel, c=channel, cmap="viridis", s=14, label="inputs", zorder=3)
    levels = {"hidden": strip, "outputs": 2 * strip}
    colours = {"hidden": ORANGE, "outputs": PINK}
    for name, level in levels.items():
        if name in points:
            axis.scatter(points[name][:, 0], np.full(len(points[name]), level), marker="|", s=110, lw=1.3,
                         color=colours[name], label=name, zorder=3)  # fmt: skip
    axis.set(xlim=_range(every), ylim=(strip * (3 if "outputs" in points else 2), n_in - 1 - strip))
    axis.set(xlabel="position [ms]", ylabel="input channel")
    axis.set_yticks([tick for tick in axis.get_yticks() if 0 <= tick <= n_in - 1])
    return dots


def _draw_plane(axis, points, every):
    dots = _scatter(axis, points, 2)
    (x, y), half = _cube(every[:, :2])
    axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half), xlabel="x [ms]", ylabel="y [ms]")
    axis.set_box_aspect(1)
    return dots


def _draw_volume(axis, points, every):
    dots = _scatter(axis, points, 3)
    (x, y, z), half = _cube(every[:, :3])
    axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half), zlim=(z - half, z + half))
    axis.set(xlabel="x [ms]", ylabel="y [ms]", zlabel="z [ms]")
    axis.set_box_aspect((1, 1, 1), zoom=0.95)
    axis.view_init(elev=20, azim=-55)
    axis.tick_params(pad=1)
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.labelpad = 6
        side.set_pane_color("#F7F7F7")
        side.get_major_locator().set_params(nbins=5)
    return dots


def _scatter(axis, points, dim):
    def at(name):
        return [points[name][:, a] for a in range(dim)]

    def size(name, low, high):  # of a mark: many neurons must not hide each other
        return float(np.clip(5000 / len(points[name]), low, high))

    channel = np.arange(len(points["inputs"]))
    plain = {"depthshade": False} if dim == 3 else {}
    edge = {"edgecolor": "white", "lw": 0.5} | plain
    area = size("inputs", 10, 36)
    dots = axis.scatter(*at("inputs"), c=channel, cmap="viridis", s=area, lw=0, label="inputs", zorder=2, **plain)
    area = size("hidden", 13, 36)
    axis.scatter(*at("hidden"), marker="^", s=area, facecolor=ORANGE, label="hidden", zorder=3, **edge)
    if "outputs" in points:
        axis.scatter(*at("outputs"), marker="D", s=40, facecolor=PINK, label="outputs", zorder=4, **edge)
    return dots
