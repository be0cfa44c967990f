"""A picture of a data set: one sample, where and when its events are, and what the classes hold."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError
from ranvier.plots import BLUE, GREY, ORANGE, STYLE

BINS, COUNT_BINS = 100, 60
LEAST_WIDTH = 3  # events on each side
MOST_DOTS = 50_000  # of a raster: more are not seen apart
MOST_EVENTS = 20_000_000  # of the histograms over all samples: more take long and change nothing that is seen


def summary(dataset: Dataset, sample: int = 0):
    """A raster of one sample with its histograms over channels and time beside those of all samples, and classes.

    Parameters
    ----------
    dataset : Dataset
    sample : int

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    RanvierError
        If there is no such sample.
    """
    if not 0 <= sample < len(dataset):
        raise RanvierError(
            f"data.show: got sample {sample} of {len(dataset)}; needs one in [0, {len(dataset)}); choose another"
        )
    start, stop = dataset.offsets[sample : sample + 2]
    times, channels = np.asarray(dataset.times[start:stop]), np.asarray(dataset.channels[start:stop])
    with _figure() as figure:
        grid = figure.add_gridspec(3, 3, width_ratios=(3.2, 1, 1.9), height_ratios=(2.4, 1, 1))
        raster = figure.add_subplot(grid[0, 0])
        beside = figure.add_subplot(grid[0, 1], sharey=raster)
        below = figure.add_subplot(grid[1, 0], sharex=raster)
        _draw_legend(figure.add_subplot(grid[1, 1]))
        label = f"class {dataset.class_names[dataset.labels[sample]]}"
        who = "" if dataset.speaker is None else f", speaker {dataset.speaker[sample]}"
        _draw_raster(raster, times, channels, f"{dataset.name}: sample {sample}, {label}{who}")
        _draw_channels(beside, dataset, channels)
        _draw_times(below, dataset, times)
        _draw_classes(figure.add_subplot(grid[2, :2]), dataset)
        _draw_counts(figure.add_subplot(grid[1:, 2]), dataset, stop - start)
        last = figure.add_subplot(grid[0, 2])
        if dataset.sensor is None:
            _draw_text(last, dataset)
        else:
            _draw_camera(last, dataset.sensor, channels)
    return figure


@contextmanager
def _figure() -> Iterator:
    """A figure outside of pyplot, in the common look."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(12.5, 8.2))


