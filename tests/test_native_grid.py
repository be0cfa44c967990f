"""The compiled kernels of the grid scheme against its definition, on whatever machine JAX computes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import LIF, AdEx, Events, Layer, grid, kernels, native_grid
from ranvier.plan import Plan
from ranvier.spikes import rows

pytestmark = pytest.mark.skipif("grid_forward" not in kernels.status().handlers, reason="no compiled grid scheme")

DT, STEPS, RECORDS = 0.5, 48, 4864


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


@partial(jax.jit, static_argnames=("plan", "backend", "records"))
def derived(moving, events, plan, backend, records):
    return jax.value_and_grad(loss, has_aux=True)(moving, events, plan, backend, records)


def both(events, arrays, neuron, plan, records=RECORDS):
    """(results, gradients) by the reference and by the kernels."""
    n = arrays[0].shape[1]
    neuron = jax.tree.map(lambda x: jnp.full(n, x), neuron)
    out = []
    for backend in BACKENDS:
        (_, results), gradient = derived((arrays, events.time, neuron), events, plan, backend, records)
        out.append(jax.device_get((results, gradient)))
    return out


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
        np.testing.assert_allclose(
            b, a, rtol=0, atol=tolerance * max(1.0, np.abs(a).max(initial=0.0)), err_msg=str(path)
        )


ADEX = AdEx(5.0, 2.0, 1.0, a=0.03, b=0.05, tau_w=20.0, delta_t=0.2, z0=0.05)
# To compile the reference's derivative takes longer than all else here: four programs are all there is.
LARGE, LONGEST = dict(seed=5, b=2, m=6, n=100, scale=2.0), 11.5
CASES = {
    "LIF, 100 neurons": (LARGE, LIF()),
    "LIF, one neuron, feed-forward, single spike": (
        dict(seed=2, b=3, m=5, n=1, scale=2.0, recurrent=False),
        LIF(5.0, 5.0, single_spike=True),
    ),
    "AdEx, 3 neurons": (dict(seed=1, b=2, m=6, n=3, scale=1.5), ADEX),
    "AdEx, 33 neurons, single spike": (dict(seed=3, b=2, m=6, n=33, scale=2.0), replace(ADEX, single_spike=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(x64, name):
    options, neuron = CASES[name]
    reference, native = both(*problem(**options), neuron, plan_of(LONGEST))
    assert reference[0]["n_spikes"].sum() > 1
    assert_same(reference, native)


def altered(events, arrays, name):
    """The large case with something at its edge, its threshold, and between what the number of spikes must lie."""
    w_in, d_in, w_rec, d_rec = arrays
    everything = STEPS * w_in.shape[1] * events.time.shape[0]
    if name == "no input":
        return Events(jnp.full_like(events.time, jnp.inf), events.channel, 6), arrays, 1.0, 0, 0
    if name == "all silent":
        return events, arrays, 1e3, 0, 0
    if name == "every neuron fires in every step":
        return events, arrays, -1e3, everything, everything
    if name == "equal times, no delay":
        time = jnp.where(jnp.isfinite(events.time), jnp.full_like(events.time, 5.25), events.time)
        return Events(time, events.channel, 6), (w_in, 0.0 * d_in, w_rec, 0.0 * d_rec), 1.0, 10, everything
    longest = jnp.full_like(d_in, LONGEST)
    return events, (w_in, longest, w_rec, jnp.full_like(d_rec, LONGEST)), 1.0, 10, everything


@pytest.mark.parametrize(
    "name", ["no input", "all silent", "every neuron fires in every step", "equal times, no delay", "longest delay"]
)
def test_edges(x64, name):
    events, arrays, v_th, least, most = altered(*problem(**LARGE), name)
    reference, native = both(events, arrays, LIF(v_th=v_th), plan_of(LONGEST))
    spikes = reference[0]["count"].sum()
    assert least <= spikes <= most
    assert_same(reference, native)


def native(case, neuron=None, records=RECORDS, longest=8.5):
    events, (w_in, d_in, w_rec, d_rec) = case
    layer = Layer(w_in, w_rec=w_rec, neuron=neuron or LIF())
    run = jax.jit(native_grid.run, static_argnames=("plan", "records"))
    return jax.device_get(run(layer, d_in, d_rec, events, plan_of(longest), records))


def test_forward_and_reverse_mode_agree(x64):
    """<ct, J t> = <J^T ct, t>: forward mode runs the reference, reverse mode the kernels."""
    events, arrays = problem(1, 2, 6, 3, scale=1.5)
    r = np.random.default_rng(0)
    moving = (arrays, events.time, jax.tree.map(lambda x: jnp.full(3, x), ADEX))
    tangent = jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape)), moving)
    value = partial(loss, events=events, plan=plan_of(LONGEST), backend="native", records=RECORDS)
    _, forward = jax.jit(lambda m, t: jax.jvp(lambda m: value(m)[0], (m,), (t,)))(moving, tangent)
    _, gradient = derived(moving, events, plan_of(LONGEST), "native", RECORDS)
    inner = sum((a * b).sum() for a, b in zip(*map(jax.tree.leaves, (gradient, tangent)), strict=True))
    np.testing.assert_allclose(forward, inner, rtol=1e-9)


def test_float32_is_near_float64(x64):
    options = dict(seed=0, b=3, m=6, n=4)
    single, double = native(problem(**options, dtype=np.float32)), native(problem(**options))
    assert single["v"].dtype == np.float32 and double["count"].sum() > 10
    np.testing.assert_array_equal(single["count"], double["count"])
    np.testing.assert_allclose(single["trace"], double["trace"], rtol=0, atol=1e-4)


def test_lost_records_are_counted():
    case = problem(0, 2, 6, 40, scale=2.0, dtype=np.float32)
    whole, short, none = (native(case, records=records) for records in (RECORDS, 7, 0))
    assert (whole["overflow"] == 0).all() and (short["n_spikes"] == 7).all() and (none["n_spikes"] == 0).all()
    np.testing.assert_array_equal(short["overflow"], whole["count"].sum(1) - 7)
    np.testing.assert_array_equal(none["overflow"], whole["count"].sum(1))
    np.testing.assert_array_equal(short["spike_neuron"], whole["spike_neuron"][:, :7])
    np.testing.assert_array_equal(short["v"], whole["v"])


def gradient_of(events, arrays, plan):
    """Of a network alone."""
    moving = (arrays, events.time, jax.tree.map(lambda x: jnp.full(arrays[0].shape[1], x), LIF()))
    return jax.grad(loss, has_aux=True)(moving, events, plan, "native", 256)[0]


def test_same_bits_twice_and_whatever_the_batch():
    events, arrays = problem(7, 40, 6, 4, scale=2.0, dtype=np.float32)
    call = jax.jit(gradient_of, static_argnames="plan")
    first, second = (jax.device_get(call(events, arrays, plan_of(8.5))) for _ in range(2))
    for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = native((Events(events.time[2:3], events.channel[2:3], 6), arrays))
    np.testing.assert_array_equal(alone["trace"][0], native((events, arrays))["trace"][2])


def test_vmap_over_networks_equals_a_loop():
    events, (w_in, d_in, w_rec, d_rec) = problem(8, 3, 6, 4, scale=2.0, dtype=np.float32)
    many = jnp.stack([w_in, 1.3 * w_in])
    one = jax.jit(lambda w: gradient_of(events, (w, d_in, w_rec, d_rec), plan_of(8.5)))
    each = [one(w) for w in many]
    for a, *others in zip(*map(jax.tree.leaves, (jax.jit(jax.vmap(one))(many), *each)), strict=True):
        np.testing.assert_allclose(a, np.stack(others), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("time", "channel"), [([1.0, 2.0], [0, 6]), ([1.0, 2.0], [-1, 0]), ([-1.0, 2.0], [0, 0]), ([3.0, 2.0], [0, 0])]
)
def test_events_that_were_never_checked(time, channel):
    """The CPU refuses them; a GPU, which cannot, uses none of the sample and counts all as lost."""
    _, arrays = problem(0, 1, 6, 4, dtype=np.float32)
    events = Events(jnp.array([time], jnp.float32), jnp.array([channel], jnp.int32), 6)
    if jax.default_backend() == "cpu":
        with pytest.raises(Exception, match="make events with Events.from_times"):
            native((events, arrays))
    else:
        out = native((events, arrays))
        assert out["overflow"][0] == 2 and out["count"].sum() == 0
