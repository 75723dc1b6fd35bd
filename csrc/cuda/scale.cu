#include "scale.cuh"

#include "launch.h"

namespace spcl::cuda {

at::Tensor scale_of(const at::Tensor& tau, const Matrix& matrix, cudaStream_t stream) {
  at::Tensor scale = at::empty({4}, matrix.float_options());
  const bool is_on_host = tau.device().is_cpu();
  const at::Tensor exact = is_on_host ? tau : tau.to(at::kDouble);
  launch(set_scale, 1, 2, stream, is_on_host ? nullptr : exact.const_data_ptr<double>(),
         is_on_host ? tau.item().toDouble() : 1, scale.mutable_data_ptr<float>());
  return scale;
}

}  // namespace spcl::cuda
