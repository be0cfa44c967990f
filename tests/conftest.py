"""Strict JAX for every test, on the CPU unless RANVIER_TEST_PLATFORM names another platform."""

import os

# Before JAX is imported. Programs are compiled as users compile them where no `quick_compiler` is asked for; only
# threads inside one operation are left out: they make sums depend on the machine. A compilation cache on disk would let
# one run hide what another one compiled.
os.environ["JAX_PLATFORMS"] = os.environ.get("RANVIER_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
os.environ["MPLBACKEND"] = "agg"

import jax
import pytest

jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)


@pytest.fixture
def x64():
    """64-bit numbers for one test."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def quick_compiler():
    """XLA leaves out what it can, for files whose programs are compiled once and then run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
