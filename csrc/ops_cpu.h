// What the FFI handlers of ranvier.ops on the CPU share: the kernels of the instruction set that runs, and how work is
// cut into pieces.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "ops_kernels.h"

extern "C" const char* ranvier_running_isa();

namespace ranvier {

// Pieces for each thread: a thread that other work holds up leaves more of them to the others.
constexpr int64_t kPieces = 4;

// of(4), of(3) or of(0): the instruction set that runs, by its level.
template <class Of>
auto pick(Of&& of) {
#if defined(RANVIER_X86)
  if (!std::strcmp(ranvier_running_isa(), "x86-64-v4")) return of(4);
  if (!std::strcmp(ranvier_running_isa(), "x86-64-v3")) return of(3);
#endif
  return of(0);
}

template <class A, class M>
const OpsMatrixKernels<A, M>& matrix_kernels() {
  static const auto best = pick([](int level) {
    (void)level;
#if defined(RANVIER_X86)
    if (level == 4) return v4::ops_matrix_kernels<A, M>();
    if (level == 3) return v3::ops_matrix_kernels<A, M>();
#endif
    return base::ops_matrix_kernels<A, M>();
  });
  return best;
}

inline int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `size` things in pieces of nearly the same size.
struct Cut {
  int64_t size, pieces;
  Cut(int64_t size, int64_t pieces) : size(size), pieces(std::clamp<int64_t>(pieces, 1, std::max<int64_t>(size, 1))) {}
  Range operator[](int64_t k) const { return {size * k / pieces, size * (k + 1) / pieces}; }
};

// Large results are new memory at every call, and will be written as a whole: the system hands it out faster in large
// pages. Smaller ones are memory that was used before.
inline void expect_all_of(void* array, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kLarge = int64_t(32) << 20;
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const auto at = reinterpret_cast<uintptr_t>(array);
  const uintptr_t begin = (at + kPage - 1) / kPage * kPage, end = (at + bytes) / kPage * kPage;
  if (bytes >= kLarge) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may be refused
#else
  (void)array, (void)bytes;
#endif
}

}  // namespace ranvier
