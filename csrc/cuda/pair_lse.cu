// pair_lse by panels of products; the mathematics is in spcl_fast/ops/pair_lse.py.
//
// Memory: O(N D): rows, gradient, one panel (1.5 in half precision) and 3/64 of one for parts.
// Multiply-adds, by cuBLAS: N^2 D / 2 forward, 3 N^2 D / 2 backward, for any D.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "device_checks.h"
#include "launch.h"
#include "passes.h"

namespace spcl {

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

  Matrix matrix(z, refs);
  const auto [lse, lse_refs] = sum_rows(matrix, tau);
  return {lse, lse_refs, at::empty({0}, matrix.float_options())};
}

// Labels join the gradient in contrastive_rows_bwd_native.
std::tuple<at::Tensor, at::Tensor> pair_lse_bwd_cuda(
    const at::Tensor& z, const OptionalTensor& refs, const at::Tensor& lse,
    const OptionalTensor& lse_refs, const at::Tensor& dlse, const OptionalTensor& dlse_refs,
    const at::Tensor& tau, const at::Tensor& /*cache*/, at::TensorList labels, at::TensorList /*c*/,
    at::TensorList /*gamma*/, bool needs_z, bool needs_refs) {
  using namespace cuda;
  check_rows(z, refs);
  check_scalar("tau", tau, z);
  check_values("lse", lse, z);
  check_values("dlse", dlse, z);
  TORCH_CHECK_VALUE(
      refs.has_value() == lse_refs.has_value() && refs.has_value() == dlse_refs.has_value(),
      "refs, lse_refs and dlse_refs must be given together, got some alone");
  if (refs) check_values("lse_refs", *lse_refs, *refs);
  if (refs) check_values("dlse_refs", *dlse_refs, *refs);
  TORCH_CHECK_VALUE(labels.empty(), "labels must be empty on a CUDA device, got ", labels.size());
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());

  Matrix matrix(z, refs);
  Upstream upstream = {lse.contiguous(), {}, dlse, {}, {}};
  if (refs) upstream.lse_refs = lse_refs->contiguous(), upstream.dlse_refs = *dlse_refs;
  return gradients(matrix, tau, upstream, Labels{}, z.scalar_type(), needs_z, needs_refs);
}

TORCH_LIBRARY_IMPL(spcl_fast, CUDA, m) {
  m.impl("pair_lse_fwd_native", &pair_lse_fwd_cuda);
  m.impl("pair_lse_bwd_native", &pair_lse_bwd_cuda);
}

}  // namespace spcl
