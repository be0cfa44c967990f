"""A network that is small enough to train in a test."""

from ranvier.config import Config

# The grid scheme compiles fast; nothing in training depends on the scheme.
TOY = Config(
    hidden=6,
    net="2",
    position_sigma=2.0,
    weight_scale_in=30.0,
    weight_scale_rec=5.0,
    weight_scale_out=3.0,
    scheme="grid",
    dt=1.0,
    epochs=3,
    batch_size=8,
    lr=2e-2,
    warmup=0,
    delay_lr_scale=2.0,
    target_rate_hz=100.0,
)
