// positive_pair_loss on tiles; the mathematics is in spcl_fast/ops/positive_pair_loss.py.
//
// Rows are sorted by label, so the positives of a row are one interval of the sorted columns: a
// strip of a tile computes only the columns that its rows have positives in, and tiles without any
// are not visited. A tile i <= j of a square matrix serves the pairs of both orders. With gamma =
// inf and no window sums over classes replace the pairs (class_sums.h).
//
// Memory: O(N D): packed rows, the gradient, one tile per thread. Multiply-adds: 2 x (share of
// positive pairs) x N^2 D.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "checks.h"
#include "class_sums.h"
#include "operand.h"
#include "ops.h"
#include "schedule.h"
#include "sorted_labels.h"
#include "zero_products.h"

namespace spcl {
namespace {

constexpr int64_t kMaxStrips = kTile;  // of a tile, for every instruction set

std::vector<float> sorted_values(const Tensor& x, const std::vector<int64_t>& order) {
  const Tensor values = as_contiguous(x);
  const float* value = values.const_data_ptr<float>();
  std::vector<float> out = padded(values.numel());
  for (size_t i = 0; i < order.size(); ++i) out[i] = value[order[i]];
  return out;
}

Schedule positive_tiles(const SortedLabels& sorted, const Operand& rows, const Operand& cols) {
  std::vector<int32_t> first(rows.num_blocks(), 0), last(rows.num_blocks(), -1);
  for (int64_t i = rows.size() - 1; i >= 0; --i) {
    if (sorted.num_pos(i) == 0) continue;
    const int64_t block = i / rows.block();
    first[block] = sorted.positives[i].begin / cols.block();
    last[block] = std::max<int32_t>(last[block], (sorted.positives[i].end - 1) / cols.block());
  }
  if (sorted.is_square) return Schedule::band(last);
  return Schedule::intervals(first, last, cols.num_blocks());
}

// The sorted rows and columns, and what their tiles have in common.
struct Problem {
  SortedLabels sorted;
  Operand rows, cols;
  std::vector<float> lse;  // of sorted rows
  double tau;
  PairWeight weight;
  bool has_unit_weights;

  explicit Problem(const PositivePairs& of)
      : sorted(of.labels, of.ref_labels, of.window),
        rows(of.z, sorted.row_order.data()),
        cols(of.refs ? *of.refs : of.z, sorted.cols().data()),
        lse(sorted_values(of.lse, sorted.row_order)),
        tau(positive_scalar("tau", of.tau)),
        weight{static_cast<float>(positive_scalar("gamma", of.gamma)), of.is_hard},
        // Sums over a class would spread what is not finite to all of its rows.
        has_unit_weights(std::isinf(weight.gamma) && !of.window && is_finite()) {
    if (!has_unit_weights) pack_slivers();
  }

  void pack_slices() {
    cols.pack_slices();
    if (!sorted.is_square) rows.pack_slices();
  }
  // The rows as they were packed: of a square problem they are the columns.
  const Operand& packed_rows() const { return sorted.is_square ? cols : rows; }
  Tile tile(int64_t i, int64_t j) const {
    return {packed_rows().slivers(i),  cols.slivers(j), rows.size(i), cols.size(j), rows.D(),
            sorted.is_square && i == j};
  }

  float scale() const { return static_cast<float>(1 / tau); }
  // Intervals of the rows of a block, relative to a block of columns.
  void clip(int64_t row_block, int64_t col_block, Range* out) const {
    const int64_t row0 = rows.begin(row_block), col0 = cols.begin(col_block);
    for (int64_t r = 0; r < rows.size(row_block); ++r) {
      const Range range = sorted.positives[row0 + r];
      out[r] = {std::max<int64_t>(0, range.begin - col0),
                std::min(cols.size(col_block), range.end - col0)};
    }
  }

