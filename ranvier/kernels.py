"""The compiled libraries, one for CPUs and one for NVIDIA GPUs: find, check and register them. The only file that does.

Nothing is loaded before the first call, and without the libraries everything works through the JAX reference.

Environment:
    RANVIER_LIB_DIR=FOLDER      look for the libraries in this folder alone (a build folder, say)
    RANVIER_REQUIRE_NATIVE=1    a missing or unusable library is an error: the CPU's, and the GPU's where JAX uses one
"""

import ctypes
import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ranvier.errors import RanvierError

_SUFFIX = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}
_SUMS = ("float32", "float64")
# Name of a handler -> the types that it is compiled for.
HANDLERS = {
    "lif_forward": _SUMS,
    "lif_backward": _SUMS,
    "grid_forward": _SUMS,
    "grid_backward": _SUMS,
    "ops_gather": tuple(_SUFFIX),
    "ops_scatter": _SUMS,
    "ops_dots": tuple(_SUFFIX),
    "ops_spikes": _SUMS,
    "ops_gather_turned": tuple(_SUFFIX),
    "ops_scatter_turned": _SUMS,
    "ops_dots_turned": tuple(_SUFFIX),
    "ops_lif_forward": _SUMS,
    "ops_lif_forward_sampled": _SUMS,
    "ops_lif_backward": _SUMS,
    "ops_densify": ("float32", "float64", "bfloat16"),
    "ops_dense_gather": ("float32", "bfloat16"),
    "ops_dense_scatter": ("float32",),
    "ops_dense_dots": ("float32", "bfloat16"),
}
# A handler -> what a library that has it computes.
_WORDS = {
    "lif_forward": "continuous scheme",
    "grid_forward": "grid scheme",
    "ops_gather": "sparse operators",
    "ops_lif_forward": "LIF layers over time",
}
# The signatures of the handlers; the same number as in csrc/library.h.
_INTERFACE = 3


@dataclass(frozen=True)
class _Device:
    file: str
    platform: str  # XLA's name
    words: str
    compiler: str


_DEVICES = {
    "cpu": _Device("libranvier_cpu.so", "cpu", "the CPU", "a C++ compiler"),
    "cuda": _Device("libranvier_cuda.so", "CUDA", "NVIDIA GPUs", "nvcc"),
}
# JAX's names of what it computes on, as far as there are kernels.
_BACKENDS = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}


@dataclass(frozen=True)
class KernelStatus:
    """What is known of the compiled library of a device.

    Parameters
    ----------
    found : loaded, and usable with the installed jaxlib and on this machine
    path : file of the library, None where there is none
    reason : one line: why it cannot be used, or what it is
    api : version of XLA's FFI that it was built for ("0.3"), None if unknown
    isa : what it needs to run: an instruction set ("x86-64") or compute capabilities of GPUs; None if unknown
    handlers : names of the handlers in it, a part of `HANDLERS`
    """

    found: bool
    path: str | None
    reason: str
    api: str | None = None
    isa: str | None = None
    handlers: tuple[str, ...] = ()


def find(device: str) -> KernelStatus:
    """Find, load and check the compiled library for "cpu" or "cuda". Raises nothing."""
    library = _inspect(device, _folders())
    if device == "cuda" and library.found:
        return _on_this_machine(library)
    return library


def status(device: str = "cpu") -> KernelStatus:
    """Find, load and check the compiled library for "cpu" or "cuda".

    Raises
    ------
    RanvierError
        The library is missing or unusable and RANVIER_REQUIRE_NATIVE is 1. Never otherwise.
    """
    found = find(device)
    if not found.found and os.environ.get("RANVIER_REQUIRE_NATIVE") == "1":
        raise RanvierError(
            f"kernels.status: {found.reason}; RANVIER_REQUIRE_NATIVE=1 needs the compiled library; "
            f"install ranvier again where {_DEVICES[device].compiler} is, or unset RANVIER_REQUIRE_NATIVE"
        )
    return found


def available(name: str) -> str | None:
    """One line why the handler `name` cannot run on what JAX computes on by default, or None: it can.

    Raises
    ------
    RanvierError
        As `status` does.
    """
    import jax

    backend = jax.default_backend()
    if backend not in _BACKENDS:
        return f"the compiled kernels are for CPUs and NVIDIA GPUs, and JAX computes on {backend}"
    device = _BACKENDS[backend]
    library = status(device)
    if not library.found:
        return library.reason
    if name not in library.handlers:
        return f"the compiled kernels for {_DEVICES[device].words} have no {name}"
    return None


def compiled(name: str, dtype, platform: str) -> bool:
    """Whether the library for "cpu" or "cuda" can be used and has the handler `name` for arrays of `dtype`.

    Raises
    ------
    RanvierError
        As `status` does.
    """
    return str(dtype) in HANDLERS[name] and name in status(platform).handlers


