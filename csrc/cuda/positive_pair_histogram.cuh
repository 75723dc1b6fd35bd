// positive_pair_histogram on panels; the contract is in spcl_fast/ops/positive_pair_histogram.py.
//
// Counts are integers, so the order in which atomics add them changes nothing.
#pragma once

#include "positives.cuh"
#include "scalar.cuh"

namespace spcl::cuda {

using Count = unsigned long long;

// NaN falls into the first bin, as what rounding made negative does.
__device__ inline int64_t bin_of(float pair_loss, float upper, int64_t bins) {
  const float place = pair_loss / upper * static_cast<float>(bins);
  if (!(place > 0)) return 0;
  return place < static_cast<float>(bins - 1) ? static_cast<int64_t>(place) : bins - 1;
}

// Adds the positive pairs of a panel to counts (bins,), for rows and, of a square matrix, for the
// columns from panel.first_col on. grid: (tiles of columns, tiles of rows).
__global__ __launch_bounds__(kThreads, 2) void count_positive_pairs(
    const float* __restrict__ products, Panel panel, Scalar tau, const float* __restrict__ lse,
    const int2* __restrict__ ranges, const int* __restrict__ ranks, Scalar upper, int64_t bins,
    Count* __restrict__ counts) {
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  if (fragment.rows == 0) return;  // a whole warp
  const Scale to_similarity = scale_of(tau);
  const float end = read(upper).high;
  const int64_t first_col = panel.col0 + fragment.col;
  const int own_row = lane() / kLanesOfRow;
  const float lse_i = own_row < fragment.rows ? lse[panel.row0 + fragment.row + own_row] : 0;
  const int2 range_i = load_range(ranges, panel, fragment);
  float x[kRowsOfWarp][kColsOfLane], lse_j[kColsOfLane] = {};
  int rank[kColsOfLane];
  load_columns<int, int4>(ranks, first_col, fragment.cols, rank);
  if (panel.is_square) load_columns<float, float4>(lse, first_col, fragment.cols, lse_j);
  load_products(products, panel, fragment, x);
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const int2 range = range_of_row(range_i, r);
    const float own_lse = from_row(lse_i, r);
#pragma unroll
    for (int c = 0; c < kColsOfLane; ++c) {
      if (!fragment.has(r, c) || !is_positive(range, rank[c])) continue;
      const float sim = to_similarity(x[r][c]);
      atomicAdd(&counts[bin_of(own_lse - sim, end, bins)], Count{1});
      if (panel.is_square && fragment.col + c >= panel.first_col) {
        atomicAdd(&counts[bin_of(lse_j[c] - sim, end, bins)], Count{1});
      }
    }
  }
}

}  // namespace spcl::cuda
