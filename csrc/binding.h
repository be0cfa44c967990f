// What the signatures of all handlers share, on the CPU and on the GPU: a reader of attributes and buffers that
// remembers the first thing that is wrong, and the parts that every simulator has. Needs nothing but XLA's FFI headers.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace ranvier {

namespace ffi = xla::ffi;

template <class X>
constexpr ffi::DataType data_type() {
  if constexpr (std::is_same_v<X, float>) {
    return ffi::F32;
  } else if constexpr (std::is_same_v<X, double>) {
    return ffi::F64;
  } else if constexpr (std::is_same_v<X, uint32_t>) {
    return ffi::U32;
  } else {
    static_assert(std::is_same_v<X, int32_t>);
    return ffi::S32;
  }
}

// Takes the arguments and the results one after another and remembers the first thing that is wrong.
class Reader {
 public:
  // `name` is what an error calls the handlers: ranvier_lif.
  Reader(const char* name, ffi::Dictionary attributes, ffi::RemainingArgs arguments, ffi::RemainingRets results)
      : name_(name), attributes_(attributes), arguments_(arguments), results_(results) {}

  template <class X>
  X attribute(const char* name) {
    auto got = attributes_.get<X>(name);
    if (got.has_value()) return *got;
    refuse(name);
    return X{};
  }

  // Dimensions of the argument `index`, which must have `rank` of them.
  template <class X>
  std::array<int64_t, 4> shape_of_argument(size_t index, size_t rank, const char* name) {
    auto got = arguments_.get<ffi::Buffer<data_type<X>()>>(index);
    return dimensions(got.has_value() ? &*got : nullptr, rank, name);
  }

  template <class X>
  std::array<int64_t, 4> shape_of_result(size_t index, size_t rank, const char* name) {
    auto got = results_.get<ffi::Buffer<data_type<X>()>>(index);
    return dimensions(got.has_value() ? &**got : nullptr, rank, name);
  }

  template <class X>
  X* argument(const char* name, std::initializer_list<int64_t> shape) {
    auto got = arguments_.get<ffi::Buffer<data_type<X>()>>(argument_++);
    return data<X>(got.has_value() ? &*got : nullptr, name, shape);
  }

  template <class X>
  X* result(const char* name, std::initializer_list<int64_t> shape) {
    auto got = results_.get<ffi::Buffer<data_type<X>()>>(result_++);
    return data<X>(got.has_value() ? &**got : nullptr, name, shape);
  }

  ffi::Error error() const {
    if (argument_ != arguments_.size() || result_ != results_.size())
      return ffi::Error::InvalidArgument(name_ + ": wrong number of buffers");
    if (!wrong_.empty()) return ffi::Error::InvalidArgument(name_ + ": wrong type or shape of " + wrong_);
    return ffi::Error::Success();
  }

 private:
  void refuse(const char* name) {
    if (wrong_.empty()) wrong_ = name;
  }

  template <class B>
  std::array<int64_t, 4> dimensions(const B* buffer, size_t rank, const char* name) {
    std::array<int64_t, 4> shape{};
    if (buffer && rank <= shape.size() && buffer->dimensions().size() == rank)
      std::copy(buffer->dimensions().begin(), buffer->dimensions().end(), shape.begin());
    else
      refuse(name);
    return shape;
  }

  template <class X, class B>
  X* data(const B* buffer, const char* name, std::initializer_list<int64_t> shape) {
    if (buffer) {
      const auto is = buffer->dimensions();
      // numbers of 16 bits have a type of our own
      if (is.size() == shape.size() && std::equal(is.begin(), is.end(), shape.begin()))
        return static_cast<X*>(buffer->untyped_data());
    }
    refuse(name);
    return nullptr;
  }

  std::string name_;
  ffi::Dictionary attributes_;
  ffi::RemainingArgs arguments_;
  ffi::RemainingRets results_;
  size_t argument_ = 0, result_ = 0;
  std::string wrong_;
};

