"""Spaces before training."""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from ranvier.errors import RanvierError
from ranvier.space.embeddings import at_least_zero
from ranvier.space.layouts import LAYOUTS, lattice_scale, place
from ranvier.space.parameters import Space
from ranvier.space.spec import Spec, parse


def init_space(
    spec: str | Spec,
    key: jax.Array,
    n_in: int,
    n_hidden: int,
    *,
    recurrent: bool = True,
    shared_source: bool = False,
    layout: str = "random",
    position_sigma: float = 20.0,
    delay_mu: float = 8.0,
    delay_sigma: float = 1.0,
    dtype: jnp.dtype | str | type = "float32",
) -> Space:
    """Space of a layer before training.

        free       d = N(mu, sigma_d), 0 where that is negative
        euclidean  x = sigma N(0, 1), or the layout;  e = 0
        lattice    scale = 2 sigma Gamma((k+1)/2) / Gamma(k/2) / mean |p_i - q_j|_1;  origins = 0;  e = 0

    Clipping a free delay moves it to the nearest one that can be; an absolute value would also lengthen it.
    e = 0 is the middle of the slack, where its derivative is largest, and leaves the geometry undistorted.
    The scale makes the mean lattice delay of the inputs equal to the mean distance of two random positions of width
    sigma in k dimensions, so the two kinds start with comparable delays (sigma where that mean is 0: one input, one
    neuron).

    Parameters
    ----------
    spec : str or Spec
        See `parse`.
    key : PRNG key
    n_in, n_hidden : int
        M sources, N neurons.
    recurrent : bool
        Whether the neurons have synapses among themselves.
    shared_source : bool
        The sources are neurons of another layer, whose positions are passed to `d_in`; none are made here. A layer of
        spiking outputs is `init_space(spec, key, n_hidden, n_out, recurrent=False, shared_source=True)`.
    layout : str
        `random`; `line`: inputs evenly from -2 sigma to 2 sigma on the first axis, neurons random; `circle`, in 2-D:
        inputs evenly spaced on radius 2 sigma, neurons on radius sigma.
    position_sigma : float [ms]
        sigma.
    delay_mu, delay_sigma : float [ms]
        mu and sigma_d of free delays.
    dtype : dtype
        A floating type.

    Returns
    -------
    Space

    Raises
    ------
    RanvierError
        On a bad spec, counts below 1, an unknown layout or one that does not fit the spec, sigma that is not positive
        (sigma_d: negative), a type that is not floating or needs 64-bit numbers that are switched off.
    """
    spec = parse(spec)
    _check_layout(spec, layout, shared_source)
    n_in, n_hidden = _checked_count("n_in", n_in), _checked_count("n_hidden", n_hidden)
    position_sigma = _checked_number("position_sigma", position_sigma, 20)
    delay_mu, delay_sigma = _checked_number("delay_mu", delay_mu, 8), _checked_number("delay_sigma", delay_sigma, 1)
    if position_sigma <= 0:
        raise RanvierError(f"init_space: got position_sigma {position_sigma}; needs a width > 0 in ms; try 20")
    if delay_sigma < 0:
        raise RanvierError(f"init_space: got delay_sigma {delay_sigma}; needs a width >= 0 in ms; try 1")
    float_type = _checked_dtype(dtype)

    key_in, key_rec = jax.random.split(key)
    keys: dict[str, jax.Array] = {"in": key_in, "rec": key_rec}
    shapes = {"in": (n_in, n_hidden)} | ({"rec": (n_hidden, n_hidden)} if recurrent else {})
    params = {}
    if spec.kind == "free":
        for end, shape in shapes.items():
            params[f"d_{end}"] = at_least_zero(delay_mu + delay_sigma * jax.random.normal(keys[end], shape, float_type))
    elif spec.kind == "euclidean":
        if not shared_source:
            params["x_in"] = place(layout, keys["in"], n_in, spec.dim, position_sigma, float_type, inputs=True)
        params["x_rec"] = place(layout, keys["rec"], n_hidden, spec.dim, position_sigma, float_type, inputs=False)
    elif spec.kind == "lattice":
        params["scale"] = jnp.asarray(lattice_scale(n_in, n_hidden, spec.dim, position_sigma), float_type)
        if not shared_source:
            params["origin_in"] = jnp.zeros((spec.dim,), float_type)
        params["origin_rec"] = jnp.zeros((spec.dim,), float_type)
    # Slack of amount 0 (the only way to a lattice without slack) has nothing to train.
    if spec.slack:
        params |= {f"e_{end}": jnp.zeros(shape, float_type) for end, shape in shapes.items()}
    return Space(spec, params, n_in, n_hidden, recurrent, float_type.name)


def _check_layout(spec: Spec, layout: str, shared_source: bool) -> None:
    if layout not in LAYOUTS:
        raise RanvierError(f"init_space: got layout {layout!r}; needs one of {', '.join(LAYOUTS)}; choose one")
    if layout == "random":
        return
    if spec.kind != "euclidean":
        raise RanvierError(
            f"init_space: got layout {layout!r} with the spec {spec}; needs Euclidean positions, as in 2 or 2e0.1; "
            "use layout 'random'"
        )
    if shared_source:
        raise RanvierError(
            f"init_space: got layout {layout!r} for a space that shares its sources; needs inputs to lay out; "
            "use layout 'random'"
        )
    if layout == "circle" and spec.dim != 2:
        raise RanvierError(
            f"init_space: got layout 'circle' in {spec.dim} dimensions; needs 2; use a spec such as 2 or 2e0.1"
        )


def _checked_count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise RanvierError(f"init_space: got {name} {value!r}; needs a whole number >= 1; pass the number of neurons")
    return count


def _checked_number(name: str, value: float, example: float) -> float:
    # A Python float: a NumPy float64 would widen float32 parameters.
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RanvierError(f"init_space: got {name} {value!r}; needs a finite number of ms; try {example}")
    return number


def _checked_dtype(dtype: jnp.dtype | str | type) -> np.dtype:
    try:
        result = jnp.dtype(dtype)
    except TypeError:
        result = None
    if result is None or not jnp.issubdtype(result, jnp.floating):
        raise RanvierError(f"init_space: got dtype {dtype}; needs a floating type; use float32 or float64")
    if result.itemsize == 8 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise RanvierError(
            "init_space: got dtype float64 while JAX has 64-bit numbers off; needs them on; "
            "call jax.config.update('jax_enable_x64', True) first"
        )
    return result
