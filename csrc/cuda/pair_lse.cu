// pair_lse by panels of products; the mathematics is in spcl_fast/ops/pair_lse.py.
//
// Memory: O(N D): rows, gradient, one panel (two in half precision), 1/8 of one for parts.
// Multiply-adds, by cuBLAS: N^2 D / 2 forward, 3 N^2 D / 2 backward, for any D. Labels cost the
// backward some operations per pair and no product.
#include "pair_lse.cuh"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "device_checks.h"
#include "launch.h"
#include "positives.h"

namespace spcl {
namespace cuda {
namespace {

// Sums of the powers of all pairs, (size,), of rows or of columns.
class LogSums {
 public:
  LogSums(int64_t size, const Matrix& matrix)
      : total_(at::zeros({size, 2}, matrix.float_options())) {
    total_.select(1, 0).fill_(-std::numeric_limits<double>::infinity());
  }

  void merge(const at::Tensor& parts, int64_t first_part, int64_t num_parts, int64_t stride,
             int64_t first, int64_t size, cudaStream_t stream) {
    if (size == 0) return;
    launch(merge_log_sums, blocks(size, kWarpSize), kThreads, stream, pointer(parts) + first_part,
           num_parts, stride, size, pointer(total_) + first);
  }
  at::Tensor lse(cudaStream_t stream) const {
    at::Tensor out = at::empty({total_.size(0)}, total_.options());
    if (out.size(0) == 0) return out;
    launch(finish_log_sums, blocks(out.size(0), kThreads), kThreads, stream, pointer(total_),
           out.size(0), out.mutable_data_ptr<float>());
    return out;
  }
  static LogSum* pointer(const at::Tensor& x) {
    return reinterpret_cast<LogSum*>(x.mutable_data_ptr<float>());
  }

 private:
  at::Tensor total_;  // (size, 2)
};

// Factors of the pairs' gradients, one a row, over tau, times `unit` (range_unit).
struct Factors {
  at::Tensor row_a, col_a;   // padded
  at::Tensor c, gamma;       // (labels, padded N), (labels,)
  at::Tensor ranges, ranks;  // (labels, padded N, 2), (labels, padded N)
  at::Tensor unit;           // undefined: 1
  LinearLabels labels;

  Factors(const Matrix& matrix, const at::Tensor& dlse, const OptionalTensor& dlse_refs,
          const at::Tensor& tau, at::TensorList label_list, at::TensorList c_list,
          at::TensorList gamma_list)
      : row_a(padded(at::div(dlse, tau))),
        col_a(dlse_refs ? padded(at::div(*dlse_refs, tau)) : row_a),
        labels{static_cast<int64_t>(label_list.size()), row_a.size(0)} {
    std::vector<at::Tensor> all_c, all_gamma, all_ranges, all_ranks;
    for (size_t k = 0; k < label_list.size(); ++k) {
      const Positives positives(label_list[k], std::nullopt, std::nullopt);
      at::Tensor ranges = at::zeros({labels.stride, 2}, positives.ranges.options());
      ranges.narrow(0, 0, matrix.num_rows()).copy_(positives.ranges);
      all_ranges.push_back(ranges);
      all_ranks.push_back(positives.ranks);
      all_c.push_back(padded(at::div(c_list[k], tau).neg_()));
      all_gamma.push_back(on_device(gamma_list[k], matrix).select(0, 0));
    }
    if (labels.size > 0) {
      c = at::stack(all_c);
      gamma = at::stack(all_gamma);
      ranges = at::stack(all_ranges);
      ranks = at::stack(all_ranks);
    }
    if (matrix.rows().scalar_type() == at::kHalf && matrix.num_rows() > 0) use_range();
  }

  template <class T>
  static const T* pointer(const at::Tensor& x) {
    using Element = std::conditional_t<std::is_same_v<T, int2>, int, T>;
    return x.defined() ? reinterpret_cast<const T*>(x.const_data_ptr<Element>()) : nullptr;
  }

