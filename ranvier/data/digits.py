"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, as events.

Reference: Alpaydin, Kaynak (1998), Optical recognition of handwritten digits, UCI machine learning repository, its test
part; CC BY 4.0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ranvier.data import images
from ranvier.data.dataset import Dataset, Splits
from ranvier.data.splits import PARTS, stratified
from ranvier.errors import RanvierError

# Of the division and of the permutation of the pixels: fixed, so that results can be compared.
SEED = 0
SHARES = (0.6, 0.2, 0.2)


def permutation() -> np.ndarray:
    """The order of the pixels in `digits-permuted`.

    Returns
    -------
    (64,) int64
    """
    return np.random.default_rng(SEED).permutation(64)


def load(name: str = "digits") -> Splits:
    """The digits, divided 60 : 20 : 20, stratified by class.

    Parameters
    ----------
    name : str
        `digits`: by latency. `digits-rate`: by rate. `digits-rows`: row after row. `digits-permuted`: row after row
        with the pixels in one random order.

    Returns
    -------
    Splits

    Raises
    ------
    RanvierError
        If scikit-learn, or what it needs itself, is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-not-found]
    except ImportError as error:
        lacking = (error.name or "sklearn").partition(".")[0]
        package = "scikit-learn" if lacking == "sklearn" else lacking
        needed = f"the package {package}" + ("" if lacking == "sklearn" else ", which scikit-learn imports")
        raise RanvierError(
            f"data.load: got {name} without its images ({error}); needs {needed}; pip install {package}"
        ) from None
    bunch: Any = load_digits()
    encode: dict[str, Callable[..., Dataset]] = {
        "digits": images.by_latency,
        "digits-rate": partial(images.by_rate, seed=SEED),
        "digits-rows": images.by_row,
        "digits-permuted": partial(images.by_row, order=permutation()),
    }
    whole = encode[name](bunch.images / 16.0, bunch.target, name=name)
    parts = stratified(whole.labels, SHARES, SEED)
    train, validation, test = (whole.subset(part) for part in parts)
    index: dict[str, np.ndarray] = dict(zip(PARTS, parts, strict=True))
    return Splits(train, validation, test, index=index)
