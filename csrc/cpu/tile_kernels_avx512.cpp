// Vectors of 512 bits; 32 registers.

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define SPCL_ISA avx512
#define SPCL_LANES 16
#define SPCL_ROWS 8
#define SPCL_VECTORS 3

#include "tile_kernels_impl.h"

namespace spcl {
SPCL_KERNEL_TABLE(kAvx512Kernels, "AVX-512");
}  // namespace spcl

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
