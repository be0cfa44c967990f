"""The loop over time of `lif_layer`, with its derivatives, under every transformation.

Three primitives: `forward` has no derivative of its own; `tangent` is linear in what changes, and its transpose is
`backward`. `ranvier.ops.lif_reference` defines them. `forward` and `backward` are handlers of the compiled library
where that has them. Derivatives of the linear ones in what they are not linear in are those of their definitions.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ranvier import kernels
from ranvier.binding import PLATFORMS, alone, results_like, vary_alike
from ranvier.ops import lif_reference, primitives
from ranvier.ops.spike_vector import used
from ranvier.ops.spikes_from_state import with_slope


def lif_loop(currents, w_rec, decay, scale, threshold, near_threshold, before, surrogate, window=None):
    """Lists and voltages of all steps (docs/equations.md, 36), with derivatives of any order (37).

    Parameters
    ----------
    currents : (1, T, R, N) float32 or float64, as all other real numbers
    w_rec : (1, N, N), or (1, 0, N): no recurrent weights
    decay, scale, threshold, near_threshold : (N,)
    before : v, values, ids, n_spikes, n_listed of the step before the first, (1, R, N), 3 x (1, R, S), 2 x (1, R)
    surrogate : function of v - threshold
    window : (1, T, R, 2) the first of the neurons that are listed below `near_threshold` too, and how many they are, or
        None; their factor is N / how many times the surrogate

    Returns
    -------
    value, factor and ids (1, T, R, S); n_spikes, n_near, n_lost, n_near_dropped (1, T, R); v (1, R, N) of the last step
    """
    v0, values0, ids0, n_spikes0, n_listed0 = before
    parameters = jnp.stack([decay, scale, threshold, near_threshold])[None]
    operands = [currents, w_rec, parameters, v0, values0, ids0, n_spikes0, *([] if window is None else [window])]
    ids, excess, n_spikes, n_near, n_lost, n_near_dropped, fired, v_last = _forward.bind(
        *vary_alike(_fixed(operands)), capacity=ids0.shape[-1]
    )
    n_listed = n_spikes + n_near
    if window is not None:
        lowest = jax.lax.stop_gradient(near_threshold - threshold)
        far = excess <= jnp.take(lowest, ids, mode="clip")
        times = jnp.where(far, v0.shape[-1] / jnp.maximum(window[..., 1:], 1).astype(excess.dtype), 1)
        surrogate = functools.partial(_times, times, surrogate)
    surrogate, constants = jax.closure_convert(surrogate, excess)
    lists = (ids, n_spikes, n_listed, fired, ids0, n_spikes0, n_listed0)
    smooth = (currents, w_rec, decay, scale, threshold, near_threshold, v0, values0, *constants)
    excess, v_last = _derived(surrogate, *vary_alike([excess, v_last, *lists, *smooth]))
    factor = _factor(surrogate, excess, n_listed, constants)
    value = with_slope(used(n_spikes, ids.shape[-1]).astype(factor.dtype), factor, excess)
    return value, jax.lax.stop_gradient(factor), ids, n_spikes, n_near, n_lost, n_near_dropped, v_last


def _times(times, surrogate, x):
    return times * surrogate(x)


def _fixed(xs):
    return [jax.lax.stop_gradient(x) for x in xs]


def _factor(surrogate, excess, n_listed, constants):
    return jnp.where(used(n_listed, excess.shape[-1]), surrogate(excess, *constants), 0).astype(excess.dtype)


# What the loop returns, with its derivative


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _derived(surrogate, excess, v_last, *others):
    """Bare results of the loop, with the derivatives that they have in its operands."""
    del surrogate, others
    return excess, v_last


@functools.partial(_derived.defjvp, symbolic_zeros=True)
def _derived_jvp(surrogate, primals, tangents):
    # through this function again: a second derivative finds that of what the first one is made of
    excess, v_last = out = _derived(surrogate, *primals)
    ids, n_spikes, n_listed, fired, ids0, n_spikes0, n_listed0 = primals[2:9]
    currents, w_rec, decay, scale, threshold, near_threshold, v0, values0, *constants = primals[9:]
    tangents = [None if isinstance(x, SymbolicZero) else x for x in tangents]
    d_currents, d_w_rec, d_decay, d_scale, d_threshold, _, d_v0, d_values0 = tangents[9:17]
    recurrent, n_lists = w_rec.shape[1] > 0, n_listed.size
    factor = _factor(surrogate, excess, n_listed, constants)

    def sums(matrix):
        """What the spikes of the step before bring to each step through a matrix, (1, T, R, N)."""
        value = with_slope(used(n_spikes, ids.shape[-1]).astype(factor.dtype), factor, excess)
        lists = ((values0, value), (ids0, ids), (n_spikes0, n_spikes), (n_listed0, n_listed))
        every = (jnp.concatenate([x[:, None], y], axis=1)[:, :-1] for x, y in lists)
        values, named, count, reach = (x.reshape(1, n_lists, *x.shape[3:]) for x in every)
        return primitives.gather(values, named, count, matrix, reach).reshape(currents.shape)

    if d_w_rec is not None and recurrent:
        d_currents = _sum(d_currents, sums(d_w_rec))
    if d_decay is not None or d_scale is not None:
        # Both change voltages as currents do, but for the scale: the walk is then one with a scale of 1.
        arrived = currents + sums(w_rec) if recurrent else currents
        parameters = jnp.stack([decay, scale, threshold, near_threshold])[None]
        kept = lif_reference.kept(arrived, parameters, v0, fired)
        terms = ((d_currents, scale), (kept, d_decay), (arrived, d_scale))
        terms = [x * y.reshape(1, 1, 1, *y.shape) for x, y in terms if x is not None and y is not None]
        d_currents = functools.reduce(jnp.add, terms)
        w_rec, scale = w_rec * scale[None, None], jnp.ones_like(scale)
    d_offset = None
    if d_threshold is not None:
        lists = (ids.reshape(1, n_lists, ids.shape[-1]), n_listed.reshape(1, n_lists))
        one = jnp.ones((1, n_lists, 1), factor.dtype)
        d_offset = -primitives.dots(*lists, d_threshold[None, :, None], one).reshape(ids.shape)

    linear = [d_currents, d_offset, d_v0, d_values0 if recurrent else None]
    given = tuple(x is not None for x in linear)
    if not any(given):
        return out, (jnp.zeros_like(excess), jnp.zeros_like(v_last))
    parameters = jnp.stack([decay, scale, threshold, near_threshold])[None]
    operands = [ids, n_listed, factor, fired, w_rec, parameters, jax.lax.stop_gradient(v0), ids0, n_listed0]
    operands += [x for x in linear if x is not None]
    return out, tuple(_tangent.bind(*vary_alike(operands), given=given))


def _sum(x, y):
    return y if x is None else x + y


# How they are computed


def _primitive(name, definition, shapes, n_operands=None):
    """`n_operands`: of the handler of that name, if there is one; one more goes to the handler NAME_sampled."""
    primitive = Primitive(f"ranvier_ops_{name}")
    primitive.multiple_results = True
    primitive.def_impl(lambda *operands, **options: alone(primitive, tuple(sorted(options.items())))(*operands))
    primitive.def_abstract_eval(lambda *avals, **options: results_like(shapes(*avals, **options), avals))
    by_reference = mlir.lower_fun(definition, multiple_results=True)
    mlir.register_lowering(primitive, by_reference)

    def lower(platform, ctx, *operands, **options):
        handler = f"ops_{name}" if len(operands) == n_operands else f"ops_{name}_sampled"
        # the last result is a number for each neuron or slot, and all results together have every axis
        dtype = ctx.avals_out[-1].dtype
        empty = any(0 in aval.shape for aval in ctx.avals_out)
        if empty or not kernels.compiled(handler, dtype, platform):
            return by_reference(ctx, *operands, **options)
        kernels.register()
        return jax.ffi.ffi_lowering(kernels.target(handler, dtype))(ctx, *operands)

    for platform in PLATFORMS if n_operands else ():
        mlir.register_lowering(primitive, functools.partial(lower, platform), platform=platform)
    return primitive


def _shapes_forward(currents, w_rec, parameters, v0, values0, ids0, n_spikes0, window=None, *, capacity):
    q, t, r, n = currents.shape
    whole, real = jnp.dtype(jnp.int32), currents.dtype
    counts = [((q, t, r), whole)] * 4
    fired = ((q, t, r, lif_reference.n_words(n)), jnp.dtype(jnp.uint32))
    return [((q, t, r, capacity), whole), ((q, t, r, capacity), real), *counts, fired, (v0.shape, real)]


def _with_zeros(ids, n_listed, factor, fired, w_rec, parameters, v0, ids0, n_listed0, *linear, given):
    """The definition of tangents, of which those not given are 0."""
    shapes = ((*n_listed.shape, v0.shape[-1]), ids.shape, v0.shape, ids0.shape)
    linear = iter(linear)
    linear = [next(linear) if there else jnp.zeros(x, factor.dtype) for x, there in zip(shapes, given, strict=True)]
    _, *linear = vary_alike([factor, *linear])
    return lif_reference.tangent(ids, n_listed, factor, fired, w_rec, parameters, v0, ids0, n_listed0, *linear)


def _shapes_tangent(ids, n_listed, factor, fired, w_rec, parameters, v0, *others, given):
    return [(ids.shape, factor.dtype), (v0.shape, factor.dtype)]


def _shapes_backward(ids, n_listed, factor, fired, w_rec, parameters, v0, ids0, *others):
    shapes = ((*n_listed.shape, v0.shape[-1]), ids.shape, v0.shape, ids0.shape)
    return [(shape, factor.dtype) for shape in shapes]


_forward = _primitive("lif_forward", lif_reference.forward, _shapes_forward, n_operands=7)
_tangent = _primitive("lif_tangent", _with_zeros, _shapes_tangent)
_backward = _primitive("lif_backward", lif_reference.backward, _shapes_backward, n_operands=11)


# How they are differentiated

# Operands of `tangent` and of `backward` that they are not linear in.
_FIXED = 9


def _linear_jvp(primitive, definition, primals, tangents, **options):
    """Derivatives in the last operands are the primitive; those in others, which second derivatives need, are of the
    definition."""
    out = primitive.bind(*primals, **options)
    tangents = [ad.instantiate_zeros(x) if k >= _FIXED else x for k, x in enumerate(tangents)]
    moved = [k for k, x in enumerate(tangents) if type(x) is not ad.Zero]
    if moved[0] >= _FIXED:
        return out, primitive.bind(*vary_alike([*primals[:_FIXED], *tangents[_FIXED:]]), **options)

    def of_moved(*some):
        every = list(primals)
        for k, x in zip(moved, some, strict=True):
            every[k] = x
        return definition(*every, **options)

    return out, jax.jvp(of_moved, [primals[k] for k in moved], [tangents[k] for k in moved])[1]


def _transposed_tangent(cotangents, *operands, given):
    fixed, linear = operands[:_FIXED], operands[_FIXED:]
    every = [None] * len(given)
    if any(type(x) is not ad.Zero for x in cotangents):
        every = _backward.bind(*vary_alike([*fixed, *map(ad.instantiate_zeros, cotangents)]))
    some = [x for x, there in zip(every, given, strict=True) if there]
    return [*[None] * _FIXED, *_for_unknown(linear, some)]


def _transposed_backward(cotangents, *operands):
    fixed, linear = operands[:_FIXED], operands[_FIXED:]
    given = tuple(type(x) is not ad.Zero for x in cotangents)
    some = [None] * len(linear)
    if any(given):
        of_some = [x for x, there in zip(cotangents, given, strict=True) if there]
        some = _tangent.bind(*vary_alike([*fixed, *of_some]), given=given)
    return [*[None] * _FIXED, *_for_unknown(linear, some)]


def _for_unknown(operands, cotangents):
    """Cotangents of the operands that a transpose asks for; None stands for 0."""
    return [
        None if not ad.is_undefined_primal(x) else ad.Zero(x.aval) if ct is None else ct
        for x, ct in zip(operands, cotangents, strict=True)
    ]


ad.primitive_jvps[_tangent] = functools.partial(_linear_jvp, _tangent, _with_zeros)
ad.primitive_jvps[_backward] = functools.partial(_linear_jvp, _backward, lif_reference.backward)
ad.primitive_transposes[_tangent] = _transposed_tangent
ad.primitive_transposes[_backward] = _transposed_backward


# How they are batched

# Where R is in each operand; None: all samples of a group share it.
_IN_FORWARD = (2, None, None, 1, 1, 1, 1, 2)
_IN_FIXED = (2, 2, 2, 2, None, None, 1, 1, 1)


def _batch(primitive, places_in, places_out, operands, dims, **options):
    """One call for all entries of a mapped axis V, which becomes part of R, or where operands that samples share are
    mapped, of Q."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    places = places_in(**options)[: len(operands)]
    groups = any(place is None and d is not None for place, d in zip(places, dims, strict=True))

    def join(x, d, place):
        if place is None and not groups:
            return x
        at = 0 if groups or place is None else place
        x = jnp.expand_dims(x, at) if d is None else jnp.moveaxis(x, d, at)
        x = jnp.broadcast_to(x, (*x.shape[:at], size, *x.shape[at + 1 :]))
        return x.reshape(*x.shape[:at], size * x.shape[at + 1], *x.shape[at + 2 :])

    # Q or R of one entry: where V has length 0, the result does not tell it
    k = next(k for k, place in enumerate(places) if place is not None)
    shape = [n for axis, n in enumerate(operands[k].shape) if axis != dims[k]]
    length = shape[0 if groups else places[k]]
    joined = [join(*x) for x in zip(operands, dims, places, strict=True)]
    out = primitive.bind(*vary_alike(joined), **options)
    ats = [0 if groups else place for place in places_out]
    split = [x.reshape(*x.shape[:at], size, length, *x.shape[at + 1 :]) for x, at in zip(out, ats, strict=True)]
    return split, ats


def _places_tangent(given):
    return (*_IN_FIXED, *(place for place, there in zip((2, 2, 1, 1), given, strict=True) if there))


batching.primitive_batchers[_forward] = functools.partial(
    _batch, _forward, lambda capacity: _IN_FORWARD, (2, 2, 2, 2, 2, 2, 2, 1)
)
batching.primitive_batchers[_tangent] = functools.partial(_batch, _tangent, _places_tangent, (2, 1))
batching.primitive_batchers[_backward] = functools.partial(_batch, _backward, lambda: (*_IN_FIXED, 2, 1), (2, 2, 1, 1))
