"""The run folder: configuration, environment, metrics and checkpoints, all written atomically.

    FOLDER/config.toml        every option of the run
           environment.json   versions, device, platform, commit
           metrics.jsonl      one JSON object a line
           checkpoints/       NAME.npz: the leaves of a pytree by their tree path, and JSON
           samples.npz        a few test samples (plain arrays)
           splits.npz         which samples trained, validated and tested
           figures/           what `ranvier plot` draws

Nothing here can execute code from a file: arrays are read with `allow_pickle=False`, all else is TOML or JSON.
"""

import io
import json
import math
import os
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ranvier.config import Config
from ranvier.deep_sizes import layer_sizes
from ranvier.errors import RanvierError

FORMAT = "ranvier checkpoint 1"
HEADER = "__ranvier__"  # the npz entry that holds FORMAT and the JSON meta; no tree path looks like it
FILES = ("config.toml", "environment.json", "metrics.jsonl", "samples.npz", "splits.npz")
FOLDERS = ("checkpoints", "figures")


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Parameters
    ----------
    path : file to write; its folder exists
    content : bytes of the whole file
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: os.replace must not cross devices
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read every array of an npz file.

    Parameters
    ----------
    path : npz file

    Returns
    -------
    dict : name -> array

    Raises
    ------
    RanvierError : the file is missing, truncated, corrupt, no npz, or holds pickled objects
    """
    path = Path(path)
    if not path.is_file():
        raise RanvierError(f"read_arrays: there is no file {path}; needs an npz file; check the run folder")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # any bytes may be in the file, and zipfile, zlib and NumPy each raise their own errors
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise RanvierError(
            f"read_arrays: {path} cannot be read ({reason}); needs a complete npz file of plain arrays; "
            "use another checkpoint or train again"
        ) from None


def read_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read a checkpoint as plain arrays, without JAX and without knowing its tree.

    Parameters
    ----------
    path : npz file that `Run.save` wrote

    Returns
    -------
    arrays : dict, tree path such as `space/params/x_in` -> array
    meta : dict, the JSON that was saved with it

    Raises
    ------
    RanvierError : as `read_arrays`, or the file is not a checkpoint
    """
    arrays = read_arrays(path)
    header = arrays.pop(HEADER, None)
    try:
        content = {} if header is None else json.loads(bytes(header))
        if content["format"] != FORMAT:
            raise ValueError
        return arrays, dict(content["meta"])
    except (TypeError, ValueError, KeyError):
        raise RanvierError(
            f"read_checkpoint: {path} is not a checkpoint of this program; needs a file with the header '{FORMAT}'; "
            "use a file from the checkpoints folder of a run"
        ) from None


