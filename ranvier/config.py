"""`Config`: every option of a training run, in one place.

The command line, the TOML file and the documentation of the options are all made from the fields below: the text under
a field is its help, the annotation its type, `RULES` what its value must satisfy.
"""

import difflib
import math
import tomllib
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ranvier.errors import RanvierError


@dataclass(frozen=True)
class Config:
    """Options of a training run.

    `Config()` is a valid run, and so is `Config.of("deep")`; `dataclasses.replace(config, lr=1e-2)` changes one option.
    Times are in ms.
    """

    # model
    model: Literal["space", "deep"] = "space"
    """What is trained: one layer in space with delays, or a deep network without them through sparse operators. The
    defaults of other options are those of the model."""

    # data
    data: str = "speech"
    """Data set: a name that `ranvier data list` shows, or the path of recordings that `ranvier data convert` reads."""
    test_data: str | None = None
    """Path of the file with the test samples; None: what the data set brings, or a part of its samples."""
    split: Literal["sample", "speaker"] = "sample"
    """How training samples are divided: stratified by class, or so that no speaker is in two parts."""
    n_channels: int | None = None
    """Input channels of an HDF5 file, or those to make of sounds [count]; None: what the file says, else 700."""
    downsample: int = 1
    """Recordings of an event camera: join squares of so many by so many pixels to one [count]; 1: off."""
    limit_train: int | None = None
    """Use at most this many training samples [count]; None: all."""
    limit_validation: int | None = None
    """Use at most this many validation samples [count]; None: all."""
    limit_test: int | None = None
    """Use at most this many test samples [count]; None: all."""
    stream: Literal["auto", "on", "off"] = "auto"
    """Send samples to the device batch by batch, or all of them at the start; auto: batch by batch where all would take
    more than half of its free memory, never on a CPU. The results are the same."""

    # network in space
    net: str = "3"
    """Where delays come from: 0 none, inf a free delay per synapse, 1, 2, 3, ... positions in so many dimensions,
    2e0.1 with slack 0.1, 2g0.1 on a lattice."""
    hidden: int = 100
    """Hidden neurons [count]."""
    recurrent: bool = True
    """Connect the hidden neurons with each other; in a deep network those of each layer."""
    layout: Literal["random", "line", "circle"] = "random"
    """Where the inputs start: at random, on a line along the first axis, or on a circle (in 2 dimensions)."""
    fixed_inputs: bool = False
    """Keep the input positions where they start."""
    position_sigma: float = 20.0
    """Standard deviation of the initial positions [ms]; distance is delay."""
    delay_mu: float = 8.0
    """Mean of the initial free delays [ms]."""
    delay_sigma: float = 1.0
    """Standard deviation of the initial free delays [ms]."""
    match: str | None = None
    """With net inf: start from exactly the delays of this spatial net, such as 3; None: from delay_mu, delay_sigma."""

    # deep network
    sizes: str | None = None
    """Neurons of each layer of a deep network, such as 1024,512,128 [count]; None: by depth, else 512,512,128."""
    depth: int | None = None
    """Layers of a deep network of the published sizes, 2 (512,128) to 6 [count]; None: by sizes."""
    alpha: float = 0.95
    """Deep network: what is left of a voltage after a step, exp(-dt / tau_mem), in (0, 1) [1]."""
    gain: float = 20.0
    """Deep network: voltage that a constant current of 1 leads to [1]."""
    near_threshold: float = 0.85
    """Deep network: neurons between here and the threshold have a gradient, too [1]."""
    near_schedule: bool = False
    """Deep network: begin with near_start in place of near_threshold, and go half of the way there at each update."""
    near_start: float = -100.0
    """Deep network: where near_schedule begins [1]."""
    max_activity: float | str = 0.05
    """Deep network: room in the list of a step, as a fraction of the neurons of a layer, in (0, 1] [1]; with commas,
    one a layer."""
    sampled: float = 0.025
    """Deep network: neurons of a step, as a fraction of the layer and drawn at random, that have a gradient below
    near_threshold too, weighted for all the others there, in [0, 1) [1]; 0: none."""
    lost_weight: float = 0.1
    """Deep network: weight in the loss of the spikes that find no room in the list of a step [1]; 0: off."""
    input_capacity: int | None = None
    """Deep network: room for input events of a step and sample [count]; None: so that none is lost."""
    bias: bool = True
    """Deep network: a trained constant current for each neuron."""
    lsuv: bool = True
    """Deep network: fit the initial weights and biases of one layer after the other to initial_std and initial_activity
    on training samples; else the weights are orthogonal and no more."""
    initial_std: float = 0.8
    """Deep network: standard deviation of the initial voltages [1]."""
    initial_activity: float = 0.05
    """Deep network: the mean of the initial voltages is such that this fraction of a normal distribution is above the
    threshold, in (0, 1) [1]."""
    surrogate: Literal["super-spike", "fast-sigmoid", "arctan", "triangular"] = "super-spike"
    """Deep network: what stands for the derivative of a spike."""
    surrogate_scale: float | None = None
    """Deep network: beta, slope, alpha or width of the surrogate [1]; None: 10, 25, 2 or 1."""
    mode: Literal["auto", "sparse", "dense"] = "auto"
    """Deep network: compute products from lists, or from all neurons; auto: whichever is faster."""

    pieces: int = 1
    """Deep network: parts of the sequence that are computed one after the other [count]; more of them take less memory
    and a little more time."""

    # neuron
    neuron: Literal["lif", "adex"] = "lif"
    """Neuron model: leaky integrate-and-fire, or adaptive exponential."""
    tau_mem: float = 10.0
    """Membrane time constant [ms]."""
    tau_syn: float = 2.0
    """Synaptic time constant [ms]."""
    threshold: float = 1.0
    """Voltage at which a neuron fires [1]."""
    single_spike: bool = False
    """Let each neuron fire at most once a sample."""
    adex_a: float = 0.01
    """AdEx: adaptation per voltage [1/ms^2]."""
    adex_b: float = 0.02
    """AdEx: adaptation added by a spike [1/ms]."""
    adex_tau_w: float = 200.0
    """AdEx: time constant of the adaptation [ms]."""
    adex_delta_t: float = 0.1
    """AdEx: width of the exponential, in units of the threshold [1]."""
    adex_z0: float = 0.1
    """AdEx: adaptation at the start of a sample [1/ms]."""

    # readout
    readout: Literal["count", "leaky-max", "leaky-mean", "first-spike", "step-linear", "spike-sum"] = "count"
    """What the class is read from. In space: spike counts, the maximum or mean of leaky integrators, or the first
    spike. Deep: step-linear, where the last layer integrates without spikes and each step has a vote, or spike-sum,
    the counts of spiking outputs."""
    readout_interval: int = 1
    """Readout step-linear: steps from one vote to the next [count]."""
    count_scale: float = 0.1
    """Readout spike-sum: what a spike of an output adds to the logit of its class [1]."""
    output_tau: float = 20.0
    """Time constant of the leaky readouts [ms]."""

    # weights
    weight_scale_in: float | None = None
    """Scale of the initial input weights [1]; None: such that the untrained network fires at initial_rate_hz."""
    initial_rate_hz: float = 15.0
    """Mean rate of the untrained network on the first training samples, if weight_scale_in is None [Hz]."""
    weight_scale_rec: float | None = None
    """Scale of the initial recurrent weights [1]; None: 0.35 x hidden, which is the published 35 at 100 neurons."""
    weight_scale_out: float = 1.0
    """Scale of the initial readout weights [1]."""
    constant_weights: bool = False
    """Start with equal weights in each matrix instead of random ones."""
    positive_weights: bool = False
    """Keep input and recurrent weights at or above zero."""

    # simulation
    scheme: Literal["continuous", "grid"] = "continuous"
    """Time scheme: real-valued spike times and delays, or both rounded to whole steps."""
    backend: Literal["auto", "reference", "native"] = "auto"
    """What computes the simulation: JAX (reference) or compiled kernels (native); auto: compiled where they can."""
    dt: float = 1.0
    """Time step [ms]."""
    duration: float | None = None
    """Simulated time of a sample [ms]; None: from the data."""
    max_delay: float | None = None
    """Longest delay [ms]; None: 1.25 x the longest initial delay, grown when exceeded."""
    precision: Literal["float32", "float64", "tf32", "bfloat16"] = "float32"
    """Floating-point type of the whole run; tf32 and bfloat16: float32 with dense products so rounded, in deep
    networks."""

    # training
    epochs: int = 60
    """Passes over the training samples [count]."""
    batch_size: int = 16
    """Samples an update [count]."""
    lr: float = 3e-3
    """Peak learning rate of Adam [1]."""
    delay_lr_scale: float = 30.0
    """Updates of delays and positions are this many times larger [1]; 0: they stay."""
    warmup: int = 50
    """Updates over which the learning rate rises from zero [count]."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from zero, in place of warmup if above 0 [count]."""
    decay: Literal["steps", "run"] = "steps"
    """The cosine decay of the learning rate ends at update decay_steps, or with the run."""
    decay_steps: int = 1500
    """Update at which the cosine decay of the learning rate ends, with decay steps [count]."""
    decay_to: float = 0.1
    """Fraction of the learning rate that is left at the end of the decay, in [0, 1]."""
    weight_decay: float = 1e-5
    """Weight decay [1]."""
    decoupled: bool = False
    """Weights decay beside Adam (AdamW); else weight decay is a part of the gradient that Adam gets."""
    clip: float = 2.0
    """Adaptive gradient clipping: largest ratio of gradient to parameter norm [1]; 0: off."""
    target_rate_hz: float = 15.0
    """Firing rate at which the rate penalty is zero [Hz]."""
    rate_weight: float = 50.0
    """Weight of the rate penalty in the loss [1]; 0: off."""
    population_rate: bool = False
    """Compare the mean rate of the population with the target, not the rate of each neuron."""
    sparsity: float = 0.0
    """Fraction of the input and recurrent weights that is removed while training, in [0, 1)."""
    sparsity_schedule: Literal["once", "gradual"] = "once"
    """Remove all weights at once, or a tenth more each epoch."""
    regrow: Literal["keep-zero", "published"] = "keep-zero"
    """Removed weights stay zero, or may grow again within the epoch as in the published recipe."""
    seed: int = 0
    """Seed of every random number of the run; a file is divided in the same way for all seeds."""

    # augmentation of the training samples
    augment_shift: int | None = None
    """Move each training sample by a random number of channels, at most this many either way [count]; 0: off; None: 40
    for the data set speech, else off. For a camera see augment_crop."""
    augment_jitter: float = 0.0
    """Move each training event by a normal number of channels with this standard deviation, of a camera by one of rows
    and one of columns [count]; 0: off."""
    augment_time_jitter: float = 0.0
    """Move each training event by a normal time with this standard deviation [ms]; 0: off."""
    augment_stretch: float | None = None
    """Multiply the times of each training sample by a random factor, at most this far from 1 [1]; 0: off; None: 0.1 for
    the data set speech, else off."""
    augment_drop: float = 0.0
    """Probability that a training event is left out, in [0, 1) [1]; 0: off."""
    augment_blend: float = 0.0
    """Probability that a training sample is blended with another one of its class [1]; 0: off."""
    augment_crop: int = 0
    """Event cameras: move each training sample by random numbers of rows and columns, at most this many either way, and
    leave out what leaves the sensor [count]; 0: off."""
    augment_flip: float = 0.0
    """Event cameras: probability that left and right of a training sample change places, for classes that do not differ
    in them [1]; 0: off."""

    # run folder
    out: str = "runs"
    """Folder in which the run folder is made."""
    tag: str = ""
    """Text added to the name of the run folder."""
    resume: str | None = None
    """Run folder to go on with; its options hold, only epochs, backend and stream may change."""
    overwrite: bool = False
    """Replace the run folder if it exists."""
    live: bool = False
    """Draw the positions while training (figures/live.png, and a window where there is a display)."""
    post_mortem: bool = False
    """Open the Python debugger at an unexpected error."""

    def validate(self) -> "Config":
        """Check every value and what values ask of each other.

        Returns
        -------
        Config : itself

        Raises
        ------
        RanvierError : at the first bad value
        """
        for name, annotation in TYPES.items():
            value = getattr(self, name)
            if not _is(value, annotation):
                raise _refusal(name, value, _describe(annotation))
            if name in RULES and value is not None and not RULES[name][0](value):
                raise _refusal(name, value, RULES[name][1])
        self._validate_model()
        if self.decay == "steps" and self.warmup_epochs == 0 and self.decay_steps <= self.warmup:
            raise _refusal("decay_steps", self.decay_steps, f"more than warmup, which is {self.warmup}")
        if self.resume is not None and self.overwrite:
            raise _refusal("overwrite", True, "false while resuming")
        return self

    def _validate_model(self) -> None:
        for name, models in USED_BY.items():
            if self.model not in models and getattr(self, name) != getattr(Config, name):
                raise _refusal(name, getattr(self, name), f"model {models[0]}, as model {self.model} does not use it")
        if self.readout not in READOUTS[self.model]:
            raise _refusal("readout", self.readout, f"one of {', '.join(READOUTS[self.model])} for model {self.model}")
        if self.model == "space":
            self._validate_space()
            if self.precision not in ("float32", "float64"):
                raise _refusal("precision", self.precision, "float32 or float64 for model space")
        else:
            self._validate_deep()

    def _validate_deep(self) -> None:
        from ranvier.deep_sizes import capacities, layer_sizes

        sizes = layer_sizes(self.sizes, self.depth)
        spiking = sizes[:-1] if self.readout == "step-linear" else sizes
        if not spiking:
            raise _refusal("sizes", self.sizes, "2 or more for readout step-linear, whose last layer has no spikes")
        capacities(self.max_activity, spiking)
        for name in ("near_threshold", "near_start"):
            if getattr(self, name) > self.threshold:
                raise _refusal(name, getattr(self, name), f"at most the threshold, which is {self.threshold:g}")
        if self.readout != "step-linear" and self.readout_interval != 1:
            raise _refusal("readout_interval", self.readout_interval, "readout step-linear")
        if self.readout != "spike-sum" and self.count_scale != Config.count_scale:
            raise _refusal("count_scale", self.count_scale, "readout spike-sum")

    def _validate_space(self) -> None:
        from ranvier.space import parse

        spec = parse(self.net)
        if self.match is not None:
            if spec.kind != "free":
                raise _refusal("match", self.match, f"net inf, not {self.net}")
            if not parse(self.match).has_positions:
                raise _refusal("match", self.match, "a net with positions")
        if self.fixed_inputs and not spec.has_positions:
            raise _refusal("fixed_inputs", True, f"a net with positions, not {self.net}")
        placed = parse(self.match or self.net)
        if self.layout != "random" and placed.kind != "euclidean":
            raise _refusal("layout", self.layout, f"a net with Euclidean positions, not {placed}")
        if self.layout == "circle" and placed.dim != 2:
            raise _refusal("layout", self.layout, f"a net of 2 dimensions, not {placed}")

    @classmethod
    def of(cls, model: str, **options: Any) -> "Config":
        """The defaults of a model, but for the options that are given.

        Parameters
        ----------
        model : `space` or `deep`
        options : values of fields

        Returns
        -------
        Config : not validated
        """
        return cls(**{"model": model, **DEFAULTS.get(str(model), {}), **options})

    def to_toml(self) -> str:
        """Write all options of the model as TOML; an option that is None is left out.

        Returns
        -------
        str : `from_toml` reads it back to an equal Config
        """
        import tomli_w

        used = [field.name for field in fields(self) if self.model in USED_BY.get(field.name, (self.model,))]
        values = {name: getattr(self, name) for name in used}
        return tomli_w.dumps({name: value for name, value in values.items() if value is not None})

    @classmethod
    def from_toml(cls, path: str | Path, model: str | None = None) -> "Config":
        """Read options from a TOML file; those it does not name keep the defaults of its model.

        Parameters
        ----------
        path : TOML file of `name = value` lines
        model : in place of the one that the file names

        Returns
        -------
        Config : validated

        Raises
        ------
        RanvierError : no such file, no TOML, an unknown name, a wrong type, a bad value
        """
        try:
            values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RanvierError(
                f"Config.from_toml: {path} cannot be read ({error.strerror}); needs a TOML file; check the path"
            ) from None
        except ValueError as error:  # not UTF-8, or not TOML
            reason = str(error).split("\n")[0]
            raise RanvierError(
                f"Config.from_toml: {path} is not TOML ({reason}); needs lines of the form name = value; correct it"
            ) from None
        for name in values:
            if name not in TYPES:
                raise RanvierError(
                    f"Config.from_toml: unknown option {name} in {path}; needs an option of ranvier train; "
                    f"{suggestion(name, TYPES)}"
                )
        # TOML tells 1 from 1.0; where a float is wanted both mean the same number
        values = {name: float(v) if _wants_float(name) and type(v) is int else v for name, v in values.items()}
        name = model or values.pop("model", cls.model)
        return cls.of(**{**values, "model": name}).validate()


