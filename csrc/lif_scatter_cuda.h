// Forward: input events into the buckets.
//
// A block takes all events of a sample to kLanes neurons. The steps that they can reach lie in shared memory, a ring of
// `rows` steps. Its warps take batches of events in turn: what arrives they work out side by side, but they add it to
// the ring one batch after another, the turn passed on from warp to warp, so each sum has the order of the events. A
// warp writes out the steps that its batch has passed, after it has passed on the turn wherever the ring has room.
#pragma once
#include "lif_work_cuda.h"

namespace ranvier {
namespace lif {

constexpr int kStage = 128;       // threads of `scatter_far`, and events that it stages at a time
constexpr int kScatterWarps = 8;  // warps that share a ring; named barriers allow 15
constexpr int kRoom = 32;         // steps that a ring holds, where there is room, beside those within reach
// Blocks that a processor should have room for, by their registers.
template <class R>
constexpr int kScatterBlocks = sizeof(R) == 4 ? 3 : 2;
template <class R>
constexpr int kBatch = sizeof(R) == 4 ? 8 : 4;  // events of a lane whose synapses are fetched together

// How arrivals are worked out: `kSame` where all neurons have the same time constants and short steps, with
// exponentials that are products of one of the event and one of the synapse; `kNear` where steps are short.
enum class Arrivals { kSame, kNear, kFar };

// A synapse of `kSame`: with o its offset, weight exp(o / tau_syn) and y = q(-o).
template <class R>
struct alignas(4 * sizeof(R)) Folded {
  R weight, offset, y;
  int32_t step;
};
static_assert(sizeof(Folded<float>) == sizeof(Synapse<float>) && sizeof(Folded<double>) == sizeof(Synapse<double>));

// Events of a warp in shared memory, in the order of their batches.
template <class R>
struct Stage {
  // offset; with u the time from the event to the end of its step exp(-u / tau_syn), q(u), exp(c u)
  Four<R> form[kWarp];
  // the row of its step in the ring [bytes], and how many steps from there the event can go: 0 if it cannot be used
  struct alignas(8) Place {
    int32_t first, reach;
  } place[kWarp];
  // synapses before its channel's; in each batch those of a group of lanes together
  alignas(16) uint32_t source[kWarp];
  int32_t step[kWarp];
  // of a batch: the step of the event before it, of its last, and of the last of the warp's next batch
  int32_t bounds[kWarp];
  int32_t rows[kWarp];  // of `bounds` in the ring [bytes]
  unsigned ends;        // events so late in their step that an arrival may fall two steps further than its delay says
  Four<R> step_form;    // exp(-dt / tau_syn), q(dt), exp(c dt), 1 / tau_syn
  R c;
  // what comes next, as it lies in the call
  R time[kWarp], bound[kWarp];
  int32_t number[kWarp];
  uint64_t turn;  // the barrier at which this warp waits
};

// An arrival: address of its place in the ring, and what it adds.
template <class R>
struct Arrival {
  uint32_t place;
  R a, b, c;
};
// Asks for an arrival here: a compiler that has it worked out later makes the other warps wait for that.
__device__ __forceinline__ void settle(Arrival<float>& x) {
  asm volatile("" : "+r"(x.place), "+f"(x.a), "+f"(x.b), "+f"(x.c));
}
__device__ __forceinline__ void settle(Arrival<double>& x) {
  asm volatile("" : "+r"(x.place), "+d"(x.a), "+d"(x.b), "+d"(x.c));
}
__device__ __forceinline__ void settle(int32_t& x) { asm volatile("" : "+r"(x)); }
// A sum that is not made one with the product before it: the same bits wherever it stands.
__device__ __forceinline__ float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double sum(double a, double b) { return __dadd_rn(a, b); }
// A number that the compiler does not know: what follows from it is neither kept in registers from batch to batch nor
// taken apart.
__device__ __forceinline__ int32_t unknown(int32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}
template <class T>
__device__ __forceinline__ T* unknown(T* x) {
  asm volatile("" : "+l"(x));
  return x;
}
// x modulo size, for x < 2 size.
__device__ __forceinline__ int32_t wrap(int32_t x, int32_t size) {
  return static_cast<int32_t>(min(static_cast<uint32_t>(x), static_cast<uint32_t>(x - size)));
}

// Whether the neurons of a set are `kSame`. All threads of a warp call it.
template <class R>
__device__ __forceinline__ bool same_for_all(const Work<R>& w, int64_t set) {
  return w.differ[set] == 0 && near_for_all(w.membranes[set * w.c.n], w.c.dt, 1);
}

// Turns the synapses of the inputs into those of `kSame`, where that is what `scatter` will read.
template <class R>
__global__ void fold(Work<R> w) {
  const Call<R>& c = w.c;
  const int64_t set = blockIdx.x, size = c.n_inputs * c.n;
  if (!same_for_all(w, set)) return;
  const Membrane<R> m = w.membranes[set * c.n];
  for (int64_t x = blockIdx.y * int64_t(blockDim.x) + threadIdx.x; x < size; x += gridDim.y * int64_t(blockDim.x)) {
    Synapse<R>* place = w.in + set * size + x;
    const Synapse<R> synapse = *place;
    R grow, y;
    arrive_as<true>(m, -synapse.offset, grow, y);
    *reinterpret_cast<Folded<R>*>(place) = {synapse.weight * grow, synapse.offset, y, synapse.step};
  }
}

__device__ __forceinline__ Folded<float> load(const Folded<float>* place) {
  const float4 x = __ldg(reinterpret_cast<const float4*>(place));
  return {x.x, x.y, x.z, __float_as_int(x.w)};
}
__device__ __forceinline__ Folded<double> load(const Folded<double>* place) {
  const double2 x = __ldg(reinterpret_cast<const double2*>(place));
  return {x.x, x.y, __ldg(&place->y), __ldg(&place->step)};
}

// Shared memory by addresses that are worked out before they are needed.
__device__ __forceinline__ uint32_t address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}
__device__ __forceinline__ void read(uint32_t place, float& x) {
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(place) : "memory");
}
__device__ __forceinline__ void read(uint32_t place, double& x) {
  asm volatile("ld.shared.f64 %0, [%1];" : "=d"(x) : "r"(place) : "memory");
}
__device__ __forceinline__ void write(uint32_t place, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(place), "f"(x) : "memory");
}
__device__ __forceinline__ void write(uint32_t place, double x) {
  asm volatile("st.shared.f64 [%0], %1;" ::"r"(place), "d"(x) : "memory");
}
__device__ __forceinline__ void put(Four<float>* place, const Four<float>& x) {
  __stcg(reinterpret_cast<float4*>(place), float4{x.a, x.b, x.c, x.d});
}
__device__ __forceinline__ void put(Four<double>* place, const Four<double>& x) {
  __stcg(reinterpret_cast<double2*>(place), double2{x.a, x.b});
  __stcg(reinterpret_cast<double2*>(place) + 1, double2{x.c, x.d});
}

