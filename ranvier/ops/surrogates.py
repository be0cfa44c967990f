"""Surrogate derivatives of a spike: functions of x = v - threshold that stand for the derivative of a step at x = 0.

Any function of an array that returns an array of the same shape can be used in their place.
"""

import jax.numpy as jnp


def super_spike(beta=10.0):
    """SuperSpike: 1/(beta |x| + 1)^2.

    Parameters
    ----------
    beta : () how fast it falls off on both sides of the threshold

    Returns
    -------
    function of x (...), voltage above threshold

    References
    ----------
    Zenke and Ganguli 2018; beta 10 as in Finkbeiner et al. 2023.
    """

    def factor(x):
        return 1.0 / jnp.square(beta * jnp.abs(x) + 1.0)

    return factor


def fast_sigmoid(slope=25.0):
    """Derivative of the fast sigmoid x/(1 + slope |x|): 1/(1 + slope |x|)^2.

    The curve of `super_spike`, under the name and with the slope that other libraries know it by.

    Parameters
    ----------
    slope : () how fast it falls off on both sides of the threshold

    Returns
    -------
    function of x (...), voltage above threshold

    References
    ----------
    Zenke and Vogels 2021.
    """
    return super_spike(slope)


def arctan(alpha=2.0):
    """Derivative of 1/2 + arctan(pi alpha x/2)/pi: (alpha/2)/(1 + (pi alpha x/2)^2).

    Parameters
    ----------
    alpha : () twice the height at the threshold; the area is 1

    Returns
    -------
    function of x (...), voltage above threshold

    References
    ----------
    Fang et al. 2021.
    """

    def factor(x):
        return 0.5 * alpha / (1.0 + jnp.square(0.5 * jnp.pi * alpha * x))

    return factor


def triangular(width=1.0):
    """A triangle of height 1: max(0, 1 - |x|/width).

    Parameters
    ----------
    width : () where it reaches 0 on both sides of the threshold

    Returns
    -------
    function of x (...), voltage above threshold

    References
    ----------
    Esser et al. 2016.
    """

    def factor(x):
        return jnp.maximum(0.0, 1.0 - jnp.abs(x) / width)

    return factor
