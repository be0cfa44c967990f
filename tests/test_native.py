"""The compiled kernels against the reference: the same numbers forward and backward, under every transformation.

To compile the reference's gradient takes longer than all else here, so the tests share two programs of it.
"""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import LIF, AdEx, Events, Layer, RanvierError, kernels, native, simulate
from tests.new_process import TWO_DEVICES, in_a_new_process

pytestmark = [
    pytest.mark.skipif(kernels.available("lif_forward") is not None, reason="no compiled library"),
    pytest.mark.usefixtures("quick_compiler"),
]

DURATION, MAX_DELAY, EVENTS = 32.0, 40.0, 24
PARAMETERS = ("tau_mem", "tau_syn", "v_th")
PLAIN, SINGLE = LIF(), LIF(single_spike=True)


def problem(seed, b=3, m=6, n=4, scale=1.0, longest=8.0, events=14, neuron=PLAIN, spread=0.1, dtype=np.float64):
    """(w_in, d_in, w_rec, d_rec) with weights of both signs, a neuron of arrays, times and channels (B, EVENTS)."""
    r = np.random.default_rng(seed)
    times = [np.sort(r.uniform(0, 28, min(events + 3 * k, EVENTS))) for k in range(b)]
    batch = Events.from_times(times, [r.integers(0, m, len(t)) for t in times], m, capacity=EVENTS)
    arrays = []
    for rows in (m, n):
        arrays.append(scale * r.uniform(-0.3, 1.0, (rows, n)) * (6 / max(6, rows)))
        arrays.append(r.uniform(0, longest, (rows, n)))
    neuron = jax.tree.map(lambda x: jnp.asarray(x * r.uniform(1 - spread, 1 + spread, n), dtype), neuron)
    return tuple(jnp.asarray(x, dtype) for x in arrays), neuron, batch.time.astype(dtype), batch.channel


def with_times(case, times):
    arrays, neuron, time, channel = case
    return arrays, neuron, jnp.sort(jnp.broadcast_to(jnp.asarray(times, time.dtype)[None], time.shape)), channel


def with_delays(case, d):
    (w_in, d_in, w_rec, d_rec), *rest = case
    return (w_in, jnp.full_like(d_in, d), w_rec, jnp.full_like(d_rec, d)), *rest


def with_equal_constants(case):
    arrays, neuron, *rest = case
    return arrays, LIF(neuron.tau_mem, neuron.tau_mem, neuron.v_th), *rest


def simulated(arrays, neuron, time, channel, backend="native", dt=0.5, **options):
    """`simulate` of a problem."""
    events = Events(time, channel, arrays[0].shape[0])
    given = {"duration": DURATION, "max_delay": MAX_DELAY} | options
    return simulate(Layer(*arrays, neuron=neuron), events, dt=dt, backend=backend, **given)


def numbers(*problem, **options):
    """Five numbers that everything with a derivative enters, (5,), and the simulation."""
    s = simulated(*problem, trace=True, **options)
    first, spikes = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (s.first_spike, s.events.time))
    weight = jnp.arange(1.0, len(first) + 1)[:, None]
    wave = jnp.sin(jnp.arange(s.trace.shape[1]))[None, :, None]
    parts = (s.v * weight, first**2, s.spike_count**2, spikes * jnp.sin(spikes), s.trace * wave)
    return jnp.stack([x.sum() for x in parts]), s


def loss(*problem, **options):
    values, s = numbers(*problem, **options)
    return values.sum(), s


@cache
def program(backend, dt):
    """Value, simulation and gradient by arrays, neuron and times."""
    return jax.jit(jax.value_and_grad(lambda *p: loss(*p, backend=backend, dt=dt), (0, 1, 2), has_aux=True))


