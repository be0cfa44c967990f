// Microseconds of the GPU kernels of ranvier.ops, and whether they are right, without JAX: for work on the kernels.
//
//   nvcc -O3 -std=c++17 -arch=native -lineinfo -I csrc -o /tmp/ops_cuda benchmarks/ops_cuda.cu
//   /tmp/ops_cuda            checks, then five sizes
//   /tmp/ops_cuda check      checks alone
//   /tmp/ops_cuda times      five sizes alone
//   /tmp/ops_cuda tune       five sizes, and each way to deal out the work
//   /tmp/ops_cuda N C B A    one size: neurons, columns, lists, activity
//
// Checks: each operator and type against plain loops in double, at odd sizes, with ids that stand twice or are out of
// range, counts that are out of range, and unused slots that are no numbers; and the same bits when called again.
// Times: a batch of launches between two events; the median over the batches. "alone" is one launch between two events.
// Lists come from random voltages: as many near-threshold neurons as spikes, room for three times the mean of both.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../csrc/ops_cuda.cu"
#include "device_cuda.h"

namespace {

using namespace ranvier;

// Checks
// ---------------------------------------------------------------------------------------------------------------

int wrong = 0, checked = 0;

float round_trip(Bf16& to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to.bits = uint16_t((bits + 0x8000) >> 16);
  bits = uint32_t(to.bits) << 16;
  std::memcpy(&x, &bits, 4);
  return x;
}
float round_trip(F16& to, float x) {
  const __half h = __float2half(x);
  std::memcpy(&to.bits, &h, 2);
  return __half2float(h);
}
double round_trip(float& to, double x) { return to = float(x); }
double round_trip(double& to, double x) { return to = x; }

template <class A>
void compare(const std::string& what, const std::vector<A>& got, const std::vector<double>& is,
             const std::vector<double>& size) {
  const double epsilon = sizeof(A) == 4 ? 1e-6 : 1e-15;
  ++checked;
  for (size_t k = 0; k < got.size(); ++k) {
    if (std::fabs(double(got[k]) - is[k]) <= 20 * epsilon * size[k]) continue;
    std::printf("WRONG %s: number %zu is %.9g, should be %.9g\n", what.c_str(), k, double(got[k]), is[k]);
    ++wrong;
    return;
  }
}

// Calls twice; the results must have the same bits.
template <class T, class Call>
std::vector<T> twice(const std::string& what, Device<T>& out, Call call) {
  std::vector<T> results[2];
  for (auto& result : results) {
    out.spoil();
    check(call());
    check(cudaDeviceSynchronize());
    result = out.read();
  }
  if (out.size && std::memcmp(results[0].data(), results[1].data(), out.size * sizeof(T))) {
    std::printf("WRONG %s: other bits when called again\n", what.c_str());
    ++wrong;
  }
  return results[0];
}

struct Lists {
  std::vector<int32_t> ids, count;
  std::vector<double> values;
  std::vector<char> used;  // slots that count
};

// kind 0: random, with everything that may be odd; 1: all slots name one row; 2: ascending without twins, as spikes
// come
Lists random_lists(const OpsSizes& z, int kind, std::mt19937_64& r) {
  Lists x;
  std::normal_distribution<double> normal;
  const int64_t lists = z.q * z.r;
  x.ids.resize(lists * z.s), x.values.resize(lists * z.s), x.used.resize(lists * z.s), x.count.resize(lists);
  for (int64_t l = 0; l < lists; ++l) {
    int64_t count = z.s ? int64_t(r() % uint64_t(z.s + 1)) : 0;
    if (kind == 0 && l % 7 == 3) count = z.s + 5;
    if (kind == 0 && l % 7 == 5) count = -3;
    if (kind == 1) count = z.s;
    x.count[l] = int32_t(count);
    std::vector<int32_t> ids(z.s);
    for (auto& id : ids) id = kind == 1 ? int32_t(z.n / 2) : int32_t(r() % uint64_t(z.n));
    if (kind == 2) std::sort(ids.begin(), ids.begin() + std::clamp<int64_t>(count, 0, z.s));
    for (int64_t s = 0; s < z.s; ++s) {
      const int64_t k = l * z.s + s;
      int32_t id = ids[s];
      if (kind == 0 && r() % 13 == 0) id = r() % 2 ? -1 - int32_t(r() % 5) : int32_t(z.n + int64_t(r() % 5));
      if (kind == 0 && r() % 29 == 0) id = r() % 2 ? INT32_MIN : INT32_MAX;
      x.ids[k] = id;
      x.used[k] = s < count && id >= 0 && id < z.n;
      x.values[k] = x.used[k] ? normal(r) : std::numeric_limits<double>::quiet_NaN();
    }
  }
  return x;
}

// What is stored, and the same numbers as double.
template <class T>
std::vector<T> random_numbers(size_t size, std::vector<double>& is, std::mt19937_64& r) {
  std::normal_distribution<double> normal;
  std::vector<T> x(size);
  is.resize(size);
  for (size_t k = 0; k < size; ++k) is[k] = round_trip(x[k], normal(r));
  return x;
}

template <class A, class M>
void check_one(const char* type, OpsSizes z, int kind, bool shifted, std::mt19937_64& r) {
  char name[128];
  std::snprintf(name, sizeof name, "%s Q %d R %d S %d P %d N %d C %d kind %d%s", type, int(z.q), int(z.r), int(z.s),
                int(z.p), int(z.n), int(z.c), kind, shifted ? " shifted" : "");
  const Lists l = random_lists(z, kind, r);
  const int64_t lists = z.q * z.r;
  std::vector<double> values, matrix, g;
  std::vector<A> stored(l.values.size());
  values.resize(l.values.size());
  for (size_t k = 0; k < stored.size(); ++k) values[k] = round_trip(stored[k], l.values[k]);
  const int64_t shift = shifted ? 1 : 0;  // a place that 16 bytes cannot be loaded from
  auto matrix_stored = random_numbers<M>(z.p * z.n * z.c + shift, matrix, r);
  auto g_stored = random_numbers<A>(lists * z.c + shift, g, r);
  Device<A> d_values(stored), d_g(g_stored);
  Device<M> d_matrix(matrix_stored);
  Device<int32_t> d_ids(l.ids), d_count(l.count);
  std::vector<double> out(lists * z.c), out_size(lists * z.c), rows(z.p * z.n * z.c), rows_size(rows.size());
  std::vector<double> products(lists * z.s), products_size(lists * z.s);
  for (int64_t i = 0; i < lists; ++i) {
    const int64_t set = z.p == 1 ? 0 : i / z.r;
    for (int64_t s = 0; s < z.s; ++s) {
      const int64_t k = i * z.s + s;
      if (!l.used[k]) continue;
      for (int64_t j = 0; j < z.c; ++j) {
        const int64_t at = (set * z.n + l.ids[k]) * z.c + j;
        const double a = values[k] * matrix[at + shift], b = values[k] * g[i * z.c + j + shift];
        const double d = matrix[at + shift] * g[i * z.c + j + shift];
        out[i * z.c + j] += a, out_size[i * z.c + j] += std::fabs(a);
        rows[at] += b, rows_size[at] += std::fabs(b);
        products[k] += d, products_size[k] += std::fabs(d);
      }
    }
  }
  {
    Device<A> result(out.size());
    const GatherCall<A, M> c{z, d_values.at, d_ids.at, d_count.at, d_matrix.at + shift, result.at};
    const std::string what = std::string("gather ") + name;
    compare(what, twice(what, result, [&] { return ops_gather(c, nullptr); }), out, out_size);
  }
  {
    Device<A> result(products.size());
    const DotsCall<A, M> c{z, d_ids.at, d_count.at, d_matrix.at + shift, d_g.at + shift, result.at};
    const std::string what = std::string("dots ") + name;
    compare(what, twice(what, result, [&] { return ops_dots(c, nullptr); }), products, products_size);
  }
  // The same with the matrix stored the other way round.
  std::vector<M> matrix_turned(matrix_stored.size());
  for (int64_t set = 0; set < z.p; ++set)
    for (int64_t i = 0; i < z.n; ++i)
      for (int64_t j = 0; j < z.c; ++j)
        matrix_turned[(set * z.c + j) * z.n + i + shift] = matrix_stored[(set * z.n + i) * z.c + j + shift];
  Device<M> d_turned(matrix_turned);
  for (const Way way : {Way::few, Way::whole, Way::walk}) {
    const std::string how = std::string(way == Way::few ? "few" : way == Way::whole ? "whole" : "walk") + " " + name;
    Device<A> result(out.size()), result_dots(products.size());
    const GatherCall<A, M> c{z, d_values.at, d_ids.at, d_count.at, d_turned.at + shift, result.at};
    const DotsCall<A, M> c_dots{z, d_ids.at, d_count.at, d_turned.at + shift, d_g.at + shift, result_dots.at};
    Device<char> scratch(scratch_of(c, way)), scratch_dots(scratch_of(c_dots, way));
    compare("gather " + how, twice("gather " + how, result, [&] { return gather_turned(c, way, scratch.at, nullptr); }),
            out, out_size);
    compare("dots " + how,
            twice("dots " + how, result_dots, [&] { return dots_turned(c_dots, way, scratch_dots.at, nullptr); }),
            products, products_size);
  }
  if constexpr (sizeof(M) == sizeof(A)) {
    Device<A> result(rows.size());
    const ScatterCall<A> c{z, d_values.at, d_ids.at, d_count.at, d_g.at + shift, result.at};
    Device<char> scratch(scratch_of(c, true));
    const std::string what = std::string("scatter ") + name;
    compare(what, twice(what, result, [&] { return ops_scatter(c, false, scratch.at, nullptr); }), rows, rows_size);
    std::vector<double> turned(rows.size()), turned_size(rows.size());
    for (int64_t set = 0; set < z.p; ++set)
      for (int64_t i = 0; i < z.n; ++i)
        for (int64_t j = 0; j < z.c; ++j) {
          const int64_t to = (set * z.c + j) * z.n + i, from = (set * z.n + i) * z.c + j;
          turned[to] = rows[from], turned_size[to] = rows_size[from];
        }
    for (const bool whole : {false, true}) {
      const std::string how = std::string("scatter turned ") + (whole ? "whole " : "") + name;
      compare(how, twice(how, result, [&] { return scatter_of(c, true, whole, scratch.at, nullptr); }), turned,
              turned_size);
    }
  }
}

template <class A>
void check_spikes(int64_t rows, int64_t n, int64_t slots, int rows_of, int neurons_of, std::mt19937_64& r) {
  std::vector<A> state(rows * n), threshold((rows_of ? rows : 1) * (neurons_of ? n : 1)), near(neurons_of ? 1 : rows);
  std::normal_distribution<double> normal;
  for (auto& x : state) x = A(normal(r));
  if (n > 2) state[1] = std::numeric_limits<A>::quiet_NaN(), state[2] = std::numeric_limits<A>::infinity();
  for (auto& x : threshold) x = A(0.5 + 0.1 * normal(r));
  for (auto& x : near) x = A(0.2 * normal(r));
  if (rows > 2 && !neurons_of) near[1] = -std::numeric_limits<A>::infinity();
  Device<A> d_state(state), d_threshold(threshold), d_near(near);
  Device<int32_t> out(rows * slots + 4 * rows);
  SpikesCall<A> c{};
  c.r = rows, c.n = n, c.s = slots;
  c.threshold_row = rows_of ? (neurons_of ? n : 1) : 0, c.threshold_neuron = neurons_of ? 1 : 0;
  c.near_row = neurons_of ? 0 : 1, c.near_neuron = 0;
  c.state = d_state.at, c.threshold = d_threshold.at, c.near = d_near.at;
  c.ids = out.at, c.n_spikes = out.at + rows * slots, c.n_near = c.n_spikes + rows, c.n_lost = c.n_near + rows;
  c.n_near_dropped = c.n_lost + rows;
  std::vector<int32_t> is(out.size, 0);
  for (int64_t i = 0; i < rows; ++i) {
    int32_t found[2] = {}, listed[2] = {};
    int64_t place = 0;
    for (int kind = 0; kind < 2; ++kind)
      for (int64_t k = 0; k < n; ++k) {
        const A v = state[i * n + k], high = threshold[i * c.threshold_row + k * c.threshold_neuron];
        const bool fires = v > high, nears = v > near[i * c.near_row] && v <= high;
        if (!(kind ? nears : fires)) continue;
        ++found[kind];
        if (place < slots) is[i * slots + place++] = int32_t(k), ++listed[kind];
      }
    int32_t* counts = is.data() + rows * slots + i;
    counts[0] = listed[0], counts[rows] = listed[1];
    counts[2 * rows] = found[0] - listed[0], counts[3 * rows] = found[1] - listed[1];
  }
  const auto got = twice("spikes", out, [&] { return ops_spikes(c, nullptr); });
  ++checked;
  if (got == is) return;
  std::printf("WRONG spikes R %d N %d S %d\n", int(rows), int(n), int(slots));
  ++wrong;
}

template <class A, class M>
void check_type(const char* type) {
  std::mt19937_64 r(1);
  const OpsSizes sizes[] = {
      {1, 1, 1, 1, 1, 1},       {1, 3, 5, 1, 7, 3},        {2, 3, 4, 2, 5, 4},         {2, 3, 40, 1, 9, 33},
      {3, 2, 70, 3, 300, 65},   {1, 33, 100, 1, 100, 128}, {1, 1025, 9, 1, 33, 8},     {2, 1100, 12, 2, 40, 20},
      {1, 2500, 7, 1, 270, 36}, {1, 1, 3000, 1, 50, 72},   {1, 40, 200, 1, 5000, 516}, {5, 700, 6, 1, 20, 130},
      {2, 3, 0, 2, 5, 4},       {1, 64, 33, 1, 512, 1024}, {1, 300, 130, 1, 2000, 40}, {1, 2, 600, 1, 3, 1000},
      {1, 4200, 3, 1, 40, 12},  {1, 3, 4100, 1, 30, 20},   {2, 4100, 3, 2, 9, 36},     {1, 5, 40, 1, 9000, 12},
      {2, 40, 9, 2, 130, 12},   {1, 2, 20, 1, 300, 37},    {2, 3, 5, 2, 70, 20},       {1, 260, 11, 1, 400, 70},
  };
  for (const OpsSizes& z : sizes)
    for (int kind = 0; kind < 3; ++kind) check_one<A, M>(type, z, kind, false, r);
  check_one<A, M>(type, {1, 33, 100, 1, 100, 128}, 0, true, r);
  check_one<A, M>(type, {1, 40, 20, 1, 5000, 516}, 0, true, r);
}

int check_all() {
  check_type<float, float>("f32");
  check_type<double, double>("f64");
  check_type<float, Bf16>("bf16");
  check_type<float, F16>("f16");
  std::mt19937_64 r(2);
  for (int64_t n : {1, 31, 32, 33, 700, 1024, 4097, 9000})
    for (int64_t slots : {int64_t(0), int64_t(1), n / 4, n / 2, n, n + 3})
      for (int way = 0; way < 4; ++way) {
        check_spikes<float>(5, n, slots, way & 1, way & 2, r);
        check_spikes<double>(3, n, slots, way & 1, way & 2, r);
      }
  std::printf("%d checks, %d wrong\n", checked, wrong);
  return wrong != 0;
}

// Times
// ----------------------------------------------------------------------------------------------------------------

struct Time {
  double each, spread, alone;  // us of one of many, their quartiles apart, and of a single launch
};

template <class Call>
Time time_of(Call call) {
  const auto us = [&](int launches) { return microseconds_each(launches, [&] { check(call()); }); };
  us(5);
  std::vector<double> many, single;
  for (int k = 0; k < 15; ++k) many.push_back(us(20));
  for (int k = 0; k < 31; ++k) single.push_back(us(1));
  std::sort(many.begin(), many.end()), std::sort(single.begin(), single.end());
  return {many[7], many[11] - many[3], single[15]};
}

void say(const char* name, const Time& t, double bytes) {
  std::printf("  %-28s %8.1f us (+-%.1f, alone %.1f)  %6.2f TB/s", name, t.each, t.spread / 2, t.alone,
              bytes / t.each * 1e-6);
  std::printf("\n");
}

template <int kLanes, int kAhead, int kThreads, class Lists, class A, class M>
void try_sums(const char* name, const Lists& lists, const Sums<A, M>& z, std::initializer_list<int> all_each, int alone,
              double bytes) {
  for (int each : all_each) {
    const Deal d{kLanes, each, kThreads / kLanes * each, alone};
    char line[128];
    std::snprintf(line, sizeof line, "%s l%d a%d t%d e%d", name, kLanes, kAhead, kThreads, each);
    say(line, time_of([&] { return launch_sums<Lists, A, M, true, kLanes, kAhead, kThreads>(lists, z, d, nullptr); }),
        bytes);
  }
}

template <int kLanes, int kAhead, int kThreads, class A>
void try_rows(const Inverted<A>& lists, const Sums<A, A>& z, int each, double bytes) {
  const Deal d{kLanes, each, kThreads / kLanes * each, 512};
  char line[128];
  std::snprintf(line, sizeof line, "rows l%d a%d t%d e%d", kLanes, kAhead, kThreads, each);
  say(line, time_of([&] { return launch_rows<A, true, kLanes, kAhead, kThreads, false>(lists, z, d, nullptr); }),
      bytes);
}

template <class Lists, class A, class M>
void try_all(const char* name, const Lists& lists, const Sums<A, M>& z, std::initializer_list<int> all_each,
             double bytes) {
  try_sums<8, 8, 256>(name, lists, z, all_each, 512, bytes);
  try_sums<8, 8, 512>(name, lists, z, all_each, 512, bytes);
  try_sums<8, 8, 1024>(name, lists, z, all_each, 512, bytes);
  try_sums<8, 4, 256>(name, lists, z, all_each, 512, bytes);
  try_sums<32, 8, 256>(name, lists, z, all_each, 512, bytes);
  try_sums<32, 8, 512>(name, lists, z, all_each, 512, bytes);
  try_sums<32, 4, 256>(name, lists, z, all_each, 512, bytes);
}

void run_size(int64_t n, int64_t c, int64_t batch, double activity, bool tune) {
  std::mt19937 r(3);
  std::vector<float> state(batch * n), matrix(n * c), g(batch * c);
  for (auto& x : state) x = float(r()) / 4294967296.f;
  for (auto& x : matrix) x = float(r()) / 4294967296.f - 0.5f;
  for (auto& x : g) x = float(r()) / 4294967296.f - 0.5f;
  std::vector<Bf16> half(n * c);
  for (size_t k = 0; k < half.size(); ++k) round_trip(half[k], matrix[k]);
  const int64_t slots = (int64_t(6 * activity * double(n)) + 7) / 4 * 4;
  Device<float> d_state(state), d_matrix(matrix), d_g(g), out(batch * c), rows(n * c), products(batch * slots);
  Device<Bf16> d_half(half);
  Device<float> d_threshold(std::vector<float>(1, float(1 - activity)));
  Device<float> d_near(std::vector<float>(1, float(1 - 2 * activity)));
  Device<int32_t> ids(batch * slots), counts(4 * batch);
  SpikesCall<float> spikes{};
  spikes.r = batch, spikes.n = n, spikes.s = slots;
  spikes.state = d_state.at, spikes.threshold = d_threshold.at, spikes.near = d_near.at, spikes.ids = ids.at;
  spikes.n_spikes = counts.at, spikes.n_near = counts.at + batch, spikes.n_lost = counts.at + 2 * batch;
  spikes.n_near_dropped = counts.at + 3 * batch;
  check(ops_spikes(spikes, nullptr));
  const auto found = counts.read();
  std::vector<int32_t> listed(batch);
  double n_spikes = 0, n_listed = 0, lost = 0;
  for (int64_t i = 0; i < batch; ++i) {
    listed[i] = found[i] + found[batch + i];
    n_spikes += found[i], n_listed += listed[i], lost += found[2 * batch + i] + found[3 * batch + i];
  }
  Device<int32_t> d_listed(listed);
  Device<float> values(std::vector<float>(batch * slots, 1.f));
  const OpsSizes z{1, batch, slots, 1, n, c};
  const GatherCall<float, float> gather{z, values.at, ids.at, spikes.n_spikes, d_matrix.at, out.at};
  const GatherCall<float, Bf16> gather_half{z, values.at, ids.at, spikes.n_spikes, d_half.at, out.at};
  const ScatterCall<float> scatter{z, values.at, ids.at, spikes.n_spikes, d_g.at, rows.at};
  const DotsCall<float, float> dots{z, ids.at, d_listed.at, d_matrix.at, d_g.at, products.at};
  const DotsCall<float, Bf16> dots_half{z, ids.at, d_listed.at, d_half.at, d_g.at, products.at};
  Device<char> scratch(scratch_of(scatter, true));
  std::printf("%d x %d, batch %d, activity %g %%: %.1f spikes, %.1f listed a list, %d slots, %g dropped\n", int(n),
              int(c), int(batch), 100 * activity, n_spikes / double(batch), n_listed / double(batch), int(slots), lost);
  const double row = 4. * double(c), result = row * double(batch);
  const double read = n_spikes * row, read_all = n_listed * row;
  const Time times[3] = {time_of([&] { return ops_gather(gather, nullptr); }),
                         time_of([&] { return ops_scatter(scatter, false, scratch.at, nullptr); }),
                         time_of([&] { return ops_dots(dots, nullptr); })};
  say("gather", times[0], read + result);
  say("scatter", times[1], read + row * double(n));
  say("dots", times[2], read_all + result);
  say("spikes", time_of([&] { return ops_spikes(spikes, nullptr); }), 4. * double(n * batch));
  say("gather bf16", time_of([&] { return ops_gather(gather_half, nullptr); }), read / 2 + result);
  say("dots bf16", time_of([&] { return ops_dots(dots_half, nullptr); }), read_all / 2 + result);
  Inverted<float> inverted;
  arrange(scatter, scratch.at, inverted);
  if (inverted.words) {
    say("scatter: marks", time_of([&] { return launch_marks(inverted, nullptr); }), 8 * n_spikes);
    check(launch_marks(inverted, nullptr));
    say("scatter: collect", time_of([&] {
          // as if nothing had been taken yet; no more than a launch
          const cudaError_t error = cudaMemsetAsync(inverted.taken, 0, 4, nullptr);
          return error == cudaSuccess ? launch_collect(inverted, nullptr) : error;
        }),
        8 * n_spikes);
  }
  const auto say_turned = [&](const char* name, const Time& t, double bytes, double direct) {
    char line[128];
    std::snprintf(line, sizeof line, "%s (%.2f of direct)", name, t.each / direct);
    say(line, t, bytes);
  };
  const double all = row * double(n);
  for (const Way way : {Way::few, Way::whole, Way::walk}) {
    if (way == Way::few && n_spikes * double(c) > 1e8) continue;
    const char* how[] = {"few", "whole", "walk"};
    const std::string word = how[int(way)] + std::string(way == way_of<float>(z) ? "*" : "");
    Device<char> for_gather(scratch_of(gather, way)), for_dots(scratch_of(dots, way));
    say_turned(("gather turned " + word).c_str(),
               time_of([&] { return gather_turned(gather, way, for_gather.at, nullptr); }), all + result,
               times[0].each);
    say_turned(("dots turned " + word).c_str(), time_of([&] { return dots_turned(dots, way, for_dots.at, nullptr); }),
               all + result, times[2].each);
  }
  for (const bool whole : {false, true})
    say_turned(
        (std::string("scatter turned") + (whole ? " whole" : "") + (whole == small<float>(z) ? "*" : "")).c_str(),
        time_of([&] { return scatter_of(scatter, true, whole, scratch.at, nullptr); }), read + all, times[1].each);
  say("turn the matrix round", time_of([&] { return launch_turn(d_matrix.at, rows.at, 1, c, n, nullptr); }), 2 * all);
  say("scatter: invert", time_of([&] { return launch_invert(inverted, nullptr); }), 8 * n_spikes);
  say("scatter: rows", time_of([&] { return rows_of<float, 512, false>(inverted, sums_of(scatter), nullptr); }),
      read + row * double(n));
  say("zeros of the matrix's size", time_of([&] { return cudaMemsetAsync(rows.at, 0, 4 * n * c); }), row * double(n));
  if (!tune) return;
  try_all("gather", lists_of(gather), sums_of(gather), {1, 2, 4}, read + result);
  for (const int each : {1, 2, 4, 8, 16}) {
    try_rows<32, 8, 256>(inverted, sums_of(scatter), each, read + row * double(n));
    try_rows<32, 8, 512>(inverted, sums_of(scatter), each, read + row * double(n));
    try_rows<32, 4, 512>(inverted, sums_of(scatter), each, read + row * double(n));
  }
  say("dots l8", time_of([&] { return launch_dots<float, float, true, 8>(dots, nullptr); }), read_all + result);
  say("dots l32", time_of([&] { return launch_dots<float, float, true, 32>(dots, nullptr); }), read_all + result);
}

}  // namespace

int main(int argc, char** argv) {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("%s\n", device.name);
  const std::string word = argc > 1 ? argv[1] : "";
  if (word == "check") return check_all();
  if (argc == 5) {
    run_size(std::atoll(argv[1]), std::atoll(argv[2]), std::atoll(argv[3]), std::atof(argv[4]), true);
    return 0;
  }
  const int failed = word == "tune" || word == "times" ? 0 : check_all();
  const int64_t shapes[5][3] = {
      {1024, 256, 1024}, {1024, 1024, 1024}, {4096, 4096, 256}, {8192, 8192, 32}, {8192, 8192, 256}};
  const double activities[5] = {0.035, 0.02, 0.01, 0.01, 0.01};
  for (int k = 0; k < 5; ++k) run_size(shapes[k][0], shapes[k][1], shapes[k][2], activities[k], word == "tune");
  return failed;
}
