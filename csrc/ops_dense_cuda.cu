// GPU: gather, scatter and dots by dense products. Lists become rows of numbers, cuBLAS multiplies, a piece of all
// lists at a time: what lies between is written and read again before it leaves the cache, and takes little memory.
// Operands and results are read and written where they are.
//
// Where numbers are split (ranvier/ops/products.py), each product of parts is added to those before it, small ones
// first.
#include <cuda_bf16.h>

#include <algorithm>
#include <type_traits>

#include "cublas_cuda.h"
#include "ops_cuda.h"
#include "scratch_cuda.h"

namespace ranvier {
namespace {

constexpr int kThreads = 256, kMostParts = 3;
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
constexpr int64_t kMostGroups = int64_t(1) << 15;  // of a piece: not all kernels of cuBLAS take more than 65,535

// Numbers as `parts` of 16 bits, each what the ones before it left, rounded.
struct PartsCall {
  const float* in;  // (lists, c)
  Bf16* out;        // (parts, lists, row), 0 from c on
  int64_t lists, c, row;
  int parts;
};

static __global__ void __launch_bounds__(kThreads) split(PartsCall call) {
  const int64_t place = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= call.lists * call.row) return;
  const int64_t list = place / call.row, column = place - list * call.row;
  Bf16* out = call.out + place;
  float rest = column < call.c ? call.in[list * call.c + column] : 0.0f;
  for (int k = 0; k < call.parts; ++k, out += call.lists * call.row) {
    float part = __bfloat162float(__float2bfloat16_rn(rest));
    if (call.parts > 1 && !isinf(rest)) {
      // a number above the largest of 16 bits must not become infinite
      constexpr float kLargest = 3.3895313892515355e38f;
      part = part > kLargest ? kLargest : part < -kLargest ? -kLargest : part;
      rest -= part;
    } else {
      rest = isinf(rest) ? 0.0f : rest - part;
    }
    *out = {__bfloat16_as_ushort(__float2bfloat16_rn(part))};
  }
}

// out[list, s] = every[list, ids[s]] for s < count, else 0.
static __global__ void __launch_bounds__(kThreads) pick(const float* every, int64_t row, const int32_t* ids,
                                                        const int32_t* count, OpsSizes z, int64_t lists, float* out) {
  const int64_t place = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= lists * z.s) return;
  const int64_t list = place / z.s, s = place - list * z.s;
  const int64_t id = ids[place];
  out[place] = s < count[list] && id >= 0 && id < z.n ? every[list * row + id] : 0.0f;
}

