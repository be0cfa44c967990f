// One arrival at a synapse's end: where it falls, what it adds to its bucket, and the derivatives of that
// (docs/equations.md, 5, 15 and 30). On the CPU these functions stand in loops over neighbouring targets, which
// compilers vectorise: no branches, no library calls.
//
// kNear says that |h / tau_syn| and |c h| stay below kNearest for every arrival of the call. A polynomial then gives
// the exponentials to rounding, without the split of the argument that a general exponential begins with.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace ranvier {
inline namespace RANVIER_TARGET {

constexpr double kNearest = 0.55;  // wide enough for dt = tau_syn / 4 and arrivals two steps back

// exp(x) for any x (clamped where it would overflow): x = k log 2 + r, a polynomial in r, the exponent set by hand.
RANVIER_LANE float exp_far(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  x = x < -80.f ? -80.f : (x > 80.f ? 80.f : x);
  const float big = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float z = x * 1.44269504088896341f + big;
  const float k = z - big;
  const float r = (x - k * 0.693145751953125f) - k * 1.42860677e-6f;
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  const int32_t e = (static_cast<int32_t>(k) + 127) << 23;
  float scale;
  std::memcpy(&scale, &e, 4);
  return p * scale;
#endif
}
RANVIER_LANE double exp_far(double x) {
#if defined(__CUDA_ARCH__)
  return exp(x);
#else
  x = x < -700. ? -700. : (x > 700. ? 700. : x);
  const double big = 6755399441055744.;
  const double z = x * 1.4426950408889634 + big;
  const double k = z - big;
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double p = 1. / 6227020800.;
  p = p * r + 1. / 479001600.;
  p = p * r + 1. / 39916800.;
  p = p * r + 1. / 3628800.;
  p = p * r + 1. / 362880.;
  p = p * r + 1. / 40320.;
  p = p * r + 1. / 5040.;
  p = p * r + 1. / 720.;
  p = p * r + 1. / 120.;
  p = p * r + 1. / 24.;
  p = p * r + 1. / 6.;
  p = p * r + .5;
  p = p * r + 1.;
  p = p * r + 1.;
  int64_t bits, zero;
  std::memcpy(&bits, &z, 8);
  std::memcpy(&zero, &big, 8);
  const int64_t e = (bits - zero + 1023) << 52;
  double scale;
  std::memcpy(&scale, &e, 8);
  return p * scale;
#endif
}

// phi(x) = (exp(x) - 1) / x for |x| < kNearest, to rounding.
RANVIER_LANE float phi_near(float x) {
  float p = 1.f / 40320;
  p = p * x + 1.f / 5040;
  p = p * x + 1.f / 720;
  p = p * x + 1.f / 120;
  p = p * x + 1.f / 24;
  p = p * x + 1.f / 6;
  p = p * x + 0.5f;
  return p * x + 1.f;
}
RANVIER_LANE double phi_near(double x) {
  double p = 1. / 1307674368000.;
  p = p * x + 1. / 87178291200.;
  p = p * x + 1. / 6227020800.;
  p = p * x + 1. / 479001600.;
  p = p * x + 1. / 39916800.;
  p = p * x + 1. / 3628800.;
  p = p * x + 1. / 362880.;
  p = p * x + 1. / 40320.;
  p = p * x + 1. / 5040.;
  p = p * x + 1. / 720.;
  p = p * x + 1. / 120.;
  p = p * x + 1. / 24.;
  p = p * x + 1. / 6.;
  p = p * x + .5;
  return p * x + 1.;
}

// phi'(x) for |x| < kNearest: sum of (n + 1) x^n / (n + 2)!
RANVIER_LANE float phi_slope_near(float x) {
  float p = 8.f / 362880;
  p = p * x + 7.f / 40320;
  p = p * x + 6.f / 5040;
  p = p * x + 5.f / 720;
  p = p * x + 4.f / 120;
  p = p * x + 3.f / 24;
  p = p * x + 2.f / 6;
  return p * x + 0.5f;
}
RANVIER_LANE double phi_slope_near(double x) {
  double p = 14. / 1307674368000.;
  p = p * x + 13. / 87178291200.;
  p = p * x + 12. / 6227020800.;
  p = p * x + 11. / 479001600.;
  p = p * x + 10. / 39916800.;
  p = p * x + 9. / 3628800.;
  p = p * x + 8. / 362880.;
  p = p * x + 7. / 40320.;
  p = p * x + 6. / 5040.;
  p = p * x + 5. / 720.;
  p = p * x + 4. / 120.;
  p = p * x + 3. / 24.;
  p = p * x + 2. / 6.;
  return p * x + .5;
}

template <bool kNear, class R>
RANVIER_LANE R exp_of(R x) {
  if (kNear) return 1 + x * phi_near(x);
  return exp_far(x);
}

// q(h) of Eq. 2; h where c = 0.
template <bool kNear, class R>
RANVIER_LANE R q_of(R h, R c) {
  const R x = c * h;
  if (kNear) return h * phi_near(x);
  const bool near = x < R(kNearest) && x > R(-kNearest);
  const R direct = (exp_far(x) - 1) / (near ? R(1) : c);
  return near ? h * phi_near(near ? x : R(0)) : direct;
}

// dq/dc = h^2 phi'(c h).
template <bool kNear, class R>
RANVIER_LANE R q_slope_c(R h, R c) {
  const R x = c * h;
  if (kNear) return h * h * phi_slope_near(x);
  const bool near = x < R(kNearest) && x > R(-kNearest);
  const R far = near ? R(1) : x;
  const R direct = ((far - 1) * exp_far(far) + 1) / (far * far);
  return h * h * (near ? phi_slope_near(near ? x : R(0)) : direct);
}

// A time as whole steps and the offset in the last.
template <class R>
RANVIER_LANE void split_time(R time, R dt, int32_t& step, R& offset) {
  const R steps = std::floor(time / dt);
  step = static_cast<int32_t>(steps);
  offset = time - steps * dt;
}

// Where the arrival of a spike at `offset` in its step falls: `ahead` steps later, h before the end of that step
// (Eq. 15). `least` is 0 for inputs, 1 for recurrent spikes, which never enter their own step.
template <class R>
RANVIER_LANE void land(R offset, int32_t d_step, R d_offset, R dt, int32_t least, int32_t& ahead, R& h) {
  const R x = offset + d_offset;
  // both parts are at most dt to rounding, so x / dt is at most 2
  const int32_t to = d_step + (x >= dt ? 1 : 0) + (x >= 2 * dt ? 1 : 0);
  ahead = to < least ? least : to;
  h = static_cast<R>(ahead - d_step + 1) * dt - x;
}

// What an arrival of weight 1 adds to JI, and its q; weight w adds (w f, w f y, w f y^2) to its bucket (Eq. 5).
template <bool kNear, class R>
RANVIER_LANE void arrive(R h, R rate, R c, R& f, R& y) {
  f = exp_of<kNear>(-h * rate);
  y = q_of<kNear>(h, c);
}

// Eq. 30, with the adjoints (la, lb, lc) of the bucket's three moments: dL/dw, and dL/dx per weight 1.
template <class R>
RANVIER_LANE R slope_of_weight(R f, R y, R la, R lb, R lc) {
  return f * (la + y * (lb + y * lc));
}
template <class R>
RANVIER_LANE R slope_of_time(R f, R y, R rate, R c, R la, R lb, R lc) {
  const R grow = 1 + c * y;  // dq/dh
  return f * (la * rate + lb * (y * rate - grow) + lc * y * (y * rate - 2 * grow));
}

// The same for c at fixed rate, per weight 1; that for the rate 1/tau_syn at fixed c is -h slope_of_weight.
template <bool kNear, class R>
RANVIER_LANE R slope_of_c(R f, R y, R h, R c, R lb, R lc) {
  return f * (lb + 2 * y * lc) * q_slope_c<kNear>(h, c);
}

}  // namespace RANVIER_TARGET
}  // namespace ranvier
