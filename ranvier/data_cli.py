"""The commands `ranvier data ...`: parses their arguments and prints."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ranvier.errors import RanvierError

COMMANDS = ("list", "info", "get", "check", "convert", "show")


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands.

    Parameters
    ----------
    arguments : words after `ranvier data`

    Returns
    -------
    int : exit code

    Raises
    ------
    RanvierError : bad input
    """
    arguments = list(arguments) or ["list"]
    # A name or a path alone is asked about.
    if arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        arguments = ["info", *arguments]
    command, options = _parse(arguments)
    return command(**options)


def load(name: str, **options):
    """`data.load`, and what takes long is said on standard error.

    Parameters
    ----------
    name : str
    **options : of `data.load`

    Returns
    -------
    Splits

    Raises
    ------
    RanvierError : as `data.load`
    """
    from ranvier import data

    with _Progress() as progress:
        return data.load(name, say=_say, report=progress, **options)


def _parse(arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    import tyro

    text = tyro.conf.Positional[str]

    def list_sets():
        """List the data sets."""
        return _list, {}

    def info(name: text, test_data: str | None = None, n_channels: int | None = None):
        """What is known of a data set, and what is in it.

        Args:
            name: Name of a data set, or path of recordings.
            test_data: Path of the test samples.
            n_channels: Input channels of an HDF5 file; None: what it says of itself, else 700.
        """
        return _info, {"name": name, "test_data": test_data, "n_channels": n_channels}

    def get(name: text, force: bool = False, jobs: int | None = None):
        """Download a data set and pack it; what was cut goes on where it was.

        The files go to the folder $RANVIER_DATA, else to $XDG_CACHE_HOME/ranvier or ~/.cache/ranvier.

        Args:
            name: Name of a data set.
            force: Keep a file with another checksum than the known one.
            jobs: Threads that convert; None: one a core.
        """
        return _get, {"name": name, "force": force, "jobs": jobs}

    def check(path: text, n_channels: int | None = None, sensor: str | None = None):
        """Read a file, a folder or a data set to the end and compare it with all that is known of it.

        Args:
            path: Name of a data set, or path of recordings or of a store.
            n_channels: Input channels of an HDF5 file; None: what it says of itself, else 700.
            sensor: Height and width of a camera, such as 34,34; None: by the format.
        """
        return _check, {"path": path, "n_channels": n_channels, "sensor": sensor}

    def convert(
        source: text,
        out: text,
        n_channels: int | None = None,
        sensor: str | None = None,
        encoder: Literal["cochlea", "mel"] = "cochlea",
        seed: int = 0,
        jobs: int | None = None,
    ):
        """Convert recordings or sounds to a store (.events) or to the HDF5 layout of SHD (.h5, .h5.gz).

        Reads HDF5 in the layout of SHD; stores; a folder or .zip with a folder of .bin files for each class (N-MNIST);
        .aedat files with their _labels.csv (DVS128 Gesture); a folder of .wav and .flac files or a .csv manifest of
        them. A conversion that was stopped goes on where it was.

        Args:
            source: What to read.
            out: File to write.
            n_channels: Channels of an HDF5 file, or those to make of sounds; None: what the file says, else 700; 128 of
                mel.
            sensor: Height and width of a camera, such as 34,34; None: by the format.
            encoder: How sounds become events: a model of the cochlea, or mel filters with level crossing.
            seed: Of the encoder.
            jobs: Files at once; None: one a core.
        """
        options = {"source": source, "out": out, "n_channels": n_channels, "sensor": sensor}
        return _convert, options | {"encoder": encoder, "seed": seed, "jobs": jobs}

    def show(
        name: text,
        sample: int = 0,
        part: Literal["train", "validation", "test"] = "train",
        out: Annotated[str | None, tyro.conf.arg(metavar="PNG")] = None,
        n_channels: int | None = None,
    ):
        """Draw one sample, histograms over channels and time, and what the classes hold.

        Args:
            name: Name of a data set, or path of recordings.
            sample: Which one of the part.
            part: Of the data set.
            out: File to write; None: NAME-PART-SAMPLE.png here.
            n_channels: Input channels of an HDF5 file; None: what it says of itself, else 700.
        """
        return _show, {"name": name, "sample": sample, "part": part, "out": out, "n_channels": n_channels}

    return tyro.extras.subcommand_cli_from_dict(
        {"list": list_sets, "info": info, "get": get, "check": check, "convert": convert, "show": show},
        prog="ranvier data",
        description="Data sets: list them, look at them, fetch and convert them.",
        args=arguments,
    )


def _list() -> int:
    from ranvier import data
    from ranvier.data import official
    from ranvier.data.catalog import FACTS

    for name in data.names():
        here = name not in official.NAMES or official.is_here(name)
        print(f"{name:17}{FACTS[name].title}{'' if here else f'; not here: ranvier data {_way(name)} {name}'}")
    return 0


def _info(name: str, test_data: str | None, n_channels: int | None) -> int:
    from ranvier.data import official
    from ranvier.data.catalog import FACTS

    if name in FACTS:
        facts = FACTS[name]
        _fact("", facts.title)
        _fact("reference", facts.reference)
        _fact("licence", facts.licence)
        if facts.page:
            _fact("page", facts.page)
        for part, file in facts.files.items():
            path = official.where(name)[part]
            _fact("file", f"{path}  MD5 {file.md5}  {'here' if path.is_file() else 'not here'}")
        if name in official.NAMES and not official.is_here(name):
            known = "  ".join(f"{part} {n}" for part, n in facts.samples.items())
            _fact("samples", known)
            sensor = "" if facts.sensor is None else "  2 polarities of {} x {} pixels".format(*facts.sensor)
            _fact("channels", f"{facts.n_channels}{sensor}")
            _fact("classes", str(facts.n_classes))
            by_hand = [f for f in facts.files.values() if not f.addresses]
            first = f"get {by_hand[0].name} from {facts.page}, put it at the place above, then " if by_hand else ""
            _say(f"{name} is not here: {first}ranvier data get {name}")
            return 0
    splits = load(name, test=test_data, n_channels=n_channels)
    parts = {part: getattr(splits, part) for part in ("train", "validation", "test")}
    _table(parts)
    for group, indices in splits.test_groups.items():
        print(f"test samples of {group}: {len(indices)}")
    for line in splits.notes:
        print(line)
    return 0


def _get(name: str, force: bool, jobs: int | None) -> int:
    from ranvier import data
    from ranvier.data import official

    if name not in data.names():
        raise RanvierError(f"data get: got {name!r}; needs one of {', '.join(official.NAMES)}; check the spelling")
    if name not in official.NAMES:
        _say(f"{name} needs no download")
        return 0
    with _Progress() as progress:
        notes = official.get(name, force=force, jobs=jobs, report=progress)
    for line in notes:
        _say(line)
    print(next(iter(official.where(name).values())).parent)
    return 0


def _check(path: str, n_channels: int | None, sensor: str | None) -> int:
    from ranvier.data import hdf5, official, store
    from ranvier.data.catalog import FACTS
    from ranvier.data.convert import HDF5_ENDINGS, checksum, convert, source_of

    if path in FACTS:
        return _check_name(path)
    file = Path(path).expanduser()
    warnings: list[str] = []
    known = [
        (name, part, entry)
        for name, facts in FACTS.items()
        for part, entry in facts.files.items()
        if entry.name == file.name and file.is_file()
    ]
    for _, _, entry in known:
        digest = checksum(file)
        if digest == entry.md5:
            print(f"{'MD5':12}{digest}, as published")
        else:
            warnings.append(f"WARNING: {file.name} has MD5 {digest}, not {entry.md5}")
    if known and file.name.endswith((".tar.gz", ".h5.zip")):
        name, part, _ = known[0]
        for line in warnings:
            _say(line)
        _say(f"not unpacked: put it at {official.where(name)[part]} and type `ranvier data check {name}`")
        return 0
    if file.is_file() and file.name.endswith(store.ENDING):
        with _Progress() as progress:
            store.verify(file, lambda done, total: progress(f"checking {file.name}", done, total))
        dataset, notes = store.read(file)
    elif file.is_file() and file.name.endswith(HDF5_ENDINGS):
        dataset, notes = hdf5.read(file, n_channels=n_channels)
    else:
        import tempfile

        source = source_of(file, n_channels=n_channels, sensor=_sensor(sensor))
        if source.encoder:
            _say(f"{file}: {len(source.pieces)} sounds are encoded by {source.encoder}; nothing is kept")
        with tempfile.TemporaryDirectory() as folder, _Progress() as progress:
            packed = Path(folder) / f"checked{store.ENDING}"
            convert(source, packed, progress=lambda done, total: progress(f"reading {file.name}", done, total))
            dataset, notes = store.read(packed)
            # Here, because the events are mapped from a file that goes away.
            warnings += [line for name, part, _ in known for line in official.compared(name, part, dataset)]
            _table({"all": dataset})
        for line in (*warnings, *notes):
            _say(line)
        return 0
    for name, part, _ in known:
        warnings += official.compared(name, part, dataset)
    _table({"all": dataset})
    for line in (*warnings, *notes):
        _say(line)
    return 0


def _check_name(name: str) -> int:
    from ranvier.data import official
    from ranvier.data.catalog import FACTS
    from ranvier.data.convert import checksum

    warnings = []
    for part, path in official.where(name).items():
        if path.is_file():
            digest, known = checksum(path), FACTS[name].files[part].md5
            print(f"{path.name:20}MD5 {digest}{', as published' if digest == known else ''}")
            if digest != known:
                warnings.append(f"WARNING: {path.name} has MD5 {digest}, not {known}")
    splits = load(name)
    parts = {part: getattr(splits, part) for part in ("train", "validation", "test")}
    _table(parts)
    if name not in official.NAMES:
        for part, dataset in parts.items():
            warnings += official.compared(name, part, dataset)
    for line in dict.fromkeys((*warnings, *splits.notes)):
        _say(line)
    return 0


def _convert(
    source: str, out: str, n_channels: int | None, sensor: str | None, encoder: str, seed: int, jobs: int | None
) -> int:
    from ranvier.data.convert import convert, source_of

    path, target = Path(source).expanduser(), Path(out).expanduser()
    if _is_sound(path):
        return _convert_sound(path, target, n_channels, encoder, seed, jobs)
    found = source_of(path, n_channels=n_channels, sensor=_sensor(sensor))
    with _Progress() as progress:
        notes = convert(found, target, jobs=jobs, progress=lambda done, n: progress(f"reading {path.name}", done, n))
    for line in notes:
        _say(line)
    print(target)
    return 0


def _convert_sound(path: Path, target: Path, n_channels: int | None, encoder: str, seed: int, jobs: int | None) -> int:
    from ranvier.data.convert import HDF5_ENDINGS, convert, source_of
    from ranvier.data.sound import encode_folder
    from ranvier.data.store import ENDING

    if not target.name.endswith((ENDING, *HDF5_ENDINGS)):
        raise RanvierError(
            f"data convert: got {target.name}; needs a name in {ENDING}, {', '.join(HDF5_ENDINGS)}; correct it"
        )
    if encoder == "mel" and n_channels is not None and n_channels % 2:
        raise RanvierError(
            f"data convert: got {n_channels} channels for mel, which has two a filter; needs an even number; correct it"
        )
    packs = target.name.endswith(ENDING)
    written = target.with_name(f"{target.name.removesuffix(ENDING)}.encoded.h5") if packs else target
    # A mel filter has a channel for rising and one for falling sound.
    asked = {"channels": n_channels} if encoder == "cochlea" else {"bands": (n_channels or 0) // 2}
    options: dict[str, Any] = {} if n_channels is None else asked
    with _Progress() as progress:

        def say(done: int, total: int, name: str) -> None:
            progress(f"encoding {path.name}", done, total)

        encoded = encode_folder(path, written, encoder=encoder, seed=seed, jobs=jobs, progress=say, **options)
    for line in encoded.errors:
        _say(line)
    for made in encoded.paths.values():
        out = made.with_name(made.name.replace(".encoded", "").removesuffix(".h5") + ENDING) if packs else made
        if packs:
            convert(source_of(made, n_channels=encoded.n_channels, name=path.stem), out, jobs=jobs)
            made.unlink()
        print(out)
    if encoded.errors:
        _say(f"{len(encoded.errors)} of {len(encoded.errors) + encoded.n_samples} sounds left out: not read")
    return 1 if encoded.errors else 0


def _is_sound(path: Path) -> bool:
    from ranvier.data.convert import SOUND_ENDINGS

    if path.is_dir():
        return any(file.suffix.lower() in SOUND_ENDINGS for file in path.rglob("*"))
    return path.suffix.lower() == ".csv"


def _show(name: str, sample: int, part: str, out: str | None, n_channels: int | None) -> int:
    from ranvier.data_plots import summary
    from ranvier.plots import save_figure

    dataset = getattr(load(name, n_channels=n_channels), part)
    stem = Path(name).name.split(".")[0]
    print(save_figure(summary(dataset, sample), out or f"{stem}-{part}-{sample}.png"))
    return 0


def _sensor(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and 0 < int(part) < 2**15 for part in parts):
        raise RanvierError(f"data: got sensor {text!r}; needs height,width such as 34,34; correct it")
    return int(parts[0]), int(parts[1])


def _table(parts: dict) -> None:
    import numpy as np

    print(f"{'':12}{'samples':>9}{'events':>12}{'events a sample, median (range)':>34}{'last event':>13}")
    for part, dataset in parts.items():
        counts = np.diff(dataset.offsets)
        spread = f"{np.median(counts):.0f} ({counts.min()} to {counts.max()})" if len(counts) else "-"
        print(f"{part:12}{len(dataset):9}{len(dataset.times):12}{spread:>34}{dataset.latest:10.1f} ms")
    first = next(iter(parts.values()))
    print(f"{'channels':12}{first.n_channels:9}")
    print(f"{'classes':12}{first.n_classes:9}  {', '.join(first.class_names)}")


def _way(name: str) -> str:
    """The command that says how a data set comes here."""
    from ranvier.data.catalog import FACTS

    return "get" if all(file.addresses for file in FACTS[name].files.values()) else "info"


def _fact(name: str, value: str) -> None:
    print(f"{name:12}{value}" if name else value)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Progress:
    """A bar for each thing that is done, on a terminal; elsewhere a line when it is done."""

    def __init__(self):
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.bars, self.tasks, self.said, self.began = None, {}, set(), time.monotonic()

    def __enter__(self):
        return self

    def _drawn(self):
        """The bars, on the screen from the first call on: most calls have nothing to show."""
        if self.bars is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
            )
            self.bars = Progress(*columns, console=self.console, transient=True, expand=True)
            self.bars.start()
        return self.bars

    def __exit__(self, *_):
        if self.bars is not None:
            self.bars.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if self.console.is_terminal:
            bars = self._drawn()
            if what not in self.tasks:
                self.tasks[what] = bars.add_task(what, total=total)
            bars.update(self.tasks[what], completed=done, total=total)
        elif done == total and what not in self.said:
            self.said.add(what)
            _say(f"{what}: done after {time.monotonic() - self.began:.1f} s")
