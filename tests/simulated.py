"""`ranvier.simulate` on networks of `tests.exact`: many through one compiled call, or one at a time.

To compile takes longer than all else here, so all tests share the same few programs: networks of 6 inputs, 4 neurons
and 10 events, one loss with all its coefficients as arguments, derivatives always by every parameter.
"""

from dataclasses import dataclass, replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

import ranvier
from tests import exact

PER_NEURON = ("tau_mem", "tau_syn", "v_th")
NAMES = ("w_in", "d_in", "w_rec", "d_rec", "times", *PER_NEURON)
DURATION, MAX_DELAY, CAPACITY, BATCH = 40.0, 9.0, 256, 64
# The definition, on whatever machine this is.
REFERENCE = {"backend": "reference"}


@dataclass(frozen=True)
class Run:
    """What came out for one network; gradient: of `loss`, by name."""

    spikes: list
    v: np.ndarray
    first: np.ndarray
    count: np.ndarray
    overflow: int
    clipped: int
    value: float
    gradient: dict | None
    trace: np.ndarray | None = None

    def of(self, neuron):
        """The spike times of one neuron."""
        return np.array([t for t, j in self.spikes if j == neuron])


def parameters(net, dtype=float):
    """All numbers of `net` by name, as NumPy arrays, the neuron's one a neuron."""
    return {
        name: np.asarray(net.per_neuron(name) if name in PER_NEURON else getattr(net, name), dtype) for name in NAMES
    }


def layer_of(p, single_spike=False):
    neuron = ranvier.LIF(p["tau_mem"], p["tau_syn"], p["v_th"], single_spike)
    return ranvier.Layer(p["w_in"], p["d_in"], p["w_rec"], p["d_rec"], neuron)


def loss(out, weights):
    """sum a v + sum b first_spike + sum c (time of event) + sum s spike_count, over what is there."""
    first, time = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (out.first_spike[0], out.events.time[0]))
    a, b, c, s = weights
    return (a * out.v[0]).sum() + (b * first).sum() + (c * time).sum() + (s * out.spike_count[0]).sum()


def weighting(n=4, a=0.0, b=0.0, c=0.0, s=0.0, dtype=float):
    """The coefficients of `loss` as arrays."""
    sizes = (n, n, CAPACITY, n)
    return tuple(np.broadcast_to(np.asarray(x, dtype), (k,)) for x, k in zip((a, b, c, s), sizes, strict=True))


def mixed_weighting(dtype=float):
    """Every output with its own weight, so that no term hides behind another; no surrogate."""
    return weighting(a=np.linspace(0.3, 1.2, 4), b=np.linspace(1.1, 0.2, 4), c=np.cos(np.arange(CAPACITY)), dtype=dtype)


@cache
def _batched(dt, scheme, duration, max_delay, backend):
    def value(p, channels, weights):
        out = ranvier.simulate(
            layer_of(p),
            ranvier.Events(p["times"][None], channels[None], p["w_in"].shape[0]),
            duration=duration,
            dt=dt,
            max_delay=max_delay,
            scheme=scheme,
            backend=backend,
            capacity=CAPACITY,
        )
        return loss(out, weights), out

    return jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True), in_axes=(0, 0, None)))


def simulated(
    nets,
    dt,
    weights=None,
    dtype=float,
    scheme="continuous",
    duration=DURATION,
    max_delay=MAX_DELAY,
    backend="reference",
):
    """A `Run` of each of `nets`, `BATCH` of them at a time under `jax.vmap` over all parameters and events."""
    weights = weighting(a=1.0, b=1.0) if weights is None else weights
    weights = tuple(jnp.asarray(x, dtype) for x in weights)
    runs = []
    for begin in range(0, len(nets), BATCH):
        part = nets[begin : begin + BATCH]
        every = [parameters(net, dtype) for net in part] + [parameters(part[-1], dtype)] * (BATCH - len(part))
        channels = [net.channels for net in part] + [part[-1].channels] * (BATCH - len(part))
        stacked = {name: jnp.asarray(np.stack([p[name] for p in every])) for name in NAMES}
        call = _batched(dt, scheme, duration, max_delay, backend)
        (value, out), gradient = jax.device_get(call(stacked, jnp.asarray(np.stack(channels)), weights))
        for k in range(len(part)):
            one = jax.tree.map(lambda x, k=k: x[k], out)
            runs.append(run_of(one, value[k], {name: gradient[name][k] for name in NAMES}))
    return runs


