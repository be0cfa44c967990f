"""`encode_folder`: many sound files to HDF5 in the layout of the Spiking Heidelberg Digits."""

import hashlib
import inspect
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.data.hdf5_writer import write
from ranvier.data.sound.cochlea import cochlea
from ranvier.data.sound.files import read
from ranvier.data.sound.mel import mel_crossings
from ranvier.data.sound.sources import Sound, class_names, find
from ranvier.errors import RanvierError

# Of what the encoders give: a change of their numbers makes the next, and half-finished work starts again.
VERSION = 1
ENCODERS: dict[str, Callable] = {"cochlea": cochlea, "mel": mel_crossings}


@dataclass(frozen=True)
class Encoded:
    """What `encode_folder` did.

    Parameters
    ----------
    paths : dict of str to Path
        The files written: one by the name "", or one for each split of the manifest.
    n_channels : int
    n_samples, n_events : int
        In all files together.
    seconds : float
        Of sound, without margins, that this call encoded; files that an earlier one had finished do not count.
    errors : tuple of str
        One line for each file that could not be encoded, with its name; these are in no file written.
    """

    paths: dict[str, Path]
    n_channels: int
    n_samples: int
    n_events: int
    seconds: float
    errors: tuple[str, ...]


def encode_folder(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    encoder: str = "cochlea",
    seed: int = 0,
    jobs: int | None = None,
    work: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    times: str = "float32",
    **options,
) -> Encoded:
    """Encode all sound files of a folder or a manifest, in parallel; a call that was cut short can be made again.

    Finished files are kept in a work folder until all are done without an error; a later call with the same options
    takes them from there. Each file's random numbers come from `seed` and its name: neither the number of threads nor
    what else is encoded changes them.

    Parameters
    ----------
    source : path
        A folder or a `.csv`; `ranvier.data.sound.sources.find` has the rules for labels, speakers and splits.
    out : path
        `.h5` or `.h5.gz`. Where a manifest names splits: one file each, `NAME_SPLIT.h5`.
    encoder : str
        "cochlea" or "mel".
    seed : int
        In [0, 2^64).
    jobs : int, optional
        Files encoded at once; by default as many as there are processors.
    work : path, optional
        The work folder; by default beside `out`, `.NAME.work`.
    classes : sequence of str, optional
        All labels in the order of their numbers; by default sorted, as numbers where all are.
    progress : function, optional
        Called as progress(finished, all, name of the file) after every file, from the calling thread.
    times : str
        "float32" or "float16" in the file.
    **options
        Of `cochlea` or `mel_crossings`.

    Returns
    -------
    Encoded

    Raises
    ------
    RanvierError
        If there is nothing to encode, an option is wrong, no file could be encoded, or `out` cannot be written.
    """
    if encoder not in ENCODERS:
        raise RanvierError(f"encode_folder: got encoder {encoder!r}; needs one of {', '.join(ENCODERS)}; choose one")
    known = {
        name: p.default
        for name, p in inspect.signature(ENCODERS[encoder]).parameters.items()
        if p.kind == p.KEYWORD_ONLY
    }
    known.pop("seed", None)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise RanvierError(
            f"encode_folder: got option {unknown[0]!r} for {encoder}; needs one of {', '.join(known)}; leave it out"
        )
    if jobs is not None and jobs < 1:
        raise RanvierError(f"encode_folder: got {jobs} jobs; needs at least 1; leave jobs out for all processors")
    settings = known | options
    out = Path(out).expanduser()
    sounds = find(source)
    keys = class_names(sounds) if classes is None else tuple(classes)
    if len(set(keys)) < len(keys) or not {s.label for s in sounds} <= set(keys):
        wrong = sorted({s.label for s in sounds} - set(keys)) or "one twice"
        raise RanvierError(
            f"encode_folder: got classes {', '.join(keys)} and {wrong}; needs every label once; correct classes"
        )
    # Wrong options are one error, not one for each file.
    ENCODERS[encoder](np.zeros(16), 16_000, **settings)
    folder = Path(work).expanduser() if work is not None else out.with_name(f".{out.name}.work")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RanvierError(
            f"encode_folder: {folder}: cannot be made ({error}); needs a writable work folder; name another"
        ) from error

    recipe = json.dumps([VERSION, encoder, seed, settings], sort_keys=True, default=str)
    done: dict[int, _Events] = {}
    errors: dict[int, str] = {}
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        futures = {pool.submit(_encode, s, folder, recipe, encoder, seed, settings): i for i, s in enumerate(sounds)}
        try:
            for finished, future in enumerate(as_completed(futures), 1):
                i = futures[future]
                try:
                    done[i] = future.result()
                except RanvierError as error:
                    errors[i] = str(error)
                if progress is not None:
                    progress(finished, len(sounds), sounds[i].name)
        except BaseException:
            # What runs is finished and kept, what waits is not begun.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    listed = tuple(errors[i] for i in sorted(errors))
    if not done:
        raise RanvierError(f"encode_folder: {source}: none of {len(sounds)} files could be encoded; first: {listed[0]}")
    n_channels = settings["channels"] if encoder == "cochlea" else 2 * settings["bands"]
    speakers = sorted({s.speaker for s in sounds})
    paths = {}
    for split in sorted({sounds[i].split for i in done}):
        part = [i for i in sorted(done) if sounds[i].split == split]
        paths[split] = _named(out, split)
        _write(paths[split], [sounds[i] for i in part], [done[i] for i in part], keys, speakers, n_channels, times)
    if not errors:
        shutil.rmtree(folder, ignore_errors=True)
    n_events = sum(len(events.times) for events in done.values())
    return Encoded(paths, n_channels, len(done), n_events, sum(e.seconds for e in done.values()), listed)


