// infonce_terms: the passes of pair_lse, the diagonal and the means, which as operators of their own
// would take longer than the pairs of a small batch. The mathematics is in
// spcl_fast/ops/infonce_terms.py, the sums are in double precision.
#include <torch/csrc/stable/library.h>

#include "checks.h"
#include "ops.h"
#include "terms.h"

namespace spcl {
namespace {

void check_pairs(const Tensor& anchors, const Tensor& refs) {
  check_rows("anchors", anchors);
  check_refs(anchors, refs);
  SPCL_CHECK(refs.size(0) >= anchors.size(0), "refs must have at least ", anchors.size(0),
             " rows, got ", refs.size(0));
}

// sum_i a_i . r_i.
double sum_of_products(const Rows& anchors, const Rows& refs) {
  double total = 0;
  for (int64_t i = 0; i < anchors.size; ++i) {
    const float *a = anchors.data + i * anchors.stride, *r = refs.data + i * refs.stride;
    double dot = 0;
    for (int64_t d = 0; d < anchors.D; ++d) dot += static_cast<double>(a[d]) * r[d];
    total += dot;
  }
  return total;
}

double sum_of(const Tensor& x) {
  const float* value = x.const_data_ptr<float>();
  double total = 0;
  for (int64_t i = 0; i < x.numel(); ++i) total += value[i];
  return total;
}

Tensor filled(int64_t size, double value) {
  const Tensor x = empty({size});
  std::fill_n(x.mutable_data_ptr<float>(), size, static_cast<float>(value));
  return x;
}

// out_i -= factor x_i.
void subtract(double factor, const Rows& x, float* out) {
  for (int64_t i = 0; i < x.size; ++i, out += x.D) {
    const float* row = x.data + i * x.stride;
    for (int64_t d = 0; d < x.D; ++d) out[d] -= static_cast<float>(factor * row[d]);
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> infonce_terms_fwd_cpu(
    const Tensor& anchors, const Tensor& refs, double tau, bool symmetric, int64_t num_cached) {
  check_pairs(anchors, refs);
  const auto [lse, refs_lse, cache] = pair_lse_fwd_cpu(anchors, refs, scalar(tau), num_cached);
  const int64_t N = anchors.size(0);
  const Operand rows(anchors), cols(refs);
  const double own = symmetric ? .5 * (sum_of(lse) + sum_of(refs_lse)) : sum_of(lse);
  const double total = own - sum_of_products(rows.rows(), cols.rows()) / tau;
  const float mean = static_cast<float>(total / static_cast<double>(N));
  const Tensor loss = empty({}), info = empty({3}), num_anchors = empty({}, ScalarType::Long);
  *loss.mutable_data_ptr<float>() = mean;
  float* values = info.mutable_data_ptr<float>();
  values[0] = mean;
  values[1] = 1;
  values[2] = static_cast<float>(collapse_of(anchors));
  *num_anchors.mutable_data_ptr<int64_t>() = N;
  return {loss, lse, info, num_anchors, refs_lse, cache};
}

std::tuple<Tensor, Tensor> infonce_terms_bwd_cpu(const Tensor& anchors, const Tensor& refs,
                                                 double tau, bool symmetric, const Tensor& lse,
                                                 const Tensor& dloss, const Tensor& refs_lse,
                                                 const Tensor& cache, bool needs_z,
                                                 bool needs_refs) {
  check_pairs(anchors, refs);
  check_given("dloss", dloss, ScalarType::Float, {});
  const int64_t N = anchors.size(0);
  const double c = *dloss.const_data_ptr<float>() / static_cast<double>(N);
  const Tensor dlse = filled(N, symmetric ? .5 * c : c);
  const Tensor drefs_lse = filled(refs.size(0), symmetric ? .5 * c : 0);
  const auto [dz, drefs] = pair_lse_bwd_cpu(anchors, refs, lse, refs_lse, dlse, drefs_lse,
                                            scalar(tau), cache, {}, {}, {}, needs_z, needs_refs);
  const Operand rows(anchors), cols(refs);
  Rows positives = cols.rows();
  positives.size = N;
  if (needs_z) subtract(c / tau, positives, dz.mutable_data_ptr<float>());
  if (needs_refs) subtract(c / tau, rows.rows(), drefs.mutable_data_ptr<float>());
  return {dz, drefs};
}

STABLE_TORCH_LIBRARY_IMPL(spcl_fast, CPU, m) {
  m.impl("infonce_terms_fwd_native", TORCH_BOX(&infonce_terms_fwd_cpu));
  m.impl("infonce_terms_bwd_native", TORCH_BOX(&infonce_terms_bwd_cpu));
}

}  // namespace spcl
