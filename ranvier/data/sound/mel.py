"""`mel_crossings`: a mel filter bank and the crossings of levels by its logarithm. For comparison with the cochlea."""

import numpy as np

from ranvier.data.sound.prepare import check, level, ramp, resample, surround
from ranvier.errors import RanvierError

RATE = 16_000  # Hz
POINTS = 1_024  # of a Fourier transform: 16 Hz apart
MAX_CROSSINGS = 1_000  # of a band between two frames


def mel_crossings(
    sound: np.ndarray,
    rate: float,
    *,
    bands: int = 64,
    step_db: float = 3.0,
    floor_db: float = -60.0,
    low_hz: float = 60.0,
    high_hz: float = 8_000.0,
    window_ms: float = 25.0,
    hop_ms: float = 1.0,
    margin_ms: float = 50.0,
    ramp_ms: float = 30.0,
    rms: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """Events where the level of a mel band crosses a multiple of `step_db`, upwards and downwards on channels apart.

    The sound is prepared as for `cochlea`, at 16 kHz. Eq. 48 of docs/equations.md.

    Parameters
    ----------
    sound : (n,)
    rate : whole number [Hz]
    bands : int
        Triangular filters, evenly spaced in mel; band 0 is the highest.
    step_db, floor_db : float [dB]
        Distance of the levels; what is weaker than the floor counts as the floor. 0 dB is the
        height of the spectrum of a sine at the level `rms`.
    low_hz, high_hz : float [Hz]
        Ends of the lowest and of the highest band.
    window_ms, hop_ms : float [ms]
        Length of the Hann windows and their distance; a crossing between two is placed on the line between them.
    margin_ms, ramp_ms, rms : float
        As in `cochlea`.

    Returns
    -------
    times : (S,) float32 [ms]
        Ascending, from the start of the first margin on.
    channels : (S,) int32
        2 band for a crossing upwards, 2 band + 1 for one downwards: 2 `bands` channels.

    Raises
    ------
    RanvierError
        If the sound is not one row of finite numbers, or an option is out of its range.

    References
    ----------
    Stevens, Volkmann (1940), The relation of pitch to frequency; the formula is O'Shaughnessy's (1987).
    """
    samples = check("mel_crossings", sound, rate)
    good = isinstance(bands, (int, np.integer)) and 1 <= bands <= 32_768 and 0 <= low_hz < high_hz <= RATE / 2
    good = good and 0 < step_db < np.inf and -np.inf < floor_db < 0 and 0 < window_ms <= 1000 * POINTS / RATE
    if not (
        good and 0 < hop_ms <= window_ms and 0 <= margin_ms < np.inf and 0 <= ramp_ms < np.inf and 0 < rms < np.inf
    ):
        raise RanvierError(
            f"mel_crossings: got bands={bands}, step_db={step_db}, floor_db={floor_db}, low_hz={low_hz}, "
            f"high_hz={high_hz}, window_ms={window_ms}, hop_ms={hop_ms}, margin_ms={margin_ms}, ramp_ms={ramp_ms}, "
            f"rms={rms}; needs whole bands >= 1, step > 0, floor < 0, 0 <= low < high <= {RATE // 2}, "
            f"0 < hop <= window <= {1000 * POINTS // RATE} ms, margins and ramps >= 0, rms > 0; change what is outside"
        )
    samples = surround(resample(samples, int(rate), RATE), RATE, margin_ms)
    samples = ramp(level(samples, rms), RATE, ramp_ms)
    decibels, frame_ms = _levels(samples, int(bands), rms, floor_db, low_hz, high_hz, window_ms, hop_ms)
    if np.abs(np.diff(decibels / step_db, axis=0)).max(initial=0.0) > MAX_CROSSINGS:
        raise RanvierError(
            f"mel_crossings: got step_db={step_db}, with more than {MAX_CROSSINGS} crossings a frame; "
            "needs larger steps; raise step_db"
        )
    return _crossings(decibels / step_db, frame_ms)


def _levels(samples, bands, rms, floor_db, low_hz, high_hz, window_ms, hop_ms) -> tuple[np.ndarray, np.ndarray]:
    """(frames, bands) decibels, highest band first, and the time of the middle of each frame [ms]."""
    import scipy.fft

    length, hop = max(2, round(window_ms * RATE / 1000.0)), max(1, round(hop_ms * RATE / 1000.0))
    samples = np.concatenate([samples, np.zeros(max(0, length - len(samples)))])
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]
    window = np.hanning(length + 1)[:-1]
    bank = filters(bands, low_hz, high_hz)
    power = np.concatenate(  # some frames at a time: a spectrum is larger than what is kept of it
        [
            np.abs(np.asarray(scipy.fft.rfft(frames[at : at + 4096] * window, POINTS, axis=1))) ** 2 @ bank.T
            for at in range(0, len(frames), 4096)
        ]
    )
    # Of a sine with that root mean square: amplitude^2 / 4 (sum of the window)^2 at its own frequency.
    power /= 0.5 * (rms * window.sum()) ** 2
    decibels = 10.0 * np.log10(np.maximum(power, 10.0 ** (floor_db / 10.0)))
    return decibels[:, ::-1], (np.arange(len(frames)) * hop + 0.5 * length) * (1000.0 / RATE)


def filters(bands: int, low_hz: float, high_hz: float) -> np.ndarray:
    """(bands, POINTS / 2 + 1) triangles of height 1, evenly spaced in mel, lowest band first.

    mel = 2595 log10(1 + f / 700)
    """
    ends = 2595.0 * np.log10(1.0 + np.array([low_hz, high_hz]) / 700.0)
    corner = 700.0 * (10.0 ** (np.linspace(ends[0], ends[1], bands + 2) / 2595.0) - 1.0)
    frequency = np.fft.rfftfreq(POINTS, 1.0 / RATE)
    rise = (frequency - corner[:-2, None]) / (corner[1:-1] - corner[:-2])[:, None]
    fall = (corner[2:, None] - frequency) / (corner[2:] - corner[1:-1])[:, None]
    bank = np.maximum(np.minimum(rise, fall), 0.0)
    # A triangle between two bins of the transform hears the nearest one.
    narrow = np.nonzero(~bank.any(axis=1))[0]
    bank[narrow, np.abs(frequency - corner[1:-1][narrow, None]).argmin(axis=1)] = 1.0
    return bank


def _crossings(height: np.ndarray, frame_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crossings of the whole numbers by `height` (frames, bands), each on the line between two frames."""
    whole = np.floor(height)
    moved = np.diff(whole, axis=0).astype(np.int64)
    frame, band = np.nonzero(moved)
    count = np.abs(moved[frame, band])
    up = moved[frame, band] > 0
    which = np.repeat(np.arange(len(frame)), count)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    before, after = height[frame, band][which], height[frame + 1, band][which]
    line = np.where(up[which], np.floor(before) + 1 + nth, np.floor(before) - nth)
    part = np.clip((line - before) / (after - before), 0.0, 1.0)
    times = frame_ms[frame[which]] + part * (frame_ms[1] - frame_ms[0] if len(frame_ms) > 1 else 0.0)
    channels = 2 * band[which] + ~up[which]
    order = np.lexsort((channels, times))
    return times[order].astype(np.float32), channels[order].astype(np.int32)
