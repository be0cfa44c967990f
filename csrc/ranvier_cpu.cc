// The compiled library for the CPU: what it was built for and with. Strings are static and never freed.
#include "library.h"

namespace {

#if defined(__AVX512F__)
constexpr char kIsa[] = "x86-64-v4";
#elif defined(__AVX2__)
constexpr char kIsa[] = "x86-64-v3";
#elif defined(__x86_64__) || defined(_M_X64)
constexpr char kIsa[] = "x86-64";
#elif defined(__aarch64__) || defined(_M_ARM64)
constexpr char kIsa[] = "aarch64";
#else
constexpr char kIsa[] = "other";
#endif

}  // namespace

// The instruction set that every processor needs to have for it.
RANVIER_EXPORT const char* ranvier_isa() { return kIsa; }

RANVIER_EXPORT const char* ranvier_compiler() { return RANVIER_COMPILER; }
