// pair_lse on tiles; the mathematics is in spcl_fast/ops/pair_lse.py.
//
// Forward: a tile of 2^(s_ij) gives sums for its rows and for its columns, so a square matrix needs
// the tiles i <= j only. Where the norms bound |s_ij| by kMaxExponent the powers are summed as they
// are, and may be cached for the backward; else each tile shifts by the maximum of every row and
// column, and the sums are merged with their shifts: right for every tau and norm.
//
// Backward: a tile of h_ij = a_i p_ij + a_j p_ji, which is symmetric, serves dz_i += h z_j and
// dz_j += h^T z_i. The positives of labels with linear weights join h (linear_labels.h).
//
// Memory: O(N D): packed rows, the gradient, one tile a thread. Multiply-adds: N^2 D / 2 forward,
// 3 N^2 D / 2 backward, N^2 D where the exponents of a tile were cached.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <optional>

#include "cache_memory.h"
#include "checks.h"
#include "linear_labels.h"
#include "operand.h"
#include "ops.h"
#include "schedule.h"

namespace spcl {
namespace {

constexpr double kLog2E = 1.44269504088896340736;
constexpr double kInf = std::numeric_limits<double>::infinity();
// |s_ij| <= 64 keeps exp(s_ij), its sum over 2^24 rows, and exp(s_ij) / sum within float32.
constexpr double kMaxExponent = 64;
// A sum of fewer terms is as exact as float32 allows only if the largest is shifted to 1.
constexpr int64_t kMinTerms = 16;

// Sums of exponentials relative to a shift, one a row.
class LogSums {
 public:
  explicit LogSums(int64_t size) : shifts_(size, -kInf), sums_(size, 0.0) {}

  void add(int64_t i, double sum) {
    shifts_[i] = 0;
    sums_[i] += sum;
  }
  void add(int64_t i, double shift, double sum) {
    if (sum == 0) return;
    if (!std::isfinite(sums_[i] + sum)) {  // inf * 0 below would turn inf into NaN
      shifts_[i] = 0;
      sums_[i] += sum;
      return;
    }
    const double top = std::max(shifts_[i], shift);
    sums_[i] = sums_[i] * std::exp(shifts_[i] - top) + sum * std::exp(shift - top);
    shifts_[i] = top;
  }
  void add(int64_t i, const LogSums& other, int64_t j) { add(i, other.shifts_[j], other.sums_[j]); }
  float lse(int64_t i) const { return shifts_[i] + std::log(sums_[i]); }

 private:
  std::vector<double> shifts_;
  std::vector<double> sums_;
};

// Both sides of the matrix and what its tiles have in common.
struct Problem {
  Operand rows;
  Operand cols;
  bool is_square;
  double tau;
  int64_t num_spans;  // of columns, each with row sums and gradients of its own
  bool is_bounded;
  Schedule schedule;
  int64_t cached_size;  // of a tile

  Problem(const Tensor& z, const OptionalTensor& refs, const Tensor& tau_tensor)
      : rows(z),
        cols(refs ? *refs : z),
        is_square(!refs),
        tau(positive_scalar("tau", tau_tensor)),
        num_spans(is_square ? 1 : spans(rows.num_blocks(), cols.num_blocks())),
        is_bounded(std::min(rows.size(), cols.size()) >= kMinTerms &&
                   exponent_bound() < kMaxExponent),
        schedule(is_square ? Schedule::triangle(rows.num_blocks())
                           : Schedule::rectangle(rows.num_blocks(), cols.num_blocks(), num_spans)),
        cached_size(cached_rows(rows) * cached_rows(cols)) {}

  void pack_slivers() {
    cols.pack_slivers();
    if (!is_square) rows.pack_slivers();
  }
  void pack_slices() {
    cols.pack_slices();
    if (!is_square) rows.pack_slices();
  }
  // The rows as they were packed: of a square problem they are the columns.
  const Operand& packed_rows() const { return is_square ? cols : rows; }

