// Vectors of 128 bits, which every 64-bit CPU has.

#define SPCL_ISA baseline
#define SPCL_LANES 4
#if defined(__aarch64__)
#define SPCL_ROWS 8  // of 32 registers
#else
#define SPCL_ROWS 4  // of 16 registers
#endif
#define SPCL_VECTORS 2

#include "tile_kernels_impl.h"

namespace spcl {
SPCL_KERNEL_TABLE(kBaselineKernels, "baseline");
}  // namespace spcl
