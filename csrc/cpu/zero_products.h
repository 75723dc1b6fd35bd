// Products of a zero with what is not finite.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

#include "operand.h"

namespace spcl {

// Adds the sum of 0 x_j, (D,), to every row of `out`: what a dense product adds for the pairs that
// tiles leave out. It is NaN for a feature that is not finite in some row, and else nothing.
inline void add_zero_products(const Operand& operand, const at::Tensor& x, at::Tensor& out) {
  if (out.size(0) == 0 || std::isfinite(operand.max_squared_norm())) return;
  out.add_(x.mul(0).sum(0));
}

}  // namespace spcl
