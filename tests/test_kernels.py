"""The loader of the compiled libraries: each way to be there, to be missing and to be wrong.

The libraries under test have the real functions that speak of the library, and handlers that do nothing. The one for
GPUs is built on a CUDA runtime of our own making, whose machine is set by environment variables.
"""

import _ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ranvier import kernels
from ranvier.cli import main
from ranvier.errors import RanvierError

ROOT = Path(__file__).parent.parent
NAMES = {"cpu": "libranvier_cpu.so", "cuda": "libranvier_cuda.so"}
WORKING = {"TEST_DRIVER": "13020", "TEST_GPUS": "90"}

# What ranvier_cuda.cc needs of CUDA 13.0. TEST_GPUS="90 89": two GPUs, of compute capability 9.0 and 8.9.
RUNTIME = r"""
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>
#define CUDART_VERSION 13000
enum cudaError_t { cudaSuccess = 0, cudaErrorNoDevice = 100 };
enum { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
inline std::string setting(const char* name) { const char* s = std::getenv(name); return s ? s : ""; }
inline std::vector<int> gpus() {
  std::istringstream text(setting("TEST_GPUS"));
  std::vector<int> all;
  for (int x; text >> x;) all.push_back(x);
  return all;
}
inline const char* cudaGetErrorString(cudaError_t) { return "no CUDA-capable device is detected"; }
inline cudaError_t cudaDriverGetVersion(int* v) { *v = std::atoi(setting("TEST_DRIVER").c_str()); return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* n) {
  *n = static_cast<int>(gpus().size());
  return *n ? cudaSuccess : cudaErrorNoDevice;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? gpus()[device] / 10 : gpus()[device] % 10;
  return cudaSuccess;
}
"""


def handlers(*names):
    lines = [
        f'extern "C" __attribute__((visibility("default"))) void* {kernels.target(name, dtype)}(void*) {{ return 0; }}'
        for name in names
        for dtype in kernels.HANDLERS[name]
    ]
    return "\n".join(lines)


