// What the programs that time GPU kernels alone share: memory on the device, refusals, and launches between two events.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

inline void check(cudaError_t e) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(e));
  std::exit(1);
}

// Device memory of a list of numbers, filled with bits that are not numbers where nothing is copied.
template <class T>
struct Device {
  T* at = nullptr;
  size_t size;
  explicit Device(size_t size) : size(size) {
    check(cudaMalloc(&at, std::max<size_t>(size, 1) * sizeof(T)));
    spoil();
  }
  explicit Device(const std::vector<T>& x) : Device(x.size()) {
    check(cudaMemcpy(at, x.data(), size * sizeof(T), cudaMemcpyHostToDevice));
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(at); }
  void spoil() { check(cudaMemset(at, 0xff, size * sizeof(T))); }
  std::vector<T> read() const {
    std::vector<T> x(size);
    check(cudaMemcpy(x.data(), at, size * sizeof(T), cudaMemcpyDeviceToHost));
    return x;
  }
};

// Microseconds of one of so many launches in a row.
template <class Launch>
double microseconds_each(int launches, Launch launch) {
  static const auto event = [] {
    cudaEvent_t e;
    check(cudaEventCreate(&e));
    return e;
  };
  static const cudaEvent_t begin = event(), end = event();
  check(cudaEventRecord(begin));
  for (int k = 0; k < launches; ++k) launch();
  check(cudaEventRecord(end));
  check(cudaEventSynchronize(end));
  float ms;
  check(cudaEventElapsedTime(&ms, begin, end));
  return 1e3 * double(ms) / launches;
}
