"""What every JAX primitive of ours needs beside its kernel: calls outside of `jit`, results varying as operands do."""

import functools

import jax
from jax.core import ShapedArray

# JAX's names of the platforms that handlers may exist for.
PLATFORMS = ("cpu", "cuda")


@functools.cache
def alone(primitive, options):
    """The primitive outside of every `jit`."""
    return jax.jit(functools.partial(primitive.bind, **dict(options)))


def results_like(shapes, operands):
    """Abstract results, which vary over the same axes of `jax.shard_map` as the operands."""
    like = operands[0]
    if any(x.mat.varying != like.mat.varying for x in operands):
        raise AssertionError("operands must vary over the same manual axes")
    if not like.mat.varying:
        return [ShapedArray(shape, dtype) for shape, dtype in shapes]
    mesh = like.sharding.mesh
    out = []
    for shape, dtype in shapes:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*[None] * len(shape)))
        out.append(like.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding))
    return out


def vary_alike(xs):
    """Operands that all vary over the same axes of devices; the transpose of this cast is the sum over them."""
    varying = [jax.typeof(x).mat.varying for x in xs]
    every = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(sorted(every - has)), to="varying") if every - has else x
        for x, has in zip(xs, varying, strict=True)
    ]
