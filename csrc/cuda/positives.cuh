// Which pairs are positive: columns in order of their labels hold the positives of a row in one
// interval. Row i has the columns whose rank, their place in that order, lies in range_i = [x, y),
// itself among them where rows are columns. positive_ranges.cuh finds both.
#pragma once

#include "panel.cuh"

namespace spcl::cuda {

__device__ inline bool is_positive(int2 range, int rank) {
  return static_cast<unsigned>(rank - range.x) < static_cast<unsigned>(range.y - range.x);
}

// The ranges of the rows of a warp: lane l has that of row l / kLanesOfRow.
__device__ inline int2 load_range(const int2* ranges, const Panel& panel,
                                  const Fragment& fragment) {
  const int r = lane() / kLanesOfRow;
  return r < fragment.rows ? ranges[panel.row0 + fragment.row + r] : int2{0, 0};
}

__device__ inline int2 range_of_row(int2 range, int r) {
  return {__shfl_sync(kAllLanes, range.x, r * kLanesOfRow),
          __shfl_sync(kAllLanes, range.y, r * kLanesOfRow)};
}

}  // namespace spcl::cuda
