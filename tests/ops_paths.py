"""The cases of the sparse operators for `tests/kernel_paths.py`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ranvier import kernels
from ranvier.ops import primitives, sparse_matmul, spike_matmul, spikes_from_state


@dataclass(frozen=True)
class Case:
    name: str
    n_lists: int = 5
    n: int = 13
    columns: int = 7
    capacity: int = 9
    dtype: str = "float32"
    of_matrix: str = ""  # type, where it is another one
    active: float = 0.3  # part of the neurons that fire; as many again are near the threshold
    networks: int = 0  # a matrix each
    own_lists: bool = True  # of each network; otherwise all share one set
    every_threshold: bool = False  # one for each neuron of each list
    transposed: bool = False  # matrices are (columns, n)


CASES = (
    Case("ops float32"),
    Case("ops float32 whole pieces", n=16, columns=8, capacity=16),
    Case("ops float32 wide", n=37, columns=301, capacity=21),
    Case("ops float32 wide whole pieces", n=37, columns=300, capacity=21),
    Case("ops float64", dtype="float64", every_threshold=True),
    Case("ops float64 wide", dtype="float64", n=21, columns=131, capacity=11),
    Case("ops bfloat16", of_matrix="bfloat16", columns=21),
    Case("ops bfloat16 wide whole pieces", of_matrix="bfloat16", columns=264),
    Case("ops float16", of_matrix="float16", columns=131),
    Case("ops bfloat16 networks", of_matrix="bfloat16", networks=3, every_threshold=True),
    Case("ops transposed", n=131, columns=70, capacity=31, transposed=True),
    # too much to be turned round as a whole on a GPU
    Case("ops transposed large", n=2100, columns=2100, capacity=131, active=0.03, transposed=True),
    Case("ops transposed few entries", n=300, columns=9, capacity=13, active=0.02, transposed=True),
    Case("ops transposed one of everything", n_lists=1, n=1, columns=1, capacity=1, active=1.0, transposed=True),
    Case("ops transposed float64 many lists", dtype="float64", n_lists=301, n=37, columns=17, transposed=True),
    Case("ops transposed bfloat16 networks", of_matrix="bfloat16", networks=2, n=33, columns=35, transposed=True),
    Case("ops one of everything", n_lists=1, n=1, columns=1, capacity=1, active=1.0),
    Case("ops silent", active=0.0),
    Case("ops full", capacity=13, active=1.0),
    Case("ops over-full", capacity=3, active=1.0),
    Case("ops room to spare", n=67, capacity=131, active=0.5),
    Case("ops networks", networks=3),
    Case("ops networks float64 shared lists", networks=2, dtype="float64", own_lists=False),
    Case("ops networks many lists", networks=2, n_lists=301, n=7, columns=3, capacity=3),
    Case("ops many lists", n_lists=301, n=19, columns=5, capacity=7),
    Case("ops very many lists", n_lists=1301, n=7, columns=3, capacity=3),
    Case(
        "ops very many lists float64 over-full", n_lists=1301, n=7, columns=4, capacity=2, dtype="float64", active=1.0
    ),
)


def states(case, lists):
    """Shuffled rows (*lists, N) of which each has its part of spikes (above 1) and of near neurons (above 0.5)."""
    fired = round(case.active * case.n)
    levels = np.full(case.n, 0.2)
    levels[: 2 * fired] = 0.7
    levels[:fired] = 1.3
    return np.random.default_rng(0).permuted(np.broadcast_to(levels, (*lists, case.n)), axis=-1)


def run(case):
    """Forward and backward of both products, and lists that are none; returns the listed spikes of each network."""
    rng = np.random.default_rng(1)
    of_matrix = case.of_matrix or case.dtype
    own, shared = (case.networks,) if case.networks else (), (case.n_lists,)
    lists = (*own, *shared) if case.own_lists else shared
    state = jnp.asarray(states(case, lists), case.dtype)
    matrix = jnp.asarray(rng.uniform(0.5, 1.5, (*own, *shape_of_matrix(case))), of_matrix)
    threshold = jnp.ones((case.n_lists, case.n) if case.every_threshold else (), case.dtype)
    platform = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
    way = "_turned" if case.transposed else ""
    names = (
        (f"gather{way}", of_matrix),
        (f"dots{way}", of_matrix),
        (f"scatter{way}", case.dtype),
        ("spikes", case.dtype),
    )
    for name, dtype in names:
        assert kernels.compiled(f"ops_{name}", jnp.dtype(dtype), platform), f"ops_{name} is not compiled"

    def loss(state, matrix, threshold):
        spikes = spikes_from_state(state, threshold, 0.5 * threshold, case.capacity)
        # of the spikes, with derivatives that reach further; of all that is listed
        turned = {"transposed": case.transposed}
        products = spike_matmul(spikes, matrix, **turned) * sparse_matmul(1.0 + spikes.value, spikes, matrix, **turned)
        return products.sum(), spikes.n_spikes.sum()

    gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
    if case.networks:
        gradient = jax.vmap(gradient, (0 if case.own_lists else None, 0, None))
    derivatives, spikes = gradient(state, matrix, threshold)
    for x in derivatives:
        x = np.asarray(x, np.float64)
        assert np.isfinite(x).all() and x.any() == (case.active > 0), case.name
    beside(case, rng)
    expected = case.n_lists * min(round(case.active * case.n), case.capacity)
    assert (np.asarray(spikes) == expected).all(), case.name
    return np.atleast_1d(spikes)


def shape_of_matrix(case):
    return (case.columns, case.n) if case.transposed else (case.n, case.columns)


def beside(case, rng):
    """Ids that name no row and counts that are none: memory beside the arrays must stay unread and unwritten."""
    q, r, s, n, c = max(case.networks, 1), case.n_lists, case.capacity, case.n, case.columns
    ids = rng.choice([0, n - 1, -1, n, 2**31 - 1, -(2**31)], (q, r, s)).astype(np.int32)
    count = rng.choice([-(2**31), -3, 0, s - 1, s, s + 5, 2**31 - 1], (q, r)).astype(np.int32)
    values, g = (jnp.ones(shape, case.dtype) for shape in ((q, r, s), (q, r, c)))
    matrix = jnp.ones((q, *shape_of_matrix(case)), case.of_matrix or case.dtype)
    ids, count = jnp.asarray(ids), jnp.asarray(count)
    way = {"transposed": case.transposed}
    of_lists = (
        primitives.gather(values, ids, count, matrix, **way),
        primitives.scatter(values, ids, count, g, n, **way),
    )
    for x in (*of_lists, primitives.dots(ids, count, matrix, g, **way)):
        assert np.isfinite(x).all(), case.name
