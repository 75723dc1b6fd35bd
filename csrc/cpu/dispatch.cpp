#include <ATen/Version.h>

#include <string>

#include "tile_kernels.h"

namespace spcl {

const TileKernels& best_tile_kernels() {
  static const TileKernels& best = []() -> const TileKernels& {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (capability == "AVX512") return kAvx512Kernels;
    if (capability == "AVX2") return kAvx2Kernels;
#endif
    return kBaselineKernels;
  }();
  return best;
}

}  // namespace spcl
