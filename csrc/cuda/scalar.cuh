// Numbers that kernels take: temperature and paces. They lie on the host, or on the device, where
// nobody but the kernel reads them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "panel.cuh"

namespace spcl::cuda {

enum ScalarKind : int { kFloatScalar, kDoubleScalar, kHalfScalar, kBFloat16Scalar };

// high + low where data is null, else what lies there.
struct Scalar {
  const void* data;
  int kind;  // a ScalarKind
  float high, low;
};

inline __host__ __device__ Scalar scalar(double value) {
  const float high = static_cast<float>(value);
  return {nullptr, kDoubleScalar, high, static_cast<float>(value - high)};
}

__device__ inline Scalar read(const Scalar& x) {
  if (!x.data) return x;
  switch (x.kind) {
    case kDoubleScalar:
      return scalar(*static_cast<const double*>(x.data));
    case kHalfScalar:
      return {nullptr, x.kind, __half2float(*static_cast<const __half*>(x.data)), 0};
    case kBFloat16Scalar:
      return {nullptr, x.kind, __bfloat162float(*static_cast<const __nv_bfloat16*>(x.data)), 0};
    default:
      return {nullptr, x.kind, *static_cast<const float*>(x.data), 0};
  }
}

// Similarities are products over tau. A second number carries what 1 / tau loses in float32.
struct Scale {
  float high, low;

  __device__ float operator()(float product) const {
    // The bounds keep inf * low from turning an infinite similarity into NaN.
    return product * high + fminf(fmaxf(product * low, -1.0f), 1.0f);
  }
};

__device__ inline Scale scale_of(const Scalar& tau) {
  const Scalar x = read(tau);
  const float high = 1 / x.high, low = high * (fmaf(-high, x.high, 1.0f) - high * x.low);
  return {high, fabsf(low) < kInf ? low : 0};  // tau can be infinite
}

// Of powers of two: log2(e) / tau.
__device__ inline Scale log2_scale_of(const Scalar& tau) {
  constexpr float kLog2ERest = 1.92596303e-8f;
  const Scale x = scale_of(tau);
  const float high = x.high * kLog2E;
  return {high, fmaf(x.high, kLog2E, -high) + fmaf(x.high, kLog2ERest, x.low * kLog2E)};
}

}  // namespace spcl::cuda
