// positive_pair_loss by panels of products; the mathematics is in
// spcl_fast/ops/positive_pair_loss.py.
//
// How many columns hold the positives of a row is known on the device alone, and to read it would
// stall the host: so all panels are multiplied, however few of the pairs are positive.
//
// Memory: O(N D) as pair_lse. Multiply-adds, by cuBLAS: N^2 D / 2 forward, 3 N^2 D / 2 backward; a
// backward with linear weights joins that of pair_lse and costs no product of its own. With gamma =
// inf and no window spcl_fast/native/positive_pair_loss.py takes class sums instead.
#include "positive_pair_loss.cuh"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "device_checks.h"
#include "launch.h"
#include "positives.h"

namespace spcl {
namespace cuda {
namespace {

PairSum* parts_of(const at::Tensor& x) {
  return reinterpret_cast<PairSum*>(x.mutable_data_ptr<float>());
}
PairTotal* total_of(const at::Tensor& x) {
  return reinterpret_cast<PairTotal*>(x.mutable_data_ptr<double>());
}
const int2* ranges_of(const Positives& x) {
  return reinterpret_cast<const int2*>(x.ranges.const_data_ptr<int>());
}

void merge(const PairSum* parts, int64_t num_parts, int64_t stride, int64_t size, PairTotal* total,
           cudaStream_t stream) {
  if (size == 0) return;
  launch(merge_pair_sums, blocks(size, kWarpSize), kThreads, stream, parts, num_parts, stride, size,
         total);
}

}  // namespace
}  // namespace cuda

std::tuple<at::Tensor, at::Tensor, at::Tensor> positive_pair_loss_fwd_cuda(
    const at::Tensor& z, const at::Tensor& lse, const at::Tensor& labels,
    const OptionalTensor& refs, const OptionalTensor& ref_labels, const at::Tensor& tau,
    const at::Tensor& gamma, bool is_hard, std::optional<double> window) {
  using namespace cuda;
  check_pairs(z, lse, labels, refs, ref_labels, window);
  check_scalar("tau", tau, z);
  check_scalar("gamma", gamma, z);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  Matrix matrix(z, refs);
  const int64_t num_rows = matrix.num_rows();
  const at::Tensor scale = scale_of(tau, matrix, stream), pace = on_device(gamma, matrix);
  const at::Tensor row_lse = padded(lse);
  const Positives positives(labels, ref_labels, window);
  const at::Tensor total = at::zeros({num_rows, 2}, matrix.float_options().dtype(at::kDouble));
  const at::Tensor row_buffer = at::empty({matrix.sizes().row_parts, 2}, matrix.float_options());
  const at::Tensor col_buffer = at::empty({matrix.sizes().col_parts, 2}, matrix.float_options());
  for (const Panel& panel : matrix.panels()) {
    launch(sum_positive_pairs, tiles(panel), kThreads, stream, matrix.products(panel), panel,
           scale.const_data_ptr<float>(), row_lse.const_data_ptr<float>(), ranges_of(positives),
           positives.ranks.const_data_ptr<int>(), pace.const_data_ptr<float>(), is_hard,
           parts_of(row_buffer), parts_of(col_buffer));
    merge(parts_of(row_buffer), row_parts(panel), panel.num_rows, panel.num_rows,
          total_of(total) + panel.row0, stream);
    if (!matrix.is_square()) continue;
    merge(parts_of(col_buffer) + panel.first_col, col_parts(panel), panel.num_cols,
          panel.num_cols - panel.first_col, total_of(total) + panel.col0 + panel.first_col, stream);
  }
  at::Tensor loss = at::empty({num_rows}, matrix.float_options());
  at::Tensor weight_sum = at::empty({num_rows}, matrix.float_options());
  if (num_rows > 0) {
    launch(finish_pair_sums, blocks(num_rows, kThreads), kThreads, stream, total_of(total),
           positives.num_pos.const_data_ptr<int64_t>(), num_rows, loss.mutable_data_ptr<float>(),
           weight_sum.mutable_data_ptr<float>());
  }
  return {loss, weight_sum, positives.num_pos};
}

std::tuple<at::Tensor, at::Tensor> positive_pair_loss_bwd_cuda(
    const at::Tensor& c, const at::Tensor& z, const at::Tensor& lse, const at::Tensor& labels,
    const OptionalTensor& refs, const OptionalTensor& ref_labels, const at::Tensor& tau,
    const at::Tensor& gamma, bool is_hard, std::optional<double> window, bool needs_z,
    bool needs_refs) {
  using namespace cuda;
  check_pairs(z, lse, labels, refs, ref_labels, window);
  check_values("c", c, z);
  check_scalar("tau", tau, z);
  check_scalar("gamma", gamma, z);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  needs_refs = needs_refs && refs;

  Matrix matrix(z, refs);
  const int64_t D = z.size(1);
  at::Tensor dz = at::zeros({needs_z ? matrix.num_rows() : 0, D}, matrix.float_options());
  at::Tensor drefs = at::zeros({needs_refs ? matrix.num_cols() : 0, D}, matrix.float_options());
  if (matrix.panels().empty() || !(needs_z || needs_refs)) {
    return {dz.to(z.scalar_type()), drefs.to(z.scalar_type())};
  }
  const at::Tensor scale = scale_of(tau, matrix, stream), pace = on_device(gamma, matrix);
  const at::Tensor row_lse = padded(lse);
  const Positives positives(labels, ref_labels, window);
  at::Tensor factor = padded(at::div(c, tau).neg_()), unit;
  if (matrix.rows().scalar_type() == at::kHalf) {
    unit = range_unit(factor.abs().amax().mul_(2));
    factor = factor.mul(unit);
  }
  const at::Tensor drows = needs_z ? dz : at::Tensor();
  const at::Tensor dcols = refs ? (needs_refs ? drefs : at::Tensor()) : drows;
  for (const Panel& panel : matrix.panels()) {
    const float* products = matrix.products(panel);
    const at::Tensor h = matrix.gradient(panel);
    dispatch_storage(h.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      launch(positive_gradient<T>, tiles(panel), kThreads, stream, products, panel,
             static_cast<T*>(h.mutable_data_ptr()), panel.stride, scale.const_data_ptr<float>(),
             row_lse.const_data_ptr<float>(), ranges_of(positives),
             positives.ranks.const_data_ptr<int>(), factor.const_data_ptr<float>(),
             pace.const_data_ptr<float>(), is_hard);
    });
    matrix.add_products(panel, h, drows, dcols);
  }
  if (unit.defined()) {
    dz.div_(unit);
    drefs.div_(unit);
  }
  return {dz.to(z.scalar_type()), drefs.to(z.scalar_type())};
}

TORCH_LIBRARY_IMPL(spcl_fast, CUDA, m) {
  m.impl("positive_pair_loss_fwd_native", &positive_pair_loss_fwd_cuda);
  m.impl("positive_pair_loss_bwd_native", &positive_pair_loss_bwd_cuda);
}

}  // namespace spcl