def close(got, expected, rtol=1e-9):
    """Trees of arrays equal to a part of the largest number of each."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1.0, float(jnp.abs(b).max(initial=0.0))))


# Time constants that are the same for all neurons, each its own, and those near the length of a step: the three ways in
# which an arrival's exponentials are formed (csrc/lif_arrivals.h).
CASES = {
    "each its own": lambda: problem(0),
    "all alike": lambda: problem(0, spread=0.0),
    "each its own, near the step": lambda: problem(2, neuron=LIF(3.0, 0.6), scale=4.0),
    "all alike, near the step": lambda: problem(3, neuron=LIF(0.8, 0.6), scale=6.0, spread=0.0),
    "equal time constants": lambda: problem(4, neuron=LIF(5.0, 5.0), spread=0.0),
    "equal time constants, short delays": lambda: with_equal_constants(problem(4, neuron=LIF(5.0, 5.0), longest=0.4)),
    "currents outlast voltages": lambda: problem(5, neuron=LIF(2.0, 6.0)),
    "strong, several spikes a step": lambda: problem(1, scale=2.5),
    "all fire, many times a step": lambda: problem(6, scale=12.0, longest=2.0),
    "silent": lambda: problem(6, scale=1e-3),
    "no input": lambda: with_times(problem(8), np.full(EVENTS, np.inf)),
    "equal times": lambda: with_times(problem(9, scale=1.5), np.repeat([3.25, 7.0], EVENTS // 2)),
    "no delay": lambda: with_delays(problem(10), 0.0),
    "delays of whole steps": lambda: with_delays(problem(11, scale=1.5), 4.5),
    "arrivals at a step's end": lambda: with_times(with_delays(problem(12, scale=1.5), 1.25), np.arange(EVENTS) + 0.25),
    "long delays": lambda: with_delays(problem(13, scale=4.0), 14.25),
    "delays past the end": lambda: problem(5, longest=39.0, events=18, neuron=LIF(v_th=0.7)),
    "beyond the end": lambda: with_delays(problem(14), 39.0),
    "single spike": lambda: problem(2, neuron=SINGLE),
    "single spike, strong": lambda: problem(3, neuron=SINGLE, scale=2.5),
}
SILENT = {"silent", "no input", "beyond the end"}


def step_of(name):
    """The steps [ms] of a case: with `single_spike` the reference is another program anyway."""
    return 1.0 if name.startswith("single") else 0.5


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(x64, name):
    case = CASES[name]()
    both = (program(backend, step_of(name))(*case) for backend in ("native", "reference"))
    ((value, s), gradient), ((expected, t), by_reference) = both
    np.testing.assert_array_equal(s.spike_count, t.spike_count)
    np.testing.assert_array_equal(s.overflow, t.overflow)
    np.testing.assert_array_equal(s.events.channel, t.events.channel)
    for x, y in ((s.events.time, t.events.time), (s.first_spike, t.first_spike), (s.v, t.v), (s.trace, t.trace)):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)
    close((value, gradient), (expected, by_reference))
    assert name in SILENT - {"silent"} or all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(gradient)[:2])


def test_the_cases_are_what_they_say(x64):
    counts = {name: program("native", step_of(name))(*case())[0][1].spike_count for name, case in CASES.items()}
    assert counts["all fire, many times a step"].min() > 2 * DURATION
    assert {name for name, count in counts.items() if count.sum() <= 3} == SILENT
    assert max(counts[name].max() for name in SILENT) == 0


def test_without_recurrence_equals_recurrent_weights_of_zero(x64):
    """Feed-forward layers are other programs, and 33 neurons end in the middle of every vector."""
    arrays, neuron, time, channel = problem(3, b=2, n=33, scale=1.5)
    zero = (*arrays[:2], jnp.zeros((33, 33)), arrays[3])
    (value, s), (by_arrays, by_neuron, by_time) = program("native", 0.5)(zero, neuron, time, channel)
    assert s.spike_count.sum() > 0
    alone, others = program("native", 0.5)(arrays[:2], neuron, time, channel)
    close((alone[0], others), (value, (by_arrays[:2], by_neuron, by_time)))

    def column(w, d, parameters):
        return loss((w[:, None], d[:, None]), LIF(*(x[None] for x in parameters)), time, channel)[0]

    parameters = (neuron.tau_mem, neuron.tau_syn, neuron.v_th)
    columns = jax.jit(jax.vmap(jax.value_and_grad(column, (0, 1)), (1, 1, 0)))(*arrays[:2], parameters)
    # the records are sorted in another order, so sums of 33 networks are compared
    close((columns[0].sum(), columns[1][0].T, columns[1][1].T), (value, *by_arrays[:2]))


def test_no_event_and_all_silent():
    events = Events.from_times([np.zeros(0), np.array([1.0])], [np.zeros(0, int), np.array([0])], 2)
    for capacity in (0, 1):
        time, channel = events.time[:, :capacity], events.channel[:, :capacity]
        arrays = jnp.full((2, 3), 1e-3), jnp.ones((2, 3))
        gradient = jax.grad(lambda a, t=time, c=channel: simulated(a, LIF(), t, c).spike_count.sum())(arrays)
        assert all(np.isfinite(x).all() for x in gradient)
        assert np.isinf(simulated(arrays, LIF(), time, channel).first_spike).all()


def test_same_bits_twice_and_whatever_the_batch():
    case = problem(7, b=5, dtype=np.float32)
    (_, s), gradient = program("native", 0.5)(*case)
    (_, again), same = program("native", 0.5)(*case)
    for a, b in zip(jax.tree.leaves((s, gradient)), jax.tree.leaves((again, same)), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = simulated(*case[:2], case[2][2:3], case[3][2:3])
    np.testing.assert_array_equal(alone.v[0], s.v[2])


def stacked(tree, factors=(1.0, 1.2, 0.9)):
    return jax.tree.map(lambda x: jnp.stack([x * f for f in factors]), tree)


@jax.value_and_grad
def by_name(p, channel):
    arrays, neuron = [p[x] for x in ("w_in", "d_in", "w_rec", "d_rec")], [p[x] for x in PARAMETERS]
    return loss(arrays, LIF(*neuron), p["times"], channel)[0]


jitted = cache(jax.jit)


@pytest.mark.parametrize("which", ["w_in", "d_in", "w_rec", "v_th", "times", "everything"])
def test_vmap_equals_a_loop(x64, which):
    arrays, neuron, time, channel = problem(8, scale=1.5)
    names = dict(zip(("w_in", "d_in", "w_rec", "d_rec"), arrays, strict=True))
    names |= {"tau_mem": neuron.tau_mem, "tau_syn": neuron.tau_syn, "v_th": neuron.v_th, "times": time}
    chosen = set(names if which == "everything" else [which])
    mapped = {name: stacked(x) if name in chosen else x for name, x in names.items()}
    got = jax.jit(jax.vmap(by_name, ({name: 0 if name in chosen else None for name in names}, None)))(mapped, channel)
    loop = [jitted(by_name)({x: y[k] if x in chosen else y for x, y in mapped.items()}, channel) for k in range(3)]
    close(got, jax.tree.map(lambda *x: jnp.stack(x), *loop), rtol=1e-12)


def test_nested_vmap_and_gradients_from_outside(x64):
    """Samples of a network join the batch, so the gradient of their sum is that of one call."""
    arrays, neuron, time, channel = problem(8, scale=1.5)

    def value(w, d, t):
        return loss((w, d, *arrays[2:]), neuron, t, channel)[0]

    w, d, t = (stacked(x, (1.0, 0.9)) for x in (arrays[0], arrays[1], time))
    over_times = jax.vmap(jax.vmap(value, (None, None, 0)), (0, None, None))
    inside = jax.jit(jax.vmap(jax.vmap(jax.vmap(jax.grad(value), (None, None, 0)), (None, 0, None)), (0, None, None)))
    outside = jax.jit(jax.grad(lambda w, d: over_times(w, d, t).sum()))
    every, one = inside(w, d, t), jax.jit(jax.grad(value))
    for i in range(2):
        for j in range(2):
            loop = [one(w[i], d[j], t[k]) for k in range(2)]
            close(every[i, j], jnp.stack(loop), rtol=1e-12)
            if j == 0:
                close(outside(w, d[0])[i], sum(loop), rtol=1e-12)


@pytest.mark.parametrize("scheme", ["continuous", "grid"])
@pytest.mark.parametrize("mapped", ["networks", "samples"])
def test_vmap_over_nothing_gives_what_the_reference_gives(mapped, scheme):
    """Empty results, and gradients of zero for what is not mapped."""
    arrays, neuron, time, channel = problem(0, dtype=np.float32)
    none, axes = (arrays[0][None][:0], time), (0, None)
    if mapped == "samples":
        none, axes = (arrays[0], time[None][:0]), (None, 0)

    def call(w, t, backend):
        return simulated((w, *arrays[1:]), neuron, t, channel, backend=backend, scheme=scheme, trace=True)

    def value(w, t, backend):
        s = call(w, t, backend)
        return s.v.sum() + s.spike_count.sum()

    def every(backend):
        def over(function):
            return jax.vmap(lambda w, t: function(w, t, backend), axes)

        return (
            over(call)(*none),
            over(jax.grad(value, (0, 1)))(*none),
            over(lambda w, t, b: jax.jvp(lambda w: call(w, t, b).v, (w,), (w,)))(*none),
            jax.grad(lambda w, t: over(value)(w, t).sum(), (0, 1))(*none),
        )

    # the reference is asked for its shapes alone, so it is not compiled
    got, expected = jax.jit(partial(every, "native"))(), jax.eval_shape(partial(every, "reference"))
    for x, like in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (x.shape, x.dtype) == (like.shape, like.dtype)
        np.testing.assert_array_equal(x, 0)
    whole = [x for x in jax.tree.leaves(got) if x.size]
    assert [x.shape for x in whole] == [none[mapped == "networks"].shape]


def test_forward_mode(x64):
    """Two derivatives along random directions of everything, mapped; reverse mode is checked against the reference."""
    arrays, neuron, time, channel = problem(0)
    r = np.random.default_rng(1)
    start = arrays, neuron, jnp.where(jnp.isfinite(time), time, 0.0)
    along = [jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape)), start) for _ in range(2)]

    def moved(amounts):
        arrays, neuron, time = (
            jax.tree.map(lambda x, *d: x + sum(a * e for a, e in zip(amounts, d, strict=True)), s, *d)
            for s, *d in zip(start, *along, strict=True)
        )
        return numbers(arrays, neuron, jnp.where(jnp.isfinite(problem_time), time, jnp.inf), channel)[0]

    problem_time = time
    forward, reverse = jax.jit(jax.jacfwd(moved))(jnp.zeros(2)), jax.jit(jax.jacrev(moved))(jnp.zeros(2))
    assert (jnp.abs(reverse) > 0).all()
    close(forward, reverse)


def traced(function, *args):
    """The program that JAX makes of it, with the kernels' switches."""
    return re.sub(r"\s+", " ", str(jax.make_jaxpr(function)(*args)))


