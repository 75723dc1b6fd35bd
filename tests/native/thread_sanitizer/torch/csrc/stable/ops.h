// What csrc/cpu/parallel.h takes from PyTorch, on threads that ThreadSanitizer follows: it would
// not see that the threads of an OpenMP runtime wait for each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace torch::stable {

inline uint32_t num_threads = 1;

inline uint32_t get_num_threads() { return num_threads; }

// A thread for each of [begin, end), the first one is the caller's. None starts before all are
// there, or the first would do all of a small task; what they agree on orders no other access.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t, const F& f) {
  std::atomic<int64_t> missing{end - begin};
  const auto task = [&](int64_t k) {
    missing.fetch_sub(1, std::memory_order_relaxed);
    while (missing.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
    f(k, k + 1);
  };
  std::vector<std::thread> threads;
  for (int64_t k = begin + 1; k < end; ++k) threads.emplace_back(task, k);
  task(begin);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace torch::stable
