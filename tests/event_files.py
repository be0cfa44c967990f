"""Small event recordings in the formats of the field, for tests and benchmarks; made here, nothing is recorded."""

import struct
from pathlib import Path

import numpy as np


def nmnist_bytes(x, y, polarity, us) -> bytes:
    """40-bit records."""
    x, y, p, t = (np.asarray(v, np.int64) for v in (x, y, polarity, us))
    columns = (x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255)
    return np.stack(columns, -1).astype(np.uint8).tobytes()


def random_nmnist(rng: np.random.Generator, n: int, side: int = 34) -> bytes:
    us = np.sort(rng.integers(0, 300_000, n))
    return nmnist_bytes(rng.integers(0, side, n), rng.integers(0, side, n), rng.integers(0, 2, n), us)


def nmnist_folder(root: Path, n_a_class: int = 3, n_events: int = 40, classes: int = 10, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for k in range(classes):
        (root / str(k)).mkdir(parents=True)
        for i in range(n_a_class):
            (root / str(k) / f"{i:05d}.bin").write_bytes(random_nmnist(rng, n_events))
    return root


def packet(x, y, polarity, us, *, kind=1, there=None, capacity=None, number=None, valid=None, wraps=0) -> bytes:
    """One packet of AEDAT 3.1; `there` are the valid bits, capacity adds rows of rubbish behind the events."""
    x, y, p, t = (np.asarray(v, np.uint32) for v in (x, y, polarity, us))
    there = np.ones(len(x), np.uint32) if there is None else np.asarray(there, np.uint32)
    number = len(x) if number is None else number
    capacity = len(x) if capacity is None else capacity
    valid = int(there.sum()) if valid is None else valid
    header = struct.pack("<HHIIIIII", kind, 1, 8, 4, wraps, capacity, number, valid)
    body = np.stack([(x << 17) | (y << 2) | (p << 1) | there, t], -1).astype("<u4").tobytes()
    return header + body + b"\xff" * (8 * (capacity - len(x)))


TEXT = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def random_aedat(rng: np.random.Generator, n: int, n_packets: int, side: int = 128, last_us: int = 1_000_000) -> bytes:
    us = np.sort(rng.integers(0, last_us, n))
    parts = np.array_split(np.arange(n), n_packets)
    x, y, p = rng.integers(0, side, n), rng.integers(0, side, n), rng.integers(0, 2, n)
    return TEXT + b"".join(packet(x[i], y[i], p[i], us[i]) for i in parts)


def gesture_folder(root: Path, users=(1, 2), n_events: int = 2000, gestures: int = 4, seed: int = 0) -> Path:
    """Recordings of one second a user, divided into gestures of classes 1, 2, ...; no list of trials."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for user in users:
        name = f"user{user:02d}_led"
        (root / f"{name}.aedat").write_bytes(random_aedat(rng, n_events, 5))
        step = 1_000_000 // gestures
        lines = [f"{k + 1},{k * step},{(k + 1) * step}" for k in range(gestures)]
        (root / f"{name}_labels.csv").write_text("class,startTime_usec,endTime_usec\n" + "\n".join(lines) + "\n")
    return root