int64_t whole(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
// From a row to the next, so that each begins at 16 bytes.
int64_t row_of(const DenseCall& call, int64_t n) { return call.halves() ? whole(n, 8) : whole(n, 4); }
// Products of numbers of 16 bits are fast where sizes are multiples of 8. So what they sum over goes to the end of
// rows, where zeros are, and products with every row are with as many rows. (Not of scatter: the 700 x 1,024 sums of
// 17,800 lists that are split took 1.25 times as long.)
int64_t size_of(const DenseCall& call, int64_t n) { return call.halves() ? whole(n, 8) : n; }

Numbers numbers_of(const DenseCall& call) {
  if (call.halves()) return Numbers::kBfloat16;
  return call.word == DenseWord::kTf32 ? Numbers::kTf32 : Numbers::kFloat32;
}

// Parts of `g`.
int parts_of(const DenseCall& call) { return call.word == DenseWord::kSplit ? kMostParts : 1; }

// The lists of a piece: some of one group, or all of some groups.
struct Piece {
  int64_t group, groups, first, lists;
  int64_t begin(const OpsSizes& z) const { return group * z.r + first; }
  int64_t every() const { return groups * lists; }
};

// Groups and lists of a piece; the last ones may have less.
int64_t groups_of(const DenseCall& call) {
  return std::min(std::clamp<int64_t>(call.piece / call.size.r, 1, kMostGroups), call.size.q);
}
int64_t lists_of(const DenseCall& call) { return std::min(call.piece, call.size.r); }

// Calls work(piece) for one after the other, for as long as it says that all went well.
template <class Work>
cudaError_t in_pieces(const DenseCall& call, Work&& work) {
  const OpsSizes& z = call.size;
  const int64_t groups = groups_of(call), lists = lists_of(call);
  for (int64_t q = 0; q < z.q; q += groups)
    for (int64_t r = 0; r < z.r; r += lists) {
      const Piece piece{q, std::min(groups, z.q - q), r, std::min(lists, z.r - r)};
      if (const cudaError_t error = work(piece); error != cudaSuccess) return error;
    }
  return cudaSuccess;
}

// What lies between lists and results, for a piece.
struct Room {
  void* workspace;
  void* rows;    // floats or Bf16: the lists as rows
  Bf16* parts;   // of g
  float* every;  // products with every row of the matrix
};

enum class Product { kGather, kScatter, kDots };

size_t arrange(const DenseCall& call, Product product, void* scratch, Room& room) {
  const OpsSizes& z = call.size;
  const int64_t lists = groups_of(call) * lists_of(call);
  Layout layout{static_cast<char*>(scratch)};
  char *workspace = nullptr, *rows = nullptr;
  layout.take(workspace, Cublas::kWorkspace);
  if (product != Product::kDots) layout.take(rows, lists * row_of(call, z.n) * (call.halves() ? 2 : 4));
  if (product != Product::kGather && call.halves()) layout.take(room.parts, parts_of(call) * lists * row_of(call, z.c));
  if (product == Product::kDots) layout.take(room.every, lists * call.high);
  room.workspace = workspace, room.rows = rows;
  return layout.used;
}

cudaError_t lists_to_rows(const DenseCall& call, const Piece& piece, const Room& room, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  const int64_t begin = piece.begin(z);
  const auto into = [&](auto* out) {
    DensifyCall<float, std::remove_pointer_t<decltype(out)>> c{};
    c.size = {1, piece.every(), z.s, 1, row_of(call, z.n), 0};
    c.values = call.values + begin * z.s, c.ids = call.ids + begin * z.s, c.count = call.count + begin, c.out = out;
    c.ids_end = z.n;
    return ops_densify(c, stream);
  };
  return call.halves() ? into(static_cast<Bf16*>(room.rows)) : into(static_cast<float*>(room.rows));
}

template <class... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), int64_t threads, cudaStream_t stream, Arguments... arguments) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > kMostBlocks) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments...);
  return cudaGetLastError();
}

// `g` of a piece as cuBLAS takes it, for the part k.
Rows part_of_g(const DenseCall& call, const Piece& piece, const Room& room, int k) {
  const OpsSizes& z = call.size;
  if (!call.halves()) return {call.g + piece.begin(z) * z.c, z.c, piece.lists * z.c, false};
  const int64_t row = row_of(call, z.c);
  return {room.parts + k * piece.every() * row, row, piece.lists * row, false};
}

cudaError_t split_g(const DenseCall& call, const Piece& piece, const Room& room, cudaStream_t stream) {
  if (!call.halves()) return cudaSuccess;
  const OpsSizes& z = call.size;
  const PartsCall parts{
      call.g + piece.begin(z) * z.c, room.parts, piece.every(), z.c, row_of(call, z.c), parts_of(call)};
  return launch(split, piece.every() * parts.row, stream, parts);
}

Rows part_of_matrix(const DenseCall& call, const Piece& piece, int64_t k) {
  const OpsSizes& z = call.size;
  const int64_t size = (call.turned ? z.c : call.high) * call.row, bytes = call.halves() ? 2 : 4;
  // of dots a product sums over what stands side by side
  const bool along = call.turned || !call.values;
  return {static_cast<const char*>(call.matrix) + (k * z.q + piece.group) * size * bytes, call.row, size, along};
}

}  // namespace

bool ops_dense_works() { return Cublas::get().works(); }

