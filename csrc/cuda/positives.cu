#include "positives.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/sort.h>

#include "launch.h"
#include "positive_ranges.cuh"

namespace spcl::cuda {

Positives::Positives(at::TensorList labels, const OptionalTensor& ref_labels,
                     at::ArrayRef<double> windows, const OptionalTensor& order)
    : size_(static_cast<int64_t>(labels.size())), range_stride_(0), rank_stride_(0) {
  if (size_ == 0) return;
  const at::TensorOptions ints = labels[0].options().dtype(at::kInt);
  // So that the ranks of every label can be read 16 bytes at a time.
  range_stride_ = round_up(labels[0].size(0), kColsOfLane);
  rank_stride_ = round_up((ref_labels ? *ref_labels : labels[0]).size(0), kColsOfLane);
  const int64_t size = size_ * (2 * range_stride_ + rank_stride_);
  if (order && order->numel() == size) {
    order_ = *order;
    return;
  }
  order_ = at::empty({size}, ints);
  for (int64_t k = 0; k < size_; ++k) {
    num_pos_.push_back(at::empty({labels[k].size(0)}, ints.dtype(at::kLong)));
    if (windows[k] >= 0) {
      find<double>(labels[k], ref_labels, windows[k]);
    } else {
      find<int64_t>(labels[k], ref_labels, 0);
    }
  }
}

Labels Positives::labels(at::TensorList gamma, bool is_hard) const {
  Labels out = {};
  out.size = size_;
  out.is_hard = is_hard;
  if (size_ == 0) return out;
  const int* order = order_.const_data_ptr<int>();
  out.ranges = reinterpret_cast<const int2*>(order);
  out.ranks = order + size_ * 2 * range_stride_;
  out.range_stride = range_stride_;
  out.rank_stride = rank_stride_;
  for (int64_t k = 0; k < size_; ++k) out.gamma[k] = scalar_of(gamma[k]);
  return out;
}

// Of the label whose num_pos is the last.
template <class Key>
void Positives::find(const at::Tensor& labels, const OptionalTensor& ref_labels, Key window) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  constexpr at::ScalarType kType = c10::CppTypeToScalarType<Key>::value;
  const at::Tensor rows = labels.to(kType).contiguous();
  const at::Tensor cols = ref_labels ? ref_labels->to(kType).contiguous() : rows;
  const int64_t num_rows = rows.size(0), num_cols = cols.size(0);
  if (num_rows + num_cols == 0) return;
  const int64_t k = static_cast<int64_t>(num_pos_.size()) - 1, is_square = !ref_labels;
  int* order = order_.mutable_data_ptr<int>();
  int2* ranges = reinterpret_cast<int2*>(order) + k * range_stride_;
  int* ranks = order + size_ * 2 * range_stride_ + k * rank_stride_;
  int64_t* num_pos = num_pos_.back().mutable_data_ptr<int64_t>();
  if (num_cols <= kMostCounted) {
    launch(count_ranges<Key>, blocks(num_rows + num_cols, kWarps), stream,
           rows.const_data_ptr<Key>(), num_rows, cols.const_data_ptr<Key>(), num_cols, window,
           is_square, ranges, num_pos, ranks);
    return;
  }
  constexpr bool kHasNaN = std::is_same_v<Key, double>;
  const auto [sorted, places] = at::sort(kHasNaN ? at::nan_to_num(cols, -1.0, -1.0, -1.0) : cols,
                                         /*stable=*/true, /*dim=*/0, /*descending=*/true);
  launch(find_ranges<Key>, blocks(std::max(num_rows, num_cols), kThreads), stream,
         rows.const_data_ptr<Key>(), num_rows, sorted.template const_data_ptr<Key>(),
         places.template const_data_ptr<int64_t>(), num_cols, window, is_square, ranges, num_pos,
         ranks);
}

}  // namespace spcl::cuda