// A warp's turn: all lanes of the warp before it give it, all of its own wait for it. `parity` goes 0, 1, 0, ... from
// one turn of a warp to its next. Both order what the two warps do to shared memory. (Named barriers, whose
// `bar.arrive` does the same, are not understood by racecheck.)
__device__ __forceinline__ void open_turn(uint64_t* turn) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address(turn)), "r"(kWarp) : "memory");
}
__device__ __forceinline__ void await_turn(uint32_t turn, int32_t parity) {
#if __CUDA_ARCH__ >= 900  // where the processor itself can wait for a while
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
      "@!p bra again; }" ::"r"(turn),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.test_wait.parity.shared.b64 p, [%0], %1;\n"
      "@!p bra again; }" ::"r"(turn),
      "r"(parity)
      : "memory");
#endif
}
__device__ __forceinline__ void give_turn(uint32_t turn) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(turn) : "memory");
}

// What the warps of a block read now and then, in shared memory rather than in registers: the events and steps of the
// chunk, the slot of its first step in the circle, and 1 / rows.
struct Span {
  int32_t begin, end, t0, t1, slot0;
  float per_row;
};

// A warp of `scatter`. Where a ring has fewer than 32 columns the lanes are groups that take an event each.
template <class R, int kLanes>
struct Scatter {
  static constexpr int kGroups = kWarp / kLanes;
  static constexpr int kEach = kBatch<R>;          // events of a lane in a batch
  static constexpr int kEvents = kEach * kGroups;  // events of a batch
  static constexpr int kTurns = kWarp / kEvents;   // batches that a warp stages at a time
  // bytes from one sum of a bucket to the next in the ring, and of a row of it
  static constexpr int32_t kColumn = kLanes * sizeof(R), kRow = 3 * kColumn;

