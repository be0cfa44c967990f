"""The compiled library: find it, check it, say what it is. The only file that talks to it.

Nothing is loaded before the first call, and without the library everything works through the JAX reference.

Environment:
    RANVIER_LIB_DIR=FOLDER      look for the library in this folder alone (a build folder, say)
    RANVIER_REQUIRE_NATIVE=1    a missing or unusable library is an error
"""

import ctypes
import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ranvier.errors import RanvierError

_LIBRARY = "libranvier_cpu.so"
_HANDLERS = ("lif_forward", "lif_backward")
_SUFFIX = {"float32": "f32", "float64": "f64"}


@dataclass(frozen=True)
class KernelStatus:
    """What is known of the compiled library.

    Parameters
    ----------
    found : loaded, and usable with the installed jaxlib
    path : file of the library, None where there is none
    reason : one line: why it is not found, or how it was compiled
    api : version of XLA's FFI that it was built for ("0.3"), None if unknown
    isa : instruction set that it may use ("x86-64"), None if unknown
    """

    found: bool
    path: str | None
    reason: str
    api: str | None
    isa: str | None


def status() -> KernelStatus:
    """Find, load and check the compiled library.

    Raises
    ------
    RanvierError
        The library is missing or unusable and RANVIER_REQUIRE_NATIVE is 1. Never otherwise.
    """
    found = _inspect(_folders())
    if not found.found and os.environ.get("RANVIER_REQUIRE_NATIVE") == "1":
        raise RanvierError(
            f"kernels.status: {found.reason}; RANVIER_REQUIRE_NATIVE=1 needs the compiled library; "
            "install ranvier again where a C++ compiler is, or unset RANVIER_REQUIRE_NATIVE"
        )
    return found


def target(name: str, dtype) -> str:
    """The name under which XLA knows the handler `name` for arrays of `dtype`."""
    return f"ranvier_{name}_{_SUFFIX[str(dtype)]}"


@functools.cache
def register() -> None:
    """Make the handlers known to XLA; call it only where `status().found`."""
    import jax

    path = status().path
    assert path is not None
    library = ctypes.CDLL(path)
    for name in _HANDLERS:
        for dtype in _SUFFIX:
            symbol = target(name, dtype)
            jax.ffi.register_ffi_target(symbol, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu")


def _folders() -> tuple[Path, ...]:
    """Where the library may lie: an editable install has two package folders, the source and the installed one."""
    if folder := os.environ.get("RANVIER_LIB_DIR"):
        return (Path(folder),)
    import ranvier

    return tuple(Path(folder) / "lib" for folder in ranvier.__path__)


@functools.cache
def _inspect(folders: tuple[Path, ...]) -> KernelStatus:
    path = next((f / _LIBRARY for f in folders if (f / _LIBRARY).is_file()), None)
    if path is None:
        searched = ", ".join(str(f) for f in folders)
        reason = f"no compiled library {_LIBRARY} in {searched} (installed without a C++ compiler, or not installed)"
        return KernelStatus(False, None, f"{reason}; the JAX reference computes everything", None, None)
    try:
        library = ctypes.CDLL(str(path))
        api = (library.ranvier_ffi_api_major(), library.ranvier_ffi_api_minor())
        isa = _text(library.ranvier_isa)
        compiler = _text(library.ranvier_compiler)
    except (OSError, AttributeError) as error:  # not loadable here, or a function is missing: another release's library
        return KernelStatus(False, str(path), f"{path} cannot be used: {' '.join(str(error).split())}", None, None)
    runtime = _runtime_api()
    if runtime is not None and not (api[0] == runtime[0] and api[1] <= runtime[1]):
        # XLA refuses such a handler only when a backend starts, and then no backend starts at all.
        reason = f"{path} is built for XLA FFI {_dotted(api)}; the installed jaxlib has {_dotted(runtime)}"
        return KernelStatus(False, str(path), reason, _dotted(api), isa)
    running = _text(library.ranvier_running_isa)
    reason = f"LIF in the continuous scheme on the CPU, {running} code, compiled with {compiler}"
    return KernelStatus(True, str(path), reason, _dotted(api), isa)


def _text(function) -> str:
    function.restype = ctypes.c_char_p
    return function().decode()


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
