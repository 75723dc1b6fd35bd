// pair_lse on panels; the mathematics is in spcl_fast/ops/pair_lse.py.
//
// Forward: sums of powers of two with a shift each, (shift, sum) = sum * 2^shift, for the rows and
// the columns of a tile; one power a pair serves both where the largest powers of its rows and
// columns are alike, as they are for rows of one length. merge_log_sums adds them up in one order.
// Backward: h_ij = a_i exp(s_ij - lse_i) + a_j exp(s_ij - lse_j) in place of the products.
#pragma once

#include "linear_labels.cuh"
#include "panel.cuh"
#include "store.cuh"

namespace spcl::cuda {

// Powers of a tile may share a shift as long as 2^-64 is the largest of any row or column: its own
// sum keeps all digits then, and what is lost is below 2^-62 of it.
constexpr float kMostSpread = 64;

struct alignas(8) LogSum {
  float shift, sum;
};
constexpr LogSum kNothing = {-kInf, 0};

__device__ inline LogSum log_sum(float shift, float sum) {
  return sum == 0 ? kNothing : LogSum{shift, sum};
}

__device__ inline LogSum merge(LogSum a, LogSum b) {
  if (b.sum == 0) return a;
  if (a.sum == 0) return b;
  const float sum = a.sum + b.sum;
  if (!(fabsf(sum) < kInf)) return {0, sum};  // inf * 0 below would turn inf into NaN
  const float top = fmaxf(a.shift, b.shift);
  return {top, a.sum * exp2_fast(a.shift - top) + b.sum * exp2_fast(b.shift - top)};
}

// A shift must be finite: a row can hold nothing, or infinities.
__device__ inline float usable_shift(float top) { return fabsf(top) < kInf ? top : 0; }

// rows: (tiles of columns, num_rows), cols: (tiles of rows, num_cols); columns before
// panel.first_col are left as they are. grid: (tiles of columns, tiles of rows).
__global__ __launch_bounds__(kThreads) void sum_exponentials(const float* __restrict__ products,
                                                             Panel panel,
                                                             const float* __restrict__ scale,
                                                             LogSum* __restrict__ rows,
                                                             LogSum* __restrict__ cols) {
  alignas(16) __shared__ ColumnParts parts;
  alignas(16) __shared__ float col_top[kTileCols];
  __shared__ float top_of[kWarps], low_of[2 * kWarps];
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  const Scale to_log2 = {scale[2], scale[3]};

  float x[kRowsOfWarp][kColsOfLane], by_row[kRowsOfWarp], by_col[kColsOfLane];
  load_products(products, panel, fragment, x);
#pragma unroll
  for (int c = 0; c < kColsOfLane; ++c) by_col[c] = -kInf;
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    by_row[r] = -kInf;
#pragma unroll
    for (int c = 0; c < kColsOfLane; ++c) {
      x[r][c] = fragment.has(r, c) ? to_log2(x[r][c]) : -kInf;
      by_row[r] = fmaxf(by_row[r], x[r][c]);
      by_col[c] = fmaxf(by_col[c], x[r][c]);
    }
  }

  const float row_top = reduce_rows(by_row, Max());
  put_columns(parts, by_col);
  const float top = reduce_warp(row_top, Max());
  const float low = reduce_warp(row_top > -kInf ? row_top : kInf, Min());
  if (lane() == 0) top_of[warp()] = top, low_of[warp()] = low;
  __syncthreads();
  float own_top = -kInf;
  if (threadIdx.x < kTileCols) {
    own_top = reduce_columns(parts, threadIdx.x, Max());
    col_top[threadIdx.x] = usable_shift(own_top);
  }
  const float low_col = reduce_warp(own_top > -kInf ? own_top : kInf, Min());
  if (lane() == 0) low_of[kWarps + warp()] = low_col;
  __syncthreads();
  float tile_top = top_of[0], tile_low = low_of[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) tile_top = fmaxf(tile_top, top_of[w]);
#pragma unroll
  for (int w = 1; w < 2 * kWarps; ++w) tile_low = fminf(tile_low, low_of[w]);
  const bool shares_powers = tile_top - tile_low <= kMostSpread;  // not if one is infinite
  const float tile_shift = usable_shift(tile_top);                // of no pairs at all, too
  const float row_shift = shares_powers ? tile_shift : usable_shift(row_top);
#pragma unroll
  for (int c = 0; c < kColsOfLane; ++c) by_col[c] = 0;
  if (shares_powers) {
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      by_row[r] = 0;
#pragma unroll
      for (int c = 0; c < kColsOfLane; ++c) {
        const float e = exp2_fast(x[r][c] - tile_shift);
        by_row[r] += e;
        by_col[c] += e;
      }
    }
  } else {
    float shift[kColsOfLane];
    load_columns<float, float4>(col_top, lane() * kColsOfLane, true, shift);
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
      const float own_shift = from_row(row_shift, r);
      by_row[r] = 0;
#pragma unroll
      for (int c = 0; c < kColsOfLane; ++c) {
        by_row[r] += exp2_fast(x[r][c] - own_shift);
        by_col[c] += exp2_fast(x[r][c] - shift[c]);
      }
    }
  }

  const float row_sum = reduce_rows(by_row, Add());
  const int64_t row = fragment.row + lane() / kLanesOfRow;
  if (lane() % kLanesOfRow == 0 && row < panel.num_rows) {
    rows[blockIdx.x * panel.num_rows + row] = log_sum(row_shift, row_sum);
  }
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kTileCols + threadIdx.x;
  if ((blockIdx.x + 1) * static_cast<int64_t>(kTileCols) <= panel.first_col) return;
  put_columns(parts, by_col);
  __syncthreads();
  if (threadIdx.x < kTileCols && col >= panel.first_col && col < panel.num_cols) {
    const float shift = shares_powers ? tile_shift : col_top[threadIdx.x];
    cols[blockIdx.y * panel.num_cols + col] =
        log_sum(shift, reduce_columns(parts, threadIdx.x, Add()));
  }
}

