// The sample kernels of the grid scheme for one instruction set: compiled once for each (RANVIER_NS names it), picked
// when loaded.
#include "grid_kernels.h"

#include "grid_sequence.h"
#include "positions_lanes.h"

namespace ranvier {
namespace RANVIER_NS {
namespace {

template <class R>
int32_t prepare(const GridCall<R>& c, int64_t set, int32_t* places_in, int32_t* places_rec, R* cells) {
  const R* neuron = c.neuron + set * kGridParameters * c.n;
  if (c.adex)
    prepare_cells<true>(neuron, c.n, c.dt, cells);
  else
    prepare_cells<false>(neuron, c.n, c.dt, cells);
  // a delay of T steps arrives outside of the run wherever it starts
  const int32_t most = static_cast<int32_t>(c.n_slots - 1 < c.n_steps ? c.n_slots - 1 : c.n_steps);
  const int32_t a = prepare_places(delays_in(c), set, c.dt, most, places_in);
  const int32_t b = c.recurrent ? prepare_places(delays_rec(c), set, c.dt, most, places_rec) : 0;
  return a > b ? a : b;
}

template <class R>
void forward_of(const GridCall<R>& c, const GridSet<R>& p, int64_t sample, int64_t n_real, R* memory, int32_t* fired) {
  if (c.adex)
    forward<true>(c, p, sample, n_real, memory, fired);
  else
    forward<false>(c, p, sample, n_real, memory, fired);
}

template <class R>
void backward_of(const GridCall<R>& c, const GridSet<R>& p, int64_t sample, int64_t n_real, const GridSums<R>& sums,
                 R* memory) {
  if (c.adex)
    backward<true>(c, p, sample, n_real, sums, memory);
  else
    backward<false>(c, p, sample, n_real, sums, memory);
}

template <class R>
void to_positions(const GridCall<R>& c, int64_t set, bool recurrent, const R* dd, R* memory) {
  const Delays<R> delays = recurrent ? delays_rec(c) : delays_in(c);
  DelayRows<R> rows;
  rows.take(delays, set, memory);
  R* const dx = recurrent ? c.positions.d_rec : c.positions.d_in;
  rows.back(dd, c.n, dx + set * (delays.sources + c.n) * delays.dims, memory + rows.size(c.n, delays.dims));
}

}  // namespace

template <class R>
GridKernels<R> grid_kernels() {
  return {prepare<R>, forward_of<R>, backward_of<R>, to_positions<R>};
}

template GridKernels<float> grid_kernels<float>();
template GridKernels<double> grid_kernels<double>();

}  // namespace RANVIER_NS
}  // namespace ranvier
