// A loop over items on XLA's own thread pool: no second pool, and the threads a user asked XLA for are honoured. And
// the memory that its threads work in.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ranvier {

// The caller works too and waits only for items already claimed, never for a queued task to start, so a pool that is
// full cannot deadlock it. The shared state outlives late tasks, which find no item left.
template <class F>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t n, F&& f) {
  const int64_t workers = std::min<int64_t>(n, std::max<int64_t>(1, pool.num_threads()));
  if (workers <= 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    int64_t n;
    std::mutex mutex;
    std::condition_variable ready;
  };
  auto shared = std::make_shared<Shared>();
  shared->n = n;
  auto* body = &f;
  auto work = [shared, body] {
    int64_t mine = 0;
    for (int64_t i; (i = shared->next.fetch_add(1)) < shared->n;) {
      (*body)(i);
      ++mine;
    }
    if (mine && shared->done.fetch_add(mine) + mine == shared->n) {
      std::lock_guard<std::mutex> lock(shared->mutex);
      shared->ready.notify_all();
    }
  };
  for (int64_t w = 1; w < workers; ++w) pool.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->ready.wait(lock, [&] { return shared->done.load() == shared->n; });
}

// Memory of a thread, one piece for each purpose (a number of an enum), kept for the next call, which need not map it
// anew.
template <class X, auto kPurpose>
X* scratch(int64_t size) {
  static thread_local std::vector<X> memory;
  if (memory.size() < size_t(size)) memory.resize(size);
  return memory.data();
}

}  // namespace ranvier
