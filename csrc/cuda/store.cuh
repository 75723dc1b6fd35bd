// Writing what a thread holds of a panel, in float32 or in the half precision that products take.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "panel.cuh"

namespace spcl::cuda {

// One access: the compiler splits a plain store of these into its numbers.
template <class Vector>
__device__ inline void store_vector(void* out, Vector x) {
#ifdef __CUDA_ARCH__
  __stwb(static_cast<Vector*>(out), x);
#else
  *static_cast<Vector*>(out) = x;
#endif
}

__device__ inline void store(float* out, const float (&x)[kColsOfLane]) {
  store_vector(out, make_float4(x[0], x[1], x[2], x[3]));
}

__device__ inline unsigned join(unsigned short low, unsigned short high) {
  return low | static_cast<unsigned>(high) << 16;
}
__device__ inline unsigned short bits(__half x) { return __half_as_ushort(x); }
__device__ inline unsigned short bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
__device__ inline __half rounded(float x, __half) { return __float2half_rn(x); }
__device__ inline __nv_bfloat16 rounded(float x, __nv_bfloat16) { return __float2bfloat16_rn(x); }

template <class Half>
__device__ inline void store(Half* out, const float (&x)[kColsOfLane]) {
  const auto half = [](float value) { return bits(rounded(value, Half())); };
  const unsigned low = join(half(x[0]), half(x[1])), high = join(half(x[2]), half(x[3]));
  store_vector(out, make_uint2(low, high));
}

// Row r of a fragment; excluded pairs become 0. Columns before the padding ends are written too.
template <class T>
__device__ inline void store_row(T* h, int64_t stride, const Fragment& fragment, int r,
                                 const float (&x)[kColsOfLane]) {
  if (r >= fragment.rows || fragment.cols == 0) return;
  float out[kColsOfLane];
#pragma unroll
  for (int c = 0; c < kColsOfLane; ++c) out[c] = fragment.has(r, c) ? x[c] : 0;
  store(h + (fragment.row + r) * stride + fragment.col, out);
}

}  // namespace spcl::cuda
