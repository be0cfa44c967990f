"""The cases of the cochlea's cells for `tests/kernel_paths.py`; they run on the CPU alone."""

from dataclasses import dataclass

import numpy as np

from ranvier import kernels
from ranvier.data.sound.cells import Cells, Parameters
from ranvier.data.sound.membrane import VELOCITY_RATE


@dataclass(frozen=True)
class Case:
    name: str
    channels: int = 19
    steps: int = 131
    fibres: int = 40
    refractory: float = 1.0  # ms
    loud: float = 1e4
    pieces: tuple[int, ...] = ()  # steps at which the call is cut


CASES = (
    Case("sound"),
    Case("sound whole blocks", channels=32, steps=128),
    Case("sound one channel one step", channels=1, steps=1, loud=0.0),
    Case("sound in pieces", pieces=(1, 3, 67, 130)),
    Case("sound many fibres, long refractory time", fibres=1_000, refractory=64 * 1000 / VELOCITY_RATE),
    Case("sound short refractory time", channels=17, steps=301, refractory=1000 / VELOCITY_RATE),
)


def run(case):
    """All steps of a loud noise; every array is the call's own, so that an access beside it is seen."""
    assert kernels.plain("ranvier_sound_cells") is not None, "the cochlea is not compiled"
    rng = np.random.default_rng(0)
    velocity = (case.loud * rng.standard_normal((case.channels, case.steps))).astype(np.float32)
    p = Parameters(refractory=case.refractory)
    cells = Cells(case.channels, case.steps, p.each_step(VELOCITY_RATE, case.fibres), p.at_rest(), 0, native=True)
    ends = (*case.pieces, case.steps)
    for begin, end in zip((0, *case.pieces), ends, strict=True):
        cells.advance(np.ascontiguousarray(velocity[:, begin:end]), 0, begin)
    assert np.isfinite(cells.state).all(), case.name
    assert cells.n_spikes.any() == (case.loud > 0), case.name
    return np.atleast_1d(cells.n_spikes.sum())
