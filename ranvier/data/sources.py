"""`load`: a data set by its name or from a path, divided into train, validation and test."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ranvier.data import cache, convert, delays, digits, hdf5, official, speech, store, yinyang
from ranvier.data.dataset import Dataset, Splits
from ranvier.data.splits import PARTS, shared, voice_groups
from ranvier.errors import RanvierError

_SOURCES: dict[str, Callable[[], Splits]] = {
    "speech": speech.load,
    "yinyang": yinyang.load,
    "delays": delays.load,
    **{name: partial(digits.load, name) for name in ("digits", "digits-rate", "digits-rows", "digits-permuted")},
}
SPLITS = ("sample", "speaker")
SLOW_S = 1.5  # recordings that are packed sooner are packed without a word
Say = Callable[[str], None]


def names() -> tuple[str, ...]:
    """Names that `load` knows.

    Returns
    -------
    tuple of str
    """
    return (*_SOURCES, *official.NAMES)


def load(
    name_or_path: str | os.PathLike,
    *,
    test: str | os.PathLike | None = None,
    split: str = "sample",
    seed: int = 0,
    n_channels: int | None = None,
    say: Say | None = None,
    report: official.Report | None = None,
) -> Splits:
    """Data set by name, or from recordings in a known format.

    A path is divided 60 : 20 : 20 into train, validation and test. With a second path that is the test set, and 20 % of
    the first are the validation set. Named sets have fixed test samples; where they have no validation samples, those
    are 20 % of the training samples.

    Parameters
    ----------
    name_or_path : str or path
        One of `names()`, or what `ranvier data convert` reads: an HDF5 file in the layout of SHD, a store, recordings
        of event cameras, sounds. Folders and archives are packed once, in the cache folder.
    test : path, optional
        The test set.
    split : str
        How samples are divided: "sample", stratified by class, or "speaker", so that no speaker is in two parts.
    seed : int
        Of the division.
    n_channels : int, optional
        Number of input channels of an HDF5 file, by default what it says of itself, or those to make of sounds; where
        nothing says it those of the training samples, else 700.
    say : function of a line, optional
        Called before something that takes long and is done once.
    report : function of what is done, how much of it, and how much there is, optional
        Called while it is done, from one thread at a time.

    Returns
    -------
    Splits

    Raises
    ------
    RanvierError
        If the name is unknown, a path is no labelled spike trains, too small to divide, given twice, or test samples
        are also training samples or have other channels.
    """
    if split not in SPLITS:
        raise RanvierError(f"data.load: got split {split!r}; needs one of {', '.join(SPLITS)}; correct it")
    if name_or_path in names():
        name = str(name_or_path)
        if test is not None:
            raise RanvierError(
                f"data.load: got a test file beside {name!r}, which has its own test set; "
                "needs a test file only beside a file; leave test out"
            )
        if name in official.NAMES:
            return official.load(name, split=split, seed=seed, report=report)
        if split != "sample":
            raise RanvierError(
                f"data.load: got split {split} for {name}, whose parts are fixed; needs split sample; leave it out"
            )
        return _SOURCES[name]()
    path = Path(name_or_path).expanduser()
    if not path.exists():
        raise RanvierError(
            f"data.load: got {str(name_or_path)!r}, neither a known name nor a file; "
            f"needs one of {', '.join(names())} or the path of recordings; check the spelling or the path"
        )
    first, notes = _read(path, n_channels, hdf5.N_CHANNELS, say, report)
    if test is None:
        parts = _divide(first, (0.6, 0.2, 0.2), split, seed)
        train, validation, held_out = (first.subset(part) for part in parts)
        index: dict[str, np.ndarray] = dict(zip(PARTS, parts, strict=True))
    else:
        test_path = Path(test).expanduser()
        if test_path.exists() and path.samefile(test_path):
            raise RanvierError(
                f"data.load: got {str(path)!r} as training and as test file; "
                "needs two files; leave test out to divide one"
            )
        held_out, test_notes = _read(test_path, n_channels, first.n_channels, say, report)
        notes += test_notes
        if held_out.n_channels != first.n_channels:
            raise RanvierError(
                f"data.load: got {held_out.name} of {held_out.n_channels} channels beside {first.name} of "
                f"{first.n_channels}; needs the same in both; convert them alike"
            )
        first, held_out = _same_classes(first, held_out)
        _check_apart(first, held_out)
        parts = _divide(first, (0.8, 0.2), split, seed)
        train, validation = (first.subset(part) for part in parts)
        index = {"train": parts[0], "validation": parts[1], "test": np.arange(len(held_out))}
    groups = voice_groups(train.speaker, held_out.speaker)
    return Splits(train, validation, held_out, groups, notes, index)


def _read(
    path: Path, n_channels: int | None, otherwise: int, say: Say | None, report: official.Report | None
) -> tuple[Dataset, tuple[str, ...]]:
    if path.name.endswith(convert.HDF5_ENDINGS) or not path.exists():
        return hdf5.read(path, n_channels=n_channels, otherwise=otherwise)
    if path.name.endswith(store.ENDING):
        return store.read(path)
    source = convert.source_of(path, n_channels=otherwise if n_channels is None else n_channels)
    key = convert.key_of(source)
    packed = cache.folder() / "paths" / f"{path.name}-{key[:16]}{store.ENDING}"
    if not packed.is_file():
        convert.convert(source, packed, key=key, progress=_told(path, source, packed, say, report))
    return store.read(packed)


def _told(
    path: Path, source: convert.Source, packed: Path, say: Say | None, report: official.Report | None
) -> convert.Progress:
    """What tells of a conversion: of sounds from the start, of recordings once it turns out to be slow."""
    began, told = time.monotonic(), False

    def progress(done: int, total: int) -> None:
        nonlocal told
        slow = time.monotonic() - began > SLOW_S and done < total
        if not told and (source.encoder or slow):
            told = True
            if say is not None:
                say(line)
        if told and report is not None:
            report(f"{'encoding' if source.encoder else 'packing'} {path.name}", done, total)

    if source.encoder:
        line = (
            f"{path}: {len(source.pieces)} sounds are encoded once, by {source.encoder}, and kept in {packed}; "
            "ranvier data convert has other encoders"
        )
        progress(0, len(source.pieces))
    else:
        line = f"{path}: packed once, and kept in {packed}"
    return progress


def _divide(dataset: Dataset, shares: tuple[float, ...], split: str, seed: int) -> list[np.ndarray]:
    parts = official.divide(dataset, shares, split, seed)
    if min(len(part) for part in parts) == 0:
        raise RanvierError(
            f"data.load: got {len(dataset)} samples in {dataset.name}, too few for {len(parts)} parts; "
            "needs a sample for each; use a larger file"
        )
    return parts


def _check_apart(first: Dataset, held_out: Dataset) -> None:
    both = shared(first, held_out)
    if len(both):
        i, j = both[0]
        raise RanvierError(
            f"data.load: got {len(both)} samples of {held_out.name} that are also in {first.name}, such as {j} "
            f"and {i}; needs test samples that training never sees; remove them from one of the two"
        )


def _same_classes(first: Dataset, second: Dataset) -> tuple[Dataset, Dataset]:
    longer = max(first.class_names, second.class_names, key=len)
    for dataset in (first, second):
        if dataset.class_names != longer[: dataset.n_classes]:
            raise RanvierError(
                f"data.load: got different class names in {first.name} and {second.name}; "
                "needs the same extra/keys in both; correct one of the files"
            )
    return replace(first, class_names=longer), replace(second, class_names=longer)
