// Microseconds of the GPU kernels of the LIF layer over time and of densify, and whether they are right, without JAX:
// for work on the kernels.
//
//   nvcc -O3 -std=c++17 -arch=native -lineinfo -I csrc -o /tmp/ops_lif_cuda benchmarks/ops_lif_cuda.cu
//   /tmp/ops_lif_cuda               checks, then times
//   /tmp/ops_lif_cuda check         checks alone
//   /tmp/ops_lif_cuda tune          times, and each way to deal out the work
//   /tmp/ops_lif_cuda T R N [rec]   one size: steps, samples, neurons; with recurrent weights
//   /tmp/ops_lif_cuda windows       times with and without windows
//
// Checks: against plain loops, at odd sizes, with lists that are too short, lost spikes, all spikes and none, near
// thresholds of -inf, ids and counts that are out of range, and unused slots that are no numbers; with windows that go
// round, of none, some, all and more than fit, and voltages that are no numbers; and the same bits when called again.
// Decays and scales are powers of two, so that each step rounds once and results without sums of many terms must be
// equal. Times: a batch of launches between two events, the median over the batches.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../csrc/ops_densify_cuda.cu"
#include "../csrc/ops_lif_cuda.cu"
#include "device_cuda.h"

// Numbers between `low` and `high`, the same for the same seed.
static __global__ void fill_random(float* x, int64_t size, float low, float high, uint32_t seed) {
  for (int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; k < size; k += int64_t(gridDim.x) * blockDim.x) {
    uint32_t y = uint32_t(k) * 2654435761u + uint32_t(k >> 32) * 40503u + seed;
    y = (y ^ y >> 16) * 0x7feb352du, y = (y ^ y >> 15) * 0x846ca68bu, y ^= y >> 16;
    x[k] = low + (high - low) * (float(y >> 8) * 0x1p-24f);
  }
}

static __global__ void add_counts(const int32_t* a, const int32_t* b, int32_t* sum, int64_t size) {
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < size) sum[k] = a[k] + b[k];
}

namespace {

using namespace ranvier;

// Checks
// ---------------------------------------------------------------------------------------------------------------

int wrong = 0, checked = 0;

// `slack`: how far apart numbers may be, in parts of the largest.
template <class T>
void compare(const std::string& what, const std::vector<T>& got, const std::vector<T>& is, double slack = 0) {
  ++checked;
  double most = 0;
  for (const T x : is) most = std::max(most, std::fabs(double(x)));
  for (size_t k = 0; k < got.size(); ++k) {
    if (got[k] == is[k] || (got[k] != got[k] && is[k] != is[k])) continue;
    if (std::fabs(double(got[k]) - double(is[k])) <= slack * most) continue;
    std::printf("WRONG %s: number %zu of %zu is %.9g, should be %.9g\n", what.c_str(), k, got.size(), double(got[k]),
                double(is[k]));
    ++wrong;
    return;
  }
}

template <class T>
void same(const std::string& what, const std::vector<T>& a, const std::vector<T>& b) {
  if (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T))) return;
  std::printf("WRONG %s: other bits when called again\n", what.c_str());
  ++wrong;
}

enum class Kind { usual, all_fire, none_fires, all_near, windows };

// Everything of a layer on the host.
template <class A>
struct Layer {
  LifLoopSizes z;
  std::vector<A> currents, w_rec, parameters, v0, values0, excess, v_last, factor, ct_excess, ct_v_last;
  std::vector<A> d_currents, d_excess, d_v0, d_values0;
  std::vector<int32_t> ids0, n_spikes0, window, ids, n_spikes, n_near, n_lost, n_near_dropped, n_listed;
  std::vector<uint32_t> fired;
};

// A number of few bits.
template <class A>
A coarse(double x) {
  return A(std::round(x * 64) / 64);
}

