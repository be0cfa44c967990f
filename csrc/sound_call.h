// Hair cells, nerve fibres and bushy cells of the cochlea model: what a call holds. A plain C function, called through
// ctypes, since sound is turned into events in NumPy and not in JAX.
#pragma once
#include <cstdint>

namespace ranvier {

// Rates are per step; Eq. 45 to 47 of docs/equations.md.
struct SoundCells {
  float release, replenish, leave, take_back, reprocess;  // g, y, l + r, r, x
  float pool;                                             // M
  float offset, half;                                     // A, B
  float fire;                                             // h: probability a step and fibre for each unit of c
  float weight, to_voltage, decay_syn, decay_mem;
  int32_t fibres;      // a channel
  int32_t refractory;  // steps in which a fibre, or a bushy cell, cannot fire again
};
constexpr int kSoundState = 6;        // q, c, w, current, voltage, fibres that can fire
constexpr int kSoundRefractory = 64;  // `refractory` is at least 1 and at most this

struct SoundCall {
  SoundCells cells;
  uint32_t key[2];
  int64_t channels, steps, first_channel, first_step;
  int64_t capacity;       // room of a channel in `spikes`
  const float* velocity;  // (channels, steps)
  float* state;           // (channels, kSoundState); in and out
  int32_t* silent;        // (channels): steps left in which a bushy cell cannot fire; in and out
  float* recent;          // (channels, refractory): fibres that fired at steps of that remainder; in and out
  int32_t* spikes;        // (channels, capacity): steps, counted from the start of the sound
  int32_t* n_spikes;      // (channels): in and out
};

}  // namespace ranvier
