// GPU: the walk back through a LIF layer over time without recurrent weights, a block a sample.
//
// For kBackSteps steps at a time the cotangents of all entries are put at their neurons in shared memory, zeros
// elsewhere, and who fired beside them; a thread then walks back with its kOwn neurons, leaving zeros behind. Two
// halves: while one is walked through, the other is filled with what was fetched before. A barrier each.
#pragma once
#include "ops_lif_places_cuda.h"

namespace ranvier {
namespace ops {

constexpr int kBackSteps = 8, kBlockBackThreads = 512;

// What is in shared memory, twice.
template <class A>
struct BlockBackRoom {
  static RANVIER_HD size_t bytes(int64_t words) { return kBackSteps * words * (kWarp * sizeof(A) + sizeof(uint32_t)); }
};

template <class A, int kOwn>
static __global__ void __launch_bounds__(kBlockBackThreads, 2) lif_block_back(LifBackwardCall<A> call) {
  extern __shared__ uint4 block_back_shared[];
  constexpr int kEntries = 2;  // of a thread that are fetched early; others when they are needed
  const LifLoopSizes& z = call.size;
  const int threads = blockDim.x, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int words = int(words_of(z.n)), width = words * kWarp;
  const int64_t sample = blockIdx.x;
  const Sample at = sample_of(z, sample);
  A* const cotangents = reinterpret_cast<A*>(block_back_shared);                             // (2, kBackSteps, width)
  uint32_t* const fired = reinterpret_cast<uint32_t*>(cotangents + 2 * kBackSteps * width);  // (2, kBackSteps, words)
  const int32_t steps = int32_t(z.t), slots = int32_t(z.s), entries = kBackSteps * slots;
  const int n0 = warp * kOwn * kWarp + lane;
  // Steps count down from the last: u = 0 is step T.
  const auto list_of = [&](int32_t u) { return at.first + int64_t(steps - 1 - u) * z.r; };

  // Entry s of the list u steps from u0 on.
  struct Entry {
    int32_t count, id;
    A ct;
  };
  const auto fetch = [&](int32_t u0, int32_t u, int32_t s) {
    if (u >= kBackSteps || u0 + u >= steps) return Entry{0, 0, A(0)};
    const int64_t list = list_of(u0 + u), at = list * z.s + s;
    return Entry{__ldg(call.n_listed + list), __ldg(call.ids + at), __ldg(call.ct_excess + at)};
  };
  const auto enter = [&](int32_t u0, int32_t u, int32_t s, Entry x) {
    if (u >= kBackSteps || u0 + u >= steps) return;
    const bool here = s < used(x.count, z.s);
    call.d_excess[list_of(u0 + u) * z.s + s] = here ? x.ct : A(0);
    if (here && x.id >= 0 && x.id < z.n) cotangents[(u0 / kBackSteps % 2 * kBackSteps + u) * width + x.id] = x.ct;
  };
  // A word of who fired in that step; the last voltage's cotangent is no product with a voltage before it.
  const auto fetch_word = [&](int32_t u0, int32_t u, int32_t word) {
    return u < kBackSteps && u0 + u < steps && u0 + u > 0 ? __ldg(call.fired + list_of(u0 + u) * words + word) : 0;
  };
  Entry early[kEntries];
  int32_t early_u[kEntries], early_s[kEntries];
  const int32_t word_u = int32_t(threadIdx.x) / words, early_at = int32_t(threadIdx.x) - word_u * words;
  uint32_t early_word = 0;
  RANVIER_UNROLL
  for (int k = 0; k < kEntries; ++k) {
    const int32_t e = int32_t(threadIdx.x) + k * threads;
    early_u[k] = slots ? e / slots : kBackSteps, early_s[k] = e - early_u[k] * slots;
  }
  const auto fetch_all = [&](int32_t u0) {
    RANVIER_UNROLL
    for (int k = 0; k < kEntries; ++k) early[k] = fetch(u0, early_u[k], early_s[k]);
    early_word = fetch_word(u0, word_u, early_at);
  };
  const auto enter_all = [&](int32_t u0) {
    RANVIER_UNROLL
    for (int k = 0; k < kEntries; ++k) enter(u0, early_u[k], early_s[k], early[k]);
    RANVIER_ROLLED
    for (int32_t e = threadIdx.x + kEntries * threads; e < entries; e += threads) {
      const int32_t u = e / slots, s = e - u * slots;
      enter(u0, u, s, fetch(u0, u, s));
    }
    uint32_t* const to = fired + u0 / kBackSteps % 2 * kBackSteps * words;
    if (word_u < kBackSteps) to[threadIdx.x] = early_word;
    RANVIER_ROLLED
    for (int32_t e = threadIdx.x + threads; e < kBackSteps * words; e += threads)
      to[e] = fetch_word(u0, e / words, e % words);
  };

  A decay[kOwn], scale[kOwn], lam[kOwn];
  RANVIER_UNROLL
  for (int k = 0; k < kOwn; ++k) {
    const int n = n0 + k * kWarp;
    Neuron<A> neuron;
    neuron.load(call.parameters + at.group * kLifRows * z.n, z.n, n);
    decay[k] = neuron.decay, scale[k] = neuron.scale;
    lam[k] = n < z.n ? call.ct_v_last[sample * z.n + n] : A(0);
  }
  fetch_all(0);
  for (int32_t k = threadIdx.x; k < 2 * kBackSteps * width; k += threads) cotangents[k] = A(0);
  for (int32_t s = threadIdx.x; s < slots; s += threads) call.d_values0[sample * z.s + s] = A(0);
  __syncthreads();
  enter_all(0);
  fetch_all(kBackSteps);
  __syncthreads();
  A* d_current = call.d_currents + list_of(0) * z.n + n0;
  const int64_t d_current_step = z.r * z.n;
  bool here[kOwn];
  RANVIER_UNROLL
  for (int k = 0; k < kOwn; ++k) here[k] = n0 + k * kWarp < z.n;
  for (int32_t u0 = 0; u0 < steps; u0 += kBackSteps) {
    enter_all(u0 + kBackSteps);
    fetch_all(u0 + 2 * kBackSteps);
    const int row0 = u0 / kBackSteps % 2 * kBackSteps;
    A* const ct = cotangents + row0 * width + n0;
    const uint32_t* const resets = fired + row0 * words + warp * kOwn;
    A input[kBackSteps][kOwn];
    uint32_t reset[kBackSteps][kOwn];
    RANVIER_UNROLL
    for (int u = 0; u < kBackSteps; ++u) {
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) {
        input[u][k] = 0, reset[u][k] = 0;
        if (!here[k]) continue;
        input[u][k] = ct[u * width + k * kWarp], reset[u][k] = resets[u * words + k];
        ct[u * width + k * kWarp] = A(0);
      }
    }
    RANVIER_UNROLL
    for (int u = 0; u < kBackSteps; ++u) {
      if (u >= steps - u0) break;
      RANVIER_UNROLL
      for (int k = 0; k < kOwn; ++k) {
        lam[k] = (reset[u][k] >> lane & 1 ? A(0) : lam[k]) + input[u][k];
        if (here[k]) d_current[k * kWarp] = scale[k] * lam[k];
        lam[k] *= decay[k];
      }
      d_current = held(d_current - d_current_step);
    }
    __syncthreads();
  }
  RANVIER_UNROLL
  for (int k = 0; k < kOwn; ++k) {
    const int n = n0 + k * kWarp;
    if (n >= z.n) break;
    const A threshold = __ldg(call.parameters + (at.group * kLifRows + kThreshold) * z.n + n);
    call.d_v0[sample * z.n + n] = call.v0[sample * z.n + n] <= threshold ? lam[k] : A(0);
  }
}

}  // namespace ops
}  // namespace ranvier
