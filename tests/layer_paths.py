"""The cases of the LIF layer over time for `tests/kernel_paths.py`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import kernels
from ranvier.ops import dense, lif_layer, lif_loop


@dataclass(frozen=True)
class Case:
    """A LIF layer over time."""

    name: str
    n_steps: int = 7
    n_samples: int = 3
    n: int = 45
    capacity: int = 9
    recurrent: bool = True
    dtype: str = "float32"
    drive: float = 0.4  # mean of the currents; at 0.4 about every third neuron fires
    networks: int = 0
    sampled: int = 0


CASES = (
    Case("ops layer over-full"),
    Case("ops layer forward", recurrent=False),
    Case("ops layer whole words float64", n=64, capacity=64, dtype="float64"),
    Case("ops layer forward room to spare float64", n=33, capacity=50, recurrent=False, dtype="float64"),
    Case("ops layer one of everything", n_steps=1, n_samples=1, n=1, capacity=1, drive=5.0),
    Case("ops layer silent", drive=-20.0),
    Case("ops layer all fire", drive=20.0, capacity=45),
    Case("ops layer networks", networks=3),
    Case("ops layer forward networks", networks=2, recurrent=False),
    Case("ops layer wide", n=1031, capacity=300, n_samples=2),
    Case(
        "ops layer forward many neurons of one sample", n=4500, capacity=700, n_samples=1, n_steps=19, recurrent=False
    ),
    Case("ops layer forward many samples", n=70, n_samples=150, recurrent=False),
    Case("ops layer sampled", sampled=40),
    Case("ops layer forward sampled", sampled=40, recurrent=False),
    Case("ops layer forward sampled by neurons", n=2100, n_samples=1, n_steps=19, sampled=2100, recurrent=False),
)


def run(case):
    """A layer and the gradient through it, and lists that are none; returns the spikes of each network."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
    sampled = ["ops_lif_forward_sampled"] if case.sampled else []
    for name in ("ops_lif_forward", "ops_lif_backward", *sampled):
        assert kernels.compiled(name, jnp.dtype(case.dtype), platform), f"{name} is not compiled"
    rng = np.random.default_rng(0)
    own = (case.networks,) if case.networks else ()
    currents = rng.normal(case.drive, 0.7, (case.n_steps, case.n_samples, case.n))
    w_rec = rng.normal(0, 0.3 / np.sqrt(case.n), (*own, case.n, case.n))
    currents, w_rec = (jnp.asarray(x, case.dtype) for x in (currents, w_rec))

    def loss(currents, w_rec, threshold):
        spikes, state = lif_layer(
            currents,
            w_rec if case.recurrent else None,
            alpha=0.9,
            gain=10.0,
            threshold=threshold,
            near_threshold=0.5,
            capacity=case.capacity,
            sampled=case.sampled,
            key=jax.random.key(0),
        )
        return jnp.sin(spikes.value).sum() + state.v.sum(), (spikes.n_spikes + spikes.n_lost).sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    if case.networks:
        gradient = jax.vmap(gradient, (None, 0, None))
    derivatives, spikes = gradient(currents, w_rec, jnp.ones(case.n, case.dtype))
    for x in derivatives:
        assert np.isfinite(x).all(), case.name
    assert np.any(derivatives[0]), case.name
    some = np.asarray(spikes) > 0
    assert some.all() if case.drive > 0 else not some.any(), case.name
    beside(case, rng)
    return np.atleast_1d(spikes)


def beside(case, rng):
    """A first list, and lists for densify, with ids that name no neuron and counts that are none."""
    t, r, n, s = case.n_steps, case.n_samples, case.n, case.capacity
    ids = jnp.asarray(rng.choice([0, n - 1, -1, n, 2**31 - 1, -(2**31)], (1, r, s)), jnp.int32)
    count = jnp.asarray(rng.choice([-(2**31), -3, 0, s - 1, s, s + 5, 2**31 - 1], (1, r)), jnp.int32)
    currents, w_rec, parameters, v0, values = (
        jnp.ones((1, *shape), case.dtype) for shape in ((t, r, n), (n * case.recurrent, n), (4, n), (r, n), (r, s))
    )
    out = lif_loop._forward.bind(currents, w_rec, parameters, v0, values, ids, count, capacity=s)
    listed, excess, n_listed, fired, v_last = out[0], out[1], out[2] + out[3], out[6], out[7]
    back = (listed, n_listed, excess, fired, w_rec, parameters, v0, ids, count, excess, v_last)
    for x in (*out[1:2], v_last, *lif_loop._backward.bind(*back)):
        assert np.isfinite(x).all(), case.name
    for dtype in (case.dtype, *(["bfloat16"] if case.dtype == "float32" else [])):
        assert np.isfinite(dense.densify(values, ids, count, n, dtype).astype("float32")).all(), case.name
