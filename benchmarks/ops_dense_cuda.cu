// Whether gather, scatter and dots by dense products are right on the GPU, and their times, without JAX.
//
//   nvcc -O3 -std=c++17 -arch=native -I csrc -o /tmp/ops_dense_cuda benchmarks/ops_dense_cuda.cu -ldl
//   /tmp/ops_dense_cuda [PATH/libcublas.so.13] check     checks
//   /tmp/ops_dense_cuda [PATH/libcublas.so.13]           times of the layers of deep networks
//
// A path is that of cuBLAS's library where the system does not find it, as the one that comes with JAX.
//
// Checks: each operator and kind of number against plain loops in double, at odd sizes and with pieces of all kinds;
// ids that stand twice or are out of range, also in what rows are padded with; counts that are out of range; values of
// unused slots, padding and memory around all arrays that are no numbers; matrices and derivatives that are infinite,
// no numbers or near the largest; single entries, which products must keep to the last bit; a second call, with other
// bits in scratch memory and results before, that must give the same bits; bits around results and scratch memory that
// must stay; and threads that call at the same time, on all GPUs in turn.
// Times: medians of five. TFLOP/s are those of one product of the sizes of the layer, whatever its number of parts;
// densify is the share of making rows of lists. 2 % of the neurons are spikes, as many are near the threshold.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../csrc/ops_dense_cuda.cu"
#include "../csrc/ops_densify_cuda.cu"
#include "device_cuda.h"

namespace {

using namespace ranvier;

constexpr DenseWord kWords[] = {DenseWord::kFloat32, DenseWord::kTf32, DenseWord::kBfloat16, DenseWord::kSplit};
constexpr const char* kNames[] = {"float32", "tf32", "bfloat16", "split"};
constexpr float kInfinite = std::numeric_limits<float>::infinity(), kNone = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();

bool halves(DenseWord word) { return word == DenseWord::kBfloat16 || word == DenseWord::kSplit; }

// The operators, as numbers.
constexpr int kAsItIs = 3;  // gather of a matrix that is not turned; its results are those of the other one
constexpr const char* kOperators[] = {"gather", "scatter", "dots", "gather as it is"};
constexpr size_t (*kScratch[])(const DenseCall&) = {ops_dense_gather_scratch, ops_dense_scatter_scratch,
                                                    ops_dense_dots_scratch, ops_dense_gather_scratch};
constexpr cudaError_t (*kWork[])(const DenseCall&, void*, cudaStream_t) = {ops_dense_gather, ops_dense_scatter,
                                                                           ops_dense_dots, ops_dense_gather};

// Checks
// ---------------------------------------------------------------------------------------------------------------

std::atomic<int> wrong{0}, checked{0};

void refuse(const std::string& what, const char* why) {
  std::printf("WRONG %s: %s\n", what.c_str(), why);
  ++wrong;
}

// Device memory with bits around it that nobody may change; to floats they are no numbers.
template <class T>
struct Guarded {
  static constexpr size_t kGuard = 4096;
  Device<char> all;
  T* at;
  size_t size;
  explicit Guarded(size_t size)
      : all(size * sizeof(T) + 2 * kGuard), at(reinterpret_cast<T*>(all.at + kGuard)), size(size) {}
  explicit Guarded(const std::vector<T>& x) : Guarded(x.size()) {
    check(cudaMemcpy(at, x.data(), size * sizeof(T), cudaMemcpyHostToDevice));
  }
  void fill(int byte, cudaStream_t stream) { check(cudaMemsetAsync(at, byte, size * sizeof(T), stream)); }
  std::vector<T> read() const {
    std::vector<T> x(size);
    check(cudaMemcpy(x.data(), at, size * sizeof(T), cudaMemcpyDeviceToHost));
    return x;
  }
  bool whole() const {
    std::vector<char> guards(2 * kGuard);
    check(cudaMemcpy(guards.data(), all.at, kGuard, cudaMemcpyDeviceToHost));
    check(cudaMemcpy(guards.data() + kGuard, at + size, kGuard, cudaMemcpyDeviceToHost));
    return std::all_of(guards.begin(), guards.end(), [](char x) { return x == char(0xff); });
  }
};

// To bfloat16 and back, to the nearest, and of two the even one.
uint16_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return std::isnan(x) ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float rounded(float x) {
  const uint32_t bits = uint32_t(bits_of(x)) << 16;
  std::memcpy(&x, &bits, 4);
  return x;
}

// What products of split numbers take, as ranvier/ops/products.py has it.
std::vector<float> parts_of(float x, int64_t parts) {
  if (parts == 1) return {rounded(x)};
  const float largest = std::ldexp(255.0f, 120);
  std::vector<float> out;
  for (int64_t k = 0; k < parts; ++k) {
    out.push_back(std::isinf(x) ? x : std::isnan(x) ? x : std::clamp(rounded(x), -largest, largest));
    x = std::isinf(x) ? 0 : x - out.back();
  }
  return out;
}

enum class Kind {
  kOdd,      // everything that may be odd
  kReal,     // values that are no whole numbers; not of split
  kSingle,   // one entry of value 1 a list, another row each, numbers of all sizes
  kNoNumber  // infinite, no number, the largest
};
constexpr const char* kKinds[] = {"odd", "real", "single", "no number"};

struct Result {
  std::vector<double> is, size;  // of a sum, and of the sizes of the numbers that it sums
};

// A call's operands on the device and what must come out.
struct Problem {
  OpsSizes z;
  DenseWord word;
  Kind kind;
  int64_t parts;
  std::string name;
  std::vector<float> values, g;
  std::vector<int32_t> ids, count;
  std::vector<char> matrices[2];  // of gather, of dots
  int64_t rows[2], high;          // of dots as many as calls take
  Result results[3];

