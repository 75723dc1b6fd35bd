// The part of PyTorch's header that csrc/cuda uses, where kernels run on the host.
#pragma once

#include <cuda_runtime_api.h>

namespace c10::cuda {

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
