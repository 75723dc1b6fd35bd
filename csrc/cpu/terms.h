// What the ops of whole losses share.
#pragma once

#include <vector>

#include "operand.h"

namespace spcl {

inline Tensor scalar(double value) {
  const Tensor x = empty({}, ScalarType::Double);
  *x.mutable_data_ptr<double>() = value;
  return x;
}

// (|sum z|^2 - sum |z|^2) / ((N - 1) sum |z|^2).
inline double collapse_of(const Tensor& z) {
  const Operand operand(z);
  const Rows& rows = operand.rows();
  const TileKernels& kernels = best_tile_kernels();
  std::vector<double> sum(rows.D, 0.0);
  const std::vector<double> zero(rows.D, 0.0);
  kernels.add_sum_of_rows(rows, 0, rows.size, nullptr, sum.data());
  double own = 0, pairs = 0;
  for (int64_t i = 0; i < rows.size; ++i) {
    own += kernels.product_with_rest(rows.data + i * rows.stride, zero.data(), -1, rows.D);
  }
  for (const double x : sum) pairs += x * x;
  const double scale = own * static_cast<double>(rows.size - 1);
  return scale == 0 ? 0 : (pairs - own) / scale;
}

}  // namespace spcl
