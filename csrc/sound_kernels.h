// What the plain function (sound.cc) and the kernels (sound_kernels.cc) of the cochlea model agree on.
#pragma once
#include "sound_call.h"

namespace ranvier {

#define RANVIER_DECLARE(NS)           \
  namespace NS {                      \
  void sound_cells(const SoundCall&); \
  }
RANVIER_DECLARE(base)
RANVIER_DECLARE(v3)
RANVIER_DECLARE(v4)
#undef RANVIER_DECLARE

}  // namespace ranvier
