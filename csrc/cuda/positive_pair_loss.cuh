// The sums of a panel over positive pairs; the mathematics is in
// spcl_fast/ops/positive_pair_loss.py.
//
// The pairs that are positive are picked by rank (positives.cuh), for equal labels and for windows
// alike. A pair of a square matrix serves both of its rows.
#pragma once

#include "labels.cuh"
#include "merge.cuh"

namespace spcl::cuda {

// Over positives: sums of w l and of w.
struct alignas(8) PairSum {
  float loss, weight;
};
struct alignas(16) PairTotal {
  double loss, weight;
};

// The losses and weights of a tile, summed for its rows and, of a square matrix, for its columns.
// rows: (labels, tiles of columns, num_rows), cols: (labels, tiles of rows, num_cols); columns
// before panel.first_col are left as they are. lse of the whole matrix.
// grid: (tiles of columns, tiles of rows, labels).
__global__ __launch_bounds__(kThreads, 2) void sum_positive_pairs(
    const float* __restrict__ products, Panel panel, Scalar tau, const float* __restrict__ lse,
    Labels labels, PairSum* __restrict__ rows, PairSum* __restrict__ cols) {
  alignas(16) __shared__ ColumnParts parts;
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  const Scale to_similarity = scale_of(tau);
  const int64_t label = blockIdx.z, first_col = panel.col0 + fragment.col;
  const PairWeight weight(labels, label);
  const bool sums_cols =
      panel.is_square && (blockIdx.x + 1) * static_cast<int64_t>(kTileCols) > panel.first_col;

  const int own_row = lane() / kLanesOfRow;
  const float lse_i = own_row < fragment.rows ? lse[panel.row0 + fragment.row + own_row] : 0;
  const int2 range_i = load_range(labels.ranges + label * labels.range_stride, panel, fragment);
  float x[kRowsOfWarp][kColsOfLane], lse_j[kColsOfLane] = {};
  int rank[kColsOfLane];
  load_columns<int, int4>(labels.ranks + label * labels.rank_stride, first_col, fragment.cols,
                          rank);
  if (sums_cols) load_columns<float, float4>(lse, first_col, fragment.cols, lse_j);
  load_products(products, panel, fragment, x);

  float row_loss[kRowsOfWarp] = {}, row_weight[kRowsOfWarp] = {};
  float col_loss[kColsOfLane] = {}, col_weight[kColsOfLane] = {};
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const int2 range = range_of_row(range_i, r);
    const float own_lse = from_row(lse_i, r);
#pragma unroll
    for (int c = 0; c < kColsOfLane; ++c) {
      if (!fragment.has(r, c) || !is_positive(range, rank[c])) continue;
      const float sim = to_similarity(x[r][c]);
      const float w_ij = weight(own_lse - sim), w_ji = weight(lse_j[c] - sim);
      row_loss[r] += w_ij * (own_lse - sim);
      row_weight[r] += w_ij;
      col_loss[c] += w_ji * (lse_j[c] - sim);
      col_weight[c] += w_ji;
    }
  }

  const PairSum row_sum = {reduce_rows(row_loss, Add()), reduce_rows(row_weight, Add())};
  const int64_t row = fragment.row + own_row;
  if (lane() % kLanesOfRow == 0 && row < panel.num_rows) {
    rows[(label * gridDim.x + blockIdx.x) * panel.num_rows + row] = row_sum;
  }
  if (!sums_cols) return;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kTileCols + threadIdx.x;
  PairSum col_sum = {0, 0};
  put_columns(parts, col_loss);
  __syncthreads();
  if (threadIdx.x < kTileCols) col_sum.loss = reduce_columns(parts, threadIdx.x, Add());
  __syncthreads();
  put_columns(parts, col_weight);
  __syncthreads();
  if (threadIdx.x < kTileCols && col >= panel.first_col && col < panel.num_cols) {
    col_sum.weight = reduce_columns(parts, threadIdx.x, Add());
    cols[(label * gridDim.y + blockIdx.y) * panel.num_cols + col] = col_sum;
  }
}

// What merge_sums takes and leaves, of every label; of a rectangular matrix, rows alone.
struct PairSums {
  using Total = PairTotal;
  const PairSum *row_parts, *col_parts;
  Total* of_rows;  // (labels, num_rows)
  int64_t num_rows;
  const int64_t* num_pos[kMostLabels];
  float *loss[kMostLabels], *weight_sum[kMostLabels];

  static __device__ Total nothing() { return {0, 0}; }
  static __device__ Total total(PairSum part) { return {part.loss, part.weight}; }
  static __device__ Total add(Total a, Total b) { return {a.loss + b.loss, a.weight + b.weight}; }
  __device__ const PairSum* parts(bool is_row) const { return is_row ? row_parts : col_parts; }
  __device__ Total* totals(bool, int64_t label) const { return of_rows + label * num_rows; }
  __device__ void finish(bool, int64_t label, int64_t i, Total sum) const {
    const int64_t count = num_pos[label][i];
    loss[label][i] = static_cast<float>(sum.loss / static_cast<double>(count > 0 ? count : 1));
    weight_sum[label][i] = static_cast<float>(sum.weight);
  }
};

}  // namespace spcl::cuda
