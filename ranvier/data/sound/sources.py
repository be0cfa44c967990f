"""Which sound files there are, and what they are labelled: a folder or a manifest."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ranvier.data.sound.files import SUFFIXES
from ranvier.errors import RanvierError


@dataclass(frozen=True)
class Sound:
    """A sound file to encode.

    Parameters
    ----------
    path : Path
    name : str
        As the folder or the manifest has it, with `/`.
    label, speaker, split : str
        Empty where nothing says.
    """

    path: Path
    name: str
    label: str
    speaker: str = ""
    split: str = ""


def find(source: str | os.PathLike) -> list[Sound]:
    """Sound files of a folder or of a manifest, each with its label.

    A folder: all `.wav` and `.flac` below it, sorted by name. A file in a subfolder is labelled by the first subfolder,
    one beside them by what stands before the first `_` of its name; in names of three parts or more,
    `label_speaker_take.wav`, the second is the speaker.

    A manifest: `.csv` in UTF-8 with a first line of names, `path` and `label`, and optionally `speaker` and `split`;
    paths from the manifest's folder on.

    Raises
    ------
    RanvierError
        If there is no such folder or manifest, nothing in it, a line without path or label, or a file named twice.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        found = _folder(source)
    elif source.is_file() and source.suffix.lower() == ".csv":
        found = _manifest(source)
    else:
        _refuse(source, "no folder and no .csv", "a folder of sound files or a manifest", "check the path")
    if not found:
        _refuse(source, "no sound file", f"files in {' or '.join(SUFFIXES)}", "check the folder")
    names = set()
    for sound in found:
        if sound.name in names:
            _refuse(source, f"{sound.name} twice", "every file once", "remove one of the two")
        names.add(sound.name)
    return found


def class_names(sounds: list[Sound]) -> tuple[str, ...]:
    """All labels, in the order of numbers where all are whole numbers, else of the alphabet."""
    labels = {sound.label for sound in sounds}
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _folder(folder: Path) -> list[Sound]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        parts = path.relative_to(folder).parts
        words = path.stem.split("_")
        if len(parts) == 1 and (len(words) == 1 or not words[0]):
            needed = "a subfolder or a name that begins with the label and _"
            _refuse(folder, f"{path.name}, which has no label", needed, "move or rename it, or write a manifest")
        label = parts[0] if len(parts) > 1 else words[0]
        found.append(Sound(path, "/".join(parts), label, words[1] if len(words) >= 3 else ""))
    return found


def _manifest(path: Path) -> list[Sound]:
    found = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            missing = {"path", "label"} - set(rows.fieldnames or ())
            if missing:
                _refuse(path, f"no column {' or '.join(sorted(missing))}", "path,label[,speaker][,split]", "add it")
            for row in rows:
                cells = {name: (row.get(name) or "").strip() for name in ("path", "label", "speaker", "split")}
                if not cells["path"] or not cells["label"]:
                    _refuse(path, f"line {rows.line_num} without path or label", "both in every line", "complete it")
                name = Path(cells["path"]).as_posix()
                found.append(Sound(path.parent / cells["path"], name, *list(cells.values())[1:]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        _refuse(path, f"a manifest that cannot be read ({error})", "CSV in UTF-8", "write it again")
    return found


def _refuse(source: Path, found: str, needed: str, remedy: str) -> NoReturn:
    raise RanvierError(f"encode_folder: {source}: got {found}; needs {needed}; {remedy}")