def plain(name: str) -> Callable[[int], None] | None:
    """The plain C function `name` of the CPU's library, which takes the address of its arguments; None without it.

    Raises
    ------
    RanvierError
        As `status` does, and where a library without the function is found and RANVIER_REQUIRE_NATIVE is 1.
    """
    library = status("cpu")
    if not library.found:
        return None
    function = getattr(ctypes.CDLL(str(library.path)), name, None)
    if function is None:
        if os.environ.get("RANVIER_REQUIRE_NATIVE") == "1":
            raise RanvierError(
                f"kernels.plain: {library.path} has no {name}; RANVIER_REQUIRE_NATIVE=1 needs it; install ranvier again"
            )
        return None
    function.argtypes, function.restype = [ctypes.c_void_p], None
    return function


def target(name: str, dtype) -> str:
    """The name under which XLA knows the handler `name` for arrays of `dtype`."""
    return f"ranvier_{name}_{_SUFFIX[str(dtype)]}"


@functools.cache
def register() -> None:
    """Make the handlers of every library that fits the installed jaxlib known to XLA."""
    import jax

    for device, kind in _DEVICES.items():
        # The driver is not asked: without it XLA has no GPU either, and nobody calls what is registered.
        library = _inspect(device, _folders())
        if not library.found:
            continue
        code = ctypes.CDLL(library.path)
        for name in library.handlers:
            for dtype in HANDLERS[name]:
                symbol = target(name, dtype)
                jax.ffi.register_ffi_target(symbol, jax.ffi.pycapsule(getattr(code, symbol)), platform=kind.platform)


def _folders() -> tuple[Path, ...]:
    """Where a library may lie: an editable install has two package folders, the source and the installed one."""
    if folder := os.environ.get("RANVIER_LIB_DIR"):
        return (Path(folder),)
    import ranvier

    return tuple(Path(folder) / "lib" for folder in ranvier.__path__)


@functools.cache
def _inspect(device: str, folders: tuple[Path, ...]) -> KernelStatus:
    """What the file says of itself; `found` leaves out whether this machine has the GPU and the driver for it."""
    kind = _DEVICES[device]
    path = next((f / kind.file for f in folders if (f / kind.file).is_file()), None)
    if path is None:
        searched = ", ".join(str(f) for f in folders)
        why = f"no compiled library {kind.file} in {searched} (installed without {kind.compiler}?)"
        return KernelStatus(False, None, f"{why}; on {kind.words} the JAX reference computes everything")
    try:
        library = ctypes.CDLL(str(path))
        interface = library.ranvier_interface()
        api = (library.ranvier_ffi_api_major(), library.ranvier_ffi_api_minor())
        isa = _text(library.ranvier_isa)
        code = f"{_text(library.ranvier_running_isa)} code" if device == "cpu" else f"code for {isa}"
        compiler = _text(library.ranvier_compiler)
    except (OSError, AttributeError) as error:  # not loadable here, or a function is missing: another release's library
        return KernelStatus(False, str(path), f"{path} cannot be used: {' '.join(str(error).split())}")
    known = KernelStatus(False, str(path), "", _dotted(api), isa)
    if interface != _INTERFACE:
        why = f"{path} belongs to another ranvier (interface {interface}, needs {_INTERFACE}); install ranvier again"
        return replace(known, reason=why)
    runtime = _runtime_api()
    if runtime is not None and not (api[0] == runtime[0] and api[1] <= runtime[1]):
        # XLA refuses such a handler only when a backend starts, and then no backend starts at all.
        why = f"{path} is built for XLA FFI {_dotted(api)}; the installed jaxlib has {_dotted(runtime)}"
        return replace(known, reason=why)
    handlers = tuple(x for x, dtypes in HANDLERS.items() if all(hasattr(library, target(x, t)) for t in dtypes))
    words = _listing([words for name, words in _WORDS.items() if name in handlers])
    reason = f"{words} on {kind.words}, {code}, compiled with {compiler}"
    return replace(known, found=True, reason=reason, handlers=handlers)


def _on_this_machine(library: KernelStatus) -> KernelStatus:
    """The same, not found if the driver is missing or too old or has no GPU that the code runs on."""
    assert library.path is not None
    code = ctypes.CDLL(library.path)
    usable, machine = code.ranvier_cuda_usable(), _text(code.ranvier_cuda_driver)
    if not usable:
        return replace(library, found=False, reason=f"{library.path} cannot run here: {machine}")
    return replace(library, reason=f"{library.reason}; {machine}")


def _listing(words: list[str]) -> str:
    """ "a, b and c"; "nothing" of nothing."""
    return " and ".join([x for x in (", ".join(words[:-1]), *words[-1:]) if x]) or "nothing"


def _text(function) -> str:
    function.restype = ctypes.c_char_p
    return function().decode().strip()


def _dotted(api: tuple[int, int]) -> str:
    return f"{api[0]}.{api[1]}"


def _runtime_api() -> tuple[int, int] | None:
    """XLA's FFI version of the installed jaxlib, from the header that it ships; None if that cannot be read."""
    import jax

    try:
        header = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
    except OSError:
        return None
    numbers = [re.search(rf"#define XLA_FFI_API_{part}\s+(\d+)", header) for part in ("MAJOR", "MINOR")]
    if numbers[0] is None or numbers[1] is None:
        return None
    return int(numbers[0][1]), int(numbers[1][1])