template <class A>
Layer<A> random_layer(const LifLoopSizes& z, Kind kind, std::mt19937_64& r) {
  Layer<A> x;
  x.z = z;
  std::normal_distribution<double> normal;
  const auto fill = [&](std::vector<A>& to, int64_t size, auto number) {
    to.resize(size);
    for (A& y : to) y = number();
  };
  fill(x.currents, z.q * z.t * z.r * z.n, [&] { return coarse<A>(0.5 * normal(r)); });
  const double weight = 1 / std::sqrt(double(z.n));
  fill(x.w_rec, z.recurrent ? z.q * z.n * z.n : 0, [&] { return A(weight * (double(r() >> 11) * 0x1p-52 - 1)); });
  fill(x.v0, z.q * z.r * z.n, [&] { return coarse<A>(normal(r)); });
  x.parameters.resize(z.q * kLifRows * z.n);
  for (int64_t q = 0; q < z.q; ++q)
    for (int64_t n = 0; n < z.n; ++n) {
      A* of = x.parameters.data() + q * kLifRows * z.n + n;
      const A decays[4] = {0.5, 0.25, 1, 0}, scales[3] = {1, 2, 0.5};
      of[kDecay * z.n] = decays[std::min<uint64_t>(r() % 8, 3)], of[kScale * z.n] = scales[r() % 3];
      of[kThreshold * z.n] = kind == Kind::all_fire ? A(-1e6) : kind == Kind::none_fires ? A(1e6) : coarse<A>(0.7);
      of[kNear * z.n] = kind == Kind::none_fires ? A(1e6)
                        : kind == Kind::all_near ? -std::numeric_limits<A>::infinity()
                                                 : of[kThreshold * z.n] - A(0.25);
    }
  const A nan = std::numeric_limits<A>::quiet_NaN();
  x.values0.assign(z.q * z.r * z.s, nan), x.ids0.assign(z.q * z.r * z.s, -7), x.n_spikes0.resize(z.q * z.r);
  for (int64_t k = 0; k < z.q * z.r; ++k) {
    const int64_t count = r() % uint64_t(z.s + 1);
    x.n_spikes0[k] = int32_t(k % 5 == 3 ? -2 : count);
    for (int64_t s = 0; s < std::max(x.n_spikes0[k], 0); ++s) {
      x.values0[k * z.s + s] = A(r() % 2 ? 1 : 0.5), x.ids0[k * z.s + s] = int32_t(r() % uint64_t(z.n));
      if (r() % 11 == 0) x.ids0[k * z.s + s] = r() % 2 ? -1 : int32_t(z.n) + 1;
    }
    if (count == z.s && k % 2) x.n_spikes0[k] = int32_t(z.s) + 4;
  }
  if (kind != Kind::windows) return x;
  // such a neuron never fires again, so recurrent weights do not carry it on
  const A infinity = std::numeric_limits<A>::infinity();
  for (A& y : x.currents)
    if (r() % 397 == 0) y = r() % 2 ? -infinity : nan;
  for (int64_t l = 0; l < z.q * z.t * z.r; ++l) {
    const int64_t many[] = {0, 1, z.n / 3, z.s + 3, z.n, z.n - 1};
    x.window.push_back(int32_t(r() % 5 ? r() % uint64_t(z.n) : z.n - 1));
    x.window.push_back(int32_t(std::min(many[r() % 6], z.n)));
  }
  return x;
}

// What `ops_lif_forward` says, by plain loops.
template <class A>
void run_forward(Layer<A>& x) {
  const LifLoopSizes& z = x.z;
  const int64_t lists = z.q * z.t * z.r, words = words_of(z.n);
  x.ids.assign(lists * z.s, 0), x.excess.assign(lists * z.s, A(0)), x.fired.assign(lists * words, 0);
  for (auto* counts : {&x.n_spikes, &x.n_near, &x.n_lost, &x.n_near_dropped}) counts->assign(lists, 0);
  x.v_last.resize(z.q * z.r * z.n);
  std::vector<A> input(z.n), v(z.n);
  for (int64_t q = 0; q < z.q; ++q)
    for (int64_t r = 0; r < z.r; ++r) {
      const int64_t sample = q * z.r + r;
      const A *p = x.parameters.data() + q * kLifRows * z.n, *w = x.w_rec.data() + (z.recurrent ? q * z.n * z.n : 0);
      std::copy_n(x.v0.data() + sample * z.n, z.n, v.data());
      for (int64_t t = 0; t < z.t; ++t) {
        const int64_t list = (q * z.t + t) * z.r + r, before = list - z.r;
        std::fill(input.begin(), input.end(), A(0));
        const int32_t sent = !z.recurrent ? 0 : t ? x.n_spikes[before] : x.n_spikes0[sample];
        for (int64_t s = 0; s < std::clamp<int64_t>(sent, 0, z.s); ++s) {
          const int32_t id = t ? x.ids[before * z.s + s] : x.ids0[sample * z.s + s];
          if (id < 0 || id >= z.n) continue;
          for (int64_t n = 0; n < z.n; ++n) input[n] += (t ? A(1) : x.values0[sample * z.s + s]) * w[id * z.n + n];
        }
        for (int64_t n = 0; n < z.n; ++n) {
          const A kept = v[n] > p[kThreshold * z.n + n] ? A(0) : v[n];
          v[n] = p[kDecay * z.n + n] * kept + p[kScale * z.n + n] * (x.currents[list * z.n + n] + input[n]);
          if (v[n] > p[kThreshold * z.n + n]) x.fired[list * words + n / kWord] |= 1u << n % kWord;
        }
        int64_t place = 0;
        for (int kind = 0; kind < 2; ++kind)
          for (int64_t n = 0; n < z.n; ++n) {
            const A high = p[kThreshold * z.n + n];
            bool drawn = false;
            for (int64_t k = 0; !x.window.empty() && k < 2; ++k) {
              const int64_t after = n + k * z.n - x.window[2 * list];
              drawn |= after >= 0 && after < x.window[2 * list + 1];
            }
            const A low = drawn ? -std::numeric_limits<A>::infinity() : p[kNear * z.n + n];
            if (!(kind ? v[n] > low && v[n] <= high : v[n] > high)) continue;
            const bool fits = place < z.s;
            if (fits) x.ids[list * z.s + place] = int32_t(n), x.excess[list * z.s + place++] = v[n] - high;
            ++(kind ? fits ? x.n_near : x.n_near_dropped : fits ? x.n_spikes : x.n_lost)[list];
          }
      }
      std::copy(v.begin(), v.end(), x.v_last.data() + sample * z.n);
    }
}

