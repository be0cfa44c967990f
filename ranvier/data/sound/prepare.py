"""A sound as the encoders want it: checked, at their rate, in silence, as loud as the others."""

import numpy as np

from ranvier.errors import RanvierError


def check(where: str, sound: np.ndarray, rate: float) -> np.ndarray:
    """The sound as (n,) float64.

    Raises
    ------
    RanvierError
        If it is not one row of finite real numbers, or the rate is not a positive whole number.
    """
    samples = np.asarray(sound)
    if samples.ndim != 1 or not samples.size or samples.dtype.kind not in "iuf":
        raise RanvierError(
            f"{where}: got a sound of shape {samples.shape} and type {samples.dtype}; "
            "needs (n,) real numbers, n >= 1; average the channels first"
        )
    if not np.isfinite(samples).all():
        at = int(np.argmin(np.isfinite(samples)))
        raise RanvierError(f"{where}: got {samples[at]} at sample {at}; needs finite numbers; correct the sound")
    if not (rate > 0 and rate == int(rate)):
        raise RanvierError(f"{where}: got a rate of {rate} Hz; needs a positive whole number; resample the sound")
    return samples.astype(np.float64)


def resample(sound: np.ndarray, rate: int, target: int) -> np.ndarray:
    """The sound at another rate, by a polyphase low-pass filter."""
    if rate == target:
        return sound
    from scipy.signal import resample_poly

    divisor = int(np.gcd(int(rate), target))
    return resample_poly(sound, target // divisor, int(rate) // divisor)


def surround(sound: np.ndarray, rate: int, margin_ms: float) -> np.ndarray:
    """The sound between two margins of silence."""
    margin = np.zeros(round(margin_ms * rate / 1000.0))
    return np.concatenate([margin, sound, margin])


def level(sound: np.ndarray, rms: float) -> np.ndarray:
    """The sound scaled to a root mean square; silence stays silence."""
    now = np.sqrt(np.mean(sound**2))
    return sound * (rms / now) if now > 0 else sound


def ramp(sound: np.ndarray, rate: int, ramp_ms: float) -> np.ndarray:
    """The sound faded in and out by halves of a Hann window."""
    n = min(round(ramp_ms * rate / 1000.0), len(sound) // 2)
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(n) / max(n, 1))
    faded = sound.copy()
    faded[:n] *= rise
    faded[len(sound) - n :] *= rise[::-1]
    return faded
