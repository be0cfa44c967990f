"""The cells by NumPy, a step at a time: the definition of what csrc/sound_kernels.cc computes, bit by bit."""

import numpy as np

SURE = np.float32(0.99999)  # highest probability a step and fibre: what is left is divided by


def advance(
    z: np.ndarray,
    key: np.ndarray,
    velocity: np.ndarray,
    first_channel: int,
    first_step: int,
    state: np.ndarray,
    silent: np.ndarray,
    recent: np.ndarray,
    spikes: np.ndarray,
    n_spikes: np.ndarray,
) -> None:
    """Eq. 45 to 47 of docs/equations.md; changes all arrays from `state` to `n_spikes`.

    Parameters
    ----------
    z : record of type cells.STEP
    key : (2,) uint32
    velocity : (C, T) float32
    first_channel, first_step : int
        Of these in the whole.
    state : (C, 6) float32
        Transmitter q, c, w; current; voltage; fibres that can fire.
    silent : (C,) int32
        Steps left in which a bushy cell cannot fire.
    recent : (C, refractory) float32
        Fibres that fired at the steps of that remainder.
    spikes : (C, capacity) int32
    n_spikes : (C,) int32
    """
    q, c, w, current, v, ready = (state[:, k].copy() for k in range(6))
    channel = np.arange(first_channel, first_channel + len(velocity), dtype=np.uint32)
    one, zero = np.float32(1), np.float32(0)
    words = None
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        for t, drive in enumerate(velocity.T):
            step = first_step + t
            if words is None or step % 4 == 0:
                words = philox(step // 4, channel, key)
            uniform = (words[step % 4] >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)

            driven = drive + z["offset"]
            k = np.where(driven > 0, z["release"] * driven / (driven + z["half"]), zero)
            released, back, again = k * q, z["take_back"] * c, z["reprocess"] * w
            p = z["fire"] * c
            p = np.where(p < SURE, p, SURE)
            q = q + (z["replenish"] * (z["pool"] - q) + again - released)
            c = c + (released - z["leave"] * c)
            w = w + (back - again)

            now = step % recent.shape[1]
            ready = ready + recent[:, now]
            n = binomial(uniform, p, ready, int(z["fibres"]))
            ready = ready - n
            recent[:, now] = n

            current = current + z["weight"] * n
            v = z["decay_mem"] * v + z["to_voltage"] * current
            current = z["decay_syn"] * current
            off = silent > 0
            v = np.where(off, zero, v)
            silent -= off
            fired = v > one
            v = np.where(fired, zero, v)
            silent[fired] = z["refractory"]
            (which,) = np.nonzero(fired)
            spikes[which, n_spikes[which]] = step
            n_spikes[which] += 1
    for k, x in enumerate((q, c, w, current, v, ready)):
        state[:, k] = x


def binomial(uniform: np.ndarray, p: np.ndarray, ready: np.ndarray, most: int) -> np.ndarray:
    """The smallest n with uniform < P(at most n of `ready` fire, each with probability p).

    Parameters
    ----------
    uniform, p, ready : (C,) float32
    most : int
        No `ready` is larger.

    Returns
    -------
    n : (C,) float32
    """
    rest = np.float32(1) - p
    square, none = rest, np.ones_like(p)
    whole = ready.astype(np.int32)
    bit = 1
    while bit <= most:
        none = np.where(whole & bit, none * square, none)
        square = square * square
        bit *= 2
    n = np.zeros_like(p)
    odds, chance, below = p / rest, none, none
    k = np.float32(0)
    while (above := (uniform >= below) & (n < ready)).any():
        n = np.where(above, n + np.float32(1), n)
        chance = chance * odds * ((ready - k) / (k + np.float32(1)))
        below = below + chance
        k += np.float32(1)
    return n


def philox(counter: int, channel: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Four random words a channel: Philox 4x32 with 10 rounds, counter (counter, channel, 0, 0).

    Parameters
    ----------
    counter : int
        In [0, 2^32).
    channel : (C,) uint32
    key : (2,) uint32

    Returns
    -------
    words : (4, C) uint32

    References
    ----------
    Salmon, Moraes, Dror, Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
    """
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    b = channel.astype(np.uint64)
    a = np.full_like(b, counter)
    c = d = np.zeros_like(b)
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        low, high = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b = (high >> half) ^ b ^ np.uint64(k0), high & mask
        c, d = (low >> half) ^ d ^ np.uint64(k1), low & mask
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([a, b, c, d]).astype(np.uint32)
