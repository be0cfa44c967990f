// GPU: the walk back through a LIF layer over time with recurrent weights. A block has a sample and all its neurons.
//
// A step: the warps share out the entries of its list, each the product of a row of w_rec with dI of the step after,
// which is in shared memory, and leave the entry's derivative at its neuron; a barrier; each thread goes a step back
// with its neurons; a barrier. Lists are copied to shared memory a step before they are needed. Where a sample is too
// large for shared memory, lists are read from where they are, and dI too, with scratch memory for the derivatives.
#pragma once
#include "copy_cuda.h"
#include "ops_lif_places_cuda.h"
#include "ops_lif_recurrent_cuda.h"

namespace ranvier {
namespace ops {

// What is in shared memory, in this order; bytes of it.
template <class A>
struct BackRoom {
  bool numbers, lists;  // dI and the derivatives at the neurons; two lists
  static size_t numbers_bytes(int64_t n) { return 2 * sizeof(A) * ((n + 3) / 4 * 4); }
  static size_t lists_bytes(int64_t s) { return 2 * (2 * sizeof(A) + 4) * ((s + 3) / 4 * 4); }
};

// Adds what a lane has of the product of two rows in kParts pieces, one every 32 of them, from column c on. kWhole:
// rows start and end where 16 bytes do.
template <int kParts, class A, bool kWhole>
__device__ __forceinline__ void add_product(const A* row, const A* by, int32_t c, int32_t n, A& sum) {
  constexpr int kPer = kWhole ? 16 / sizeof(A) : 1, kApart = kWarp * kPer;
  union Part {
    uint4 all;
    A each[kPer];
  };
  Part x[kParts], y[kParts];
  RANVIER_UNROLL
  for (int p = 0; p < kParts; ++p) {
    if constexpr (kWhole) {
      x[p].all = uint4{0, 0, 0, 0};
      if (c + p * kApart < n) x[p].all = __ldg(reinterpret_cast<const uint4*>(row + c + p * kApart));
    } else {
      x[p].each[0] = c + p * kApart < n ? __ldg(row + c + p * kApart) : A(0);
    }
  }
  RANVIER_UNROLL
  for (int p = 0; p < kParts; ++p) {
    if (c + p * kApart >= n) break;
    if constexpr (kWhole)
      y[p].all = *reinterpret_cast<const uint4*>(by + c + p * kApart);
    else
      y[p].each[0] = by[c + p * kApart];
    RANVIER_UNROLL
    for (int k = 0; k < kPer; ++k) sum += x[p].each[k] * y[p].each[k];
  }
}
// The product, the same for all lanes.
template <class A, bool kWhole>
__device__ __forceinline__ A row_product(const A* row, const A* by, int32_t n, int lane) {
  constexpr int kPer = kWhole ? 16 / sizeof(A) : 1, kApart = kWarp * kPer, kMany = kWhole ? 4 : 8,
                kFew = kWhole ? 1 : 4;
  A sum = 0;
  int32_t c = 0;
  for (; c + kFew * kApart < n; c += kMany * kApart) add_product<kMany, A, kWhole>(row, by, c + lane * kPer, n, sum);
  if (c < n) add_product<kFew, A, kWhole>(row, by, c + lane * kPer, n, sum);
  return warp_sum(sum);
}

// `at_neurons` (Q * R, N): where the numbers of a sample do not fit in shared memory; zeros.
template <class A, int kOwn, bool kWhole>
static __global__ void __launch_bounds__(kStepThreads<A>)
    lif_steps_back(LifBackwardCall<A> call, BackRoom<A> room, A* at_neurons) {
  extern __shared__ uint4 back_shared[];
  constexpr int kColumns = kOwn ? kOwn : 1;
  const LifLoopSizes& z = call.size;
  const int threads = blockDim.x, warps = threads / kWarp, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t words = words_of(z.n), sample = blockIdx.x;
  const Sample at = sample_of(z, sample);
  const int64_t own = kOwn ? kOwn : (words + warps - 1) / warps, word0 = warp * own, n0 = word0 * kWarp + lane;
  const int32_t slots = int32_t(z.s), n_neurons = int32_t(z.n);
  const A* const w_rec = call.w_rec + at.group * z.n * z.n;
  const A* const parameters = call.parameters + at.group * kLifRows * z.n;

  A* shared = reinterpret_cast<A*>(back_shared);
  const int64_t n_room = (z.n + 3) / 4 * 4, s_room = (z.s + 3) / 4 * 4;
  A* d_current = nullptr;  // of the step after
  A* added = at_neurons + sample * z.n;
  if (room.numbers) d_current = shared, added = shared + n_room, shared += 2 * n_room;
  // Lists that wait for their steps, those of even and of odd steps.
  A *const factors = shared, *const cts = shared + 2 * s_room;
  int32_t* const waiting = reinterpret_cast<int32_t*>(shared + 4 * s_room);
  const auto list_of = [&](int64_t t) { return at.first + t * z.r; };
  const auto copy_list = [&](int64_t t) {
    if (!room.lists || t < 0) return;
    const int64_t from = list_of(t) * z.s, to = t % 2 * s_room;
    for (int32_t s = threadIdx.x; s < slots; s += threads)
      copy(waiting + to + s, call.ids + from + s), copy(factors + to + s, call.factor + from + s),
          copy(cts + to + s, call.ct_excess + from + s);
    close_group();
    if (t < kStepsEarly) return;
    const int64_t early = list_of(t - kStepsEarly);
    const int32_t s = 32 / sizeof(A) * threadIdx.x;  // a sector of memory a thread; more entries than that come late
    if (s < slots)
      ask_early(call.ids + early * z.s + s), ask_early(call.factor + early * z.s + s),
          ask_early(call.ct_excess + early * z.s + s);
    if (lane == 0 && word0 < words) ask_early(call.fired + early * words + word0);
    if (threadIdx.x == 0) ask_early(call.n_listed + early);
  };
  copy_list(z.t - 1);

  A decay[kColumns], scale[kColumns], lam[kColumns];
  uint32_t fired[kColumns];
  int32_t listed = used(call.n_listed[list_of(z.t - 1)], z.s);
  if constexpr (kOwn > 0) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k) {
      const int64_t n = n0 + k * kWarp;
      Neuron<A> neuron;
      neuron.load(parameters, z.n, n);
      decay[k] = neuron.decay, scale[k] = neuron.scale;
      lam[k] = n < z.n ? call.ct_v_last[sample * z.n + n] : A(0);
      fired[k] = 0;  // the last voltage's cotangent is no product with a voltage before it
    }
  }
  for (int32_t n = threadIdx.x; room.numbers && n < n_neurons; n += threads) added[n] = A(0);
  if (room.lists) arrived<0>();
  __syncthreads();