def test_only_what_is_wanted_is_computed():
    arrays, neuron, time, channel = problem(0, dtype=np.float32)

    def value(arrays, neuron, time):
        return simulated(arrays, neuron, time, channel).v.sum()

    forward = traced(value, arrays, neuron, time)
    assert "ranvier_lif_forward" in forward and "keep=False" in forward and "keep=True" not in forward
    for argnums, times, parameters in ((0, False, False), (1, False, True), (2, True, False)):
        program = traced(jax.grad(value, argnums), arrays, neuron, time)
        backward = re.search(r"ranvier_lif_backward\[(.*?)\]", program)[1]
        assert f"times={times}" in backward and f"parameters={parameters}" in backward and "trace=False" in backward
        assert "tangent[" not in program


def test_scan_and_remat(x64):
    arrays, neuron, time, channel = problem(0)

    def value(w):
        return simulated((w, *arrays[1:]), neuron, time, channel).v.sum()

    def body(w, _):
        return w - 1e-3 * jax.grad(jax.checkpoint(value))(w), None

    w = arrays[0]
    for _ in range(3):
        w = w - 1e-3 * jax.grad(value)(w)
    close(jax.jit(lambda w: jax.lax.scan(body, w, None, length=3)[0])(arrays[0]), w, rtol=1e-12)
    twice = jax.jit(
        jax.grad(lambda w: jax.lax.scan(lambda c, s: (c + value(s * w), None), 0.0, jnp.array([1.0, 2.0]))[0])
    )
    close(twice(arrays[0]), jax.grad(value)(arrays[0]) + 2 * jax.grad(value)(2 * arrays[0]), rtol=1e-12)


