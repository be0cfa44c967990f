"""`read`: the samples of a WAV or FLAC file."""

import os
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np

from ranvier.errors import RanvierError

SUFFIXES = (".wav", ".flac")


def read(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Samples of a sound file, several channels averaged to one.

    Parameters
    ----------
    path : path
        `.wav` (8 to 64 bit integers or floats, by SciPy) or `.flac` (by the package soundfile, `ranvier[sound]`).

    Returns
    -------
    sound : (n,) float64
        In [-1, 1] where the file holds integers.
    rate : int [Hz]

    Raises
    ------
    RanvierError
        If the file is missing, empty, broken, of another kind, holds no finite numbers, or soundfile is missing.
    """
    path = Path(path)
    if not path.is_file():
        _refuse(path, "no such file", "a WAV or FLAC file", "check the path")
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        _refuse(path, f"a file in {kind or 'no ending'}", f"one in {' or '.join(SUFFIXES)}", "convert it first")
    sound, rate = _wav(path) if kind == ".wav" else _flac(path)
    if sound.ndim == 2:
        sound = sound.mean(axis=1)
    if not sound.size or rate <= 0:
        _refuse(path, f"{sound.size} samples at {rate} Hz", "at least one, at a positive rate", "record it again")
    if not np.isfinite(sound).all():
        _refuse(
            path, f"sample {int(np.argmin(np.isfinite(sound)))} that is no finite number", "finite", "write it again"
        )
    return sound, int(rate)


def _wav(path: Path) -> tuple[np.ndarray, int]:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            # Chunks that it does not know are left out; a file that ends early is not.
            warnings.filterwarnings("ignore", message="Chunk .* not understood", category=wavfile.WavFileWarning)
            warnings.filterwarnings("error", category=wavfile.WavFileWarning)
            rate, data = wavfile.read(path)
    except Exception as error:  # whatever a broken header leads to: the reader checks little
        _refuse(path, f"a file that cannot be read ({_line(error)})", "a whole WAV file", "fetch or write it again")
    if data.dtype.kind == "u":
        return (data.astype(np.float64) - 128.0) / 128.0, rate
    if data.dtype.kind == "i":
        return data / -float(np.iinfo(data.dtype).min), rate
    return data.astype(np.float64), rate


def _flac(path: Path) -> tuple[np.ndarray, int]:
    try:
        import soundfile  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):
        _refuse(path, "a FLAC file without the package soundfile", "it", "pip install 'ranvier[sound]', or give WAV")
    try:
        return soundfile.read(path, dtype="float64")
    except (RuntimeError, OSError) as error:
        _refuse(path, f"a file that cannot be read ({_line(error)})", "a whole FLAC file", "fetch or write it again")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refuse(path: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"sound.read: {path}: got {found}; needs {needed}; {remedy}")
