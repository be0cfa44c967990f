// GPU launchers of the LIF layer over time: how many steps and blocks of which kernel. The kernels, and what each is
// about, are in ops_lif_block_cuda.h, ops_lif_walk_cuda.h and ops_lif_recurrent_cuda.h, their ways back in
// ops_lif_block_back_cuda.h, ops_lif_back_cuda.h and ops_lif_recurrent_back_cuda.h.
//
// No sum depends on which thread comes first: the same call gives the same bits.
#include <algorithm>
#include <type_traits>

#include "ops_lif_back_cuda.h"
#include "ops_lif_block_back_cuda.h"
#include "ops_lif_block_cuda.h"
#include "ops_lif_cuda.h"
#include "ops_lif_recurrent_back_cuda.h"
#include "ops_lif_recurrent_cuda.h"
#include "ops_lif_walk_cuda.h"
#include "scratch_cuda.h"

namespace ranvier {
namespace {

using namespace ops;

constexpr size_t kLifScratch = size_t(64) << 20;  // bytes for a chunk of steps, unless one step needs more
constexpr int64_t kManyWords = 132 * 32;          // of neurons: enough to keep an H100 busy with two a warp
constexpr int64_t kBackWarps = 16;                // of a block that walks back: they share the entries of a list
constexpr int64_t kManySamples = 128;             // a block each keeps an H100 busy
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool aligned(const void* place) { return reinterpret_cast<uintptr_t>(place) % 16 == 0; }

// Bytes of shared memory that a block may have on the GPU in use, beside what is static.
size_t most_shared() {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return size_t(40) << 10;
  return static_cast<size_t>(most) - 2048;
}

template <class Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= size_t(40) << 10) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

int64_t samples_of(const LifLoopSizes& z) { return z.q * z.r; }

// Steps of a chunk of which one needs `bytes`: as many as fit, all chunks about the same.
int64_t steps_of(const LifLoopSizes& z, size_t bytes) {
  const int64_t most = std::clamp<int64_t>(static_cast<int64_t>(kLifScratch / std::max<size_t>(bytes, 1)), 1, z.t);
  return ceiling(z.t, ceiling(z.t, most));
}

// Whether a sample is one block's, with `bytes` of shared memory; that pays for `few` words with few samples, too.
bool by_blocks(const LifLoopSizes& z, size_t bytes, int64_t few) {
  const int64_t words = words_of(z.n);
  return !z.recurrent && words <= 32 && bytes <= most_shared() && (words <= few || samples_of(z) >= kManySamples);
}

// Steps between two barriers: few where there are many neurons, for the room and because they take long enough.
constexpr int kFewSteps = 8, kManySteps = 16;

template <class A>
size_t block_bytes(int64_t words) {
  return words > 16 ? block_room<A, kFewSteps>(words) : block_room<A, kManySteps>(words);
}
template <class A>
size_t block_back_bytes(int64_t words) {
  return 2 * BlockBackRoom<A>::bytes(words);
}

template <class A, int kOwn, int kSteps>
cudaError_t launch_block(const LifForwardCall<A>& call, cudaStream_t stream) {
  const int64_t words = words_of(call.size.n), lists = kWarp / list_lanes(words);
  const int64_t warps = ceiling(words, kOwn) + std::min<int64_t>(ceiling(kSteps, lists), 8);
  const size_t bytes = block_bytes<A>(words);
  const auto kernel = call.window ? lif_block<A, kOwn, kSteps, true> : lif_block<A, kOwn, kSteps, false>;
  if (const cudaError_t error = allow_shared(kernel, bytes); error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(samples_of(call.size)), static_cast<unsigned>(warps * kWarp), bytes, stream>>>(call);
  return cudaGetLastError();
}

template <class A, int kOwn>
cudaError_t launch_block_back(const LifBackwardCall<A>& call, cudaStream_t stream) {
  const int64_t words = words_of(call.size.n), warps = ceiling(words, kOwn);
  const size_t bytes = block_back_bytes<A>(words);
  const auto kernel = lif_block_back<A, kOwn>;
  if (const cudaError_t error = allow_shared(kernel, bytes); error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(samples_of(call.size)), static_cast<unsigned>(warps * kWarp), bytes, stream>>>(call);
  return cudaGetLastError();
}

template <class A>
size_t arrange(const LifForwardCall<A>& call, void* scratch, LifChunk<A>& w) {
  const LifLoopSizes& z = call.size;
  const int64_t words = samples_of(z) * words_of(z.n);
  w = {};
  if (z.recurrent || words == 0) return 0;
  w.own = words > kManyWords && words_of(z.n) > 1 ? 2 : 1;
  const int64_t room = samples_of(z) * ceiling(words_of(z.n), w.own) * w.own;
  w.steps = steps_of(z, words * sizeof(uint2) + room * kWarp * sizeof(A));
  Layout layout{static_cast<char*>(scratch)};
  layout.take(w.words, w.steps * words);
  layout.take(w.excess, w.steps * room * kWarp);
  return layout.used;
}

template <class A>
size_t arrange(const LifBackwardCall<A>& call, void* scratch, LifBackChunk<A>& w) {
  const LifLoopSizes& z = call.size;
  const int64_t samples = samples_of(z), warps = samples * words_of(z.n);
  w = {};
  if (z.recurrent || warps == 0) return 0;
  w.steps = steps_of(z, warps * sizeof(uint2) + samples * z.s * sizeof(A));
  Layout layout{static_cast<char*>(scratch)};
  layout.take(w.words, w.steps * warps);
  layout.take(w.cotangents, w.steps * samples * z.s);
  return layout.used;
}

template <class A>
cudaError_t walk(const LifForwardCall<A>& call, LifChunk<A> w, cudaStream_t stream) {
  const LifLoopSizes& z = call.size;
  const int64_t words = words_of(z.n), blocks = ceiling(samples_of(z) * ceiling(words, w.own) * kWarp, kWalkThreads);
  const int64_t steps = w.steps, share = words > 64 ? kListThreads / kWarp : 1;
  if (blocks > kMostBlocks || ceiling(steps * samples_of(z) * share * kWarp, kListThreads) > kMostBlocks)
    return cudaErrorInvalidConfiguration;
  const auto one = call.window ? lif_walk<A, 1, 16, true> : lif_walk<A, 1, 16, false>;
  const auto two = call.window ? lif_walk<A, 2, 4, true> : lif_walk<A, 2, 4, false>;
  const auto kernel = w.own == 1 ? one : two;
  for (w.first = 0; w.first < z.t; w.first += steps) {
    w.steps = std::min(steps, z.t - w.first);
    kernel<<<static_cast<unsigned>(blocks), kWalkThreads, 0, stream>>>(call, w);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    const int64_t lists = ceiling(w.steps * samples_of(z) * share * kWarp, kListThreads);
    if (share == 1)
      lif_lists<A, 1><<<static_cast<unsigned>(lists), kListThreads, 0, stream>>>(call, w);
    else
      lif_lists<A, kListThreads / kWarp><<<static_cast<unsigned>(lists), kListThreads, 0, stream>>>(call, w);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class A>
cudaError_t walk_back(const LifBackwardCall<A>& call, LifBackChunk<A> w, cudaStream_t stream) {
  const LifLoopSizes& z = call.size;
  const int64_t samples = samples_of(z), warps = samples * words_of(z.n), blocks = ceiling(warps * kWarp, kBackThreads);
  const int64_t steps = w.steps;
  // places of cotangents are numbers of 32 bits
  if (blocks > kMostBlocks || steps * samples * z.s > int64_t(UINT32_MAX)) return cudaErrorInvalidConfiguration;
  const size_t shared = kSortThreads / kWarp * 2 * sizeof(uint32_t) * std::min(words_of(z.n), kSortWords);
  if (const cudaError_t error = cudaMemsetAsync(call.d_values0, 0, sizeof(A) * samples * z.s, stream);
      error != cudaSuccess)
    return error;
  for (int64_t end = z.t; end > 0; end -= steps) {
    w.first = std::max<int64_t>(end - steps, 0), w.steps = end - w.first;
    const int64_t lists = ceiling(w.steps * samples * kWarp, kSortThreads);
    lif_sort<A><<<static_cast<unsigned>(lists), kSortThreads, shared, stream>>>(call, w);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    lif_walk_back<A><<<static_cast<unsigned>(blocks), kBackThreads, 0, stream>>>(call, w);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class A, int kOwn>
cudaError_t launch_steps(const LifForwardCall<A>& call, cudaStream_t stream) {
  const LifLoopSizes& z = call.size;
  const int64_t words = words_of(z.n), warps = kOwn ? ceiling(words, kOwn) : kStepThreads<A> / kWarp;
  const int64_t room = std::min(z.s, z.n);
  const size_t bytes = room * sizeof(int32_t) <= most_shared() ? room * sizeof(int32_t) : 0;
  const auto kernel = call.window ? lif_steps<A, kOwn, true> : lif_steps<A, kOwn, false>;
  if (const cudaError_t error = allow_shared(kernel, bytes); error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(samples_of(z)), static_cast<unsigned>(warps * kWarp), bytes, stream>>>(
      call, static_cast<int32_t>(bytes / sizeof(int32_t)));
  return cudaGetLastError();
}

template <class A, int kOwn, bool kWhole>
cudaError_t launch_steps_back(const LifBackwardCall<A>& call, const BackRoom<A>& room, size_t bytes, A* at_neurons,
                              cudaStream_t stream) {
  const LifLoopSizes& z = call.size;
  const int64_t words = words_of(z.n);
  const int64_t warps = kOwn ? std::max(ceiling(words, kOwn), kBackWarps) : kStepThreads<A> / kWarp;
  const auto kernel = lif_steps_back<A, kOwn, kWhole>;
  if (const cudaError_t error = allow_shared(kernel, bytes); error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(samples_of(z)), static_cast<unsigned>(warps * kWarp), bytes, stream>>>(call, room,
                                                                                                        at_neurons);
  return cudaGetLastError();
}

template <class A>
cudaError_t steps_back(const LifBackwardCall<A>& call, void* scratch, cudaStream_t stream) {
  const LifLoopSizes& z = call.size;
  const int64_t words = words_of(z.n), warps = kStepThreads<A> / kWarp;
  size_t left = most_shared(), bytes = 0;
  BackRoom<A> room{};
  const auto take = [&](size_t needs) {
    if (needs > left) return false;
    left -= needs, bytes += needs;
    return true;
  };
  room.numbers = take(room.numbers_bytes(z.n));
  room.lists = take(room.lists_bytes(z.s));
  A* const at_neurons = static_cast<A*>(scratch);
  if (!room.numbers) {
    const cudaError_t error = cudaMemsetAsync(at_neurons, 0, sizeof(A) * samples_of(z) * z.n, stream);
    if (error != cudaSuccess) return error;
  }
  const bool whole = z.n * sizeof(A) % 16 == 0 && aligned(call.w_rec) && aligned(call.d_currents);
  const auto launch = [&](auto own) {
    constexpr int kOwn = decltype(own)::value;
    return whole ? launch_steps_back<A, kOwn, true>(call, room, bytes, at_neurons, stream)
                 : launch_steps_back<A, kOwn, false>(call, room, bytes, at_neurons, stream);
  };
  if (words <= warps) return launch(std::integral_constant<int, 1>());
  if (words <= 4 * warps) return launch(std::integral_constant<int, 4>());
  return launch(std::integral_constant<int, 0>());
}

}  // namespace

template <class A>
size_t ops_lif_forward_scratch(const LifForwardCall<A>& call) {
  LifChunk<A> w;
  return arrange(call, nullptr, w);
}

template <class A>
size_t ops_lif_backward_scratch(const LifBackwardCall<A>& call) {
  const LifLoopSizes& z = call.size;
  if (z.recurrent) return BackRoom<A>::numbers_bytes(z.n) <= most_shared() ? 0 : sizeof(A) * samples_of(z) * z.n;
  LifBackChunk<A> w;
  return arrange(call, nullptr, w);
}

template <class A>
cudaError_t ops_lif_forward(const LifForwardCall<A>& call, void* scratch, cudaStream_t stream) {
  const LifLoopSizes& z = call.size;
  if (samples_of(z) == 0) return cudaSuccess;
  const int64_t words = words_of(z.n), warps = kStepThreads<A> / kWarp;
  if (samples_of(z) <= kMostBlocks && by_blocks(z, block_bytes<A>(words), 8))
    return words <= 16 ? launch_block<A, 1, kManySteps>(call, stream) : launch_block<A, 2, kFewSteps>(call, stream);
  if (!z.recurrent) {
    LifChunk<A> w;
    arrange(call, scratch, w);
    return walk(call, w, stream);
  }
  if (samples_of(z) > kMostBlocks) return cudaErrorInvalidConfiguration;
  if (words <= 16) return launch_steps<A, 1>(call, stream);
  if (words <= 2 * warps) return launch_steps<A, 2>(call, stream);
  if (words <= 4 * warps) return launch_steps<A, 4>(call, stream);
  return launch_steps<A, 0>(call, stream);
}

template <class A>
cudaError_t ops_lif_backward(const LifBackwardCall<A>& call, void* scratch, cudaStream_t stream) {
  const LifLoopSizes& z = call.size;
  if (samples_of(z) == 0) return cudaSuccess;
  const int64_t words = words_of(z.n);
  if (samples_of(z) <= kMostBlocks && by_blocks(z, block_back_bytes<A>(words), 0))
    return words <= 16 ? launch_block_back<A, 1>(call, stream) : launch_block_back<A, 2>(call, stream);
  if (!z.recurrent) {
    LifBackChunk<A> w;
    arrange(call, scratch, w);
    return walk_back(call, w, stream);
  }
  if (samples_of(z) > kMostBlocks) return cudaErrorInvalidConfiguration;
  return steps_back(call, scratch, stream);
}

template size_t ops_lif_forward_scratch(const LifForwardCall<float>&);
template size_t ops_lif_forward_scratch(const LifForwardCall<double>&);
template size_t ops_lif_backward_scratch(const LifBackwardCall<float>&);
template size_t ops_lif_backward_scratch(const LifBackwardCall<double>&);
template cudaError_t ops_lif_forward(const LifForwardCall<float>&, void*, cudaStream_t);
template cudaError_t ops_lif_forward(const LifForwardCall<double>&, void*, cudaStream_t);
template cudaError_t ops_lif_backward(const LifBackwardCall<float>&, void*, cudaStream_t);
template cudaError_t ops_lif_backward(const LifBackwardCall<double>&, void*, cudaStream_t);

}  // namespace ranvier