// What `ops_lif_backward` is given beside what `ops_lif_forward` returns.
template <class A>
void random_cotangents(Layer<A>& x, std::mt19937_64& r) {
  const LifLoopSizes& z = x.z;
  const int64_t lists = z.q * z.t * z.r;
  const A nan = std::numeric_limits<A>::quiet_NaN();
  std::normal_distribution<double> normal;
  x.n_listed.resize(lists), x.factor.assign(lists * z.s, nan), x.ct_excess.assign(lists * z.s, nan);
  for (int64_t l = 0; l < lists; ++l) {
    const int64_t count = x.n_listed[l] = x.n_spikes[l] + x.n_near[l];
    for (int64_t s = 0; s < count; ++s) {
      x.factor[l * z.s + s] = A(double(r() >> 11) * 0x1p-53), x.ct_excess[l * z.s + s] = coarse<A>(normal(r));
      if (r() % 17 == 0) x.ids[l * z.s + s] = r() % 2 ? INT32_MIN : int32_t(z.n + int64_t(r() % 3));
    }
    if (count == z.s && l % 2) x.n_listed[l] += 9;
    if (l % 13 == 12) x.n_listed[l] = -4;
  }
  x.ct_v_last.resize(z.q * z.r * z.n);
  for (A& y : x.ct_v_last) y = coarse<A>(normal(r));
}

// What `ops_lif_backward` says, by plain loops.
template <class A>
void run_backward(Layer<A>& x) {
  const LifLoopSizes& z = x.z;
  const int64_t lists = z.q * z.t * z.r, words = words_of(z.n);
  x.d_currents.resize(lists * z.n), x.d_excess.assign(lists * z.s, A(0));
  x.d_v0.resize(z.q * z.r * z.n), x.d_values0.assign(z.q * z.r * z.s, A(0));
  std::vector<A> lam(z.n), d(z.n);
  for (int64_t q = 0; q < z.q; ++q)
    for (int64_t r = 0; r < z.r; ++r) {
      const int64_t sample = q * z.r + r;
      const A *p = x.parameters.data() + q * kLifRows * z.n, *w = x.w_rec.data() + (z.recurrent ? q * z.n * z.n : 0);
      const auto product = [&](int64_t id) {
        double sum = 0;
        for (int64_t c = 0; c < z.n; ++c) sum += double(w[id * z.n + c]) * double(d[c]);
        return A(sum);
      };
      std::copy_n(x.ct_v_last.data() + sample * z.n, z.n, lam.data());
      for (int64_t t = z.t - 1; t >= 0; --t) {
        const int64_t list = (q * z.t + t) * z.r + r;
        for (int64_t n = 0; t < z.t - 1 && n < z.n; ++n)
          lam[n] = x.fired[list * words + n / kWord] >> n % kWord & 1 ? A(0) : p[kDecay * z.n + n] * lam[n];
        for (int64_t s = 0; s < std::clamp<int64_t>(x.n_listed[list], 0, z.s); ++s) {
          const int64_t entry = list * z.s + s;
          const int32_t id = x.ids[entry];
          const bool named = id >= 0 && id < z.n;
          A e = x.ct_excess[entry];
          if (named && z.recurrent && t < z.t - 1) e += x.factor[entry] * product(id);
          x.d_excess[entry] = e;
          if (named) lam[id] += e;
        }
        for (int64_t n = 0; n < z.n; ++n) x.d_currents[list * z.n + n] = d[n] = p[kScale * z.n + n] * lam[n];
      }
      for (int64_t n = 0; n < z.n; ++n)
        x.d_v0[sample * z.n + n] =
            x.v0[sample * z.n + n] <= p[kThreshold * z.n + n] ? p[kDecay * z.n + n] * lam[n] : A(0);
      for (int64_t s = 0; z.recurrent && s < std::clamp<int64_t>(x.n_spikes0[sample], 0, z.s); ++s) {
        const int32_t id = x.ids0[sample * z.s + s];
        if (id >= 0 && id < z.n) x.d_values0[sample * z.s + s] = product(id);
      }
    }
}

