"""A task of relative timing alone, with a known answer: which pattern of delays did the channels have?

Every sample has exactly one event on each of M channels, whatever its class, so rates and counts say nothing at all.
In class k the event of channel c comes d_k(c) after a start that is drawn anew for each sample,

    t_c = EARLIEST_MS + s + d_k(c) + n_c,    s ~ U(0, START_MS),    n_c ~ N(0, JITTER_MS^2),    d_k(c) = GAP_MS pi_k(c)

with pi_k a permutation of 0, ..., M - 1: all classes use the same delays, on other channels. A neuron whose synapses
have the delays max d - d_k(c) gets all events of class k at once: that is the answer, and K such neurons are a network
that solves the task. No classifier is better on average than Bayes' rule, `posterior`: 98.4 % of new samples.
"""

import math

import numpy as np

from ranvier.data.dataset import Dataset, Splits

N_CHANNELS, N_CLASSES = 8, 10
GAP_MS, START_MS, JITTER_MS = 2.0, 20.0, 2.5
EARLIEST_MS = 5.0 * JITTER_MS  # so that no event comes before 0
TRAIN, VALIDATION, TEST = (2000, 0), (500, 1), (1000, 2)  # samples, seed


def patterns() -> np.ndarray:
    """Delay of each channel in each class.

    Returns
    -------
    (N_CLASSES, N_CHANNELS) float64 [ms]
        Always the same.
    """
    rng = np.random.default_rng(2026)
    return GAP_MS * np.stack([rng.permutation(N_CHANNELS) for _ in range(N_CLASSES)])


def times_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """Time of the event of each channel.

    Parameters
    ----------
    labels : (n,) int
    seed : int

    Returns
    -------
    (n, N_CHANNELS) float64 [ms]
        Not negative.
    """
    rng = np.random.default_rng(seed)
    start = rng.uniform(0.0, START_MS, (len(labels), 1))
    jitter = rng.normal(0.0, JITTER_MS, (len(labels), N_CHANNELS))
    return np.maximum(0.0, EARLIEST_MS + start + patterns()[labels] + jitter)


def posterior(times: np.ndarray) -> np.ndarray:
    """Logarithm of the probability of each class, up to a constant of each sample.

    With r_c = t_c - EARLIEST - d_k(c), their mean m, the sum of squares Q around it, and the normal distribution Phi,

        p(k | t) ~ exp(-Q / (2 JITTER^2)) (Phi((START - m) sqrt(M) / JITTER) - Phi(-m sqrt(M) / JITTER))

    Parameters
    ----------
    times : (n, N_CHANNELS) [ms]

    Returns
    -------
    (n, N_CLASSES)
    """
    rest = times[:, None, :] - EARLIEST_MS - patterns()[None]
    mean = rest.mean(axis=2)
    spread = ((rest - mean[:, :, None]) ** 2).sum(axis=2)
    unit = JITTER_MS * math.sqrt(2.0 / N_CHANNELS)
    erf = np.vectorize(math.erf, otypes=[float])
    possible = erf((START_MS - mean) / unit) + erf(mean / unit)
    return np.log(np.maximum(possible, 1e-300)) - spread / (2.0 * JITTER_MS**2)


def make(n: int, seed: int) -> Dataset:
    """Samples of all classes, equally many to within one.

    Parameters
    ----------
    n : int
    seed : int

    Returns
    -------
    Dataset
    """
    labels = (np.random.default_rng(seed + 1000).permutation(n) % N_CLASSES).astype(np.int32)
    times = times_of(labels, seed)
    order = np.argsort(times, axis=1, kind="stable")
    return Dataset(
        name="delays",
        times=np.take_along_axis(times, order, axis=1).ravel().astype(np.float32),
        channels=order.ravel().astype(np.int32),
        offsets=np.arange(n + 1, dtype=np.int64) * N_CHANNELS,
        labels=labels,
        n_channels=N_CHANNELS,
        class_names=tuple(f"pattern {k}" for k in range(N_CLASSES)),
    )


def load() -> Splits:
    """2,000 samples to train, 500 to validate, 1,000 to test.

    Returns
    -------
    Splits
    """
    train, validation, test = (make(*part) for part in (TRAIN, VALIDATION, TEST))
    return Splits(train, validation, test)
