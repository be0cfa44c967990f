"""The Yin-Yang task: three classes of points in a disc, one spike a coordinate."""

import numpy as np

from ranvier.data.dataset import Dataset, Splits

NAMES = ("yin", "yang", "dot")
# (samples, seed) of the published sets.
TRAIN, VALIDATION, TEST = (5000, 42), (1000, 41), (1000, 40)
# Radius of the dots, and of the disc (whose centre is (R_BIG, R_BIG)).
R_SMALL, R_BIG = 0.1, 0.5


def points(n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and classes of the Yin-Yang data set.

    A class is drawn first, then points in the square until one lies in the disc and is of that class. With d_r, d_l the
    distances to (1.5 r_big, r_big) and (0.5 r_big, r_big):

        dot  : d_r < r_small or d_l < r_small
        yang : d_r <= r_small or r_small < d_l <= 0.5 r_big or (y > r_big and d_r > 0.5 r_big)
        yin  : the rest

    Parameters
    ----------
    n_samples : int
    seed : int
        Of NumPy's `RandomState`; the published sets have 42 (train, 5000), 41 (validation, 1000), 40 (test, 1000).

    Returns
    -------
    features : (n_samples, 4) float64
        x, y, 1 - x, 1 - y.
    labels : (n_samples,) int64

    References
    ----------
    Kriener, Goeltz, Petrovici (2021), The Yin-Yang dataset, doi 10.1145/3517343.3517380; MIT licence.
    """
    rng = np.random.RandomState(seed)
    features = np.empty((n_samples, 4))
    labels = np.empty(n_samples, np.int64)
    for n in range(n_samples):
        goal = rng.randint(3)
        while True:
            x, y = rng.rand(2) * 2.0 * R_BIG
            inside = np.hypot(x - R_BIG, y - R_BIG) <= R_BIG
            if inside and _which_class(x, y) == goal:
                break
        features[n] = x, y, 1 - x, 1 - y
        labels[n] = goal
    return features, labels


def _which_class(x: float, y: float) -> int:
    d_r = np.hypot(x - 1.5 * R_BIG, y - R_BIG)
    d_l = np.hypot(x - 0.5 * R_BIG, y - R_BIG)
    if d_r < R_SMALL or d_l < R_SMALL:
        return 2
    return int(d_r <= R_SMALL or R_SMALL < d_l <= 0.5 * R_BIG or (y > R_BIG and d_r > 0.5 * R_BIG))


def encode(features: np.ndarray, labels: np.ndarray, *, t_early: float = 0.1, t_late: float = 4.1) -> Dataset:
    """One spike a feature, the later the larger.

        t = t_early + value (t_late - t_early)

    The defaults are those of the published spatial networks: 0.1 ms + 4 ms value, in a run of 12 ms with
    tau_syn = 2 ms. In units of tau_syn that is 0.05 to 2.05, close to the 0.15 to 2.0 of Goeltz et al. (2021).

    Parameters
    ----------
    features : (n, M)
        In [0, 1].
    labels : (n,) int
    t_early, t_late : () [ms]

    Returns
    -------
    Dataset
        M channels; n M events.

    References
    ----------
    arXiv 2512.10011 (2025), Yin-Yang task, and its code; Goeltz et al. (2021), Fast and energy-efficient neuromorphic
    deep learning with first-spike times.
    """
    n_samples, n_channels = features.shape
    times = t_early + features * (t_late - t_early)
    order = np.argsort(times, axis=1, kind="stable")
    return Dataset(
        name="yinyang",
        times=np.take_along_axis(times, order, axis=1).ravel().astype(np.float32),
        channels=order.ravel().astype(np.int32),
        offsets=np.arange(n_samples + 1, dtype=np.int64) * n_channels,
        labels=labels.astype(np.int32),
        n_channels=n_channels,
        class_names=NAMES,
    )


def load() -> Splits:
    """The published Yin-Yang sets: 5,000 samples to train, 1,000 to validate, 1,000 to test.

    Returns
    -------
    Splits
    """
    train, validation, test = (encode(*points(*which)) for which in (TRAIN, VALIDATION, TEST))
    return Splits(train, validation, test)
