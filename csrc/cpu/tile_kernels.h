// The arithmetic of one tile, m rows of z against n rows of z (or of references), m, n <= kTile.
//
// Each instruction set has its own table of the same kernels, compiled from tile_kernels_impl.h;
// best_tile_kernels() picks one when the extension is loaded. No file that is compiled for an
// instruction set includes a header with inline functions: the linker keeps one copy of those, and
// it could be the copy that an older CPU cannot run.
//
// Arrays over rows are read up to kPad values past their end.
#pragma once

#include <cstdint>

namespace spcl {

// Rows of a tile: a slice of 48 features of as many rows and the columns of h that it is multiplied
// with lie in a first-level cache of 48 KiB, h and the operands of both products in 512 KiB.
constexpr int64_t kTile = 144;
constexpr int64_t kPad = 16;
// A multiple of the rows and of the columns of every micro-tile.
constexpr int64_t kCachedRows = 48;
// Row stride of h: an odd number of cache lines, so that a column of h uses every set of the cache.
constexpr int64_t kTileStride = kTile;
static_assert(kTileStride % 16 == 0 && kTileStride / 16 % 2 == 1);

// Rows of a matrix whose features are contiguous, read through `order` where there is one.
struct Rows {
  const float* data;     // (size, D)
  int64_t stride;        // between rows
  const int64_t* order;  // (size,) or null
  int64_t size;
  int64_t D;
};

// Packed rows that a later tile reads, fetched into the second-level cache while one is computed.
struct Ahead {
  static constexpr int64_t kLine = 16, kMostOperands = 4;
  struct Packed {
    const float *begin, *end;
  };
  Packed operands[kMostOperands];
  int64_t size = 0;  // operands that are left; the last is fetched first
};

struct Tile {
  const float *rows, *cols;  // slivers of m and n rows
  int64_t m, n, D;
  bool is_diagonal;        // rows are columns: pairs above the diagonal count for both
  Ahead* ahead = nullptr;  // null to fetch nothing
};

struct Range {
  int64_t begin, end;
};

// A factor in two floats: rounded to one, it would move all similarities the same way.
struct Scale {
  explicit Scale(double x)
      : high(static_cast<float>(x)), low(static_cast<float>(x - static_cast<double>(high))) {}
  float high, low;
};

struct PairWeight {
  float gamma;
  bool is_hard;
};

// Positive pairs of a tile: columns [positives[i].begin, positives[i].end) for row i.
struct PositiveTile {
  const Range* positives;  // (m,)
  const float* lse_i;      // (m,)
  const float* lse_j;      // (n,), null unless a pair counts in both orders
  PairWeight weight;
};

// Positive pairs of one label in a tile of the dense gradient: where y_i = y_j, with weights
// w_ij = b_i + slope x_ij, in [0, 1], of the exponents x_ij that the kernel at hand computes.
struct LabelTile {
  const int32_t *y_i, *y_j;  // (m,), (n,)
  const float *b_i, *b_j;    // (m,), (n,)
  const float *c_i, *c_j;    // (m,), (n,)
  float slope;
};

// Labels whose c_i w_ij + c_j w_ji is added to h_ij.
struct LabelTiles {
  const LabelTile* labels;
  int64_t size;
};

struct TileKernels {
  const char* name;
  int64_t sliver_rows;  // pack_slivers() rounds the number of rows up to a multiple of it

  // Writes rows [begin, begin + count) in slivers, or in slices of at most (D + kPad) count floats.
  void (*pack_slivers)(const Rows& rows, int64_t begin, int64_t count, float* slivers);
  void (*pack_slices)(const Rows& rows, int64_t begin, int64_t count, float* slices);
  // Returns the largest squared norm of the rows, inf if any is not finite.
  double (*max_squared_norm)(const Rows& rows, int64_t begin, int64_t count);

  // total (D,) += sum_i factors_i x_i over rows [begin, begin + count), without `factors` of 1.
  void (*add_sum_of_rows)(const Rows& rows, int64_t begin, int64_t count, const double* factors,
                          double* total);
  // Returns x . (total - self x) over D features.
  double (*product_with_rest)(const float* x, const double* total, double self, int64_t D);
  // out += factor (total - 2 x) + weighted, or without x factor total.
  void (*add_class_row)(double factor, const double* total, const double* weighted, const float* x,
                        int64_t D, float* out);

  // Sums of 2^x_ij, x_ij = scale z_i . z_j, over rows and columns, which the caller has bounded.
  // `cached` gets x, one micro-tile after the other, m and n rounded up to a multiple of
  // kCachedRows; null to drop it.
  void (*exp_sums)(const Tile& tile, Scale scale, float* row_sums, float* col_sums, float* cached);
  // The same for any values: sums of exp(z_i . z_j / tau - shift). `scratch` is as large as h.
  void (*shifted_exp_sums)(const Tile& tile, float tau, float* scratch, float* row_shifts,
                           float* row_sums, float* col_shifts, float* col_sums);

  // h (kTile, kTileStride): h_ij = 2^x_ij (u_i + u_j), x_ij = scale z_i . z_j, bounded, and the
  // positives of `labels`.
  void (*softmax_gradient)(const Tile& tile, Scale scale, const float* u_i, const float* u_j,
                           LabelTiles labels, float* h);
  // The same from what exp_sums cached.
  void (*cached_softmax_gradient)(const Tile& tile, const float* cached, const float* u_i,
                                  const float* u_j, LabelTiles labels, float* h);
  // h_ij = a_i exp(x_ij - lse_i) + a_j exp(x_ij - lse_j), x_ij = z_i . z_j / tau, for any values,
  // and the positives of `labels`.
  void (*any_softmax_gradient)(const Tile& tile, float tau, const float* a_i, const float* a_j,
                               const float* lse_i, const float* lse_j, LabelTiles labels, float* h);

  // Sums of w l and of w over the positives of rows, and of columns where lse_j is given.
  void (*positive_sums)(const Tile& tile, const PositiveTile& positive, float scale,
                        float* row_losses, float* row_weights, float* col_losses,
                        float* col_weights);
  // h_ij = c_i w_ij + c_j w_ji on positives, else 0; c_j is null where lse_j is. `used` gets the
  // columns of h, one range a strip of rows, outside of which a strip is 0.
  void (*positive_gradient)(const Tile& tile, const PositiveTile& positive, float scale,
                            const float* c_i, const float* c_j, float* h, Range* used);

  // out_i += sum_j h_ij x_j and out_j += sum_i h_ij x_i, for x in slices of n and of m rows.
  // `used` as positive_gradient wrote it, or null for all of h.
  void (*add_rows)(const Tile& tile, const float* h, const float* x_j, const Range* used,
                   float* const* out_i);
  void (*add_columns)(const Tile& tile, const float* h, const float* x_i, const Range* used,
                      float* const* out_j);
};

extern const TileKernels kBaselineKernels;
#if defined(__x86_64__)
extern const TileKernels kAvx2Kernels;
extern const TileKernels kAvx512Kernels;
#endif

// The kernels for this CPU.
const TileKernels& best_tile_kernels();
// Says which they are, by what torch.backends.cpu.get_cpu_capability() returns, which
// ATEN_CPU_CAPABILITY can lower; until then, the baseline.
void use_cpu_capability(const char* name);

}  // namespace spcl
