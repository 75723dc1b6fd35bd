// Finding the positives of every row (positives.cuh), by counting where labels are few enough, else
// in sorted ones. Labels are in falling order, unknown ones, below 0, last. Differences are rounded
// as the reference rounds them, and rounding keeps order.
#pragma once

#include "panel.cuh"

namespace spcl::cuda {

// Sorting takes many launches, counting takes one, and N^2 comparisons.
constexpr int64_t kMostCounted = 8192;

// -1 where a label is unknown.
__device__ inline int64_t key_of(int64_t label) { return label < 0 ? -1 : label; }
__device__ inline double key_of(double label) { return label >= 0 && label < kInf ? label : -1; }

template <class Key>
__device__ inline bool is_before(Key other, Key key, Key window) {
  return other - key > window;
}
template <class Key>
__device__ inline bool is_behind(Key other, Key key, Key window) {
  return other < 0 || key - other > window;
}

__device__ inline int2 range_of(int begin, int end) {
  return end > begin ? int2{begin, end} : int2{0, 0};
}
__device__ inline int64_t count_of(int2 range, int64_t is_square) {
  return range.y > range.x ? range.y - range.x - is_square : 0;
}

// A warp counts for one row, or for the rank of one column. num_pos counts a row's positives.
template <class Key>
__global__ __launch_bounds__(kThreads) void count_ranges(
    const Key* __restrict__ labels, int64_t num_rows, const Key* __restrict__ col_labels,
    int64_t num_cols, Key window, int64_t is_square, int2* __restrict__ ranges,
    int64_t* __restrict__ num_pos, int* __restrict__ ranks) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarps + warp();
  if (own >= num_rows + num_cols) return;
  const int64_t col = own - num_rows;
  const Key key = key_of(col < 0 ? labels[own] : col_labels[col]);
  int before = 0, behind = 0;
  for (int64_t j = lane(); j < num_cols; j += kWarpSize) {
    const Key other = key_of(col_labels[j]);
    if (col < 0) {
      before += is_before(other, key, window);
      behind += is_behind(other, key, window);
    } else {
      before += other > key || (other == key && j < col);
    }
  }
  before = reduce_warp(before, Add());
  behind = reduce_warp(behind, Add());
  if (lane() > 0) return;
  if (col >= 0) {
    ranks[col] = before;
    return;
  }
  const int2 range = key < 0 ? int2{0, 0} : range_of(before, static_cast<int>(num_cols) - behind);
  ranges[own] = range;
  num_pos[own] = count_of(range, is_square);
}

// First k in [0, size) for which `stops(sorted[k])`, which stays true from there on.
template <class Key, class Stops>
__device__ inline int first_of(const Key* sorted, int size, Stops stops) {
  int low = 0, high = size;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (stops(key_of(sorted[middle]))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// As count_ranges, from the falling labels of the columns and their order (num_cols,).
template <class Key>
__global__ __launch_bounds__(kThreads) void find_ranges(
    const Key* __restrict__ labels, int64_t num_rows, const Key* __restrict__ sorted,
    const int64_t* __restrict__ order, int64_t num_cols, Key window, int64_t is_square,
    int2* __restrict__ ranges, int64_t* __restrict__ num_pos, int* __restrict__ ranks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < num_cols) ranks[order[i]] = static_cast<int>(i);
  if (i >= num_rows) return;
  const Key key = key_of(labels[i]);
  int2 range = {0, 0};
  if (key >= 0) {
    const int size = static_cast<int>(num_cols);
    const int begin =
        first_of(sorted, size, [&](Key other) { return !is_before(other, key, window); });
    range = range_of(
        begin, first_of(sorted, size, [&](Key other) { return is_behind(other, key, window); }));
  }
  ranges[i] = range;
  num_pos[i] = count_of(range, is_square);
}

}  // namespace spcl::cuda
