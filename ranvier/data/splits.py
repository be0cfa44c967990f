"""Division of labelled samples into parts, stratified by class."""

from collections.abc import Sequence

import numpy as np


def stratified(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Disjoint parts of the samples, each with its fraction of all samples and of each class.

    Samples are walked class by class, shuffled within the class, and each goes to the part that is furthest behind its
    fraction. So parts have their size to within one sample, and classes too small for every part still fill all parts
    together.

    Parameters
    ----------
    labels : (n,) int
    fractions : (P,)
        Shares that sum to 1.
    seed : int

    Returns
    -------
    list of P arrays of int64
        Sorted indices; together each sample once.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    shares = np.asarray(fractions, np.float64)
    filled = np.zeros(len(shares))
    part = np.empty(len(order), np.int64)
    for position, sample in enumerate(order):
        # Rounded, so that equal deficits tie (and the first part wins) whatever the last bits of the sums are.
        part[sample] = np.argmax(np.round(shares * (position + 1) - filled, 9))
        filled[part[sample]] += 1
    return [np.nonzero(part == p)[0] for p in range(len(shares))]


def voice_groups(heard: np.ndarray | None, test: np.ndarray | None) -> dict[str, np.ndarray]:
    """Test samples by whether training hears their speaker.

    Parameters
    ----------
    heard : (n,) int, optional
        Speakers of the training samples.
    test : (k,) int, optional
        Speakers of the test samples.

    Returns
    -------
    dict
        `known voices` and `unseen voices`, indices into the test samples; empty unless there are both.
    """
    if heard is None or test is None:
        return {}
    known = np.isin(test, heard)
    if known.all() or not known.any():
        return {}
    return {"known voices": np.nonzero(known)[0], "unseen voices": np.nonzero(~known)[0]}
