// The positives of every row, found on the device (positive_ranges.cuh).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../arguments.h"

namespace spcl::cuda {

struct Positives {
  at::Tensor ranges;   // (N, 2) int32
  at::Tensor ranks;    // (M,) int32, padded
  at::Tensor num_pos;  // (N,) int64

  // Costs a sort of the columns' labels and a search per row.
  Positives(const at::Tensor& labels, const OptionalTensor& ref_labels,
            std::optional<double> window);
};

}  // namespace spcl::cuda
