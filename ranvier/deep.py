"""`DeepNetwork`: layers of LIF neurons without delays, trained through short lists of the neurons that matter."""

import itertools
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from ranvier import ops
from ranvier.config import Config
from ranvier.deep_readout import leaky_integrator, votes
from ranvier.deep_sizes import capacities, layer_sizes
from ranvier.errors import RanvierError
from ranvier.events import Events
from ranvier.losses import sample_cross_entropy
from ranvier.ops import SpikeVector

SURROGATES = {
    "super-spike": ops.super_spike,
    "fast-sigmoid": ops.fast_sigmoid,
    "arctan": ops.arctan,
    "triangular": ops.triangular,
}

# The place of the key of `sampled` among those of a run.
DRAW = 2

# Recurrent weights start as orthogonal matrices of this size: a spike moves the others by less than the threshold.
RECURRENT_SCALE = 0.5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeepLayer:
    """Weights of one layer; currents of 1 raise a voltage by gain (1 - alpha) in a step.

    Parameters
    ----------
    w : (M, N)
    w_rec : (N, N) or None
    bias : (N,) or None
    """

    w: jax.Array
    w_rec: jax.Array | None
    bias: jax.Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeepOutput:
    """What a deep network says about a batch of B samples; L layers have lists.

    Parameters
    ----------
    logits : (B, K)
        Class scores, without a derivative for readout `step-linear`.
    step_logits : (n, B, K)
        What the loss reads: of each step that votes, or one row of spike counts.
    fired, lost, near_dropped : (B, L) float
        Spikes of each layer, those of them that found no room in their list, and near-threshold neurons without room.
    input_lost : (B,) int32
        Input events that found no room.
    lists : tuple of SpikeVector (T, B)
        Of each layer.
    sizes : tuple of int
        Neurons of each layer with lists; static.
    """

    logits: jax.Array
    step_logits: jax.Array
    fired: jax.Array
    lost: jax.Array
    near_dropped: jax.Array
    input_lost: jax.Array
    lists: tuple[SpikeVector, ...]
    sizes: tuple[int, ...] = field(metadata={"static": True})

    def sample_error(self, labels: jax.Array) -> jax.Array:
        """Cross entropy, mean over the steps that vote: (B,)."""
        return jnp.mean(jax.vmap(sample_cross_entropy, (0, None))(self.step_logits, labels), axis=0)

    def rate_hz(self, duration: float) -> jax.Array:
        """Mean rate over the neurons that spike: (B,) [Hz]."""
        return jnp.sum(self.fired, axis=1) * (1000.0 / (duration * sum(self.sizes)))

    def layers(self) -> dict[str, jax.Array]:
        """Each (B, L): `activity`, the fraction of neurons that fire in a step, `lost` and `near_dropped` a sample."""
        entries = self.lists[0].n_spikes.shape[0] * jnp.asarray(self.sizes, self.fired.dtype)
        return {"activity": self.fired / entries[None, :], "lost": self.lost, "near_dropped": self.near_dropped}

    def hidden_events(self, dt: float) -> Events:
        """Spikes of all layers at the middle of their steps, neurons counted on from layer to layer: (B, E)."""
        times, neurons, first = [], [], 0
        for spikes in self.lists:
            middle = (jnp.arange(spikes.n_spikes.shape[0]) + 0.5) * dt
            fired = jnp.arange(spikes.capacity)[None, None, :] < spikes.n_spikes[..., None]
            times.append(jnp.where(fired, middle[:, None, None], jnp.inf))
            neurons.append(jnp.where(fired, first + spikes.ids, 0))
            first += spikes.n_neurons
        time, neuron = (jnp.concatenate([_rows(x) for x in parts], axis=1) for parts in (times, neurons))
        order = jnp.argsort(time, axis=1, stable=True)
        return Events(jnp.take_along_axis(time, order, axis=1), jnp.take_along_axis(neuron, order, axis=1), first)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeepNetwork:
    """Everything of a deep network that is trained.

    Parameters
    ----------
    layers : tuple of DeepLayer
        Those that spike, from the inputs on; for readout `spike-sum` the last one is that of the K outputs.
    integrator : DeepLayer or None
        Readout `step-linear`: the last layer, which integrates without spikes.
    w_out : (N, K) or None
        Readout `step-linear`: from the integrator to the classes.
    """

    layers: tuple[DeepLayer, ...]
    integrator: DeepLayer | None = None
    w_out: jax.Array | None = None

    @property
    def n_in(self) -> int:
        """Input channels."""
        return self.layers[0].w.shape[0]

    @property
    def n_classes(self) -> int:
        """Classes."""
        return (self.layers[-1].w if self.w_out is None else self.w_out).shape[1]

    def apply(
        self,
        config: Config,
        events: Events,
        *,
        duration: float,
        capacity: int,
        activity: tuple[float, ...] | None = None,
        update: jax.Array | None = None,
    ) -> DeepOutput:
        """Run a batch through all layers and read it out.

        Parameters
        ----------
        config : Config
            Of model `deep`.
        events : Events
            (B, E) input events.
        duration : float [ms]
        capacity : int
            Room for input events of a step and sample.
        activity : tuple of float or None
            Fraction of the channels, and of the neurons of each layer, that spike in a step: what mode `auto` chooses
            by; None: as many as the lists have room for.
        update : () int or None
            Number of the update, for `near_schedule` and `sampled`; None: `near_threshold` holds, and no neurons are
            drawn.

        Returns
        -------
        DeepOutput
        """
        dtype = self.layers[0].w.dtype
        inputs = ops.spikes_from_events(events, duration=duration, dt=config.dt, capacity=capacity, dtype=dtype)
        return self.run(config, inputs, near_threshold(config, update), activity, draw_key(config, update))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Neurons of each layer that spikes."""
        return tuple(layer.w.shape[1] for layer in self.layers)

    def run(
        self,
        config: Config,
        inputs: SpikeVector,
        near: Any,
        activity: tuple[float, ...] | None = None,
        key: jax.Array | None = None,
    ) -> DeepOutput:
        """As `apply`, from lists of the inputs (T, B), the lower threshold, and what draws the neurons of `sampled`."""
        active = [None] * (len(self.layers) + 1) if activity is None else activity
        states: list[Any] = [None] * len(self.layers)
        sent: list[list[SpikeVector]] = [[] for _ in self.layers]
        for piece, spikes in enumerate(_pieces(inputs, config.pieces)):
            for k, (layer, capacity) in enumerate(zip(self.layers, self.capacities(config), strict=True)):
                # An output that nothing reaches would be silent for ever.
                outputs = self.integrator is None and k == len(self.layers) - 1
                lowest = -jnp.inf if outputs else near
                own = None if key is None or outputs else jax.random.fold_in(key, piece * len(self.layers) + k)
                spikes, states[k] = run_layer(layer, config, spikes, lowest, capacity, active[k], states[k], own)
                sent[k].append(spikes)
        lists = [x[0] if len(x) == 1 else SpikeVector.concatenate(x) for x in sent]
        spikes = lists[-1]
        if self.integrator is None:
            logits = config.count_scale * jnp.sum(spikes.to_dense(), axis=0)
            step_logits = logits[None]
        else:
            step_logits = self._integrated(config, spikes, active[-1])
            logits = votes(step_logits)

        def summed(of) -> jax.Array:
            return jnp.stack([jnp.sum(of(x), axis=0) for x in lists], axis=1).astype(logits.dtype)

        return DeepOutput(
            logits,
            step_logits,
            summed(lambda x: x.n_spikes + x.n_lost),
            summed(lambda x: x.n_lost),
            summed(lambda x: x.n_near_dropped),
            jnp.sum(inputs.n_lost, axis=0),
            tuple(lists),
            tuple(x.n_neurons for x in lists),
        )

    def capacities(self, config: Config) -> tuple[int, ...]:
        """Room in the lists of each layer; spiking outputs have room for all, and all of them have a gradient."""
        if self.integrator is not None:
            return capacities(config.max_activity, self.sizes)
        return (*capacities(config.max_activity, self.sizes[:-1]), self.sizes[-1])

    def _integrated(self, config: Config, spikes: SpikeVector, activity: float | None) -> jax.Array:
        """Logits of the steps that vote: (n, B, K).

        The last layer is linear, so it comes after the readout: K integrators in the place of N, and no array of the
        voltages of all steps.
        """
        assert self.integrator is not None and self.w_out is not None
        joined = jnp.dot(self.integrator.w, self.w_out, precision=jax.lax.Precision.HIGHEST)
        bias = None
        if self.integrator.bias is not None:
            bias = jnp.dot(self.integrator.bias, self.w_out, precision=jax.lax.Precision.HIGHEST)
        currents = ops.spike_matmul(spikes, joined, bias=bias, **products(config, activity))
        every = config.readout_interval
        return leaky_integrator(currents, config.alpha, config.gain)[every - 1 :: every]


def _pieces(inputs: SpikeVector, n: int) -> list[SpikeVector]:
    """The lists (T, B) cut into n parts of about as many steps, at least one."""
    steps = inputs.n_spikes.shape[0]
    cuts = [round(k * steps / min(n, steps)) for k in range(min(n, steps) + 1)]
    return [inputs[a:b] for a, b in itertools.pairwise(cuts)] if n > 1 else [inputs]


def _rows(entries: jax.Array) -> jax.Array:
    """(T, B, S) as (B, T S)."""
    return jnp.moveaxis(entries, 1, 0).reshape(entries.shape[1], -1)


def products(config: Config, activity: float | None = None) -> dict[str, Any]:
    """How products of lists with matrices are computed, for `ranvier.ops`."""
    precision = config.precision if config.precision in ("tf32", "bfloat16") else "float32"
    return {"mode": config.mode, "precision": precision, "activity": activity}


def run_layer(
    layer: DeepLayer,
    config: Config,
    spikes: SpikeVector,
    near: Any,
    capacity: int,
    activity: float | None = None,
    state: ops.LIFState | None = None,
    key: jax.Array | None = None,
) -> tuple[SpikeVector, ops.LIFState]:
    """The lists (T, B) of a layer from those of the layer before, of which a fraction `activity` are spikes.

    Without a `key` no neurons are drawn.
    """
    return ops.spike_layer(
        spikes,
        layer.w,
        layer.w_rec,
        bias=layer.bias,
        **products(config, activity),
        alpha=config.alpha,
        gain=config.gain,
        threshold=config.threshold,
        near_threshold=near,
        capacity=capacity,
        surrogate=surrogate(config.surrogate, config.surrogate_scale),
        # a small fraction of a small layer is still somebody
        sampled=0 if key is None else max(1, round(config.sampled * layer.w.shape[1])),
        key=key,
        state=state,
    )


@lru_cache
def surrogate(name: str, scale: float | None):
    """The surrogate of an option, the same function at each call: JAX may keep what it compiled for it."""
    return SURROGATES[name]() if scale is None else SURROGATES[name](scale)


def near_threshold(config: Config, update: jax.Array | None) -> jax.Array | float:
    """The lower threshold at an update (docs/equations.md, 40).

        theta_2(u) = near_threshold + (near_start - near_threshold) / 2^u

    Parameters
    ----------
    config : Config
        `near_threshold`, `near_schedule`, `near_start`.
    update : () int or None
        From 0; None: after all updates.

    Returns
    -------
    () float
    """
    if update is None or not config.near_schedule:
        return config.near_threshold
    gap = config.near_start - config.near_threshold
    return config.near_threshold + gap * jnp.exp2(-jnp.asarray(update, jnp.float32))


def draw_key(config: Config, update: jax.Array | None) -> jax.Array | None:
    """What draws the neurons of `sampled` at an update, None where none are."""
    if update is None or not config.sampled:
        return None
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), DRAW), update)


def init_deep(config: Config, key: jax.Array, n_in: int, n_classes: int) -> DeepNetwork:
    """A deep network with orthogonal weights and biases of 0.

    Parameters
    ----------
    config : Config
        `sizes`, `depth`, `recurrent`, `bias`, `readout`, `precision`.
    key : PRNG key
    n_in, n_classes : int

    Returns
    -------
    DeepNetwork

    Raises
    ------
    RanvierError
        If a size is not positive, or no layer would spike.
    """
    for name, size in (("n_in", n_in), ("n_classes", n_classes)):
        if size < 1:
            raise RanvierError(f"init_deep: got {name} {size}; needs 1 or more; set {name}")
    dtype = "float64" if config.precision == "float64" else "float32"
    orthogonal = jax.nn.initializers.orthogonal()

    def layer(k: int, m: int, n: int, recurrent: bool) -> DeepLayer:
        k_in, k_rec = jax.random.split(jax.random.fold_in(key, k))
        return DeepLayer(
            orthogonal(k_in, (m, n), dtype),
            RECURRENT_SCALE * orthogonal(k_rec, (n, n), dtype) if recurrent else None,
            jnp.zeros(n, dtype) if config.bias else None,
        )

    sizes = layer_sizes(config.sizes, config.depth)
    if config.readout == "step-linear" and not sizes[1:]:
        raise RanvierError(
            f"init_deep: got a layer of {sizes[0]} neurons and readout step-linear, whose last layer has no spikes; "
            "needs 2 sizes or more; add one"
        )
    if config.readout == "spike-sum":
        widths = (n_in, *sizes, n_classes)
        pairs = zip(widths, widths[1:], strict=False)
        return DeepNetwork(tuple(layer(k, m, n, config.recurrent and k < len(sizes)) for k, (m, n) in enumerate(pairs)))
    widths = (n_in, *sizes)
    pairs = zip(widths[:-2], widths[1:-1], strict=True)
    return DeepNetwork(
        tuple(layer(k, m, n, config.recurrent) for k, (m, n) in enumerate(pairs)),
        layer(len(sizes) - 1, widths[-2], sizes[-1], False),
        orthogonal(jax.random.fold_in(key, len(widths)), (sizes[-1], n_classes), dtype),
    )
