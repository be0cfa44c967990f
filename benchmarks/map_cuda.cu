// The map of sparse and dense on a GPU, without JAX: microseconds of our kernels and of cuBLAS, where thousands of
// sizes are measured in seconds. `benchmarks.map` draws it, tells it as a table, and fits costs to it.
//
//   nvcc -O3 -std=c++17 -arch=native -I csrc -o /tmp/map_cuda benchmarks/map_cuda.cu -ldl
//   /tmp/map_cuda libcublas.so.12 > map.json          the name or path of cuBLAS's library
//   python -m benchmarks.map --plot map.json
//
// Rows: `sparse`, our kernel; `sparse transposed`, that for a matrix, or its gradient, stored columns first; `plain
// float32`, `plain tf32`, `plain bfloat16`, cuBLAS's product of arrays of that type; `float32`, `tf32`, `bfloat16`,
// `split`: the dense ways of ranvier.ops, from lists and float32 arrays: rows made of the lists, operands rounded, the
// products, and for the spike gradient the entries that are listed. A time is that of one of many launches between two
// events, the median of three such batches.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../csrc/ops_cuda.cu"
#include "../csrc/ops_densify_cuda.cu"
#include "device_cuda.h"

static __global__ void fill(float* x, int64_t size) {
  for (int64_t k = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; k < size; k += int64_t(gridDim.x) * blockDim.x) {
    uint32_t y = uint32_t(k) * 2654435761u + uint32_t(k >> 32);
    y = (y ^ y >> 16) * 0x7feb352du, y ^= y >> 15;
    x[k] = float(y >> 8) * 0x1p-24f - 0.5f;
  }
}

// As sums of `parts` numbers of 16 bits.
static __global__ void round_parts(const float* x, __nv_bfloat16* out, int parts, int64_t size) {
  for (int64_t k = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; k < size; k += int64_t(gridDim.x) * blockDim.x) {
    float rest = x[k];
    for (int p = 0; p < parts; ++p) {
      const __nv_bfloat16 y = __float2bfloat16_rn(rest);
      out[p * size + k] = y, rest -= __bfloat162float(y);
    }
  }
}

static __global__ void take(const float* every, const int32_t* ids, const int32_t* count, float* out, int64_t n,
                            int slots, int64_t size) {
  for (int64_t k = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; k < size; k += int64_t(gridDim.x) * blockDim.x) {
    const int64_t list = k / slots;
    out[k] = k - list * slots < count[list] ? every[list * n + ids[k]] : 0.f;
  }
}

namespace {

using namespace ranvier;

// The one function of cuBLAS that is needed, and the numbers of its interface.
struct Cublas {
  using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int,
                       const void*, void*, int, int, int, int);
  static constexpr int kFloat = 0, kBf16 = 14, kExact = 68, kTf32 = 77, kDefault = -1;
  void* handle = nullptr;
  Gemm gemm = nullptr;
  explicit Cublas(const char* path) {
    void* const library = dlopen(path, RTLD_NOW);
    if (!library) std::fprintf(stderr, "%s\n", dlerror()), std::exit(2);
    gemm = reinterpret_cast<Gemm>(dlsym(library, "cublasGemmEx"));
    const auto create = reinterpret_cast<int (*)(void**)>(dlsym(library, "cublasCreate_v2"));
    if (!gemm || !create || create(&handle)) std::fprintf(stderr, "%s: not cuBLAS\n", path), std::exit(2);
  }
};

// Operands' types, and how they are multiplied.
struct Kind {
  int type, compute;
};
constexpr Kind kFloat32{Cublas::kFloat, Cublas::kExact}, kTf32{Cublas::kFloat, Cublas::kTf32},
    kBfloat16{Cublas::kBf16, Cublas::kExact};

