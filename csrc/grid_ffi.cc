// XLA FFI handlers of the grid scheme on the CPU: check the call, prepare the parameter sets, run the samples in
// parallel on XLA's threads, add up.
//
// Gradients are summed in parts: the samples of a parameter set are cut into runs, as many for all sets together as
// kParts or one each, and the sums of a set's runs are added in order. The cut knows nothing of threads, so neither
// does the result.
#include <cstring>
#include <vector>

#include "event_check.h"
#include "grid_binding.h"
#include "grid_kernels.h"
#include "parallel.h"

extern "C" const char* ranvier_running_isa();

namespace ranvier {
namespace {

constexpr int64_t kParts = 16;
// Rows of synapses that one turn of the final addition does.
constexpr int64_t kRows = 64;

template <class R>
const GridKernels<R>& kernels() {
  static const GridKernels<R> best = [] {
#if defined(RANVIER_X86)
    if (!std::strcmp(ranvier_running_isa(), "x86-64-v4")) return v4::grid_kernels<R>();
    if (!std::strcmp(ranvier_running_isa(), "x86-64-v3")) return v3::grid_kernels<R>();
#endif
    return base::grid_kernels<R>();
  }();
  return best;
}

// What the memory of a thread is for.
enum Purpose { kWalk, kFired, kPlaces, kConstants, kPartSums, kDelaySums, kEnds };

// The parameter sets of a call and the number of events of each sample.
template <class R>
class Prepared {
 public:
  std::vector<GridSet<R>> sets;
  std::vector<int64_t> n_real;
  ffi::Error error;

  Prepared(ffi::ThreadPool& pool, const GridCall<R>& c)
      : sets(c.n_sets),
        in_(c.n_inputs * c.n),
        rec_(c.recurrent ? c.n * c.n : 0),
        cells_(kGridCellRows * c.n),
        places_(scratch<int32_t, kPlaces>(c.n_sets * (in_ + rec_))),
        constants_(scratch<R, kConstants>(c.n_sets * cells_)) {
    parallel_for(pool, c.n_sets, [&](int64_t p) {
      int32_t* const places = places_ + p * (in_ + rec_);
      R* const cells = constants_ + p * cells_;
      const int32_t longest = kernels<R>().prepare(c, p, places, places + in_, cells);
      sets[p] = {c.w_in + p * in_, c.w_rec + p * rec_, places, places + in_, cells, longest};
    });
    const auto inside = [&c](R time) { return time < c.limit && time / c.dt < static_cast<R>(c.n_steps); };
    error = check_events(pool, c, n_real, inside);
  }

