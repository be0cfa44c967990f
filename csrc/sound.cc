// The cochlea model's cells as a plain C function: picks the instruction set.
#include <cstring>

#include "sound_kernels.h"

extern "C" const char* ranvier_running_isa();

extern "C" __attribute__((visibility("default"))) void ranvier_sound_cells(const ranvier::SoundCall* call) {
#if defined(RANVIER_X86)
  if (!std::strcmp(ranvier_running_isa(), "x86-64-v4")) return ranvier::v4::sound_cells(*call);
  if (!std::strcmp(ranvier_running_isa(), "x86-64-v3")) return ranvier::v3::sound_cells(*call);
#endif
  ranvier::base::sound_cells(*call);
}
