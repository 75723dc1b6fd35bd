#include <cstring>

#include "tile_kernels.h"

namespace spcl {
namespace {

const TileKernels* best = &kBaselineKernels;

}  // namespace

const TileKernels& best_tile_kernels() { return *best; }

void use_cpu_capability([[maybe_unused]] const char* name) {
#if defined(__x86_64__)
  if (std::strcmp(name, "AVX512") == 0) best = &kAvx512Kernels;
  if (std::strcmp(name, "AVX2") == 0) best = &kAvx2Kernels;
#endif
}

}  // namespace spcl
