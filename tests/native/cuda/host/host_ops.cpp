// The ops of csrc/cuda as they are, but for tensors on the CPU and kernels on the host.
#include <ATen/core/Tensor.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

// What each file registers is the device's; is_cuda() is asked by the checks alone.
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) [[maybe_unused]] static void C10_UID_NAME(m)
#define C10_UID_NAME(m) C10_CONCATENATE(registers_, C10_UID)(torch::Library & m)
#define is_cuda is_cpu

namespace at {

// Only CUDA multiplies half precision into float32.
inline Tensor& host_mm_out(Tensor& out, const Tensor& a, const Tensor& b) {
  return mm_out(out, a, b);
}
inline Tensor& host_mm_out(Tensor& out, const Tensor& a, const Tensor& b, ScalarType type) {
  return out.copy_(mm(a.to(type), b.to(type)));
}

}  // namespace at

#define mm_out host_mm_out

#include "matrix.cu"
#include "pair_lse.cu"
#include "positive_pair_histogram.cu"
#include "positive_pair_loss.cu"
#include "positives.cu"
#include "scale.cu"

#undef mm_out

// A device of one multiprocessor: small problems have several panels.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}

TORCH_LIBRARY(spcl_fast_cuda_on_host, m) {
  m.def("pair_lse_fwd", &spcl::pair_lse_fwd_cuda);
  m.def("pair_lse_bwd", &spcl::pair_lse_bwd_cuda);
  m.def("positive_pair_loss_fwd", &spcl::positive_pair_loss_fwd_cuda);
  m.def("positive_pair_loss_bwd", &spcl::positive_pair_loss_bwd_cuda);
  m.def("positive_pair_histogram", &spcl::positive_pair_histogram_cuda);
}
