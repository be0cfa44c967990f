// Code for both targets: under nvcc a function marked RANVIER_HD is compiled for the host and the device. RANVIER_LANE
// marks those that stand in loops over lanes: what the host compiler leaves as a call there keeps it from vectorising.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define RANVIER_HD __host__ __device__ __forceinline__
#define RANVIER_LANE RANVIER_HD
#else
#define RANVIER_HD inline
#define RANVIER_LANE inline __attribute__((always_inline))
#endif
#if defined(__CUDA_ARCH__)
#define RANVIER_UNROLL _Pragma("unroll")
#define RANVIER_ROLLED _Pragma("unroll 1")  // keeps rare code small: the instruction cache counts
#else
#define RANVIER_UNROLL
#define RANVIER_ROLLED
#endif

// What is compiled for several instruction sets must have a name of its own in each: the linker keeps one function of a
// name, and the fastest machine's code would run on all.
#define RANVIER_JOIN_(a, b) a##b
#define RANVIER_JOIN(a, b) RANVIER_JOIN_(a, b)
#if defined(RANVIER_NS)
#define RANVIER_TARGET RANVIER_JOIN(for_, RANVIER_NS)
#else
#define RANVIER_TARGET for_any
#endif

namespace ranvier {
inline namespace RANVIER_TARGET {

// Of a and b; a where b is no number.
template <class R>
RANVIER_HD R min_(R a, R b) {
#if defined(__CUDA_ARCH__)
  return fmin(a, b);  // one instruction
#else
  return b < a ? b : a;
#endif
}
template <class R>
RANVIER_HD R max_(R a, R b) {
#if defined(__CUDA_ARCH__)
  return fmax(a, b);
#else
  return a < b ? b : a;
#endif
}
RANVIER_HD float epsilon(float) { return 1.1920929e-7f; }
RANVIER_HD double epsilon(double) { return 2.220446049250313e-16; }

}  // namespace RANVIER_TARGET
}  // namespace ranvier