  const Call<R>& c;
  const Membrane<R> m;
  const Synapse<R>* synapses;  // (M, N) of this neuron
  char* buckets;               // (circle, N) of this neuron
  uint32_t ring;               // (rows, 3, kLanes), of this neuron
  Stage<R>& staged;            // of this warp
  const Span& span;
  int32_t slots, rows, circle, warp, group;
  bool mine;

  // Row of step t in the ring [bytes].
  __device__ __forceinline__ int32_t row_of(int32_t t) const {
    // to rounding, which is at most one round off
    int32_t x = (t - span.t0) - static_cast<int32_t>(static_cast<float>(t - span.t0) * span.per_row) * rows;
    if (x < 0) x += rows;
    return wrap(x, rows) * kRow;
  }
  static __device__ __forceinline__ Four<R> read_ring(uint32_t at) {
    Four<R> x;
    read(at, x.a), read(at + kColumn, x.b), read(at + 2 * kColumn, x.c), x.d = 0;
    return x;
  }
  static __device__ __forceinline__ void write_ring(uint32_t at, const Four<R>& x) {
    write(at, x.a), write(at + kColumn, x.b), write(at + 2 * kColumn, x.c);
  }
  // Bucket of step t, at most `circle` steps behind span.t0.
  __device__ __forceinline__ Four<R>* bucket(int32_t slot) const {
    return reinterpret_cast<Four<R>*>(buckets + slot * (c.n * int64_t(sizeof(Four<R>))));
  }
  __device__ __forceinline__ int32_t slot_of(int32_t t) const { return wrap(span.slot0 + (t - span.t0), circle); }
  // Step of an event, or the first or last of the chunk for one outside.
  __device__ __forceinline__ int32_t step_of(R at, R& offset, bool& inside) const {
    int32_t step;
    split_time(at, c.dt, step, offset);
    inside = step >= span.t0 && step < span.t1;
    return max(span.t0, min(step, span.t1 - 1));
  }

  // Writes out steps [from, until) and clears their rows, of which `row` is the first.
  __device__ __forceinline__ void write_out(int32_t from, int32_t until, int32_t row) const {
    const int32_t line = static_cast<int32_t>(c.n) * static_cast<int32_t>(sizeof(Four<R>));
    int32_t slot = wrap(slot_of(from) + group, circle);
    row = wrap(row + group * kRow, rows * kRow);
    RANVIER_ROLLED
    for (int32_t t = from + group; t < until; t += kGroups) {
      Four<R> x{0, 0, 0, 0};
      // the ring once around and no further: there other lanes have yet to clear it
      if (kGroups == 1 || t - from < rows) {
        x = read_ring(ring + row);
        write_ring(ring + row, {0, 0, 0, 0});
      }
      if (mine) put(reinterpret_cast<Four<R>*>(buckets + int64_t(slot) * line), x);
      row = wrap(row + kGroups * kRow, rows * kRow);
      slot = wrap(slot + kGroups, circle);
    }
  }
  static __device__ __forceinline__ Four<R> sums(const Four<R>& a, const Arrival<R>& x) {
    return {sum(a.a, x.a), sum(a.b, x.b), sum(a.c, x.c), 0};
  }
  __device__ __forceinline__ void add(const Arrival<R>& x) const { write_ring(x.place, sums(read_ring(x.place), x)); }
  // One after the other, but with the loads of both together.
  __device__ __forceinline__ void add(const Arrival<R>& x, const Arrival<R>& y) const {
    Four<R> a = read_ring(x.place), b = read_ring(y.place);
    a = sums(a, x);
    const bool same = x.place == y.place;
    b.a = same ? a.a : b.a, b.b = same ? a.b : b.b, b.c = same ? a.c : b.c;
    write_ring(x.place, a), write_ring(y.place, sums(b, y));
  }
  // In `rounds` and one more: first those that are first at their place, then those that are second.
  __device__ __forceinline__ void add_in_order(const Arrival<R>& x, unsigned rank, unsigned rounds) const {
    if (rank == 0) add(x);
    __syncwarp();
    RANVIER_ROLLED
    for (unsigned round = 1; round <= rounds; ++round) {
      if (rank == round) add(x);
      __syncwarp();
    }
  }
  __device__ __forceinline__ void sync_groups() const {
    if (kGroups > 1) __syncwarp();
  }

