"""The basilar membrane: how fast it moves at each place, from the sound at the eardrum. Eq. 44 of docs/equations.md.

A place is a linear filter, applied by overlapping blocks of Fourier transforms. Its response is band-limited by where
the wave dies out, and the velocities are wanted at half the rate of the sound, so a block costs one short inverse
transform a place.
"""

import functools
from collections.abc import Iterator

import numpy as np

RATE = 48_000  # Hz, of the sound
VELOCITY_RATE = RATE // 2  # Hz: every second sample, as in the program that made the data sets
LENGTH = 3.5  # cm
STIFFNESS = 1e9  # g / (s^2 cm^2) at the base
STIFFNESS_LOSS = 3.5e3  # g / (s^2 cm^2), everywhere
STIFFNESS_DECAY = 3.0  # 1 / cm
MASS = 0.05  # g / cm^2
DAMPING = 0.15
CHANNEL_HEIGHT = 0.1  # cm
DENSITY = 1.0  # g / cm^3
SOUND_SPEED = 34_300.0  # cm / s, in the ear canal
GAIN = 45.8  # velocities in units of the hair cells' A and B for a sound of full scale 1

BLOCK = 32_768  # samples of a Fourier transform
TAPS = 8_192  # of an impulse response: the slowest place has 1e-4 of its energy left after 101 ms
AHEAD = 1_024  # taps on the short side
HOP = BLOCK - TAPS
CHANNELS_AT_ONCE = 16  # a block of the compiled cells; neighbours share how far their band reaches


def places(channels: int) -> np.ndarray:
    """Distance of each channel from the base, where the highest frequencies are [cm]."""
    return np.linspace(0.0, LENGTH, channels)


def transfer(x: np.ndarray, frequency: np.ndarray, causal: bool) -> np.ndarray:
    """Velocity at the places `x` for a sound of amplitude 1 at each frequency, e^(+i w t).

        xi = C0 u^2 - a - w^2 m + i w R0 u      u = e^(-alpha x / 2)      R0 = delta sqrt(C0 m)
        g = w sqrt(rho / (h xi))      G = integral of g from 0 to x + 2 g(0) / alpha
        p = sqrt(G / g) H0(G) / H0(G(0))      H: Hankel functions of the second kind
        v = gain i w^2 p / xi Z      Z = H0(G(0)) / (g(0) H1(G(0)) + i w / c H0(G(0)))

    Not causal: conj(p / xi) in place of p / xi.

    Parameters
    ----------
    x : (n,) [cm]
    frequency : (k,) [Hz]
        Not negative.
    causal : bool

    Returns
    -------
    v : (n, k) complex128
        0 where the wave has died out.

    References
    ----------
    Sieroka, Dosch, Rupp (2006), Semirealistic models of the cochlea. Cramer et al. (2020), section II.
    """
    from scipy.special import hankel2, hankel2e

    w = 2.0 * np.pi * np.maximum(frequency, 1e-3).astype(complex)
    friction = 1j * w * DAMPING * np.sqrt(STIFFNESS * MASS)
    rest = -(STIFFNESS_LOSS + w**2 * MASS)
    root = np.sqrt(rest)
    scale = w * np.sqrt(DENSITY / CHANNEL_HEIGHT)
    u = np.exp(-0.5 * STIFFNESS_DECAY * x)[:, None]

    def impedance(u):
        return STIFFNESS * u**2 + friction * u + rest

    # dx = -2 / (alpha u) du, and 1 / (u sqrt(quadratic in u)) has this integral.
    def integral(u):
        return -np.log((2.0 * root * np.sqrt(impedance(u)) + friction * u + 2.0 * rest) / u) / root

    xi = impedance(u)
    g, g0 = scale / np.sqrt(xi), scale / np.sqrt(impedance(1.0))
    start = 2.0 / STIFFNESS_DECAY * g0
    phase = start + 2.0 / STIFFNESS_DECAY * scale * (integral(1.0) - integral(u))
    alive = phase.imag > -40.0
    safe = np.where(alive, phase, 1.0)
    at_base = hankel2(0, start)
    wave = np.where(alive, np.sqrt(safe / g) * hankel2e(0, safe) * np.exp(-1j * safe), 0.0) / (at_base * xi)
    entry = at_base / (g0 * hankel2(1, start) + 1j * w / SOUND_SPEED * at_base)
    v = GAIN * 1j * w**2 * (wave if causal else wave.conj()) * entry
    return np.where(frequency > 0, v, 0.0)


