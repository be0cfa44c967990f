"""csrc/lif_step.h on one neuron and step at a time: crossings, their derivatives, which steps need a look.

Thousands of states of every kind against ranvier/crossing.py and its autodiff. Whole networks (test_native.py) meet too
few peaks inside of a step, and too few states above threshold at its start, to see a mistake there.
"""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ranvier import crossing, synapse

pytestmark = pytest.mark.usefixtures("quick_compiler")
ROOT = Path(__file__).parent.parent
DT, MOST = 0.5, 4
# (tau_mem, tau_syn): slow, equal, currents that outlast voltages, and, last two, comparable to the step
TAUS = ((10.0, 2.0), (5.0, 5.0), (2.0, 6.0), (20.0, 5.0), (3.0, 0.6), (0.8, 0.6))
# least and most arrivals, and the signs of their weights: 1 positive, 0 all of one sign, 2 each its own
ARRIVALS = {
    "no arrival": (0, 0, 1),
    "peak": (2, 2, 0),
    "above at the start": (0, 2, 1),
    "one": (1, 1, 0),
    "some": (1, 4, 1),
    "strong": (1, 4, 1),
    "both signs": (2, 4, 2),
    "due before": (1, 4, 1),
}
KINDS = tuple(ARRIVALS)

SOURCE = """
#include "lif_step.h"

template <class R>
void every(int64_t n, const R* states, const R* constants, const R* ends, R dt, bool single, int32_t* number, R* times,
           R* v_ends, bool* still, R* slopes) {
  using namespace ranvier;
  for (int64_t k = 0; k < n; ++k) {
    const R *s = states + 5 * k, *c = constants + 3 * k, *e = ends + 2 * k;
    const Membrane<R> m(c[0], c[1], c[2]);
    R* const g = times + kSpikesPerStep * k;
    v_ends[k] = e[0];
    number[k] = spikes_between(s[0], s[1], s[2], s[3], s[4], e[1], m, dt, single, g, v_ends[k], still[k]);
    spike_jacobian<8>(s, g, m, dt, number[k], slopes + 8 * kSpikesPerStep * k);
  }
}

template <class R>
void looks(int64_t n, const R* states, const R* constants, const R* ends, R dt, bool* bound, bool* look) {
  using namespace ranvier;
  for (int64_t k = 0; k < n; ++k) {
    const R *s = states + 5 * k, *c = constants + 3 * k, *e = ends + 2 * k;
    const Membrane<R> m(c[0], c[1], c[2]);
    R v_free, i_free, v_back, i_back;
    m.flow(s[0], s[1], dt, v_free, i_free), m.flow(e[0], e[1], -dt, v_back, i_back);
    bound[k] = worth_a_look(s[0], s[1], e[0], e[1], v_free, i_free, v_back, i_back, m.rate_mem, dt, c[2]);
    look[k] = may_fire(s[0], s[1], e[0], e[1], m, dt);
  }
}

template <class R>
void slopes_at(const R* state, const R* c, R dt, R g, R* out) {
  ranvier::spike_jacobian<8>(state, &g, ranvier::Membrane<R>(c[0], c[1], c[2]), dt, 1, out);
}

#define EXPORT(R, NAME)                                                                                          \\
  extern "C" void every_##NAME(int64_t n, const R* states, const R* constants, const R* ends, R dt, bool single, \\
                               int32_t* number, R* times, R* v_ends, bool* still, R* slopes) {                   \\
    every(n, states, constants, ends, dt, single, number, times, v_ends, still, slopes);                         \\
  }                                                                                                              \\
  extern "C" void looks_##NAME(int64_t n, const R* states, const R* constants, const R* ends, R dt, bool* bound, \\
                               bool* look) {                                                                     \\
    looks(n, states, constants, ends, dt, bound, look);                                                          \\
  }                                                                                                              \\
  extern "C" void slopes_at_##NAME(const R* state, const R* c, R dt, R g, R* out) {                              \\
    slopes_at(state, c, dt, g, out);                                                                             \\
  }
EXPORT(float, float32)
EXPORT(double, float64)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The header alone, with the switches of CMakeLists.txt."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("step")
    (folder / "step.cc").write_text(SOURCE)
    switches = "-std=c++17 -O1 -Wall -Wextra -Werror -shared -fPIC -fno-math-errno -fno-trapping-math".split()
    made = folder / "step.so"
    subprocess.run([compiler, *switches, f"-I{ROOT / 'csrc'}", folder / "step.cc", "-o", made], check=True)
    return ctypes.CDLL(str(made))


def called(library, name, dtype, *given):
    """The function `name` of `library`; a Python float is a number of `dtype`."""
    number = {"float32": ctypes.c_float, "float64": ctypes.c_double}[dtype]

    def argument(x):
        if isinstance(x, np.ndarray):
            assert x.flags.c_contiguous
            return x.ctypes.data_as(ctypes.c_void_p)
        return {bool: ctypes.c_bool, int: ctypes.c_int64, float: number}[type(x)](x)

    getattr(library, f"{name}_{dtype}")(*map(argument, given))


def buckets(w, h, tau_mem, tau_syn):
    """(JI, JV, JQ) of arrivals (P, A), by Eq. 5."""
    c = 1 / tau_syn - 1 / tau_mem
    a = w * np.exp(-h / tau_syn[:, None])
    q = np.where(c[:, None] == 0, h, np.expm1(c[:, None] * h) / np.where(c == 0, 1, c)[:, None])
    return np.stack([a.sum(1), (a * q).sum(1), (a * q * q).sum(1)], 1)


def voltage_without_start(i, w, h, tau_mem, tau_syn, times):
    """Voltage (P, T) at `times` after the start of the step of what starts at 0 and fires not."""
    c = (1 / tau_syn - 1 / tau_mem)[:, None]

    def kappa(x):
        x = np.maximum(x, 0.0)
        return np.exp(-x / tau_syn[:, None]) * np.where(c == 0, x, np.expm1(c * x) / np.where(c == 0, 1, c))

    arrivals = (w[:, k, None] * kappa(times - (DT - h[:, k, None])) for k in range(w.shape[1]))
    return i[:, None] * kappa(times) + sum(arrivals)


@cache
def drawn(per_kind=600):
    """Kinds, states (v, i, JI, JV, JQ) (P, 5) and constants (tau_mem, tau_syn, v_th) (P, 3), as float32 holds them."""
    r = np.random.default_rng(0)
    kind = np.repeat(KINDS, per_kind)
    p = len(kind)
    tau_mem, tau_syn = np.array(TAUS)[r.integers(0, len(TAUS), p)].T * r.uniform(0.9, 1.1, (2, p))
    tau_syn = np.where(r.random(p) < 0.1, tau_mem, tau_syn)
    v_th = r.uniform(0.8, 1.2, p)
    v, i = v_th * r.uniform(-0.2, 0.999, p), r.uniform(-0.3, 3.0, p)
    # weights of one sign, or of both
    low, high, signs = np.array([ARRIVALS[k] for k in kind]).T
    w = np.exp(r.uniform(np.log(0.1), np.log(6.0), (p, 4))) * np.where(kind == "strong", 6.0, 1.0)[:, None]
    w *= np.where(signs == 2, r.choice([-1, 1], (4, p)), np.where(signs == 1, 1, r.choice([-1, 1], p))).T
    w[np.arange(4) >= r.integers(low, high + 1)[:, None]] = 0.0
    h = r.uniform(0, DT, (p, 4)) * np.where(kind == "due before", 2.0, 1.0)[:, None]
    v = np.where(kind == "above at the start", v_th * r.uniform(1.0, 4.5, p), v)
    # two arrivals; behind a number of them the voltage rises, not for long; its highest is about the threshold
    peak, p_peak = kind == "peak", (kind == "peak").sum()
    constants, level = (tau_mem[peak], tau_syn[peak]), (v_th / tau_mem)[peak]
    h[peak, :2] = -np.sort(-h[peak, :2])
    w[peak, :2] = (level * r.choice([-1, 1], p_peak) * np.exp(r.uniform(np.log(0.1), np.log(5.0), p_peak)))[:, None]
    bounds = np.pad(DT - h[peak, :2], ((0, 0), (1, 1)), constant_values=(0, DT))
    row, behind = np.arange(p_peak), r.integers(0, 3, p_peak)
    begin, end = bounds[row, behind], bounds[row, behind + 1]
    lasts = r.uniform(0, 1, p_peak) * (end - begin)
    rise = level * (1 / (1 - np.minimum(0.9, lasts * (1 / constants[0] + 1 / constants[1]))) - 1)
    already = w[peak, :2] * np.exp(-(begin[:, None] - bounds[:, 1:3]) / constants[1][:, None])
    already = np.where(np.arange(2) < behind[:, None], already, 0.0).sum(1)
    i[peak] = (level + rise - already) * np.exp(begin / constants[1])
    times = np.linspace(0, DT, 201)
    rest = voltage_without_start(i, w, h, tau_mem, tau_syn, times)
    height = v_th.copy()
    height[peak] += 0.5 * rise * lasts * r.uniform(-0.5, 1, p_peak)
    start = ((height[:, None] - rest) * np.exp(times / tau_mem[:, None])).min(1)
    v = np.where(peak, np.minimum(start, 0.9999 * v_th), v)
    state = np.concatenate([np.stack([v, i], 1), buckets(w, h, tau_mem, tau_syn)], 1)
    constants = np.stack([tau_mem, tau_syn, v_th], 1)
    return kind, *(x.astype(np.float32).astype(np.float64) for x in (state, constants))


def flows(state, constants):
    tau_mem, tau_syn, v_th = constants.T
    m = synapse.Membrane(tau_mem, tau_syn, v_th, 1 / tau_syn - 1 / tau_mem)
    v_free, i_free = m.flow(state[:, 0], state[:, 1], jnp.full_like(tau_mem, DT))
    return m, v_free + state[:, 3], i_free + state[:, 2]


def ends(state, constants):
    """Voltages and currents (P, 2) at the end of the step without resets."""
    return np.stack(flows(jnp.asarray(state), jnp.asarray(constants))[1:], 1)


def by_reference(state, constants, single):
    m, v_end, i_end = flows(state, constants)
    kicks = crossing.stand_in(state[:, 2:], m, DT)
    begin = crossing.begin(state[:, 0], state[:, 1], v_end, kicks)
    real = jnp.ones(v_end.shape, bool)
    fired, g, v_end, still = crossing.spikes_of_step(begin, kicks, i_end, m, DT, real, single)
    return g, (fired, v_end, still, kicks.x1, kicks.x2)


@cache
def expected(dtype, single=False):
    """What `kernel` returns, and the offsets x1, x2 of the kicks."""
    with jax.enable_x64(True):
        state, constants = (jnp.asarray(x, dtype) for x in drawn()[1:])

        def along(way, state, constants):
            step = tuple(jnp.broadcast_to(x, y.shape) for x, y in ((way[:5], state), (way[5:], constants)))
            return jax.jvp(lambda *p: by_reference(*p, single), (state, constants), step, has_aux=True)

        every = jax.jit(jax.vmap(along, (0, None, None), (None, 0, None)))
        g, slopes, aux = every(jnp.eye(8, dtype=dtype), state, constants)
        fired, v_end, still, x1, x2 = aux
        slopes = jnp.moveaxis(slopes, 0, -1)
        out = fired.sum(1), jnp.where(fired, g, 0), v_end, still, jnp.where(fired[..., None], slopes, 0)
        return tuple(np.asarray(x) for x in (*out, x1, x2))


def kernel(library, dtype, single=False):
    """Number of spikes (P,), their times (P, S), voltage at the end (P,), a fifth (P,), derivatives (P, S, 8)."""
    with jax.enable_x64(True):
        state, constants = (x.astype(dtype) for x in drawn()[1:])
        end, p = ends(state, constants), len(state)
    number, still = np.zeros(p, np.int32), np.zeros(p, bool)
    g, v_end, slopes = (np.zeros((p, *rest), dtype) for rest in ((MOST,), (), (MOST, 8)))
    called(library, "every", dtype, p, state, constants, end, DT, single, number, g, v_end, still, slopes)
    return number, np.where(np.arange(MOST) < number[:, None], g, 0), v_end, still, slopes


def test_the_states_are_of_every_sort():
    """Every number of spikes; first spikes before, between and behind the kicks, at peaks and not; limited kicks."""
    kind, state, constants = drawn()
    number, g, v_end, still, _, x1, x2 = expected("float64")
    assert min(np.bincount(number)) > 60 and still.sum() > 20
    with jax.enable_x64(True):
        below = (ends(state, constants)[:, 0] < constants[:, 2]) & (state[:, 0] < constants[:, 2])
    first, apart = g[:, 0], x2 - x1 > 1e-6
    for piece in (first < x1, (first > x1) & (first < x2), first > x2):
        assert (piece & (number == 1) & below).sum() > 20  # a peak that is over at the end
        assert (piece & (number > 1)).sum() > 20
    for limit in (x1 < 1e-9, x2 > DT - 1e-9):
        assert ((first > x1) & (first < x2) & (number > 0) & apart & limit).sum() > 20
    at_start = (number > 0) & (g[:, 0] == 0)
    assert at_start.sum() > 100 and (at_start & (number > 1) & (g[:, 1] == 0)).sum() > 50
    assert (kind[number == 0] == "peak").sum() > 50


@pytest.mark.parametrize("single", [False, True])
def test_spikes_of_a_step(library, single):
    got, by = kernel(library, "float64", single), expected("float64", single)
    np.testing.assert_array_equal(got[0], by[0])
    np.testing.assert_array_equal(got[3], by[3])
    flat = 1 + np.abs(by[4][..., 0])  # how much a flat crossing magnifies rounding
    assert (np.abs(got[1] - by[1]) < 1e-10 * flat).all()
    assert (np.abs(got[2] - by[2]) < 1e-10 * flat.max(1)).all()


def test_derivatives_of_spike_times(library):
    """By v, i, JI, JV, JQ, tau_mem, tau_syn and v_th, each on its own; flat crossings magnify rounding."""
    *_, got = kernel(library, "float64")
    by = expected("float64")[4]
    here = np.arange(MOST) < expected("float64")[0][:, None]
    size = np.abs(by[..., 0])
    for k in range(8):
        assert (by[here][:, k] != 0).sum() > 100, k
        limit = 1e-8 * (1 + np.abs(by[..., k]) + size**2)
        wrong = np.abs(got[..., k] - by[..., k]) > limit
        assert not wrong.any(), (k, np.argwhere(wrong)[:5], got[wrong][:5], by[wrong][:5])


def test_float_is_at_most_twice_as_far_off_as_the_reference(library):
    exact, single, mine = expected("float64"), expected("float32"), kernel(library, "float32")
    same = (single[0] == exact[0]) & (mine[0] == exact[0])
    assert ((single[0] == exact[0]) & ~same).sum() <= 2 * (single[0] != exact[0]).sum()
    here = same[:, None] & (np.arange(MOST) < exact[0][:, None])
    size = np.abs(exact[4][here][:, 0])  # a flat crossing magnifies all of its derivatives
    for what, k in [("time", None), *((f"derivative {k}", k) for k in range(8))]:
        x, y, z = (a[1][here] if k is None else a[4][here][:, k] for a in (exact, single, mine))
        scale = 1.0 if k is None else size + np.abs(x) + (size == 0)
        for part in (0.5, 0.95):
            own, got = (np.quantile(np.abs(a - x) / scale, part) for a in (y, z))
            assert got <= 2 * own, (what, part, got, own)


def test_steps_that_need_a_look(library):
    _, state, constants = drawn()
    p = len(state)
    bound, look = np.zeros(p, bool), np.zeros(p, bool)
    with jax.enable_x64(True):
        m, v_end, i_end = flows(jnp.asarray(state), jnp.asarray(constants))
        by = np.asarray(crossing.may_fire(*state[:, :2].T, v_end, i_end, m, DT))
        called(library, "looks", "float64", p, state, constants, ends(state, constants), DT, bound, look)
    np.testing.assert_array_equal(look, by)
    assert not (look & ~bound).any(), "a bound that is false where a spike may be"
    peaks = look & (np.asarray(v_end) < constants[:, 2]) & (state[:, 0] < constants[:, 2])
    assert peaks.sum() > 100 and (~bound).sum() > p / 20


def alone(library, state, v_end, i_end):
    """The spikes and the end voltage of one neuron of tau_mem 10, tau_syn 2, v_th 1."""
    number, still = np.zeros(1, np.int32), np.zeros(1, bool)
    g, left, slopes = np.zeros(MOST), np.zeros(1), np.zeros((MOST, 8))
    arrays = np.array(state), np.array([10.0, 2.0, 1.0]), np.array([v_end, i_end])
    called(library, "every", "float64", 1, *arrays, DT, False, number, g, left, still, slopes)
    return g[: number[0]], left[0], slopes[: number[0]]


def test_a_voltage_that_is_the_threshold_fires(library):
    """At the start of the step at once; at its end there; and a second time if what is left is the threshold again."""
    fall = np.exp(-DT / 10.0)
    g, left, slopes = alone(library, [1.0, 0.0, 0.0, 0.0, 0.0], fall, 0.0)
    assert g.tolist() == [0.0] and left == pytest.approx(0.0, abs=1e-15) and not slopes.any()
    # 1 = v fall + i kappa
    i = 3.0
    kappa = np.exp(-DT / 2.0) * np.expm1(0.4 * DT) / 0.4
    state = [(1.0 - i * kappa) / fall, i, 0.0, 0.0, 0.0]
    g, left, _ = alone(library, state, 1.0, i * np.exp(-DT / 2.0))
    assert g == pytest.approx([DT], abs=1e-12) and left == pytest.approx(0.0, abs=1e-12)
    g, left, _ = alone(library, state, np.nextafter(1.0, 0.0), i * np.exp(-DT / 2.0))
    assert len(g) == 0 and left < 1.0
    # two thresholds above: both are taken at the start, where 1 + fall - fall is 1 again
    g, _, _ = alone(library, [2.0, 0.0, 0.0, 0.0, 0.0], 1.0 + fall, 0.0)
    assert g.tolist() == [0.0, 0.0]


def test_a_crossing_that_only_touches_has_finite_derivatives(library):
    """Of a voltage that falls at the time asked for: its slope counts as 1e-6 per ms."""
    out, g = np.zeros(8), 0.25
    called(library, "slopes_at", "float64", np.array([1.0, 0.0, 0, 0, 0]), np.array([10.0, 2.0, 1.1]), DT, g, out)
    assert out[0] == pytest.approx(-np.exp(-g / 10.0) / 1e-6)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("excess", [1e-9, 1e-11, 1e-13, 1e-15])
def test_a_peak_that_hardly_reaches_the_threshold(library, excess):
    """Where the slope is all but 0: the crossing of the parabola of the peak, not somewhere, nor no number."""
    r, p = np.random.default_rng(0), 300
    tau_mem, tau_syn = np.array(TAUS)[[0, 2, 3]][r.integers(0, 3, p)].T * r.uniform(0.9, 1.1, (2, p))
    c, top = 1 / tau_syn - 1 / tau_mem, r.uniform(0.1, 0.4, p)
    # a flow whose voltage is 1 and has no slope a time `top` after the start
    i = np.exp(top / tau_syn) / tau_mem
    v = (1 - i * np.exp(-top / tau_syn) * np.expm1(c * top) / c) * np.exp(top / tau_mem)
    state = np.stack([v, i, *np.zeros((3, p))], 1)
    constants = np.stack([tau_mem, tau_syn, np.full(p, 1 - excess)], 1)
    number, still = np.zeros(p, np.int32), np.zeros(p, bool)
    g, left, slopes = np.zeros((p, MOST)), np.zeros(p), np.zeros((p, MOST, 8))
    i_end = i * np.exp(-DT / tau_syn)
    v_end = v * np.exp(-DT / tau_mem) + i_end * np.expm1(c * DT) / c
    end = np.stack([v_end, i_end], 1)
    called(library, "every", "float64", p, state, constants, end, DT, False, number, g, left, still, slopes)
    # at the peak v = 1, i = 1 / tau_mem and v'' = -1 / (tau_mem tau_syn); ten steps to a root that is nearly double
    # leave some 1e-5 ms, and below 1e-14 rounding decides whether there is one
    before = np.sqrt(2 * excess * tau_mem * tau_syn)
    fired = number > 0
    assert fired.all() if excess > 1e-14 else fired.sum() > p / 4
    assert np.abs(top - g[:, 0] - before)[fired].max() < 1e-4
    assert np.isfinite(slopes[fired, 0]).all() and np.isfinite(left).all()