  // A lane's event of this warp's batches i to i + kTurns - 1.
  __device__ __forceinline__ int32_t event_of(int32_t i, int32_t lane) const {
    return span.begin + ((i + lane / kEvents) * kScatterWarps + warp) * kEvents + lane % kEvents;
  }
  // And the event that bounds batch i + lane % kTurns: lane / kTurns says which of `bounds`.
  __device__ __forceinline__ int32_t bound_of(int32_t i, int32_t lane) const {
    const int32_t which = lane / kTurns, batch = (i + lane % kTurns + (which == 2)) * kScatterWarps + warp;
    return span.begin + (which ? batch + 1 : batch) * kEvents - 1;
  }
  // Fetches them early.
  __device__ __forceinline__ void order(int32_t i) const {
    const int32_t lane = unknown(threadIdx.x % kWarp);
    const int64_t first = blockIdx.x * c.n_events;
    const int32_t e = min(event_of(i, lane), span.end - 1), b = max(span.begin, min(bound_of(i, lane), span.end - 1));
    copy(&staged.time[lane], c.time + first + e);
    copy(&staged.bound[lane], c.time + first + b);
    copy(&staged.number[lane], c.channel + first + e);
    close_group();
  }
  template <bool kSame>
  __device__ __forceinline__ void stage(int32_t i) const {
    const int32_t lane = unknown(threadIdx.x % kWarp);
    arrived<0>();
    R offset, unused;
    bool inside, any;
    const R at = staged.time[lane];
    const int32_t step = step_of(at, offset, inside), channel = staged.number[lane];
    const bool usable = event_of(i, lane) < span.end && inside && at >= 0 && channel >= 0 && channel < c.n_inputs;
    if (!usable) offset = 0;
    Four<R> form{offset, R(0), R(0), R(0)};
    if (kSame) {
      const R rate = staged.step_form.d, grow = staged.c;
      ranvier::arrive<true>(c.dt - offset, rate, grow, form.b, form.c);
      form.d = 1 + grow * form.c;
    }
    const int32_t number = lane % kEvents;
    __syncwarp();
    staged.form[lane] = form;
    staged.place[lane] = {row_of(step), usable ? slots : 0};
    staged.source[lane - number + number % kGroups * kEach + number / kGroups] =
        usable ? static_cast<uint32_t>(channel) * static_cast<uint32_t>(c.n) : 0;
    staged.step[lane] = step;
    const int32_t bound = bound_of(i, lane) < span.begin ? span.t0 : step_of(staged.bound[lane], unused, any);
    staged.bounds[lane] = bound;
    staged.rows[lane] = row_of(bound);
    const unsigned ends = __ballot_sync(kAll, offset > R(0.99) * c.dt);
    if (lane == 0) staged.ends = ends;
    __syncwarp();
  }

