// Hair cells, nerve fibres and bushy cells for one instruction set: compiled once for each, picked when loaded.
//
// A block of channels goes through all steps, one channel a lane, its state in registers. The draw of the fibres that
// fire is one number of a counter-based generator a channel and step: for most, one comparison says that none fires.
// Compiled without contraction to fused operations: every instruction set, and the definition in NumPy, which does the
// same operations in the same order, get the same bits.
#include "sound_kernels.h"

#include <algorithm>

#include "lanes.h"

namespace ranvier {
namespace RANVIER_NS {
namespace {

constexpr int kSteps = 64;         // steps whose velocities and random numbers lie ready; a multiple of 4
constexpr float kSure = 0.99999f;  // highest probability a step and fibre: what is left is divided by
static_assert(kSteps % 4 == 0, "a number of the generator is four words");

typedef float Lanes __attribute__((vector_size(kRegister), may_alias));
typedef int32_t Whole __attribute__((vector_size(kRegister), may_alias));
constexpr int kWide = kRegister / 4;   // lanes of a register
constexpr int kSide = kLanes / kWide;  // registers of a block

inline const Lanes& lanes(const float* x) { return *reinterpret_cast<const Lanes*>(x); }
inline Lanes& lanes(float* x) { return *reinterpret_cast<Lanes*>(x); }

inline bool any(const Whole& mask) {
  int32_t found = 0;
  for (int l = 0; l < kWide; ++l) found |= mask[l];
  return found != 0;
}

// Four random words of each lane: Philox 4x32 with 10 rounds (Salmon et al. 2011), counter (step / 4, channel, 0, 0).
RANVIER_APART void draw(const uint32_t* key, uint32_t counter, uint32_t channel, uint32_t* out) {
  for (int l = 0; l < kLanes; ++l) {
    uint32_t a = counter, b = channel + l, c = 0, d = 0, k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const uint64_t low = uint64_t(0xD2511F53u) * a, high = uint64_t(0xCD9E8D57u) * c;
      a = uint32_t(high >> 32) ^ b ^ k0, b = uint32_t(high);
      c = uint32_t(low >> 32) ^ d ^ k1, d = uint32_t(low);
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[l] = a, out[kLanes + l] = b, out[2 * kLanes + l] = c, out[3 * kLanes + l] = d;
  }
}

struct Tile {
  alignas(64) float velocity[kSteps][kLanes];
  alignas(64) float uniform[kSteps][kLanes];
};

RANVIER_APART void fill(const SoundCall& c, int64_t block, int n, int64_t begin, int size, Tile& tile) {
  for (int l = 0; l < kLanes; ++l) {
    const float* const from = c.velocity + (block + std::min(l, n - 1)) * c.steps + begin;
    for (int t = 0; t < size; ++t) tile.velocity[t][l] = from[t];
  }
  const int64_t first = c.first_step + begin;
  alignas(64) uint32_t word[4 * kLanes];
  for (int64_t t = first; t < first + size;) {
    draw(c.key, static_cast<uint32_t>(t / 4), static_cast<uint32_t>(c.first_channel + block), word);
    for (const int64_t end = std::min(t / 4 * 4 + 4, first + size); t < end; ++t) {
      float* const to = tile.uniform[t - first];
      const uint32_t* const from = word + t % 4 * kLanes;
      for (int l = 0; l < kLanes; ++l) to[l] = static_cast<float>(static_cast<int32_t>(from[l] >> 8)) * 0x1p-24f;
    }
  }
}

// A register of channels: what stays in registers from step to step.
struct Cells {
  Lanes q, c, w, current, v, ready;
  Whole silent;
};

// How many fibres fire where more than none does: the smallest n with uniform < P(at most n).
RANVIER_APART Lanes more(const Lanes& uniform, Lanes chance, const Lanes& p, const Lanes& rest, const Lanes& ready) {
  const Lanes odds = p / rest;
  Lanes below = chance, n = {};
  for (float k = 0.0f;; k += 1.0f) {
    const Whole above = (uniform >= below) & (n < ready);
    if (!any(above)) break;
    n = above ? n + 1.0f : n;
    chance = chance * odds * ((ready - k) / (k + 1.0f));
    below = below + chance;
  }
  return n;
}

// One step; which cells fire. `recent`: fibres that fired `refractory` steps ago, then those that fire now.
inline Whole step(const SoundCells& z, Cells& x, const Lanes& velocity, const Lanes& uniform, Lanes& recent) {
  const Lanes zero = {};
  const Lanes driven = velocity + z.offset;
  Lanes k = z.release * driven / (driven + z.half);
  k = driven > zero ? k : zero;
  const Lanes released = k * x.q, back = z.take_back * x.c, again = z.reprocess * x.w;
  Lanes p = z.fire * x.c;
  p = p < kSure ? p : zero + kSure;
  x.q = x.q + (z.replenish * (z.pool - x.q) + again - released);
  x.c = x.c + (released - z.leave * x.c);
  x.w = x.w + (back - again);

  // (1 - p)^ready by squares.
  x.ready = x.ready + recent;
  const Whole ready = __builtin_convertvector(x.ready, Whole);
  const Lanes rest = 1.0f - p;
  Lanes square = rest, none = zero + 1.0f;
  for (int32_t bit = 1; bit <= z.fibres; bit *= 2) {
    none = (ready & bit) != 0 ? none * square : none;
    square = square * square;
  }
  Lanes n = zero;
  if (any(uniform >= none)) n = more(uniform, none, p, rest, x.ready);
  x.ready = x.ready - n;
  recent = n;

  x.current = x.current + z.weight * n;
  x.v = z.decay_mem * x.v + z.to_voltage * x.current;
  x.current = z.decay_syn * x.current;
  const Whole off = x.silent > 0;
  x.v = off ? zero : x.v;
  x.silent = x.silent + off;
  const Whole fired = x.v > 1.0f;
  x.v = fired ? zero : x.v;
  x.silent = fired ? x.silent * 0 + z.refractory : x.silent;
  return fired;
}

void block(const SoundCall& c, int64_t first, int n, Tile& tile) {
  alignas(64) float state[kSoundState][kLanes] = {};
  alignas(64) int32_t silent[kLanes] = {};
  alignas(64) float recent[kSoundRefractory][kLanes] = {};
  const int32_t back = c.cells.refractory;
  for (int l = 0; l < n; ++l) {
    for (int s = 0; s < kSoundState; ++s) state[s][l] = c.state[(first + l) * kSoundState + s];
    silent[l] = c.silent[first + l];
    for (int32_t r = 0; r < back; ++r) recent[r][l] = c.recent[(first + l) * back + r];
  }
  Cells cells[kSide];
  for (int b = 0; b < kSide; ++b) {
    Lanes* const to[kSoundState] = {&cells[b].q,       &cells[b].c, &cells[b].w,
                                    &cells[b].current, &cells[b].v, &cells[b].ready};
    for (int s = 0; s < kSoundState; ++s) *to[s] = lanes(state[s] + b * kWide);
    cells[b].silent = *reinterpret_cast<const Whole*>(silent + b * kWide);
  }
  const SoundCells z = c.cells;
  int32_t now = static_cast<int32_t>(c.first_step % back);
  for (int64_t begin = 0; begin < c.steps; begin += kSteps) {
    const int size = static_cast<int>(std::min<int64_t>(kSteps, c.steps - begin));
    fill(c, first, n, begin, size, tile);
    for (int t = 0; t < size; ++t) {
      for (int b = 0; b < kSide; ++b) {
        const Whole fired = step(z, cells[b], lanes(tile.velocity[t] + b * kWide), lanes(tile.uniform[t] + b * kWide),
                                 lanes(recent[now] + b * kWide));
        if (!any(fired)) continue;
        for (int l = b * kWide; l < std::min(n, (b + 1) * kWide); ++l) {
          int32_t& count = c.n_spikes[first + l];
          if (fired[l - b * kWide] && count < c.capacity)
            c.spikes[(first + l) * c.capacity + count++] = static_cast<int32_t>(c.first_step + begin + t);
        }
      }
      now = now + 1 == back ? 0 : now + 1;
    }
  }
  for (int b = 0; b < kSide; ++b) {
    const Lanes* const from[kSoundState] = {&cells[b].q,       &cells[b].c, &cells[b].w,
                                            &cells[b].current, &cells[b].v, &cells[b].ready};
    for (int l = b * kWide; l < std::min(n, (b + 1) * kWide); ++l) {
      for (int s = 0; s < kSoundState; ++s) c.state[(first + l) * kSoundState + s] = (*from[s])[l - b * kWide];
      c.silent[first + l] = cells[b].silent[l - b * kWide];
      for (int32_t r = 0; r < back; ++r) c.recent[(first + l) * back + r] = recent[r][l];
    }
  }
}

}  // namespace

void sound_cells(const SoundCall& c) {
  Tile tile{};
  for (int64_t first = 0; first < c.channels; first += kLanes)
    block(c, first, static_cast<int>(std::min<int64_t>(kLanes, c.channels - first)), tile);
}

}  // namespace RANVIER_NS
}  // namespace ranvier
