#include "positives.h"

#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/sort.h>

#include "launch.h"
#include "positive_ranges.cuh"

namespace spcl::cuda {
namespace {

// Sortable labels: below 0 where unknown.
template <class Key>
at::Tensor keys_of(const at::Tensor& labels) {
  const at::Tensor keys = labels.to(c10::CppTypeToScalarType<Key>::value).contiguous();
  return std::is_same_v<Key, double> ? at::nan_to_num(keys, -1.0, -1.0, -1.0) : keys;
}

template <class Key>
void find(Positives& out, const at::Tensor& labels, const OptionalTensor& ref_labels, Key window) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor keys = keys_of<Key>(labels);
  const auto [sorted, order] = at::sort(ref_labels ? keys_of<Key>(*ref_labels) : keys,
                                        /*stable=*/true, /*dim=*/0, /*descending=*/true);
  const int64_t num_rows = keys.size(0), num_cols = sorted.size(0);
  const at::TensorOptions ints = keys.options().dtype(at::kInt);
  out.ranges = at::empty({num_rows, 2}, ints);
  out.ranks = at::zeros({round_up(num_cols, kColsOfLane)}, ints);
  out.num_pos = at::empty({num_rows}, keys.options().dtype(at::kLong));
  if (num_cols > 0) {
    launch(find_ranks, blocks(num_cols, kThreads), kThreads, stream,
           order.template const_data_ptr<int64_t>(), num_cols, out.ranks.mutable_data_ptr<int>());
  }
  if (num_rows > 0) {
    launch(find_ranges<Key>, blocks(num_rows, kThreads), kThreads, stream,
           keys.const_data_ptr<Key>(), num_rows, sorted.template const_data_ptr<Key>(), num_cols,
           window, !ref_labels, reinterpret_cast<int2*>(out.ranges.mutable_data_ptr<int>()),
           out.num_pos.mutable_data_ptr<int64_t>());
  }
}

}  // namespace

Positives::Positives(const at::Tensor& labels, const OptionalTensor& ref_labels,
                     std::optional<double> window) {
  if (window) {
    find<double>(*this, labels, ref_labels, *window);
  } else {
    find<int64_t>(*this, labels, ref_labels, 0);
  }
}

}  // namespace spcl::cuda
