"""Sound to events: each stage against its definition, the kernel against NumPy, broken files, whole folders."""

import csv
import math
import os
import runpy
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from ranvier import data, kernels
from ranvier.data import hdf5
from ranvier.data.dataset import Dataset
from ranvier.data.hdf5_writer import write
from ranvier.data.sound import cells_reference, cochlea, encode_folder, files, folder, mel_crossings, membrane, read
from ranvier.data.sound.cells import CALL, Cells, Parameters
from ranvier.errors import RanvierError

ROOT = Path(__file__).parent.parent
NATIVE = kernels.plain("ranvier_sound_cells") is not None
assert NATIVE or os.environ.get("RANVIER_REQUIRE_NATIVE") != "1", "the compiled library has no cochlea"
RATE = membrane.VELOCITY_RATE
FEW = {"channels": 32, "margin_ms": 10.0}


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.count(";") >= 2, "what was got; what is needed; what to do"
    return message


def noise(seconds: float = 0.05, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(seconds * rate))


# Random numbers -------------------------------------------------------------------------------------------------------


def test_generator_gives_the_published_numbers():
    words = cells_reference.philox(0, np.zeros(1, np.uint32), np.zeros(2, np.uint32))
    assert [f"{x:08x}" for x in words[:, 0]] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_how_many_fibres_fire_is_binomial():
    """The smallest n with U < P(N <= n), by exact sums, away from the jumps."""
    rng = np.random.default_rng(1)
    size = 400
    p = rng.choice([0.0, 1e-4, 0.01, 0.2, 0.7, 0.99999], size).astype(np.float32)
    ready = rng.choice([0, 1, 7, 39, 40], size).astype(np.float32)
    uniform = rng.uniform(0, 1, size).astype(np.float32)
    n = cells_reference.binomial(uniform, p, ready, 40)
    compared = 0
    for u, chance, most, got in zip(uniform, p, ready, n, strict=True):
        below, k = 0.0, -1
        while k < most and u >= below:
            k += 1
            below += math.comb(int(most), k) * float(chance) ** k * (1 - float(chance)) ** (int(most) - k)
            if abs(u - below) < 1e-4:
                break
        else:
            assert got == k
            compared += 1
    assert compared > 350 and n.max() > 20


# Cells ----------------------------------------------------------------------------------------------------------------


