// Products of a zero with what is not finite.
#pragma once

#include <cmath>
#include <vector>

#include "operand.h"

namespace spcl {

// Adds the sum of 0 x_j, (D,), to every row of `out` (num_rows, D): what a dense product adds for
// the pairs that tiles leave out. It is NaN for a feature that is not finite in some row, otherwise
// nothing.
inline void add_zero_products(const Operand& operand, int64_t num_rows, float* out) {
  if (std::isfinite(operand.max_squared_norm())) return;
  const Rows& rows = operand.rows();
  std::vector<float> total(rows.D, 0.0f);
  for (int64_t j = 0; j < rows.size; ++j) {
    for (int64_t d = 0; d < rows.D; ++d) total[d] += 0 * rows.data[j * rows.stride + d];
  }
  for (int64_t i = 0; i < num_rows; ++i) {
    for (int64_t d = 0; d < rows.D; ++d) out[i * rows.D + d] += total[d];
  }
}

}  // namespace spcl