def suggestion(name: str, known) -> str:
    """What to do about an unknown name.

    Parameters
    ----------
    name : the unknown name
    known : iterable of the known ones

    Returns
    -------
    str : `did you mean NEAREST?`, or advice to see the list
    """
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1)
    return f"did you mean {near[0]}?" if near else "see ranvier train --help"


def _is(value: Any, annotation: Any) -> bool:
    """Whether a value has a field's type: exact, but an int will do for a float; a bool is no number."""
    if typing.get_origin(annotation) is Literal:
        return value in typing.get_args(annotation)
    options = typing.get_args(annotation) or (annotation,)
    if isinstance(value, bool):
        return bool in options
    if isinstance(value, int):
        return int in options or (float in options)
    if isinstance(value, float):
        return float in options and math.isfinite(value)
    return isinstance(value, tuple(options))


def _describe(annotation: Any) -> str:
    """A field's type in words."""
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(typing.get_args(annotation))
    words = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    return " or ".join(words[option] for option in typing.get_args(annotation) or (annotation,) if option in words)


def _wants_float(name: str) -> bool:
    return float in (typing.get_args(TYPES[name]) or (TYPES[name],))


def _refusal(name: str, value: Any, needs: str) -> RanvierError:
    shown = f"'{value}'" if isinstance(value, str) else value
    return RanvierError(f"Config: {name} is {shown}; needs {needs}; set {name} or --{name.replace('_', '-')}")