  Scale scale() const { return Scale(kLog2E / tau); }  // of powers of two
  int64_t num_cached(const Tensor& cache) const {
    return is_bounded && cached_size > 0 ? cache.numel() / cached_size : 0;
  }
  // Which of the cached tiles tile `index` is. With references the order of tiles depends on the
  // number of threads, and the backward may have others.
  int64_t cached_place(const ScheduledTile& tile, int64_t index) const {
    return is_square ? index : row_block(tile) * cols.num_blocks() + col_block(tile);
  }
  int64_t row_block(const ScheduledTile& tile) const { return tile.i % rows.num_blocks(); }
  int64_t span(const ScheduledTile& tile) const { return tile.i / rows.num_blocks(); }
  int64_t col_block(const ScheduledTile& tile) const {
    return is_square ? tile.j : tile.j - num_spans * rows.num_blocks();
  }
  Tile tile(int64_t i, int64_t j, Ahead* ahead, bool has_slivers = true) const {
    const float* row_slivers = has_slivers ? packed_rows().slivers(i) : nullptr;
    const float* col_slivers = has_slivers ? cols.slivers(j) : nullptr;
    const bool is_diagonal = is_square && i == j;
    return {row_slivers, col_slivers, rows.size(i), cols.size(j), rows.D(), is_diagonal, ahead};
  }
  // What tile `index` reads, if there is one.
  Ahead ahead(int64_t index, bool has_slivers, bool has_slices) const {
    Ahead ahead;
    const auto& tiles = schedule.tiles();
    if (index >= static_cast<int64_t>(tiles.size())) return ahead;
    const int64_t i = row_block(tiles[index]), j = col_block(tiles[index]);
    const auto add = [&](const float* operand, int64_t num_rows) {
      ahead.operands[ahead.size++] = {operand, operand + num_rows * rows.D()};
    };
    if (has_slices) {
      add(packed_rows().slices(i), rows.size(i));
      add(cols.slices(j), cols.size(j));
    }
    if (has_slivers) {
      add(cols.slivers(j), cols.size(j));
      add(packed_rows().slivers(i), rows.size(i));
    }
    return ahead;
  }

 private:
  static int64_t cached_rows(const Operand& side) {
    const int64_t whole = (side.size() + kCachedRows - 1) / kCachedRows * kCachedRows;
    return std::min(side.block(), whole);
  }
  // Few row blocks against many columns would leave threads without a block of their own.
  static int64_t spans(int64_t num_rows, int64_t num_cols) {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t wanted = num_rows > 0 ? 2 * threads / num_rows : 1;
    return std::max<int64_t>(1, std::min(wanted, num_cols));
  }
  double exponent_bound() const {
    const double norms = rows.max_squared_norm() * (is_square ? 1 : cols.max_squared_norm());
    return (is_square ? norms : std::sqrt(norms)) / tau;
  }
};

Tensor finish(const LogSums& sums, int64_t size) {
  Tensor lse = empty({size});
  float* out = lse.mutable_data_ptr<float>();
  for (int64_t i = 0; i < size; ++i) out[i] = sums.lse(i);
  return lse;
}

// What the backward needs of every row: exp(s_ij) u_i where bounded, a_i exp(s_ij - lse_i) else.
struct RowGradient {
  std::vector<float> u, a, lse;

