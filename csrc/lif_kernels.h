// What the FFI handlers (lif_ffi.cc) and the kernels (lif_kernels.cc) of the CPU agree on.
#pragma once
#include <cstdint>
#include <functional>

#include "lif_call.h"

namespace ranvier {

// Does body(0), ..., body(n - 1), in any order and on any threads.
using Loop = std::function<void(int64_t n, const std::function<void(int64_t)>& body)>;

// A whole call. The results do not depend on the loop's order or threads.
template <class R>
struct Kernels {
  void (*forward)(const Call<R>&, const Loop&);
  void (*backward)(const Call<R>&, const Loop&);
};

#define RANVIER_DECLARE(NS)                          \
  namespace NS {                                     \
  template <class R>                                 \
  Kernels<R> kernels();                              \
  extern template Kernels<float> kernels<float>();   \
  extern template Kernels<double> kernels<double>(); \
  }
RANVIER_DECLARE(base)
RANVIER_DECLARE(v3)
RANVIER_DECLARE(v4)
#undef RANVIER_DECLARE

}  // namespace ranvier
