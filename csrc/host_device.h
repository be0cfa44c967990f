// Code for both targets: under nvcc a function marked RANVIER_HD is compiled for the host and the device.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define RANVIER_HD __host__ __device__ __forceinline__
#else
#define RANVIER_HD inline
#endif
#if defined(__CUDA_ARCH__)
#define RANVIER_UNROLL _Pragma("unroll")
#else
#define RANVIER_UNROLL
#endif

namespace ranvier {

template <class R>
RANVIER_HD R min_(R a, R b) {
  return b < a ? b : a;
}
template <class R>
RANVIER_HD R max_(R a, R b) {
  return a < b ? b : a;
}
RANVIER_HD float epsilon(float) { return 1.1920929e-7f; }
RANVIER_HD double epsilon(double) { return 2.220446049250313e-16; }

}  // namespace ranvier
