// The signature of the handlers of ranvier.ops, the same on the CPU and on the GPU: buffers fill a call. Sizes are
// read from shapes, but for the attributes of the dense products.
#pragma once
#include "binding.h"
#include "ops_call.h"

namespace ranvier {

template <>
constexpr ffi::DataType data_type<Bf16>() {
  return ffi::BF16;
}
template <>
constexpr ffi::DataType data_type<F16>() {
  return ffi::F16;
}

// P of a matrix or of its derivative: one, or one a group.
inline int64_t sets(int64_t p, int64_t q) { return p == 1 ? 1 : q; }

// Handlers whose names end in "turned" have the matrix, or its derivative, as (P, C, N); their calls have it as N, C.
inline int64_t rows(bool turned, const std::array<int64_t, 4>& matrix) { return matrix[turned ? 2 : 1]; }
inline int64_t columns(bool turned, const std::array<int64_t, 4>& matrix) { return matrix[turned ? 1 : 2]; }

template <class A, class M>
ffi::Error bind_gather(GatherCall<A, M>& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                       ffi::RemainingRets results, bool turned = false) {
  Reader r("ranvier_ops_gather", attributes, arguments, results);
  const auto list = r.shape_of_argument<A>(0, 3, "values");
  const auto matrix = r.shape_of_argument<M>(3, 3, "matrix");
  OpsSizes& z =
      call.size = {list[0], list[1], list[2], sets(matrix[0], list[0]), rows(turned, matrix), columns(turned, matrix)};
  call.values = r.argument<A>("values", {z.q, z.r, z.s});
  call.ids = r.argument<int32_t>("ids", {z.q, z.r, z.s});
  call.count = r.argument<int32_t>("count", {z.q, z.r});
  call.matrix = r.argument<M>("matrix", {z.p, turned ? z.c : z.n, turned ? z.n : z.c});
  call.out = r.result<A>("out", {z.q, z.r, z.c});
  return r.error();
}

template <class A>
ffi::Error bind_scatter(ScatterCall<A>& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results, bool turned = false) {
  Reader r("ranvier_ops_scatter", attributes, arguments, results);
  const auto list = r.shape_of_argument<A>(0, 3, "values");
  const auto out = r.shape_of_result<A>(0, 3, "out");
  OpsSizes& z = call.size = {list[0], list[1], list[2], sets(out[0], list[0]), rows(turned, out), columns(turned, out)};
  call.values = r.argument<A>("values", {z.q, z.r, z.s});
  call.ids = r.argument<int32_t>("ids", {z.q, z.r, z.s});
  call.count = r.argument<int32_t>("count", {z.q, z.r});
  call.g = r.argument<A>("g", {z.q, z.r, z.c});
  call.out = r.result<A>("out", {z.p, turned ? z.c : z.n, turned ? z.n : z.c});
  return r.error();
}

template <class A, class M>
ffi::Error bind_dots(DotsCall<A, M>& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                     ffi::RemainingRets results, bool turned = false) {
  Reader r("ranvier_ops_dots", attributes, arguments, results);
  const auto list = r.shape_of_argument<int32_t>(0, 3, "ids");
  const auto matrix = r.shape_of_argument<M>(2, 3, "matrix");
  OpsSizes& z =
      call.size = {list[0], list[1], list[2], sets(matrix[0], list[0]), rows(turned, matrix), columns(turned, matrix)};
  call.ids = r.argument<int32_t>("ids", {z.q, z.r, z.s});
  call.count = r.argument<int32_t>("count", {z.q, z.r});
  call.matrix = r.argument<M>("matrix", {z.p, turned ? z.c : z.n, turned ? z.n : z.c});
  call.g = r.argument<A>("g", {z.q, z.r, z.c});
  call.out = r.result<A>("out", {z.q, z.r, z.s});
  return r.error();
}

// Attributes of the dense products: the kind of the numbers, and how many lists are computed at a time; of gather
// and dots, too, how many neurons there are: the matrix may have more, of zeros; and of gather whether it is turned.
inline void bind_dense(Reader& r, DenseCall& call) {
  call.word = static_cast<DenseWord>(r.attribute<int64_t>("word"));
  call.piece = std::max<int64_t>(r.attribute<int64_t>("piece"), 1);
}

template <class M>
ffi::Error bind_dense_gather(DenseCall& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                             ffi::RemainingRets results) {
  Reader r("ranvier_ops_dense_gather", attributes, arguments, results);
  bind_dense(r, call);
  const auto list = r.shape_of_argument<float>(0, 3, "values");
  const auto matrix = r.shape_of_argument<M>(3, 4, "matrix");
  const auto out = r.shape_of_result<float>(0, 3, "out");
  const OpsSizes& z = call.size = {list[0], list[1], list[2], list[0], r.attribute<int64_t>("n_rows"), out[2]};
  call.turned = r.attribute<int64_t>("turned") != 0, call.parts = matrix[0], call.high = std::max(matrix[2], z.n);
  call.row = std::max(matrix[3], call.turned ? z.n : z.c);
  call.values = r.argument<float>("values", {z.q, z.r, z.s});
  call.ids = r.argument<int32_t>("ids", {z.q, z.r, z.s});
  call.count = r.argument<int32_t>("count", {z.q, z.r});
  call.matrix = r.argument<M>("matrix", {call.parts, z.q, call.turned ? z.c : call.high, call.row});
  call.out = r.result<float>("out", {z.q, z.r, z.c});
  return r.error();
}

inline ffi::Error bind_dense_scatter(DenseCall& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                                     ffi::RemainingRets results) {
  Reader r("ranvier_ops_dense_scatter", attributes, arguments, results);
  bind_dense(r, call);
  const auto list = r.shape_of_argument<float>(0, 3, "values");
  const auto out = r.shape_of_result<float>(0, 3, "out");
  const OpsSizes& z = call.size = {list[0], list[1], list[2], list[0], out[1], out[2]};
  call.values = r.argument<float>("values", {z.q, z.r, z.s});
  call.ids = r.argument<int32_t>("ids", {z.q, z.r, z.s});
  call.count = r.argument<int32_t>("count", {z.q, z.r});
  call.g = r.argument<float>("g", {z.q, z.r, z.c});
  call.out = r.result<float>("out", {z.q, z.n, z.c});
  return r.error();
}

template <class M>
ffi::Error bind_dense_dots(DenseCall& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                           ffi::RemainingRets results) {
  Reader r("ranvier_ops_dense_dots", attributes, arguments, results);
  bind_dense(r, call);
  const auto list = r.shape_of_argument<int32_t>(0, 3, "ids");
  const auto matrix = r.shape_of_argument<M>(2, 4, "matrix");
  const auto g = r.shape_of_argument<float>(3, 3, "g");
  const OpsSizes& z = call.size = {list[0], list[1], list[2], list[0], r.attribute<int64_t>("n_rows"), g[2]};
  call.parts = matrix[0], call.high = std::max(matrix[2], z.n), call.row = std::max(matrix[3], z.c);
  call.ids = r.argument<int32_t>("ids", {z.q, z.r, z.s});
  call.count = r.argument<int32_t>("count", {z.q, z.r});
  call.matrix = r.argument<M>("matrix", {call.parts, z.q, call.high, call.row});
  call.g = r.argument<float>("g", {z.q, z.r, z.c});
  call.out = r.result<float>("out", {z.q, z.r, z.s});
  return r.error();
}

template <class A, class O>
ffi::Error bind_densify(DensifyCall<A, O>& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                        ffi::RemainingRets results) {
  Reader r("ranvier_ops_densify", attributes, arguments, results);
  const auto list = r.shape_of_argument<A>(0, 3, "values");
  const auto out = r.shape_of_result<O>(0, 3, "out");
  OpsSizes& z = call.size = {list[0], list[1], list[2], list[0], out[2], 0};
  call.values = r.argument<A>("values", {z.q, z.r, z.s});
  call.ids = r.argument<int32_t>("ids", {z.q, z.r, z.s});
  call.count = r.argument<int32_t>("count", {z.q, z.r});
  call.out = r.result<O>("out", {z.q, z.r, z.n});
  return r.error();
}

template <class A>
ffi::Error bind_spikes(SpikesCall<A>& call, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                       ffi::RemainingRets results) {
  Reader r("ranvier_ops_spikes", attributes, arguments, results);
  const auto state = r.shape_of_argument<A>(0, 2, "state");
  const auto threshold = r.shape_of_argument<A>(1, 2, "threshold");
  const auto near = r.shape_of_argument<A>(2, 2, "near");
  const int64_t rows = call.r = state[0], n = call.n = state[1];
  const int64_t slots = call.s = r.shape_of_result<int32_t>(0, 2, "ids")[1];
  const auto one_or = [](int64_t is, int64_t all) { return is == 1 ? 1 : all; };
  const auto step = [](int64_t is, int64_t stride) { return is == 1 ? 0 : stride; };
  call.threshold_row = step(threshold[0], threshold[1]), call.threshold_neuron = step(threshold[1], 1);
  call.near_row = step(near[0], near[1]), call.near_neuron = step(near[1], 1);
  call.state = r.argument<A>("state", {rows, n});
  call.threshold = r.argument<A>("threshold", {one_or(threshold[0], rows), one_or(threshold[1], n)});
  call.near = r.argument<A>("near", {one_or(near[0], rows), one_or(near[1], n)});
  call.ids = r.result<int32_t>("ids", {rows, slots});
  call.n_spikes = r.result<int32_t>("n_spikes", {rows});
  call.n_near = r.result<int32_t>("n_near", {rows});
  call.n_lost = r.result<int32_t>("n_lost", {rows});
  call.n_near_dropped = r.result<int32_t>("n_near_dropped", {rows});
  return r.error();
}

}  // namespace ranvier