class Membrane:
    """The filters of all channels, ready for blocks of sound.

    Parameters
    ----------
    channels : int
    causal : bool
        Whether the wave travels after the sound. In the published data sets it comes before: its phases have the
        opposite sign, and low frequencies lead by up to 24 ms.
    """

    def __init__(self, channels: int, causal: bool):
        self.channels = channels
        self.before = TAPS - AHEAD if causal else AHEAD  # samples of sound that an output reaches back
        x = places(channels)
        self.filters = []
        for first in range(0, channels, CHANNELS_AT_ONCE):
            self.filters.append(self._filters(x[first : first + CHANNELS_AT_ONCE], causal))

    def _filters(self, x: np.ndarray, causal: bool) -> np.ndarray:
        """(n, band) complex64: what the spectrum of a block is multiplied by, up to where nothing is left."""
        import scipy.fft

        highest = np.sqrt((STIFFNESS * np.exp(-STIFFNESS_DECAY * x[0])) / MASS) / (2.0 * np.pi)
        frequency = np.fft.rfftfreq(TAPS, 1.0 / RATE)
        n_bins = int(np.searchsorted(frequency, 4.0 * highest))
        response = np.zeros((len(x), len(frequency)), complex)
        response[:, :n_bins] = transfer(x, frequency[:n_bins], causal)
        taps = np.asarray(scipy.fft.irfft(response, TAPS, axis=1))
        padded = np.zeros((len(x), BLOCK))
        padded[:, : self.before] = taps[:, : self.before]
        padded[:, self.before - TAPS :] = taps[:, self.before - TAPS :]
        filters = np.asarray(scipy.fft.rfft(padded, axis=1))
        size = np.abs(filters).max(axis=0)
        band = int(np.nonzero(size > 1e-5 * size.max())[0][-1]) + 1
        return filters[:, :band].astype(np.complex64)

    def velocities(self, sound: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Velocities of the membrane for a sound at `RATE`, in pieces.

        Parameters
        ----------
        sound : (n,)

        Yields
        ------
        first_step : int
            Of the piece, counted at `VELOCITY_RATE`.
        first_channel : int
        velocity : (channels, steps) float32
            In order of steps for each channel; the array is used again for the next piece.
        """
        import scipy.fft

        n_steps = -(-len(sound) // 2)
        padded = np.zeros(-(-len(sound) // HOP) * HOP + BLOCK, np.float32)
        padded[self.before : self.before + len(sound)] = sound
        # With the factor 1/2 of folding, see below.
        spectra = [0.5 * np.asarray(scipy.fft.rfft(padded[at : at + BLOCK])) for at in range(0, len(sound), HOP)]
        quarter = BLOCK // 4
        for block, filters in enumerate(self.filters):
            n, band = filters.shape
            low, high = min(band, quarter + 1), max(band, quarter)
            folded = np.zeros((n, quarter + 1), np.complex64)
            for chunk, spectrum in enumerate(spectra):
                np.multiply(filters[:, :low], spectrum[:low], out=folded[:, :low])
                # Every second sample: what lies above the new highest frequency comes back below it.
                if band > quarter:
                    mirrored = (filters[:, quarter:high] * spectrum[quarter:high]).conj()
                    folded[:, 2 * quarter + 1 - high :] += mirrored[:, ::-1]
                velocity = np.asarray(scipy.fft.irfft(folded, BLOCK // 2, axis=1))
                first = chunk * HOP // 2
                steps = slice(self.before // 2, self.before // 2 + min(HOP // 2, n_steps - first))
                yield first, block * CHANNELS_AT_ONCE, np.ascontiguousarray(velocity[:, steps])


@functools.lru_cache(maxsize=4)
def membrane(channels: int, causal: bool) -> Membrane:
    """The filters, kept for the next sound: they take longer than a second of sound does."""
    return Membrane(channels, causal)
