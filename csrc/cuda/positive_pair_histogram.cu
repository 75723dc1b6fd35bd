// positive_pair_histogram by panels of products; the contract is in
// spcl_fast/ops/positive_pair_histogram.py.
//
// Memory: O(N D) as pair_lse. Multiply-adds, by cuBLAS: N^2 D / 2, as positive_pair_loss.
#include "positive_pair_histogram.cuh"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "device_checks.h"
#include "launch.h"
#include "positives.h"

namespace spcl {

at::Tensor positive_pair_histogram_cuda(const at::Tensor& z, const at::Tensor& lse,
                                        const at::Tensor& labels, const OptionalTensor& refs,
                                        const OptionalTensor& ref_labels, const at::Tensor& tau,
                                        const at::Tensor& upper, int64_t bins,
                                        std::optional<double> window) {
  using namespace cuda;
  check_pairs(z, lse, labels, refs, ref_labels, window);
  check_scalar("tau", tau, z);
  check_scalar("upper", upper, z);
  TORCH_CHECK_VALUE(bins > 0, "bins must be at least 1, got ", bins);
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const c10::cuda::CUDAGuard guard(z.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  Matrix matrix(z, refs);
  const at::Tensor row_lse = lse.contiguous();
  const Positives positives(labels, ref_labels, window.value_or(-1));
  const Labels found = positives.labels(upper, false);
  at::Tensor counts = at::zeros({bins}, matrix.float_options().dtype(at::kLong));
  for (const Panel& panel : matrix.panels()) {
    launch(count_positive_pairs, tiles(panel), stream, matrix.products(panel), panel,
           scalar_of(tau), row_lse.const_data_ptr<float>(), found.ranges, found.ranks,
           scalar_of(upper), bins, reinterpret_cast<Count*>(counts.mutable_data_ptr<int64_t>()));
  }
  return counts;
}

TORCH_LIBRARY_IMPL(spcl_fast, CUDA, m) {
  m.impl("positive_pair_histogram_native", &positive_pair_histogram_cuda);
}

}  // namespace spcl
