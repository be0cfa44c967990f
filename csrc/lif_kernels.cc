// A call's samples in parallel, for one instruction set: compiled once for each (RANVIER_NS names it), picked when
// loaded.
//
// Gradients are summed in parts: the samples of a parameter set are cut into at most kParts runs, each run has a sum of
// its own, and the sums are added in order. The cut knows nothing of threads, so neither does the result.
//
// Memory that a call needs for itself is kept for the next one: mapping it anew costs more than computing in it.
#include "lif_kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <memory>
#include <mutex>

#include "lif_sequence.h"

namespace ranvier {
namespace RANVIER_NS {
namespace {

constexpr int64_t kParts = 16;
// Sums that are held at a time: parameter sets go in rounds of so many parts.
constexpr int64_t kSums = 64;
// Rows of targets that one turn of the final addition adds up.
constexpr int64_t kRows = 64;

template <class R>
struct Workspace {
  std::vector<Problem<R>> problems;  // one a parameter set
  Aligned<R> sums;
};

// Lends a workspace to a call: as many exist as calls ever ran at the same time.
template <class R>
class Lease {
 public:
  Lease() {
    std::lock_guard<std::mutex> lock(mutex());
    if (idle().empty()) {
      mine_ = std::make_unique<Workspace<R>>();
    } else {
      mine_ = std::move(idle().back());
      idle().pop_back();
    }
  }
  ~Lease() {
    std::lock_guard<std::mutex> lock(mutex());
    idle().push_back(std::move(mine_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Workspace<R>* operator->() { return mine_.get(); }

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static std::vector<std::unique_ptr<Workspace<R>>>& idle() {
    static std::vector<std::unique_ptr<Workspace<R>>> all;
    return all;
  }
  std::unique_ptr<Workspace<R>> mine_;
};

// Constants of a parameter set (delays split into step and offset), once a call.
template <class R>
const std::vector<Problem<R>>& prepare(const Call<R>& c, const Loop& loop, Workspace<R>& workspace) {
  auto& problems = workspace.problems;
  problems.resize(c.n_sets);
  loop(c.n_sets, [&](int64_t set) { problems[set].prepare(c, set); });
  return problems;
}

template <class R>
Sample<R> sample(const Call<R>& c, int64_t b) {
  const auto of = [b](auto* array, int64_t size, bool on = true) { return on && array ? array + b * size : nullptr; };
  const int64_t states = c.n_steps * c.n, records = c.capacity;
  Sample<R> s{};
  s.time = of(c.time, c.n_events), s.channel = of(c.channel, c.n_events);
  s.count = of(c.count, c.n), s.first_offset = of(c.first_offset, c.n), s.v = of(c.v, c.n);
  s.first_step = of(c.first_step, c.n), s.n_spikes = of(c.n_spikes, 1), s.overflow = of(c.overflow, 1);
  s.spike_step = of(c.spike_step, records), s.spike_neuron = of(c.spike_neuron, records);
  s.spike_g = of(c.spike_g, records), s.spike_state = of(c.spike_state, 5 * records, c.keep);
  s.v_free = of(c.v_free, states, c.keep), s.i_free = of(c.i_free, states, c.parameters);
  s.v_trace = of(c.v_trace, states, c.trace);
  s.ct_count = of(c.ct_count, c.n), s.ct_first = of(c.ct_first, c.n), s.ct_v = of(c.ct_v, c.n);
  s.ct_g = of(c.ct_g, records), s.ct_trace = of(c.ct_trace, states, c.trace);
  s.dt_event = of(c.dt_event, c.n_events, c.times);
  return s;
}

// What backward reads of every step is XLA's memory, new at every call: the system hands it out faster in large pages.
template <class R>
void expect_all_of(R* array, int64_t size) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(array) + kPage - 1) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(array + size) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may be refused
#else
  (void)array, (void)size;
#endif
}

template <class R>
void forward_call(const Call<R>& c, const Loop& loop) {
  if (c.keep) expect_all_of(c.v_free, c.n_samples * c.n_steps * c.n);
  Lease<R> lease;
  const auto& problems = prepare(c, loop, *lease.operator->());
  loop(c.n_samples, [&](int64_t b) {
    static thread_local Scratch<R> scratch;
    forward(problems[b / c.per_set], sample(c, b), scratch);
  });
}

// The gradients of a parameter set as rows of targets, one after another, each padded to whole blocks.
template <class R>
struct Layout {
  int64_t n, padded, in, rec, constants;
  Layout(const Call<R>& c, const Problem<R>& p)
      : n(c.n), padded(p.padded), in(c.n_inputs), rec(c.recurrent ? c.n : 0), constants(c.parameters ? 1 : 0) {}
  int64_t rows() const { return 2 * in + 2 * rec + 3 * constants; }