  Problem(OpsSizes sizes, DenseWord word, Kind kind, int64_t parts, uint64_t seed)
      : z(sizes), word(word), kind(kind), parts(parts) {
    char text[160];
    std::snprintf(text, sizeof text, "%s Q %d R %d S %d N %d C %d parts %d %s", kNames[int(word)], int(z.q), int(z.r),
                  int(z.s), int(z.n), int(z.c), int(parts), kKinds[int(kind)]);
    name = text;
    std::mt19937_64 r(seed);
    make_lists(r);
    std::vector<float> matrix(z.q * z.n * z.c);
    g.resize(z.q * z.r * z.c);
    for (auto& x : matrix) x = number(r);
    for (auto& x : g) x = number(r);
    if (word == DenseWord::kSplit)  // what so many parts hold
      for (auto& x : matrix) {
        float sum = 0;
        const auto all = parts_of(x, parts);
        for (int64_t k = parts - 1; k >= 0; --k) sum += all[k];
        x = sum;
      }
    lay_out(matrix);
    expect(matrix);
  }

 private:
  float number(std::mt19937_64& r) {
    const float x = std::normal_distribution<float>()(r);
    if (kind == Kind::kSingle) return x * std::pow(10.0f, std::uniform_real_distribution<float>(-15, 15)(r));
    if (kind != Kind::kNoNumber || r() % 8) return x;
    switch (r() % 4) {
      case 0:
        return kNone;
      case 1:
        return r() % 2 ? kInfinite : -kInfinite;
      default:
        // tensor cores may make it infinite, or not
        return word == DenseWord::kTf32 ? x : r() % 2 ? kLargest : -kLargest;
    }
  }

  void make_lists(std::mt19937_64& r) {
    const int64_t lists = z.q * z.r;
    ids.resize(lists * z.s), values.resize(lists * z.s), count.resize(lists);
    for (int64_t l = 0; l < lists; ++l) {
      int64_t used = int64_t(r() % uint64_t(z.s + 1));
      if (kind == Kind::kOdd && l % 7 == 3) used = z.s + 5;
      if (kind == Kind::kOdd && l % 7 == 5) used = -3;
      if (kind == Kind::kSingle) used = l % z.r < z.n;
      count[l] = int32_t(used);
      for (int64_t s = 0; s < z.s; ++s) {
        const int64_t k = l * z.s + s;
        int64_t id = int64_t(r() % uint64_t(z.n));
        if (kind == Kind::kSingle) id = l % z.r % z.n;
        if (kind == Kind::kOdd && r() % 11 == 0) id = r() % 3 ? z.n + int64_t(r() % 8) : -1 - int64_t(r() % 5);
        if (kind == Kind::kOdd && r() % 29 == 0) id = r() % 2 ? INT32_MIN : INT32_MAX;
        ids[k] = int32_t(id);
        const float value = kind == Kind::kReal  ? std::normal_distribution<float>()(r)
                            : kind == Kind::kOdd ? float(int(r() % 5) - 2)
                                                 : 1.0f;
        values[k] = is_used(l, s) ? value : kNone;
      }
    }
  }

