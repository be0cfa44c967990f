"""`Network`: the trainable parameters of one layer in space with a readout, their initial values, and the readouts."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ranvier.config import Config
from ranvier.errors import RanvierError
from ranvier.events import Events
from ranvier.layer import Layer
from ranvier.losses import sample_cross_entropy
from ranvier.native import refusal
from ranvier.neurons import LIF, AdEx
from ranvier.simulate import Simulation, simulate
from ranvier.space import Embedding, Space, init_space, matched_free

READOUTS = ("count", "leaky-max", "leaky-mean", "first-spike")

# Times to first spike are compared in steps of 0.01 ms: the unit of the published recipe for Yin-Yang.
FIRST_SPIKE_SCALE = 0.01

# Scale of the initial weights of spiking outputs, times the number of classes: a third of the hidden neurons, one spike
# each, then brings an output to the threshold.
SPIKING_OUTPUTS = 10.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What a network says about a batch.

    Parameters
    ----------
    logits : (B, K)
        Class scores.
    spike_count : (B, N)
        Spikes of each hidden neuron, with the surrogate derivative of the simulation.
    overflow : (B,) int32
        Spikes that did not fit; 0 in a simulation that can be trusted.
    delay_clipped : () int32
        Delays longer than `max_delay`, in both layers.
    simulation : Simulation
        Of the hidden layer.
    output : Simulation or None
        Of the spiking output layer of readout `first-spike`.
    """

    logits: jax.Array
    spike_count: jax.Array
    overflow: jax.Array
    delay_clipped: jax.Array
    simulation: Simulation
    output: Simulation | None = None

    def sample_error(self, labels: jax.Array) -> jax.Array:
        """Cross entropy of each sample: (B,)."""
        return sample_cross_entropy(self.logits, labels)

    def rate_hz(self, duration: float) -> jax.Array:
        """Mean rate over the hidden neurons: (B,) [Hz]."""
        return jnp.mean(self.spike_count, axis=1) * (1000.0 / duration)

    def layers(self) -> dict[str, jax.Array]:
        """Nothing a layer: there is one."""
        return {}

    def hidden_events(self, dt: float) -> Events:
        """Spikes of the hidden neurons: (B, E)."""
        return self.simulation.events


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """One hidden layer in space and its readout: everything that is trained.

    Parameters
    ----------
    w_in : (M, N) [1/ms]
    w_rec : (N, N) [1/ms] or None
        Without self-connections: the diagonal never reaches the simulation.
    w_out : (N, K) [1, or 1/ms for readout first-spike]
    space : Space
        Delays of the hidden layer.
    output : Space or None
        Delays from hidden to spiking output neurons (readout `first-spike`). The hidden neurons' positions are in
        `space` alone; the output neurons' own are here.
    """

    w_in: jax.Array
    w_rec: jax.Array | None
    w_out: jax.Array
    space: Space
    output: Space | None = None

    @property
    def n_in(self) -> int:
        """Input channels M."""
        return self.w_in.shape[0]

    @property
    def n_classes(self) -> int:
        """Classes K."""
        return self.w_out.shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons of each layer with spikes that are kept: the hidden one."""
        return (self.w_in.shape[1],)

    def recurrent_weights(self) -> jax.Array | None:
        """`w_rec` with a zero diagonal: (N, N) or None."""
        if self.w_rec is None:
            return None
        return jnp.where(jnp.eye(self.w_rec.shape[0], dtype=bool), 0.0, self.w_rec)

    def layer(self, config: Config) -> Layer:
        """The hidden layer for `simulate`."""
        return Layer(
            w_in=self.w_in,
            d_in=self.space.d_in(),
            w_rec=self.recurrent_weights(),
            d_rec=self.space.d_rec(),
            neuron=make_neuron(config),
        )

    def output_layer(self, config: Config) -> Layer:
        """The layer of spiking output neurons for `simulate`, fed by the hidden neurons where they are."""
        return Layer(w_in=self.w_out, d_in=self._output_delays(), neuron=make_neuron(config))

    def longest_delay(self) -> jax.Array:
        """The longest delay of the network: () [ms]."""
        embeddings = [self.space.d_in(), self.space.d_rec(), None if self.output is None else self._output_delays()]
        return jnp.max(jnp.stack([jnp.max(e.delays()) for e in embeddings if e is not None]))

    def _output_delays(self) -> Embedding:
        if self.output is None:
            raise RanvierError(
                "Network: got readout 'first-spike' and a network without output neurons; "
                "needs one made by init_network with this readout; make it again"
            )
        positions = self.space.positions()
        return self.output.d_in(None if positions is None else positions[1])

    def backend(self, config: Config) -> str:
        """What simulates this network: `config.backend`, where "auto" is what `simulate` takes for it."""
        if config.backend != "auto":
            return config.backend
        return "reference" if refusal(self.layer(config), config.scheme) else "native"

    def apply(
        self,
        config: Config,
        events: Events,
        *,
        duration: float,
        max_delay: float | None = None,
        capacity: int | None = None,
        step_capacity: int | None = None,
    ) -> Output:
        """Simulate a batch and read it out.

        Parameters
        ----------
        config : Config
            `readout`, `output_tau`, and the options of neuron and simulation.
        events : Events
            (B, E) input events.
        duration, max_delay : float [ms]
        capacity, step_capacity : int or None
            Room for spikes a sample and a step; see `simulate`.

        Returns
        -------
        Output

        Raises
        ------
        RanvierError
            If the readout is unknown, or from `simulate`.
        """
        options: dict[str, Any] = {
            "duration": duration,
            "dt": config.dt,
            "max_delay": max_delay,
            "scheme": config.scheme,
            "backend": self.backend(config),
            "capacity": capacity,
            "step_capacity": step_capacity,
        }
        hidden = simulate(self.layer(config), events, **options)
        if config.readout == "first-spike":
            out = simulate(self.output_layer(config), hidden.events, **{**options, "capacity": 0})
            logits = first_spike_logits(out.first_spike, duration, FIRST_SPIKE_SCALE)
            return Output(
                logits,
                hidden.spike_count,
                hidden.overflow + out.overflow,
                hidden.delay_clipped + out.delay_clipped,
                hidden,
                out,
            )
        if config.readout == "count":
            logits = hidden.spike_count @ self.w_out
        elif config.readout == "leaky-mean":
            logits = leaky_mean(hidden.events, hidden.spike_count, config.output_tau, duration) @ self.w_out
        elif config.readout == "leaky-max":
            logits = leaky_max(hidden.events, hidden.spike_count, self.w_out, config.output_tau, duration)
        else:
            raise RanvierError(
                f"Network.apply: got readout {config.readout!r}; needs one of {', '.join(READOUTS)}; pick one"
            )
        return Output(logits, hidden.spike_count, hidden.overflow, hidden.delay_clipped, hidden)


def first_spike_logits(first_spike: jax.Array, duration: float, scale: float) -> jax.Array:
    """Logits from the time to first spike: the earliest output wins.

        z_k = -min(t_k, duration) / scale

    Parameters
    ----------
    first_spike : (B, K) [ms]
        +inf for a silent neuron, which counts as one that fires at `duration`.
    duration : () [ms]
    scale : () [ms]
        Time that is worth one logit; the published recipe for Yin-Yang counts in steps of 0.01 ms.

    Returns
    -------
    (B, K) jax.Array

    Notes
    -----
    The replacement comes before any arithmetic: a derivative through inf - inf would be NaN.
    """
    fired = first_spike < duration
    return -jnp.where(fired, first_spike, duration) / scale


def leaky_mean(events: Events, spike_count: jax.Array, tau: float, duration: float) -> jax.Array:
    """Mean over [0, T] of a leaky integrator that each spike of a neuron raises by 1, in closed form.

        m_n = sum over spikes k of n of f(t_k),   f(t) = tau (1 - exp(-(T - t) / tau)) / T

    Parameters
    ----------
    events : Events
        (B, E) hidden spikes; channel is the neuron.
    spike_count : (B, N)
        Carries the derivative for spikes that appear and disappear.
    tau, duration : float [ms]
        duration is T.

    Returns
    -------
    (B, N) jax.Array

    Notes
    -----
    The derivative has two parts: through the times of the spikes there are, exact; and the mean of f over [0, T], which
    is what one more spike at an unknown time would add, times the surrogate derivative of the count.
    """
    present = events.time < duration
    # Padding is +inf: replaced before any arithmetic.
    time = jnp.where(present, events.time, 0.0)
    value = jnp.where(present, -tau * jnp.expm1(-(duration - time) / tau) / duration, 0.0)
    rows = jnp.arange(spike_count.shape[0])[:, None]
    exact = jnp.zeros_like(spike_count).at[rows, events.channel].add(value.astype(spike_count.dtype))
    one_more = tau / duration * (1.0 + tau / duration * jnp.expm1(-duration / tau))
    return exact + one_more * _only_derivative(spike_count)


def leaky_max(events: Events, spike_count: jax.Array, w_out: jax.Array, tau: float, duration: float) -> jax.Array:
    """Highest value over [0, T] of leaky integrators that read hidden spikes through `w_out`, exactly.

        u_k(t) = sum over spikes t_s <= t of w_out[n_s, k] exp(-(t - t_s) / tau),   z_k = max over [0, T] of u_k(t)

    Parameters
    ----------
    events : Events
        (B, E) hidden spikes; channel is the neuron.
    spike_count : (B, N)
        Carries the derivative for spikes that appear and disappear.
    w_out : (N, K)
    tau, duration : float [ms]
        duration is T.

    Returns
    -------
    (B, K) jax.Array

    Notes
    -----
    Between spikes u decays towards 0, where it started, so its highest value over all times is 0 or follows a spike.
    As in `leaky_mean` the derivative is exact in the times, plus, through the count, what one more spike at an unknown
    time would add at the time t* of the maximum: w_out tau (1 - exp(-t*/tau)) / T.
    """
    present = events.time < duration
    time = jnp.where(present, events.time, duration)
    jump = jnp.where(present[:, :, None], w_out[events.channel], 0.0)
    before = jnp.concatenate([jnp.zeros_like(time[:, :1]), time[:, :-1]], axis=1)
    decay = jnp.exp(-(time - before) / tau)[:, :, None]

    def join(first: tuple, second: tuple) -> tuple:
        return first[0] * second[0], first[1] * second[0] + second[1]

    _, u = jax.lax.associative_scan(join, (jnp.broadcast_to(decay, jump.shape), jump), axis=1)
    # Of simultaneous spikes only the last has the value at that time; what follows a row's last spike is padding.
    after = jnp.concatenate([time[:, 1:], jnp.full_like(time[:, :1], duration)], axis=1)
    u = jnp.where((present & (after > time))[:, :, None], u, -jnp.inf)
    top = jnp.argmax(u, axis=1)
    highest = jnp.take_along_axis(u, top[:, None, :], axis=1)[:, 0]
    exact = jnp.where(highest > 0, highest, 0.0)
    t_top = jnp.where(highest > 0, jnp.take_along_axis(time, top, axis=1), 0.0)
    one_more = jax.lax.stop_gradient(-tau * jnp.expm1(-t_top / tau) / duration)
    return exact + one_more * (_only_derivative(spike_count) @ jax.lax.stop_gradient(w_out))


def _only_derivative(x: jax.Array) -> jax.Array:
    """Zero, with the derivative of x."""
    return x - jax.lax.stop_gradient(x)


def make_neuron(config: Config) -> LIF | AdEx:
    """The neuron model of a configuration.

    Raises
    ------
    RanvierError
        If the name is unknown, or from the model.
    """
    if config.neuron == "lif":
        return LIF(
            tau_mem=config.tau_mem, tau_syn=config.tau_syn, v_th=config.threshold, single_spike=config.single_spike
        )
    if config.neuron == "adex":
        return AdEx(
            tau_mem=config.tau_mem,
            tau_syn=config.tau_syn,
            v_th=config.threshold,
            single_spike=config.single_spike,
            a=config.adex_a,
            b=config.adex_b,
            tau_w=config.adex_tau_w,
            delta_t=config.adex_delta_t,
            z0=config.adex_z0,
        )
    raise RanvierError(f"make_neuron: got neuron {config.neuron!r}; needs 'lif' or 'adex'; pick one")


def input_weight_scale(config: Config) -> float:
    """Scale of the initial input weights: `weight_scale_in`, or 400 x 3 (hidden <= 50), 10 (<= 200), 50 (more)."""
    if config.weight_scale_in is not None:
        return config.weight_scale_in
    return 400.0 * (3.0 if config.hidden <= 50 else 10.0 if config.hidden <= 200 else 50.0)


def init_weights(key: jax.Array, shape: tuple[int, int], scale: float, constant: bool, dtype: str) -> jax.Array:
    """Initial weights of one matrix.

        w = |U(-0.2, 0.8)| scale / (rows x columns)            constant: its mean, 0.34 scale / (rows x columns)

    Parameters
    ----------
    key : PRNG key
    shape : (rows, columns)
    scale : float
    constant : bool
    dtype : str

    Returns
    -------
    (rows, columns) jax.Array

    References
    ----------
    Code of arXiv 2512.10011, with its scales.
    """
    size = shape[0] * shape[1]
    if constant:
        # mean of |U(-0.2, 0.8)| = (0.2^2 / 2 + 0.8^2 / 2) / (0.2 + 0.8)
        return jnp.full(shape, 0.34 * scale / size, dtype)
    return jnp.abs(jax.random.uniform(key, shape, dtype, minval=-0.2, maxval=0.8)) * (scale / size)


def init_network(config: Config, key: jax.Array, n_in: int, n_classes: int, dtype: str | None = None) -> Network:
    """A network before training.

    Parameters
    ----------
    config : Config
        `net`, `match`, `layout`, `position_sigma`, `delay_mu`, `delay_sigma`, `hidden`, `recurrent`, `readout`, and the
        options of the weights.
    key : PRNG key
    n_in, n_classes : int
        M and K.
    dtype : str or None
        None: `config.precision`.

    Returns
    -------
    Network

    Raises
    ------
    RanvierError
        If a size is not positive, the readout is unknown, or from `ranvier.space`.
    """
    for name, size in (("n_in", n_in), ("hidden", config.hidden), ("n_classes", n_classes)):
        if size < 1:
            raise RanvierError(f"init_network: got {name} {size}; needs 1 or more; set {name}")
    if config.readout not in READOUTS:
        raise RanvierError(
            f"init_network: got readout {config.readout!r}; needs one of {', '.join(READOUTS)}; pick one"
        )
    dtype = dtype or config.precision
    n = config.hidden
    k_in, k_rec, k_out, k_space, k_output = jax.random.split(key, 5)
    constant = config.constant_weights
    w_in = init_weights(k_in, (n_in, n), input_weight_scale(config), constant, dtype)
    # By the published scale for all sizes, few neurons excite each other without end: each spike causes more than one.
    scale_rec = 0.35 * n if config.weight_scale_rec is None else config.weight_scale_rec
    w_rec = init_weights(k_rec, (n, n), scale_rec, constant, dtype) if config.recurrent else None
    # A linear readout works from any small start, but an output neuron that is silent on all samples never learns.
    scale_out = config.weight_scale_out * (SPIKING_OUTPUTS * n_classes if config.readout == "first-spike" else 1.0)
    w_out = init_weights(k_out, (n, n_classes), scale_out, constant, dtype)
    options = _space_options(config, dtype)
    space = init_space(config.match or config.net, k_space, n_in, n, recurrent=config.recurrent, **options)
    if config.match is not None:
        space = matched_free(space)
    output = None
    if config.readout == "first-spike":
        # Only inputs have layouts.
        options["layout"] = "random"
        output = init_space(config.net, k_output, n, n_classes, recurrent=False, shared_source=True, **options)
    return Network(w_in, w_rec, w_out, space, output)


def _space_options(config: Config, dtype: str) -> dict:
    return {
        "layout": config.layout,
        "position_sigma": config.position_sigma,
        "delay_mu": config.delay_mu,
        "delay_sigma": config.delay_sigma,
        "dtype": dtype,
    }


def project_positive(network: Network) -> Network:
    """The network with its negative synaptic weights set to zero.

        w <- max(w, 0)

    A projection after each update, and not softplus or |w| inside the network: it leaves initial weights, learning rate
    and pruned zeros as they are, and a weight at zero can still come back. The `w_out` of a linear readout is no
    synapse and keeps its signs.
    """
    return replace(
        network,
        w_in=jnp.maximum(network.w_in, 0.0),
        w_rec=None if network.w_rec is None else jnp.maximum(network.w_rec, 0.0),
        w_out=network.w_out if network.output is None else jnp.maximum(network.w_out, 0.0),
    )


def project_delays(network: Network) -> Network:
    """The network without negative free delays; call it after each update."""
    output = None if network.output is None else network.output.projected()
    return replace(network, space=network.space.projected(), output=output)