def compiled(folder, name, source, *options):
    """Compile text to a library, without optimisation."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (folder / "source.cc").write_text(source)
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden", *options]
    command = [compiler, *options, f"-I{ROOT / 'csrc'}", f"-I{folder}", folder / "source.cc", "-o", folder / name]
    subprocess.run(command, check=True)
    return folder / name


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Every handler on the CPU, all but grid_backward on the GPU."""
    cpu = '#include "ranvier_cpu.cc"\nRANVIER_EXPORT const char* ranvier_running_isa() { return "baseline"; }\n'
    cpu = compiled(tmp_path_factory.mktemp("cpu"), NAMES["cpu"], cpu + handlers(*kernels.HANDLERS))
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "cuda_runtime_api.h").write_text(RUNTIME)
    cuda = '#include "ranvier_cuda.cc"\n' + handlers("lif_forward", "lif_backward", "grid_forward")
    build = ('-DRANVIER_NVCC="13.0.88"', "-DRANVIER_REAL=80,90,120", "-DRANVIER_VIRTUAL=120")
    return {"cpu": cpu, "cuda": compiled(folder, NAMES["cuda"], cuda, *build)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The one folder that is searched, empty; a missing library is allowed."""
    monkeypatch.setenv("RANVIER_LIB_DIR", str(tmp_path))
    monkeypatch.delenv("RANVIER_REQUIRE_NATIVE", raising=False)
    return tmp_path


@pytest.fixture
def built(folder, libraries, monkeypatch):
    """Both libraries in the searched folder, on a machine where both work."""
    for name, value in WORKING.items():
        monkeypatch.setenv(name, value)
    return {device: Path(shutil.copy(path, folder)) for device, path in libraries.items()}


def computes_on(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)


def test_a_required_library_is_there():
    """With RANVIER_REQUIRE_NATIVE=1 in the environment of the tests, this fails where the library is missing."""
    kernels.status()
    kernels.available("lif_forward")


def test_both_libraries_are_found(built):
    cpu, cuda = kernels.status(), kernels.status("cuda")
    assert cpu.found and cuda.found
    assert (cpu.path, cuda.path) == (str(built["cpu"]), str(built["cuda"]))
    assert cpu.api == cuda.api == "0.3"
    assert cpu.isa in ("x86-64", "x86-64-v3", "x86-64-v4", "aarch64", "other")
    assert cuda.isa == "compute capability 8.0, 9.0, 12.0, 12.0 as PTX"
    assert cpu.handlers == tuple(kernels.HANDLERS)
    assert cuda.handlers == ("lif_forward", "lif_backward", "grid_forward")
    assert cpu.reason.startswith(
        "continuous scheme, grid scheme, sparse operators and LIF layers over time on the CPU, baseline code, compiled"
    )
    assert re.fullmatch(
        r"continuous scheme and grid scheme on NVIDIA GPUs, code for compute capability .*, compiled with "
        r"nvcc 13.0.88 and .*; 1 GPU, driver for CUDA 13.2",
        cuda.reason,
    )


@pytest.mark.parametrize("device", NAMES)
def test_missing_library_is_said_not_raised(folder, device):
    status = kernels.status(device)
    assert (status.found, status.path, status.api, status.isa, status.handlers) == (False, None, None, None, ())
    assert NAMES[device] in status.reason and str(folder) in status.reason and "\n" not in status.reason


@pytest.mark.parametrize(("device", "compiler"), [("cpu", "a C++ compiler"), ("cuda", "nvcc")])
def test_missing_library_is_an_error_where_it_is_required(folder, monkeypatch, device, compiler):
    monkeypatch.setenv("RANVIER_REQUIRE_NATIVE", "1")
    with pytest.raises(
        RanvierError, match=f"RANVIER_REQUIRE_NATIVE=1 needs .* where {re.escape(compiler)} is"
    ) as error:
        kernels.status(device)
    assert "\n" not in str(error.value)
    assert not kernels.find(device).found


def test_required_and_there(built, monkeypatch):
    monkeypatch.setenv("RANVIER_REQUIRE_NATIVE", "1")
    assert kernels.status().found and kernels.status("cuda").found


@pytest.mark.parametrize("device", NAMES)
def test_a_file_that_is_no_library(folder, device):
    (folder / NAMES[device]).write_text("not a library")
    status = kernels.status(device)
    assert not status.found and status.path == str(folder / NAMES[device])
    assert "cannot be used" in status.reason and "\n" not in status.reason


def test_a_library_without_our_functions(folder):
    shutil.copy(_ctypes.__file__, folder / NAMES["cpu"])
    status = kernels.status()
    assert not status.found
    assert "ranvier_interface" in status.reason


@pytest.mark.parametrize("device", NAMES)
def test_a_library_of_another_release(built, monkeypatch, device):
    """Its handlers take other buffers than the ones this release hands over."""
    monkeypatch.setattr(kernels, "_INTERFACE", kernels._INTERFACE + 1)
    status = kernels.status(device)
    assert not status.found and "install ranvier again" in status.reason


@pytest.mark.parametrize("device", NAMES)
@pytest.mark.parametrize(
    ("runtime", "found"), [((0, 2), False), ((0, 3), True), ((0, 5), True), ((1, 3), False), (None, True)]
)
def test_ffi_version_is_compared_with_the_one_of_jaxlib(built, monkeypatch, device, runtime, found):
    """A handler newer than XLA stops every backend from starting, so it must never get as far as registration."""
    monkeypatch.setattr(kernels, "_runtime_api", lambda: runtime)
    status = kernels.status(device)
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


@pytest.mark.parametrize(
    ("driver", "gpus", "why"),
    [
        ("0", "90", "no NVIDIA driver"),
        (
            "12090",
            "90",
            "the NVIDIA driver is for CUDA 12.9, older than the CUDA 13.0 of this library; update the driver",
        ),
        ("13000", "", "no usable GPU: no CUDA-capable device is detected"),
        (
            "13000",
            "75",
            "a GPU here has compute capability 7.5, and this library has code for compute capability 8.0, ",
        ),
        ("13000", "110", "a GPU here has compute capability 11.0, "),
        ("13000", "90 75", "a GPU here has compute capability 7.5, "),
        ("13000", "89", None),
        ("13000", "121", None),
        ("14000", "150", None),
        ("13000", "80 90", None),
    ],
)
def test_driver_and_gpus(built, monkeypatch, driver, gpus, why):
    monkeypatch.setenv("TEST_DRIVER", driver)
    monkeypatch.setenv("TEST_GPUS", gpus)
    status = kernels.status("cuda")
    assert status.found == (why is None)
    assert "\n" not in status.reason
    assert why is None or status.reason.startswith(f"{built['cuda']} cannot run here: {why}")


def test_available_asks_the_library_of_what_jax_computes_on(built, monkeypatch):
    computes_on(monkeypatch, "cpu")
    assert [kernels.available(name) for name in kernels.HANDLERS] == [None] * len(kernels.HANDLERS)
    for backend in ("gpu", "cuda"):
        computes_on(monkeypatch, backend)
        assert kernels.available("lif_backward") is None
        assert kernels.available("grid_backward") == "the compiled kernels for NVIDIA GPUs have no grid_backward"
    computes_on(monkeypatch, "tpu")
    assert "JAX computes on tpu" in kernels.available("lif_forward")


def test_available_says_what_is_missing(built, monkeypatch):
    computes_on(monkeypatch, "gpu")
    monkeypatch.setenv("TEST_DRIVER", "12040")
    assert "update the driver" in kernels.available("lif_forward")


def test_required_where_jax_computes(folder, libraries, monkeypatch):
    """The CPU's library alone is enough on a CPU, not on a GPU; a handler that a library lacks is no error."""
    shutil.copy(libraries["cpu"], folder)
    monkeypatch.setenv("RANVIER_REQUIRE_NATIVE", "1")
    computes_on(monkeypatch, "cpu")
    assert kernels.available("lif_forward") is None
    assert kernels.available("other") == "the compiled kernels for the CPU have no other"
    computes_on(monkeypatch, "gpu")
    with pytest.raises(RanvierError, match="libranvier_cuda.so"):
        kernels.available("lif_forward")


@pytest.mark.parametrize(
    ("driver", "line"),
    [
        ("13000", "JAX does not see the GPU: install ranvier[cuda], and leave JAX_PLATFORMS unset"),
        ("12040", "the NVIDIA driver is for CUDA 12.4, older than the CUDA 13.0 of this library; update the driver"),
    ],
)
def test_info_says_why_the_gpu_computes_nothing(built, monkeypatch, capsys, driver, line):
    monkeypatch.setenv("TEST_DRIVER", driver)
    computes_on(monkeypatch, "cpu")
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(text.endswith(line) for text in lines) == 1
    assert f"kernels   cpu   {built['cpu']}" in lines


EVERY = sum(len(dtypes) for dtypes in kernels.HANDLERS.values())


@pytest.mark.parametrize(("runtime", "count"), [((0, 3), {"cpu": EVERY, "CUDA": 6}), ((0, 2), {})])
def test_what_is_registered(built, monkeypatch, runtime, count):
    """Everything in both libraries if XLA takes it, nothing otherwise. A GPU and its driver are not needed for it."""
    made = []
    monkeypatch.setattr(kernels, "_runtime_api", lambda: runtime)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda name, capsule, platform: made.append((platform, name)))
    monkeypatch.setenv("TEST_DRIVER", "0")
    kernels.register.__wrapped__()
    platforms = [platform for platform, _ in made]
    assert {p: platforms.count(p) for p in platforms} == count
    if count:
        assert ("CUDA", "ranvier_lif_forward_f32") in made and ("cpu", "ranvier_grid_backward_f64") in made
        assert ("CUDA", "ranvier_grid_backward_f32") not in made


def test_a_backend_starts_with_the_handlers_for_gpus():
    """XLA is given the real ones for a platform that it may not have; that must not disturb the others."""
    if not any(kernels.find(device).path for device in NAMES):
        pytest.skip("no compiled library")
    code = "from ranvier import kernels; kernels.register(); import jax; print(jax.numpy.arange(3).sum())"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
