// XLA FFI handlers of the LIF sequence on the CPU: check shapes, split delays, run the samples in parallel.
//
// Gradients of the weights and delays are summed in a fixed number of parts (independent of the threads) and the parts
// in order, so that a result does not depend on how many threads there are.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "lif_kernels.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ffi = xla::ffi;

namespace ranvier {
namespace {

constexpr int64_t kParts = 16;

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

template <class R>
R* scratch(size_t size) {
  static thread_local std::vector<R> memory;
  if (memory.size() < size) memory.resize(size);
  return memory.data();
}

template <class R>
void split(const R* d, int64_t size, R dt, std::vector<int32_t>& step, std::vector<R>& offset) {
  step.resize(size), offset.resize(size);
  for (int64_t k = 0; k < size; ++k) {
    const R steps = std::floor(d[k] / dt);
    step[k] = static_cast<int32_t>(steps);
    offset[k] = d[k] - steps * dt;
  }
}

template <class R>
struct Delays {
  std::vector<int32_t> in_step, rec_step;
  std::vector<R> in_offset, rec_offset;
};

template <ffi::DataType T>
using In = ffi::Buffer<T>;
template <ffi::DataType T>
using Out = ffi::Result<ffi::Buffer<T>>;

template <class Buffer>
bool shaped(const Buffer& b, std::initializer_list<int64_t> shape) {
  auto d = b.dimensions();
  return d.size() == shape.size() && std::equal(d.begin(), d.end(), shape.begin());
}

#define RANVIER_NEED(condition, what) \
  if (!(condition)) return ffi::Error::InvalidArgument("ranvier_lif: wrong shape of " what);

template <class R, ffi::DataType T, class I>
ffi::Error common(Call<R>& c, Delays<R>& d, double dt, int64_t n_steps, bool single, In<T>& time, I& channel,
                  In<T>& w_in, In<T>& d_in, In<T>& w_rec, In<T>& d_rec, In<T>& tau_mem, In<T>& tau_syn, In<T>& v_th) {
  RANVIER_NEED(time.dimensions().size() == 2, "time");
  RANVIER_NEED(w_in.dimensions().size() == 2, "w_in");
  c.n_samples = time.dimensions()[0], c.n_events = time.dimensions()[1];
  c.n_inputs = w_in.dimensions()[0], c.n = w_in.dimensions()[1];
  c.n_steps = n_steps, c.dt = static_cast<R>(dt), c.single = single;
  RANVIER_NEED(shaped(channel, {c.n_samples, c.n_events}), "channel");
  RANVIER_NEED(shaped(d_in, {c.n_inputs, c.n}), "d_in");
  c.recurrent = w_rec.dimensions().size() == 2 && w_rec.dimensions()[0] > 0;
  if (c.recurrent) {
    RANVIER_NEED(shaped(w_rec, {c.n, c.n}), "w_rec");
    RANVIER_NEED(shaped(d_rec, {c.n, c.n}), "d_rec");
  }
  RANVIER_NEED(shaped(tau_mem, {c.n}) && shaped(tau_syn, {c.n}) && shaped(v_th, {c.n}), "neuron parameters");
  c.time = time.typed_data(), c.channel = channel.typed_data(), c.w_in = w_in.typed_data();
  // These become addresses: Events made without from_times were never checked.
  for (int64_t k = 0; k < c.n_samples * c.n_events; ++k) {
    if (!(c.time[k] < std::numeric_limits<R>::infinity())) continue;
    if (c.time[k] < 0 || c.channel[k] < 0 || c.channel[k] >= c.n_inputs)
      return ffi::Error::InvalidArgument("simulate: got an event at " + std::to_string(c.time[k]) + " ms in channel " +
                                         std::to_string(c.channel[k]) + "; needs times >= 0 and channels below " +
                                         std::to_string(c.n_inputs) + "; make events with Events.from_times");
  }
  c.w_rec = w_rec.typed_data();
  c.tau_mem = tau_mem.typed_data(), c.tau_syn = tau_syn.typed_data(), c.v_th = v_th.typed_data();
  split(d_in.typed_data(), c.n_inputs * c.n, c.dt, d.in_step, d.in_offset);
  split(d_rec.typed_data(), c.recurrent ? c.n * c.n : 0, c.dt, d.rec_step, d.rec_offset);
  c.d_in_step = d.in_step.data(), c.d_in_offset = d.in_offset.data();
  c.d_rec_step = d.rec_step.data(), c.d_rec_offset = d.rec_offset.data();
  return ffi::Error::Success();
}

template <class R, ffi::DataType T>
ffi::Error forward(ffi::ThreadPool pool, double dt, int64_t n_steps, bool single, In<T> time, In<ffi::S32> channel,
                   In<T> w_in, In<T> d_in, In<T> w_rec, In<T> d_rec, In<T> tau_mem, In<T> tau_syn, In<T> v_th,
                   Out<T> count, Out<T> first_offset, Out<T> v, Out<T> v_free, Out<T> spike_g, Out<T> spike_state,
                   Out<ffi::S32> spike_step, Out<ffi::S32> spike_neuron, Out<ffi::S32> n_spikes,
                   Out<ffi::S32> first_step, Out<ffi::S32> overflow) {
  Call<R> c{};
  Delays<R> d;
  if (auto e = common<R, T>(c, d, dt, n_steps, single, time, channel, w_in, d_in, w_rec, d_rec, tau_mem, tau_syn, v_th);
      e.failure())
    return e;
  RANVIER_NEED(spike_g->dimensions().size() == 2, "spike_g");
  c.capacity = spike_g->dimensions()[1];
  RANVIER_NEED(shaped(*v_free, {c.n_samples, c.n_steps, c.n}), "v_free");
  RANVIER_NEED(shaped(*spike_state, {c.n_samples, c.capacity, 5}), "spike_state");
  c.count = count->typed_data(), c.first_offset = first_offset->typed_data(), c.v = v->typed_data();
  c.v_free = v_free->typed_data(), c.spike_g = spike_g->typed_data(), c.spike_state = spike_state->typed_data();
  c.spike_step = spike_step->typed_data(), c.spike_neuron = spike_neuron->typed_data();
  c.n_spikes = n_spikes->typed_data(), c.first_step = first_step->typed_data(), c.overflow = overflow->typed_data();
  const size_t size = size_t(c.n_steps) * c.n * 4;
  parallel_for(pool, c.n_samples, [&](int64_t b) { kernels<R>().forward(c, b, scratch<R>(size)); });
  return ffi::Error::Success();
}

template <class R, ffi::DataType T>
ffi::Error backward(ffi::ThreadPool pool, double dt, int64_t n_steps, bool single, double unit, In<T> time,
                    In<ffi::S32> channel, In<T> w_in, In<T> d_in, In<T> w_rec, In<T> d_rec, In<T> tau_mem,
                    In<T> tau_syn, In<T> v_th, In<T> v_free, In<T> spike_g, In<T> spike_state, In<ffi::S32> spike_step,
                    In<ffi::S32> spike_neuron, In<ffi::S32> n_spikes, In<ffi::S32> first_step, In<T> ct_count,
                    In<T> ct_first, In<T> ct_v, In<T> ct_g, Out<T> dt_event, Out<T> dw_in, Out<T> dd_in, Out<T> dw_rec,
                    Out<T> dd_rec) {
  Call<R> c{};
  Delays<R> d;
  if (auto e = common<R, T>(c, d, dt, n_steps, single, time, channel, w_in, d_in, w_rec, d_rec, tau_mem, tau_syn, v_th);
      e.failure())
    return e;
  RANVIER_NEED(spike_g.dimensions().size() == 2, "spike_g");
  c.capacity = spike_g.dimensions()[1], c.unit = static_cast<R>(unit);
  RANVIER_NEED(shaped(ct_count, {c.n_samples, c.n}) && shaped(ct_first, {c.n_samples, c.n}), "cotangents");
  RANVIER_NEED(shaped(ct_v, {c.n_samples, c.n}) && shaped(ct_g, {c.n_samples, c.capacity}), "cotangents");
  // read only in this pass: the buffers are shared with forward's, where they are written
  c.v_free = const_cast<R*>(v_free.typed_data()), c.spike_g = const_cast<R*>(spike_g.typed_data());
  c.spike_state = const_cast<R*>(spike_state.typed_data());
  c.spike_step = const_cast<int32_t*>(spike_step.typed_data());
  c.spike_neuron = const_cast<int32_t*>(spike_neuron.typed_data());
  c.n_spikes = const_cast<int32_t*>(n_spikes.typed_data());
  c.first_step = const_cast<int32_t*>(first_step.typed_data());
  c.ct_count = ct_count.typed_data(), c.ct_first = ct_first.typed_data();
  c.ct_v = ct_v.typed_data(), c.ct_g = ct_g.typed_data(), c.dt_event = dt_event->typed_data();

  const int64_t in = c.n_inputs * c.n, rec = c.recurrent ? c.n * c.n : 0, each = 2 * (in + rec);
  const int64_t parts = std::min(c.n_samples, kParts);
  std::vector<R> sums(static_cast<size_t>(parts * each), R(0));
  const size_t size = size_t(c.n_steps) * c.n * 4;
  parallel_for(pool, parts, [&](int64_t part) {
    R* sum = sums.data() + part * each;
    for (int64_t b = part * c.n_samples / parts; b < (part + 1) * c.n_samples / parts; ++b)
      kernels<R>().backward(c, b, scratch<R>(size), sum, sum + in, sum + 2 * in, sum + 2 * in + rec);
  });
  R* const outs[] = {dw_in->typed_data(), dd_in->typed_data(), dw_rec->typed_data(), dd_rec->typed_data()};
  const int64_t sizes[] = {in, in, rec, rec};
  int64_t at = 0;
  for (int o = 0; o < 4; ++o) {
    for (int64_t k = 0; k < sizes[o]; ++k) {
      R total = 0;
      for (int64_t part = 0; part < parts; ++part) total += sums[part * each + at + k];
      outs[o][k] = total;
    }
    at += sizes[o];
  }
  return ffi::Error::Success();
}

template <ffi::DataType T>
auto bind_forward() {
  auto b = ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<double>("dt").Attr<int64_t>("n_steps").Attr<bool>("single");
  return std::move(b)
      .template Arg<In<T>>()
      .template Arg<In<ffi::S32>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<ffi::S32>>()
      .template Ret<In<ffi::S32>>()
      .template Ret<In<ffi::S32>>()
      .template Ret<In<ffi::S32>>()
      .template Ret<In<ffi::S32>>();
}

template <ffi::DataType T>
auto bind_backward() {
  auto b = ffi::Ffi::Bind()
               .Ctx<ffi::ThreadPool>()
               .Attr<double>("dt")
               .Attr<int64_t>("n_steps")
               .Attr<bool>("single")
               .Attr<double>("unit");
  return std::move(b)
      .template Arg<In<T>>()
      .template Arg<In<ffi::S32>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<ffi::S32>>()
      .template Arg<In<ffi::S32>>()
      .template Arg<In<ffi::S32>>()
      .template Arg<In<ffi::S32>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Arg<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>()
      .template Ret<In<T>>();
}

}  // namespace
}  // namespace ranvier

#define RANVIER_HANDLER(NAME, FUNCTION, BINDING)                                             \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* NAME(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, FUNCTION, BINDING)
RANVIER_HANDLER(ranvier_lif_forward_f32, (ranvier::forward<float, ffi::F32>), ranvier::bind_forward<ffi::F32>());
RANVIER_HANDLER(ranvier_lif_forward_f64, (ranvier::forward<double, ffi::F64>), ranvier::bind_forward<ffi::F64>());
RANVIER_HANDLER(ranvier_lif_backward_f32, (ranvier::backward<float, ffi::F32>), ranvier::bind_backward<ffi::F32>());
RANVIER_HANDLER(ranvier_lif_backward_f64, (ranvier::backward<double, ffi::F64>), ranvier::bind_backward<ffi::F64>());

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