  for (int64_t t = z.t - 1; t >= 0; --t) {
    const int64_t list = list_of(t);
    copy_list(t - 1);
    const int32_t count = listed;
    if (t > 0) listed = used(__ldg(call.n_listed + list - z.r), z.s);
    uint32_t fired_before[kColumns];
    if constexpr (kOwn > 0) {
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k)
        fired_before[k] = t > 0 && word0 + k < words ? __ldg(call.fired + (list - z.r) * words + word0 + k) : 0;
    }
    const int64_t entry = list * z.s, here = t % 2 * s_room;
    for (int32_t s = warp; s < count; s += warps) {
      const int32_t id = room.lists ? waiting[here + s] : __ldg(call.ids + entry + s);
      A e = room.lists ? cts[here + s] : __ldg(call.ct_excess + entry + s);
      const bool named = id >= 0 && id < n_neurons;
      if (named && t < z.t - 1) {
        const A factor = room.lists ? factors[here + s] : __ldg(call.factor + entry + s);
        e += factor * row_product<A, kWhole>(w_rec + id * z.n, d_current, n_neurons, lane);
      }
      if (lane) continue;
      call.d_excess[entry + s] = e;
      if (named) added[id] = e;
    }
    for (int32_t s = count + int32_t(threadIdx.x); s < slots; s += threads) call.d_excess[entry + s] = A(0);
    __syncthreads();

    A* const result = call.d_currents + list * z.n;
    if (!room.numbers) d_current = result;
    // A step back of neuron n; `resets`: it fired in this step, so that the voltage of the next does not know this one.
    const auto retreat = [&](int64_t n, bool resets, A decay, A scale, A& lam) {
      lam = (resets ? A(0) : lam) + added[n];
      added[n] = A(0);
      const A d = scale * lam;
      result[n] = d;
      if (room.numbers) d_current[n] = d;
      lam *= decay;
    };
    if constexpr (kOwn > 0) {
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) {
        if (n0 + k * kWarp < z.n) retreat(n0 + k * kWarp, fired[k] >> lane & 1, decay[k], scale[k], lam[k]);
        fired[k] = fired_before[k];
      }
    } else {
      for (int64_t k = 0; k < own; ++k) {
        const int64_t n = n0 + k * kWarp;
        if (n >= z.n) break;
        const bool top = t == z.t - 1;
        const bool resets = !top && (__ldg(call.fired + list * words + word0 + k) >> lane & 1);
        A rest = (top ? call.ct_v_last : call.d_v0)[sample * z.n + n];
        retreat(n, resets, __ldg(parameters + kDecay * z.n + n), __ldg(parameters + kScale * z.n + n), rest);
        call.d_v0[sample * z.n + n] = rest;
      }
    }
    if (room.lists) arrived<0>();
    __syncthreads();
  }

  for (int32_t s = warp; s < slots; s += warps) {
    const int32_t id = s < used(call.n_listed0[sample], z.s) ? call.ids0[sample * z.s + s] : -1;
    const bool named = id >= 0 && id < n_neurons;
    const A sum = named ? row_product<A, kWhole>(w_rec + id * z.n, d_current, n_neurons, lane) : A(0);
    if (lane == 0) call.d_values0[sample * z.s + s] = sum;
  }
  const auto finish = [&](int64_t n, A rest) {
    call.d_v0[sample * z.n + n] = call.v0[sample * z.n + n] <= __ldg(parameters + kThreshold * z.n + n) ? rest : A(0);
  };
  if constexpr (kOwn > 0) {
    RANVIER_UNROLL
    for (int k = 0; k < kOwn; ++k)
      if (n0 + k * kWarp < z.n) finish(n0 + k * kWarp, lam[k]);
  } else {
    for (int64_t n = n0; n < z.n && n < n0 + own * kWarp; n += kWarp) finish(n, call.d_v0[sample * z.n + n]);
  }
}

}  // namespace ops
}  // namespace ranvier
