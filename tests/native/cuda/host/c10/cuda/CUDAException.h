// The part of PyTorch's header that csrc/cuda uses, where kernels run on the host.
#pragma once

#include <c10/util/Exception.h>

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, #call)
