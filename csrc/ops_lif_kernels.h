// What the FFI handlers (ops_lif_ffi.cc) and the kernels (ops_lif_kernels.cc) of the LIF layer over time on the CPU
// agree on: a step of one sample, in parts. Neurons go by words of kWord; rows that end inside a word are padded.
#pragma once
#include <cstdint>

#include "ops_lif_call.h"

namespace ranvier {

// The parameters of a group, padded with neurons that get nothing and never reach a threshold.
template <class A>
struct LifParameters {
  const A *decay, *scale, *threshold, *near;
};

struct LifWords {
  int64_t begin, end;
};

// The list of a step and what did not fit.
template <class A>
struct LifList {
  int32_t* ids;  // (S)
  A* excess;     // (S)
  int32_t *n_spikes, *n_near, *n_lost, *n_near_dropped;
};

template <class A>
struct LifLoopKernels {
  // Voltages `v` of some words after those `before` them (the same memory, or another row), and the bits of who fired
  // and who nearly did. `arrived`: the recurrent currents, or null. Currents have N numbers, the others are padded.
  void (*charge)(const LifParameters<A>& of, LifWords words, int64_t n, const A* current, const A* arrived,
                 const A* before, A* v, uint32_t* fired, uint32_t* near);
  // The list of a step whose bits and voltages are known. `room`: for N and 16 more.
  void (*list)(const LifParameters<A>& of, int64_t n_words, int64_t slots, const uint32_t* fired, const uint32_t* near,
               const A* v, int32_t* room, const LifList<A>& to);
  // dI = scale lam of some words; what the step before finds of `lam` then: decay lam, and 0 of those that fired in it.
  void (*pass_back)(const LifParameters<A>& of, LifWords words, int64_t n, const uint32_t* fired_before, A* lam,
                    A* d_current);
};

#define RANVIER_DECLARE(NS)                                          \
  namespace NS {                                                     \
  template <class A>                                                 \
  LifLoopKernels<A> lif_loop_kernels();                              \
  extern template LifLoopKernels<float> lif_loop_kernels<float>();   \
  extern template LifLoopKernels<double> lif_loop_kernels<double>(); \
  }
RANVIER_DECLARE(base)
RANVIER_DECLARE(v3)
RANVIER_DECLARE(v4)
#undef RANVIER_DECLARE

}  // namespace ranvier