def _draw_raster(axis, times: np.ndarray, channels: np.ndarray, title: str) -> None:
    step = max(1, len(times) // MOST_DOTS)
    size = float(np.clip(9000 / max(len(times) // step, 1), 0.4, 14))
    axis.scatter(times[::step], channels[::step], s=size, lw=0, color=BLUE, rasterized=True)
    axis.set_title(title + (f" (every {step}th event)" if step > 1 else ""))
    axis.set_ylabel("channel")


def _draw_channels(axis, dataset: Dataset, channels: np.ndarray) -> None:
    edges, width = _bins(0, dataset.n_channels - 1, BINS)
    some, n = _some(dataset)
    for values, n_samples, colour in ((some[1], n, GREY), (channels, 1, BLUE)):
        counts = np.histogram(values, edges)[0] / n_samples
        axis.stairs(counts, edges, orientation="horizontal", color=colour, baseline=None)
    axis.set_title("by channel" + (f", bins of {width}" if width > 1 else ""))
    axis.set_xlabel("events")
    axis.set_xlim(left=0)
    axis.set_ylim(-0.5, dataset.n_channels - 0.5)
    _count(axis.yaxis)


def _draw_times(axis, dataset: Dataset, times: np.ndarray) -> None:
    edges = np.linspace(0, max(dataset.latest, 1e-3), BINS + 1)
    some, n = _some(dataset)
    for values, n_samples, colour in ((some[0], n, GREY), (times, 1, BLUE)):
        axis.stairs(np.histogram(values, edges)[0] / n_samples, edges, color=colour, baseline=None)
    axis.set_title(f"by time, bins of {edges[1]:.3g} ms")
    axis.set_xlabel("time (ms)")
    axis.set_ylabel("events")
    axis.set_xlim(0, 1.02 * edges[-1])  # the last dots whole
    axis.set_ylim(bottom=0)


def _draw_legend(axis) -> None:
    for colour, label in ((GREY, "mean of all"), (BLUE, "this sample")):
        axis.plot([], [], color=colour, label=label)
    axis.axis("off")
    axis.legend(loc="center left")


def _draw_classes(axis, dataset: Dataset) -> None:
    n = np.bincount(dataset.labels, minlength=dataset.n_classes)
    counts = np.diff(dataset.offsets)
    mean = np.bincount(dataset.labels, counts, dataset.n_classes) / np.maximum(n, 1)
    place = np.arange(dataset.n_classes)
    axis.bar(place, n, color=GREY, width=0.75)
    axis.set_ylabel("samples (bars)")
    axis.set_title("by class")
    names = [name if len(name) <= 14 else name[:13] + "…" for name in dataset.class_names]
    turned = dataset.n_classes > 12 or max(map(len, names), default=0) > 7
    axis.set_xticks(place, names, rotation=60 if turned else 0, ha="right" if turned else "center")
    axis.grid(False, axis="x")
    _count(axis.yaxis)
    other = axis.twinx()
    other.plot(place[n > 0], mean[n > 0], "o", color=ORANGE)
    other.set_ylim(0, 1.15 * max(float(mean.max(initial=0.0)), 1e-9))
    other.set_ylabel("events a sample (dots)", color=ORANGE)
    other.grid(False)
    _count(other.yaxis)


def _draw_counts(axis, dataset: Dataset, here: int) -> None:
    counts = np.diff(dataset.offsets)
    edges, _ = _bins(int(counts.min()), int(counts.max()), COUNT_BINS)
    axis.hist(counts, bins=edges, color=GREY)
    # Where all have the same number, one bar is not the whole width.
    margin = max(LEAST_WIDTH, 0.02 * (edges[-1] - edges[0]))
    axis.set_xlim(edges[0] - margin, edges[-1] + margin)
    axis.axvline(here, color=BLUE, lw=1.5, label="this sample")
    axis.margins(y=0.2)
    axis.set_title("events a sample")
    axis.set_xlabel("events")
    axis.set_ylabel("samples")
    axis.legend(loc="best")
    _count(axis.xaxis)
    _count(axis.yaxis)


def _draw_text(axis, dataset: Dataset) -> None:
    counts = np.diff(dataset.offsets)
    facts = {
        "samples": f"{len(dataset):,}",
        "events": f"{len(dataset.times):,}",
        "channels": f"{dataset.n_channels:,}",
        "classes": f"{dataset.n_classes}",
        "events a sample": " to ".join(f"{k:,}" for k in sorted({counts.min(), counts.max()})),
        "median of them": f"{np.median(counts):,.0f}",
        "last event": f"{dataset.latest:,.1f} ms",
    }
    if dataset.speaker is not None:
        facts["speakers"] = f"{len(np.unique(dataset.speaker))}"
    axis.axis("off")
    for line, (name, value) in enumerate(facts.items()):
        axis.text(0.02, 0.92 - 0.13 * line, name, transform=axis.transAxes, color=GREY)
        axis.text(0.42, 0.92 - 0.13 * line, value, transform=axis.transAxes)


def _draw_camera(axis, sensor: tuple[int, int, int], channels: np.ndarray) -> None:
    """What the camera saw: brighter pixels less darker ones, over the whole sample."""
    counts = np.bincount(channels, minlength=int(np.prod(sensor))).reshape(sensor)
    picture = counts[-1] - counts[0] if len(counts) > 1 else counts[0]
    limit = max(1.0, float(np.percentile(np.abs(picture), 99.5)))
    axis.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axis.set_title("on less off, all times")
    axis.set_xlabel("x")
    axis.set_ylabel("y")
    axis.grid(False)


def _bins(first: int, last: int, most: int) -> tuple[np.ndarray, int]:
    """Edges of at most `most` bins around the whole numbers from `first` to `last`, and how many are in one."""
    width = -(-(last - first + 1) // most)
    n = -(-(last - first + 1) // width)
    return first - 0.5 + width * np.arange(n + 1), width


def _count(axis) -> None:
    """No marks between whole numbers, and not so many that they touch."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))


def _some(dataset: Dataset) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Events of all samples, or of the first ones of a large set, and how many samples they are of."""
    n = max(1, int(np.searchsorted(dataset.offsets, MOST_EVENTS, side="right")) - 1)
    stop = dataset.offsets[min(n, len(dataset))]
    return (dataset.times[:stop], dataset.channels[:stop]), min(n, len(dataset))