class Run:
    """A run folder that is open for reading and writing.

    Parameters
    ----------
    folder : folder that `Run.create` made
    config : options of the run
    """

    def __init__(self, folder: str | Path, config: Config):
        self.folder = Path(folder)
        self.config = config

    @classmethod
    def create(cls, folder: str | Path | None, config: Config, *, overwrite: bool = False) -> "Run":
        """Make a new run folder and write `config.toml` and `environment.json`.

        Parameters
        ----------
        folder : where; None: `default_name` in `out`, with a number appended if that exists
        config : options; those of the one invocation (resume, overwrite, live, post_mortem) are not stored
        overwrite : replace the folder if it is a run folder

        Returns
        -------
        Run

        Raises
        ------
        RanvierError : the folder exists and may not be replaced, or cannot be made
        """
        config = replace(config, resume=None, overwrite=False, live=False, post_mortem=False)
        path = Path(config.out) / default_name(config) if folder is None else Path(folder)
        try:
            if overwrite and path.exists():
                _clear(path)
            path = _make(path, numbered=folder is None and not overwrite, adopt=overwrite)
            for name in FOLDERS:
                (path / name).mkdir()
            run = cls(path, config)
            write_atomic(path / "config.toml", config.to_toml().encode())
            write_atomic(path / "environment.json", _json(environment(), indent=2).encode() + b"\n")
            write_atomic(path / "metrics.jsonl", b"")
        except OSError as error:
            raise RanvierError(
                f"Run.create: {path} cannot be written ({error.strerror}); needs a folder with write permission; "
                "name another with out"
            ) from None
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open an existing run folder.

        Parameters
        ----------
        folder : folder that `Run.create` made

        Returns
        -------
        Run

        Raises
        ------
        RanvierError : it is not a run folder, or its configuration is not valid
        """
        folder = Path(folder)
        if not is_run(folder):
            raise RanvierError(
                f"Run.open: {folder} is not a run folder; needs a folder with config.toml and checkpoints/; "
                "give the folder that the last line of ranvier train names"
            )
        return cls(folder, Config.from_toml(folder / "config.toml"))

    def update(self, config: Config) -> None:
        """Replace the stored options (a resumed run may have more epochs).

        Parameters
        ----------
        config : the new options
        """
        self.config = replace(config, resume=None, overwrite=False, live=False, post_mortem=False)
        write_atomic(self.folder / "config.toml", self.config.to_toml().encode())

    def discard(self) -> bool:
        """Remove the folder of a failed start; nothing happens once it holds a checkpoint.

        Returns
        -------
        bool : whether it was removed
        """
        if not is_run(self.folder) or any((self.folder / "checkpoints").glob("*.npz")):
            return False
        _clear(self.folder)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
        return True

    # metrics -------------------------------------------------------------------------------------------------------

    def log(self, row: dict) -> None:
        """Append one row to `metrics.jsonl`; log a step's rows before saving its checkpoint.

        Parameters
        ----------
        row : numbers, strings and lists of numbers; a number that is not finite is stored as null
        """
        line = _json({key: _finite(value) for key, value in row.items()}).encode() + b"\n"
        path = self.folder / "metrics.jsonl"
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):  # an interrupted write: the half line must not swallow this row
            write_atomic(path, content[: content.rfind(b"\n") + 1])
        with open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict]:
        """Read all complete rows of `metrics.jsonl`, null as nan.

        Returns
        -------
        list of dict : in the order they were logged; a truncated last line is left out

        Raises
        ------
        RanvierError : a line other than the last is not a JSON object
        """
        return read_metrics(self.folder)

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, so that a run resumed there writes the file of an uninterrupted one.

        Parameters
        ----------
        step : the checkpoint's step; rows with a larger `step` go
        """
        rows = [row for row in self.metrics() if row.get("step", 0) <= step]
        lines = [_json({key: _finite(value) for key, value in row.items()}) + "\n" for row in rows]
        write_atomic(self.folder / "metrics.jsonl", "".join(lines).encode())

    # checkpoints ---------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a checkpoint of this name exists.

        Parameters
        ----------
        name : `initial`, `last`, `best`

        Returns
        -------
        bool
        """
        return self._checkpoint(name).is_file()

    def save(self, name: str, tree, meta: dict | None = None) -> None:
        """Write a pytree as `checkpoints/NAME.npz`, atomically.

        Parameters
        ----------
        name : `initial`, `last`, `best`
        tree : pytree of arrays and numbers; typed PRNG keys are stored as their uint32 key data
        meta : JSON content stored in the same file

        Raises
        ------
        RanvierError : a leaf is no array or number
        """
        arrays = {}
        for path, leaf in _leaves(tree):
            array = np.asarray(_key_data(leaf))
            if array.dtype.kind not in "biufc":
                raise RanvierError(
                    f"Run.save: leaf {path} has dtype {array.dtype}; needs numbers; keep other things in meta"
                )
            arrays[path] = array
        header = _json({"format": FORMAT, "meta": {} if meta is None else meta})
        arrays[HEADER] = np.frombuffer(header.encode(), np.uint8)
        write_atomic(self._checkpoint(name), _npz(arrays))

    def load(self, name: str, like) -> tuple:
        """Read `checkpoints/NAME.npz` into the structure of another tree.

        Parameters
        ----------
        name : `initial`, `last`, `best`
        like : pytree with the structure, shapes and dtypes that are expected; leaves may be `jax.ShapeDtypeStruct`

        Returns
        -------
        tree : as `like`; NumPy leaves stay NumPy, Python numbers stay Python numbers, all others are JAX arrays
        meta : dict

        Raises
        ------
        RanvierError : the file is missing, corrupt or foreign, or its leaves are not those of `like`
        """
        import jax

        path = self._checkpoint(name)
        arrays, meta = read_checkpoint(path)
        wanted = _leaves(like)
        missing = sorted({key for key, _ in wanted} - set(arrays))
        extra = sorted(set(arrays) - {key for key, _ in wanted})
        if missing or extra:
            difference = f"lacks {missing[0]}" if missing else f"has {extra[0]} too many"
            raise RanvierError(
                f"Run.load: {path} {difference}; needs the {len(wanted)} arrays of this network; "
                "load it with the options it was saved with"
            )
        leaves = [_as_like(path, key, arrays[key], leaf) for key, leaf in wanted]
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(like), leaves), meta

    def save_arrays(self, name: str, **arrays) -> None:
        """Write plain arrays as `NAME.npz` in the run folder, atomically.

        Parameters
        ----------
        name : file name without ending, `samples`
        arrays : arrays of numbers, booleans or text
        """
        content = {key: np.asarray(value) for key, value in arrays.items()}
        for key, array in content.items():
            if array.dtype.hasobject:
                raise RanvierError(f"Run.save_arrays: {key} has dtype object; needs plain numbers or text; convert it")
        write_atomic(self.folder / f"{_name(name)}.npz", _npz(content))

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Read what `save_arrays` wrote.

        Parameters
        ----------
        name : file name without ending

        Returns
        -------
        dict : name -> array

        Raises
        ------
        RanvierError : the file is missing or cannot be read
        """
        return read_arrays(self.folder / f"{_name(name)}.npz")

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{_name(name)}.npz"


