"""`convert`: recordings of any known format to a store or an HDF5 file, in parallel, and on from where it stopped."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from ranvier.data import gesture, hdf5, hdf5_writer, nmnist, store
from ranvier.data.dataset import Dataset
from ranvier.data.files import Files
from ranvier.data.piece import Piece
from ranvier.errors import RanvierError

# Samples of a piece: enough that NumPy does the work, few enough that what it does stays in the caches and little is
# lost when a conversion is stopped.
RECORDS_A_PIECE, ROWS_A_PIECE = 128, 1024
HDF5_ENDINGS = (".h5", ".hdf5", ".h5.gz")
STORE_ENDING = store.ENDING
SOUND_ENDINGS = (".wav", ".flac")
HDF5_VERSION = 1
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Source:
    """Recordings that can be read piece by piece, by several threads.

    Parameters
    ----------
    name : str
        Of the data set.
    reader : str
        Name, version and options of what reads it.
    content : str
        Checksum of what it reads; of a folder that of the names, sizes and dates of its files.
    n_channels : int
    class_names : tuple of str
    pieces : list of functions that return a Piece
    sensor : (polarities, height, width), optional
    notes : tuple of str
    encoder : str
        Of sounds: what makes events of them, which takes long.
    """

    name: str
    reader: str
    content: str
    n_channels: int
    class_names: tuple[str, ...]
    pieces: list[Callable[[], Piece]] = field(repr=False)
    sensor: tuple[int, int, int] | None = None
    notes: tuple[str, ...] = ()
    encoder: str = ""


def key_of(source: Source) -> str:
    """What determines the content of a store: its version, the reader, its options, and the content of the source.

    Parameters
    ----------
    source : Source

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits.
    """
    facts = [store.VERSION, source.reader, source.content, source.name, source.n_channels, source.class_names]
    return hashlib.sha256(json.dumps([*facts, source.sensor]).encode()).hexdigest()


def source_of(
    path: str | os.PathLike,
    *,
    n_channels: int | None = None,
    sensor: tuple[int, int] | None = None,
    content: str | None = None,
    name: str | None = None,
) -> Source:
    """What a path holds, found by its endings.

    Parameters
    ----------
    path : path
        `.h5`, `.hdf5`, `.h5.gz`: SHD layout. `.aedat`, or a folder with such files: DVS Gesture layout. A folder or a
        `.zip` with a folder of `.bin` files for each class: N-MNIST layout. `.events`: a store. A folder of `.wav` and
        `.flac` files, or a `.csv` manifest of them: what the model of the cochlea makes of them with seed 0.
    n_channels : int, optional
        Of an HDF5 file, by default what it says of itself, or those to make of sounds; 700 where nothing says it.
    sensor : (height, width), optional
        Of a camera; by default 34 x 34 for `.bin` and 128 x 128 for `.aedat`.
    content : str, optional
        Checksum of the file, where it is known.
    name : str, optional
        Of the data set; by default that of the file.

    Returns
    -------
    Source

    Raises
    ------
    RanvierError
        If the path holds nothing of these, or is broken.
    """
    path = Path(path).expanduser()
    name = name or path.name
    if path.is_file() and path.name.endswith(HDF5_ENDINGS):
        return _hdf5(path, name, n_channels, content or checksum(path))
    if path.is_file() and path.name.endswith(STORE_ENDING):
        return _store(path, name)
    if path.is_file() and path.suffix == ".aedat":
        return recordings([path], name, sensor)
    if path.is_dir():
        files = sorted(path.rglob("*.aedat"))
        if files:
            return recordings(files, name, sensor)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _sounds(path, name, n_channels or hdf5.N_CHANNELS)
    if path.is_dir() and any(file.suffix.lower() in SOUND_ENDINGS for file in path.rglob("*")):
        return _sounds(path, name, n_channels or hdf5.N_CHANNELS)
    if path.is_dir() or (path.is_file() and path.suffix == ".zip"):
        return _records(path, name, sensor)
    if not path.exists():
        _refuse(path, "no such file", "recordings, or a folder of them", "check the path")
    _refuse(path, "no recordings", "a known format", "see ranvier data convert -h")


def recordings(files: Sequence[Path], name: str, sensor: tuple[int, int] | None = None) -> Source:
    """AEDAT 3.1 recordings with their tables of gestures, as a source.

    Parameters
    ----------
    files : sequence of Path
    name : str
        Of the data set.
    sensor : (height, width), optional
        By default 128 x 128.

    Returns
    -------
    Source
    """
    shape = gesture.SENSOR if sensor is None else (2, sensor[0], sensor[1])
    facts = []
    for file in files:
        for path in (file, gesture.table_of(file)):
            if not path.is_file():
                _refuse(path, "no such file", "a recording.aedat and its recording_labels.csv", "put both there")
            facts.append([path.name, path.stat().st_size, path.stat().st_mtime_ns])
    return Source(
        name=name,
        reader=f"gesture {gesture.VERSION}, aedat {gesture.aedat.VERSION}",
        content=_digest(facts),
        n_channels=int(np.prod(shape)),
        class_names=gesture.NAMES,
        pieces=[partial(gesture.decode, file, shape) for file in files],
        sensor=shape,
    )


def convert(
    source: Source,
    out: str | os.PathLike,
    *,
    key: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Write a source as a store (`.events`) or in the layout of SHD (`.h5`, `.h5.gz`).

    Each finished piece is kept in a folder beside `out` until all are there, so that a conversion that was stopped goes
    on from where it was. Pieces of another source or of another version of the reader are not taken up.

    Parameters
    ----------
    source : Source
    out : path
    key : str, optional
        Kept in the store; by default `key_of(source)`.
    jobs : int, optional
        Threads; by default one a core.
    progress : function of pieces done and pieces in all, optional
        Called from one thread at a time.

    Returns
    -------
    tuple of str
        What was unusual and accepted; a store has it inside, too.

    Raises
    ------
    RanvierError
        If a file of the source is broken, `out` has another ending or cannot be written.
    """
    out = Path(out).expanduser()
    if not out.name.endswith((STORE_ENDING, *HDF5_ENDINGS)):
        _refuse(out, "an ending that is not known", f"{STORE_ENDING}, {', '.join(HDF5_ENDINGS)}", "name it so")
    key = key_of(source) if key is None else key
    work = out.with_name(f".{out.name}.{hashlib.sha256(key.encode()).hexdigest()[:16]}.work")
    parts = [work / f"{i:06d}{STORE_ENDING}" for i in range(len(source.pieces))]
    done, lock = 0, threading.Lock()

    def make(i: int) -> None:
        nonlocal done
        if not _is_part(parts[i], f"{key} {i}"):
            piece = source.pieces[i]()
            store.write(parts[i], _dataset(source, piece), key=f"{key} {i}", notes=piece.notes, sync=False)
        with lock:
            done += 1
            if progress is not None:
                progress(done, len(parts))

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        futures = [pool.submit(make, i) for i in range(len(parts))]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [f for f in finished if f.exception() is not None]
        finally:
            # Also after Ctrl-C: what runs is finished and kept, what waits is not begun.
            pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        # The first in the order of the files, so that the same folder gives the same message.
        error = min(failed, key=futures.index).exception()
        assert error is not None
        raise error
    read = [store.read(part) for part in parts]
    notes = source.notes + tuple(_together([note for _, part_notes in read for note in part_notes]))
    datasets = [dataset for dataset, _ in read]
    # Made in the folder that goes away, so that nothing stays beside `out` when the machine stops.
    whole = made = work / f"whole{STORE_ENDING}"
    store.join(whole, datasets, name=source.name, key=key, notes=notes)
    if not out.name.endswith(STORE_ENDING):
        made = work / f"whole.{out.name}"
        hdf5_writer.write(made, store.read(whole)[0], times="float32")
    try:
        os.replace(made, out)
    except OSError as error:
        _refuse(out, f"a path that cannot be written ({error.strerror})", "another path", "choose one")
    shutil.rmtree(work)
    return notes


