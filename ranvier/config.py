"""`Config`: every option of a training run, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    # data
    data: str = "speech"
    test_data: str | None = None
    limit_train: int | None = None
    limit_validation: int | None = None
    limit_test: int | None = None
    # network in space
    net: str = "3"
    hidden: int = 100
    recurrent: bool = True
    layout: str = "random"  # random | line | circle
    fixed_inputs: bool = False
    position_sigma: float = 20.0  # ms
    delay_mu: float = 8.0  # ms, free delays
    delay_sigma: float = 1.0  # ms
    match: str | None = None  # spec of a spatial network whose initial delays a free-delay network takes over
    # neuron
    neuron: str = "lif"  # lif | adex
    tau_mem: float = 10.0  # ms
    tau_syn: float = 2.0  # ms
    threshold: float = 1.0
    single_spike: bool = False
    adex_a: float = 0.01
    adex_b: float = 0.02
    adex_tau_w: float = 200.0  # ms
    adex_delta_t: float = 0.1
    adex_z0: float = 0.1  # initial adaptation
    # readout
    readout: str = "count"  # count | leaky-max | leaky-mean | first-spike
    output_tau: float = 20.0  # ms, leaky readouts
    # weights
    weight_scale_in: float | None = None  # None: 400 x {3, 10, 50} by hidden size
    weight_scale_rec: float = 35.0
    weight_scale_out: float = 1.0
    constant_weights: bool = False
    positive_weights: bool = False
    # simulation
    scheme: str = "continuous"  # continuous | grid
    dt: float = 1.0  # ms
    duration: float | None = None  # ms, None: from the data
    max_delay: float | None = None  # ms, None: 1.25 x the longest initial delay, grown when exceeded
    precision: str = "float32"  # float32 | float64
    # training
    epochs: int = 20
    batch_size: int = 32
    lr: float = 1e-3
    delay_lr_scale: float = 10.0
    warmup: int = 500  # updates
    decay_steps: int = 10_000
    decay_to: float = 0.1
    weight_decay: float = 1e-5
    clip: float = 2.0  # adaptive gradient clipping, 0: off
    target_rate_hz: float = 10.0
    rate_weight: float = 1.0
    population_rate: bool = False
    sparsity: float = 0.0  # fraction of weights removed
    sparsity_schedule: str = "once"  # once | gradual
    regrow: str = "keep-zero"  # keep-zero | published
    seed: int = 0
    # run folder
    out: str = "runs"
    tag: str = ""
    resume: str | None = None
    overwrite: bool = False
    live: bool = False
    post_mortem: bool = False
