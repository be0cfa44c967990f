"""Make a set of spoken digits as events, like the shipped one: espeak-ng speaks, the cochlea model listens.

    python tools/speech_set.py OUT.h5

Writes OUT_train.h5 and OUT_test.h5 in the layout of the Spiking Heidelberg Digits: 20 classes (0 to 9 in English, then
in German), 12 voices, pitch and speed drawn for every take. Ten voices have three takes in the training set and one in
the test set, two voices are in the test set alone, with four. The same seed speaks the same sounds.

Needs the program espeak-ng (Debian, Ubuntu: apt install espeak-ng), here only and never in the package. The set is
synthetic and easier than the recorded sets whose layout and model it has.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from ranvier.data.sound import encode_folder
from ranvier.errors import RanvierError

LANGUAGES = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
}
# Variants of espeak-ng's voice; the last two are never heard in training.
VOICES = ("m1", "m2", "m3", "m4", "m6", "m7", "f1", "f2", "f3", "f4", "m5", "f5")
UNSEEN = 2
# Where each voice is at home, in espeak-ng's units: pitch 0 to 99, words a minute.
PITCH, SPEED = (30.0, 70.0), (130.0, 190.0)
# How far a take is from there.
PITCH_OF_TAKE, SPEED_OF_TAKE = 8.0, 15.0
QUIET = 1e-3  # of the loudest sample: silence before and after is cut off


def main(arguments: Sequence[str] | None = None) -> int:
    """Speak, encode, write; returns 0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(description="Make a set of spoken digits as events with espeak-ng.")
    parser.add_argument("out", type=Path, help="OUT.h5 or OUT.h5.gz: _train and _test are added to the name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--takes", type=int, default=4, help="of every voice and word; the last is for the test set")
    parser.add_argument("--digits", type=int, default=10, help="of each language, from zero on")
    parser.add_argument("--encoder", choices=("cochlea", "mel"), default="cochlea")
    parser.add_argument("--jobs", type=int, help="files at once; default: as many as there are processors")
    parser.add_argument("--sounds", type=Path, help="folder for the sounds, to keep them; default: a temporary one")
    options = parser.parse_args(arguments)
    try:
        make(options)
    except RanvierError as error:
        print(f"speech_set: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def make(options: argparse.Namespace) -> None:
    """The whole set, by the options of the command line."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise RanvierError(
            "got no program espeak-ng; needs it to speak; apt install espeak-ng (dnf, brew: the same name)"
        )
    if options.takes < 2 or not 1 <= options.digits <= 10:
        raise RanvierError(
            f"got {options.takes} takes of {options.digits} digits; needs >= 2 takes, 1 to 10 digits; change them"
        )
    classes = [word for words in LANGUAGES.values() for word in words[: options.digits]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.sounds or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = plan(options.seed, options.takes, options.digits)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda line: speak(program, folder, line), lines))
        with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, ("path", "label", "speaker", "split"), extrasaction="ignore")
            rows.writeheader()
            rows.writerows(lines)
        done = encode_folder(
            folder / "manifest.csv",
            options.out,
            encoder=options.encoder,
            seed=options.seed,
            jobs=options.jobs,
            classes=classes,
            times="float16",
            progress=show,
        )
    for error in done.errors:
        print(error, file=sys.stderr)  # noqa: T201
    if done.errors:
        raise RanvierError(f"got {len(done.errors)} sounds that cannot be encoded; needs all; see above")
    made = " and ".join(str(path) for path in done.paths.values())
    print(f"{made}: {done.n_samples} samples, {done.n_events} events, {done.n_channels} channels")  # noqa: T201


def plan(seed: int, takes: int, digits: int) -> list[dict]:
    """What is said, by whom and how: one dictionary a sound, in the order of voices, words, takes."""
    rng = np.random.default_rng(seed)
    lines = []
    for number, voice in enumerate(VOICES):
        home = rng.uniform(*PITCH), rng.uniform(*SPEED)
        known = number < len(VOICES) - UNSEEN
        for language, words in LANGUAGES.items():
            for word in words[:digits]:
                for take in range(takes):
                    pitch = np.clip(rng.normal(home[0], PITCH_OF_TAKE), 0, 99)
                    speed = np.clip(rng.normal(home[1], SPEED_OF_TAKE), 90, 260)
                    lines.append(
                        {
                            "path": f"{word}_{number:02d}_{take}.wav",
                            "label": word,
                            "speaker": f"{number:02d}",
                            "split": "train" if known and take < takes - 1 else "test",
                            "voice": f"{language}+{voice}",
                            "pitch": round(pitch),
                            "speed": round(speed),
                        }
                    )
    return lines


def speak(program: str, folder: Path, line: dict) -> None:
    """One sound, without the silence around it."""
    path = folder / line["path"]
    command = [program, "-v", line["voice"], "-p", str(line["pitch"]), "-s", str(line["speed"]), "-w", str(path)]
    done = subprocess.run([*command, line["label"]], capture_output=True, text=True)
    if done.returncode or not path.is_file():
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise RanvierError(
            f"espeak-ng: {path.name}: got {reason}; needs a voice {line['voice']}; install espeak-ng again"
        )
    rate, sound = wavfile.read(path)
    loud = np.nonzero(np.abs(sound.astype(float)) > QUIET * np.abs(sound.astype(float)).max())[0]
    if not len(loud):
        raise RanvierError(f"espeak-ng: {path.name}: got silence; needs a sound; try another voice")
    wavfile.write(path, rate, sound[loud[0] : loud[-1] + 1])


def show(finished: int, total: int, name: str) -> None:
    """On a terminal a line that is written over; elsewhere one for each tenth."""
    if sys.stderr.isatty():
        end = "\n" if finished == total else ""
        print(f"\r{finished}/{total} {name:<30}", end=end, file=sys.stderr, flush=True)  # noqa: T201
    elif 10 * finished // total > 10 * (finished - 1) // total:
        print(f"{finished}/{total}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
