"""The derivative of a spike count (docs/equations.md, 16)."""

import jax
import jax.numpy as jnp

# Step [ms] at which the published networks sum the surrogate: dt / UNIT makes the sum independent of dt.
UNIT = 0.5


@jax.custom_jvp
def count(spikes, over, weight):
    """`spikes` of a step; its derivative is weight / (1 + |over|)^2 for `over`, the voltage above threshold.

    SuperSpike with beta 1 (Zenke and Ganguli 2018), without a second threshold.
    """
    del over, weight
    return spikes


@count.defjvp
def _count_jvp(primals, tangents):
    spikes, over, weight = primals
    return spikes, weight * tangents[1] / jnp.square(1.0 + jnp.abs(over))
