"""`spike_layer`: the product of a layer for all steps at once, and its neurons over time."""

from ranvier.ops.lif_layer import lif_layer
from ranvier.ops.matmul import spike_matmul


def spike_layer(
    spikes, w_in, w_rec=None, *, bias=None, mode="auto", precision="float32", activity=None, alpha, capacity, **options
):
    """A layer of LIF neurons that lists of spikes reach through a matrix (docs/equations.md, 34 and 36).

        I_t = sum over spikes s of step t of w_in[ids[s]] + bias        v_t and lists: those of `lif_layer`

    The products of all T steps are one, sparse or dense; recurrent weights are read sparsely, step by step.

    Parameters
    ----------
    spikes : SpikeVector of batch shape (T, ...) and M neurons
    w_in : (M, N) float32, float64, bfloat16 or float16, source first
    w_rec : (N, N) or None
    bias : (N,) or None, a current in each step
    mode, precision, activity : as `spike_matmul` takes them, for the product with `w_in`
    alpha, capacity : as `lif_layer` takes them
    **options : of `lif_layer`: gain, threshold, near_threshold, surrogate, sampled, key, state

    Returns
    -------
    (SpikeVector of batch shape (T, ...), LIFState of the last step)

    Raises
    ------
    RanvierError
        As `spike_matmul` and `lif_layer` do.

    References
    ----------
    Finkbeiner et al. 2023 (arXiv 2311.04386).
    """
    currents = spike_matmul(spikes, w_in, bias=bias, mode=mode, precision=precision, activity=activity)
    return lif_layer(currents, w_rec, alpha=alpha, capacity=capacity, **options)
