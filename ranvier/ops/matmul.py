"""Products of lists with matrices: only the rows that a list names are read."""

import jax.numpy as jnp

from ranvier.errors import RanvierError
from ranvier.ops import primitives
from ranvier.ops.spike_vector import SpikeVector, used
from ranvier.ops.ways import ways_of


def spike_matmul(
    spikes,
    matrix,
    include_near=False,
    bias=None,
    transposed=False,
    dtype=None,
    *,
    mode="sparse",
    precision="float32",
    activity=None,
):
    """Spikes times a matrix: the sum of the rows that the spikes name (docs/equations.md, 34).

        out = sum over spikes s of value[s] matrix[ids[s]] + bias
        d out = sum over spikes s of value[s] d matrix[ids[s]] + sum over spikes and near s of d value[s] matrix[ids[s]]

    Parameters
    ----------
    spikes : SpikeVector of batch shape (...) and N neurons
    matrix : (N, C) float32, float64, bfloat16 or float16; (C, N) where `transposed`
    include_near : near-threshold neurons count as spikes too
    bias : (C,) or None
    transposed : the matrix has the neurons in its second axis
    dtype : of the result; that of the sums, float32 or float64, unless given
    mode : sparse reads the rows that lists name; dense multiplies whole rows; auto takes, for this product and for each
        of its two gradients, what costs less (docs/design.md): static
    precision : of dense products, static: float32; tf32, on a GPU; or bfloat16, with sums of 32 bits
    activity : fraction of the neurons that spike, as measured, for auto, static; or two of them, the second of those
        that are on a list at all, which is twice the first unless given. None: as many as the lists have room for

    Returns
    -------
    (..., C); sums are formed in float32 where values and matrix have no more bits, else in float64

    Raises
    ------
    RanvierError
        `matrix` has not two axes of real numbers, or not as many rows as there are neurons; `bias` does not fit;
        `mode` or `precision` is another word, or less than the 64 bits of the arrays; `activity` is no fraction.

    References
    ----------
    Finkbeiner et al. 2023 (arXiv 2311.04386).
    """
    _check_spikes("spike_matmul", spikes)
    ways = ways_of("spike_matmul", mode, precision, activity)
    matrix, values = _checked("spike_matmul", spikes, spikes.value, matrix, bias, transposed)
    if values.dtype == jnp.float64 and precision != "float32":
        raise RanvierError(
            f"spike_matmul: precision is {precision} for arrays of 64 bits; needs float32, which keeps them all; "
            "leave it out, or make the arrays float32"
        )
    if include_near:
        near = used(spikes.n_listed, spikes.capacity) & ~used(spikes.n_spikes, spikes.capacity)
        values = values + near.astype(values.dtype)
    values, ids, n_spikes, n_listed = _lists(spikes, values)
    # near-threshold neurons have the value 0 otherwise: only derivatives need their rows
    count = n_listed if include_near else n_spikes
    out = primitives.gather(values, ids, count, matrix[None], n_listed, ways, transposed)
    return _finished(out, spikes, bias, dtype)


def sparse_matmul(values, spikes, matrix, bias=None, transposed=False, dtype=None):
    """Real values on the list of a spike vector times a matrix (docs/equations.md, 35).

        out = sum over spikes and near s of values[s] matrix[ids[s]] + bias

    With the tangents of `spikes.value` as values it is the derivative of `spike_matmul` in forward mode.

    Parameters
    ----------
    values : (..., S) one for each entry of the lists; what stands in slots that are not in use does not count
    spikes : SpikeVector of batch shape (...) and N neurons
    matrix : (N, C) float32, float64, bfloat16 or float16; (C, N) where `transposed`
    bias : (C,) or None
    transposed : the matrix has the neurons in its second axis
    dtype : of the result; that of the sums, float32 or float64, unless given

    Returns
    -------
    (..., C)

    Raises
    ------
    RanvierError
        `values` has not the shape of `spikes.ids`; otherwise as `spike_matmul`.
    """
    _check_spikes("sparse_matmul", spikes)
    values = jnp.asarray(values)
    if values.shape != spikes.ids.shape:
        raise RanvierError(
            f"sparse_matmul: values are {values.shape}, the lists {spikes.ids.shape}; needs one value an entry; "
            "change the shape of the values"
        )
    matrix, values = _checked("sparse_matmul", spikes, values, matrix, bias, transposed)
    values, ids, _, n_listed = _lists(spikes, values)
    out = primitives.gather(values, ids, n_listed, matrix[None], transposed=transposed)
    return _finished(out, spikes, bias, dtype)


def _check_spikes(where, spikes):
    if not isinstance(spikes, SpikeVector):
        raise RanvierError(f"{where}: spikes are {type(spikes).__name__}; needs a SpikeVector; use from_dense")


def _checked(where, spikes, values, matrix, bias, transposed):
    """The matrix and the values, in types that a kernel has."""
    matrix = jnp.asarray(matrix)
    real = jnp.issubdtype(matrix.dtype, jnp.floating)
    if matrix.ndim != 2 or not real or matrix.shape[1 if transposed else 0] != spikes.n_neurons:
        needs = f"(C, {spikes.n_neurons})" if transposed else f"({spikes.n_neurons}, C)"
        raise RanvierError(
            f"{where}: matrix is {matrix.dtype}{list(matrix.shape)}; needs real numbers {needs}; "
            f"transposed={not transposed} takes the other orientation"
        )
    columns = matrix.shape[0 if transposed else 1]
    if bias is not None and jnp.shape(bias) != (columns,):
        raise RanvierError(f"{where}: bias is {jnp.shape(bias)}; needs ({columns},); change its shape")
    exact = jnp.promote_types(jnp.promote_types(values.dtype, matrix.dtype), jnp.float32)
    if exact == jnp.float64:
        matrix = matrix.astype(exact)
    return matrix, values.astype(exact)


def _lists(spikes, values):
    """values, ids, n_spikes, n_listed with all batch axes joined: (1, R, S), (1, R)."""
    size = spikes.n_spikes.size
    lists = (1, size, spikes.capacity)
    return (
        values.reshape(lists),
        spikes.ids.reshape(lists),
        spikes.n_spikes.reshape(1, size),
        spikes.n_listed.reshape(1, size),
    )


def _finished(out, spikes, bias, dtype):
    out = out.reshape(*spikes.n_spikes.shape, out.shape[-1])
    if bias is not None:
        bias = jnp.asarray(bias).astype(out.dtype)
        out = out + bias.reshape((1,) * (out.ndim - 1) + bias.shape)
    return out if dtype is None else out.astype(dtype)
