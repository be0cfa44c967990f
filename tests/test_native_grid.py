"""The compiled kernels of the grid scheme against its definition, on whatever machine JAX computes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import LIF, AdEx, Events, Layer, grid, kernels, native_grid
from ranvier.plan import Plan
from ranvier.spikes import rows

pytestmark = pytest.mark.skipif("grid_forward" not in kernels.status().handlers, reason="no compiled grid scheme")

DT, STEPS, RECORDS = 0.5, 48, 2048


def problem(seed, b, m, n, *, scale=1.0, recurrent=True, longest=8.0, events=14, dtype=np.float64):
    """Events and (w_in, d_in, w_rec, d_rec) with weights of both signs; times off the edges of the steps."""
    r = np.random.default_rng(seed)
    times = [np.sort(DT * (r.integers(0, 50, events + 3 * k) + 0.5)).astype(dtype) for k in range(b)]
    batch = Events.from_times(times, [r.integers(0, m, len(t)) for t in times], m)
    arrays = []
    for sources, on in ((m, True), (n, recurrent)):
        w = scale * r.uniform(-0.3, 1.0, (sources, n)) * (6 / max(6, sources))
        d = np.round(r.uniform(0, longest, (sources, n)), 2) + 0.03
        arrays += [jnp.asarray(w, dtype), jnp.asarray(d, dtype)] if on else [None, None]
    return batch, tuple(arrays)


def plan_of(longest, n_steps=STEPS, trace=True):
    return Plan(DT, n_steps, int(longest / DT) + 2, 10**9, True, trace)


def definition(layer, d_in, d_rec, events, plan, records):
    """What `native_grid.run` returns, by the reference."""
    n_samples = events.time.shape[0]
    end, lists, trace = grid.run(layer, d_in, d_rec, events, plan)
    g, neuron, lost = rows(lists, 0.0, n_samples, records)
    step, _, _ = rows(lists._replace(g=jnp.zeros_like(lists.g)), plan.dt, n_samples, records)
    return {
        "count": end.count,
        "first_offset": end.first_offset,
        "v": end.cells[0],
        "spike_g": g,
        "trace": jnp.swapaxes(trace, 0, 1),
        "spike_step": jnp.round(jnp.where(jnp.isfinite(g), step, 0.0) / plan.dt),
        "spike_neuron": neuron,
        "n_spikes": jnp.isfinite(g).sum(1),
        "first_step": end.first_step,
        "overflow": lost,
    }


BACKENDS = {"reference": definition, "native": native_grid.run}


def loss(moving, events, plan, backend, records=RECORDS):
    """One number of everything that has a derivative, each with its own weight, and all results."""
    (w_in, d_in, w_rec, d_rec), time, neuron = moving
    layer = Layer(w_in, w_rec=w_rec, neuron=neuron)
    out = BACKENDS[backend](layer, d_in, d_rec, Events(time, events.channel, w_in.shape[0]), plan, records)
    out["spike_g"] = jnp.where(jnp.arange(records)[None] < out["n_spikes"][:, None], out["spike_g"], 0.0)
    total = 0.0
    for k, name in enumerate(("count", "first_offset", "v", "spike_g", "trace")):
        x = out[name]
        total += (x * jnp.cos(k + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)).sum()
    return total, out


def both(events, arrays, neuron, plan):
    """(results, gradients) by the reference and by the kernels."""
    n = arrays[0].shape[1]
    neuron = jax.tree.map(lambda x: jnp.full(n, x) if np.ndim(x) == 0 else jnp.asarray(x), neuron)
    call = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames=("plan", "backend", "records"))
    both = []
    for backend in BACKENDS:
        (_, out), gradient = call((arrays, events.time, neuron), events, plan=plan, backend=backend)
        both.append((jax.device_get(out), jax.device_get(gradient)))
    return both


def assert_same(reference, native, tolerance=1e-9):
    (out, gradient), (got, got_gradient) = reference, native
    for name in ("count", "n_spikes", "first_step", "overflow", "first_offset"):
        np.testing.assert_array_equal(got[name], out[name], err_msg=name)
    real = np.arange(out["spike_g"].shape[1]) < out["n_spikes"][:, None]
    for name in ("spike_step", "spike_neuron", "spike_g"):
        np.testing.assert_array_equal(got[name][real], out[name][real], err_msg=name)
    for name in ("v", "trace"):
        np.testing.assert_allclose(got[name], out[name], rtol=0, atol=tolerance, err_msg=name)
    paths = jax.tree_util.tree_leaves_with_path(gradient)
    for (path, a), b in zip(paths, jax.tree.leaves(got_gradient), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * max(1.0, np.abs(a).max(initial=0.0)), err_msg=str(path))


ADEX = AdEx(5.0, 2.0, 1.0, a=0.03, b=0.05, tau_w=20.0, delta_t=0.2, z0=0.05)
CASES = {
    "LIF": (dict(seed=0, b=3, m=6, n=4), LIF()),
    "AdEx": (dict(seed=1, b=2, m=6, n=3, scale=1.5), ADEX),
    "LIF, one neuron, single spike": (dict(seed=2, b=2, m=5, n=1, scale=2.0), LIF(single_spike=True)),
    "AdEx, 33 neurons, single spike": (dict(seed=3, b=2, m=6, n=33, scale=2.0), replace(ADEX, single_spike=True)),
    "LIF, 33 neurons, feed-forward": (dict(seed=4, b=2, m=1, n=33, scale=2.0, recurrent=False), LIF(5.0, 5.0)),
    "LIF, 100 neurons, delays past the end": (dict(seed=5, b=1, m=6, n=100, longest=39.0, scale=1.5), LIF(v_th=0.7)),
    "AdEx, delays below half a step": (dict(seed=6, b=1, m=6, n=3, longest=0.2, scale=1.5), ADEX),
    "LIF, every neuron fires in every step": (dict(seed=7, b=2, m=3, n=3), LIF(v_th=-1e3)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(x64, name):
    options, neuron = CASES[name]
    events, arrays = problem(**options)
    reference, native = both(events, arrays, neuron, plan_of(options.get("longest", 8.0) + DT))
    assert reference[0]["n_spikes"].sum() > 1
    assert_same(reference, native)
