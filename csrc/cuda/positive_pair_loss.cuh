// positive_pair_loss on panels; the mathematics is in spcl_fast/ops/positive_pair_loss.py.
//
// The pairs of a panel that are positive are picked by rank (positives.cuh), for equal labels and
// for windows alike. A pair of a square matrix serves both of its rows.
#pragma once

#include "positives.cuh"
#include "store.cuh"

namespace spcl::cuda {

// Over positives: sums of w l and of w.
struct alignas(8) PairSum {
  float loss, weight;
};
struct alignas(16) PairTotal {
  double loss, weight;
};

// The losses and weights of a tile, summed for its rows and, of a square matrix, for its columns.
// rows: (tiles of columns, num_rows), cols: (tiles of rows, num_cols); columns before
// panel.first_col are left as they are. lse, ranges, ranks of the whole matrix; lse and ranks are
// padded. grid: (tiles of columns, tiles of rows).
__global__ __launch_bounds__(kThreads, 2) void sum_positive_pairs(
    const float* __restrict__ products, Panel panel, const float* __restrict__ scale,
    const float* __restrict__ lse, const int2* __restrict__ ranges, const int* __restrict__ ranks,
    const float* __restrict__ gamma, int64_t is_hard, PairSum* __restrict__ rows,
    PairSum* __restrict__ cols) {
  alignas(16) __shared__ ColumnParts parts;
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  const Scale to_similarity = {scale[0], scale[1]};
  const PairWeight weight(gamma[0], is_hard);
  const bool sums_cols =
      panel.is_square && (blockIdx.x + 1) * static_cast<int64_t>(kTileCols) > panel.first_col;

  const int own_row = lane() / kLanesOfRow;
  const float lse_i = own_row < fragment.rows ? lse[panel.row0 + fragment.row + own_row] : 0;
  const int2 range_i = load_range(ranges, panel, fragment);
  float x[kRowsOfWarp][kColsOfLane], lse_j[kColsOfLane] = {};
  int rank[kColsOfLane];
  load_columns<int, int4>(ranks, panel.col0 + fragment.col, fragment.cols > 0, rank);
  if (sums_cols) {
    load_columns<float, float4>(lse, panel.col0 + fragment.col, fragment.cols > 0, lse_j);
  }
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
    rows[blockIdx.x * panel.num_rows + row] = row_sum;
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
    cols[blockIdx.y * panel.num_cols + col] = col_sum;
  }
}

// Adds the parts (num_parts, stride) of `size` rows or columns to `total`, always in one order.
__global__ __launch_bounds__(kThreads) void merge_pair_sums(const PairSum* __restrict__ parts,
                                                            int64_t num_parts, int64_t stride,
                                                            int64_t size,
                                                            PairTotal* __restrict__ total) {
  __shared__ PairTotal of_warp[kWarps][kWarpSize];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane();
  PairTotal sum = {0, 0};
  if (i < size) {
    for (int64_t p = warp(); p < num_parts; p += kWarps) {
      const PairSum part = parts[p * stride + i];
      sum = {sum.loss + part.loss, sum.weight + part.weight};
    }
  }
  of_warp[warp()][lane()] = sum;
  __syncthreads();
  if (warp() > 0 || i >= size) return;
  sum = total[i];
  for (int w = 0; w < kWarps; ++w) {
    const PairTotal part = of_warp[w][lane()];
    sum = {sum.loss + part.loss, sum.weight + part.weight};
  }
  total[i] = sum;
}

__global__ __launch_bounds__(kThreads) void finish_pair_sums(const PairTotal* __restrict__ total,
                                                             const int64_t* __restrict__ num_pos,
                                                             int64_t size, float* __restrict__ loss,
                                                             float* __restrict__ weight_sum) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  const PairTotal sum = total[i];
  loss[i] = static_cast<float>(sum.loss / static_cast<double>(num_pos[i] > 0 ? num_pos[i] : 1));
  weight_sum[i] = static_cast<float>(sum.weight);
}

// Writes h_ij = c_i w_ij + c_j w_ji, of a rectangular matrix c_i w_ij, over positives, else 0, of
// row stride h_stride, which may be `products`; T is its storage. c = -dloss / |P| / tau, padded.
// grid: (tiles of columns, tiles of rows).
template <class T>
__global__ __launch_bounds__(kThreads, 2) void positive_gradient(
    const float* products, Panel panel, T* h, int64_t h_stride, const float* __restrict__ scale,
    const float* __restrict__ lse, const int2* __restrict__ ranges, const int* __restrict__ ranks,
    const float* __restrict__ c, const float* __restrict__ gamma, int64_t is_hard) {
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  if (fragment.rows == 0) return;  // a whole warp
  const Scale to_similarity = {scale[0], scale[1]};
  const PairWeight weight(gamma[0], is_hard);

  const int own_row = lane() / kLanesOfRow;
  const int64_t row = panel.row0 + fragment.row + (own_row < fragment.rows ? own_row : 0);
  const float lse_i = lse[row], own_c = c[row];
  const int2 range_i = load_range(ranges, panel, fragment);
  float x[kRowsOfWarp][kColsOfLane], lse_j[kColsOfLane] = {}, c_j[kColsOfLane] = {};
  int rank[kColsOfLane];
  load_columns<int, int4>(ranks, panel.col0 + fragment.col, fragment.cols > 0, rank);
  if (panel.is_square) {
    load_columns<float, float4>(lse, panel.col0 + fragment.col, fragment.cols > 0, lse_j);
    load_columns<float, float4>(c, panel.col0 + fragment.col, fragment.cols > 0, c_j);
  }
  load_products(products, panel, fragment, x);
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const int2 range = range_of_row(range_i, r);
    const float c_i = from_row(own_c, r), own_lse = from_row(lse_i, r);
#pragma unroll
    for (int k = 0; k < kColsOfLane; ++k) {
      const float sim = to_similarity(x[r][k]);
      float h_ij = c_i * weight(own_lse - sim);
      if (panel.is_square) h_ij += c_j[k] * weight(lse_j[k] - sim);
      x[r][k] = is_positive(range, rank[k]) ? h_ij : 0;
    }
    store_row(h, h_stride, fragment, r, x[r]);
  }
}

}  // namespace spcl::cuda