def test_second_derivatives_are_refused_in_one_line():
    arrays, neuron, time, channel = problem(0, dtype=np.float32)

    def value(w):
        return simulated((w, *arrays[1:]), neuron, time, channel).v.sum()

    w = arrays[0]
    for second in (
        lambda: jax.hessian(value)(w),
        lambda: jax.grad(lambda w: jax.grad(value)(w).sum())(w),
        lambda: jax.jvp(lambda w: jax.jvp(value, (w,), (w,))[1], (w,), (w,)),
    ):
        with pytest.raises(RanvierError, match="second derivative.*backend='reference'") as error:
            jax.make_jaxpr(second)()
        assert "\n" not in str(error.value)


def test_lost_records_are_counted():
    case = problem(1, scale=2.5, dtype=np.float32)
    whole, short = (simulated(*case, dt=1.0, **options) for options in ({}, {"capacity": 5}))
    assert (short.events.counts() == 5).all()
    missing = whole.spike_count.sum(1) - 5 + np.asarray(whole.overflow)
    np.testing.assert_array_equal(short.overflow, missing)
    np.testing.assert_array_equal(short.v, whole.v)
    none = simulated(*case, dt=1.0, capacity=0)
    assert none.events.time.shape == (3, 0)
    np.testing.assert_array_equal(none.overflow, whole.overflow)