template <class A>
void check_layer(const char* type, const LifLoopSizes& z, Kind kind, std::mt19937_64& r) {
  char name[128];
  std::snprintf(name, sizeof name, "%s Q %d T %d R %d N %d S %d kind %d%s", type, int(z.q), int(z.t), int(z.r),
                int(z.n), int(z.s), int(kind), z.recurrent ? " recurrent" : "");
  Layer<A> x = random_layer<A>(z, kind, r);
  run_forward(x);
  const int64_t lists = z.q * z.t * z.r, samples = z.q * z.r;
  Device<A> currents(x.currents), w_rec(x.w_rec), parameters(x.parameters), v0(x.v0), values0(x.values0);
  Device<int32_t> ids0(x.ids0), n_spikes0(x.n_spikes0), window(x.window);
  {
    Device<int32_t> ids(lists * z.s), n_spikes(lists), n_near(lists), n_lost(lists), n_near_dropped(lists);
    Device<A> excess(lists * z.s), v_last(samples * z.n);
    Device<uint32_t> fired(lists * words_of(z.n));
    const LifForwardCall<A> c{z,
                              currents.at,
                              w_rec.at,
                              parameters.at,
                              v0.at,
                              values0.at,
                              ids0.at,
                              n_spikes0.at,
                              x.window.empty() ? nullptr : window.at,
                              ids.at,
                              excess.at,
                              n_spikes.at,
                              n_near.at,
                              n_lost.at,
                              n_near_dropped.at,
                              fired.at,
                              v_last.at};
    Device<char> scratch(ops_lif_forward_scratch(c));
    const std::string what = std::string("forward ") + name + ": ";
    for (int turn = 0; turn < 2; ++turn) {
      ids.spoil(), n_spikes.spoil(), n_near.spoil(), n_lost.spoil(), n_near_dropped.spoil(), excess.spoil();
      v_last.spoil(), fired.spoil(), scratch.spoil();
      check(ops_lif_forward(c, scratch.at, nullptr));
      check(cudaDeviceSynchronize());
      compare(what + "fired", fired.read(), x.fired), compare(what + "v_last", v_last.read(), x.v_last);
      compare(what + "ids", ids.read(), x.ids), compare(what + "excess", excess.read(), x.excess);
      compare(what + "n_spikes", n_spikes.read(), x.n_spikes), compare(what + "n_near", n_near.read(), x.n_near);
      compare(what + "n_lost", n_lost.read(), x.n_lost);
      compare(what + "n_near_dropped", n_near_dropped.read(), x.n_near_dropped);
    }
  }
  random_cotangents(x, r);
  run_backward(x);
  Device<int32_t> ids(x.ids), n_listed(x.n_listed);
  Device<A> factor(x.factor), ct_excess(x.ct_excess), ct_v_last(x.ct_v_last);
  Device<uint32_t> fired(x.fired);
  Device<A> d_currents(x.d_currents.size()), d_excess(x.d_excess.size()), d_v0(x.d_v0.size());
  Device<A> d_values0(x.d_values0.size());
  const LifBackwardCall<A> c{
      z,       ids.at,       n_listed.at,  factor.at,    fired.at,      w_rec.at,    parameters.at, v0.at,
      ids0.at, n_spikes0.at, ct_excess.at, ct_v_last.at, d_currents.at, d_excess.at, d_v0.at,       d_values0.at};
  Device<char> scratch(ops_lif_backward_scratch(c));
  const std::string what = std::string("backward ") + name + ": ";
  const double slack = !z.recurrent ? 0 : sizeof(A) == 4 ? 1e-5 : 1e-13;
  std::vector<A> first[4];
  for (int turn = 0; turn < 2; ++turn) {
    for (Device<A>* out : {&d_currents, &d_excess, &d_v0, &d_values0}) out->spoil();
    scratch.spoil();
    check(ops_lif_backward(c, scratch.at, nullptr));
    check(cudaDeviceSynchronize());
    int k = 0;
    for (Device<A>* out : {&d_currents, &d_excess, &d_v0, &d_values0}) {
      const auto got = out->read();
      if (turn) same(what, first[k], got);
      first[k++] = got;
    }
  }
  compare(what + "d_currents", first[0], x.d_currents, slack), compare(what + "d_excess", first[1], x.d_excess, slack);
  compare(what + "d_v0", first[2], x.d_v0, slack), compare(what + "d_values0", first[3], x.d_values0, slack);
}

