// Whether the events of a call can be used, for the CPU's handlers. Events become addresses and the walks take them in
// order, and those that were made without Events.from_times were never checked. Compiled once, for any processor.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "binding.h"
#include "parallel.h"

namespace ranvier {

// How many events of each sample lie inside of the run, where `inside` says so of a time: they come first, sorted, at
// times >= 0 and in channels below M. The first event that is none of this is refused.
template <class C, class Inside>
ffi::Error check_events(ffi::ThreadPool& pool, const C& c, std::vector<int64_t>& n_inside, Inside inside) {
  n_inside.resize(c.n_samples);
  parallel_for(pool, c.n_samples, [&](int64_t s) {
    const auto* time = c.time + s * c.n_events;
    const int32_t* channel = c.channel + s * c.n_events;
    int64_t n = 0;
    for (int64_t e = 0; e < c.n_events; ++e) {
      if (!inside(time[e])) continue;
      if (n < e || time[e] < 0 || (e > 0 && time[e] < time[e - 1]) || channel[e] < 0 || channel[e] >= c.n_inputs) {
        n_inside[s] = -1 - e;
        return;
      }
      ++n;
    }
    n_inside[s] = n;
  });
  for (int64_t s = 0; s < c.n_samples; ++s) {
    if (n_inside[s] >= 0) continue;
    const int64_t at = s * c.n_events - 1 - n_inside[s];
    return ffi::Error::InvalidArgument("simulate: got an event at " + std::to_string(c.time[at]) + " ms in channel " +
                                       std::to_string(c.channel[at]) +
                                       "; needs times >= 0 in order and channels below " + std::to_string(c.n_inputs) +
                                       "; make events with Events.from_times");
  }
  return ffi::Error::Success();
}

}  // namespace ranvier
