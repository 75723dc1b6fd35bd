// Adding up the parts of sums that the tiles of a panel leave, panel by panel, in one order.
#pragma once

#include "panel.cuh"
#include "panels.h"

namespace spcl::cuda {

// Rows or columns of a panel: of every part, numbers first_part to first_part + size of `stride`.
// They add to the totals from `first` on, which is_first writes and is_last finishes.
struct Side {
  int64_t first, size;
  int64_t num_parts, stride, first_part;
  int64_t is_first, is_last;
};

// In a square matrix the total of a row has what earlier panels found in its column.
inline Side row_side(const Panel& panel, int64_t num_cols) {
  const bool is_last = panel.col0 + panel.num_cols == num_cols;
  return {panel.row0, panel.num_rows,  row_parts(panel), panel.num_rows,
          0,          panel.col0 == 0, is_last};
}

inline Side col_side(const Panel& panel, int64_t num_rows) {
  const bool is_last = !panel.is_square && panel.row0 + panel.num_rows == num_rows;
  return {panel.col0 + panel.first_col,
          panel.num_cols - panel.first_col,
          col_parts(panel),
          panel.num_cols,
          panel.first_col,
          panel.row0 == 0,
          is_last};
}

constexpr int64_t merge_blocks(const Side& rows, const Side& cols) {
  return ceil_div(rows.size, kWarpSize) + ceil_div(cols.size, kWarpSize);
}

// Sums has the type of a Total, the empty one, how a part adds to it, and where parts and totals
// of rows and of columns lie. A warp takes every kWarps-th part of 32 rows or columns.
// grid: (merge_blocks, sums side by side).
template <class Sums>
__global__ __launch_bounds__(kThreads) void merge_sums(Sums sums, Side rows, Side cols) {
  using Total = typename Sums::Total;
  __shared__ Total of_warp[kWarps][kWarpSize];
  const int64_t row_blocks = (rows.size + kWarpSize - 1) / kWarpSize;
  const bool is_row = blockIdx.x < row_blocks;
  const Side side = is_row ? rows : cols;
  const int64_t i = (blockIdx.x - (is_row ? 0 : row_blocks)) * kWarpSize + lane();
  const auto* parts = sums.parts(is_row) + blockIdx.y * side.num_parts * side.stride;
  Total sum = Sums::nothing();
  if (i < side.size) {
    for (int64_t p = warp(); p < side.num_parts; p += kWarps) {
      sum = Sums::add(sum, Sums::total(parts[p * side.stride + side.first_part + i]));
    }
  }
  of_warp[warp()][lane()] = sum;
  __syncthreads();
  if (warp() > 0 || i >= side.size) return;
  Total* total = sums.totals(is_row, blockIdx.y) + side.first + i;
  sum = side.is_first ? Sums::nothing() : *total;
  for (int w = 0; w < kWarps; ++w) sum = Sums::add(sum, of_warp[w][lane()]);
  if (side.is_last) {
    sums.finish(is_row, blockIdx.y, side.first + i, sum);
  } else {
    *total = sum;
  }
}

}  // namespace spcl::cuda
