"""`cochlea`: sound to the spikes of bushy cells, by the model behind the Spiking Heidelberg Digits."""

import numpy as np

from ranvier.data.sound.cells import Cells, Parameters
from ranvier.data.sound.membrane import RATE, VELOCITY_RATE, membrane
from ranvier.data.sound.prepare import check, level, ramp, resample, surround
from ranvier.errors import RanvierError

MAX_CHANNELS = 65_536
# Steps are counted in 32 bits, and so is the generator's counter.
MAX_SECONDS = 3_600.0


def cochlea(
    sound: np.ndarray,
    rate: float,
    *,
    channels: int = 700,
    seed: int = 0,
    fibres: int = 40,
    margin_ms: float = 50.0,
    ramp_ms: float = 30.0,
    rms: float = 0.3,
    causal: bool = False,
    native: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Spikes of one bushy cell a channel: basilar membrane, transmitter-pool hair cells, nerve fibres, bushy cells.

    The sound is brought to 48 kHz, set between two margins of silence, scaled to a root mean square, faded in and out.
    Eq. 44 to 47 of docs/equations.md.

    Parameters
    ----------
    sound : (n,)
        Real numbers; the scale does not matter.
    rate : whole number [Hz]
    channels : int
        Places along the membrane; channel 0 has the highest frequencies.
    seed : int
        In [0, 2^64). The same seed gives the same spikes whatever the number of threads, and a channel its random
        numbers whatever else is computed.
    fibres : int
        Nerve fibres of a channel.
    margin_ms, ramp_ms : float [ms]
        Silence before and after; how long the whole is faded in and out.
    rms : float
        Root mean square of the whole with its margins; silence stays silence.
    causal : bool
        True: the wave along the membrane comes after the sound, low frequencies last, as in an ear. False: its phases
        have the opposite sign and low frequencies lead by up to 24 ms, as in the published data sets; for networks that
        are trained on those.
    native : bool, optional
        Whether the compiled library computes; by default where there is one. NumPy gives the same spikes, later.

    Returns
    -------
    times : (S,) float32 [ms]
        Ascending, from the start of the first margin on.
    channels : (S,) int32
        Ascending where times are equal.

    Raises
    ------
    RanvierError
        If the sound is not one row of finite numbers, or an option is out of its range.

    References
    ----------
    Cramer, Stradmann, Schemmel, Zenke (2020), The Heidelberg spiking data sets for the systematic evaluation of spiking
    neural networks, section II; Sieroka, Dosch, Rupp (2006); Meddis (1986, 1988).
    """
    samples = check("cochlea", sound, rate)
    whole = isinstance(channels, (int, np.integer)) and isinstance(seed, (int, np.integer))
    if not (whole and 1 <= channels <= MAX_CHANNELS and 0 <= seed < 2**64):
        raise RanvierError(
            f"cochlea: got {channels} channels and seed {seed}; needs whole numbers, 1 to {MAX_CHANNELS} channels and "
            "a seed in [0, 2^64); change them"
        )
    seconds = len(samples) / rate + margin_ms / 500.0
    if not (0 <= margin_ms < np.inf and 0 <= ramp_ms < np.inf and 0 < rms < np.inf and seconds <= MAX_SECONDS):
        raise RanvierError(
            f"cochlea: got margins of {margin_ms} ms, ramps of {ramp_ms} ms, a level of {rms} and {seconds:.0f} s in "
            f"all; needs margins and ramps >= 0, a level > 0, up to {MAX_SECONDS:.0f} s; change them or cut the sound"
        )
    samples = surround(resample(samples, int(rate), RATE), RATE, margin_ms)
    samples = ramp(level(samples, rms), RATE, ramp_ms)
    parameters = Parameters()
    record = parameters.each_step(VELOCITY_RATE, fibres)
    cells = Cells(int(channels), -(-len(samples) // 2), record, parameters.at_rest(), int(seed), native)
    pieces = membrane(int(channels), bool(causal)).velocities(samples)
    if cells.function is None:
        # What NumPy does in a step costs nearly the same for any number of channels: all of them together.
        together = np.zeros((int(channels), -(-len(samples) // 2)), np.float32)
        for step, channel, velocity in pieces:
            together[channel : channel + len(velocity), step : step + velocity.shape[1]] = velocity
        pieces = [(0, 0, together)]
    for step, channel, velocity in pieces:
        cells.advance(velocity, channel, step)
    used = np.arange(cells.spikes.shape[1]) < cells.n_spikes[:, None]
    steps = cells.spikes[used]
    channel = np.repeat(np.arange(channels, dtype=np.int32), cells.n_spikes)
    order = np.argsort(steps, kind="stable")
    return (steps[order] * (1000.0 / VELOCITY_RATE)).astype(np.float32), channel[order]