template <class Call>
double microseconds(Call call) {
  const auto us = [&](int launches) { return microseconds_each(launches, [&] { call(); }); };
  us(1);
  const int launches = std::clamp(int(1500 / us(2)), 1, 200);
  std::vector<double> all;
  for (int k = 0; k < 3; ++k) all.push_back(us(launches));
  std::sort(all.begin(), all.end());
  return all[1];
}

bool first_row = true;
void say(const char* operator_, const char* way, int64_t n, int64_t c, int64_t lists, double activity, double us) {
  std::printf(
      "%s{\"operator\": \"%s\", \"n\": %d, \"columns\": %d, \"lists\": %d, \"activity\": %g, \"way\": \"%s\", "
      "\"us\": %.3f}",
      first_row ? "" : ",\n", operator_, int(n), int(c), int(lists), activity, way, us);
  first_row = false;
}

void run_size(const Cublas& cublas, int64_t n, int64_t c, int64_t lists, const std::vector<double>& activities) {
  constexpr int kDistinct = 1024, kBlocks = 1024, kThreads = 256;
  const int64_t wide = (n + 63) / 64 * 64;  // of rows of 16 bits
  Device<float> matrix(wide * c), g(lists * c), out(lists * c), into(wide * c), rows(lists * n), every(lists * n);
  Device<__nv_bfloat16> half_rows(lists * wide), half_matrix(3 * wide * c), half_g(3 * lists * c);
  fill<<<kBlocks, kThreads>>>(matrix.at, wide * c);
  fill<<<kBlocks, kThreads>>>(g.at, lists * c);
  fill<<<kBlocks, kThreads>>>(rows.at, lists * n);
  round_parts<<<kBlocks, kThreads>>>(rows.at, half_rows.at, 1, lists * n);
  round_parts<<<kBlocks, kThreads>>>(matrix.at, half_matrix.at, 3, wide * c);
  round_parts<<<kBlocks, kThreads>>>(g.at, half_g.at, 3, lists * c);
  check(cudaDeviceSynchronize());
  const auto gemm = [&](int ta, int tb, int64_t m, int64_t columns, int64_t k, const void* a, int64_t lda,
                        const void* b, int64_t ldb, float* x, int64_t ldx, Kind kind, bool add = false) {
    const float one = 1, beta = add ? 1.f : 0.f;
    if (cublas.gemm(cublas.handle, ta, tb, int(m), int(columns), int(k), &one, a, kind.type, int(lda), b, kind.type,
                    int(ldb), &beta, x, Cublas::kFloat, int(ldx), kind.compute, Cublas::kDefault))
      std::fprintf(stderr, "cuBLAS failed at %d x %d, %d lists\n", int(n), int(c), int(lists)), std::exit(1);
  };
  // row-major products: what cuBLAS sees is transposed
  const auto forward = [&](const void* d, int64_t width, const void* w, Kind kind, bool add = false) {
    gemm(0, 0, c, lists, width, w, c, d, width, out.at, c, kind, add);
  };
  const auto into_matrix = [&](const void* d, int64_t width, const void* x, Kind kind, bool add = false) {
    gemm(0, 1, c, width, lists, x, c, d, width, into.at, c, kind, add);
  };
  const auto with_rows = [&](const void* w, const void* x, Kind kind, bool add = false) {
    gemm(1, 0, n, lists, c, w, c, x, c, every.at, n, kind, add);
  };
  struct Word {
    const char* name;
    Kind kind;
  };
  const Word words[] = {{"float32", kFloat32}, {"tf32", kTf32}, {"bfloat16", kBfloat16}};
  // dense products do not depend on the activity
  std::vector<std::pair<std::string, double>> dense[3];
  for (const auto& word : words) {
    const Kind kind = word.kind;
    const bool half = kind.type == Cublas::kBf16;
    const void *d = half ? (void*)half_rows.at : rows.at, *w = half ? (void*)half_matrix.at : matrix.at,
               *x = half ? (void*)half_g.at : g.at;
    const std::string plain = std::string("plain ") + word.name;
    dense[0].emplace_back(plain, microseconds([&] { forward(d, n, w, kind); }));
    dense[1].emplace_back(plain, microseconds([&] { into_matrix(d, n, x, kind); }));
    dense[2].emplace_back(plain, microseconds([&] { with_rows(w, x, kind); }));
  }
  std::mt19937 random(3);
  const int distinct = int(std::min<int64_t>(lists, kDistinct));
  for (size_t which = 0; which < activities.size(); ++which) {
    const double activity = activities[which], mean = 2 * activity * double(n);
    const int slots = std::max(1, int(std::min(double(n), std::round(mean + 4 * std::sqrt(mean)))));
    std::vector<int32_t> ids(lists * slots), spikes(lists), listed(lists);
    for (int list = 0; list < distinct; ++list) {
      int32_t* const mine = ids.data() + int64_t(list) * slots;
      std::vector<int32_t> near;
      int32_t at = 0;
      for (int64_t k = 0; k < n; ++k) {
        const double y = double(random()) * 0x1p-32;
        if (y < activity && at < slots) mine[at++] = int32_t(k);
        if (y >= activity && y < 2 * activity) near.push_back(int32_t(k));
      }
      spikes[list] = at;
      for (int32_t k : near)
        if (at < slots) mine[at++] = k;
      listed[list] = at;
    }
    for (int64_t list = distinct; list < lists; ++list) {
      std::copy_n(ids.data() + list % distinct * slots, slots, ids.data() + list * slots);
      spikes[list] = spikes[list % distinct], listed[list] = listed[list % distinct];
    }
    Device<int32_t> d_ids(ids), d_spikes(spikes), d_listed(listed);
    Device<float> values(std::vector<float>(lists * slots, 1.f)), products(lists * slots);
    const OpsSizes z{1, lists, slots, 1, n, c};
    const GatherCall<float, float> gather{z, values.at, d_ids.at, d_spikes.at, matrix.at, out.at};
    const ScatterCall<float> scatter{z, values.at, d_ids.at, d_spikes.at, g.at, into.at};
    const DotsCall<float, float> dots{z, d_ids.at, d_listed.at, matrix.at, g.at, products.at};
    Device<char> scratch(std::max({ops_scatter_scratch(scatter, false), ops_scatter_scratch(scatter, true),
                                   ops_gather_turned_scratch(gather), ops_dots_turned_scratch(dots)}));
    const double sparse[3] = {microseconds([&] { check(ops_gather(gather, nullptr)); }),
                              microseconds([&] { check(ops_scatter(scatter, false, scratch.at, nullptr)); }),
                              microseconds([&] { check(ops_dots(dots, nullptr)); })};
    const double turned[3] = {microseconds([&] { check(ops_gather_turned(gather, scratch.at, nullptr)); }),
                              microseconds([&] { check(ops_scatter(scatter, true, scratch.at, nullptr)); }),
                              microseconds([&] { check(ops_dots_turned(dots, scratch.at, nullptr)); })};
    if (which == activities.size() / 2) {
      const auto densify = [&](bool half) {
        OpsSizes to = z;
        to.n = half ? wide : n;
        if (half) {
          const DensifyCall<float, Bf16> call{to, values.at, d_ids.at, d_spikes.at,
                                              reinterpret_cast<Bf16*>(half_rows.at)};
          check(ops_densify(call, nullptr));
        } else {
          check(ops_densify(DensifyCall<float, float>{to, values.at, d_ids.at, d_spikes.at, rows.at}, nullptr));
        }
      };
      const auto parts = [&](const float* from, __nv_bfloat16* to, int many, int64_t size) {
        round_parts<<<kBlocks, kThreads>>>(from, to, many, size);
      };
      const auto listed_of = [&] {
        take<<<kBlocks, kThreads>>>(every.at, d_ids.at, d_listed.at, products.at, n, slots, lists * slots);
      };
      for (const auto& word : words) {
        const Kind kind = word.kind;
        const bool half = kind.type == Cublas::kBf16;
        dense[0].emplace_back(word.name, microseconds([&] {
                                densify(half);
                                if (half) parts(matrix.at, half_matrix.at, 1, n * c);
                                forward(half ? (void*)half_rows.at : rows.at, half ? wide : n,
                                        half ? (void*)half_matrix.at : matrix.at, kind);
                              }));
        dense[1].emplace_back(word.name, microseconds([&] {
                                densify(half);
                                if (half) parts(g.at, half_g.at, 1, lists * c);
                                into_matrix(half ? (void*)half_rows.at : rows.at, half ? wide : n,
                                            half ? (void*)half_g.at : g.at, kind);
                              }));
        dense[2].emplace_back(word.name, microseconds([&] {
                                if (half)
                                  parts(g.at, half_g.at, 1, lists * c), parts(matrix.at, half_matrix.at, 1, n * c);
                                with_rows(half ? (void*)half_matrix.at : matrix.at, half ? (void*)half_g.at : g.at,
                                          kind);
                                listed_of();
                              }));
      }
      const int64_t of_matrix = wide * c, of_g = lists * c;
      dense[0].emplace_back("split", microseconds([&] {
                              densify(true), parts(matrix.at, half_matrix.at, 3, of_matrix);
                              for (int p = 2; p >= 0; --p)
                                forward(half_rows.at, wide, half_matrix.at + p * of_matrix, kBfloat16, p < 2);
                            }));
      dense[1].emplace_back("split", microseconds([&] {
                              densify(true), parts(g.at, half_g.at, 3, of_g);
                              for (int p = 2; p >= 0; --p)
                                into_matrix(half_rows.at, wide, half_g.at + p * of_g, kBfloat16, p < 2);
                            }));
      dense[2].emplace_back("split", microseconds([&] {
                              parts(g.at, half_g.at, 3, of_g), parts(matrix.at, half_matrix.at, 3, of_matrix);
                              for (int sum = 2; sum >= 0; --sum)
                                for (int p = 0; p <= sum; ++p)
                                  with_rows(half_matrix.at + p * of_matrix, half_g.at + (sum - p) * of_g, kBfloat16,
                                            sum < 2 || p > 0);
                              listed_of();
                            }));
    }
    const char* operators[] = {"gather", "scatter", "dots"};
    for (int k = 0; k < 3; ++k) {
      say(operators[k], "sparse", n, c, lists, activity, sparse[k]);
      say(operators[k], "sparse transposed", n, c, lists, activity, turned[k]);
    }
    if (which + 1 == activities.size())
      for (double each : activities)
        for (int k = 0; k < 3; ++k)
          for (const auto& [name, us] : dense[k]) say(operators[k], name.c_str(), n, c, lists, each, us);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "needs the path of cuBLAS's library\n"), 2;
  const Cublas cublas(argv[1]);
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("{\"platform\": \"gpu\", \"about\": {\"device\": \"%s\"}, \"rows\": [\n", device.name);
  const bool quick = argc > 2 && std::string(argv[2]) == "quick";
  const std::vector<double> activities{0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2};
  for (int64_t n : {256, 512, 1024, 2048, 4096, 8192})
    for (int64_t lists : {1, 8, 32, 128, 256, 1024})
      if (!quick || (n <= 512 && lists <= 32)) run_size(cublas, n, n, lists, activities);
  // all steps of a batch at once, in the layers of a deep network, and in one layer of many neurons
  if (!quick) {
    const int64_t layers[][2] = {{700, 1024}, {1024, 512}, {512, 128}, {128, 20}};
    for (const auto& layer : layers)
      for (int64_t lists : {24000, 128000}) run_size(cublas, layer[0], layer[1], lists, {0.01, 0.02, 0.05});
    run_size(cublas, 16384, 16384, 8000, {0.01, 0.02});
  }
  std::printf("\n]}\n");
  return 0;
}