template <class A>
void check_layers(const char* type) {
  std::mt19937_64 r(1);
  const LifLoopSizes sizes[] = {
      {1, 1, 1, 1, 1, false},       {2, 2, 3, 31, 1, false},      {1, 37, 2, 33, 33, false},
      {1, 37, 5, 257, 20, false},   {2, 37, 2, 33, 40, false},    {1, 50, 3, 1000, 80, false},
      {3, 18, 2, 1024, 300, false}, {1, 2, 2, 5000, 700, false},  {1, 1, 1, 1, 1, true},
      {2, 2, 3, 31, 1, true},       {1, 37, 2, 33, 33, true},     {1, 37, 5, 257, 20, true},
      {2, 12, 2, 33, 40, true},     {1, 9, 3, 1000, 80, true},    {2, 5, 2, 1024, 300, true},
      {1, 3, 1, 1500, 300, true},   {1, 2, 1, 2500, 400, true},   {1, 2, 1, 4200, 700, true},
      {2, 19, 65, 900, 70, false},  {1, 5, 130, 1100, 90, false},
  };
  for (const LifLoopSizes& z : sizes)
    for (Kind kind : {Kind::usual, Kind::all_fire, Kind::none_fires, Kind::all_near, Kind::windows}) {
      if (z.recurrent && z.n > 1100 && (kind == Kind::all_fire || kind == Kind::none_fires)) continue;
      check_layer<A>(type, z, kind, r);
    }
}

template <class A, class O>
void check_densify(const char* type, std::mt19937_64& r) {
  const OpsSizes sizes[] = {{1, 1, 1, 1, 1, 0},      {2, 3, 4, 1, 5, 0},     {1, 9, 0, 1, 40, 0},
                            {1, 7, 70, 1, 33, 0},    {2, 5, 33, 1, 700, 0},  {1, 3, 90, 1, 1024, 0},
                            {1, 2, 400, 1, 2304, 0}, {1, 2, 500, 1, 5001, 0}};
  for (const OpsSizes& z : sizes) {
    const int64_t lists = z.q * z.r;
    std::normal_distribution<double> normal;
    std::vector<A> values(lists * z.s), sums(lists * z.n);
    std::vector<int32_t> ids(lists * z.s), count(lists);
    for (int64_t l = 0; l < lists; ++l) {
      count[l] = int32_t(l % 5 == 3 ? -1 : l % 5 == 4 ? z.s + 2 : int64_t(r() % uint64_t(z.s + 1)));
      for (int64_t s = 0; s < z.s; ++s) {
        const int64_t k = l * z.s + s;
        ids[k] = int32_t(r() % uint64_t(r() % 4 ? z.n : (z.n + 9) / 10)), values[k] = A(normal(r));
        if (r() % 13 == 0) ids[k] = r() % 2 ? -1 : INT32_MAX;
        if (s < count[l] && ids[k] >= 0 && ids[k] < z.n) sums[l * z.n + ids[k]] += values[k];
      }
    }
    std::vector<O> is(sums.size());
    for (size_t k = 0; k < is.size(); ++k) {
      if constexpr (sizeof(O) == 2) {
        uint32_t bits;
        std::memcpy(&bits, &sums[k], 4);
        is[k].bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      } else {
        is[k] = sums[k];
      }
    }
    Device<A> d_values(values);
    Device<int32_t> d_ids(ids), d_count(count);
    Device<O> out(is.size());
    check(ops_densify(DensifyCall<A, O>{z, d_values.at, d_ids.at, d_count.at, out.at}, nullptr));
    check(cudaDeviceSynchronize());
    ++checked;
    if (const auto got = out.read(); std::memcmp(got.data(), is.data(), is.size() * sizeof(O))) {
      std::printf("WRONG densify %s R %d S %d N %d\n", type, int(lists), int(z.s), int(z.n));
      ++wrong;
    }
  }
}

