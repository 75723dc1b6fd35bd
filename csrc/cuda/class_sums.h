// Positive pairs of weight 1 without anything quadratic: sums over the rows of a class,
//
//   sum_{j in P(i)} z_i . z_j = z_i . (C_{y_i} - z_i),   C_k = sum_{j: y_j = k} z_j,
//
// of a rectangular matrix z_i . C_{y_i} with sums of the references.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "../arguments.h"

namespace spcl::cuda {

// Dense ids of classes, shared by rows and columns: where a class begins in the order of columns.
class Classes {
 public:
  Classes(const at::Tensor& labels, const OptionalTensor& ref_labels);

  // Returns loss, weight_sum and num_pos as positive_pair_loss does.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> loss(const at::Tensor& z, const at::Tensor& lse,
                                                      const OptionalTensor& refs,
                                                      const at::Tensor& tau) const;
  // Returns dz (N, D) and drefs (M, D), (0, D) where not needed, in float32.
  std::tuple<at::Tensor, at::Tensor> gradients(const at::Tensor& c, const at::Tensor& z,
                                               const OptionalTensor& refs, const at::Tensor& tau,
                                               bool needs_z, bool needs_refs) const;

 private:
  at::Tensor row_ids_, col_ids_;      // int64, 0 where there is no class
  at::Tensor row_known_, col_known_;  // (N, 1), (M, 1) bool: has a class that columns have
  at::Tensor num_pos_;                // (N,) int64
  bool is_square_;
};

}  // namespace spcl::cuda