  // What arrives of the staged events from number `first` on.
  template <Arrivals kArrivals, bool kTwo>
  __device__ __forceinline__ void arrive(int32_t first, Arrival<R> (&in)[kEach]) const {
    using Packed = std::conditional_t<kArrivals == Arrivals::kSame, Folded<R>, Synapse<R>>;
    const int32_t round = rows * kRow;
    const uint32_t behind = ring - round;
    const R dt = c.dt;
    Packed synapse[kEach];
    RANVIER_UNROLL
    for (int u = 0; u < kEach; ++u)
      synapse[u] = load(reinterpret_cast<const Packed*>(synapses) + staged.source[first + group * kEach + u]);
    const Four<R> full = staged.step_form;
    RANVIER_UNROLL
    for (int u = 0; u < kEach; ++u) {
      // `land` for an input, whose step is never moved
      const int32_t event = first + u * kGroups + group;
      const Four<R> form = staged.form[event];
      const auto place = staged.place[event];
      const Packed& s = synapse[u];
      const R x = form.a + s.offset;
      const bool one = x >= dt, two = kTwo && x >= 2 * dt;
      R decay, y;
      if constexpr (kArrivals == Arrivals::kSame) {
        decay = form.b, y = form.c + form.d * s.y;
        if (one) decay *= full.a, y = full.b + full.c * y;
        if (two) decay *= full.a, y = full.b + full.c * y;
      } else {
        arrive_as<kArrivals == Arrivals::kNear>(m, (two ? 3 * dt : one ? 2 * dt : dt) - x, decay, y);
      }
      const int32_t ahead = s.step + one + two;
      const bool reached = static_cast<uint32_t>(ahead) < static_cast<uint32_t>(place.reach);
      const int32_t row = place.first + (reached ? ahead : 0) * kRow;
      // the weight is chosen, not the product: else the exponential becomes a branch
      const R a = (reached ? s.weight : R(0)) * decay, b = a * y;
      in[u] = {row + (row < round ? ring : behind), a, b, b * y};
      settle(in[u]);
    }
  }

  // All batches of this warp.
  template <Arrivals kArrivals>
  __device__ __forceinline__ void take() const {
    const int32_t batches = (span.end - span.begin + kEvents - 1) / kEvents;
    const int32_t turns = (batches + kScatterWarps - 1) / kScatterWarps, room = rows - slots;
    const uint32_t successor = address(&(&staged - warp)[(warp + 1) % kScatterWarps].turn);
    constexpr bool kSame = kArrivals == Arrivals::kSame;
    if (kSame) {
      if (unknown(threadIdx.x % kWarp) == 0) {
        R decay, y;
        arrive_as<true>(m, c.dt, decay, y);
        staged.step_form = {decay, y, 1 + m.c * y, m.rate_syn}, staged.c = m.c;
      }
      __syncwarp();
    }
    order(0);
    RANVIER_ROLLED
    for (int32_t i = 0; i < turns; ++i) {
      const int32_t turn = i % kTurns, first = turn * kEvents;
      if (turn == 0) {
        stage<kSame>(i);
        if (i + kTurns < turns) order(i + kTurns);
      }
      Arrival<R> in[kEach];
      if (kSame && (staged.ends >> first & (kAll >> (kWarp - kEvents))) == 0)
        arrive<kArrivals, false>(first, in);
      else
        arrive<kArrivals, true>(first, in);
      // pairs of which two groups of lanes touch the same place; of each arrival, two bits, how many groups come before
      // this one there, and the most of all lanes
      unsigned clash = 0, ranks = 0, rounds = 0;
      if constexpr (kGroups > 1) {
        RANVIER_UNROLL
        for (int u = 0; u < kEach; u += 2) {
          bool hit = false;
          RANVIER_UNROLL
          for (int g = 1; g < kGroups; ++g) {
            const uint32_t p = __shfl_xor_sync(kAll, in[u].place, g * kLanes);
            const uint32_t q = __shfl_xor_sync(kAll, in[u + 1].place, g * kLanes);
            const bool later = (group ^ g) < group;
            if (later && p == in[u].place) ranks += 1u << 2 * u;
            if (later && q == in[u + 1].place) ranks += 1u << 2 * (u + 1);
            hit = hit || p == in[u].place || q == in[u + 1].place || p == in[u + 1].place;
          }
          if (__all_sync(kAll, !hit)) continue;
          clash |= 1u << u;
          RANVIER_UNROLL
          for (int x = u; x < u + 2; ++x) {
            const unsigned rank = ranks >> 2 * x & 3;
            rounds |= (__any_sync(kAll, rank > 0) + __any_sync(kAll, rank > 1) + __any_sync(kAll, rank > 2)) << 2 * x;
          }
        }
      }
      int32_t now = staged.bounds[turn], row = staged.rows[turn];
      const int32_t until = staged.bounds[kTurns + turn];
      // until this warp's next turn nobody comes as far as to meet the steps that are to be written out
      const bool later = staged.bounds[2 * kTurns + turn] - now <= room;
      // when the turn is passed on: 1 before the steps are written out, 2 after, 0 never; settled before it comes, as
      // nothing but the sums may keep it
      int32_t gives = i + 1 < turns || warp + 1 < kScatterWarps ? later ? 1 : 2 : 0;
      settle(gives);

      if (i || warp) await_turn(address(&staged.turn), (warp ? i : i - 1) & 1);
      if (until - now <= room) {
        RANVIER_UNROLL
        for (int u = 0; u < kEach; u += 2) {
          if (kGroups > 1 && clash >> u & 1)
            add_in_order(in[u], ranks >> 2 * u & 3, rounds >> 2 * u & 3),
                add_in_order(in[u + 1], ranks >> 2 * (u + 1) & 3, rounds >> 2 * (u + 1) & 3);
          else
            add(in[u], in[u + 1]);
          sync_groups();
        }
      } else {
        // a batch of so many steps that it would meet itself in the ring: steps are written out in between
        RANVIER_ROLLED
        for (int e = 0; e < kEvents; ++e) {
          const int32_t step = staged.step[first + e];
          write_out(now, step, row);
          sync_groups();
          now = step, row = staged.place[first + e].first;
          Arrival<R> x = in[0];
          RANVIER_UNROLL
          for (int u = 1; u < kEach; ++u)
            if (unknown(e / kGroups == u)) x = in[u];
          if (group == e % kGroups) add(x);
          sync_groups();
        }
      }
      if (gives == 1) give_turn(successor);
      write_out(now, until, row);
      if (gives == 2) give_turn(successor);
      sync_groups();
    }
  }
};

