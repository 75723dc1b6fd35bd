// A panel of similarities, and what a thread holds of it: rows [row0, row0 + num_rows) of the
// matrix against columns [col0, col0 + num_cols), in row-major memory.
//
// A block takes a tile of kTileRows x kTileCols. A warp owns kRowsOfWarp whole rows of it, a lane
// kColsOfLane adjacent columns: 16 bytes a lane, 512 adjacent bytes a warp.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace spcl::cuda {

constexpr int kWarpSize = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRowsOfWarp = 8;
constexpr int kColsOfLane = 4;
constexpr int kTileRows = kWarps * kRowsOfWarp;
constexpr int kTileCols = kWarpSize * kColsOfLane;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504f;

struct Panel {
  int64_t row0, col0;
  int64_t num_rows, num_cols;
  int64_t stride;     // floats from row to row, a multiple of kColsOfLane
  int64_t first_col;  // columns from this one of the panel on are summed, too
  int64_t is_square;  // rows and columns are the same: pairs (i, i) are excluded
};

// The part of a tile that a thread holds: `row` and `col` are its first in the panel.
struct Fragment {
  int64_t row, col;
  int rows, cols;  // how many of them are in the panel
  int diagonal;    // c - r of the pairs (i, i)

  __device__ Fragment(const Panel& panel, int64_t tile_row, int64_t tile_col)
      : row(tile_row * kTileRows + threadIdx.x / kWarpSize * kRowsOfWarp),
        col(tile_col * kTileCols + threadIdx.x % kWarpSize * kColsOfLane),
        rows(clip(panel.num_rows - row, kRowsOfWarp)),
        cols(clip(panel.num_cols - col, kColsOfLane)),
        diagonal(kTileCols) {
    const int64_t distance = panel.row0 + row - panel.col0 - col;
    if (panel.is_square && distance > -kTileRows && distance < kTileCols) diagonal = distance;
  }
  __device__ bool has(int r, int c) const { return r < rows && c < cols && c - r != diagonal; }

 private:
  static __device__ int clip(int64_t left, int most) {
    return left <= 0 ? 0 : left < most ? static_cast<int>(left) : most;
  }
};

// Powers of a tile may share a shift as long as 2^-64 is the largest of any row or column: its own
// sum keeps all digits then, and what is lost is below 2^-62 of it.
constexpr float kMostSpread = 64;

__device__ inline float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

__device__ inline int lane() { return threadIdx.x % kWarpSize; }
__device__ inline int warp() { return threadIdx.x / kWarpSize; }

// Products of the thread's pairs; outside the panel, they are those of the padding, or 0.
__device__ inline void load_products(const float* products, const Panel& panel,
                                     const Fragment& fragment,
                                     float (&x)[kRowsOfWarp][kColsOfLane]) {
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
    float4 v = {0, 0, 0, 0};
    if (r < fragment.rows && fragment.cols > 0) {
      v = *reinterpret_cast<const float4*>(products + (fragment.row + r) * panel.stride +
                                           fragment.col);
    }
    x[r][0] = v.x, x[r][1] = v.y, x[r][2] = v.z, x[r][3] = v.w;
  }
}

// One value a column of the lane, of which `cols` are there: one access if the address allows.
template <class T, class T4>
__device__ inline void load_columns(const T* values, int64_t col, int cols, T (&x)[kColsOfLane]) {
  const T* from = values + col;
  T4 v = {0, 0, 0, 0};
  if (cols == kColsOfLane && reinterpret_cast<uintptr_t>(from) % sizeof(T4) == 0) {
    v = *reinterpret_cast<const T4*>(from);
  } else {
    if (cols > 0) v.x = from[0];
    if (cols > 1) v.y = from[1];
    if (cols > 2) v.z = from[2];
    if (cols > 3) v.w = from[3];
  }
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

// A value a row or column of the matrix, as autograd hands it over: stride 0 repeats one.
struct Values {
  const float* data;
  int64_t stride;

  __device__ float operator[](int64_t i) const { return data[i * stride]; }
  __device__ void load(int64_t col, int cols, float (&x)[kColsOfLane]) const {
    if (stride == 1) {
      load_columns<float, float4>(data, col, cols, x);
      return;
    }
#pragma unroll
    for (int c = 0; c < kColsOfLane; ++c) x[c] = c < cols ? data[(col + c) * stride] : 0;
  }
};

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Min {
  __device__ float operator()(float a, float b) const { return fminf(a, b); }
};

template <class T, class Op>
__device__ inline T reduce_warp(T x, Op op) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    x = op(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

constexpr int kLanesOfRow = kWarpSize / kRowsOfWarp;

// Reduces x[r] over the lanes for all rows r of the warp: lane l gets that of row l / kLanesOfRow.
// Each step halves the rows that a lane still works for, so 9 shuffles do instead of 40.
template <class Op>
__device__ inline float reduce_rows(float (&x)[kRowsOfWarp], Op op) {
  int offset = kWarpSize / 2;
#pragma unroll
  for (int rows = kRowsOfWarp / 2; rows > 0; rows /= 2) {
    const bool is_upper = lane() & offset;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float send = is_upper ? x[r] : x[r + rows];
      const float keep = is_upper ? x[r + rows] : x[r];
      x[r] = op(keep, __shfl_xor_sync(kAllLanes, send, offset));
    }
    offset /= 2;
  }
#pragma unroll
  for (; offset > 0; offset /= 2) x[0] = op(x[0], __shfl_xor_sync(kAllLanes, x[0], offset));
  return x[0];
}

__device__ inline float from_row(float x, int r) {
  return __shfl_sync(kAllLanes, x, r * kLanesOfRow);
}

// Shared memory in which the warps of a block reduce what they have of every column.
using ColumnParts = float[kWarps][kTileCols];

__device__ inline void put_columns(ColumnParts& parts, const float (&x)[kColsOfLane]) {
  *reinterpret_cast<float4*>(&parts[warp()][lane() * kColsOfLane]) =
      make_float4(x[0], x[1], x[2], x[3]);
}

template <class Op>
__device__ inline float reduce_columns(const ColumnParts& parts, int col, Op op) {
  float x = parts[0][col];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) x = op(x, parts[w][col]);
  return x;
}

}  // namespace spcl::cuda
