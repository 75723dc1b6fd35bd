// The temperature as the kernels take it; it can lie on the device.
#pragma once

#include "panel.cuh"

namespace spcl::cuda {

// scale: 1 / tau, what float32 loses of it, log2(e) / tau, what float32 loses of it. tau is read
// where it is given, else it is `value`.
__global__ void set_scale(const double* __restrict__ tau, double value, float* __restrict__ scale) {
  const double unit = threadIdx.x == 0 ? 1 : 1.44269504088896340736;
  const double factor = unit / (tau ? *tau : value);
  const float high = static_cast<float>(factor);
  scale[2 * threadIdx.x] = high;
  scale[2 * threadIdx.x + 1] = static_cast<float>(factor - high);
}

}  // namespace spcl::cuda