def test_auto_is_native_where_that_can_run(monkeypatch, tmp_path):
    arrays, _, time, channel = problem(0, dtype=np.float32)

    def value(neuron, scheme="continuous"):
        return simulated(arrays, neuron, time, channel, backend="auto", scheme=scheme).v

    def has_kernel(*args):
        return "_forward[" in traced(lambda: value(*args))

    assert has_kernel(LIF()) and has_kernel(LIF(), "grid") and has_kernel(AdEx(), "grid")
    assert not has_kernel(AdEx())
    monkeypatch.setenv("RANVIER_LIB_DIR", str(tmp_path))
    monkeypatch.delenv("RANVIER_REQUIRE_NATIVE", raising=False)
    assert not has_kernel(LIF())
    with pytest.raises(RanvierError, match="backend 'native', but no compiled library.*backend='reference'") as error:
        simulated(arrays, LIF(), time, channel)
    assert "\n" not in str(error.value)


def test_what_it_refuses():
    case = problem(0, dtype=np.float32)
    with pytest.raises(RanvierError, match="no AdEx in the continuous scheme") as error:
        simulated(case[0], AdEx(), *case[2:])
    assert "\n" not in str(error.value)
    half = Layer(case[0][0].astype(jnp.bfloat16))
    assert "float32 and float64" in native.refusal(half, "continuous")