Rule = tuple[Callable[[Any], bool], str]
_positive_ms: Rule = (lambda x: x > 0, "a positive number of ms")
_positive: Rule = (lambda x: x > 0, "a positive number")
_not_negative: Rule = (lambda x: x >= 0, "a number that is not negative")
_count: Rule = (lambda x: x >= 1, "a whole number of 1 or more")
_text: Rule = (lambda x: x.strip() != "", "text that is not empty")

TYPES: dict[str, Any] = typing.get_type_hints(Config)
RULES: dict[str, Rule] = {
    **dict.fromkeys(("data", "test_data", "out", "resume"), _text),
    **dict.fromkeys(
        ("limit_train", "limit_validation", "limit_test", "n_channels", "hidden", "epochs", "batch_size"), _count
    ),
    **dict.fromkeys(("downsample", "input_capacity", "readout_interval", "pieces"), _count),
    **dict.fromkeys(("alpha", "initial_activity"), (lambda x: 0 < x < 1, "a fraction in (0, 1)")),
    **dict.fromkeys(("gain", "initial_std", "surrogate_scale", "count_scale"), _positive),
    "warmup_epochs": _not_negative,
    **dict.fromkeys(("position_sigma", "tau_mem", "tau_syn", "adex_tau_w", "output_tau"), _positive_ms),
    **dict.fromkeys(("dt", "duration", "max_delay"), _positive_ms),
    **dict.fromkeys(("threshold", "adex_delta_t", "lr"), _positive),
    "initial_rate_hz": (lambda x: x > 0, "a rate in Hz above 0"),
    **dict.fromkeys(("weight_scale_in", "weight_scale_rec", "weight_scale_out", "delay_lr_scale"), _not_negative),
    **dict.fromkeys(("weight_decay", "clip", "target_rate_hz", "rate_weight", "lost_weight"), _not_negative),
    **dict.fromkeys(("delay_mu", "delay_sigma"), (lambda x: x >= 0, "a number of ms that is not negative")),
    **dict.fromkeys(
        ("warmup", "augment_shift", "augment_crop"), (lambda x: x >= 0, "a whole number that is not negative")
    ),
    **dict.fromkeys(("augment_jitter", "augment_time_jitter"), _not_negative),
    **dict.fromkeys(("augment_stretch", "augment_drop"), (lambda x: 0 <= x < 1, "a fraction in [0, 1)")),
    **dict.fromkeys(("augment_blend", "augment_flip"), (lambda x: 0 <= x <= 1, "a probability in [0, 1]")),
    "decay_steps": _count,
    "decay_to": (lambda x: 0 <= x <= 1, "a fraction in [0, 1]"),
    **dict.fromkeys(("sparsity", "sampled"), (lambda x: 0 <= x < 1, "a fraction in [0, 1)")),
    "seed": (lambda x: 0 <= x < 2**32, "a whole number in [0, 2^32)"),
    "tag": (lambda x: all(c.isalnum() or c in "._+-" for c in x), "letters, digits and . _ + - only"),
}

