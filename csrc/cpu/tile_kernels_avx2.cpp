// Vectors of 256 bits; 16 registers.

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define SPCL_ISA avx2
#define SPCL_LANES 8
#define SPCL_ROWS 4
#define SPCL_VECTORS 3

#include "tile_kernels_impl.h"

namespace spcl {
SPCL_KERNEL_TABLE(kAvx2Kernels, "AVX2");
}  // namespace spcl

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
