"""`downsample`: recordings of an event camera with fewer pixels."""

from dataclasses import replace

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError


def downsample(dataset: Dataset, factor: int) -> Dataset:
    """Join squares of `factor` x `factor` pixels to one, which has all of their events; polarities stay apart.

        (p, y, x) -> (p, floor(y / factor), floor(x / factor))

    Squares at the lower and right edge are cut where the sensor ends: 34 x 34 pixels become 9 x 9 with factor 4.

    Parameters
    ----------
    dataset : Dataset
        Of a camera.
    factor : int

    Returns
    -------
    Dataset
        The same samples with other channels; times are shared, channels are in memory.

    Raises
    ------
    RanvierError
        If the data set is not of a camera, or the factor is below 1 or larger than the sensor.
    """
    if dataset.sensor is None:
        raise RanvierError(
            f"downsample: got data set {dataset.name}, whose channels are no pixels; needs recordings of an event "
            "camera; leave downsample out"
        )
    polarities, height, width = dataset.sensor
    if not 1 <= factor <= max(height, width):
        raise RanvierError(
            f"downsample: got factor {factor} for the {width} x {height} pixels of data set {dataset.name}; needs a "
            f"whole number from 1 to {max(height, width)}; correct it"
        )
    if factor == 1:
        return dataset
    rows, columns = (-(-size // factor) for size in (height, width))
    p, y, x = np.indices(dataset.sensor, np.int32)
    joined = ((p * rows + y // factor) * columns + x // factor).reshape(-1)
    return replace(
        dataset,
        channels=joined[dataset.channels],
        n_channels=polarities * rows * columns,
        sensor=(polarities, rows, columns),
    )
