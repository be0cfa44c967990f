"""Published data sets: fetched, packed once, opened from the store; each with its official test samples."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ranvier.data import cache, gesture, nmnist, store
from ranvier.data.catalog import FACTS, Facts, File
from ranvier.data.convert import HDF5_VERSION, Source, convert, recordings, source_of
from ranvier.data.dataset import Dataset, Splits
from ranvier.data.download import fetch
from ranvier.data.splits import by_speaker, stratified, voice_groups
from ranvier.errors import RanvierError

VALIDATION = 0.2  # of the training samples, where the publishers set none apart
Report = Callable[[str, int, int | None], None]
_READERS = {
    "shd": f"hdf5 {HDF5_VERSION}",
    "ssc": f"hdf5 {HDF5_VERSION}",
    "nmnist": f"nmnist {nmnist.VERSION}",
    "dvs-gesture": f"gesture {gesture.VERSION} aedat {gesture.aedat.VERSION}",
}
NAMES = tuple(_READERS)


def get(name: str, *, force: bool = False, jobs: int | None = None, report: Report | None = None) -> tuple[str, ...]:
    """Download what is not here, and pack it.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    force : bool
        Keep files whose checksum is not the known one.
    jobs : int, optional
        Threads that convert; by default one a core.
    report : function of what is done, how much of it, and how much there is (None: not known), optional

    Returns
    -------
    tuple of str
        Warnings.

    Raises
    ------
    RanvierError
        If a file cannot be had, or is broken.
    """
    facts, root, notes = FACTS[name], cache.folder() / name, ()
    for part, file in facts.files.items():
        path = root / file.name
        if path.is_file() or _is_packed(name, part):
            continue
        if not file.addresses:
            _missing(name, f"only its publishers hand out {file.name}: get it from {facts.page} and put it at {path}")
        say = None if report is None else (lambda done, total, what=file.name: report(what, done, total))
        notes += fetch(file.addresses, path, file.md5, force=force, progress=say)
    for part in _parts(name):
        dataset, said = _open(name, part, jobs, report)
        notes += said
    return tuple(dict.fromkeys(notes))


def load(name: str, *, split: str = "sample", seed: int = 0, report: Report | None = None) -> Splits:
    """A published data set that is here.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    split : str
        How the validation samples are taken from the training samples, where the publishers set none apart: "sample"
        (stratified by class) or "speaker" (whole speakers or users).
    seed : int
        Of that division.
    report : function of what is done, how much of it, and how much there is, optional
        Called while a file is packed, which is done once.

    Returns
    -------
    Splits

    Raises
    ------
    RanvierError
        If it is not here, broken, or has no speakers to divide by.
    """
    parts, notes = {}, ()
    for part in _parts(name):
        parts[part], said = _open(name, part, report=report)
        notes += said
    index = {part: np.arange(len(dataset)) for part, dataset in parts.items()}
    if "validation" not in parts:
        train = parts["train"]
        index["train"], index["validation"] = divide(train, (1.0 - VALIDATION, VALIDATION), split, seed)
        parts["train"], parts["validation"] = (train.subset(index[part]) for part in ("train", "validation"))
    groups = voice_groups(parts["train"].speaker, parts["test"].speaker)
    return Splits(parts["train"], parts["validation"], parts["test"], groups, notes, index)


def divide(dataset: Dataset, shares: tuple[float, ...], split: str, seed: int) -> list[np.ndarray]:
    """Samples of each part, stratified by class or by whole speakers.

    Parameters
    ----------
    dataset : Dataset
    shares : (P,)
    split : str
        "sample" or "speaker".
    seed : int

    Returns
    -------
    list of P arrays of int64

    Raises
    ------
    RanvierError
        If there are fewer speakers than parts.
    """
    if split == "sample":
        return stratified(dataset.labels, shares, seed)
    n = 0 if dataset.speaker is None else len(np.unique(dataset.speaker))
    if dataset.speaker is None or n < len(shares):
        raise RanvierError(
            f"data.load: got split {split} for {dataset.name} of {n or 'unknown'} speakers; needs at least one for "
            f"each of {len(shares)} parts; divide it by sample"
        )
    return by_speaker(dataset.speaker, shares, seed)


def compared(name: str, part: str, dataset: Dataset) -> list[str]:
    """How a part differs from the known figures, as warnings.

    Parameters
    ----------
    name : str
    part : str
    dataset : Dataset

    Returns
    -------
    list of str
    """
    facts = FACTS[name]
    pairs = [
        ("samples", len(dataset), facts.samples.get(part)),
        ("channels", dataset.n_channels, facts.n_channels),
        ("classes", dataset.n_classes, facts.n_classes),
    ]
    found = [f"{got} {what} in place of {known}" for what, got, known in pairs if known is not None and got != known]
    if facts.most_events is not None and dataset.max_events > facts.most_events:
        found.append(f"a sample of {dataset.max_events} events, known are at most {facts.most_events}")
    # Times in float16 seconds are rounded by half a millisecond at this place.
    if facts.latest is not None and dataset.latest > facts.latest + 1.0:
        found.append(f"an event at {dataset.latest:g} ms, known are at most {facts.latest:g}")
    return [f"WARNING: {name} {part}: {line}" for line in found]


def where(name: str) -> dict[str, Path]:
    """Where each published file belongs.

    Parameters
    ----------
    name : str

    Returns
    -------
    dict of str to Path
        By part.
    """
    return {part: cache.folder() / name / file.name for part, file in FACTS[name].files.items()}


def is_here(name: str) -> bool:
    """Whether a published data set can be loaded without the network.

    Parameters
    ----------
    name : str

    Returns
    -------
    bool
    """
    return all(path.is_file() or _is_packed(name, part) for part, path in where(name).items())


def _parts(name: str) -> tuple[str, ...]:
    parts = tuple(FACTS[name].files)
    return ("train", "test") if parts == ("all",) else parts


def _packed(name: str, part: str) -> Path:
    return cache.folder() / name / f"{part}{store.ENDING}"


def _is_packed(name: str, part: str) -> bool:
    return all(_packed(name, p).is_file() for p in (_parts(name) if part == "all" else (part,)))


def _file(name: str, part: str) -> tuple[File, Path]:
    facts: Facts = FACTS[name]
    file = facts.files.get(part) or facts.files["all"]
    return file, cache.folder() / name / file.name


def _open(name: str, part: str, jobs: int | None = None, report: Report | None = None) -> tuple[Dataset, tuple]:
    """A part from its store, which is made if it is missing or of something else."""
    file, path = _file(name, part)
    packed = _packed(name, part)
    begin = f"{name} {part}, store {store.VERSION}, {_READERS[name]}, "
    key = begin + (cache.known_checksum(path) if path.is_file() else "")
    # Without the published file, the store is what there is: of whatever content, if made by this version.
    if packed.is_file() and _starts(packed, key):
        dataset, notes = store.read(packed)
        return dataset, notes
    if not path.is_file():
        _missing(name, f"type `ranvier data get {name}`, or put {file.name} at {path}")
    warnings = []
    if key != begin + file.md5:
        digest = key.removeprefix(begin)
        warnings.append(f"WARNING: {file.name} has MD5 {digest}, not {file.md5}: not the published file; used as it is")
    say = None if report is None else (lambda done, total: report(f"packing {name} {part}", done, total))
    with _source(name, part, path, key) as source:
        convert(source, packed, key=key, jobs=jobs, progress=say)
    # Once more with what is known now: the notes stand in the store.
    dataset, notes = store.read(packed)
    warnings += compared(name, part, dataset)
    if warnings:
        store.write(packed, dataset, key=key, notes=(*warnings, *notes))
        dataset, notes = store.read(packed)
    return dataset, notes


def _starts(packed: Path, key: str) -> bool:
    try:
        return store.key_in(packed).startswith(key)
    except RanvierError:  # broken, or of another version: made again
        return False


@contextmanager
def _source(name: str, part: str, path: Path, key: str) -> Iterator[Source]:
    facts = FACTS[name]
    work = path.with_name(f".{path.name}.unpacked")
    title = f"{name}-{part}"
    if path.name.endswith(".tar.gz"):
        files = gesture.trials(_folder_of(_extracted(path, work)) / f"trials_to_{part}.txt")
        yield recordings(files, title, facts.sensor)
    elif path.name.endswith(".h5.zip"):
        yield source_of(_member(path, work), content=key, name=title)
    else:
        yield source_of(path, sensor=facts.sensor, content=key, name=title)
    # The last part needs it no more; a conversion that failed finds it the next time.
    if part == _parts(name)[-1] or not path.name.endswith(".tar.gz"):
        shutil.rmtree(work, ignore_errors=True)


def _extracted(path: Path, work: Path) -> Path:
    if not work.is_dir():
        half = work.with_name(work.name + f".{os.getpid()}")
        try:
            with tarfile.open(path) as archive:
                # Python 3.11 has the filter from 3.11.4 on; the members are checked without it, too
                how: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                archive.extractall(half, list(_inside(archive, half)), **how)
            os.replace(half, work)
        except (OSError, EOFError, tarfile.TarError) as error:
            shutil.rmtree(half, ignore_errors=True)
            _broken(path, error)
    return work


def _inside(archive: tarfile.TarFile, folder: Path) -> Iterator[tarfile.TarInfo]:
    """The files and folders of an archive, all of which must lie in `folder` when they are unpacked."""
    for member in archive:
        if not (folder / member.name).resolve().is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{member.name} lies outside of the archive")
        if member.isfile() or member.isdir():
            yield member


def _folder_of(root: Path) -> Path:
    lists = sorted(root.rglob("trials_to_train.txt"))
    if not lists:
        _broken(root, "no trials_to_train.txt in it")
    return lists[0].parent


def _member(path: Path, work: Path) -> Path:
    """The one HDF5 file of an archive, unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            (member,) = [info for info in archive.infolist() if info.filename.endswith(".h5")]
            target = work / Path(member.filename).name
            if not (target.is_file() and target.stat().st_size == member.file_size):
                work.mkdir(parents=True, exist_ok=True)
                half = target.with_suffix(f".{os.getpid()}")
                with archive.open(member) as source, open(half, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                os.replace(half, target)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        _broken(path, error)
    return target


def _broken(path: Path, error) -> NoReturn:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise RanvierError(
        f"data.load: {path}: cannot be read ({reason}); needs the whole file; remove it and fetch it again"
    )


def _missing(name: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.load: {name} is not here; needs its files in {cache.folder() / name}; {remedy}")
