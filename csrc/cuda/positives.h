// The positives of every row under several labels, found on the device (positive_ranges.cuh).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "arguments.h"
#include "labels.cuh"

namespace spcl::cuda {

class Positives {
 public:
  // windows: below 0 for equal labels. Takes one launch a label, from 8,192 columns on a sort of
  // the labels of the columns and a search per row; none if `order` is one of as many labels.
  Positives(at::TensorList labels, const OptionalTensor& ref_labels, at::ArrayRef<double> windows,
            const OptionalTensor& order = std::nullopt);

  const at::Tensor& order() const { return order_; }
  const std::vector<at::Tensor>& num_pos() const { return num_pos_; }  // (N,) int64 each
  // What kernels take, but for the factors of gradients.
  Labels labels(at::TensorList gamma, bool is_hard) const;

 private:
  template <class Key>
  void find(const at::Tensor& labels, const OptionalTensor& ref_labels, Key window);

  int64_t size_, range_stride_, rank_stride_;
  at::Tensor order_;  // int32: the ranges of all labels, then all ranks
  std::vector<at::Tensor> num_pos_;
};

}  // namespace spcl::cuda