def run_of(out, value=0.0, gradient=None, sample=0):
    """The `Run` of one sample of a `ranvier.Simulation`."""
    out = jax.device_get(out)
    time, channel = out.events.time[sample], out.events.channel[sample]
    real = np.isfinite(time)
    spikes = list(zip(time[real].tolist(), channel[real].tolist(), strict=True))
    return Run(
        spikes,
        out.v[sample],
        out.first_spike[sample],
        out.spike_count[sample],
        int(out.overflow[sample]),
        int(out.delay_clipped),
        float(value),
        gradient,
        None if out.trace is None else out.trace[sample],
    )


def events_of(net, dtype=float):
    return ranvier.Events(jnp.asarray(net.times, dtype)[None], jnp.asarray(net.channels)[None], net.w_in.shape[0])


def plain(layer, events, dt=1.0, **options):
    """`simulate` as a user calls it, with the sizes that the tests share."""
    given = dict(duration=DURATION, dt=dt, max_delay=MAX_DELAY, capacity=CAPACITY, trace=True) | REFERENCE | options
    return ranvier.simulate(layer, events, **given)


def one(net, weights=None, dt=1.0, **options):
    """A `Run` of one network without derivatives, with the trace."""
    out = plain(jax.tree.map(jnp.asarray, layer_of(parameters(net))), events_of(net), dt, **options)
    return run_of(out, 0.0 if weights is None else loss(out, weights))


def one_gradient(layer, events, weights, dt=1.0, **options):
    """(loss, its gradient by all of `layer`, its gradient by the times (E,))."""

    def value(layer, time):
        return loss(plain(layer, ranvier.Events(time, events.channel, events.n_channels), dt, **options), weights)

    result, (by_layer, by_time) = jax.value_and_grad(value, argnums=(0, 1))(layer, events.time)
    return float(result), by_layer, np.asarray(by_time[0])


def gradient_of(net, weights, dt=1.0, **options):
    """The gradient of the loss of one network, by name."""
    layer = jax.tree.map(jnp.asarray, layer_of(parameters(net)))
    _, by_layer, by_time = one_gradient(layer, events_of(net), weights, dt, **options)
    neuron = by_layer.neuron
    arrays = (by_layer.w_in, by_layer.d_in, by_layer.w_rec, by_layer.d_rec, by_time)
    return dict(zip(NAMES, map(np.asarray, (*arrays, neuron.tau_mem, neuron.tau_syn, neuron.v_th)), strict=True))


def moved(net, name, step):
    """`net` with `step` added to one of its arrays."""
    return replace(net, **{name: parameters(net)[name] + step})


def margin(net, run, dt):
    """How close [ms] an arrival or a spike comes to the edge of a step."""
    moments = np.concatenate([exact.arrivals(net, run), [t for t, _ in run.spikes]])
    return np.abs(moments - dt * np.round(moments / dt)).min()


def relative(got, expected):
    """Error of an array relative to its norm."""
    return np.linalg.norm(np.asarray(got) - expected) / max(np.linalg.norm(expected), 1e-300)


def small_net(**others):
    """A silent network of the shared shape: fill in what a test is about."""
    given = dict(
        w_in=np.zeros((6, 4)),
        d_in=np.zeros((6, 4)),
        w_rec=np.zeros((4, 4)),
        d_rec=np.full((4, 4), 2.5),
        times=np.full(10, np.inf),
        channels=np.zeros(10, int),
        duration=DURATION,
    )
    return exact.Net(**(given | others))


def solved(net, single_spike=False):
    """`exact.solve` of a network whose events may be padded with +inf."""
    real = np.isfinite(net.times)
    return exact.solve(replace(net, times=net.times[real], channels=net.channels[real]), single_spike)
