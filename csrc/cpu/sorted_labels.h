// Rows sorted by label, which makes the positives of every row one interval of columns.
#pragma once

#include <optional>
#include <vector>

#include "arguments.h"
#include "tile_kernels.h"

namespace spcl {

struct SortedLabels {
  std::vector<int64_t> row_order, col_order;  // unknown labels last; no col_order if square
  std::vector<Range> positives;               // of sorted rows, in sorted columns; empty if none
  bool is_square;

  SortedLabels(const Tensor& labels, const OptionalTensor& ref_labels,
               std::optional<double> window);

  const std::vector<int64_t>& cols() const { return is_square ? row_order : col_order; }
  // A row is not a positive of itself, but lies in its own interval.
  int64_t num_pos(int64_t i) const {
    const int64_t size = positives[i].end - positives[i].begin;
    return size > 0 ? size - is_square : 0;
  }
};

}  // namespace spcl
