#include "passes.h"

#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "gradient.cuh"
#include "launch.h"
#include "pair_lse.cuh"
#include "positive_pair_loss.cuh"

namespace spcl::cuda {
namespace {

// Structures of floats or doubles, in memory of a tensor.
template <class T>
T* structures(const at::Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <class Sums>
void merge(const Matrix& matrix, const Panel& panel, const Sums& sums, bool has_cols, int64_t depth,
           cudaStream_t stream) {
  const Side rows = row_side(panel, matrix.num_cols());
  Side cols = col_side(panel, matrix.num_rows());
  if (!has_cols) cols.size = 0;
  const dim3 grid(static_cast<unsigned>(merge_blocks(rows, cols)), static_cast<unsigned>(depth));
  launch(merge_sums<Sums>, grid, stream, sums, rows, cols);
}

// Gradients as they are returned.
at::Tensor finished(const at::Tensor& sums, at::ScalarType type, const at::Tensor& unit) {
  if (!unit.defined() || sums.numel() == 0) return sums.to(type);
  at::Tensor out = at::empty(sums.sizes(), sums.options().dtype(type));
  at::div_out(out, sums, unit);
  return out;
}

// Kernels of a gradient take the type in which a panel of it is stored.
template <class F>
void dispatch_storage(at::ScalarType type, F f) {
  switch (type) {
    case at::kFloat:
      return f(float());
    case at::kHalf:
      return f(__half());
    default:
      return f(__nv_bfloat16());
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> sum_rows(Matrix& matrix, const at::Tensor& tau) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::TensorOptions floats = matrix.float_options();
  const int64_t num_rows = matrix.num_rows();
  const int64_t num_cols = matrix.is_square() ? 0 : matrix.num_cols();
  if (matrix.panels().empty()) {
    constexpr double kNothingToSum = -std::numeric_limits<double>::infinity();
    return {at::full({num_rows}, kNothingToSum, floats),
            at::full({num_cols}, kNothingToSum, floats)};
  }
  const at::Tensor lse = at::empty({num_rows}, floats), lse_refs = at::empty({num_cols}, floats);
  const at::Tensor row_parts = at::empty({matrix.sizes().row_parts, 2}, floats);
  const at::Tensor col_parts = at::empty({matrix.sizes().col_parts, 2}, floats);
  const at::Tensor row_totals = at::empty({num_rows, 2}, floats);
  const at::Tensor col_totals = at::empty({num_cols, 2}, floats);
  LogSums sums = {structures<LogSum>(row_parts),  structures<LogSum>(col_parts),
                  structures<LogSum>(row_totals), structures<LogSum>(col_totals),
                  structures<float>(lse),         structures<float>(lse_refs)};
  if (matrix.is_square()) sums.col_totals = sums.row_totals;
  for (const Panel& panel : matrix.panels()) {
    launch(sum_exponentials, tiles(panel), stream, matrix.products(panel), panel, scalar_of(tau),
           structures<LogSum>(row_parts), structures<LogSum>(col_parts));
    merge(matrix, panel, sums, true, 1, stream);
  }
  return {lse, lse_refs};
}

PositiveSums sum_positives(Matrix& matrix, const at::Tensor& tau, const at::Tensor& lse,
                           const Positives& positives, at::TensorList gamma, bool is_hard) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::TensorOptions floats = matrix.float_options();
  const int64_t num_rows = matrix.num_rows();
  const Labels labels = positives.labels(gamma, is_hard);
  PositiveSums out;
  const bool is_empty = matrix.panels().empty();
  for (int64_t k = 0; k < labels.size; ++k) {
    for (auto* list : {&out.loss, &out.weight_sum}) {
      list->push_back(is_empty ? at::zeros({num_rows}, floats) : at::empty({num_rows}, floats));
    }
  }
  const at::Tensor row_parts = at::empty({labels.size, matrix.sizes().row_parts, 2}, floats);
  const at::Tensor col_parts =
      at::empty({labels.size, matrix.is_square() ? matrix.sizes().col_parts : 0, 2}, floats);
  const at::Tensor totals = at::empty({labels.size, num_rows, 2}, floats.dtype(at::kDouble));
  PairSums sums = {structures<PairSum>(row_parts), structures<PairSum>(col_parts),
                   structures<PairTotal>(totals), num_rows};
  for (int64_t k = 0; k < labels.size; ++k) {
    sums.num_pos[k] = positives.num_pos()[k].const_data_ptr<int64_t>();
    sums.loss[k] = structures<float>(out.loss[k]);
    sums.weight_sum[k] = structures<float>(out.weight_sum[k]);
  }
  for (const Panel& panel : matrix.panels()) {
    launch(sum_positive_pairs, tiles(panel, labels.size), stream, matrix.products(panel), panel,
           scalar_of(tau), lse.const_data_ptr<float>(), labels, structures<PairSum>(row_parts),
           structures<PairSum>(col_parts));
    merge(matrix, panel, sums, matrix.is_square(), labels.size, stream);
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> gradients(Matrix& matrix, const at::Tensor& tau,
                                             const Upstream& upstream, Labels labels,
                                             at::ScalarType type, bool needs_z, bool needs_refs) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const bool is_square = matrix.is_square();
  needs_refs = needs_refs && !is_square;
  for (int64_t k = 0; k < labels.size; ++k) labels.c[k] = values_of(upstream.c[k]);
  LseGradients lse = {upstream.lse.const_data_ptr<float>(), nullptr, {nullptr, 1}, {nullptr, 1}};
  if (is_square) lse.col_lse = lse.row_lse;
  if (upstream.lse_refs.defined()) lse.col_lse = upstream.lse_refs.const_data_ptr<float>();
  if (upstream.dlse.defined()) lse.row_dlse = lse.col_dlse = values_of(upstream.dlse);
  if (upstream.dlse_refs.defined()) lse.col_dlse = values_of(upstream.dlse_refs);

  const bool has_unit = type == at::kHalf && matrix.has_half_rows() && !matrix.panels().empty();
  at::Tensor dz = matrix.sums(needs_z, matrix.num_rows(), !has_unit);
  at::Tensor drefs = matrix.sums(needs_refs, matrix.num_cols(), !has_unit);
  if (matrix.panels().empty() || !(needs_z || needs_refs)) return {dz.to(type), drefs.to(type)};
  at::Tensor unit;
  if (has_unit) {
    unit = at::empty({}, matrix.float_options());
    launch(find_unit, 1, stream, lse.row_dlse, is_square ? lse.row_dlse : lse.col_dlse, labels,
           matrix.num_rows(), matrix.num_cols(), scalar_of(tau), structures<float>(unit));
  }
  const at::Tensor drows = needs_z ? dz : at::Tensor();
  const at::Tensor dcols = is_square ? drows : needs_refs ? drefs : at::Tensor();
  for (const Panel& panel : matrix.panels()) {
    const float* products = matrix.products(panel);
    const at::Tensor h = matrix.gradient(panel);
    dispatch_storage(h.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      launch(pair_gradient<T>, tiles(panel), stream, products, panel, structures<T>(h),
             panel.stride, scalar_of(tau), lse, labels,
             has_unit ? unit.const_data_ptr<float>() : nullptr);
    });
    matrix.add_products(panel, h, drows, dcols);
  }
  return {finished(dz, type, unit), finished(drefs, type, unit)};
}

}  // namespace spcl::cuda
