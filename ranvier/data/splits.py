"""Division of labelled samples into parts, by class or by speaker; samples that two parts share."""

from collections.abc import Sequence

import numpy as np

from ranvier.data.dataset import Dataset, Splits
from ranvier.errors import RanvierError

# Samples of fewer events may be equal by chance.
FEWEST_EVENTS = 16
PROBES = 8
PARTS = ("train", "validation", "test")
# This part of the validation samples may be among the test samples: equal recordings in a published set, no mistake.
MOST_SHARED = 0.1


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


def by_speaker(speaker: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Disjoint parts of the samples such that no speaker is in two of them.

    Speakers are shuffled, those with most samples come first, and each goes to the part that is furthest behind its
    fraction: parts have their size as nearly as whole speakers allow, and the first parts are never empty.

    Parameters
    ----------
    speaker : (n,) int
        Who or what made each sample.
    fractions : (P,)
        Shares that sum to 1.
    seed : int

    Returns
    -------
    list of P arrays of int64
        Sorted indices; together each sample once.
    """
    names, whose, counts = np.unique(speaker, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    wanted = np.asarray(fractions, np.float64) * len(whose)
    filled = np.zeros(len(wanted))
    part = np.empty(len(names), np.int64)
    for speakers_left, name in zip(range(len(names), 0, -1), order, strict=True):
        empty = np.flatnonzero(filled == 0)
        # Enough speakers are kept for the parts that have none yet.
        choice = empty if len(empty) >= speakers_left else np.arange(len(wanted))
        part[name] = choice[np.argmax(np.round((wanted - filled)[choice], 9))]
        filled[part[name]] += counts[name]
    return [np.flatnonzero(part[whose] == p) for p in range(len(wanted))]


def fingerprints(dataset: Dataset) -> np.ndarray:
    """A number for each sample, from its class, its number of events and some of them: equal for equal samples.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    (n,) uint64
    """
    counts = np.diff(dataset.offsets)
    mixed = counts.astype(np.uint64) * np.uint64(1 << 20) + dataset.labels.astype(np.uint64)
    full = np.flatnonzero(counts)
    for probe in range(PROBES):
        at = dataset.offsets[full] + (counts[full] - 1) * probe // (PROBES - 1)
        time = np.ascontiguousarray(dataset.times[at], np.float32).view(np.uint32).astype(np.uint64)
        event = (time << np.uint64(32)) | dataset.channels[at].astype(np.uint64)
        # The multiplier of Knuth's generator MMIX: odd, so that no bit is lost.
        mixed[full] = (mixed[full] ^ event) * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        mixed[full] ^= mixed[full] >> np.uint64(29)
    return mixed


def shared(first: Dataset, second: Dataset) -> np.ndarray:
    """Samples of at least 16 events that two data sets share.

    Parameters
    ----------
    first, second : Dataset

    Returns
    -------
    (k, 2) int64
        Index into `first`, index into `second`.
    """
    theirs = fingerprints(first)
    order = np.argsort(theirs, kind="stable")
    mine = fingerprints(second)
    place = np.minimum(np.searchsorted(theirs[order], mine), max(0, len(order) - 1))
    if not len(order):
        return np.zeros((0, 2), np.int64)
    candidates = np.flatnonzero((theirs[order][place] == mine) & (np.diff(second.offsets) >= FEWEST_EVENTS))
    pairs = [(int(order[place[i]]), int(i)) for i in candidates]
    return np.array([pair for pair in pairs if _equal(first, second, *pair)], np.int64).reshape(-1, 2)


def _equal(first: Dataset, second: Dataset, i: int, j: int) -> bool:
    a, b = slice(*first.offsets[i : i + 2]), slice(*second.offsets[j : j + 2])
    return np.array_equal(first.times[a], second.times[b]) and np.array_equal(first.channels[a], second.channels[b])


def check_apart(splits: Splits) -> list[str]:
    """Whether the test samples are apart from those that train and choose a network.

    Parameters
    ----------
    splits : Splits

    Returns
    -------
    list of str
        Warnings, of a few samples that are in two parts.

    Raises
    ------
    RanvierError
        If more than a tenth of the validation samples are test samples: the test set would choose the network.
    """
    warnings = []
    for part in ("train", "validation"):
        dataset = getattr(splits, part)
        n = len(np.unique(shared(dataset, splits.test)[:, 0]))
        if part == "validation" and n > MOST_SHARED * len(dataset):
            raise RanvierError(
                f"splits: got {n} of {len(dataset)} validation samples among the test samples; needs other samples, as "
                "validation chooses the network that is tested; divide the training samples"
            )
        if n:
            warnings.append(f"WARNING: {n} of {len(dataset)} {part} samples are among the test samples")
    return warnings


def record(splits: Splits) -> dict[str, np.ndarray]:
    """Which samples each part has, to be kept with a run.

    Parameters
    ----------
    splits : Splits

    Returns
    -------
    dict
        `train`, `validation`, `test`: places in the source; `train_samples`, ...: the fingerprints of the samples.
    """
    arrays = {}
    for part in PARTS:
        dataset = getattr(splits, part)
        arrays[part] = splits.index.get(part, np.arange(len(dataset)))
        arrays[f"{part}_samples"] = fingerprints(dataset)
    return arrays


def check_same(kept: dict[str, np.ndarray], splits: Splits) -> None:
    """Refuse to go on with other samples than a run began with.

    Parameters
    ----------
    kept : dict
        What `record` gave then.
    splits : Splits

    Raises
    ------
    RanvierError
        If a part has other samples, or the same in another order.
    """
    now = record(splits)
    for part in PARTS:
        before, here = kept[f"{part}_samples"], now[f"{part}_samples"]
        if not np.array_equal(before, here):
            n = f"{len(here)} samples, {len(np.intersect1d(before, here))} of them the same"
            raise RanvierError(
                f"fit: got another {part} set ({n}); needs the {len(before)} samples that this run began with; "
                "resume with the same data"
            )


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
