// The compiled library for NVIDIA GPUs: what it was built for and with, and whether this machine can run it.
//
// The build defines RANVIER_NVCC, its version; RANVIER_REAL, the architectures with machine code (80,90: compute
// capability 8.0 and 9.0); RANVIER_VIRTUAL, those with PTX, which the driver compiles. Strings are never freed.
#include <cuda_runtime_api.h>

#include <initializer_list>
#include <string>

#include "library.h"

namespace {

// Machine code runs from its own compute capability on within the same major version, PTX on all later ones.
bool runs_on(int capability) {
  for (int a : std::initializer_list<int>{RANVIER_REAL})
    if (capability / 10 == a / 10 && capability >= a) return true;
  for (int a : std::initializer_list<int>{RANVIER_VIRTUAL})
    if (capability >= a) return true;
  return false;
}

std::string dotted(int tens) { return std::to_string(tens / 10) + "." + std::to_string(tens % 10); }

// CUDA writes 13.0 as 13000.
std::string cuda(int version) { return "CUDA " + dotted(version / 100 + version % 100 / 10); }

std::string code() {
  std::string text = "compute capability";
  const char* separator = " ";
  for (int a : std::initializer_list<int>{RANVIER_REAL}) text += separator + dotted(a), separator = ", ";
  for (int a : std::initializer_list<int>{RANVIER_VIRTUAL}) text += separator + dotted(a) + " as PTX", separator = ", ";
  return text;
}

// Whether the kernels can run here, and one line that says why or why not. Asked once: it does not change.
struct Machine {
  bool usable = false;
  std::string text;

  Machine() {
    int driver = 0, devices = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
      text = "no NVIDIA driver";
      return;
    }
    // A driver runs what was built for its own major version of CUDA and for older ones.
    if (driver / 1000 < CUDART_VERSION / 1000) {
      text = "the NVIDIA driver is for " + cuda(driver) + ", older than the " + cuda(CUDART_VERSION) +
             " of this library; update the driver";
      return;
    }
    if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
      text = std::string("no usable GPU: ") + (error == cudaSuccess ? "none is visible" : cudaGetErrorString(error));
      return;
    }
    std::string unfit;
    for (int device = 0; device < devices; ++device) {
      int major = 0, minor = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      const int capability = 10 * major + minor;
      if (!runs_on(capability) && unfit.empty()) unfit = dotted(capability);
    }
    if (!unfit.empty()) {
      text = "a GPU here has compute capability " + unfit + ", and this library has code for " + code();
      return;
    }
    usable = true;
    text = std::to_string(devices) + (devices == 1 ? " GPU" : " GPUs") + ", driver for " + cuda(driver);
  }
};

const Machine& machine() {
  static const Machine here;
  return here;
}

}  // namespace

RANVIER_EXPORT const char* ranvier_compiler() { return "nvcc " RANVIER_NVCC " and " RANVIER_COMPILER; }

// The GPUs that it has code for.
RANVIER_EXPORT const char* ranvier_isa() {
  static const std::string text = code();
  return text.c_str();
}

// Whether every GPU that the process sees can run the kernels. This one and the next ask the driver, nothing else does.
RANVIER_EXPORT int ranvier_cuda_usable() { return machine().usable; }

RANVIER_EXPORT const char* ranvier_cuda_driver() { return machine().text.c_str(); }
