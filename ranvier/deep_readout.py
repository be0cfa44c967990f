"""How a deep network is read: a leaky integrator over all steps at once, votes of the steps, counts of spikes."""

import jax
import jax.numpy as jnp
import numpy as np

# Steps that one product integrates. The carries between blocks are a product as well, so nothing walks through time.
BLOCK = 32


def leaky_integrator(currents: jax.Array, alpha: float, gain: float) -> jax.Array:
    """Leaky integration of all steps, without a loop over them (docs/equations.md, 38).

        u_t = alpha u_{t-1} + gain (1 - alpha) I_t,  u_0 = 0

    Parameters
    ----------
    currents : (T, ...) I_t
    alpha : () what is left after a step, in (0, 1)
    gain : () what a constant current of 1 leads to

    Returns
    -------
    (T, ...) u_t

    Notes
    -----
    The sum over earlier steps is two triangular products, one within blocks of steps and one over the ends of blocks.
    """
    steps, rest = currents.shape[0], currents.shape[1:]
    blocks = -(-steps // BLOCK)
    x = jnp.pad(currents.reshape(steps, -1), ((0, blocks * BLOCK - steps), (0, 0)))
    x = x.reshape(blocks, BLOCK, -1)
    within = _product("ts,bsk->btk", _decay(BLOCK, alpha), x)
    # What a block ends with decays by alpha^BLOCK a block; a block gets the sum of those before it.
    carry = _product("ab,bk->ak", _decay(blocks, alpha**BLOCK), within[:, -1])
    before = jnp.concatenate([jnp.zeros_like(carry[:1]), carry[:-1]])
    fade = alpha ** np.arange(1, BLOCK + 1)
    u = within + jnp.asarray(fade, x.dtype)[None, :, None] * before[:, None, :]
    return gain * (1 - alpha) * u.reshape(blocks * BLOCK, -1)[:steps].reshape(steps, *rest)


def votes(step_logits: jax.Array) -> jax.Array:
    """Class scores by majority (docs/equations.md, 39).

        z_bk = steps t with argmax_j y_tbj = k, plus half the mean over steps of softmax(y_tb)_k

    The mean probability, at most 1/2 of a vote, decides between classes with equal votes and nothing else.

    Parameters
    ----------
    step_logits : (T, B, K) y

    Returns
    -------
    (B, K) without a derivative
    """
    step_logits = jax.lax.stop_gradient(step_logits)
    chosen = jnp.argmax(step_logits, axis=-1)[..., None] == jnp.arange(step_logits.shape[-1])[None, None, :]
    # A row with a NaN keeps it: the mean probability is one, too.
    return jnp.sum(chosen, axis=0) + 0.5 * jnp.mean(jax.nn.softmax(step_logits, axis=-1), axis=0)


def _decay(n: int, alpha: float) -> np.ndarray:
    """alpha^(t - s) for s <= t, else 0: (n, n)."""
    distance = np.subtract.outer(np.arange(n), np.arange(n))
    return np.where(distance >= 0, float(alpha) ** np.maximum(distance, 0), 0.0)


def _product(axes: str, a: np.ndarray, b: jax.Array) -> jax.Array:
    return jnp.einsum(axes, jnp.asarray(a, b.dtype), b, precision=jax.lax.Precision.HIGHEST)