// Adds the parts (num_parts, stride) of `size` rows or columns to `total`, always in one order: a
// warp takes every kWarps-th part of 32 of them.
__global__ __launch_bounds__(kThreads) void merge_log_sums(const LogSum* __restrict__ parts,
                                                           int64_t num_parts, int64_t stride,
                                                           int64_t size,
                                                           LogSum* __restrict__ total) {
  __shared__ LogSum of_warp[kWarps][kWarpSize];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane();
  LogSum sum = kNothing;
  if (i < size) {
    for (int64_t p = warp(); p < num_parts; p += kWarps) sum = merge(sum, parts[p * stride + i]);
  }
  of_warp[warp()][lane()] = sum;
  __syncthreads();
  if (warp() > 0 || i >= size) return;
  sum = total[i];
  for (int w = 0; w < kWarps; ++w) sum = merge(sum, of_warp[w][lane()]);
  total[i] = sum;
}

__global__ __launch_bounds__(kThreads) void finish_log_sums(const LogSum* __restrict__ total,
                                                            int64_t size, float* __restrict__ lse) {
  constexpr float kLn2 = 0.693147181f, kLn2Rest = -1.90465421e-09f;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  const LogSum x = total[i];
  lse[i] = x.sum == 0 ? -kInf : fmaf(x.shift, kLn2, fmaf(x.shift, kLn2Rest, logf(x.sum)));
}

// Writes h (num_rows, num_cols) of row stride h_stride, which may be `products`; T is its storage.
// lse and a = dlse / tau of rows and columns, padded, and so the labels, of the whole matrix.
// grid: (tiles of columns, tiles of rows).
template <class T>
__global__ __launch_bounds__(kThreads, 2) void pair_gradient(
    const float* products, Panel panel, T* h, int64_t h_stride, const float* __restrict__ scale,
    const float* __restrict__ row_lse, const float* __restrict__ row_a,
    const float* __restrict__ col_lse, const float* __restrict__ col_a, LinearLabels labels,
    const int2* __restrict__ ranges, const int* __restrict__ ranks, const float* __restrict__ c,
    const float* __restrict__ gamma) {
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  if (fragment.rows == 0) return;  // a whole warp
  const Scale to_similarity = {scale[0], scale[1]};
  const bool has_cols = fragment.cols > 0;

  // Lane l has row l / kLanesOfRow: rows and columns outside repeat one inside, with a factor of 0.
  const int own_row = lane() / kLanesOfRow;
  const int64_t row = panel.row0 + fragment.row + (own_row < fragment.rows ? own_row : 0);
  const float lse_i = row_lse[row], a_i = own_row < fragment.rows ? row_a[row] : 0;
  float lse_j[kColsOfLane], a_j[kColsOfLane];
  load_columns<float, float4>(col_lse, panel.col0 + fragment.col, has_cols, lse_j);
  load_columns<float, float4>(col_a, panel.col0 + fragment.col, has_cols, a_j);
  float top = lse_i, low = lse_i;
#pragma unroll
  for (int k = 0; k < kColsOfLane; ++k) {
    if (k >= fragment.cols) lse_j[k] = lse_i, a_j[k] = 0;
    top = lse_j[k] > top ? lse_j[k] : top;
    low = lse_j[k] < low ? lse_j[k] : low;
  }
  top = reduce_warp(top, Max());
  low = reduce_warp(low, Min());

  float x[kRowsOfWarp][kColsOfLane];
  load_products(products, panel, fragment, x);
  // exp(s - lse_i) = exp(s - top) exp(top - lse_i): one power serves both terms, and s <= lse_i
  // keeps it below 1; the spread keeps the factors finite, and what is lost below 2^-62.
  const bool shares_powers = (top - low) * kLog2E <= kMostSpread;  // not if infinite
  const float u_i = a_i * exp2_fast((top - lse_i) * kLog2E);
  float u_j[kColsOfLane];
#pragma unroll
  for (int k = 0; k < kColsOfLane; ++k) u_j[k] = a_j[k] * exp2_fast((top - lse_j[k]) * kLog2E);
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const float row_u = from_row(u_i, r), a = from_row(a_i, r), own_lse = from_row(lse_i, r);
    float sim[kColsOfLane];
#pragma unroll
    for (int k = 0; k < kColsOfLane; ++k) {
      sim[k] = to_similarity(x[r][k]);
      if (shares_powers) {
        x[r][k] = exp2_fast((sim[k] - top) * kLog2E) * (row_u + u_j[k]);
      } else {
        x[r][k] = a * exp2_fast((sim[k] - own_lse) * kLog2E) +
                  a_j[k] * exp2_fast((sim[k] - lse_j[k]) * kLog2E);
      }
    }
    if (r < fragment.rows) {
      add_linear_labels(labels, ranges, ranks, c, gamma, panel.row0 + fragment.row + r,
                        panel.col0 + fragment.col, has_cols, own_lse, lse_j, sim, x[r]);
    }
    store_row(h, h_stride, fragment, r, x[r]);
  }
}

}  // namespace spcl::cuda