@pytest.mark.parametrize(
    ("times", "channels"),
    [
        ([1.0, 2.0], [0, 6]),
        ([1.0, 2.0], [-1, 0]),
        ([-1.0, 2.0], [0, 0]),
        ([3.0, 2.0], [0, 0]),
        ([31.0, 0.2], [0, 0]),
        ([np.inf, 2.0], [0, 0]),
        ([DURATION + 1, 2.0], [0, 0]),
    ],
)
def test_an_event_that_was_never_checked_is_refused(times, channels):
    """The CPU refuses it; a GPU, which cannot, uses none of the sample's events and counts it as lost."""
    (w, d, *_), *_ = problem(0, dtype=np.float32)
    events = jnp.array([times], jnp.float32), jnp.array([channels], jnp.int32)
    if jax.default_backend() == "cpu":
        with pytest.raises(Exception, match="in order.*make events with Events.from_times") as error:
            simulated((w, d), LIF(), *events).v.block_until_ready()
        assert "\n" not in str(error.value)
    else:
        s = simulated((w, d), LIF(), *events)
        assert s.overflow[0] > 0 and not s.v.any()


def test_events_behind_the_end_may_come_in_any_order():
    (w, d, *_), *_ = problem(0, dtype=np.float32)
    time, channel = jnp.array([[1.0, 1.0, DURATION + 9, DURATION, np.inf]]), jnp.zeros((1, 5), jnp.int32)
    s, t = (simulated((w, d), LIF(), time[:, :k], channel[:, :k]) for k in (5, 2))
    np.testing.assert_array_equal(s.v, t.v)
    assert s.overflow[0] == 0 and s.v.any()


@pytest.mark.parametrize("scheme", ["continuous", "grid"])
def test_no_sample_gives_gradients_of_zero(scheme):
    arrays, neuron, time, channel = problem(0, dtype=np.float32)

    def value(arrays, neuron, time):
        return simulated(arrays, neuron, time, channel[:0], scheme=scheme).v.sum()

    gradient = jax.jit(jax.grad(value, (0, 1)))
    for leaf in jax.tree.leaves(gradient(arrays, neuron, time[:0])):
        np.testing.assert_array_equal(leaf, 0.0)


THREADS = """
import hashlib, jax
from tests.test_native import problem, program
out = program("native", 0.5)(*problem(7, b=37, scale=1.5))
print(hashlib.sha256(b"".join(x.tobytes() for x in map(jax.device_get, jax.tree.leaves(out)))).hexdigest())
"""

SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from tests.test_native import close, problem, simulated
arrays, neuron, time, channel = problem(0, b=4)
mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))

def run(arrays, neuron, time, channel):
    s = simulated(arrays, neuron, time, channel, trace=True)
    return s.v, s.spike_count, s.trace

def value(run):
    return lambda *p: sum(jnp.sin(x * (1 + jnp.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)))).sum() for x in run(*p))

def summed(check):  # a gradient of what is replicated, taken on each device
    def gradient(*p):
        g = jax.grad(lambda a: sum(jnp.sin(x).sum() for x in run(a, *p[1:])))(p[0])
        return g if check else jax.lax.psum(g, "b")
    return gradient

specs = (P(), P(), P("b"), P("b"))
whole = jax.jit(jax.value_and_grad(value(run), (0, 1, 2)))(arrays, neuron, time, channel)
alone = jax.jit(summed(True))(arrays, neuron, time, channel)
for check in (True, False):
    sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P("b"), check_vma=check)
    close(jax.jit(jax.value_and_grad(value(sharded), (0, 1, 2)))(arrays, neuron, time, channel), whole, 1e-12)
    inside = jax.shard_map(summed(check), mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check)
    close(jax.jit(inside)(arrays, neuron, time, channel), alone, 1e-12)
print(len(jax.devices()), "devices")
"""


def test_same_bits_whatever_the_threads():
    assert len({in_a_new_process(THREADS, NPROC=threads) for threads in ("1", "5")}) == 1


def test_shard_map_over_the_batch():
    assert in_a_new_process(SHARDED, **TWO_DEVICES) == "2 devices\n"


def test_more_neurons_than_a_gpu_holds(monkeypatch):
    layer = Layer(jnp.zeros((1, 2049)))
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert native.refusal(layer, "continuous") is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(kernels, "available", lambda name: None)
    assert native.refusal(layer, "grid") is None
    assert native.refusal(layer, "continuous") == (
        "the compiled kernels hold 2048 neurons of float32 on a GPU, and the layer has 2049"
    )
