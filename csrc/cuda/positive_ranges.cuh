// Finding the positives of every row (positives.cuh).
//
// Labels are put in falling order, unknown ones, below 0, last.
#pragma once

#include "panel.cuh"

namespace spcl::cuda {

// First k in [0, size) for which `is_behind(sorted[k])`, which stays true from there on.
template <class Key, class Behind>
__device__ inline int first_behind(const Key* sorted, int size, Behind is_behind) {
  int low = 0, high = size;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (is_behind(sorted[middle])) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// keys: (num_rows,), below 0 if unknown; sorted: (num_cols,) falling. Differences are rounded as
// the reference rounds them, and rounding keeps order. num_pos counts a row's positives.
template <class Key>
__global__ __launch_bounds__(kThreads) void find_ranges(
    const Key* __restrict__ keys, int64_t num_rows, const Key* __restrict__ sorted,
    int64_t num_cols, Key window, int64_t is_square, int2* __restrict__ ranges,
    int64_t* __restrict__ num_pos) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_rows) return;
  const Key key = keys[i];
  int2 range = {0, 0};
  if (key >= 0) {
    const int size = static_cast<int>(num_cols);
    range.x = first_behind(sorted, size, [&](Key x) { return !(x - key > window); });
    range.y = first_behind(sorted, size, [&](Key x) { return x < 0 || key - x > window; });
  }
  ranges[i] = range;
  num_pos[i] = range.y > range.x ? range.y - range.x - is_square : 0;
}

// The rank of every column, from the order (num_cols,) of columns.
__global__ __launch_bounds__(kThreads) void find_ranks(const int64_t* __restrict__ order,
                                                       int64_t num_cols, int* __restrict__ ranks) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k < num_cols) ranks[order[k]] = static_cast<int>(k);
}

}  // namespace spcl::cuda