int check_all() {
  check_layers<float>("f32");
  check_layers<double>("f64");
  std::mt19937_64 r(2);
  check_densify<float, float>("f32", r);
  check_densify<double, double>("f64", r);
  check_densify<float, Bf16>("bf16", r);
  std::printf("%d checks, %d wrong\n", checked, wrong);
  return wrong != 0;
}

// Times
// ----------------------------------------------------------------------------------------------------------------

// us of one of many launches, and their quartiles apart.
struct Time {
  double each, spread;
};

template <class Call>
Time time_of(Call call) {
  const auto us = [&](int launches) { return microseconds_each(launches, [&] { check(call()); }); };
  us(1);
  const int launches = int(std::clamp(1000 / us(1), 1., 10.));
  std::vector<double> many;
  for (int k = 0; k < 9; ++k) many.push_back(us(launches));
  std::sort(many.begin(), many.end());
  return {many[4], many[6] - many[2]};
}

void say(const char* name, const Time& t, double bytes, int64_t steps = 0) {
  std::printf("  %-28s %9.1f us (+-%.1f)", name, t.each, t.spread / 2);
  if (steps) std::printf("  %6.3f us a step", t.each / double(steps));
  if (bytes > 0) std::printf("  %7.3f GB  %5.2f TB/s", bytes * 1e-9, bytes / t.each * 1e-6);
  std::printf("\n");
}

void fill(const Device<float>& x, float low, float high, uint32_t seed) {
  fill_random<<<1024, 256>>>(x.at, int64_t(x.size), low, high, seed);
  check(cudaGetLastError());
}

double mean(const Device<int32_t>& x) {
  const auto all = x.read();
  double sum = 0;
  for (int32_t y : all) sum += y;
  return sum / double(std::max<size_t>(all.size(), 1));
}

// Windows of a fortieth of the neurons, as what is drawn at random is.
std::vector<int32_t> some_windows(int64_t lists, int64_t n) {
  std::mt19937 r(5);
  std::vector<int32_t> windows;
  for (int64_t l = 0; l < lists; ++l)
    windows.push_back(int32_t(r() % uint64_t(n))), windows.push_back(int32_t(std::max<int64_t>(n / 40, 1)));
  return windows;
}

enum class Times { usual, tune, windows };