  bool is_used(int64_t list, int64_t s) const {
    const int64_t id = ids[list * z.s + s];
    return s < count[list] && id >= 0 && id < z.n;
  }

  // The matrix in the parts, the order, the width and the height that calls have it in, padded with zeros. Floats have
  // no number there: nothing reads it.
  void lay_out(const std::vector<float>& matrix) {
    for (int dots = 0; dots < 2; ++dots) {
      const int64_t multiple = halves(word) ? 8 : 4, high = dots ? halves(word) ? whole(z.n, 8) : z.n : z.c;
      const int64_t wide = dots ? z.c : z.n;
      if (dots) this->high = high;
      const int64_t row = rows[dots] = (wide + multiple - 1) / multiple * multiple, bytes = halves(word) ? 2 : 4;
      auto& out = matrices[dots];
      out.assign(parts * z.q * high * row * bytes, char(halves(word) ? 0 : 0xff));
      for (int64_t q = 0; q < z.q; ++q)
        for (int64_t i = 0; i < z.n; ++i)
          for (int64_t j = 0; j < z.c; ++j) {
            const float x = matrix[(q * z.n + i) * z.c + j];
            const auto all = halves(word) ? parts_of(x, parts) : std::vector<float>{x};
            for (int64_t k = 0; k < parts; ++k) {
              char* const to = out.data() + (((k * z.q + q) * high + (dots ? i : j)) * row + (dots ? j : i)) * bytes;
              const uint16_t bits = bits_of(all[k]);
              std::memcpy(to, halves(word) ? static_cast<const void*>(&bits) : &all[k], bytes);
            }
          }
    }
  }

