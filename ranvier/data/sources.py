"""`load`: a data set by its name or from a file, divided into train, validation and test."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ranvier.data import hdf5, speech, yinyang
from ranvier.data.dataset import Dataset, Splits
from ranvier.data.splits import stratified, voice_groups
from ranvier.errors import RanvierError

_SOURCES: dict[str, Callable[[], Splits]] = {"speech": speech.load, "yinyang": yinyang.load}


def names() -> tuple[str, ...]:
    """Names that `load` knows.

    Returns
    -------
    tuple of str
    """
    return tuple(_SOURCES)


def load(
    name_or_path: str | os.PathLike,
    *,
    test: str | os.PathLike | None = None,
    seed: int = 0,
    n_channels: int = 700,
) -> Splits:
    """Data set by name, or from HDF5 files in the layout of the Spiking Heidelberg Digits.

    One file is divided 60 : 20 : 20 into train, validation and test, stratified by class. With a second file that is
    the test set, and 20 % of the first are the validation set. Named sets have fixed parts.

    Parameters
    ----------
    name_or_path : str or path
        One of `names()`, or an `.h5` or `.h5.gz` file.
    test : path, optional
        File with the test set.
    seed : int
        Of the division of a file.
    n_channels : int
        Number of input channels of a file.

    Returns
    -------
    Splits

    Raises
    ------
    RanvierError
        If the name is unknown, a file is no labelled spike trains, too small to divide, or given twice.
    """
    if name_or_path in _SOURCES:
        if test is not None:
            raise RanvierError(
                f"data.load: got a test file beside {name_or_path!r}, which has its own test set; "
                "needs a test file only beside a file; leave test out"
            )
        return _SOURCES[str(name_or_path)]()
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise RanvierError(
            f"data.load: got {str(name_or_path)!r}, neither a known name nor a file; "
            f"needs one of {', '.join(names())} or an HDF5 file; check the spelling or the path"
        )
    first, notes = hdf5.read(path, n_channels=n_channels)
    if test is None:
        train, validation, held_out = _divide(first, (0.6, 0.2, 0.2), seed)
    else:
        test_path = Path(test).expanduser()
        if test_path.is_file() and path.samefile(test_path):
            raise RanvierError(
                f"data.load: got {str(path)!r} as training and as test file; "
                "needs two files; leave test out to divide one"
            )
        held_out, test_notes = hdf5.read(test_path, n_channels=n_channels)
        notes += test_notes
        first, held_out = _same_classes(first, held_out)
        train, validation = _divide(first, (0.8, 0.2), seed)
    groups = voice_groups(train.speaker, held_out.speaker)
    return Splits(train, validation, held_out, groups, notes)


def _divide(dataset: Dataset, shares: tuple[float, ...], seed: int) -> list[Dataset]:
    parts = stratified(dataset.labels, shares, seed)
    if min(len(part) for part in parts) == 0:
        raise RanvierError(
            f"data.load: got {len(dataset)} samples in {dataset.name}, too few for {len(parts)} parts; "
            "needs a sample for each; use a larger file"
        )
    return [dataset.subset(part) for part in parts]


def _same_classes(first: Dataset, second: Dataset) -> tuple[Dataset, Dataset]:
    longer = max(first.class_names, second.class_names, key=len)
    for dataset in (first, second):
        if dataset.class_names != longer[: dataset.n_classes]:
            raise RanvierError(
                f"data.load: got different class names in {first.name} and {second.name}; "
                "needs the same extra/keys in both; correct one of the files"
            )
    return replace(first, class_names=longer), replace(second, class_names=longer)
