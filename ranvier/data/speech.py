"""The shipped set of spoken digits; its data card is `speech/README.md`."""

from pathlib import Path

import numpy as np

from ranvier.data.dataset import Dataset, Splits
from ranvier.data.packed import unpack
from ranvier.data.splits import voice_groups

FOLDER = Path(__file__).parent / "speech"


def load() -> Splits:
    """Synthetic spoken digits as events of 700 channels: 20 classes (English, German), 12 voices.

    Train: two takes of ten voices (400 samples); validation: their last take (200); test: a further take of the same
    voices (group `known voices`, 200) and two voices that training never hears (group `unseen voices`, 160).

    Returns
    -------
    Splits
    """
    heard = unpack(FOLDER / "train.packed", "speech")
    test = unpack(FOLDER / "test.packed", "speech")
    last = last_takes(heard)
    return Splits(
        train=heard.subset(np.setdiff1d(np.arange(len(heard)), last)),
        validation=heard.subset(last),
        test=test,
        test_groups=voice_groups(heard.speaker, test.speaker),
    )


def last_takes(dataset: Dataset) -> np.ndarray:
    """Indices of the last sample of each voice and class.

    Parameters
    ----------
    dataset : Dataset
        With `speaker`.

    Returns
    -------
    (k,) int64
        Sorted.
    """
    pair = np.asarray(dataset.speaker, np.int64) * dataset.n_classes + dataset.labels
    # `unique` reports first appearances, so look at the samples from the end.
    _, from_end = np.unique(pair[::-1], return_index=True)
    return np.sort(len(pair) - 1 - from_end)