void run_size(int64_t t, int64_t r, int64_t n, bool recurrent, Times which) {
  const bool tune = which == Times::tune;
  const LifLoopSizes z{1, t, r, n, std::max<int64_t>(n / 20, 1), recurrent};
  const int64_t lists = t * r, words = words_of(n);
  Device<float> currents(lists * n), w_rec(recurrent ? n * n : 0), v0(r * n), values0(r * z.s), excess(lists * z.s);
  Device<float> v_last(r * n), factor(lists * z.s), ct_excess(lists * z.s), d_excess(lists * z.s);
  Device<float> d_v0(r * n), d_values0(r * z.s);
  std::vector<float> rows(kLifRows * n);
  const float of[kLifRows] = {0.95f, 1.f, 1.f, 0.9f};
  for (int k = 0; k < kLifRows; ++k) std::fill_n(rows.begin() + k * n, n, of[k]);
  Device<float> parameters(rows);
  Device<int32_t> ids0(std::vector<int32_t>(r * z.s, 0)), n_spikes0(std::vector<int32_t>(r, 0));
  Device<int32_t> ids(lists * z.s), n_spikes(lists), n_near(lists), n_lost(lists), n_dropped(lists), n_listed(lists);
  Device<uint32_t> fired(lists * words);
  fill(currents, -0.25f, 0.32f, 1), fill(w_rec, -0.02f, 0.02f, 2), fill(v0, 0, 1, 3), fill(factor, 0, 1, 4);
  fill(ct_excess, -1, 1, 5);
  Device<float> d_currents(lists * n);
  const LifForwardCall<float> forward{z,         currents.at,  w_rec.at,     parameters.at, v0.at,     values0.at,
                                      ids0.at,   n_spikes0.at, nullptr,      ids.at,        excess.at, n_spikes.at,
                                      n_near.at, n_lost.at,    n_dropped.at, fired.at,      v_last.at};
  Device<float> ct_v_last(std::vector<float>(r * n, 0.f));
  const LifBackwardCall<float> backward{
      z,       ids.at,       n_listed.at,  factor.at,    fired.at,      w_rec.at,    parameters.at, v0.at,
      ids0.at, n_spikes0.at, ct_excess.at, ct_v_last.at, d_currents.at, d_excess.at, d_v0.at,       d_values0.at};
  Device<char> scratch(std::max(ops_lif_forward_scratch(forward), ops_lif_backward_scratch(backward)));
  check(ops_lif_forward(forward, scratch.at, nullptr));
  add_counts<<<unsigned((lists + 255) / 256), 256>>>(n_spikes.at, n_near.at, n_listed.at, lists);
  check(cudaDeviceSynchronize());
  const double share = 100. / double(n);
  std::printf("T %d R %d N %d S %d%s: fired %.2f %%, listed %.2f %%, lost %.2f %%\n", int(t), int(r), int(n), int(z.s),
              recurrent ? " recurrent" : "", share * (mean(n_spikes) + mean(n_lost)), share * mean(n_listed),
              share * mean(n_lost));
  const double passes = 4. * double(lists) * double(n), slots = 4. * double(lists * z.s),
               bits = 4. * double(lists * words);
  const double forth = passes + 2 * slots + bits, back = passes + (recurrent ? 4 : 3) * slots + bits;
  say("forward", time_of([&] { return ops_lif_forward(forward, scratch.at, nullptr); }), forth, t);
  if (which == Times::windows) {
    LifForwardCall<float> drawn = forward;
    Device<int32_t> windows(some_windows(lists, n));
    drawn.window = windows.at;
    say("forward with windows", time_of([&] { return ops_lif_forward(drawn, scratch.at, nullptr); }), forth, t);
    // the same lists from the same kernel, for what windows alone cost
    check(cudaMemset(windows.at, 0, windows.size * sizeof(int32_t)));
    say("forward with windows of none", time_of([&] { return ops_lif_forward(drawn, scratch.at, nullptr); }), forth, t);
    return;
  }
  say("backward", time_of([&] { return ops_lif_backward(backward, scratch.at, nullptr); }), back, t);
  if (recurrent) {
    if (!tune) return;
    say("forward own 1", time_of([&] { return n <= 1024 ? launch_steps<float, 1>(forward, nullptr) : cudaSuccess; }), 0,
        t);
    say("forward own 2", time_of([&] { return launch_steps<float, 2>(forward, nullptr); }), 0, t);
    say("forward own 4", time_of([&] { return launch_steps<float, 4>(forward, nullptr); }), 0, t);
    return;
  }
  LifChunk<float> w;
  arrange(forward, scratch.at, w);
  LifBackChunk<float> b;
  arrange(backward, scratch.at, b);
  if (words <= 32) {
    say("forward by blocks", time_of([&] {
          return words <= 16 ? launch_block<float, 1, kManySteps>(forward, nullptr)
                             : launch_block<float, 2, kFewSteps>(forward, nullptr);
        }),
        forth, t);
    say("backward by blocks", time_of([&] {
          return words <= 16 ? launch_block_back<float, 1>(backward, nullptr)
                             : launch_block_back<float, 2>(backward, nullptr);
        }),
        back, t);
    say("forward by chunks", time_of([&] { return walk(forward, w, nullptr); }), forth, t);
    say("backward by chunks", time_of([&] { return walk_back(backward, b, nullptr); }), back, t);
    if (!tune) return;
  }
  const auto blocks = [&](int64_t threads, int64_t block) { return unsigned(ceiling(threads, block)); };
  const auto chunks = [&](int64_t steps, auto launch) {
    LifChunk<float> part = w;
    for (part.first = 0; part.first < t; part.first += steps) {
      part.steps = std::min(steps, t - part.first);
      launch(part);
    }
    return cudaGetLastError();
  };
  std::printf("  chunks of %d steps, %d words a warp\n", int(w.steps), w.own);
  const auto walkers = [&](int own) { return blocks(r * ceiling(words, own) * kWarp, kWalkThreads); };
  const auto try_walk = [&](const char* name, int own, auto kernel) {
    const int is = w.own;
    w.own = own;
    say(name,
        time_of([&] { return chunks(w.steps, [&](auto p) { kernel<<<walkers(own), kWalkThreads>>>(forward, p); }); }),
        passes, t);
    w.own = is;
  };
  try_walk("lif_walk own 1, 16 ahead", 1, lif_walk<float, 1, 16, false>);
  try_walk("lif_walk own 2, 4 ahead", 2, lif_walk<float, 2, 4, false>);
  try_walk("lif_walk own 2, 8 ahead", 2, lif_walk<float, 2, 8, false>);
  check(walk(forward, w, nullptr));
  const auto try_lists = [&](const char* name, int share, auto kernel) {
    say(name, time_of([&] {
          return chunks(w.steps, [&](auto p) {
            kernel<<<blocks(p.steps * r * share * kWarp, kListThreads), kListThreads>>>(forward, p);
          });
        }),
        0, t);
  };
  try_lists("lif_lists, a warp", 1, lif_lists<float, 1>);
  try_lists("lif_lists, a block", kListThreads / kWarp, lif_lists<float, kListThreads / kWarp>);
  if (tune)
    for (int64_t steps : {w.steps / 2, w.steps / 4, w.steps / 8}) {
      if (steps < 8) continue;
      const std::string name = "forward, chunks of " + std::to_string(steps);
      LifChunk<float> other = w;
      other.steps = steps;
      say(name.c_str(), time_of([&] { return walk(forward, other, nullptr); }), forth, t);
    }
  b.first = std::max<int64_t>(t - b.steps, 0), b.steps = t - b.first;
  const size_t shared = kSortThreads / kWarp * 2 * sizeof(uint32_t) * std::min(words, kSortWords);
  std::printf("  the last %d steps\n", int(b.steps));
  say("lif_sort", time_of([&] {
        lif_sort<float><<<blocks(b.steps * r * kWarp, kSortThreads), kSortThreads, shared>>>(backward, b);
        return cudaGetLastError();
      }),
      0, b.steps);
  say("lif_walk_back", time_of([&] {
        lif_walk_back<float><<<blocks(r * words * kWarp, kBackThreads), kBackThreads>>>(backward, b);
        return cudaGetLastError();
      }),
      passes * double(b.steps) / double(t), b.steps);
  say("zeros of the currents' size", time_of([&] { return cudaMemsetAsync(d_currents.at, 0, 4 * lists * n); }), passes);
  say("copy of the currents",
      time_of([&] { return cudaMemcpyAsync(d_currents.at, currents.at, 4 * lists * n, cudaMemcpyDeviceToDevice); }),
      2 * passes);
}