size_t ops_dense_gather_scratch(const DenseCall& call) {
  Room room{};
  return arrange(call, Product::kGather, nullptr, room);
}
size_t ops_dense_scatter_scratch(const DenseCall& call) {
  Room room{};
  return arrange(call, Product::kScatter, nullptr, room);
}
size_t ops_dense_dots_scratch(const DenseCall& call) {
  Room room{};
  return arrange(call, Product::kDots, nullptr, room);
}

cudaError_t ops_dense_gather(const DenseCall& call, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  Room room{};
  arrange(call, Product::kGather, scratch, room);
  Cublas::Lease cublas(Cublas::get(), stream, room.workspace);
  const int64_t sums = std::min(size_of(call, z.n), call.turned ? call.row : call.high);
  return in_pieces(call, [&](const Piece& piece) {
    if (const cudaError_t error = lists_to_rows(call, piece, room, stream); error != cudaSuccess) return error;
    const int64_t row = row_of(call, z.n);
    const Rows rows{room.rows, row, piece.lists * row, false};
    float* const out = call.out + piece.begin(z) * z.c;
    cudaError_t error = cudaSuccess;
    for (int64_t k = call.parts - 1; k >= 0 && error == cudaSuccess; --k)
      error = cublas.multiply(numbers_of(call), piece.lists, z.c, sums, rows, part_of_matrix(call, piece, k),
                              k < call.parts - 1, out, piece.lists * z.c, piece.groups);
    return error;
  });
}

cudaError_t ops_dense_scatter(const DenseCall& call, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  Room room{};
  arrange(call, Product::kScatter, scratch, room);
  Cublas::Lease cublas(Cublas::get(), stream, room.workspace);
  return in_pieces(call, [&](const Piece& piece) {
    if (const cudaError_t error = lists_to_rows(call, piece, room, stream); error != cudaSuccess) return error;
    if (const cudaError_t error = split_g(call, piece, room, stream); error != cudaSuccess) return error;
    const int64_t row = row_of(call, z.n);
    const Rows rows{room.rows, row, piece.lists * row, true};
    float* const out = call.out + piece.group * z.n * z.c;
    cudaError_t error = cudaSuccess;
    for (int k = parts_of(call) - 1; k >= 0 && error == cudaSuccess; --k)
      error = cublas.multiply(numbers_of(call), z.n, z.c, piece.lists, rows, part_of_g(call, piece, room, k),
                              piece.first > 0 || k < parts_of(call) - 1, out, z.n * z.c, piece.groups);
    return error;
  });
}

cudaError_t ops_dense_dots(const DenseCall& call, void* scratch, cudaStream_t stream) {
  const OpsSizes& z = call.size;
  Room room{};
  arrange(call, Product::kDots, scratch, room);
  Cublas::Lease cublas(Cublas::get(), stream, room.workspace);
  const int64_t most = std::max<int64_t>(parts_of(call), call.parts), sums = std::min(size_of(call, z.c), call.row);
  return in_pieces(call, [&](const Piece& piece) {
    if (const cudaError_t error = split_g(call, piece, room, stream); error != cudaSuccess) return error;
    bool add = false;
    for (int64_t size = most - 1; size >= 0; --size)
      for (int64_t k = 0; k <= size; ++k) {
        if (k >= parts_of(call) || size - k >= call.parts) continue;
        const cudaError_t error = cublas.multiply(
            numbers_of(call), piece.lists, call.high, sums, part_of_g(call, piece, room, int(k)),
            part_of_matrix(call, piece, size - k), add, room.every, piece.lists * call.high, piece.groups);
        if (error != cudaSuccess) return error;
        add = true;
      }
    const int64_t begin = piece.begin(z);
    return launch(pick, piece.every() * z.s, stream, static_cast<const float*>(room.every), call.high,
                  call.ids + begin * z.s, call.count + begin, z, piece.every(), call.out + begin * z.s);
  });
}

}  // namespace ranvier