 private:
  // |h| <= |a_i| + |a_j| + sum_k |c_i| + |c_j|
  void use_range() {
    const at::Tensor bound = row_a.abs().amax().add_(col_a.abs().amax());
    if (labels.size > 0) bound.add_(c.abs().amax(1).sum(), 2);
    unit = range_unit(bound);
    row_a = row_a.mul(unit);
    col_a = col_a.mul(unit);
    if (labels.size > 0) c = c.mul(unit);
  }
};

void check_backward(const at::Tensor& z, const OptionalTensor& refs, const at::Tensor& lse,
                    const OptionalTensor& lse_refs, const at::Tensor& dlse,
                    const OptionalTensor& dlse_refs, const at::Tensor& tau, at::TensorList labels,
                    at::TensorList c, at::TensorList gamma) {
  check_rows(z, refs);
  check_scalar("tau", tau, z);
  check_values("lse", lse, z);
  check_values("dlse", dlse, z);
  TORCH_CHECK_VALUE(
      refs.has_value() == lse_refs.has_value() && refs.has_value() == dlse_refs.has_value(),
      "refs, lse_refs and dlse_refs must be given together, got some alone");
  if (refs) check_values("lse_refs", *lse_refs, *refs);
  if (refs) check_values("dlse_refs", *dlse_refs, *refs);
  TORCH_CHECK_VALUE(!refs || labels.empty(), "labels must be empty with refs, got ", labels.size());
  TORCH_CHECK_VALUE(labels.size() == c.size() && labels.size() == gamma.size(),
                    "labels, c and gamma must have as many tensors, got ", labels.size(), ", ",
                    c.size(), " and ", gamma.size());
  for (size_t k = 0; k < labels.size(); ++k) {
    check_labels("labels", labels[k], z);
    check_values("c", c[k], z);
    check_scalar("gamma", gamma[k], z);
  }
}

}  // namespace
}  // namespace cuda

std::tuple<at::Tensor, at::Tensor, at::Tensor> pair_lse_fwd_cuda(const at::Tensor& z,
                                                                 const OptionalTensor& refs,
                                                                 const at::Tensor& tau,
                                                                 int64_t cache_size) {
  using namespace cuda;
  check_rows(z, refs);
  check_scalar("tau", tau, z);
  TORCH_CHECK_VALUE(cache_size == 0, "cache_size must be 0 on a CUDA device, got ", cache_size);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  Matrix matrix(z, refs);
  const at::Tensor scale = scale_of(tau, matrix, stream);
  LogSums row_sums(matrix.num_rows(), matrix);
  LogSums own_col_sums(matrix.is_square() ? 0 : matrix.num_cols(), matrix);
  LogSums& col_sums = matrix.is_square() ? row_sums : own_col_sums;
  const at::Tensor row_buffer = at::empty({matrix.sizes().row_parts, 2}, matrix.float_options());
  const at::Tensor col_buffer = at::empty({matrix.sizes().col_parts, 2}, matrix.float_options());
  for (const Panel& panel : matrix.panels()) {
    launch(sum_exponentials, tiles(panel), kThreads, stream, matrix.products(panel), panel,
           scale.const_data_ptr<float>(), LogSums::pointer(row_buffer),
           LogSums::pointer(col_buffer));
    row_sums.merge(row_buffer, 0, row_parts(panel), panel.num_rows, panel.row0, panel.num_rows,
                   stream);
    col_sums.merge(col_buffer, panel.first_col, col_parts(panel), panel.num_cols,
                   panel.col0 + panel.first_col, panel.num_cols - panel.first_col, stream);
  }
  return {row_sums.lse(stream), own_col_sums.lse(stream), at::empty({0}, matrix.float_options())};
}

std::tuple<at::Tensor, at::Tensor> pair_lse_bwd_cuda(
    const at::Tensor& z, const OptionalTensor& refs, const at::Tensor& lse,
    const OptionalTensor& lse_refs, const at::Tensor& dlse, const OptionalTensor& dlse_refs,
    const at::Tensor& tau, const at::Tensor& /*cache*/, at::TensorList labels, at::TensorList c,
    at::TensorList gamma, bool needs_z, bool needs_refs) {
  using namespace cuda;
  check_backward(z, refs, lse, lse_refs, dlse, dlse_refs, tau, labels, c, gamma);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  Matrix matrix(z, refs);
  const at::Tensor scale = scale_of(tau, matrix, stream);
  const at::Tensor row_lse = padded(lse), col_lse = refs ? padded(*lse_refs) : row_lse;
  const Factors factors(matrix, dlse, dlse_refs, tau, labels, c, gamma);
  needs_refs = needs_refs && refs;
  const int64_t D = z.size(1);
  at::Tensor dz = at::zeros({needs_z ? matrix.num_rows() : 0, D}, matrix.float_options());
  at::Tensor drefs = at::zeros({needs_refs ? matrix.num_cols() : 0, D}, matrix.float_options());
  const at::Tensor drows = needs_z ? dz : at::Tensor();
  const at::Tensor dcols = refs ? (needs_refs ? drefs : at::Tensor()) : drows;
  for (const Panel& panel : matrix.panels()) {
    if (!needs_z && !needs_refs) break;
    const float* products = matrix.products(panel);
    const at::Tensor h = matrix.gradient(panel);
    dispatch_storage(h.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      launch(pair_gradient<T>, tiles(panel), kThreads, stream, products, panel,
             static_cast<T*>(h.mutable_data_ptr()), panel.stride, scale.const_data_ptr<float>(),
             row_lse.const_data_ptr<float>(), factors.row_a.const_data_ptr<float>(),
             col_lse.const_data_ptr<float>(), factors.col_a.const_data_ptr<float>(), factors.labels,
             Factors::pointer<int2>(factors.ranges), Factors::pointer<int>(factors.ranks),
             Factors::pointer<float>(factors.c), Factors::pointer<float>(factors.gamma));
    });
    matrix.add_products(panel, h, drows, dcols);
  }
  if (factors.unit.defined()) {
    dz.div_(factors.unit);
    drefs.div_(factors.unit);
  }
  return {dz.to(z.scalar_type()), drefs.to(z.scalar_type())};
}

TORCH_LIBRARY_IMPL(spcl_fast, CUDA, m) {
  m.impl("pair_lse_fwd_native", &pair_lse_fwd_cuda);
  m.impl("pair_lse_bwd_native", &pair_lse_bwd_cuda);
}

}  // namespace spcl
