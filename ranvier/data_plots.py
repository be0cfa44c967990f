"""A picture of a data set: one sample, where and when its events are, and what the classes hold."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError
from ranvier.plots import BLUE, GREY, ORANGE, STYLE

BINS = 100
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
    edges = np.linspace(0, dataset.n_channels, min(BINS, dataset.n_channels) + 1)
    some, n = _some(dataset)
    for values, n_samples, colour, label in ((some[1], n, GREY, "mean of all"), (channels, 1, BLUE, "this sample")):
        axis.stairs(
            np.histogram(values, edges)[0] / n_samples, edges, orientation="horizontal", color=colour, baseline=None
        )
        axis.plot([], [], color=colour, label=label)
    axis.set_title("by channel")
    axis.set_xlabel("events")
    axis.set_ylim(0, dataset.n_channels)
    axis.legend(loc="upper left", bbox_to_anchor=(0.0, -0.2))  # below, where nothing is


def _draw_times(axis, dataset: Dataset, times: np.ndarray) -> None:
    edges = np.linspace(0, max(dataset.latest, 1e-3), BINS + 1)
    some, n = _some(dataset)
    for values, n_samples, colour in ((some[0], n, GREY), (times, 1, BLUE)):
        axis.stairs(np.histogram(values, edges)[0] / n_samples, edges, color=colour, baseline=None)
    axis.set_title("by time")
    axis.set_xlabel("time (ms)")
    axis.set_ylabel("events")
    axis.set_xlim(0, edges[-1])


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
    other = axis.twinx()
    other.plot(place, mean, "o", color=ORANGE)
    other.set_ylim(0, 1.15 * max(float(mean.max(initial=0.0)), 1e-9))
    other.set_ylabel("events a sample (dots)", color=ORANGE)
    other.grid(False)


def _draw_counts(axis, dataset: Dataset, here: int) -> None:
    counts = np.diff(dataset.offsets)
    axis.hist(counts, bins=min(60, max(1, int(counts.max()) + 1 - int(counts.min()))), color=GREY)
    axis.axvline(here, color=BLUE, lw=1.5, label="this sample")
    axis.margins(y=0.2)
    axis.set_title("events a sample")
    axis.set_xlabel("events")
    axis.set_ylabel("samples")
    axis.legend(loc="best")


def _draw_text(axis, dataset: Dataset) -> None:
    counts = np.diff(dataset.offsets)
    facts = {
        "samples": f"{len(dataset):,}",
        "events": f"{len(dataset.times):,}",
        "channels": f"{dataset.n_channels:,}",
        "classes": f"{dataset.n_classes}",
        "speakers": "-" if dataset.speaker is None else f"{len(np.unique(dataset.speaker))}",
        "events a sample": f"{np.median(counts):,.0f} ({counts.min():,} to {counts.max():,})",
        "last event": f"{dataset.latest:,.1f} ms",
    }
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


def _some(dataset: Dataset) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Events of all samples, or of the first ones of a large set, and how many samples they are of."""
    n = max(1, int(np.searchsorted(dataset.offsets, MOST_EVENTS, side="right")) - 1)
    stop = dataset.offsets[min(n, len(dataset))]
    return (dataset.times[:stop], dataset.channels[:stop]), min(n, len(dataset))
