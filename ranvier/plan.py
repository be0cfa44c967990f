"""The static sizes of a simulation."""

from typing import NamedTuple


class Plan(NamedTuple):
    """What a run compiles for: step `dt` [ms], T steps, R ring slots, P neurons looked at a step, and what to keep."""

    dt: float
    n_steps: int
    n_slots: int
    pool: int
    record: bool
    trace: bool