  void expect(const std::vector<float>& matrix) {
    const int64_t lists = z.q * z.r;
    const auto held = [&](float x) { return double(word == DenseWord::kBfloat16 ? rounded(x) : x); };
    std::vector<float> dense(lists * z.n);
    for (int64_t l = 0; l < lists; ++l)
      for (int64_t s = 0; s < z.s; ++s)
        if (is_used(l, s)) dense[l * z.n + ids[l * z.s + s]] += values[l * z.s + s];
    const size_t sizes[] = {size_t(lists * z.c), size_t(z.q * z.n * z.c), size_t(lists * z.s)};
    for (int k = 0; k < 3; ++k) results[k].is.resize(sizes[k]), results[k].size.resize(sizes[k]);
    const auto add = [&](int k, int64_t at, double a, double b) {
      results[k].is[at] += a * b;
      if (std::isfinite(a * b)) results[k].size[at] += std::fabs(a * b);
    };
    for (int64_t l = 0; l < lists; ++l) {
      const int64_t q = l / z.r;
      for (int64_t i = 0; i < z.n; ++i) {
        const double x = held(dense[l * z.n + i]);
        for (int64_t j = 0; j < z.c; ++j) {
          const int64_t at = (q * z.n + i) * z.c + j;
          // as in every dense product, what is not named takes part, with a 0
          add(0, l * z.c + j, x, held(matrix[at]));
          add(1, at, x, held(g[l * z.c + j]));
        }
      }
      for (int64_t s = 0; s < z.s; ++s)
        for (int64_t j = 0; is_used(l, s) && j < z.c; ++j)
          add(2, l * z.s + s, held(matrix[(q * z.n + ids[l * z.s + s]) * z.c + j]), held(g[l * z.c + j]));
    }
  }
};

// What a sum may be off by, of the sum of the sizes.
double tolerance_of(const Problem& p, int k) {
  if (p.word == DenseWord::kTf32) return 2.5e-3;
  if (p.kind != Kind::kSingle) return p.word == DenseWord::kFloat32 ? 3e-6 : 2e-5;
  // sums of nothing but zeros beside one product, of which one of two real numbers is rounded
  return k == 2 ? (p.z.c == 1 ? 6e-7 : 4e-6) : 0;
}

void compare(const std::string& what, const Problem& p, int k, const std::vector<float>& got) {
  const double tolerance = tolerance_of(p, k);
  const Result& result = p.results[k];
  ++checked;
  for (size_t i = 0; i < got.size(); ++i) {
    const double is = double(float(result.is[i]));
    bool good = std::fabs(double(got[i]) - is) <= tolerance * result.size[i];
    if (std::isnan(is)) good = std::isnan(got[i]);
    // of two real operands in parts there may be no number instead
    if (std::isinf(is)) good = double(got[i]) == is || (std::isnan(got[i]) && k == 2);
    // a sum of some of the numbers may have been too large
    if (!std::isnan(is) && result.size[i] > 1.001 * kLargest) good = good || !std::isfinite(got[i]);
    if (good) continue;
    char why[96];
    std::snprintf(why, sizeof why, "number %zu is %.9g, should be %.9g", i, double(got[i]), is);
    return refuse(what, why);
  }
}

// The arrays of a problem on the device.
struct Operands {
  Guarded<float> values, g;
  Guarded<int32_t> ids, count;
  Guarded<char> of_gather, of_dots;
  explicit Operands(const Problem& p)
      : values(p.values), g(p.g), ids(p.ids), count(p.count), of_gather(p.matrices[0]), of_dots(p.matrices[1]) {}
  DenseCall call(const Problem& p, int k, int64_t piece, float* out) const {
    DenseCall c{};
    c.size = p.z, c.word = p.word, c.piece = piece, c.parts = p.parts, c.ids = ids.at, c.count = count.at, c.out = out;
    if (k != 2) c.values = values.at;
    if (k % kAsItIs) c.g = g.at;
    if (k != 1) c.matrix = k ? of_dots.at : of_gather.at, c.row = p.rows[k > 0], c.high = p.high, c.turned = k == 0;
    return c;
  }
  bool unchanged(const Problem& p) const {
    const auto same = [](const auto& x, const auto& y) {
      return std::memcmp(x.read().data(), y.data(), y.size() * sizeof(y[0])) == 0 && x.whole();
    };
    return same(values, p.values) && same(g, p.g) && same(ids, p.ids) && same(count, p.count) &&
           same(of_gather, p.matrices[0]) && same(of_dots, p.matrices[1]);
  }
};

void check_piece(const Problem& p, const Operands& operands, int64_t piece, cudaStream_t stream) {
  for (int k = 0; k <= kAsItIs; ++k) {
    const std::string what = std::string(kOperators[k]) + " " + p.name + " piece " + std::to_string(piece);
    Guarded<float> out(p.results[k % kAsItIs].is.size());
    const DenseCall call = operands.call(p, k, piece, out.at);
    Guarded<char> scratch(kScratch[k](call));
    std::vector<float> got[2];
    for (int turn = 0; turn < 2; ++turn) {
      out.fill(turn ? 0x3c : 0xff, stream), scratch.fill(turn ? 0x3c : 0xff, stream);
      check(kWork[k](call, scratch.at, stream));
      check(cudaStreamSynchronize(stream));
      got[turn] = out.read();
    }
    compare(what, p, k % kAsItIs, got[0]);
    if (std::memcmp(got[0].data(), got[1].data(), out.size * sizeof(float)))
      refuse(what, "other bits when called again");
    if (!out.whole()) refuse(what, "wrote outside of the result");
    if (!scratch.whole()) refuse(what, "wrote outside of scratch memory");
  }
}

void check_problem(const Problem& p) {
  const Operands operands(p);
  std::vector<int64_t> pieces{1, 3, p.z.r - 1, p.z.r, p.z.r + 1, 2 * p.z.r, int64_t(1) << 40};
  std::sort(pieces.begin(), pieces.end());
  pieces.erase(std::unique(pieces.begin(), pieces.end()), pieces.end());
  for (const int64_t piece : pieces)
    if (piece > 0) check_piece(p, operands, piece, nullptr);
  if (!operands.unchanged(p)) refuse(p.name, "changed an operand");
}

// Calls at the same time, each on a stream of its own: whoever shares a handle or a workspace gets wrong numbers.
void check_threads() {
  int devices = 1;
  check(cudaGetDeviceCount(&devices));
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([t, devices] {
      check(cudaSetDevice(t % devices));
      const DenseWord word = kWords[t % 4];
      const Problem p({2, 30 + t, 9, 2, 60 + t, 50}, word, Kind::kOdd, word == DenseWord::kSplit ? 3 : 1, 100 + t);
      const Operands operands(p);
      cudaStream_t stream;
      check(cudaStreamCreate(&stream));
      for (int k = 0; k < 5; ++k) check_piece(p, operands, 7, stream);
      check(cudaStreamDestroy(stream));
    });
  for (auto& thread : threads) thread.join();
}

int check_all() {
  const OpsSizes sizes[] = {
      {1, 1, 1, 1, 1, 1},     {1, 5, 7, 1, 13, 6},      {3, 11, 5, 3, 13, 7},     {1, 33, 20, 1, 130, 65},
      {3, 8, 9, 3, 16, 8},    {2, 40, 12, 2, 1100, 36}, {1, 9, 300, 1, 257, 129}, {3, 1, 4, 3, 5, 3},
      {1, 70, 40, 1, 64, 64}, {3, 6, 5, 3, 7, 1},       {1, 12, 3, 1, 12, 1},
  };
  uint64_t seed = 0;
  for (const OpsSizes& z : sizes)
    for (const DenseWord word : kWords)
      for (const Kind kind : {Kind::kOdd, Kind::kReal, Kind::kSingle, Kind::kNoNumber}) {
        if (word == DenseWord::kSplit && kind == Kind::kReal) continue;
        const int64_t most = word == DenseWord::kSplit ? kMostParts : 1;
        for (int64_t parts = most; parts > 0 && (parts == most || kind == Kind::kOdd); --parts)
          check_problem(Problem(z, word, kind, parts, ++seed));
      }
  // more groups than some products of cuBLAS take
  const Problem many({70000, 1, 2, 70000, 3, 2}, DenseWord::kFloat32, Kind::kOdd, 1, ++seed);
  check_piece(many, Operands(many), int64_t(1) << 40, nullptr);
  check_threads();
  std::printf("%d checks, %d wrong\n", checked.load(), wrong.load());
  return wrong != 0;
}

// Times
// ----------------------------------------------------------------------------------------------------------------

template <class Call>
double microseconds(Call call) {
  const auto us = [&](int launches) { return microseconds_each(launches, [&] { check(call()); }); };
  us(1);
  const int launches = std::clamp(int(1e4 / us(1)), 1, 20);
  std::vector<double> all;
  for (int k = 0; k < 5; ++k) all.push_back(us(launches));
  std::sort(all.begin(), all.end());
  return all[2];
}

// Bytes of a list between lists and result: what ranvier/ops/blas.py counts.
int64_t bytes_of(int k, DenseWord word, const OpsSizes& z) {
  const int64_t of_g = word == DenseWord::kSplit ? 6 : word == DenseWord::kBfloat16 ? 2 : 0;
  return (k == 2 ? 4 : halves(word) ? 2 : 4) * z.n + (k ? of_g * z.c : 0);
}

void time_layer(int64_t lists, int64_t n, int64_t c) {
  std::printf("%d lists, %d x %d\n", int(lists), int(n), int(c));
  const double mean = 0.04 * double(n);
  const int64_t slots = int64_t(std::min(double(n), std::round(mean + 4 * std::sqrt(mean))));
  constexpr int64_t kDistinct = 1024;
  std::mt19937 r(3);
  std::vector<int32_t> ids(lists * slots), spikes(lists), listed(lists);
  for (int64_t l = 0; l < lists; ++l) {
    int32_t* const mine = ids.data() + l * slots;
    if (l >= kDistinct) {
      std::copy_n(ids.data() + l % kDistinct * slots, slots, mine);
      spikes[l] = spikes[l % kDistinct], listed[l] = listed[l % kDistinct];
      continue;
    }
    std::vector<int32_t> near;
    int64_t at = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double x = double(r()) * 0x1p-32;
      if (x < 0.02 && at < slots) mine[at++] = int32_t(i);
      if (x >= 0.02 && x < 0.04) near.push_back(int32_t(i));
    }
    spikes[l] = int32_t(at);
    for (const int32_t i : near)
      if (at < slots) mine[at++] = i;
    listed[l] = int32_t(at);
  }
  const OpsSizes z{1, lists, slots, 1, n, c};
  const Device<int32_t> d_ids(ids), d_spikes(spikes), d_listed(listed);
  const Device<float> values(std::vector<float>(lists * slots, 1.0f));
  std::normal_distribution<float> normal;
  std::vector<float> few(1 << 20), numbers(std::max(lists, n + 8) * (c + 8));
  for (auto& x : few) x = normal(r);
  for (size_t k = 0; k < numbers.size(); ++k) numbers[k] = few[k * 31 % few.size()];
  const Device<float> g(numbers), out(std::max({lists * c, n * c, lists * slots}));
  for (const DenseWord word : kWords) {
    const int64_t parts = word == DenseWord::kSplit ? kMostParts : 1, multiple = halves(word) ? 8 : 4;
    for (int k = 0; k <= kAsItIs; ++k) {
      const int64_t row = whole(k ? c : n, multiple), high = k ? halves(word) ? whole(n, 8) : n : c;
      const Device<Bf16> matrix(halves(word) ? parts * high * row : 0);
      if (halves(word))
        check(launch(split, high * row, nullptr, PartsCall{g.at, matrix.at, high, row, row, int(parts)}));
      DenseCall call{};
      call.size = z, call.word = word, call.parts = parts, call.row = row, call.high = high, call.ids = d_ids.at;
      call.count = k == 2 ? d_listed.at : d_spikes.at, call.out = out.at;
      call.matrix = halves(word) ? static_cast<const void*>(matrix.at) : g.at;
      if (k != 2) call.values = values.at;
      if (k % kAsItIs) call.g = g.at;
      call.turned = k == 0;
      for (const int64_t mebibytes : {32, 64, 128, 0}) {
        call.piece = mebibytes ? std::max<int64_t>((mebibytes << 20) / bytes_of(k % kAsItIs, word, z), 1) : lists;
        if (mebibytes && call.piece >= lists) continue;
        const Device<char> scratch(kScratch[k](call));
        const double us = microseconds([&] { return kWork[k](call, scratch.at, nullptr); });
        std::printf("  %-7s %-8s %6d lists a piece %10.1f us %7.1f TFLOP/s", kOperators[k], kNames[int(word)],
                    int(call.piece), us, 2e-6 * double(lists) * double(n) * double(c) / us);
        if (k != 2) {
          Room room{};
          arrange(call, k == 1 ? Product::kScatter : Product::kGather, scratch.at, room);
          const double rows = microseconds([&] {
            return in_pieces(call, [&](const Piece& piece) { return lists_to_rows(call, piece, room, nullptr); });
          });
          std::printf("  densify %4.1f %%", 100 * rows / us);
        }
        std::printf("\n");
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool checks = false;
  for (int k = 1; k < argc; ++k) {
    if (std::string(argv[k]) == "check")
      checks = true;
    else if (!dlopen(argv[k], RTLD_NOW))
      return std::fprintf(stderr, "%s\n", dlerror()), 2;
  }
  if (!ops_dense_works()) return std::fprintf(stderr, "no libcublas.so.13 or .12; needs its path\n"), 2;
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("%s\n", device.name);
  if (checks) return check_all();
  time_layer(256, 4096, 4096);
  time_layer(128000, 700, 1024);
  time_layer(128000, 1024, 512);
  time_layer(128000, 512, 128);
  time_layer(48000, 4608, 1024);
  return 0;
}