def drive(channels: int, steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    loud = 10.0 ** rng.uniform(-1, 4, (channels, 1))
    return (loud * rng.standard_normal((channels, steps))).astype(np.float32)


def by_loops(velocity: np.ndarray, p: Parameters, fibres: int, seed: int) -> list[list[int]]:
    """Eq. 45 to 47 by plain loops in float64: one channel after the other, every fibre by itself."""
    dt, ms = 1.0 / RATE, 1000.0 / RATE
    decay_syn, decay_mem = math.exp(-ms / p.tau_syn), math.exp(-ms / p.tau_mem)
    to_voltage = (decay_mem - decay_syn) * p.tau_syn * p.tau_mem / (p.tau_mem - p.tau_syn)
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    out = []
    for channel, row in enumerate(velocity):
        q, c, w = p.at_rest()
        current = v = 0.0
        last, silent_until, spikes = [-100] * fibres, -1, []
        for t, s in enumerate(map(float, row)):
            k = p.release * max(0.0, s + p.offset) / (s + p.offset + p.half) if s + p.offset > 0 else 0.0
            chance = min(p.fire * dt * c, 0.99999)
            q, c, w = (
                q + dt * (p.replenish * (p.pool - q) + p.reprocess * w - k * q),
                c + dt * (k * q - (p.lose + p.take_back) * c),
                w + dt * (p.take_back * c - p.reprocess * w),
            )
            words = cells_reference.philox(t // 4, np.array([channel], np.uint32), key)
            uniform = int(words[t % 4, 0] >> 8) / 2**24
            can = [f for f in range(fibres) if t - last[f] >= RATE // 1000]
            n, below = 0, (1 - chance) ** len(can)
            while uniform >= below and n < len(can):
                n += 1
                below += math.comb(len(can), n) * chance**n * (1 - chance) ** (len(can) - n)
            for f in can[:n]:
                last[f] = t
            current += p.weight * n
            v = decay_mem * v + to_voltage * current
            current *= decay_syn
            if t <= silent_until:
                v = 0.0
            if v > 1.0:
                spikes.append(t)
                v, silent_until = 0.0, t + RATE // 1000
        out.append(spikes)
    return out


def run(velocity: np.ndarray, native: bool | None, *, fibres: int = 40, seed: int = 7, pieces: tuple[int, ...] = ()):
    p = Parameters()
    cells = Cells(len(velocity), velocity.shape[1], p.each_step(RATE, fibres), p.at_rest(), seed, native)
    ends = [*pieces, velocity.shape[1]]
    for begin, end in zip([0, *pieces], ends, strict=True):
        cells.advance(np.ascontiguousarray(velocity[:, begin:end]), 0, begin)
    return cells


def test_cells_are_what_plain_loops_say():
    velocity = drive(6, 400)
    expected = by_loops(velocity, Parameters(), 40, 7)
    cells = run(velocity, native=False)
    got = [list(row[:n]) for row, n in zip(cells.spikes, cells.n_spikes, strict=True)]
    # A float32 voltage at the threshold may fall on the other side; a spike that differs changes what follows.
    assert sum(map(len, expected)) > 10
    assert sum(a == b for a, b in zip(got, expected, strict=True)) >= 5


@pytest.mark.skipif(not NATIVE, reason="no compiled cochlea")
@pytest.mark.parametrize(("channels", "fibres", "pieces"), [(33, 40, (1, 66, 67, 131)), (16, 1, ()), (1, 1000, (64,))])
def test_the_kernel_has_the_bits_of_numpy(channels, fibres, pieces):
    velocity = drive(channels, 301)
    a, b = (run(velocity, native, fibres=fibres, pieces=pieces) for native in (True, False))
    for name in ("spikes", "n_spikes", "state", "silent", "recent"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.n_spikes.any() == (fibres > 1) and a.recent.any()


def test_silence_stands_still_and_channels_are_independent():
    cells = run(np.zeros((3, 50), np.float32), None)
    np.testing.assert_allclose(cells.state[:, :3], [Parameters().at_rest()] * 3, rtol=1e-5)
    velocity = drive(20, 200)
    whole, p = run(velocity, None), Parameters()
    part = Cells(20, 200, p.each_step(RATE, 40), p.at_rest(), 7)
    part.advance(np.ascontiguousarray(velocity[16:]), 16, 0)
    np.testing.assert_array_equal(part.spikes[16:], whole.spikes[16:])
    assert part.n_spikes[:16].sum() == 0


def test_call_is_laid_out_as_in_cpp():
    """Offsets that a C++ compiler gives the members of csrc/sound_call.h on 64-bit machines."""
    assert CALL.itemsize == 160 and CALL.fields is not None
    assert [CALL.fields[x][1] for x in ("key", "channels", "velocity", "n_spikes")] == [60, 72, 112, 152]


# Membrane -------------------------------------------------------------------------------------------------------------


def test_transfer_is_the_formula_with_the_integral_by_small_steps():
    from scipy.special import hankel2

    frequency = np.array([150.0, 1_000.0, 5_000.0])
    w = 2 * np.pi * frequency
    fine = np.linspace(0, 0.9, 40_001)
    u = np.exp(-1.5 * fine)[:, None]
    xi = 1e9 * u**2 - 3500 - w**2 * 0.05 + 1j * w * 0.15 * np.sqrt(1e9 * 0.05) * u
    g = w * np.sqrt(1 / (0.1 * xi))
    total = 2 / 3 * g[0] + ((g[1:] + g[:-1]) / 2).sum(axis=0) * (fine[1] - fine[0])
    p = np.sqrt(total / g[-1]) * hankel2(0, total) / hankel2(0, 2 / 3 * g[0])
    z = hankel2(0, 2 / 3 * g[0])
    z = z / (g[0] * hankel2(1, 2 / 3 * g[0]) + 1j * w / 34_300 * z)
    for causal, wave in ((True, p / xi[-1]), (False, np.conj(p / xi[-1]))):
        expected = 45.8 * 1j * w**2 * z * wave
        np.testing.assert_allclose(membrane.transfer(np.array([0.9]), frequency, causal)[0], expected, rtol=1e-6)
    assert not membrane.transfer(np.array([0.9]), np.zeros(1), True).any()


def test_channels_of_tones():
    """A tone moves one place most, high frequencies near the base: 2 % of the length around the known places."""
    size = np.abs(membrane.transfer(membrane.places(700), np.array([400.0, 800, 1600, 3200, 6400]), False))
    np.testing.assert_allclose(size.argmax(axis=0), [524, 428, 334, 244, 157], atol=14)


def test_blocks_of_sound_make_the_response_of_the_whole():
    """Eight places, a sound longer than a block, against one transform of everything."""
    sound = noise(0.6, membrane.RATE)
    n = 2**16
    frequency = np.fft.rfftfreq(n, 1 / membrane.RATE)
    for causal in (False, True):
        response = membrane.transfer(membrane.places(8), frequency, causal)
        expected = np.fft.irfft(response * np.fft.rfft(sound, n), n)[:, : len(sound) : 2]
        got = np.full(expected.shape, np.nan, np.float32)
        for step, channel, velocity in membrane.membrane(8, causal).velocities(sound):
            got[channel : channel + len(velocity), step : step + velocity.shape[1]] = velocity
        error = np.sqrt(((got - expected) ** 2).mean(axis=1) / (expected**2).mean(axis=1))
        # The first place has its resonance at half the rate, where a response that ends has to ring.
        assert (error < [0.1, *[0.01] * 7]).all()


# Both encoders --------------------------------------------------------------------------------------------------------


def test_cochlea_is_sorted_seeded_and_the_same_by_numpy():
    times, channels = cochlea(noise(), 16_000, **FEW)
    assert times.dtype == np.float32 and channels.dtype == np.int32 and len(times) > 10
    assert (np.diff(times) >= 0).all() and 0 <= channels.min() <= channels.max() < 32
    assert times.max() <= 70 and np.array_equal(times, np.round(times * 24) / np.float32(24))
    for same in (cochlea(1e-3 * noise(), 16_000, **FEW), cochlea(noise(), 16_000, **FEW, native=False)):
        np.testing.assert_array_equal(same[0], times)
        np.testing.assert_array_equal(same[1], channels)
    assert not np.array_equal(cochlea(noise(), 16_000, **FEW, seed=1)[0], times)


def test_silence_and_the_wave_before_and_after_the_sound():
    quiet = sum(len(cochlea(np.zeros(8_000), 16_000, seed=seed, channels=100)[0]) for seed in range(3))
    assert 100 < quiet < 200  # 560 a second in 700 channels: 144
    tone = np.sin(2 * np.pi * 150 * np.arange(3_200) / 16_000)
    middle = {c: np.median(cochlea(tone, 16_000, channels=100, causal=c)[0]) for c in (False, True)}
    assert middle[True] - middle[False] > 15


def test_mel_crossings_are_those_of_plain_loops():
    rng = np.random.default_rng(0)
    height = np.round(np.cumsum(rng.normal(0, 1.3, (60, 3)), axis=0), 1)
    from ranvier.data.sound.mel import _crossings

    times, channels = _crossings(height, np.arange(60.0))
    expected = []
    for band in range(3):
        for t in range(59):
            a, b = height[t, band], height[t + 1, band]
            for line in range(-99, 99):
                if a < line <= b:
                    expected.append((t + (line - a) / (b - a), 2 * band))
                if b < line <= a:
                    expected.append((t + (a - line) / (a - b), 2 * band + 1))
    expected.sort()
    np.testing.assert_allclose(times, [x for x, _ in expected], atol=1e-5)
    assert sorted(zip(times.round(3), channels, strict=True)) == [
        (np.float32(round(np.float32(x), 3)), c)
        for x, c in sorted(expected, key=lambda e: (round(np.float32(e[0]), 3), e[1]))
    ]


def test_mel_of_a_tone():
    """Silence, tone, silence: as many steps down as up, most in the band of the tone; twice as loud is the same."""
    tone = np.sin(2 * np.pi * 1_000 * np.arange(4_000) / 16_000)
    times, channels = mel_crossings(tone, 16_000, bands=32)
    assert (np.diff(times) >= 0).all() and channels.max() < 64
    np.testing.assert_array_equal(np.bincount(channels[channels % 2 == 0] // 2), np.bincount(channels // 2) / 2)
    # 32 bands from 60 Hz on; 1,000 mel is 1,000 Hz.
    top = 2595 * np.log10(1 + 8_000 / 700)
    assert abs(np.bincount(channels // 2).argmax() - (top - 1_000) / ((top - 97) / 33)) < 3
    np.testing.assert_array_equal(mel_crossings(2 * tone, 16_000, bands=32)[0], times)


@pytest.mark.parametrize("encoder", [cochlea, mel_crossings])
@pytest.mark.parametrize(
    ("sound", "rate", "changes"),
    [
        (np.zeros((3, 2)), 16_000, {}),
        (np.zeros(0), 16_000, {}),
        (np.array(["a"]), 16_000, {}),
        (np.array([0, np.nan]), 16_000, {}),
        (np.zeros(9), 0, {}),
        (np.zeros(9), 8_000.5, {}),
        (np.zeros(9), 8_000, {"margin_ms": -1.0}),
        (np.zeros(9), 8_000, {"ramp_ms": math.nan}),
        (np.zeros(9), 8_000, {"rms": 0.0}),
    ],
)
def test_bad_sound_is_refused(encoder, sound, rate, changes):
    with pytest.raises(RanvierError) as error:
        encoder(sound, rate, **changes)
    assert encoder.__name__ in one_line(error)


@pytest.mark.parametrize(
    ("encoder", "changes"),
    [
        (cochlea, {"channels": 0}),
        (cochlea, {"channels": 2.5}),
        (cochlea, {"seed": -1}),
        (cochlea, {"fibres": 0}),
        (cochlea, {"fibres": 5_000}),
        (cochlea, {"margin_ms": 1e7}),
        (mel_crossings, {"bands": 0}),
        (mel_crossings, {"step_db": 0.0}),
        (mel_crossings, {"step_db": 1e-9}),
        (mel_crossings, {"floor_db": 1.0}),
        (mel_crossings, {"high_hz": 9_000.0}),
        (mel_crossings, {"hop_ms": 100.0}),
    ],
)
def test_bad_options_are_refused(encoder, changes):
    with pytest.raises(RanvierError) as error:
        encoder(noise(), 16_000, **changes)
    one_line(error)


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "float64", "two channels"])
def test_wav_of_every_kind(tmp_path, kind):
    sound = np.clip(0.3 * noise(), -1, 1)
    scale = {"uint8": 127, "int16": 32_767, "int32": 2**31 - 1}.get(kind)
    stored = sound.astype(kind) if kind.startswith("float") else sound
    if scale:
        stored = (np.round(sound * scale) + (128 if kind == "uint8" else 0)).astype(kind)
    if kind == "two channels":
        stored = np.stack([2 * sound, 0 * sound], axis=1)
    wavfile.write(tmp_path / "a.WAV", 16_000, stored)
    got, rate = read(tmp_path / "a.WAV")
    assert rate == 16_000
    np.testing.assert_allclose(got, sound, atol=0.02 if kind == "uint8" else 1e-4)


def test_broken_files_are_refused_by_name(tmp_path, monkeypatch):
    good = tmp_path / "good.wav"
    wavfile.write(good, 8_000, (1e4 * noise(0.02, 8_000)).astype(np.int16))
    content = good.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(300):
        broken = bytearray(content)
        for at in rng.integers(0, 60 if i % 2 else len(broken), rng.integers(1, 9)):
            broken[at] = rng.integers(256)
        bad = tmp_path / "bad.wav"
        bad.write_bytes(bytes(broken[: rng.integers(1, len(broken))] if i % 3 == 0 else broken))
        try:
            sound, rate = read(bad)
        except RanvierError as error:
            assert "bad.wav" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert np.isfinite(sound).all() and sound.ndim == 1 and len(sound) and rate > 0
    assert refused > 100
    (tmp_path / "a.mp3").write_bytes(b"")
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for name, words in (("a.mp3", "convert"), ("none.wav", "no such file"), ("a.flac", r"ranvier[sound]")):
        with pytest.raises(RanvierError) as error:
            read(tmp_path / name)
        assert words in one_line(error) and name in str(error.value)


def test_flac(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    sound = np.clip(0.3 * noise(), -1, 1)
    soundfile.write(tmp_path / "a.flac", sound, 16_000)
    got, rate = files.read(tmp_path / "a.flac")
    assert rate == 16_000
    np.testing.assert_allclose(got, sound, atol=1e-4)
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    with pytest.raises(RanvierError):
        files.read(tmp_path / "a.flac")


# Folders --------------------------------------------------------------------------------------------------------------


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, 8_000, (3_000 * noise(0.03, 8_000, seed)).astype(np.int16))


def test_folder_with_labels_by_folder_and_by_name(tmp_path):
    for i, name in enumerate(("10/a.wav", "9/b.wav", "10/deep/c.wav", "2_anna_0.wav", "9_bob_1.wav")):
        put(tmp_path / "in" / name, i)
    (tmp_path / "in" / "9" / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "in" / "notes.txt").write_text("not a sound")
    seen = []
    done = encode_folder(tmp_path / "in", tmp_path / "out.h5", jobs=2, progress=lambda *x: seen.append(x), **FEW)
    assert [x[:2] for x in seen] == [(k, 6) for k in range(1, 7)]
    assert len(done.errors) == 1 and "broken.wav" in done.errors[0]
    assert (done.n_samples, done.n_channels, list(done.paths.values())) == (5, 32, [tmp_path / "out.h5"])
    assert done.seconds == pytest.approx(0.15)
    dataset, _ = hdf5.read(tmp_path / "out.h5")
    assert dataset.class_names == ("2", "9", "10") and done.n_events == len(dataset.times)
    assert dataset.labels.tolist() == [2, 2, 0, 1, 1] and dataset.speaker.tolist() == [0, 0, 1, 0, 2]
    # Number of threads and company change nothing, and a file alone has the events it has among others.
    (tmp_path / "in" / "9" / "broken.wav").unlink()
    encode_folder(tmp_path / "in", tmp_path / "again.h5", jobs=1, **FEW)
    again, _ = hdf5.read(tmp_path / "again.h5", n_channels=32)
    np.testing.assert_array_equal(again.times, dataset.times)
    np.testing.assert_array_equal(again.channels, dataset.channels)
    assert len(data.load(tmp_path / "again.h5", n_channels=32).train) == 3


def test_work_that_was_cut_short_goes_on(tmp_path, monkeypatch):
    for i in range(4):
        put(tmp_path / "in" / f"{i % 2}_{i}.wav", i)
    calls = []

    def counted(*arguments, channels=32, seed=0, margin_ms=50.0):
        calls.append(1)
        return cochlea(*arguments, channels=channels, seed=seed, margin_ms=margin_ms)

    monkeypatch.setitem(folder.ENCODERS, "cochlea", counted)

    def stop(finished, total, name):
        if finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_folder(tmp_path / "in", tmp_path / "out.h5", jobs=1, progress=stop, **FEW)
    assert not (tmp_path / "out.h5").exists() and (tmp_path / ".out.h5.work").is_dir()
    kept = sorted((tmp_path / ".out.h5.work").glob("*.npz"))
    assert len(kept) >= 2
    kept[0].write_bytes(b"cut")  # as by a full disk
    before = len(calls)
    done = encode_folder(tmp_path / "in", tmp_path / "out.h5", jobs=1, **FEW)
    # One call of each tries the options on a little silence.
    assert len(calls) - before == 1 + 4 - (len(kept) - 1)
    assert done.n_samples == 4 and not (tmp_path / ".out.h5.work").exists()


def test_manifest_with_splits_and_mel(tmp_path):
    put(tmp_path / "one.wav", 0)
    put(tmp_path / "two.wav", 1)
    lines = [
        ("path", "label", "speaker", "split"),
        ("one.wav", "yes", "anna", "train"),
        ("two.wav", "no", "bob", "test"),
    ]
    with open(tmp_path / "m.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    done = encode_folder(tmp_path / "m.csv", tmp_path / "out.h5.gz", encoder="mel", classes=("yes", "no"), bands=16)
    assert {k: p.name for k, p in done.paths.items()} == {"train": "out_train.h5.gz", "test": "out_test.h5.gz"}
    dataset, _ = hdf5.read(done.paths["test"], n_channels=32)
    assert dataset.class_names == ("yes", "no") and dataset.labels.tolist() == [1] and dataset.speaker.tolist() == [1]


def test_what_cannot_be_encoded_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "unlabelled" / "a.wav", 0)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1_a.wav").write_bytes(b"RIFF")
    put(tmp_path / "good" / "1_a.wav", 0)
    manifests = {
        "columns": "file,label\na,b\n",
        "hole": "path,label\na.wav,\n",
        "twice": "path,label\na.wav,1\na.wav,2\n",
    }
    for name, text in manifests.items():
        (tmp_path / f"{name}.csv").write_text(text)
    for source, options in [
        *((tmp_path / name, {}) for name in ("none", "empty", "unlabelled", "bad")),
        *((tmp_path / f"{name}.csv", {}) for name in manifests),
        (tmp_path / "good", {"encoder": "ear"}),
        (tmp_path / "good", {"jobs": 0}),
        (tmp_path / "good", {"bands": 3}),
        (tmp_path / "good", {"channels": 0}),
        (tmp_path / "good", {"classes": ("2",)}),
    ]:
        with pytest.raises(RanvierError) as error:
            encode_folder(source, tmp_path / "out.h5", **({"channels": 32} | options))
        one_line(error)
        assert not (tmp_path / "out.h5").exists()


# The writer, and the program that speaks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.h5", "a.h5.gz"])
def test_writer_and_reader(tmp_path, name):
    rows = [[1.5, 2.0], [], [3.0, 999.0]]  # two rows of one length, one empty
    times = np.concatenate(rows).astype(np.float32)
    offsets = np.array([0, 2, 2, 4])
    dataset = Dataset(
        "x", times, np.array([3, 0, 1, 2], np.int32), offsets, np.array([0, 1, 0], np.int32), 4, ("ä", "b")
    )
    for kind, error in (("float16", 0.25), ("float32", 1e-4)):
        write(
            tmp_path / name,
            dataset,
            speaker=[4, 4, 5],
            extra={"meta_info/gender": np.array(["f", "m", "f"])},
            times=kind,
        )
        got, _ = hdf5.read(tmp_path / name, n_channels=4)
        np.testing.assert_allclose(got.times, times, atol=error)
        assert got.class_names == ("ä", "b") and got.speaker.tolist() == [4, 4, 5]
        for field in ("channels", "offsets", "labels"):
            np.testing.assert_array_equal(getattr(got, field), getattr(dataset, field))
    first = (tmp_path / name).read_bytes()
    for changes in ({"keys": ("a",)}, {"speaker": [1]}, {"times": "float64"}):
        with pytest.raises(RanvierError) as caught:
            write(tmp_path / name, dataset, **changes)
        one_line(caught)
    for broken in (Dataset("x", -times, *list(vars(dataset).values())[2:]), dataset.subset([0, 2])):
        with pytest.raises(RanvierError):
            write(tmp_path / name, broken, speaker=[4, 4, 5])
    with pytest.raises(RanvierError) as caught:
        write(tmp_path / name / "b.h5", dataset)
    assert (tmp_path / name).read_bytes() == first and os.listdir(tmp_path) == [name]


def test_speech_set_with_a_program_that_hums(tmp_path, monkeypatch, capsys):
    main = runpy.run_path(str(ROOT / "tools/speech_set.py"))["main"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(tmp_path / "a.h5")]) == 2
    assert "apt install espeak-ng" in capsys.readouterr().err
    sound = (8_000 * np.sin(np.arange(900) * 0.3)).astype(np.int16)
    wavfile.write(tmp_path / "hum.wav", 22_050, np.concatenate([np.zeros(50, np.int16), sound]))
    program = tmp_path / "espeak-ng"
    # Arguments: -v VOICE -p PITCH -s SPEED -w FILE WORD
    program.write_text(f'#!/bin/sh\n/bin/cat "{tmp_path}/hum.wav" > "$8"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    assert main([str(tmp_path / "a.h5"), "--digits", "1", "--takes", "2", "--encoder", "mel", "--jobs", "2"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "5/48" and lines[-1] == "48/48" and len(lines) == 10, "no terminal: a line for each tenth"
    train, _ = hdf5.read(tmp_path / "a_train.h5")
    test, _ = hdf5.read(tmp_path / "a_test.h5")
    assert train.n_channels == test.n_channels == 128
    assert train.class_names == test.class_names == ("zero", "null") and len(train) == 20 and len(test) == 28
    assert set(test.speaker.tolist()) - set(train.speaker.tolist()) == {10, 11}
