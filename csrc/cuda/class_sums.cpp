#include "class_sums.h"

#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "positives.h"

namespace spcl::cuda {
namespace {

// Returns the ids of rows with these ranges, and which rows have one.
std::tuple<at::Tensor, at::Tensor> ids_of(const at::Tensor& ranges) {
  const at::Tensor begin = ranges.select(1, 0).to(at::kLong), end = ranges.select(1, 1);
  const at::Tensor known = end.gt(begin);
  return {begin.mul(known), known.unsqueeze(1)};
}

// Returns the sum of x over the class of every id in `of`, (size of `of`, D), 0 where unknown. A
// class can hold most rows: one running sum of them in float32 would lose digits, and the order in
// which float64 is added all but never shows in float32.
at::Tensor class_sums(const at::Tensor& x, const at::Tensor& ids, const at::Tensor& known,
                      int64_t num_ids, const at::Tensor& of, const at::Tensor& of_known) {
  at::Tensor sums = at::zeros({num_ids, x.size(1)}, x.options().dtype(at::kDouble));
  sums.index_add_(0, ids, at::where(known, x.to(at::kDouble), 0));
  return sums.index_select(0, of).to(at::kFloat).mul_(of_known);
}

}  // namespace

Classes::Classes(const at::Tensor& labels, const OptionalTensor& ref_labels)
    : is_square_(!ref_labels) {
  const Positives rows(labels, ref_labels, std::nullopt);
  std::tie(row_ids_, row_known_) = ids_of(rows.ranges);
  num_pos_ = rows.num_pos;
  if (is_square_) {
    col_ids_ = row_ids_, col_known_ = row_known_;
  } else {
    std::tie(col_ids_, col_known_) =
        ids_of(Positives(*ref_labels, std::nullopt, std::nullopt).ranges);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> Classes::loss(const at::Tensor& z,
                                                             const at::Tensor& lse,
                                                             const OptionalTensor& refs,
                                                             const at::Tensor& tau) const {
  const int64_t num_ids = std::max<int64_t>(col_ids_.size(0), 1);
  const at::Tensor rows = z.to(at::kFloat);
  at::Tensor sums =
      class_sums(refs ? *refs : z, col_ids_, col_known_, num_ids, row_ids_, row_known_);
  if (is_square_) sums.sub_(rows);
  const at::Tensor sim = rows.mul(sums).sum(1).div_(tau).div_(num_pos_.clamp_min(1));
  return {at::where(num_pos_.gt(0), lse.sub(sim), 0), num_pos_.to(at::kFloat), num_pos_};
}

std::tuple<at::Tensor, at::Tensor> Classes::gradients(const at::Tensor& c, const at::Tensor& z,
                                                      const OptionalTensor& refs,
                                                      const at::Tensor& tau, bool needs_z,
                                                      bool needs_refs) const {
  const int64_t num_ids = std::max<int64_t>(col_ids_.size(0), 1), D = z.size(1);
  const at::Tensor factor = c.div(tau).neg_().unsqueeze(1), rows = z.to(at::kFloat);
  const at::TensorOptions options = rows.options();
  at::Tensor dz = at::zeros({0, D}, options), drefs = at::zeros({0, D}, options);
  if (needs_z) {
    dz = class_sums(refs ? *refs : z, col_ids_, col_known_, num_ids, row_ids_, row_known_)
             .mul_(factor);
  }
  if (needs_z && is_square_) {
    const at::Tensor weighted = rows.mul(factor);
    dz.add_(class_sums(weighted, row_ids_, row_known_, num_ids, row_ids_, row_known_));
    dz.sub_(weighted.mul_(row_known_), 2);
  }
  if (needs_refs) {
    drefs = class_sums(rows.mul(factor), row_ids_, row_known_, num_ids, col_ids_, col_known_);
  }
  return {dz, drefs};
}

}  // namespace spcl::cuda
