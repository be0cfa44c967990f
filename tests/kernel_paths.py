"""Take the compiled kernels through all their paths on tiny problems, for tools that watch every access to memory.

    python -m tests.kernel_paths [WORD ...]     only the cases whose name has one of the words

Whether the numbers are right is the business of the tests; here they need to be finite and not idle. Nothing is
jitted as a whole: every array then has memory of its own, and an access beside it is seen. `make sanitize` runs this
with the sanitizers of the C++ compiler, `tests/compute_sanitizer.sh` with those of CUDA.
"""

import sys
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import LIF, AdEx, Events, Layer, simulate
from ranvier.space import Euclidean
from tests import layer_paths, ops_paths, sound_paths


@dataclass(frozen=True)
class Case:
    name: str
    scheme: str = "continuous"
    neuron: object = LIF()
    n_samples: int = 3
    n_inputs: int = 5
    n: int = 9
    n_events: int = 12
    recurrent: bool = True
    networks: int = 0
    dtype: type = np.float32
    silent: bool = False
    parameters: bool = False  # derivatives of the neuron's parameters too
    positions: bool = False  # delays are formed inside
    options: dict = field(default_factory=dict)


CASES = (
    Case("continuous recurrent", parameters=True),
    Case("continuous forward float64", recurrent=False, dtype=np.float64, options={"trace": True}),
    Case("continuous wide", n_samples=2, n=131, n_inputs=40, options={"trace": True}),
    Case("continuous single few records", neuron=LIF(single_spike=True), options={"capacity": 3}),
    Case("continuous silent one", n=1, n_samples=1, silent=True),
    Case("continuous networks", networks=2, parameters=True),
    Case("continuous positions", n=19, parameters=True, positions=True),
    Case("continuous positions networks", n=35, networks=2, dtype=np.float64, positions=True),
    Case("grid LIF positions", scheme="grid", n=19, networks=2, positions=True),
    Case("grid LIF positions forward", scheme="grid", recurrent=False, positions=True),
    Case("grid LIF recurrent", scheme="grid", parameters=True),
    Case("grid LIF forward float64", scheme="grid", recurrent=False, dtype=np.float64, options={"trace": True}),
    Case("grid LIF single few records", scheme="grid", neuron=LIF(single_spike=True), options={"capacity": 3}),
    Case("grid AdEx wide", scheme="grid", neuron=AdEx(), n_samples=2, n=131, n_inputs=40, options={"trace": True}),
    Case("grid AdEx silent one", scheme="grid", neuron=AdEx(), n=1, n_samples=1, silent=True),
    Case("grid AdEx networks", scheme="grid", neuron=AdEx(), networks=2, dtype=np.float64, parameters=True),
)
DURATION, DT = 20.0, 0.5


def arrays(case, seed):
    """Weights that make neurons fire in bursts; delays from none to beyond the end of the run."""
    rng = np.random.default_rng(seed)
    m, n = case.n_inputs, case.n
    scale = 0.0 if case.silent else 1.0
    made = {"w_in": scale * rng.uniform(0.2, 1.2, (m, n)), "d_in": rng.uniform(0.0, 1.5 * DURATION, (m, n)) ** 2 / 30}
    if case.recurrent:
        made |= {"w_rec": scale * rng.normal(0.0, 0.5, (n, n)), "d_rec": rng.uniform(0.0, 1.2 * DURATION, (n, n))}
    if case.positions:
        source, target = (rng.normal(0.0, 0.4 * DURATION, (rows, 3)) for rows in (m, n))
        made |= {name: Euclidean(x, target) for name, x in (("d_in", source), ("d_rec", target)) if name in made}
    return jax.tree.map(lambda x: jnp.asarray(x, case.dtype), made)


def inputs(case):
    rng = np.random.default_rng(0)
    time = np.sort(rng.uniform(0.0, DURATION, (case.n_samples, case.n_events)), axis=1)
    time[:, -2:] = np.inf  # padding
    channel = rng.integers(0, case.n_inputs, time.shape)
    return jnp.asarray(time, case.dtype), jnp.asarray(channel, jnp.int32)


def run(case):
    """Forward and backward of everything that has a derivative; returns the spikes of each network."""
    time, channel = inputs(case)

    def loss(time, weights, neuron):
        layer = Layer(**weights, neuron=neuron)
        events = Events(time, channel, case.n_inputs)
        out = simulate(
            layer,
            events,
            duration=DURATION,
            dt=DT,
            max_delay=2 * DURATION,
            scheme=case.scheme,
            backend="native",
            positions_inside=case.positions,
            **case.options,
        )
        finite = [jnp.where(jnp.isfinite(x), x, 0.0).sum() for x in (out.first_spike, out.events.time)]
        total = sum(finite) + out.spike_count.sum() + out.v.sum()
        total = total + (0.0 if out.trace is None else (out.trace**2).sum())
        return total, out.spike_count.sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2) if case.parameters else (0, 1), has_aux=True)
    if case.networks:
        many = [arrays(case, seed) for seed in range(case.networks)]
        weights = jax.tree.map(lambda *x: jnp.stack(x), *many)
        derivatives, spikes = jax.vmap(gradient, in_axes=(None, 0, None))(time, weights, case.neuron)
    else:
        derivatives, spikes = gradient(time, arrays(case, 0), case.neuron)
    for x in jax.tree.leaves(derivatives):
        assert np.isfinite(x).all(), case.name
    spikes = np.atleast_1d(spikes)
    assert (spikes == 0).all() if case.silent else (spikes > 0).all(), case.name
    return spikes


def main(words):
    jax.config.update("jax_enable_x64", True)
    module = sys.modules["ranvier.simulate"]
    module._simulate = module._simulate.__wrapped__
    every = [(CASES, run), (ops_paths.CASES, ops_paths.run), (layer_paths.CASES, layer_paths.run)]
    if jax.default_backend() == "cpu":
        every.append((sound_paths.CASES, sound_paths.run))
    for case, run_case in [(case, run_of) for cases, run_of in every for case in cases]:
        if words and not any(word in case.name for word in words):
            continue
        spikes = run_case(case)
        print(f"{case.name}: {', '.join(f'{x:.0f}' for x in spikes)} spikes", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