 private:
  int64_t in_, rec_, cells_;
  int32_t* places_;
  R* constants_;
};

template <class R>
ffi::Error forward(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                   ffi::RemainingRets results) {
  GridCall<R> c{};
  if (auto wrong = bind_forward(c, attributes, arguments, results); wrong.failure()) return wrong;
  const Prepared<R> prepared(pool, c);
  if (prepared.error.failure()) return prepared.error;
  parallel_for(pool, c.n_samples, [&](int64_t s) {
    const GridSet<R>& set = prepared.sets[s / c.per_set];
    R* const memory = scratch<R, kWalk>(grid_forward_memory(c.n, set.longest));
    kernels<R>().forward(c, set, s, prepared.n_real[s], memory, scratch<int32_t, kFired>(c.n));
  });
  return ffi::Error::Success();
}

template <class R>
ffi::Error backward(ffi::ThreadPool pool, ffi::Dictionary attributes, ffi::RemainingArgs arguments,
                    ffi::RemainingRets results) {
  GridCall<R> c{};
  if (auto wrong = bind_backward(c, attributes, arguments, results); wrong.failure()) return wrong;
  const Prepared<R> prepared(pool, c);
  if (prepared.error.failure()) return prepared.error;

  const int64_t in = c.n_inputs * c.n, rec = c.recurrent ? c.n * c.n : 0;
  const int64_t neuron = c.parameters ? kGridParameters * c.n : 0, each = 2 * in + 2 * rec + neuron;
  const int64_t parts = std::max<int64_t>(1, std::min(c.per_set, kParts / std::max<int64_t>(1, c.n_sets)));
  // The first part of a set is summed in the results.
  R* const memory = scratch<R, kPartSums>(c.n_sets * (parts - 1) * each);
  R* const dd_in = c.positions.dims ? scratch<R, kDelaySums>(c.n_sets * (in + rec)) : c.dd_in;
  R* const dd_rec = c.positions.dims ? dd_in + c.n_sets * in : c.dd_rec;
  const auto sums = [&](int64_t p, int64_t part) {
    if (part == 0)
      return GridSums<R>{c.dw_in + p * in, dd_in + p * in, c.dw_rec + p * rec, dd_rec + p * rec,
                         c.d_neuron + p * neuron};
    R* const at = memory + (p * (parts - 1) + part - 1) * each;
    return GridSums<R>{at, at + in, at + 2 * in, at + 2 * in + rec, at + 2 * in + 2 * rec};
  };
  parallel_for(pool, c.n_sets * parts, [&](int64_t task) {
    const int64_t p = task / parts, part = task % parts;
    const GridSet<R>& set = prepared.sets[p];
    const GridSums<R> mine = sums(p, part);
    std::fill(mine.dw_in, mine.dw_in + in, R(0)), std::fill(mine.dd_in, mine.dd_in + in, R(0));
    std::fill(mine.dw_rec, mine.dw_rec + rec, R(0)), std::fill(mine.dd_rec, mine.dd_rec + rec, R(0));
    std::fill(mine.d_neuron, mine.d_neuron + neuron, R(0));
    R* const work = scratch<R, kWalk>(grid_backward_memory(c.n, set.longest));
    for (int64_t b = part * c.per_set / parts; b < (part + 1) * c.per_set / parts; ++b) {
      const int64_t s = p * c.per_set + b;
      kernels<R>().backward(c, set, s, prepared.n_real[s], mine, work);
    }
  });

  const auto add = [&](int64_t p, R* GridSums<R>::* what, int64_t begin, int64_t end) {
    R* const total = sums(p, 0).*what;
    for (int64_t part = 1; part < parts; ++part) {
      const R* const more = sums(p, part).*what;
      for (int64_t k = begin; k < end; ++k) total[k] += more[k];
    }
    return total;
  };
  const int64_t chunk = kRows * c.n, in_chunks = (in + chunk - 1) / chunk, rec_chunks = (rec + chunk - 1) / chunk;
  const int64_t chunks = in_chunks + rec_chunks + 1;
  parallel_for(pool, c.n_sets * chunks, [&](int64_t task) {
    const int64_t p = task / chunks, k = task % chunks;
    if (k == chunks - 1) {
      add(p, &GridSums<R>::d_neuron, 0, neuron);
      return;
    }
    const bool of_input = k < in_chunks;
    const int64_t begin = (of_input ? k : k - in_chunks) * chunk, end = std::min(begin + chunk, of_input ? in : rec);
    add(p, of_input ? &GridSums<R>::dw_in : &GridSums<R>::dw_rec, begin, end);
    R* const dd = add(p, of_input ? &GridSums<R>::dd_in : &GridSums<R>::dd_rec, begin, end);
    const R* const w = of_input ? c.w_in + p * in : c.w_rec + p * rec;
    for (int64_t x = begin; x < end; ++x) dd[x] *= w[x];
  });
  if (c.positions.dims) {
    parallel_for(pool, c.n_sets * (c.recurrent ? 2 : 1), [&](int64_t task) {
      const int64_t p = task % c.n_sets;
      const bool recurrent = task >= c.n_sets;
      R* const ends = scratch<R, kEnds>(grid_positions_memory(c.n, c.positions.dims));
      kernels<R>().to_positions(c, p, recurrent, recurrent ? dd_rec + p * rec : dd_in + p * in, ends);
    });
  }
  return ffi::Error::Success();
}

auto binding() { return signature(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()); }

}  // namespace
}  // namespace ranvier

RANVIER_HANDLER(ranvier_grid_forward_f32, ranvier::forward<float>);
RANVIER_HANDLER(ranvier_grid_forward_f64, ranvier::forward<double>);
RANVIER_HANDLER(ranvier_grid_backward_f32, ranvier::backward<float>);
RANVIER_HANDLER(ranvier_grid_backward_f64, ranvier::backward<double>);