void run_densify(int64_t lists, int64_t n) {
  const OpsSizes z{1, lists, n / 20, 1, n, 0};
  std::mt19937 r(4);
  std::vector<int32_t> ids(lists * z.s), count(lists, int32_t(z.s / 2));
  for (int64_t l = 0; l < lists; ++l) {
    for (int64_t s = 0; s < z.s; ++s) ids[l * z.s + s] = int32_t(s * 20 + int64_t(r() % 20));
  }
  Device<int32_t> d_ids(ids), d_count(count);
  Device<float> values(lists * z.s), out(lists * n);
  fill(values, -1, 1, 6);
  std::printf("densify %d lists of %d, half of %d slots\n", int(lists), int(n), int(z.s));
  const double numbers = double(lists * n);
  say("f32", time_of([&] {
        return ops_densify(DensifyCall<float, float>{z, values.at, d_ids.at, d_count.at, out.at}, nullptr);
      }),
      4 * numbers);
  say("bf16", time_of([&] {
        return ops_densify(
            DensifyCall<float, Bf16>{z, values.at, d_ids.at, d_count.at, reinterpret_cast<Bf16*>(out.at)}, nullptr);
      }),
      2 * numbers);
  say("zeros, f32", time_of([&] { return cudaMemsetAsync(out.at, 0, size_t(4 * numbers)); }), 4 * numbers);
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("%s\n", device.name);
  const std::string word = argc > 1 ? argv[1] : "";
  if (word == "check") return check_all();
  if (argc >= 4) {
    run_size(std::atoll(argv[1]), std::atoll(argv[2]), std::atoll(argv[3]), argc > 4, Times::tune);
    return 0;
  }
  if (word == "windows") {
    for (int64_t r : {48, 256}) run_size(500, r, 1024, false, Times::windows);
    for (int64_t r : {48, 256}) run_size(500, r, 256, true, Times::windows);
    return 0;
  }
  const bool tune = word == "tune";
  const int failed = tune ? 0 : check_all();
  const Times times = tune ? Times::tune : Times::usual;
  for (int64_t r : {48, 256})
    for (int64_t n : {128, 512, 1024}) run_size(500, r, n, false, times);
  run_size(1000, 48, 1024, false, times);
  run_size(500, 16, 16384, false, times);
  for (int64_t r : {48, 256})
    for (int64_t n : {128, 256, 1024}) run_size(500, r, n, true, times);
  run_densify(128000, 700);
  run_densify(128000, 1024);
  return failed;
}