  Sums<R> sums(R* at) const {
    R* const rest = at + (2 * in + 2 * rec) * padded;
    const auto constant = [&](int64_t k) { return constants ? rest + k * padded : nullptr; };
    return {at,          at + in * padded, at + 2 * in * padded, at + (2 * in + rec) * padded,
            constant(0), constant(1),      constant(2)};
  }
  // Where a row of set `set` belongs in the results; null for a row of delays with positions.
  R* result(const Call<R>& c, int64_t set, int64_t row) const {
    R* const arrays[] = {c.dw_in, c.dd_in, c.dw_rec, c.dd_rec, c.d_tau_mem, c.d_tau_syn, c.d_v_th};
    const int64_t lengths[] = {in, in, rec, rec, constants, constants, constants};
    int k = 0;
    for (; row >= lengths[k]; ++k) row -= lengths[k];
    return arrays[k] ? arrays[k] + (set * lengths[k] + row) * n : nullptr;
  }
};

// From the adjoints of a matrix's delays to those of the positions of set `set`.
template <class R>
void to_positions(const Synapses<R>& synapses, const R* dd, R* dx, int64_t set, int64_t dims, const Layout<R>& layout,
                  Scratch<R>& scratch) {
  R* const memory = scratch.state.of((layout.padded + kLanes) * dims);
  synapses.delays.back(dd, layout.padded, dx + set * (synapses.n_sources + layout.n) * dims, memory);
}

template <class R>
void backward_call(const Call<R>& c, const Loop& loop) {
  Lease<R> lease;
  const auto& problems = prepare(c, loop, *lease.operator->());
  if (c.n_sets == 0) return;
  const Layout<R> layout(c, problems[0]);
  const int64_t rows = layout.rows(), size = rows * layout.padded;
  const int64_t parts = std::max<int64_t>(1, std::min(c.per_set, kParts));
  const int64_t round = std::max<int64_t>(1, kSums / parts), turns = (rows + kRows - 1) / kRows;
  R* const sums = lease->sums.of(std::min(round, c.n_sets) * parts * size);
  for (int64_t first = 0; first < c.n_sets; first += round) {
    const int64_t sets = std::min(round, c.n_sets - first);
    loop(sets * parts, [&](int64_t k) {
      static thread_local Scratch<R> scratch;
      const int64_t set = first + k / parts, part = k % parts, begin = set * c.per_set;
      R* const mine = sums + k * size;
      std::fill(mine, mine + size, R(0));
      for (int64_t b = part * c.per_set / parts; b < (part + 1) * c.per_set / parts; ++b)
        backward(problems[set], sample(c, begin + b), scratch, layout.sums(mine));
      finish(problems[set], layout.sums(mine));
    });
    loop(sets * turns, [&](int64_t k) {
      const int64_t set = k / turns, begin = k % turns * kRows, end = std::min(begin + kRows, rows);
      R* const total = sums + set * parts * size;
      for (int64_t part = 1; part < parts; ++part) {
        const R* more = total + part * size;
        for (int64_t x = begin * layout.padded; x < end * layout.padded; ++x) total[x] += more[x];
      }
      for (int64_t row = begin; row < end; ++row) {
        const R* from = total + row * layout.padded;
        if (R* const to = layout.result(c, first + set, row)) std::copy(from, from + c.n, to);
      }
    });
    if (c.positions.dims) {
      loop(2 * sets, [&](int64_t k) {
        static thread_local Scratch<R> scratch;
        const int64_t set = first + k / 2;
        const Sums<R> total = layout.sums(sums + k / 2 * parts * size);
        if (k % 2 == 0)
          to_positions(problems[set].in, total.dd_in, c.positions.d_in, set, c.positions.dims, layout, scratch);
        else if (c.recurrent)
          to_positions(problems[set].rec, total.dd_rec, c.positions.d_rec, set, c.positions.dims, layout, scratch);
      });
    }
  }
}

}  // namespace

template <class R>
Kernels<R> kernels() {
  return {forward_call<R>, backward_call<R>};
}

template Kernels<float> kernels<float>();
template Kernels<double> kernels<double>();

}  // namespace RANVIER_NS
}  // namespace ranvier
