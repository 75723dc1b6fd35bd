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
  const int64_t num_blocks = operand.num_blocks(), D = rows.D;
  const std::vector<double> zero(D, 0.0);
  std::vector<double> sums(std::max<int64_t>(num_blocks, 1) * D, 0.0), squares(num_blocks, 0.0);
  parallel_for(0, num_blocks, operand.grain(), [&](int64_t first, int64_t last) {
    const TileKernels& kernels = best_tile_kernels();
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = operand.begin(b), size = operand.size(b);
      kernels.add_sum_of_rows(rows, begin, size, nullptr, &sums[b * D]);
      for (int64_t i = begin; i < begin + size; ++i) {
        squares[b] += kernels.product_with_rest(rows.data + i * rows.stride, zero.data(), -1, D);
      }
    }
  });
  double own = 0, pairs = 0;
  for (int64_t b = 0; b < num_blocks; ++b) {
    own += squares[b];
    for (int64_t d = 0; b > 0 && d < D; ++d) sums[d] += sums[b * D + d];
  }
  for (int64_t d = 0; d < D; ++d) pairs += sums[d] * sums[d];
  const double scale = own * static_cast<double>(rows.size - 1);
  return scale == 0 ? 0 : (pairs - own) / scale;
}

}  // namespace spcl
