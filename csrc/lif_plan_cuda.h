// How the backward pass cuts the work of `gather`.
//
// A block takes kTile targets and up to `group` sources, whose sums it keeps in shared memory, through its share of the
// units: a unit is a sample and a `window` of a chunk's steps. Of each it needs the adjoints that the window's events
// can reach: the targets of an event lie at different steps, so in global memory each of them costs a sector of its own
// for every event. They lie in a ring in shared memory: a block takes the windows of a sample in order, `run` of them,
// and fetches what is new in each, where there is room already during the window before.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "lif_call.h"

namespace ranvier {
namespace lif {

constexpr int kTile = 8;          // targets of a block: 128 bytes of adjoints a step
constexpr int kOwners = 96;       // most groups of kTile lanes of a block, each with events of its own
constexpr int kSlack = 2;         // steps that rounding may add to the longest delay
constexpr int kProcessors = 132;  // multiprocessors of an H100

// An event as all lanes of its owner read it.
template <class R>
struct alignas(16) Sent {
  R offset;
  int32_t row, place, least;  // its step's place in the ring; its source's sums; steps that it needs at least
};

constexpr int kSortWarps = 8;  // warps of a block of `sort_events`
constexpr size_t kSortShared = size_t(48) << 10;

// Shared memory of `sort_events`: places of each source for each of `warps` warps.
inline size_t sort_bytes(size_t sources, int warps) { return warps * (sources + 1) * sizeof(int32_t); }
inline bool sorts_in_shared(size_t sources) { return sort_bytes(sources, 1) <= kSortShared; }

struct Plan {
  int32_t sources, tiles, reach;  // M + N; blocks of targets; steps behind a window that its events reach
  int32_t group, groups;          // sources of a block
  int32_t window, windows;        // steps; of a chunk
  int32_t run, runs;              // windows that follow each other in a block; of a chunk
  int32_t rows;                   // steps of adjoints in shared memory; 0: they are too many and stay where they are
  int32_t owners;                 // groups of kTile lanes of a block
  int32_t workers;                // blocks that share the units of a set
  size_t bytes;                   // shared memory of a block
};

// Bytes of shared memory for `group` sources and `rows` steps.
template <class R>
size_t gather_bytes(const Call<R>& c, int64_t group, int64_t rows, int64_t owners) {
  const size_t adjoints = rows ? size_t(rows + 1) * kTile * 4 * sizeof(R) : 0;  // one row of zeros
  const size_t sums = size_t(group + owners) * kTile * (c.parameters ? 4 : 2) * sizeof(R);
  return adjoints + sums + size_t(owners) * (kTile + 1) * sizeof(Sent<R>);
}

// What the parts of the work take, in the time that the events of one step take; roughly.
constexpr double kUnitCost = 200;    // a window: its barrier, owners that wait for the one with most events
constexpr double kFetchCost = 0.1;   // a row fetched
constexpr double kWaitCost = 0.15;   // beside that, a row for which a block waits
constexpr double kStallCost = 20;    // if it waits for any
constexpr double kAloneCost = 1.15;  // times all of a block that has a multiprocessor for itself: its barriers stop all

// The plan of chunks of `chunk` steps on a GPU whose blocks may have `most` bytes of shared memory.
template <class R>
Plan plan_gather(const Call<R>& c, int32_t chunk, int32_t slots, size_t most) {
  Plan p{};
  p.sources = static_cast<int32_t>(c.n_inputs + (c.recurrent ? c.n : 0));
  p.tiles = static_cast<int32_t>((c.n + kTile - 1) / kTile);
  p.reach = slots > 2 ? slots - 1 : 1;
  const int32_t reach = p.reach + kSlack, per_set = static_cast<int32_t>(c.per_set);
  double least = 0;
  // blocks that share the units of a group of sources and a set, if `together` fit a multiprocessor
  auto share = [&](int32_t groups, int32_t together, int64_t units) {
    const int64_t others = int64_t(p.tiles) * groups * c.n_sets;
    const int64_t workers = others ? int64_t(kProcessors) * together / others : 1;
    return static_cast<int32_t>(std::max<int64_t>(std::min(workers, units), 1));
  };
  auto consider = [&](int32_t groups, int32_t together, int32_t owners) {
    const int32_t group = (p.sources + groups - 1) / groups;
    const int64_t bytes = together > 1 ? int64_t(most) / together - 1024 : int64_t(most);
    const int64_t row = kTile * 4 * sizeof(R), fixed = gather_bytes(c, group, 0, owners) + row;
    // no more rows than one unit and the next
    const int64_t rows = std::min((bytes - fixed) / row, 2 * int64_t(chunk + reach)), room = rows - reach;
    if (bytes < fixed || room < 16 || rows < owners) return;
    for (int32_t part = 2; part <= 8; ++part) {  // windows of the whole room, two thirds, half, ...
      const int32_t widest = static_cast<int32_t>(std::min(std::max<int64_t>(room * 2 / part, 16), int64_t(chunk)));
      const int32_t windows = (chunk + widest - 1) / widest, window = (chunk + windows - 1) / windows;
      for (int32_t runs = 1; runs <= windows; runs *= 2) {
        const int32_t run = (windows + runs - 1) / runs, cut = (windows + run - 1) / run;
        const int32_t workers = share(groups, together, int64_t(per_set) * cut);
        const double free = double(rows - window - reach);
        const double late = std::max(window - free, 0.0), first = std::max(window + reach - free, 0.0);
        const double unit = window + kUnitCost * owners / 48;
        const double wait = (late > 0 ? kStallCost + kWaitCost * late : 0) * (run - 1) +
                            (first > 0 ? kStallCost + kWaitCost * first : 0);
        // two blocks of a multiprocessor take turns: one computes while the other waits
        const double each = run * unit + kFetchCost * (run * window + reach) + wait * (together > 1 ? 1 : 2);
        const int64_t blocks = int64_t(p.tiles) * groups * c.n_sets * workers,
                      at_once = int64_t(kProcessors) * together;
        const double cost = double((int64_t(per_set) * cut + workers - 1) / workers) * each *
                            double((blocks + at_once - 1) / at_once) * (together > 1 ? together : kAloneCost);
        if (p.rows && cost >= least) continue;
        least = cost;
        p.group = group, p.groups = groups, p.window = window, p.windows = windows, p.run = run, p.runs = cut;
        p.rows = static_cast<int32_t>(rows), p.owners = owners, p.workers = workers;
      }
      if (widest == 16) break;
    }
  };
  constexpr bool kWide = sizeof(R) == 4;  // registers for kOwners, or for two blocks
  for (int32_t groups = 1; groups <= 64 && groups <= p.sources; groups *= 2) {
    consider(groups, 2, kOwners / 2);
    consider(groups, 1, kWide ? kOwners : kOwners / 2);
  }
  // beyond that, fetching single adjoints is less work
  const int64_t steps = int64_t(p.run) * p.window;
  if (p.rows == 0 || p.groups * (steps + reach) > 8 * steps) {
    p.rows = 0;
    p.window = chunk, p.windows = p.run = p.runs = 1, p.group = p.sources, p.groups = 1, p.owners = kOwners / 2;
    while (p.group > 1 && gather_bytes(c, p.group, 0, p.owners) > most / 2 - 1024)
      ++p.groups, p.group = (p.sources + p.groups - 1) / p.groups;
    p.workers = share(p.groups, 2, per_set);
  }
  p.bytes = gather_bytes(c, p.group, p.rows, p.owners);
  return p;
}

}  // namespace lif
}  // namespace ranvier
