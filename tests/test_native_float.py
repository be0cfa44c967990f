"""The compiled kernels in float32: no more error than twice the reference's own, over many random networks."""

from functools import cache

import numpy as np
import pytest

from ranvier import kernels
from tests import precision

pytestmark = pytest.mark.skipif(kernels.available("lif_forward") is not None, reason="no compiled library")

# The reference knows one shape, to be compiled twice only; the kernels know each network as it is.
SIZES = ((1, 1), (6, 3), (700, 8), (20, 17))
PADDED = (700, 17)
OPTIONS = {"duration": 40.0, "dt": 0.5, "longest": 20.0, "capacity": 768}
SEEDS, EVENTS = 2, 40


@cache
def networks():
    return [
        precision.draw(kind, m, n, EVENTS, OPTIONS["duration"], OPTIONS["longest"], seed)
        for kind in precision.KINDS
        for m, n in SIZES
        for seed in range(SEEDS)
    ]


@cache
def by_reference(dtype):
    cases = networks()
    found = precision.computed([precision.padded(case, *PADDED) for case in cases], "reference", dtype, **OPTIONS)
    return [precision.cropped(one, case) for one, case in zip(found, cases, strict=True)]


@cache
def by_kernels(dtype):
    return precision.by_size(networks(), "native", dtype, **OPTIONS)


def test_the_networks_are_what_they_say():
    counts = {kind: [] for kind in precision.KINDS}
    for case, one in zip(networks(), by_reference("float64"), strict=True):
        counts[case.kind].append(one["counts"].mean())
    silent = {kind for kind, means in counts.items() if max(means) == 0}
    assert silent == {"no input", "all silent"}
    assert min(max(means) for kind, means in counts.items() if kind not in silent) > 2
    assert np.median(counts["all firing"]) > 10


def test_double_is_the_reference():
    """What the comparison below stands on: in float64 both compute the same."""
    for mine, theirs in zip(by_kernels("float64"), by_reference("float64"), strict=True):
        np.testing.assert_array_equal(mine["counts"], theirs["counts"])
        for name, error in precision.errors(mine, theirs).items():
            assert error.max(initial=0.0) < 1e-9, name


def test_float_is_at_most_twice_as_far_off_as_the_reference():
    found = precision.compared(by_kernels("float32"), by_reference("float32"), by_reference("float64"))
    assert len(found.by_network) >= 0.9 * len(networks())
    for name, (mine, theirs) in found.pooled().items():
        assert len(mine) > 100, name
        for part in precision.PARTS:
            got, own = np.quantile(mine, part), np.quantile(theirs, part)
            assert got <= max(2 * own, precision.FLOOR), (name, part, got, own)