READOUTS = {"space": ("count", "leaky-max", "leaky-mean", "first-spike"), "deep": ("step-linear", "spike-sum")}
# Options that are not of all models, and whose they are.
USED_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        "net hidden layout fixed_inputs position_sigma delay_mu delay_sigma match neuron tau_mem tau_syn single_spike "
        "adex_a adex_b adex_tau_w adex_delta_t adex_z0 output_tau weight_scale_in initial_rate_hz weight_scale_rec "
        "weight_scale_out constant_weights positive_weights scheme backend max_delay delay_lr_scale target_rate_hz "
        "rate_weight population_rate sparsity sparsity_schedule regrow".split(),
        ("space",),
    ),
    **dict.fromkeys(
        "sizes depth alpha gain near_threshold near_schedule near_start max_activity sampled lost_weight "
        "input_capacity bias lsuv initial_std initial_activity surrogate surrogate_scale mode pieces "
        "readout_interval count_scale".split(),
        ("deep",),
    ),
}
# What a model has in place of the defaults above.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deep": {
        "recurrent": False,
        "readout": "step-linear",
        "dt": 2.0,
        "alpha": 0.98,
        "lr": 3e-3,
        "warmup": 10,
        "decay": "run",
        "decay_to": 0.02,
        "clip": 0.0,
        "weight_decay": 1e-4,
        "decoupled": True,
    },
}
