"""Packed spike trains: a 1 ms grid, delta coded, compressed.

Every event becomes the key `step * n_channels + channel`; the keys of a sample are sorted and replaced by their
differences, which are small because many channels fire in each millisecond. The differences are stored as byte planes
(all low bytes, then all next bytes), so that the compressor sees like beside like. Order of the arrays in the file:
n_channels, deltas (P, S) uint8, counts, labels, speaker, class names as UTF-8 lines; each in NumPy's own format, all
of it in one zlib stream. Two events of one channel and millisecond stay two events (a difference of 0).
"""

import io
import zlib
from pathlib import Path

import numpy as np

from ranvier.data.dataset import Dataset
from ranvier.errors import RanvierError

STEP_MS = 1.0


def pack(path: Path, dataset: Dataset) -> None:
    """Write `dataset` with its times rounded down to whole milliseconds.

    Parameters
    ----------
    path : Path
    dataset : Dataset
        With `speaker`.

    Raises
    ------
    RanvierError
        If times and channels are too many for 32-bit keys, or the data set has no speakers.
    """
    if dataset.speaker is None or (dataset.latest / STEP_MS + 1) * dataset.n_channels > 2**32:
        raise RanvierError(
            f"pack: got {dataset.name} with {dataset.n_channels} channels up to {dataset.latest} ms; "
            "needs speakers and channels x ms <= 2^32; shorten the samples or add speakers"
        )
    step = np.floor(dataset.times.astype(np.float64) / STEP_MS).astype(np.int64)
    counts = np.diff(dataset.offsets)
    key = step * dataset.n_channels + dataset.channels
    key = key[np.lexsort((key, np.repeat(np.arange(len(counts)), counts)))]
    delta = np.diff(key, prepend=0)
    first = dataset.offsets[:-1][counts > 0]
    delta[first] = key[first]
    n_planes = max(1, (int(delta.max(initial=0)).bit_length() + 7) // 8)
    planes = np.stack([(delta >> (8 * p)) & 255 for p in range(n_planes)]).astype(np.uint8)
    names = np.frombuffer("\n".join(dataset.class_names).encode(), np.uint8)
    buffer = io.BytesIO()
    for array in (np.array(dataset.n_channels), planes, counts, dataset.labels, dataset.speaker, names):
        np.save(buffer, array, allow_pickle=False)
    path.write_bytes(zlib.compress(buffer.getvalue(), 9))


def unpack(path: Path, name: str) -> Dataset:
    """Read what `pack` wrote; each time is the centre of its millisecond.

        t = step + 1/2

    Parameters
    ----------
    path : Path
    name : str
        Of the data set.

    Returns
    -------
    Dataset
    """
    buffer = io.BytesIO(zlib.decompress(path.read_bytes()))
    n_channels, planes, counts, labels, speaker, names = (np.load(buffer, allow_pickle=False) for _ in range(6))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    delta = np.zeros(planes.shape[1], np.uint32)
    for p, plane in enumerate(planes):
        delta |= plane.astype(np.uint32) << np.uint32(8 * p)
    # Keys restart at each sample: a running sum over everything, less what it was where the sample began. The sum may
    # exceed 32 bits; the difference of two such sums does not, and unsigned numbers wrap to it.
    total = np.concatenate([np.zeros(1, np.uint32), np.cumsum(delta, dtype=np.uint32)])
    key = total[1:] - np.repeat(total[offsets[:-1]], counts)
    step = key // np.uint32(n_channels)
    channel = key - step * np.uint32(n_channels)
    return Dataset(
        name=name,
        times=(step.astype(np.float32) + np.float32(0.5)) * np.float32(STEP_MS),
        channels=channel.astype(np.int32),
        offsets=offsets,
        labels=labels.astype(np.int32),
        n_channels=int(n_channels),
        class_names=tuple(names.tobytes().decode().split("\n")),
        speaker=speaker.astype(np.int32),
    )
