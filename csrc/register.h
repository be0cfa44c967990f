// CPU: how wide a vector register of the instruction set is that this is compiled for.
#pragma once

namespace ranvier {
namespace RANVIER_NS {

// Bytes.
#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

}  // namespace RANVIER_NS
}  // namespace ranvier
