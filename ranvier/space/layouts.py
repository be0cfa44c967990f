"""Where neurons start: random, on a line, on a circle, or on a lattice."""

import math

import jax
import jax.numpy as jnp
import numpy as np

LAYOUTS = ("random", "line", "circle")


def place(layout: str, key: jax.Array, n: int, dim: int, sigma: float, dtype: jnp.dtype, *, inputs: bool) -> jax.Array:
    """Starting positions of n inputs or n neurons.

    Parameters
    ----------
    layout : str
        `random`: sigma N(0, 1). `line`: inputs evenly from -2 sigma to 2 sigma on the first axis, neurons random.
        `circle`, k = 2: evenly spaced, inputs on radius 2 sigma, neurons on radius sigma.
    key : PRNG key
    n, dim : int
        Number of points and dimension k.
    sigma : float [ms]
    dtype : dtype
    inputs : bool

    Returns
    -------
    (n, k) [ms]
    """
    if layout == "line" and inputs:
        return jnp.zeros((n, dim), dtype).at[:, 0].set(jnp.linspace(-2 * sigma, 2 * sigma, n, dtype=dtype))
    if layout == "circle":
        # Without the end point: at 2 pi the last neuron would lie on the first.
        angle = jnp.linspace(0, 2 * math.pi, n, endpoint=False, dtype=dtype)
        return (2 * sigma if inputs else sigma) * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return sigma * jax.random.normal(key, (n, dim), dtype)


def lattice(n: int, dim: int) -> np.ndarray:
    """The first n points, in C order, of the smallest cube of whole-number points that holds n, centred at 0.

        side = ceil(n^(1/k))

    Parameters
    ----------
    n : int
    dim : int
        k.

    Returns
    -------
    (n, k) float64
        Neighbours are 1 apart. Centred, so that lattices of different sides are concentric.
    """
    # The ceiling of a float root can be one too many: 3125^(1/5) is 5.000000000000001. Rounding gives the floor or the
    # ceiling, and whole numbers tell which.
    side = round(n ** (1 / dim))
    while side**dim < n:
        side += 1
    index = np.arange(n)
    points = np.empty((n, dim))
    for axis in reversed(range(dim)):
        points[:, axis] = index % side - (side - 1) / 2
        index //= side
    return points


def lattice_scale(n_in: int, n_hidden: int, dim: int, sigma: float) -> float:
    """Scale at which lattice delays are as long as random Euclidean ones.

        s = 2 sigma Gamma((k+1)/2) / Gamma(k/2) / mean_ij |p_i - q_j|_1

    The numerator is the mean distance of two points of sigma N(0, 1) in k dimensions, the mean is over inputs and
    neurons on their lattices of scale 1.

    Parameters
    ----------
    n_in, n_hidden, dim : int
    sigma : float [ms]

    Returns
    -------
    float [ms]
        sigma where the mean is 0 (one input and one neuron).
    """
    source, target = lattice(n_in, dim), lattice(n_hidden, dim)
    mean = sum(np.abs(source[:, a, None] - target[None, :, a]).mean() for a in range(dim))
    # Through logarithms: Gamma itself overflows in a few hundred dimensions.
    euclidean = 2 * sigma * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    return float(euclidean / mean) if mean > 0 else float(sigma)