def encode_file(sound: Sound, encoder: str, seed: int, settings: dict) -> tuple[np.ndarray, np.ndarray, float]:
    """Events of one sound file: what `encode_folder` writes for it.

    Parameters
    ----------
    sound : Sound
    encoder : str
        "cochlea" or "mel".
    seed : int
    settings : dict
        Options of the encoder.

    Returns
    -------
    times : (S,) [ms]
    channels : (S,) int
    seconds : float
        Of sound.

    Raises
    ------
    RanvierError
        If the file cannot be read or encoded.
    """
    samples, rate = read(sound.path)
    own = {}
    if encoder == "cochlea":
        own["seed"] = int.from_bytes(hashlib.sha256(f"{seed}\n{sound.name}".encode()).digest()[:8], "little")
    try:
        times, channels = ENCODERS[encoder](samples, rate, **own, **settings)
    except RanvierError as error:
        raise RanvierError(f"encode_folder: {sound.path}: {error}") from error
    return times, channels, len(samples) / rate


@dataclass(frozen=True)
class _Events:
    times: np.ndarray
    channels: np.ndarray
    seconds: float  # of sound encoded now


def _encode(sound: Sound, folder: Path, recipe: str, encoder: str, seed: int, settings: dict) -> _Events:
    """Events of a file, taken from the work folder where it has them, left there otherwise."""
    try:
        content = hashlib.sha256(sound.path.read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RanvierError(
            f"encode_folder: {sound.path}: cannot be read ({reason}); needs a sound file; check it"
        ) from error
    key = hashlib.sha256("\n".join([recipe, sound.name, content]).encode()).hexdigest()
    kept = folder / f"{key[:32]}.npz"
    if kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as file:
                return _Events(file["times"], file["channels"], 0.0)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # cut short by a full disk, say: made again below
    times, channels, seconds = encode_file(sound, encoder, seed, settings)
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, times=times, channels=channels)
        os.replace(temporary, kept)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RanvierError(
            f"encode_folder: {kept}: cannot be written ({error.strerror}); needs a work folder with room; name another"
        ) from error
    return _Events(times, channels, seconds)


def _named(out: Path, split: str) -> Path:
    if not split:
        return out
    ending = "".join(s for s in out.suffixes[-2:] if s in (".h5", ".hdf5", ".gz"))
    return out.with_name(f"{out.name.removesuffix(ending)}_{split}{ending}")


def _write(
    path: Path,
    sounds: list[Sound],
    events: list[_Events],
    keys: tuple[str, ...],
    speakers: list[str],
    n_channels: int,
    times: str,
) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(e.times) for e in events])]).astype(np.int64)
    named = speakers != [""]
    dataset = Dataset(
        name=path.name,
        times=np.concatenate([e.times for e in events]),
        channels=np.concatenate([e.channels for e in events]),
        offsets=offsets,
        labels=np.array([keys.index(s.label) for s in sounds], np.int32),
        n_channels=n_channels,
        class_names=keys,
        speaker=np.array([speakers.index(s.speaker) for s in sounds], np.int32) if named else None,
    )
    extra = {"file": np.array([s.name for s in sounds])}
    if named:
        extra["speaker_name"] = np.array([s.speaker for s in sounds])
    write(path, dataset, extra=extra, times=times)