template <class R, int kLanes>
__global__ void __launch_bounds__(kScatterWarps* kWarp, kScatterBlocks<R>) scatter(Work<R> w, int32_t k, int32_t rows) {
  extern __shared__ char shared[];
  __shared__ Stage<R> staged[kScatterWarps];
  __shared__ Span span;
  const Call<R>& c = w.c;
  const int32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, n = static_cast<int32_t>(c.n);
  const int64_t s = blockIdx.x, j = blockIdx.y * int64_t(kLanes) + lane % kLanes, set = s / c.per_set;
  // lanes without a neuron go along with the first, in columns of their own
  const bool mine = j < n;
  const int64_t target = mine ? j : 0;
  const int32_t* segment = w.segment + s * (w.n_chunks + 1) + k;
  const int32_t last = static_cast<int32_t>(c.n_steps), t0 = k * w.chunk, t1 = min(t0 + w.chunk, last);
  constexpr int kGroups = kWarp / kLanes;
  const Scatter<R, kLanes> to{c,
                              w.membranes[set * n + target],
                              unknown(w.in + set * c.n_inputs * n + target),
                              unknown(reinterpret_cast<char*>(w.buckets + s * int64_t(w.circle) * n + target)),
                              address(shared) + lane % kLanes * static_cast<uint32_t>(sizeof(R)),
                              staged[warp],
                              span,
                              w.slots,
                              rows,
                              w.circle,
                              warp,
                              lane / kLanes,
                              mine};
  if (lane == 0) open_turn(&staged[warp].turn);
  if (threadIdx.x == 0)
    span = {segment[0], c.n_inputs ? segment[1] : segment[0],         t0,
            t1,         static_cast<int32_t>(int64_t(t0) % w.circle), 1 / static_cast<float>(rows)};
  __syncthreads();
  const int32_t share = warp * kGroups + to.group;  // of the rows of the ring
  constexpr int kFetch = 4, kShares = kScatterWarps * kGroups;
  if (span.begin == span.end) {
    // nothing comes in: what the chunk before left stays as it is
    for (int32_t t = t0 + (k ? w.slots : 0) + share; mine && t < t1 + w.slots && t < last; t += kShares)
      put(to.bucket(to.slot_of(t)), {0, 0, 0, 0});
    return;
  }
  RANVIER_ROLLED
  for (int32_t a = share; a < rows; a += kFetch * kShares) {
    Four<R> x[kFetch];
    RANVIER_UNROLL
    for (int q = 0; q < kFetch; ++q) {
      const int32_t b = a + q * kShares;
      x[q] = {0, 0, 0, 0};
      if (k && mine && b < w.slots && t0 + b < last) x[q] = fetch(to.bucket(to.slot_of(t0 + b)));
    }
    RANVIER_UNROLL
    for (int q = 0; q < kFetch; ++q)
      if (a + q * kShares < rows) to.write_ring(to.ring + (a + q * kShares) * to.kRow, x[q]);
  }
  __syncthreads();
  if (same_for_all(w, set))
    to.template take<Arrivals::kSame>();
  else if (near_for_all(to.m, c.dt, 1))
    to.template take<Arrivals::kNear>();
  else
    to.template take<Arrivals::kFar>();
  __syncthreads();
  R unused;
  bool inside;
  const int32_t now = to.step_of(c.time[s * c.n_events + span.end - 1], unused, inside);
  if (!mine) return;
  for (int32_t t = now + share; t < t1 + w.slots && t < last; t += kShares) {
    Four<R> x{0, 0, 0, 0};
    if (t < now + rows) x = to.read_ring(to.ring + to.row_of(t));
    put(to.bucket(to.slot_of(t)), x);
  }
}