def is_run(folder: str | Path) -> bool:
    """Whether a folder is a run folder.

    Parameters
    ----------
    folder : any path

    Returns
    -------
    bool : it holds `config.toml` and `checkpoints/`
    """
    return (Path(folder) / "config.toml").is_file() and (Path(folder) / "checkpoints").is_dir()


def read_metrics(folder: str | Path) -> list[dict]:
    """Read all complete rows of a run folder's `metrics.jsonl`, null as nan; see `Run.metrics`.

    Parameters
    ----------
    folder : run folder

    Returns
    -------
    list of dict

    Raises
    ------
    RanvierError : a line other than the last is not a JSON object
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.append({key: math.nan if value is None else value for key, value in row.items()})
        except (ValueError, AttributeError):
            if number == len(lines):  # no newline after it: the write was interrupted
                break
            raise RanvierError(
                f"read_metrics: line {number} of {path} is not a JSON object; needs one object a line; remove the line"
            ) from None
    return rows


def default_name(config: Config) -> str:
    """The folder name of a run: `<data>-<net>-<hidden>-s<seed>[-tag]`, of a deep one `<data>-deep-<sizes>-...`.

    Parameters
    ----------
    config : options; a data path gives its file name without ending

    Returns
    -------
    str : safe as one file name
    """
    data = re.sub(r"(\.gz)?$", "", Path(config.data).name)
    data = re.sub(r"\.(h5|hdf5|npz|pkl|json)$", "", data)
    network = [config.net, str(config.hidden)]
    if config.model == "deep":
        network = ["deep", *map(str, layer_sizes(config.sizes, config.depth))]
    parts = [data, *network, f"s{config.seed}"] + ([config.tag] if config.tag else [])
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(parts))


def environment() -> dict:
    """Versions, device and platform of this process; starts the JAX backend.

    Returns
    -------
    dict : python, platform, versions of the packages, backend, devices, commit of a source checkout or None
    """
    import importlib.metadata
    import platform

    import jax

    import ranvier

    packages = ("jax", "jaxlib", "numpy", "optax")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"ranvier": ranvier.__version__, **{p: importlib.metadata.version(p) for p in packages}},
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Commit of the checkout this package runs from, `+changes` if tracked files differ; None without a checkout."""
    import subprocess

    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package: the commit of a folder around it would mislead
        return None
    try:
        options = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def _make(path: Path, *, numbered: bool, adopt: bool) -> Path:
    """Make the folder; mkdir is the test for existence, so two processes never share one."""
    for number in range(1, 10_000):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir(parents=True)
            return candidate
        except FileExistsError:
            if candidate.is_dir() and (adopt or not any(candidate.iterdir())) and not numbered:
                return candidate
            if not numbered:
                break
    raise RanvierError(
        f"Run.create: {path} exists already; needs a new or empty folder; name another, or pass overwrite"
    )


def _clear(path: Path) -> None:
    """Remove what a run wrote; files of anyone else stay."""
    if not path.is_dir() or (any(path.iterdir()) and not is_run(path)):
        raise RanvierError(
            f"Run.create: {path} is not a run folder; overwrite replaces only run folders; name another folder"
        )
    for name in FILES:
        (path / name).unlink(missing_ok=True)
    for name in FOLDERS:
        if (path / name).is_dir():
            shutil.rmtree(path / name)


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RanvierError(f"Run: '{name}' is not a file name; needs letters, digits, - or _; rename it")
    return name


def _json(content, indent: int | None = None) -> str:
    return json.dumps(content, default=_plain, indent=indent)


def _plain(value):
    """NumPy and JAX numbers as Python numbers, for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _finite(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an npz file; `np.savez` takes names as keyword arguments, so a leaf called `file` would not do."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # a ZipInfo has a fixed date: equal arrays give equal files
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return buffer.getvalue()


def _leaves(tree) -> list[tuple[str, object]]:
    """(path, leaf) of every leaf; the path is written `space/params/x_in`, the root of a bare leaf `leaf`."""
    import jax

    pairs = [
        (jax.tree_util.keystr(path, simple=True, separator="/") or "leaf", leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise RanvierError(f"Run: two leaves have the path {double}; needs one leaf a path; rename a key")
    return pairs


def _is_key(leaf) -> bool:
    import jax

    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf):
    import jax

    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as_like(path: Path, key: str, array: np.ndarray, leaf):
    """The stored array as the same kind of thing as `leaf`, after its shape and dtype were compared."""
    import jax

    if _is_key(leaf):
        expected = jax.eval_shape(jax.random.key_data, leaf)
    elif isinstance(leaf, (bool, int, float, complex)):
        expected = np.asarray(leaf)
    else:
        expected = leaf
    if array.shape != tuple(expected.shape) or array.dtype != expected.dtype:
        raise RanvierError(
            f"Run.load: {key} in {path} is {array.dtype}{list(array.shape)}; needs {expected.dtype}"
            f"{list(expected.shape)}; load it with the options it was saved with"
        )
    if _is_key(leaf):
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, (bool, int, float, complex)):
        return type(leaf)(array.item())
    return array if isinstance(leaf, np.ndarray | np.generic) else jax.numpy.asarray(array)