// The handlers of a library that has gather, scatter, dots and spikes in `ranvier`.
#define RANVIER_OPS_HANDLERS                                                         \
  RANVIER_HANDLER(ranvier_ops_gather_f32, (ranvier::gather<float, float>));          \
  RANVIER_HANDLER(ranvier_ops_gather_f64, (ranvier::gather<double, double>));        \
  RANVIER_HANDLER(ranvier_ops_gather_bf16, (ranvier::gather<float, ranvier::Bf16>)); \
  RANVIER_HANDLER(ranvier_ops_gather_f16, (ranvier::gather<float, ranvier::F16>));   \
  RANVIER_HANDLER(ranvier_ops_dots_f32, (ranvier::dots<float, float>));              \
  RANVIER_HANDLER(ranvier_ops_dots_f64, (ranvier::dots<double, double>));            \
  RANVIER_HANDLER(ranvier_ops_dots_bf16, (ranvier::dots<float, ranvier::Bf16>));     \
  RANVIER_HANDLER(ranvier_ops_dots_f16, (ranvier::dots<float, ranvier::F16>));       \
  RANVIER_HANDLER(ranvier_ops_scatter_f32, ranvier::scatter<float>);                 \
  RANVIER_HANDLER(ranvier_ops_scatter_f64, ranvier::scatter<double>);                \
  RANVIER_HANDLER(ranvier_ops_spikes_f32, ranvier::spikes<float>);                   \
  RANVIER_HANDLER(ranvier_ops_spikes_f64, ranvier::spikes<double>);

