// Tasks on PyTorch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <exception>

namespace spcl {

// Calls f(first, last) on parts of [begin, end), each at least `grain` long. What a part throws is
// thrown here: the stable ABI would make another error of it.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  std::atomic_flag has_failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      f(first, last);
    } catch (...) {
      if (!has_failed.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace spcl
