"""Pack the shipped set of spoken digits from its two HDF5 files.

    python tools/pack_speech.py TRAIN.h5.gz TEST.h5.gz

Writes `train.packed` and `test.packed` into `ranvier/data/speech/` and prints size and contents of each.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ranvier.data.hdf5 import read
from ranvier.data.packed import pack
from ranvier.data.speech import FOLDER


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the two files that the arguments name and pack them."""
    parser = argparse.ArgumentParser(description="Pack the shipped set of spoken digits.")
    parser.add_argument("train", help="HDF5 file, plain or .gz, with the samples to train and validate")
    parser.add_argument("test", help="HDF5 file, plain or .gz, with the test samples")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write; default: into the package")
    options = parser.parse_args(arguments)
    for part in ("train", "test"):
        dataset, notes = read(getattr(options, part))
        target = options.folder / f"{part}.packed"
        pack(target, dataset)
        size = target.stat().st_size
        line = f"{target.name}: {len(dataset)} samples, {len(dataset.times)} events, {size} bytes"
        print(line, *notes, sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
