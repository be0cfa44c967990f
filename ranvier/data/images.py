"""Images as events: by latency, by rate, or pixel by pixel.

Every function takes brightness in [0, 1] and gives a data set with the labels that it is given; `digits` holds the
offline example. For MNIST in arrays: `images.by_row(pixels.reshape(-1, 28, 28) / 255.0, labels)`.
"""

from collections.abc import Sequence

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError

DIGITS = tuple("0123456789")


def by_latency(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    t_early: float = 1.0,
    t_late: float = 21.0,
    class_names: Sequence[str] = DIGITS,
    name: str = "images",
) -> Dataset:
    """One event a pixel that is not black, the earlier the brighter; a channel a pixel.

        t = t_early + (1 - brightness) (t_late - t_early)

    Parameters
    ----------
    images : (n, height, width)
        Brightness in [0, 1].
    labels : (n,) int
    t_early, t_late : () [ms]
    class_names : sequence of str
    name : str

    Returns
    -------
    Dataset
        height x width channels.

    Raises
    ------
    RanvierError
        If the brightness is not in [0, 1].
    """
    flat = _flat("images.by_latency", images)
    times = t_early + (1.0 - flat) * (t_late - t_early)
    sample, channel = np.nonzero(flat)
    return _dataset(name, times[sample, channel], channel, sample, labels, flat.shape[1], class_names)


def by_rate(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    rate_hz: float = 200.0,
    duration: float = 100.0,
    seed: int = 0,
    class_names: Sequence[str] = DIGITS,
    name: str = "images",
) -> Dataset:
    """Poisson events, the more the brighter; a channel a pixel.

    Parameters
    ----------
    images : (n, height, width)
        Brightness in [0, 1].
    labels : (n,) int
    rate_hz : () [Hz]
        Of a white pixel.
    duration : () [ms]
    seed : int
    class_names : sequence of str
    name : str

    Returns
    -------
    Dataset
        height x width channels.

    Raises
    ------
    RanvierError
        If the brightness is not in [0, 1].
    """
    flat = _flat("images.by_rate", images)
    rng = np.random.default_rng(seed)
    counts = rng.poisson(flat * (rate_hz * duration / 1000.0))
    sample, channel = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(2, -1))
    times = rng.uniform(0.0, duration, len(sample))
    return _dataset(name, times, channel, sample, labels, flat.shape[1], class_names)


def by_row(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    row_ms: float = 10.0,
    order: np.ndarray | None = None,
    class_names: Sequence[str] = DIGITS,
    name: str = "images",
) -> Dataset:
    """Row after row; a channel a column, so that what a pixel says depends on when its events come.

        t = row_ms (row + 1 - brightness)

    Parameters
    ----------
    images : (n, height, width)
        Brightness in [0, 1].
    labels : (n,) int
    row_ms : () [ms]
        Time of a row; an event comes in it the earlier the brighter, and none from a black pixel.
    order : (height width,) int, optional
        A permutation of the pixels, the same for all images: the permuted task.
    class_names : sequence of str
    name : str

    Returns
    -------
    Dataset
        width channels.

    Raises
    ------
    RanvierError
        If the brightness is not in [0, 1] or `order` is no permutation.
    """
    flat = _flat("images.by_row", images)
    height, width = np.shape(images)[1:]
    if order is not None:
        if not np.array_equal(np.sort(order), np.arange(height * width)):
            raise RanvierError(
                f"images.by_row: got an order of {len(order)} pixels; needs each of {height * width} once; correct it"
            )
        flat = flat[:, order]
    sample, pixel = np.nonzero(flat)
    times = row_ms * (pixel // width + 1.0 - flat[sample, pixel])
    return _dataset(name, times, pixel % width, sample, labels, width, class_names)


def _flat(where: str, images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float64)
    if images.ndim != 3 or not (images.size and images.min() >= 0.0 and images.max() <= 1.0):
        shown = f"{images.min()} to {images.max()}" if images.size else "nothing"
        raise RanvierError(
            f"{where}: got images of shape {images.shape} from {shown}; "
            "needs (n, height, width) in [0, 1]; divide by the largest value"
        )
    return images.reshape(len(images), -1)


def _dataset(name, times, channels, sample, labels, n_channels, class_names) -> Dataset:
    order = np.lexsort((channels, times, sample))
    counts = np.bincount(sample, minlength=len(labels))
    return Dataset(
        name=name,
        times=times[order].astype(np.float32),
        channels=channels[order].astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        labels=np.asarray(labels, np.int32),
        n_channels=int(n_channels),
        class_names=tuple(class_names),
    )
