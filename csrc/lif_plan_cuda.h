// How the backward pass cuts the work of `gather`.
//
// A block takes kTile targets and up to `group` sources, whose sums it keeps in shared memory, through its share of the
// units: a unit is a sample and a `window` of a chunk's steps. Of each it fetches the adjoints that the window's events
// can reach, once: the targets of an event lie at different steps, so in global memory each of them costs a sector of
// its own for every event.
#pragma once
#include <cstddef>
#include <cstdint>

#include "lif_call.h"

namespace ranvier {
namespace lif {

constexpr int kTile = 8;                            // targets of a block: 128 bytes of adjoints a step
constexpr int kGatherWarps = 12;                    // warps of a block
constexpr int kOwners = kGatherWarps * 32 / kTile;  // groups of kTile lanes, each with events of its own
constexpr int kGatherBlocks = 264;                  // blocks aimed at: two for each multiprocessor of an H100

// An event as all lanes of its owner read it.
template <class R>
struct alignas(16) Sent {
  R offset;
  int32_t row, place, least;  // its step in the window; its source's sums; steps that it needs at least
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
  int32_t rows;                   // steps of adjoints in shared memory; 0: they are too many and stay where they are
  int32_t workers;                // blocks that share the units of a set
  size_t bytes;                   // shared memory of a block
};

// Bytes of shared memory for `group` sources and `rows` steps.
template <class R>
size_t gather_bytes(const Call<R>& c, int64_t group, int64_t rows) {
  const size_t adjoints = rows ? size_t(rows + 1) * kTile * 4 * sizeof(R) : 0;  // one row of zeros
  const size_t sums = size_t(group + kOwners) * kTile * (c.parameters ? 4 : 2) * sizeof(R);
  return adjoints + sums + size_t(kOwners) * (kTile + 1) * sizeof(Sent<R>);
}

// The plan of chunks of `chunk` steps on a GPU whose blocks may have `most` bytes of shared memory.
template <class R>
Plan plan_gather(const Call<R>& c, int32_t chunk, int32_t slots, size_t most) {
  Plan p{};
  p.sources = static_cast<int32_t>(c.n_inputs + (c.recurrent ? c.n : 0));
  p.tiles = static_cast<int32_t>((c.n + kTile - 1) / kTile);
  p.reach = slots > 2 ? slots - 1 : 1;
  double least = 0;
  auto consider = [&](int32_t groups, size_t bytes, double cost) {
    const int32_t group = (p.sources + groups - 1) / groups;
    const int64_t row = kTile * 4 * sizeof(R), fixed = gather_bytes(c, group, 0) + row;
    const int64_t room = (int64_t(bytes) - fixed) / row - p.reach;
    if (int64_t(bytes) < fixed || room < 16) return;
    const int32_t windows = static_cast<int32_t>((chunk + room - 1) / room), window = (chunk + windows - 1) / windows;
    cost *= groups * (window + p.reach) / double(window);
    if (p.rows && cost >= least) return;
    least = cost;
    p.group = group, p.groups = groups, p.window = window, p.windows = windows, p.rows = window + p.reach;
  };
  for (int32_t groups = 1; groups <= 64 && groups <= p.sources; groups *= 2) {
    consider(groups, most / 2 - 1024, 1);  // two blocks a multiprocessor: one computes while the other fetches
    consider(groups, most, 1.5);
  }
  // beyond that, fetching single adjoints is less work
  if (p.rows == 0 || least > 8) {
    p.rows = 0, p.window = chunk, p.windows = 1, p.group = p.sources, p.groups = 1;
    while (p.group > 1 && gather_bytes(c, p.group, 0) > most / 2 - 1024)
      ++p.groups, p.group = (p.sources + p.groups - 1) / p.groups;
  }
  p.bytes = gather_bytes(c, p.group, p.rows);
  const int64_t units = c.per_set * p.windows, others = int64_t(p.tiles) * p.groups * c.n_sets;
  const int64_t workers = others ? kGatherBlocks / others : 1;
  p.workers = static_cast<int32_t>(workers < 1 ? 1 : workers < units ? workers : units);
  return p;
}

}  // namespace lif
}  // namespace ranvier
