// What every op needs around its launches.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "matrix.h"
#include "store.cuh"

namespace spcl::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream,
            Arguments... arguments) {
#ifdef __CUDACC__
  kernel<<<grid, threads, 0, stream>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
#else  // tests run the kernels on the host
  static_cast<void>(stream);
  SIMULATOR::launch(kernel, grid, dim3(threads), 0, static_cast<Parameters>(arguments)...);
#endif
}

inline dim3 tiles(const Panel& panel) {
  return dim3(static_cast<unsigned>(row_parts(panel)), static_cast<unsigned>(col_parts(panel)));
}

inline dim3 blocks(int64_t size, int64_t of) {
  return dim3(static_cast<unsigned>(ceil_div(size, of)));
}

// A copy that kernels can read 16 bytes at a time to its end.
inline at::Tensor padded(const at::Tensor& x) {
  at::Tensor out = at::zeros({round_up(x.size(0), kColsOfLane)}, x.options());
  out.narrow(0, 0, x.size(0)).copy_(x);
  return out;
}

// tau as the kernels take it: what set_scale makes of it, (4,).
at::Tensor scale_of(const at::Tensor& tau, const Matrix& matrix, cudaStream_t stream);

// A number on the device in float32, (1,).
inline at::Tensor on_device(const at::Tensor& x, const Matrix& matrix) {
  if (x.device().is_cpu()) return at::full({1}, x.item(), matrix.float_options());
  return x.to(at::kFloat).reshape({1});
}

// float16 reaches from 2^-24 to 2^16: gradients of pairs are stored times a power of two that takes
// their bound to 2^14, and what they sum up to is divided by it. bound: (), as is what is returned.
inline at::Tensor range_unit(const at::Tensor& bound) {
  return bound.clamp_min(1e-30).reciprocal_().mul_(1 << 14).log2_().floor_().exp2_();
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

}  // namespace spcl::cuda
