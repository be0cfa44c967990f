// cuBLAS, which JAX loads before it uses a GPU: looked up when it is first needed, so that nothing links to a version.
#pragma once
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <mutex>
#include <vector>

namespace ranvier {

// What is multiplied, and how exactly.
enum class Numbers { kFloat32, kTf32, kBfloat16 };

// A matrix as rows of numbers, one after another, `row` numbers from each to the next; `batch` to the next matrix.
struct Rows {
  const void* data;
  int64_t row, batch;
  bool turned;  // the product takes it with rows and columns exchanged
};

class Cublas {
 public:
  static constexpr size_t kWorkspace = size_t(32) << 20;  // bytes; what cuBLAS asks for on the GPUs from 90 on

  // The one of this process; it stays, since threads may still compute while the process ends. `works` tells whether
  // there is one.
  static Cublas& get() {
    static Cublas& cublas = *new Cublas;
    return cublas;
  }
  bool works() const { return multiply_ != nullptr; }

  // Holds a handle for as long as work is put on a stream: handles are no good to two threads at once.
  class Lease {
   public:
    Lease(Cublas& cublas, cudaStream_t stream, void* workspace) : cublas_(cublas) {
      if (cudaGetDevice(&device_) != cudaSuccess) return;
      {
        const std::lock_guard<std::mutex> lock(cublas_.mutex_);
        if (cublas_.free_.size() <= size_t(device_)) cublas_.free_.resize(device_ + 1);
        auto& free = cublas_.free_[device_];
        if (!free.empty()) handle_ = free.back(), free.pop_back();
      }
      if (!handle_ && cublas_.create_(&handle_) != 0) handle_ = nullptr;
      ready_ = handle_ && cublas_.set_stream_(handle_, stream) == 0 &&
               cublas_.set_workspace_(handle_, workspace, kWorkspace) == 0;
    }
    ~Lease() {
      if (!handle_) return;
      const std::lock_guard<std::mutex> lock(cublas_.mutex_);
      cublas_.free_[device_].push_back(handle_);
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    // out (m, n) = a (m, k) b (k, n), or that added to it, for each of a batch.
    cudaError_t multiply(Numbers numbers, int64_t m, int64_t n, int64_t k, Rows a, Rows b, bool add, float* out,
                         int64_t out_batch, int64_t batches) {
      // it takes memory of its own when it starts, and finds none where JAX took all
      if (!handle_) return cudaErrorMemoryAllocation;
      if (std::max({m, n, k, a.row, b.row, batches}) > INT_MAX) return cudaErrorInvalidValue;
      // cuBLAS has columns one after another: to it, every matrix here is the other way round.
      constexpr int kAsIs = 0, kTurned = 1, kFloat = 0, kBf16 = 14, kExact = 68, kFastTf32 = 77, kDefault = -1;
      const float one = 1, old = add ? 1 : 0;
      const int type = numbers == Numbers::kBfloat16 ? kBf16 : kFloat;
      const bool taken =
          ready_ && cublas_.multiply_(handle_, b.turned ? kTurned : kAsIs, a.turned ? kTurned : kAsIs, int(n), int(m),
                                      int(k), &one, b.data, type, int(b.row), b.batch, a.data, type, int(a.row),
                                      a.batch, &old, out, kFloat, int(n), out_batch, int(batches),
                                      numbers == Numbers::kTf32 ? kFastTf32 : kExact, kDefault) == 0;
      return taken ? cudaSuccess : cudaErrorUnknown;
    }

   private:
    Cublas& cublas_;
    int device_ = 0;
    void* handle_ = nullptr;
    bool ready_ = false;
  };

 private:
  using Multiply = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, long long, const void*,
                           int, int, long long, const void*, void*, int, int, long long, int, int, int);

  Cublas() {
    constexpr const char* kNames[] = {"libcublas.so.13", "libcublas.so.12"};
    void* library = nullptr;
    // the one that is there already, before another
    for (int how : {RTLD_NOW | RTLD_NOLOAD, RTLD_NOW + 0})
      for (const char* name : kNames)
        if (!library) library = dlopen(name, how);
    if (!library) return;
    create_ = reinterpret_cast<int (*)(void**)>(dlsym(library, "cublasCreate_v2"));
    set_stream_ = reinterpret_cast<int (*)(void*, cudaStream_t)>(dlsym(library, "cublasSetStream_v2"));
    set_workspace_ = reinterpret_cast<int (*)(void*, void*, size_t)>(dlsym(library, "cublasSetWorkspace_v2"));
    const auto multiply = reinterpret_cast<Multiply>(dlsym(library, "cublasGemmStridedBatchedEx"));
    if (create_ && set_stream_ && set_workspace_) multiply_ = multiply;
  }

  int (*create_)(void**) = nullptr;
  int (*set_stream_)(void*, cudaStream_t) = nullptr;
  int (*set_workspace_)(void*, void*, size_t) = nullptr;
  Multiply multiply_ = nullptr;
  std::mutex mutex_;
  std::vector<std::vector<void*>> free_;  // handles of each device
};

}  // namespace ranvier