// An input event, staged in shared memory.
template <class R>
struct Staged {
  R offset;
  int32_t step, channel;  // channel -1: none
};
template <class R>
__device__ __forceinline__ Staged<R> stage(const Call<R>& c, int64_t s, int32_t e, int32_t end) {
  Staged<R> x{R(0), 0, -1};
  if (e < end) {
    const R time = c.time[s * c.n_events + e];
    const int32_t channel = c.channel[s * c.n_events + e];
    split_time(time, c.dt, x.step, x.offset);
    if (time >= 0 && channel >= 0 && channel < c.n_inputs) x.channel = channel;
  }
  return x;
}

// The same for delays that are too long for shared memory: straight into the buckets, which `clear` has set to 0.
template <class R>
__global__ void __launch_bounds__(kStage) scatter_far(Work<R> w, int32_t k) {
  __shared__ Staged<R> staged[kStage];
  const Call<R>& c = w.c;
  const int64_t s = blockIdx.x, j = blockIdx.y * int64_t(kStage) + threadIdx.x, n = c.n, set = s / c.per_set;
  const bool mine = j < n;
  const Synapse<R>* synapses = w.in + set * c.n_inputs * n + (mine ? j : 0);
  const Membrane<R> m = membrane(c, set * n + (mine ? j : 0));
  Four<R>* buckets = w.buckets + s * int64_t(w.circle) * n + j;
  const int32_t begin = w.segment[s * (w.n_chunks + 1) + k], end = w.segment[s * (w.n_chunks + 1) + k + 1];
  const int32_t last = static_cast<int32_t>(c.n_steps), t0 = k * w.chunk;
  const int32_t base = static_cast<int32_t>(int64_t(t0) % w.circle) - t0;
  for (int32_t first = begin; first < end; first += kStage) {
    __syncthreads();
    staged[threadIdx.x] = stage(c, s, first + static_cast<int32_t>(threadIdx.x), end);
    __syncthreads();
    const int32_t here = mine ? min(kStage, end - first) : 0;
    for (int32_t q = 0; q < here; ++q) {
      const Staged<R> x = staged[q];
      if (x.channel < 0) continue;
      const Synapse<R> synapse = load(synapses + int64_t(x.channel) * n);
      int32_t ahead;
      R h, decay, reach;
      land(x.offset, synapse.step, synapse.offset, c.dt, 0, ahead, h);
      if (ahead >= w.slots || x.step + ahead >= last) continue;
      int32_t slot = base + x.step + ahead;
      if (slot >= w.circle) slot -= w.circle;
      arrive(m, h, decay, reach);
      const R ja = synapse.weight * decay, jb = ja * reach;
      add(buckets + int64_t(slot) * n, ja, jb, jb * reach);
    }
  }
}

// Sets the buckets of steps [from, to) to 0.
template <class R>
__global__ void clear(Work<R> w, int32_t from, int32_t to) {
  const int64_t s = blockIdx.x, row = w.c.n;
  for (int64_t x = blockIdx.y * int64_t(blockDim.x) + threadIdx.x; x < (to - from) * row;
       x += int64_t(gridDim.y) * blockDim.x) {
    const int64_t slot = (from + x / row) % w.circle;
    w.buckets[(s * w.circle + slot) * row + x % row] = Four<R>{0, 0, 0, 0};
  }
}

}  // namespace lif
}  // namespace ranvier