  RowGradient(const Tensor& lse_tensor, const Tensor& dlse_tensor, double tau, bool is_bounded)
      : u(padded(lse_tensor.numel())),
        a(padded(lse_tensor.numel())),
        lse(padded(lse_tensor.numel())) {
    const Tensor values = as_contiguous(lse_tensor), gradients = as_contiguous(dlse_tensor);
    const float* value = values.const_data_ptr<float>();
    const float* gradient = gradients.const_data_ptr<float>();
    for (int64_t i = 0; i < values.numel(); ++i) {
      a[i] = gradient[i] / tau;
      lse[i] = value[i];
      if (is_bounded) u[i] = gradient[i] / tau * std::exp(-static_cast<double>(value[i]));
    }
  }
};

// Pointers to the rows [begin, begin + size) of a contiguous (*, D) matrix.
void row_pointers(float* data, int64_t D, int64_t begin, int64_t size, float** out) {
  for (int64_t i = 0; i < size; ++i) out[i] = data + (begin + i) * D;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> pair_lse_fwd_cpu(const Tensor& z,
                                                                const OptionalTensor& refs,
                                                                const Tensor& tau,
                                                                int64_t num_cached_floats) {
  check_rows("z", z);
  check_refs(z, refs);
  SPCL_CHECK(num_cached_floats >= 0, "cache_size must be at least 0, got ",
             num_cached_floats);
  Problem problem(z, refs, tau);
  problem.pack_slivers();
  const TileKernels& kernels = best_tile_kernels();
  Tensor cache = cache_memory(num_cached_floats);
  float* cached = cache.mutable_data_ptr<float>();
  const int64_t num_cached = problem.num_cached(cache), cached_size = problem.cached_size;
  SPCL_CHECK(num_cached_floats == 0 || (cached_size && num_cached_floats % cached_size == 0),
             "cache_size must be a multiple of ", cached_size, ", got ", num_cached_floats);
  const int64_t num_rows = problem.rows.size();
  LogSums row_sums(problem.num_spans * num_rows);
  LogSums own_col_sums(problem.is_square ? 0 : problem.cols.size());
  LogSums& col_sums = problem.is_square ? row_sums : own_col_sums;

  run(problem.schedule, problem.is_bounded ? 0 : kTile * kTileStride,
      [&](const ScheduledTile& at, int64_t index, int64_t next, float* scratch) {
        const int64_t i = problem.row_block(at), j = problem.col_block(at);
        const int64_t row0 = problem.span(at) * num_rows + problem.rows.begin(i);
        const int64_t col0 = problem.cols.begin(j);
        Ahead ahead = problem.ahead(next, true, false);
        const Tile tile = problem.tile(i, j, &ahead);
        float row_shift[kTile], row_sum[kTile], col_shift[kTile], col_sum[kTile];
        if (problem.is_bounded) {
          const int64_t place = problem.cached_place(at, index);
          float* exponents = place < num_cached ? cached + place * cached_size : nullptr;
          kernels.exp_sums(tile, problem.scale(), row_sum, col_sum, exponents);
          for (int64_t r = 0; r < tile.m; ++r) row_sums.add(row0 + r, row_sum[r]);
          for (int64_t c = 0; c < tile.n; ++c) col_sums.add(col0 + c, col_sum[c]);
        } else {
          kernels.shifted_exp_sums(tile, problem.tau, scratch, row_shift, row_sum, col_shift,
                                   col_sum);
          for (int64_t r = 0; r < tile.m; ++r) row_sums.add(row0 + r, row_shift[r], row_sum[r]);
          for (int64_t c = 0; c < tile.n; ++c) col_sums.add(col0 + c, col_shift[c], col_sum[c]);
        }
      });

  for (int64_t span = 1; span < problem.num_spans; ++span) {
    for (int64_t i = 0; i < num_rows; ++i) row_sums.add(i, row_sums, span * num_rows + i);
  }
  const int64_t num_cols = problem.is_square ? 0 : problem.cols.size();
  return {finish(row_sums, num_rows), finish(own_col_sums, num_cols), cache};
}

std::tuple<Tensor, Tensor> pair_lse_bwd_cpu(
    const Tensor& z, const OptionalTensor& refs, const Tensor& lse,
    const OptionalTensor& lse_refs, const Tensor& dlse, const OptionalTensor& dlse_refs,
    const Tensor& tau, const Tensor& cache, const Tensors& labels, const Tensors& c,
    const Tensors& gamma, bool needs_z, bool needs_refs) {
  check_rows("z", z);
  check_refs(z, refs);
  check_values("lse", lse, z.size(0));
  check_values("dlse", dlse, z.size(0));
  SPCL_CHECK(
      refs.has_value() == lse_refs.has_value() && refs.has_value() == dlse_refs.has_value(),
      "refs, lse_refs and dlse_refs must be given together, got some alone");
  if (refs) check_values("lse_refs", *lse_refs, refs->size(0));
  if (refs) check_values("dlse_refs", *dlse_refs, refs->size(0));

  SPCL_CHECK(!refs || labels.empty(), "labels must be empty with refs, got ", labels.size());

  Problem problem(z, refs, tau);
  const float* cached = cache.const_data_ptr<float>();
  const int64_t num_cached = problem.num_cached(cache), cached_size = problem.cached_size;
  const int64_t num_tiles = static_cast<int64_t>(problem.schedule.tiles().size());
  if (num_cached < num_tiles) problem.pack_slivers();
  problem.pack_slices();
  const TileKernels& kernels = best_tile_kernels();
  const LinearLabels linear(labels, c, gamma, lse, problem.tau, problem.is_bounded ? kLog2E : 1);
  const RowGradient row_gradient(lse, dlse, problem.tau, problem.is_bounded);
  std::optional<RowGradient> ref_gradient;
  if (refs) ref_gradient.emplace(*lse_refs, *dlse_refs, problem.tau, problem.is_bounded);
  const RowGradient& col_gradient = refs ? *ref_gradient : row_gradient;
  const int64_t num_rows = problem.rows.size(), D = problem.rows.D();
  needs_refs = needs_refs && refs;
  Tensor dz = torch::stable::new_zeros(z, {problem.num_spans, needs_z ? num_rows : 0, D});
  Tensor drefs = torch::stable::new_zeros(z, {needs_refs ? problem.cols.size() : 0, D});
  float* dz_data = dz.mutable_data_ptr<float>();
  float* dcols_data = problem.is_square ? dz_data : drefs.mutable_data_ptr<float>();
  const bool needs_cols = problem.is_square ? needs_z : needs_refs;

  const auto visit = [&](const ScheduledTile& at, int64_t index, int64_t next, float* h) {
    const int64_t i = problem.row_block(at), j = problem.col_block(at);
    const int64_t row0 = problem.rows.begin(i), col0 = problem.cols.begin(j);
    Ahead ahead = problem.ahead(next, num_cached < num_tiles, true);
    const Tile tile = problem.tile(i, j, &ahead, num_cached < num_tiles);
    const float *u_i = &row_gradient.u[row0], *u_j = &col_gradient.u[col0];
    const std::vector<LabelTile> label_tiles = linear.tile(row0, col0);
    const LabelTiles positives = {label_tiles.data(), static_cast<int64_t>(label_tiles.size())};
    const int64_t place = problem.cached_place(at, index);
    if (place < num_cached) {
      kernels.cached_softmax_gradient(tile, cached + place * cached_size, u_i, u_j, positives, h);
    } else if (problem.is_bounded) {
      kernels.softmax_gradient(tile, problem.scale(), u_i, u_j, positives, h);
    } else {
      kernels.any_softmax_gradient(tile, problem.tau, &row_gradient.a[row0], &col_gradient.a[col0],
                                   &row_gradient.lse[row0], &col_gradient.lse[col0], positives, h);
    }
    float* out[kTile];
    if (needs_z) {
      row_pointers(dz_data, D, problem.span(at) * num_rows + row0, tile.m, out);
      kernels.add_rows(tile, h, problem.cols.slices(j), nullptr, out);
    }
    if (needs_cols && !tile.is_diagonal) {
      row_pointers(dcols_data, D, col0, tile.n, out);
      kernels.add_columns(tile, h, problem.packed_rows().slices(i), nullptr, out);
    }
  };
  run(problem.schedule, kTile * kTileStride, visit);
  const int64_t spans = 0;
  return {problem.num_spans == 1 ? torch::stable::select(dz, spans, 0)
                                 : torch::stable::sum(dz, Sizes(&spans, 1)), drefs};
}

STABLE_TORCH_LIBRARY_IMPL(spcl_fast, CPU, m) {
  m.impl("pair_lse_fwd_native", TORCH_BOX(&pair_lse_fwd_cpu));
  m.impl("pair_lse_bwd_native", TORCH_BOX(&pair_lse_bwd_cpu));
}

}  // namespace spcl
