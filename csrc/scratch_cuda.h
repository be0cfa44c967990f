// One piece of scratch memory on the GPU, cut into arrays.
#pragma once
#include <cstddef>

namespace ranvier {

struct Layout {
  char* base;  // null to find out how much is needed
  size_t used = 0;
  template <class T>
  void take(T*& pointer, size_t n) {
    pointer = reinterpret_cast<T*>(base + used);
    used += (n * sizeof(T) + 255) / 256 * 256;
  }
};

}  // namespace ranvier
