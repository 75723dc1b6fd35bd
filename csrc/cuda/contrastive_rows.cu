// contrastive_rows by panels of products; the mathematics is in spcl_fast/ops/contrastive_rows.py.
//
// The forward takes two passes, since weights come from log-sum-exps: one for the log-sum-exps, one
// for the positives of all labels. The backward takes one. Where one panel is the whole matrix its
// products serve both passes of the forward.
//
// Memory: O(N D) as pair_lse, with 3/64 of a panel a label for parts. Multiply-adds, by cuBLAS:
// N^2 D forward, 3 N^2 D / 2 backward, however many labels there are.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "device_checks.h"
#include "launch.h"
#include "passes.h"

namespace spcl {
namespace cuda {
namespace {

void check_all_labels(const at::Tensor& z, at::TensorList labels, at::TensorList gamma,
                      at::ArrayRef<double> windows) {
  TORCH_CHECK_VALUE(labels.size() <= kMostLabels, "labels must be at most ", kMostLabels, ", got ",
                    labels.size());
  TORCH_CHECK_VALUE(labels.size() == gamma.size() && labels.size() == windows.size(),
                    "labels, gamma and windows must have as many, got ", labels.size(), ", ",
                    gamma.size(), " and ", windows.size());
  for (size_t k = 0; k < labels.size(); ++k) {
    check_labels("labels", labels[k], z);
    check_scalar("gamma", gamma[k], z);
  }
}

}  // namespace
}  // namespace cuda

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>,
           at::Tensor>
contrastive_rows_fwd_cuda(const at::Tensor& z, const at::Tensor& tau, at::TensorList labels,
                          at::TensorList gamma, at::ArrayRef<double> windows, bool is_hard) {
  using namespace cuda;
  check_rows(z, std::nullopt);
  check_scalar("tau", tau, z);
  check_all_labels(z, labels, gamma, windows);
  TORCH_CHECK_VALUE(!labels.empty(), "labels must be at least 1, got 0");
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());

  Matrix matrix(z, std::nullopt);
  const Positives positives(labels, std::nullopt, windows);
  const at::Tensor lse = std::get<0>(sum_rows(matrix, tau));
  const PositiveSums sums = sum_positives(matrix, tau, lse, positives, gamma, is_hard);
  return {lse, sums.loss, sums.weight_sum, positives.num_pos(), positives.order()};
}

at::Tensor contrastive_rows_bwd_cuda(const at::Tensor& z, const at::Tensor& lse,
                                     const at::Tensor& dlse, const at::Tensor& tau,
                                     at::TensorList labels, at::TensorList c, at::TensorList gamma,
                                     at::ArrayRef<double> windows, bool is_hard,
                                     const at::Tensor& order) {
  using namespace cuda;
  check_rows(z, std::nullopt);
  check_scalar("tau", tau, z);
  check_values("lse", lse, z);
  check_values("dlse", dlse, z);
  check_all_labels(z, labels, gamma, windows);
  TORCH_CHECK_VALUE(c.size() == labels.size(), "c must have ", labels.size(), " tensors, got ",
                    c.size());
  for (const at::Tensor& x : c) check_values("c", x, z);
  check_device("order", order, z);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());

  Matrix matrix(z, std::nullopt);
  const Positives positives(labels, std::nullopt, windows, order);
  const Upstream upstream = {lse.contiguous(), {}, dlse, {}, c.vec()};
  return std::get<0>(gradients(matrix, tau, upstream, positives.labels(gamma, is_hard),
                               z.scalar_type(), true, false));
}

TORCH_LIBRARY_IMPL(spcl_fast, CUDA, m) {
  m.impl("contrastive_rows_fwd_native", &contrastive_rows_fwd_cuda);
  m.impl("contrastive_rows_bwd_native", &contrastive_rows_bwd_cuda);
}

}  // namespace spcl
