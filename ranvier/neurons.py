"""Neuron models: the parameters of `LIF` and `AdEx`.

A model is a pytree whose leaves are its parameters, each () or (N,); how it moves in time is in
`continuous.py`, `grid.py` and `adex.py`.
"""

from dataclasses import dataclass, field

import jax


def _static(default):
    return field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LIF:
    """Leaky integrate-and-fire neuron with an exponential synapse.

        dv/dt = -v / tau_mem + i,   di/dt = -i / tau_syn,   spike when v reaches v_th: v -> 0, i is kept

    Parameters
    ----------
    tau_mem, tau_syn : () or (N,) [ms]
        Time constants of membrane and synapse; equal ones are allowed.
    v_th : () or (N,) [1]
        Threshold.
    single_spike : bool
        Each neuron fires at most once (networks that code by the time to the first spike).
    """

    tau_mem: jax.typing.ArrayLike = 10.0
    tau_syn: jax.typing.ArrayLike = 2.0
    v_th: jax.typing.ArrayLike = 1.0
    single_spike: bool = _static(False)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdEx:
    """Adaptive exponential integrate-and-fire neuron (Brette and Gerstner 2005), in units of the threshold.

        dv/dt = -v / tau_mem + i - z + delta_t exp((v - 0.5) / delta_t)
        dz/dt = -z / tau_w + a v,   di/dt = -i / tau_syn
        spike when v reaches v_th: v -> 0, z -> z + b, i is kept

    Parameters
    ----------
    tau_mem, tau_syn, tau_w : () or (N,) [ms]
        Time constants of membrane, synapse and adaptation.
    v_th : () or (N,) [1]
        Threshold.
    a, b : () or (N,) [1/ms^2, 1/ms]
        Adaptation driven by the voltage; jump of the adaptation at a spike.
    delta_t : () or (N,) [1]
        Sharpness of the exponential.
    z0 : () or (N,) [1/ms]
        Adaptation at the start.
    substeps : int
        Continuous scheme: Runge-Kutta steps in each of the three pieces of a time step (Eq. 22).
    single_spike : bool
        Each neuron fires at most once.
    """

    tau_mem: jax.typing.ArrayLike = 10.0
    tau_syn: jax.typing.ArrayLike = 2.0
    v_th: jax.typing.ArrayLike = 1.0
    a: jax.typing.ArrayLike = 0.01
    b: jax.typing.ArrayLike = 0.02
    tau_w: jax.typing.ArrayLike = 200.0
    delta_t: jax.typing.ArrayLike = 0.1
    z0: jax.typing.ArrayLike = 0.1
    substeps: int = _static(2)
    single_spike: bool = _static(False)