 private:
  bool is_finite() const {
    return std::isfinite(rows.max_squared_norm()) &&
           (sorted.is_square || std::isfinite(cols.max_squared_norm()));
  }
  void pack_slivers() {
    cols.pack_slivers();
    if (!sorted.is_square) rows.pack_slivers();
  }
};

void check_arguments(const PositivePairs& of) {
  check_rows("z", of.z);
  check_refs(of.z, of.refs);
  check_values("lse", of.lse, of.z.size(0));
  check_labels("labels", of.labels, of.z.size(0));
  SPCL_CHECK(of.refs.has_value() == of.ref_labels.has_value(),
             "refs and ref_labels must be given together, got one alone");
  if (of.refs) check_labels("ref_labels", *of.ref_labels, of.refs->size(0));
  SPCL_CHECK(!of.window || (*of.window >= 0 && std::isfinite(*of.window)),
             "window must be finite and at least 0, got ", *of.window);
}

}  // namespace

void positive_losses(const PositivePairs& pairs, float* loss, float* weight_sum,
                     int64_t* num_pos) {
  check_arguments(pairs);
  const Problem problem(pairs);
  const SortedLabels& sorted = problem.sorted;
  const Operand &rows = problem.rows, &cols = problem.cols;
  std::vector<double> losses(rows.size(), 0.0), weights(rows.size(), 0.0);

  if (problem.has_unit_weights) {
    class_similarities(sorted, rows, cols, losses.data());
    for (int64_t i = 0; i < rows.size(); ++i) {
      weights[i] = sorted.num_pos(i);
      losses[i] = weights[i] * problem.lse[i] - losses[i] / problem.tau;
    }
  } else {
    const TileKernels& kernels = best_tile_kernels();
    const auto visit = [&](const ScheduledTile& at, int64_t, int64_t, float*) {
      const int64_t j = sorted.is_square ? at.j : at.j - rows.num_blocks();
      const int64_t row0 = rows.begin(at.i), col0 = cols.begin(j);
      const Tile tile = problem.tile(at.i, j);
      Range ranges[kTile];
      problem.clip(at.i, j, ranges);
      const PositiveTile positive = {ranges, &problem.lse[row0],
                                     sorted.is_square ? &problem.lse[col0] : nullptr,
                                     problem.weight};
      float row_loss[kTile], row_weight[kTile], col_loss[kTile], col_weight[kTile];
      kernels.positive_sums(tile, positive, problem.scale(), row_loss, row_weight, col_loss,
                            col_weight);
      for (int64_t r = 0; r < tile.m; ++r) {
        losses[row0 + r] += row_loss[r];
        weights[row0 + r] += row_weight[r];
      }
      for (int64_t c = 0; sorted.is_square && c < tile.n; ++c) {
        losses[col0 + c] += col_loss[c];
        weights[col0 + c] += col_weight[c];
      }
    };
    run(positive_tiles(sorted, rows, cols), 0, visit);
  }

  for (int64_t i = 0; i < rows.size(); ++i) {
    const int64_t row = sorted.row_order[i], count = sorted.num_pos(i);
    loss[row] = count ? losses[i] / count : 0;
    weight_sum[row] = weights[i];
    num_pos[row] = count;
  }
}

void add_positive_gradients(const PositivePairs& pairs, const Tensor& c, float* dz, float* drefs) {
  check_arguments(pairs);
  check_values("c", c, pairs.z.size(0));
  Problem problem(pairs);
  const SortedLabels& sorted = problem.sorted;
  const Operand &rows = problem.rows, &cols = problem.cols;
  const int64_t D = rows.D();
  std::vector<float> factor = sorted_values(c, sorted.row_order);

  if (problem.has_unit_weights) {
    add_class_gradients(sorted, rows, cols, factor, problem.tau, dz, drefs);
    return;
  }
  for (float& f : factor) f = -f / problem.tau;
  problem.pack_slices();
  const TileKernels& kernels = best_tile_kernels();
  const auto visit = [&](const ScheduledTile& at, int64_t, int64_t, float* h) {
    const int64_t j = sorted.is_square ? at.j : at.j - rows.num_blocks();
    const int64_t row0 = rows.begin(at.i), col0 = cols.begin(j);
    const Tile tile = problem.tile(at.i, j);
    Range ranges[kTile], used[kMaxStrips];
    problem.clip(at.i, j, ranges);
    const PositiveTile positive = {ranges, &problem.lse[row0],
                                   sorted.is_square ? &problem.lse[col0] : nullptr, problem.weight};
    kernels.positive_gradient(tile, positive, problem.scale(), &factor[row0],
                              sorted.is_square ? &factor[col0] : nullptr, h, used);
    float* out[kTile];
    if (dz) {
      for (int64_t r = 0; r < tile.m; ++r) out[r] = dz + sorted.row_order[row0 + r] * D;
      kernels.add_rows(tile, h, cols.slices(j), used, out);
    }
    float* dcols = sorted.is_square ? dz : drefs;
    if (dcols && !tile.is_diagonal) {
      for (int64_t col = 0; col < tile.n; ++col) out[col] = dcols + sorted.cols()[col0 + col] * D;
      kernels.add_columns(tile, h, problem.packed_rows().slices(at.i), used, out);
    }
  };
  run(positive_tiles(sorted, rows, cols), kTile * kTileStride, visit);
  if (dz) add_zero_products(cols, rows.size(), dz);
  if (drefs) add_zero_products(rows, cols.size(), drefs);
}

std::tuple<Tensor, Tensor, Tensor> positive_pair_loss_fwd_cpu(
    const Tensor& z, const Tensor& lse, const Tensor& labels,
    const OptionalTensor& refs, const OptionalTensor& ref_labels, const Tensor& tau,
    const Tensor& gamma, bool is_hard, std::optional<double> window) {
  const Tensor loss = empty({z.size(0)}), weight_sum = empty({z.size(0)});
  const Tensor num_pos = empty({z.size(0)}, ScalarType::Long);
  positive_losses({z, lse, labels, refs, ref_labels, tau, gamma, is_hard, window},
                  loss.mutable_data_ptr<float>(), weight_sum.mutable_data_ptr<float>(),
                  num_pos.mutable_data_ptr<int64_t>());
  return {loss, weight_sum, num_pos};
}

std::tuple<Tensor, Tensor> positive_pair_loss_bwd_cpu(
    const Tensor& c, const Tensor& z, const Tensor& lse, const Tensor& labels,
    const OptionalTensor& refs, const OptionalTensor& ref_labels, const Tensor& tau,
    const Tensor& gamma, bool is_hard, std::optional<double> window, bool needs_z,
    bool needs_refs) {
  needs_refs = needs_refs && refs;
  const Tensor dz = torch::stable::new_zeros(z, {needs_z ? z.size(0) : 0, z.size(1)});
  const Tensor drefs =
      torch::stable::new_zeros(z, {needs_refs ? refs->size(0) : 0, z.size(1)});
  add_positive_gradients({z, lse, labels, refs, ref_labels, tau, gamma, is_hard, window}, c,
                         needs_z ? dz.mutable_data_ptr<float>() : nullptr,
                         needs_refs ? drefs.mutable_data_ptr<float>() : nullptr);
  return {dz, drefs};
}

STABLE_TORCH_LIBRARY_IMPL(spcl_fast, CPU, m) {
  m.impl("positive_pair_loss_fwd_native", TORCH_BOX(&positive_pair_loss_fwd_cpu));
  m.impl("positive_pair_loss_bwd_native", TORCH_BOX(&positive_pair_loss_bwd_cpu));
}

}  // namespace spcl