// Those with the matrix the other way round.
#define RANVIER_TURNED_HANDLERS                                                                    \
  RANVIER_HANDLER(ranvier_ops_gather_turned_f32, (ranvier::gather_turned<float, float>));          \
  RANVIER_HANDLER(ranvier_ops_gather_turned_f64, (ranvier::gather_turned<double, double>));        \
  RANVIER_HANDLER(ranvier_ops_gather_turned_bf16, (ranvier::gather_turned<float, ranvier::Bf16>)); \
  RANVIER_HANDLER(ranvier_ops_gather_turned_f16, (ranvier::gather_turned<float, ranvier::F16>));   \
  RANVIER_HANDLER(ranvier_ops_dots_turned_f32, (ranvier::dots_turned<float, float>));              \
  RANVIER_HANDLER(ranvier_ops_dots_turned_f64, (ranvier::dots_turned<double, double>));            \
  RANVIER_HANDLER(ranvier_ops_dots_turned_bf16, (ranvier::dots_turned<float, ranvier::Bf16>));     \
  RANVIER_HANDLER(ranvier_ops_dots_turned_f16, (ranvier::dots_turned<float, ranvier::F16>));       \
  RANVIER_HANDLER(ranvier_ops_scatter_turned_f32, ranvier::scatter_turned<float>);                 \
  RANVIER_HANDLER(ranvier_ops_scatter_turned_f64, ranvier::scatter_turned<double>);

// The handlers of a library that has densify.
#define RANVIER_DENSIFY_HANDLERS                                                \
  RANVIER_HANDLER(ranvier_ops_densify_f32, (ranvier::densify<float, float>));   \
  RANVIER_HANDLER(ranvier_ops_densify_f64, (ranvier::densify<double, double>)); \
  RANVIER_HANDLER(ranvier_ops_densify_bf16, (ranvier::densify<float, ranvier::Bf16>));

// The handlers of a library that has the dense products; named by the numbers of the matrix.
#define RANVIER_DENSE_HANDLERS                                                          \
  RANVIER_HANDLER(ranvier_ops_dense_gather_f32, ranvier::dense_gather<float>);          \
  RANVIER_HANDLER(ranvier_ops_dense_gather_bf16, ranvier::dense_gather<ranvier::Bf16>); \
  RANVIER_HANDLER(ranvier_ops_dense_scatter_f32, ranvier::dense_scatter);               \
  RANVIER_HANDLER(ranvier_ops_dense_dots_f32, ranvier::dense_dots<float>);              \
  RANVIER_HANDLER(ranvier_ops_dense_dots_bf16, ranvier::dense_dots<ranvier::Bf16>);
