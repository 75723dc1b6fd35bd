// The gradient h of a panel, from which both gradients of rows are products:
//
//   h_ij = dlse_i exp(s_ij - lse_i) + dlse_j exp(s_ij - lse_j)
//          - sum_k [j in P_k(i)] (c^k_i w^k_ij + c^k_j w^k_ji),  all of it over tau
//
// A tile has the similarities at hand, so the positives of a label cost some operations a pair here
// and no product, however coarse the label is. Of a rectangular matrix j has no c and no weights.
#pragma once

#include "labels.cuh"
#include "store.cuh"

namespace spcl::cuda {

// Of rows and columns of the whole matrix. dlse is null where no log-sum-exp has a gradient, and
// lse of columns then where they have none.
struct LseGradients {
  const float *row_lse, *col_lse;
  Values row_dlse, col_dlse;
};

// float16 reaches from 2^-24 to 2^16: gradients of pairs are stored times the power of two that
// takes their bound to 2^14, and what they sum up to is divided by it. One block finds it.
__global__ __launch_bounds__(kThreads) void find_unit(Values row_dlse, Values col_dlse,
                                                      Labels labels, int64_t num_rows,
                                                      int64_t num_cols, Scalar tau,
                                                      float* __restrict__ unit) {
  __shared__ float of_warp[kWarps];
  float bound = 0;
  const auto add_largest = [&](Values values, int64_t size, float times) {
    float top = 0;
    if (values.data) {
      for (int64_t i = threadIdx.x; i < size; i += kThreads) top = fmaxf(top, fabsf(values[i]));
    }
    top = reduce_warp(top, Max());
    if (lane() == 0) of_warp[warp()] = top;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, of_warp[w]);
    __syncthreads();
    bound += times * top;
  };
  add_largest(row_dlse, num_rows, 1);
  add_largest(col_dlse, num_cols, 1);
  for (int64_t k = 0; k < labels.size; ++k) add_largest(labels.c[k], num_rows, 2);
  if (threadIdx.x > 0) return;
  bound = fmaxf(bound * scale_of(tau).high, 1e-30f);
  *unit = bound < kInf ? ldexpf(1, 14 - ilogbf(bound) - 1) : 1;  // what is infinite stays so
}

// h_j += c_i w_ij + c_j w_ji over the positives of every label in one row of the panel, with c
// times `factor`. Row by row: all rows at once would need twice the registers, and what belongs to
// columns comes from the L1 cache.
__device__ inline void add_labels(const Labels& labels, float factor, int64_t row, int64_t col,
                                  int cols, bool is_square, float lse_i,
                                  const float (&lse_j)[kColsOfLane],
                                  const float (&sims)[kColsOfLane], float (&h)[kColsOfLane]) {
  for (int64_t k = 0; k < labels.size; ++k) {
    const PairWeight weight(labels, k);
    const int2 range = labels.ranges[k * labels.range_stride + row];
    const float c_i = factor * labels.c[k][row];
    int rank[kColsOfLane];
    float c_j[kColsOfLane] = {};
    load_columns<int, int4>(labels.ranks + k * labels.rank_stride, col, cols, rank);
    if (is_square) labels.c[k].load(col, cols, c_j);
#pragma unroll
    for (int j = 0; j < kColsOfLane; ++j) {
      float both = c_i * weight(lse_i - sims[j]);
      if (is_square) both += factor * c_j[j] * weight(lse_j[j] - sims[j]);
      if (is_positive(range, rank[j])) h[j] += both;
    }
  }
}

// Writes h (num_rows, num_cols) of row stride h_stride, which may be `products`; T is its storage.
// unit: what h is multiplied by, or null. grid: (tiles of columns, tiles of rows).
template <class T>
__global__ __launch_bounds__(kThreads, 2) void pair_gradient(const float* products, Panel panel,
                                                             T* h, int64_t h_stride, Scalar tau,
                                                             LseGradients lse, Labels labels,
                                                             const float* __restrict__ unit) {
  const Fragment fragment(panel, blockIdx.y, blockIdx.x);
  if (fragment.rows == 0) return;  // a whole warp
  const Scale to_similarity = scale_of(tau);
  const float factor = to_similarity.high * (unit ? *unit : 1);
  const int64_t col = panel.col0 + fragment.col;

  // Lane l has row l / kLanesOfRow: rows and columns outside repeat one inside, with a factor of 0.
  const int own_row = lane() / kLanesOfRow;
  const int64_t row = panel.row0 + fragment.row + (own_row < fragment.rows ? own_row : 0);
  const float lse_i = lse.row_lse[row];
  const bool has_dlse = lse.row_dlse.data;
  const float a_i = has_dlse && own_row < fragment.rows ? factor * lse.row_dlse[row] : 0;
  float lse_j[kColsOfLane] = {}, a_j[kColsOfLane] = {};
  if (lse.col_lse) load_columns<float, float4>(lse.col_lse, col, fragment.cols, lse_j);
  if (has_dlse) lse.col_dlse.load(col, fragment.cols, a_j);
  float top = lse_i, low = lse_i;
#pragma unroll
  for (int k = 0; k < kColsOfLane; ++k) {
    a_j[k] *= factor;
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
      if (!has_dlse) {
        x[r][k] = 0;
      } else if (shares_powers) {
        x[r][k] = exp2_fast((sim[k] - top) * kLog2E) * (row_u + u_j[k]);
      } else {
        x[r][k] = a * exp2_fast((sim[k] - own_lse) * kLog2E) +
                  a_j[k] * exp2_fast((sim[k] - lse_j[k]) * kLog2E);
      }
    }
    if (r < fragment.rows) {
      add_labels(labels, -factor, panel.row0 + fragment.row + r, col, fragment.cols,
                 panel.is_square, own_lse, lse_j, sim, x[r]);
    }
    store_row(h, h_stride, fragment, r, x[r]);
  }
}

}  // namespace spcl::cuda