// What the calls of all simulators share: sizes, switches, and the inputs up to the recurrent delays, or, with the
// attribute `positions`, positions in place of delays and behind them the longest delay.
template <class C>
void bind_layer(Reader& r, C& c) {
  using R = std::remove_const_t<std::remove_pointer_t<decltype(c.time)>>;
  c.n_steps = r.attribute<int64_t>("n_steps"), c.n_slots = r.attribute<int64_t>("n_slots");
  c.single = r.attribute<bool>("single"), c.keep = r.attribute<bool>("keep");
  c.trace = r.attribute<bool>("trace"), c.parameters = r.attribute<bool>("parameters");
  const auto time = r.shape_of_argument<R>(0, 3, "time");
  const auto w_in = r.shape_of_argument<R>(2, 3, "w_in");
  const auto w_rec = r.shape_of_argument<R>(4, 3, "w_rec");
  const int64_t q = time[0], b = time[1], e = c.n_events = time[2];
  const int64_t p = c.n_sets = w_in[0], m = c.n_inputs = w_in[1], n = c.n = w_in[2];
  c.n_samples = q * b;
  c.per_set = p > 0 ? c.n_samples / p : 0;
  c.recurrent = w_rec[1] > 0;
  const int64_t sources = c.recurrent ? n : 0;
  c.time = r.argument<R>("time", {q, b, e});
  c.channel = r.argument<int32_t>("channel", {q, b, e});
  // P is 1 or Q
  c.w_in = r.argument<R>("w_in", {p == 1 ? 1 : q, m, n});
  if (!r.attribute<bool>("positions")) {
    c.d_in = r.argument<R>("d_in", {p, m, n});
    c.w_rec = r.argument<R>("w_rec", {p, sources, n}), c.d_rec = r.argument<R>("d_rec", {p, sources, n});
    return;
  }
  const int64_t dims = c.positions.dims = r.shape_of_argument<R>(3, 3, "x_in")[2];
  c.positions.in = r.argument<R>("x_in", {p, m + n, dims});
  c.w_rec = r.argument<R>("w_rec", {p, sources, n});
  c.positions.rec = r.argument<R>("x_rec", {p, 2 * sources, dims});
  c.positions.longest = r.argument<R>("longest", {p, 1});
}

// Cotangents, in the order of the smooth results.
template <class C>
void bind_cotangents(Reader& r, C& c, int64_t q, int64_t b) {
  using R = std::remove_const_t<std::remove_pointer_t<decltype(c.time)>>;
  c.ct_count = r.argument<R>("ct_count", {q, b, c.n});
  c.ct_first = r.argument<R>("ct_first", {q, b, c.n});
  c.ct_v = r.argument<R>("ct_v", {q, b, c.n});
  c.ct_g = r.argument<R>("ct_g", {q, b, c.capacity});
  c.ct_trace = r.argument<R>("ct_trace", {q, b, c.trace ? c.n_steps : 0, c.n});
}

// Derivatives of the event times and the synapses.
template <class C>
void bind_gradients(Reader& r, C& c, int64_t q, int64_t b) {
  using R = std::remove_const_t<std::remove_pointer_t<decltype(c.time)>>;
  const int64_t p = c.n_sets, n = c.n, sources = c.recurrent ? n : 0;
  c.dt_event = r.result<R>("dt_event", {q, b, c.times ? c.n_events : 0});
  c.dw_in = r.result<R>("dw_in", {p, c.n_inputs, n});
  if (c.positions.dims == 0) {
    c.dd_in = r.result<R>("dd_in", {p, c.n_inputs, n});
    c.dw_rec = r.result<R>("dw_rec", {p, sources, n}), c.dd_rec = r.result<R>("dd_rec", {p, sources, n});
    return;
  }
  c.positions.d_in = r.result<R>("dx_in", {p, c.n_inputs + n, c.positions.dims});
  c.dw_rec = r.result<R>("dw_rec", {p, sources, n});
  c.positions.d_rec = r.result<R>("dx_rec", {p, 2 * sources, c.positions.dims});
}

// The context (thread pool, or stream and scratch allocator) comes first: ffi::Ffi::Bind().Ctx<...>().
template <class Binding>
auto signature(Binding&& context) {
  return std::forward<Binding>(context).Attrs().RemainingArgs().RemainingRets();
}

}  // namespace ranvier

// Defines the handler NAME, whose symbol XLA looks for, by FUNCTION with the signature `binding()` of its file.
#define RANVIER_HANDLER(NAME, FUNCTION)                                                      \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* NAME(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(NAME, FUNCTION, ranvier::binding())
