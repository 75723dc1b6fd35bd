// The log-sum-exps of a panel; the mathematics is in spcl_fast/ops/pair_lse.py.
//
// Sums of powers of two with a shift each, (shift, sum) = sum * 2^shift, for the rows and the
// columns of a tile; one power a pair serves both where the largest powers of its rows and columns
// are alike, as they are for rows of one length. merge_sums adds them up in one order.
#pragma once

#include "merge.cuh"
#include "scalar.cuh"

namespace spcl::cuda {

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
                                                             Panel panel, Scalar tau,
                                                             LogSum* __restrict__ rows,
                                                             LogSum* __restrict__ cols) {
  alignas(16) __shared__ ColumnParts parts;
  alignas(16) __shared__ float col_top[kTileCols];
  __shared__ float top_of[kWarps], low_of[2 * kWarps];
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  const Scale to_log2 = log2_scale_of(tau);

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
    load_columns<float, float4>(col_top, lane() * kColsOfLane, kColsOfLane, shift);
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

// What merge_sums takes and leaves; columns are null where they are the rows.
struct LogSums {
  using Total = LogSum;
  const LogSum *row_parts, *col_parts;
  LogSum *row_totals, *col_totals;
  float *row_lse, *col_lse;

  static __device__ Total nothing() { return kNothing; }
  static __device__ Total total(LogSum part) { return part; }
  static __device__ Total add(Total a, Total b) { return merge(a, b); }
  __device__ const LogSum* parts(bool is_row) const { return is_row ? row_parts : col_parts; }
  __device__ Total* totals(bool is_row, int64_t) const { return is_row ? row_totals : col_totals; }
  __device__ void finish(bool is_row, int64_t, int64_t i, Total x) const {
    constexpr float kLn2 = 0.693147181f, kLn2Rest = -1.90465421e-09f;
    const float lse = fmaf(x.shift, kLn2, fmaf(x.shift, kLn2Rest, logf(x.sum)));
    (is_row ? row_lse : col_lse)[i] = x.sum == 0 ? -kInf : lse;
  }
};

}  // namespace spcl::cuda
