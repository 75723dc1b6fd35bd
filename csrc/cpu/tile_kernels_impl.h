// The kernels of tile_kernels.h for one instruction set; included once by each of
// tile_kernels_{baseline,avx2,avx512}.cpp, which define SPCL_ISA, SPCL_LANES, SPCL_ROWS and
// SPCL_VECTORS.

#include "tile_kernels.h"

namespace spcl {
namespace SPCL_ISA {
namespace {

#include "vector.h"

#include "products.h"

#include "packing.h"

#include "class_kernels.h"

#include "positive_kernels.h"

#include "softmax_kernels.h"

}  // namespace
}  // namespace SPCL_ISA

#define SPCL_KERNEL_TABLE(table, label)  \
  extern const TileKernels table = {     \
      label,                             \
      SPCL_ISA::kCols,                   \
      SPCL_ISA::pack_slivers,            \
      SPCL_ISA::pack_slices,             \
      SPCL_ISA::max_squared_norm,        \
      SPCL_ISA::add_sum_of_rows,         \
      SPCL_ISA::product_with_rest,       \
      SPCL_ISA::add_class_row,           \
      SPCL_ISA::exp_sums,                \
      SPCL_ISA::shifted_exp_sums,        \
      SPCL_ISA::softmax_gradient,        \
      SPCL_ISA::cached_softmax_gradient, \
      SPCL_ISA::any_softmax_gradient,    \
      SPCL_ISA::positive_sums,           \
      SPCL_ISA::positive_gradient,       \
      SPCL_ISA::add_rows,                \
      SPCL_ISA::add_columns,             \
  }

}  // namespace spcl
