// positive_pair_loss by panels of products; the mathematics is in
// spcl_fast/ops/positive_pair_loss.py.
//
// How many columns hold the positives of a row is known on the device alone, and to read it would
// stall the host: so all panels are multiplied, however few of the pairs are positive.
//
// Memory: O(N D) as pair_lse. Multiply-adds, by cuBLAS: N^2 D / 2 forward, 3 N^2 D / 2 backward;
// in contrastive_rows the backward costs no product of its own.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "device_checks.h"
#include "launch.h"
#include "passes.h"

namespace spcl {

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

  Matrix matrix(z, refs);
  const Positives positives(labels, ref_labels, window.value_or(-1));
  const PositiveSums sums = sum_positives(matrix, tau, lse.contiguous(), positives, gamma, is_hard);
  return {sums.loss[0], sums.weight_sum[0], positives.num_pos()[0]};
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

  Matrix matrix(z, refs);
  const Positives positives(labels, ref_labels, window.value_or(-1));
  const Upstream upstream = {lse.contiguous(), {}, {}, {}, {c}};
  return gradients(matrix, tau, upstream, positives.labels(gamma, is_hard), z.scalar_type(),
                   needs_z, needs_refs);
}

TORCH_LIBRARY_IMPL(spcl_fast, CUDA, m) {
  m.impl("positive_pair_loss_fwd_native", &positive_pair_loss_fwd_cuda);
  m.impl("positive_pair_loss_bwd_native", &positive_pair_loss_bwd_cuda);
}

}  // namespace spcl