def checksum(path: Path, kind: str = "md5") -> str:
    """Checksum of a file, in hexadecimal digits.

    Parameters
    ----------
    path : Path
    kind : str
        Name of the algorithm in `hashlib`; what the publishers of data sets give is MD5.

    Returns
    -------
    str
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _hdf5(path: Path, name: str, asked: int | None, content: str) -> Source:
    def rows(start: int, stop: int | None) -> Piece:
        dataset, notes = hdf5.read(path, n_channels=asked, start=start, stop=stop)
        counts = np.diff(dataset.offsets)
        return Piece(dataset.times, dataset.channels, counts, dataset.labels, dataset.speaker, notes)

    n, class_names, n_channels, sensor = hdf5.describe(path, asked)
    # Nothing in a compressed file can be read without all that is before it: one piece.
    step = n if path.suffix == ".gz" else ROWS_A_PIECE
    pieces = [partial(rows, start, start + step) for start in range(0, n, step)]
    return Source(name, f"hdf5 {HDF5_VERSION}", content, n_channels, class_names, pieces, sensor)


def _store(path: Path, name: str) -> Source:
    dataset, notes = store.read(path)
    piece = Piece(dataset.times, dataset.channels, np.diff(dataset.offsets), dataset.labels, dataset.speaker)
    return Source(
        name=dataset.name if name == path.name else name,
        reader="store",
        content=store.key_in(path) or checksum(path),
        n_channels=dataset.n_channels,
        class_names=dataset.class_names,
        pieces=[lambda: piece],
        sensor=dataset.sensor,
        notes=notes,
    )


def _sounds(path: Path, name: str, n_channels: int) -> Source:
    # Not above: whoever reads events needs no encoder.
    from ranvier.data.sound.folder import VERSION, encode_file
    from ranvier.data.sound.sources import Sound, class_names, find

    sounds = find(path)
    if any(sound.split for sound in sounds):
        remedy = f"type `ranvier data convert {path} OUT.h5` and use the files that it writes"
        _refuse(path, "a manifest of several parts", "one part", remedy)
    keys, speakers = class_names(sounds), sorted({sound.speaker for sound in sounds})
    facts = []
    for sound in sounds:
        if not sound.path.is_file():
            _refuse(sound.path, "no such file", "a sound file", f"correct {path.name}")
        stat = sound.path.stat()
        facts.append([sound.name, sound.label, sound.speaker, stat.st_size, stat.st_mtime_ns])

    def encode(sound: Sound) -> Piece:
        times, channels, _ = encode_file(sound, "cochlea", 0, {"channels": n_channels})
        piece = Piece(times, channels, np.array([len(times)]), np.zeros(1, np.int32))
        who = None if speakers == [""] else [speakers.index(sound.speaker)]
        return piece.labelled([keys.index(sound.label)], who)

    pieces = [partial(encode, sound) for sound in sounds]
    by = f"the cochlea model with {n_channels} channels and seed 0"
    return Source(name, f"cochlea {VERSION}", _digest(facts), n_channels, keys, pieces, encoder=by)


def _records(path: Path, name: str, sensor: tuple[int, int] | None) -> Source:
    shape = nmnist.SENSOR if sensor is None else (2, sensor[0], sensor[1])
    files = Files(path, ".bin")
    names = files.names
    if not names:
        _refuse(
            path,
            "no .h5, .aedat, .bin, .wav or .flac file",
            "recordings of a known format",
            "see ranvier data convert -h",
        )
    folders = [Path(file).parent.name for file in names]
    parents = {str(Path(file).parent.parent) for file in names}
    if "" in folders:
        found = f"{folders.count('')} .bin files in no folder"
        _refuse(path, found, "one folder a class", "name the folder above, or sort them")
    if len(parents) > 1:
        found = f".bin files in {len(parents)} groups of classes ({', '.join(sorted(parents)[:3])})"
        _refuse(path, found, "one folder a class", "convert each group by itself")
    classes = sorted(set(folders), key=lambda folder: (len(folder), folder) if folder.isdigit() else (99, folder))
    labels = np.array([classes.index(folder) for folder in folders], np.int32)

    def decode(part: slice) -> Piece:
        shown = [str(path / file) for file in names[part]]
        return nmnist.decode(shown, files.read(names[part]), shape).labelled(labels[part])

    return Source(
        name=name,
        reader=f"nmnist {nmnist.VERSION}",
        content=_digest([[file, *fact] for file, fact in files.facts.items()]),
        n_channels=int(np.prod(shape)),
        class_names=tuple(classes),
        pieces=[partial(decode, slice(i, i + RECORDS_A_PIECE)) for i in range(0, len(names), RECORDS_A_PIECE)],
        sensor=shape,
    )


def _dataset(source: Source, piece: Piece) -> Dataset:
    return Dataset(
        name=source.name,
        times=piece.times,
        channels=piece.channels,
        offsets=np.concatenate([[0], np.cumsum(piece.counts)]).astype(np.int64),
        labels=piece.labels,
        n_channels=source.n_channels,
        class_names=source.class_names,
        speaker=piece.speaker,
        sensor=source.sensor,
    )


def _is_part(path: Path, key: str) -> bool:
    if not path.is_file():
        return False
    try:
        store.verify(path)
        return store.key_in(path) == key
    except RanvierError:  # cut when the machine stopped; made again
        return False


def _together(notes: list[str], most: int = 5) -> list[str]:
    return notes if len(notes) <= most else [*notes[:most], f"{len(notes) - most} more notes like these"]


def _digest(facts: list) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"data.convert: {path}: got {found}; needs {needed}; {remedy}")
