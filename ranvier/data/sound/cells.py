"""Hair cells, nerve fibres and bushy cells: parameters, state, and the loop that the compiled library or NumPy runs."""

from dataclasses import dataclass

import numpy as np

from ranvier import kernels
from ranvier.data.sound import cells_reference
from ranvier.errors import RanvierError

# As `SoundCells` and `SoundCall` in csrc/sound_call.h.
STEP = np.dtype(
    [(name, np.float32) for name in ("release", "replenish", "leave", "take_back", "reprocess", "pool", "offset")]
    + [(name, np.float32) for name in ("half", "fire", "weight", "to_voltage", "decay_syn", "decay_mem")]
    + [(name, np.int32) for name in ("fibres", "refractory")],
    align=True,
)
CALL = np.dtype(
    [("cells", STEP), ("key", np.uint32, 2)]
    + [(name, np.int64) for name in ("channels", "steps", "first_channel", "first_step", "capacity")]
    + [(name, np.uintp) for name in ("velocity", "state", "silent", "recent", "spikes", "n_spikes")],
    align=True,
)
MAX_FIBRES = 1_000
MAX_REFRACTORY = 64  # steps


@dataclass(frozen=True)
class Parameters:
    """Constants of the cells (Eq. 45 to 47 of docs/equations.md); rates in 1/s, times in ms.

    References
    ----------
    Meddis (1986, 1988), Simulation of (mechanical to neural | auditory-neural) transduction; Meddis, Hewitt, Shackleton
    (1990), Implementation details of a computation model of the inner hair-cell/auditory-nerve synapse.
    """

    release: float = 2000.0  # g
    replenish: float = 5.05  # y
    lose: float = 2500.0  # l
    take_back: float = 6580.0  # r
    reprocess: float = 66.3  # x
    pool: float = 1.0  # M
    offset: float = 5.0  # A
    half: float = 300.0  # B
    fire: float = 50_000.0  # h
    tau_mem: float = 1.0
    tau_syn: float = 0.5
    refractory: float = 1.0  # of a fibre, and of a bushy cell
    # 1/ms, that a spike of a fibre adds to a current: so that silence gives what the published sets have.
    weight: float = 0.346

    def each_step(self, rate: int, fibres: int) -> np.ndarray:
        """The same for steps of 1 / rate, as one record of type `STEP`."""
        dt, ms = 1.0 / rate, 1000.0 / rate
        steps = round(self.refractory / ms)
        if not (isinstance(fibres, (int, np.integer)) and 1 <= fibres <= MAX_FIBRES and 1 <= steps <= MAX_REFRACTORY):
            raise RanvierError(
                f"cochlea: got {fibres} fibres and a refractory time of {steps} steps; needs a whole number from 1 to "
                f"{MAX_FIBRES} and 1 to {MAX_REFRACTORY} steps; change them"
            )
        decay_syn, decay_mem = np.exp(-ms / self.tau_syn), np.exp(-ms / self.tau_mem)
        record = np.zeros((), STEP)
        record["release"] = self.release * dt
        record["replenish"] = self.replenish * dt
        record["leave"] = (self.lose + self.take_back) * dt
        record["take_back"] = self.take_back * dt
        record["reprocess"] = self.reprocess * dt
        record["pool"], record["offset"], record["half"] = self.pool, self.offset, self.half
        record["fire"] = self.fire * dt
        record["weight"] = self.weight
        record["to_voltage"] = (decay_mem - decay_syn) * self.tau_syn * self.tau_mem / (self.tau_mem - self.tau_syn)
        record["decay_syn"], record["decay_mem"] = decay_syn, decay_mem
        record["fibres"], record["refractory"] = fibres, steps
        return record

    def at_rest(self) -> tuple[float, float, float]:
        """Transmitter in the pool, in the cleft and in the store in lasting silence: where Eq. 45 stands still."""
        k = self.release * self.offset / (self.offset + self.half)
        leave = self.lose + self.take_back
        cleft = k * self.replenish * self.pool / (self.replenish * leave + k * self.lose)
        return leave * cleft / k, cleft, self.take_back * cleft / self.reprocess


class Cells:
    """All channels' cells from rest on.

    Parameters
    ----------
    channels, steps : int
        Steps of the whole sound.
    record : (), of type STEP
    rest : three floats
        Of `Parameters.at_rest`.
    seed : int
        In [0, 2^64).
    native : bool, optional
        Whether the compiled library computes; by default where there is one. Both give the same bits.

    Attributes
    ----------
    spikes : (channels, capacity) int32
        Steps at which each bushy cell fires, the first `n_spikes` (channels,) in use; the rest is 0.
    """

    def __init__(self, channels: int, steps: int, record: np.ndarray, rest, seed: int, native: bool | None = None):
        self.record = record
        self.key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
        self.function = None if native is False else kernels.plain("ranvier_sound_cells")
        if native and self.function is None:
            raise RanvierError("cochlea: got native=True without the compiled library; needs it; leave native out")
        back = int(record["refractory"])
        self.state = np.zeros((channels, 6), np.float32)
        self.state[:, :3] = rest
        self.state[:, 5] = record["fibres"]
        self.silent = np.zeros(channels, np.int32)
        self.recent = np.zeros((channels, back), np.float32)
        # A cell fires at most once in `back` + 1 steps: there is room for all.
        self.spikes = np.zeros((channels, steps // (back + 1) + 1), np.int32)
        self.n_spikes = np.zeros(channels, np.int32)

    def advance(self, velocity: np.ndarray, first_channel: int, first_step: int) -> None:
        """Take some channels through some steps, in order for each channel.

        Parameters
        ----------
        velocity : (channels, steps) float32, contiguous
        first_channel, first_step : int
        """
        part = slice(first_channel, first_channel + len(velocity))
        arrays = [x[part] for x in (self.state, self.silent, self.recent, self.spikes, self.n_spikes)]
        if self.function is None:
            cells_reference.advance(self.record, self.key, velocity, first_channel, first_step, *arrays)
            return
        call = np.zeros((), CALL)
        call["cells"], call["key"] = self.record, self.key
        call["channels"], call["steps"] = velocity.shape
        call["first_channel"], call["first_step"], call["capacity"] = first_channel, first_step, self.spikes.shape[1]
        for name, array in zip(CALL.names[-6:], [velocity, *arrays], strict=True):  # pyright: ignore[reportOptionalSubscript]
            call[name] = array.ctypes.data
        self.function(call.ctypes.data)
