// One sample through the whole sequence of the grid scheme on the CPU, forward and backward.
//
// Shapes: M inputs, N neurons, T steps, E event slots; weights and delays (M, N) and (N, N), source first.
//
// What arrives in the coming steps lies in a window of rows, one row of N sums a step: the sum for the target k of a
// source is `place` numbers behind the row of the spike, place = delay N + k, so an arrival costs two loads and one
// read-modify-write. When the walk has come to the end of the window's spare rows, the rows that are still to come move
// back to its front: nothing wraps, and the window, a few delays long, stays in the cache. The backward walk keeps the
// adjoints of the arrivals in two such windows, and each event or spike of a source reads them once.
//
// No memory is taken here and no library function of C++ is used: this is compiled once for each instruction set.
#pragma once
#include <cmath>
#include <cstring>

#include "grid_kernels.h"
#include "grid_step.h"

// Compilers leave these loops, which they cannot vectorise, a turn at a time.
#if defined(__clang__)
#define RANVIER_UNROLL_8 _Pragma("clang loop unroll_count(8)")
#elif defined(__GNUC__)
#define RANVIER_UNROLL_8 _Pragma("GCC unroll 8")
#else
#define RANVIER_UNROLL_8
#endif

namespace ranvier {
namespace RANVIER_NS {
namespace {

// The constants of neuron k: rows of (12, N), so that loops over k load neighbours.
template <class R>
struct Cells {
  const R* rows;
  int64_t n;
  Cell<R> operator[](int64_t k) const {
    const R* x = rows + k;
    return {x[0],     x[n],     x[2 * n], x[3 * n], x[4 * n],  x[5 * n],
            x[6 * n], x[7 * n], x[8 * n], x[9 * n], x[10 * n], x[11 * n]};
  }
};

template <bool kAdex, class R>
void prepare_cells(const R* parameters, int64_t n, R dt, R* rows) {
  for (int64_t k = 0; k < n; ++k) {
    const Cell<R> c = make_cell<kAdex>(parameters, n, k, dt);
    const R x[kGridCellRows] = {c.dt, c.alpha, c.beta, c.v_th,    c.r_mem,   c.r_syn,
                                c.a,  c.b,     c.r_w,  c.delta_t, c.r_delta, c.z0};
    for (int j = 0; j < kGridCellRows; ++j) rows[j * n + k] = x[j];
  }
}

// delay N + k of each synapse; returns the longest delay in steps.
template <class R>
int32_t prepare_places(const Delays<R>& d, int64_t set, R dt, int32_t most, int32_t* places) {
  int32_t longest = 0;
  const int64_t n = d.n;
  for (int64_t j = 0; j < d.sources; ++j) {
    for (int64_t k = 0; k < n; ++k) {
      const int32_t steps = delay_steps(d.of(set, j, k), dt, most);
      longest = steps > longest ? steps : longest;
      places[j * n + k] = static_cast<int32_t>(steps * n + k);
    }
  }
  return longest;
}

template <class R>
void deliver(const R* __restrict w, const int32_t* __restrict place, int64_t n, R* __restrict row) {
  RANVIER_UNROLL_8
  for (int64_t k = 0; k < n; ++k) row[place[k]] += w[k];
}

// Adds the adjoints of a source's arrivals to its sums.
template <class R>
void collect(const int32_t* __restrict place, int64_t n, const R* __restrict weight_row, const R* __restrict time_row,
             R* __restrict weight_sum, R* __restrict time_sum) {
  RANVIER_UNROLL_8
  for (int64_t k = 0; k < n; ++k) {
    const int64_t at = place[k];
    weight_sum[k] += weight_row[at];
    time_sum[k] += time_row[at];
  }
}

// dL/d(time of the spike): the adjoints of its arrivals times the weights.
template <class R>
R collect_time(const R* __restrict w, const int32_t* __restrict place, int64_t n, const R* __restrict time_row) {
  R total = 0;
  for (int64_t k = 0; k < n; ++k) total += w[k] * time_row[place[k]];
  return total;
}

// Writes the sample's outputs; `memory` holds grid_forward_memory numbers, `fired` N.
template <bool kAdex, class R>
void forward(const GridCall<R>& c, const GridSet<R>& p, int64_t sample, int64_t n_real, R* memory, int32_t* fired) {
  const int64_t n = c.n, T = c.n_steps, room = c.capacity;
  const Cells<R> cells{p.cells, n};
  const R* v_th = p.cells + 3 * n;
  const R* time = c.time + sample * c.n_events;
  const int32_t* channel = c.channel + sample * c.n_events;
  R *count = c.count + sample * n, *first_offset = c.first_offset + sample * n;
  int32_t* first_step = c.first_step + sample * n;

  // state at the start of the step, and where that at its end goes
  R *v = memory, *i = memory + 2 * n, *z = memory + 4 * n;
  R *v_spare = v + n, *i_spare = i + n, *z_spare = z + n;
  R* window = memory + 6 * n;
  const int64_t ahead = p.longest + 1, spare = grid_spare_rows(p.longest);
  std::memset(window, 0, sizeof(R) * size_t((ahead + spare) * n));
  bool hot = false;
  for (int64_t k = 0; k < n; ++k) {
    v[k] = 0, i[k] = 0, z[k] = p.cells[11 * n + k];
    count[k] = 0, first_offset[k] = 0, first_step[k] = -1;
    hot |= R(0) >= v_th[k];
  }
  int64_t e = 0, base = 0;
  int32_t recorded = 0, lost = 0;
  for (int64_t t = 0; t < T; ++t) {
    if (t - base == spare) {
      std::memmove(window, window + spare * n, sizeof(R) * size_t(ahead * n));
      std::memset(window + ahead * n, 0, sizeof(R) * size_t(spare * n));
      base = t;
    }
    R* const row = window + (t - base) * n;
    for (; e < n_real && static_cast<int64_t>(time[e] / c.dt) == t; ++e) {
      const int64_t at = int64_t(channel[e]) * n;
      deliver(p.w_in + at, p.places_in + at, n, row);
    }
    int64_t n_fired = 0;
    if (hot) {
      for (int64_t k = 0; k < n; ++k)
        if (v[k] >= v_th[k] && !(c.single && first_step[k] >= 0)) fired[n_fired++] = static_cast<int32_t>(k);
      for (int64_t f = 0; c.recurrent && f < n_fired; ++f) {
        const int64_t at = int64_t(fired[f]) * n;
        deliver(p.w_rec + at, p.places_rec + at, n, row);
      }
      for (int64_t f = 0; f < n_fired; ++f) {
        const int32_t k = fired[f];
        count[k] += 1;
        if (first_step[k] < 0) first_step[k] = static_cast<int32_t>(t);
        if (recorded == room) {
          ++lost;
          continue;
        }
        const int64_t at = sample * room + recorded++;
        c.spike_step[at] = static_cast<int32_t>(t), c.spike_neuron[at] = k, c.spike_g[at] = 0;
        if (c.keep)
          slopes_of_spike<kAdex>(cells[k], v[k], i[k], z[k], row[k], c.spike_state[2 * at], c.spike_state[2 * at + 1]);
      }
    }
    const int64_t out = (sample * T + t) * n;
    R* const __restrict v_next = c.keep ? c.v_step + out : v_spare;
    R* const __restrict i_next = c.parameters ? c.i_step + out : i_spare;
    R* const __restrict z_next = kAdex && c.parameters ? c.z_step + out : z_spare;
    for (int64_t k = 0; k < n; ++k) advance<kAdex>(cells[k], v[k], i[k], z[k], row[k], v_next[k], i_next[k], z_next[k]);
    for (int64_t f = 0; f < n_fired; ++f) {
      const int32_t k = fired[f];
      v_next[k] = 0;
      if (kAdex) z_next[k] += cells[k].b;
    }
    if (c.trace) std::memcpy(c.v_trace + out, v_next, sizeof(R) * size_t(n));
    int over = 0;
    for (int64_t k = 0; k < n; ++k) over |= v_next[k] >= v_th[k];
    hot = over;
    // the buffers that held the old state are free now
    const auto turn = [](R*& now, R*& other, R* next) {
      if (next == other) other = now;
      now = next;
    };
    turn(v, v_spare, v_next), turn(i, i_spare, i_next);
    if (kAdex) turn(z, z_spare, z_next);
  }
  std::memcpy(c.v + sample * n, v, sizeof(R) * size_t(n));
  c.n_spikes[sample] = recorded, c.overflow[sample] = lost;
}

// Adds the sample's derivatives to `sums`, those of the delays without the factor w, and writes its dt_event; `memory`
// holds grid_backward_memory numbers.
template <bool kAdex, class R>
void backward(const GridCall<R>& c, const GridSet<R>& p, int64_t sample, int64_t n_real, const GridSums<R>& sums,
              R* memory) {
  const int64_t n = c.n, T = c.n_steps, first_record = sample * c.capacity;
  const Cells<R> cells{p.cells, n};
  const R *v_th = p.cells + 3 * n, weight = c.dt / c.unit;
  const R* time = c.time + sample * c.n_events;
  const int32_t* channel = c.channel + sample * c.n_events;
  const int32_t* first_step = c.first_step + sample * n;
  const R *ct_count = c.ct_count + sample * n, *ct_first = c.ct_first + sample * n;

  R *lv = memory, *li = memory + n, *lz = memory + 2 * n, *start_v = memory + 3 * n, *start_z = memory + 4 * n;
  R *term = memory + 5 * n, *hit = memory + 6 * n, *old_v = memory + 7 * n, *old_z = memory + 8 * n;
  const int64_t ahead = p.longest + 1, spare = grid_spare_rows(p.longest), rows = ahead + spare;
  R *weights = memory + 9 * n, *times = weights + rows * n;
  std::memset(weights, 0, sizeof(R) * size_t(2 * rows * n));
  for (int64_t k = 0; k < n; ++k) {
    lv[k] = c.ct_v[sample * n + k], li[k] = 0, lz[k] = 0;
    start_v[k] = 0, start_z[k] = p.cells[11 * n + k];
    term[k] = 0, hit[k] = 0;
  }
  for (int64_t e = 0; c.times && e < c.n_events; ++e) c.dt_event[sample * c.n_events + e] = 0;

  int64_t e = n_real, r = c.n_spikes[sample], base = T - spare;
  for (int64_t t = T - 1; t >= 0; --t) {
    if (t < base) {
      std::memmove(weights + spare * n, weights, sizeof(R) * size_t(ahead * n));
      std::memmove(times + spare * n, times, sizeof(R) * size_t(ahead * n));
      base -= spare;
    }
    R* const __restrict weight_row = weights + (t - base) * n, * const __restrict time_row = times + (t - base) * n;
    const R* v = t > 0 ? c.v_step + (sample * T + t - 1) * n : start_v;
    if (c.trace) {
      const R* ct = c.ct_trace + (sample * T + t) * n;
      for (int64_t k = 0; k < n; ++k) lv[k] += ct[k];
    }
    const int64_t end = r;
    while (r > 0 && c.spike_step[first_record + r - 1] == t) --r;
    for (int64_t f = r; f < end; ++f) hit[c.spike_neuron[first_record + f]] = 1;
    for (int64_t k = 0; k < n; ++k) {
      weight_row[k] = li[k];
      time_row[k] = slope_of_arrival(cells[k], li[k], lv[k], hit[k] != 0);
    }
    for (int64_t f = r; f < end; ++f) {
      const int64_t at = first_record + f;
      const int32_t k = c.spike_neuron[at];
      R g = c.ct_g[at] + (first_step[k] == t ? ct_first[k] : R(0));
      if (c.recurrent) {
        const int64_t row = int64_t(k) * n;
        collect(p.places_rec + row, n, weight_row, time_row, sums.dw_rec + row, sums.dd_rec + row);
        g += collect_time(p.w_rec + row, p.places_rec + row, n, time_row);
      }
      term[k] = spike_term<kAdex>(cells[k], lv[k], lz[k], g, c.spike_state[2 * at], c.spike_state[2 * at + 1]);
    }
    if (c.parameters) {
      const R* i = t > 0 ? c.i_step + (sample * T + t - 1) * n : nullptr;
      const R* z = kAdex && t > 0 ? c.z_step + (sample * T + t - 1) * n : start_z;
      for (int64_t k = 0; k < n; ++k) {
        const bool silent = c.single && first_step[k] >= 0 && first_step[k] < t;
        const R count = silent ? R(0) : ct_count[k] * surrogate(v[k], v_th[k], weight);
        R g[kGridParameters] = {};
        add_parameters<kAdex>(cells[k], v[k], i ? i[k] : R(0), z[k], lv[k], li[k], lz[k], hit[k] != 0, term[k], count,
                              g);
        for (int j = 0; j < kGridParameters; ++j) sums.d_neuron[j * n + k] += g[j];
      }
    }
    std::memcpy(old_v, lv, sizeof(R) * size_t(n));
    if (kAdex) std::memcpy(old_z, lz, sizeof(R) * size_t(n));
    for (int64_t k = 0; k < n; ++k) retreat<kAdex>(cells[k], v[k], lv[k], li[k], lz[k]);
    for (int64_t f = r; f < end; ++f) {
      const int32_t k = c.spike_neuron[first_record + f];
      lv[k] = old_v[k], li[k] = weight_row[k], lz[k] = old_z[k];
      retreat_fired<kAdex>(cells[k], term[k], lv[k], li[k], lz[k]);
      hit[k] = 0;
    }
    for (int64_t k = 0; k < n; ++k) {
      const bool silent = c.single && first_step[k] >= 0 && first_step[k] < t;
      lv[k] += (silent ? R(0) : ct_count[k]) * surrogate(v[k], v_th[k], weight);
    }
    for (; e > 0 && static_cast<int64_t>(time[e - 1] / c.dt) == t; --e) {
      const int64_t at = int64_t(channel[e - 1]) * n;
      collect(p.places_in + at, n, weight_row, time_row, sums.dw_in + at, sums.dd_in + at);
      if (c.times) c.dt_event[sample * c.n_events + e - 1] = collect_time(p.w_in + at, p.places_in + at, n, time_row);
    }
  }
  for (int64_t k = 0; kAdex && c.parameters && k < n; ++k) sums.d_neuron[kGridZ0 * n + k] += lz[k];
}

}  // namespace
}  // namespace RANVIER_NS
}  // namespace ranvier
