// What every op needs around its launches.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "matrix.h"
#include "scalar.cuh"

namespace spcl::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, cudaStream_t stream, Arguments... arguments) {
#ifdef __CUDACC__
  kernel<<<grid, kThreads, 0, stream>>>(arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
#else  // tests run the kernels on the host
  static_cast<void>(stream);
  SIMULATOR::launch(kernel, grid, dim3(kThreads), 0, static_cast<Parameters>(arguments)...);
#endif
}

inline dim3 tiles(const Panel& panel, int64_t depth = 1) {
  return dim3(static_cast<unsigned>(row_parts(panel)), static_cast<unsigned>(col_parts(panel)),
              static_cast<unsigned>(depth));
}

inline dim3 blocks(int64_t size, int64_t of) {
  return dim3(static_cast<unsigned>(ceil_div(size, of)));
}

// A number as kernels take it. On the device it is read there, so x must outlive the launches.
inline Scalar scalar_of(const at::Tensor& x) {
  if (x.device().is_cpu()) return scalar(x.item().toDouble());
  switch (x.scalar_type()) {
    case at::kDouble:
      return {x.const_data_ptr(), kDoubleScalar, 0, 0};
    case at::kHalf:
      return {x.const_data_ptr(), kHalfScalar, 0, 0};
    case at::kBFloat16:
      return {x.const_data_ptr(), kBFloat16Scalar, 0, 0};
    default:
      return {x.const_data_ptr(), kFloatScalar, 0, 0};
  }
}

inline Values values_of(const at::Tensor& x) { return {x.const_data_ptr<float>(), x.stride(0)}; }

}  // namespace spcl::cuda
