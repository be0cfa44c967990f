// CPU: the delays of a synapse matrix, a source and a block of targets at a time, given or by positions (positions.h),
// and the way from their adjoints back to the positions.
#pragma once
#include <algorithm>
#include <cmath>

#include "lanes.h"
#include "positions.h"

// A loop over lanes whose body is so short that GCC would unroll it before it comes to vectorise it.
#if defined(__GNUC__) && !defined(__clang__)
#define RANVIER_SHORT_LANES RANVIER_LANES _Pragma("GCC unroll 1")
#else
#define RANVIER_SHORT_LANES RANVIER_LANES
#endif

namespace ranvier {
namespace RANVIER_NS {

// One matrix of one parameter set.
template <class R>
class DelayRows {
 public:
  // Numbers that `take` needs to keep the targets in, one a lane.
  static int64_t size(int64_t n, int64_t dims) { return (n + kLanes - 1) / kLanes * kLanes * dims; }

  void take(const Delays<R>& delays, int64_t set, R* memory) {
    sources_ = delays.sources, n_ = delays.n, dims_ = delays.dims;
    if (dims_ == 0) {
      given_ = delays.given + set * sources_ * n_;
      return;
    }
    ends_ = delays.ends + set * (sources_ + n_) * dims_, longest_ = delays.longest[set];
    targets_ = memory;
    for (int64_t k = 0; k < size(n_, 1); ++k)  // lanes behind the last neuron lie where it lies
      for (int64_t a = 0; a < dims_; ++a)
        targets_[(k / kLanes * dims_ + a) * kLanes + k % kLanes] = ends_[(sources_ + std::min(k, n_ - 1)) * dims_ + a];
  }

  // The delays of a source's synapses with a block; 0 in lanes that are no neuron where delays are given.
  void of(int64_t block, int64_t source, R* delay) const {
    if (dims_ == 0) {
      std::fill(delay, delay + kLanes, R(0));
      const R* const from = given_ + source * n_ + block * kLanes;
      std::copy(from, from + valid(block), delay);
      return;
    }
    distances(block, source, delay);
    const R longest = longest_;
    RANVIER_SHORT_LANES
    for (int l = 0; l < kLanes; ++l) delay[l] = min_(delay[l], longest);
  }

  // Eq. 25: from dL/dd, rows of `stride` numbers, to dL/d(positions), (sources + N, D). `memory` holds
  // size(n, dims) + kLanes dims numbers.
  void back(const R* dd, int64_t stride, R* dx, R* memory) const {
    R* const by_target = memory;  // (block, D, lane)
    R* const by_source = memory + size(n_, dims_);
    std::fill(by_target, by_source, R(0));
    for (int64_t j = 0; j < sources_; ++j) {
      std::fill(by_source, by_source + kLanes * dims_, R(0));
      for (int64_t b = 0; b * kLanes < n_; ++b) {
        alignas(64) R length[kLanes], force[kLanes] = {};
        const R *const row = dd + j * stride + b * kLanes, longest = longest_;
        std::copy(row, row + valid(b), force);
        distances(b, j, length);
        RANVIER_SHORT_LANES
        for (int l = 0; l < kLanes; ++l) force[l] = pull(force[l], length[l], longest);
        for (int64_t a = 0; a < dims_; ++a) {
          const R p = ends_[j * dims_ + a], *q = targets_ + (b * dims_ + a) * kLanes;
          R *to_target = by_target + (b * dims_ + a) * kLanes, *to_source = by_source + a * kLanes;
          RANVIER_SHORT_LANES
          for (int l = 0; l < kLanes; ++l) {
            const R x = force[l] * (p - q[l]);
            to_source[l] += x, to_target[l] -= x;
          }
        }
      }
      for (int64_t a = 0; a < dims_; ++a) {
        R total = 0;
        for (int l = 0; l < kLanes; ++l) total += by_source[a * kLanes + l];
        dx[j * dims_ + a] = total;
      }
    }
    for (int64_t k = 0; k < n_; ++k)
      for (int64_t a = 0; a < dims_; ++a)
        dx[(sources_ + k) * dims_ + a] = by_target[(k / kLanes * dims_ + a) * kLanes + k % kLanes];
  }

 private:
  int64_t valid(int64_t block) const { return std::min<int64_t>(kLanes, n_ - block * kLanes); }

  void distances(int64_t block, int64_t source, R* to) const {
    alignas(64) R square[kLanes];
    std::fill(square, square + kLanes, R(kShortestSquared));
    for (int64_t a = 0; a < dims_; ++a) {
      const R p = ends_[source * dims_ + a], *q = targets_ + (block * dims_ + a) * kLanes;
      RANVIER_SHORT_LANES
      for (int l = 0; l < kLanes; ++l) square[l] += (p - q[l]) * (p - q[l]);
    }
    RANVIER_SHORT_LANES
    for (int l = 0; l < kLanes; ++l) to[l] = std::sqrt(square[l]);
  }

  const R *given_ = nullptr, *ends_ = nullptr;
  R* targets_ = nullptr;  // (block, D, lane)
  R longest_ = 0;
  int64_t sources_ = 0, n_ = 0, dims_ = 0;
};

}  // namespace RANVIER_NS
}  // namespace ranvier
