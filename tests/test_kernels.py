"""The loader of the compiled library: each way to be there, to be missing and to be wrong."""

import _ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from ranvier import kernels
from ranvier.errors import RanvierError

ROOT = Path(__file__).parent.parent
NAME = "libranvier_cpu.so"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The one folder that is searched, empty; a missing library is allowed."""
    monkeypatch.setenv("RANVIER_LIB_DIR", str(tmp_path))
    monkeypatch.delenv("RANVIER_REQUIRE_NATIVE", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The library for one instruction set and without optimisation, which compiles quickly."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("library") / NAME
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-DRANVIER_NS=base"]
    sources = [str(ROOT / "csrc" / name) for name in ("ranvier_cpu.cc", "lif_ffi.cc", "lif_kernels.cc")]
    headers = ["-isystem", str(ROOT / "third_party" / "xla_ffi")]
    subprocess.run([compiler, *options, *headers, *sources, "-o", str(path)], check=True)
    return path


@pytest.fixture
def built(folder, library):
    """The library in the searched folder."""
    return Path(shutil.copy(library, folder / NAME))


def test_a_required_library_is_there():
    """With RANVIER_REQUIRE_NATIVE=1 in the environment of the tests, this fails where the library is missing."""
    kernels.status()


def test_built_library_is_found(built):
    status = kernels.status()
    assert status.found
    assert status.path == str(built)
    assert status.api == "0.3"
    assert status.isa in ("x86-64", "x86-64-v3", "x86-64-v4", "aarch64", "other")
    assert "compiled with" in status.reason and "\n" not in status.reason


def test_missing_library_is_said_not_raised(folder):
    status = kernels.status()
    assert (status.found, status.path, status.api, status.isa) == (False, None, None, None)
    assert str(folder) in status.reason and "\n" not in status.reason


def test_missing_library_is_an_error_where_it_is_required(folder, monkeypatch):
    monkeypatch.setenv("RANVIER_REQUIRE_NATIVE", "1")
    with pytest.raises(RanvierError, match="RANVIER_REQUIRE_NATIVE=1 needs the compiled library") as error:
        kernels.status()
    assert "\n" not in str(error.value)


def test_required_and_there(built, monkeypatch):
    monkeypatch.setenv("RANVIER_REQUIRE_NATIVE", "1")
    assert kernels.status().found


def test_a_file_that_is_no_library(folder):
    (folder / NAME).write_text("not a library")
    status = kernels.status()
    assert not status.found and status.path == str(folder / NAME)
    assert "cannot be used" in status.reason and "\n" not in status.reason


def test_a_library_without_our_functions(folder):
    shutil.copy(_ctypes.__file__, folder / NAME)
    status = kernels.status()
    assert not status.found
    assert "ranvier_ffi_api_major" in status.reason


@pytest.mark.parametrize(
    ("runtime", "found"), [((0, 2), False), ((0, 3), True), ((0, 5), True), ((1, 3), False), (None, True)]
)
def test_ffi_version_is_compared_with_the_one_of_jaxlib(built, monkeypatch, runtime, found):
    """A handler newer than XLA stops every backend from starting, so it must never get as far as registration."""
    monkeypatch.setattr(kernels, "_runtime_api", lambda: runtime)
    status = kernels.status()
    assert status.found == found
    assert status.api == "0.3"
    assert found or f"the installed jaxlib has {runtime[0]}.{runtime[1]}" in status.reason


def test_runtime_version_is_read_from_jaxlib():
    """JAX 0.10, the oldest supported, has 0.3."""
    runtime = kernels._runtime_api()
    assert runtime is not None and runtime >= (0, 3)


def test_unreadable_header_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr("jax.ffi.include_dir", lambda: str(tmp_path))
    assert kernels._runtime_api() is None
    header = tmp_path / "xla/ffi/api/c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 0\n")
    assert kernels._runtime_api() is None
