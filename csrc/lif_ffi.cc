// XLA FFI handlers of the LIF sequence on the CPU: check the call, pick the instruction set, run on XLA's threads.
#include <vector>

#include "event_check.h"
#include "lif_binding.h"
#include "lif_kernels.h"
#include "parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ranvier {
namespace {

// 0: x86-64, 3: v3 (AVX2, FMA), 4: v4 (AVX-512); asked of the processor itself, since some compilers' runtime cannot
// say.
int instruction_set() {
#if defined(RANVIER_X86)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  const bool fma = c & (1u << 12), saves = c & (1u << 27), movbe = c & (1u << 22);
  if (!fma || !saves || !movbe) return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  const bool avx2 = b & (1u << 5), bmi = (b & (1u << 3)) && (b & (1u << 8));
  if (!avx2 || !bmi) return 0;
  const unsigned wide = (1u << 16) | (1u << 17) | (1u << 28) | (1u << 30) | (1u << 31);
  return (b & wide) == wide && (low & 0xe6) == 0xe6 ? 4 : 3;
#else
  return 0;
#endif
}

template <class R>
const Kernels<R>& kernels() {
  static const Kernels<R> best = [] {
#if defined(RANVIER_X86)
    switch (instruction_set()) {
      case 4:
        return v4::kernels<R>();
      case 3:
        return v3::kernels<R>();
    }
#endif
    return base::kernels<R>();
  }();
  return best;
}

Loop on(ffi::ThreadPool& pool) {
  return [&pool](int64_t n, const std::function<void(int64_t)>& body) { parallel_for(pool, n, body); };
}

template <class R>
ffi::Error forward(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  Call<R> c{};
  if (auto wrong = bind_forward(c, attributes, arguments, results); wrong.failure()) return wrong;
  std::vector<int64_t> n_inside;
  const R limit = static_cast<R>(c.n_steps) * c.dt;
  const auto inside = [limit](R time) { return time < limit; };
  if (auto wrong = check_events(pool, c, n_inside, inside); wrong.failure()) return wrong;
  kernels<R>().forward(c, on(pool));
  return ffi::Error::Success();
}

template <class R>
ffi::Error backward(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                    ffi::RemainingRets results) {
  Call<R> c{};
  if (auto wrong = bind_backward(c, attributes, arguments, results); wrong.failure()) return wrong;
  kernels<R>().backward(c, on(pool));
  return ffi::Error::Success();
}

auto binding() { return signature(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()); }

}  // namespace
}  // namespace ranvier

RANVIER_HANDLER(ranvier_lif_forward_f32, ranvier::forward<float>);
RANVIER_HANDLER(ranvier_lif_forward_f64, ranvier::forward<double>);
RANVIER_HANDLER(ranvier_lif_backward_f32, ranvier::backward<float>);
RANVIER_HANDLER(ranvier_lif_backward_f64, ranvier::backward<double>);

// The instruction set that the kernels run with on this machine.
extern "C" __attribute__((visibility("default"))) const char* ranvier_running_isa() {
  switch (ranvier::instruction_set()) {
    case 4:
      return "x86-64-v4";
    case 3:
      return "x86-64-v3";
    default:
      return "baseline";
  }
}
