// contrastive_terms: the passes of the other ops and the sums between them, which as operators of
// their own would take longer than the pairs of a small batch. The mathematics is in
// spcl_fast/ops/contrastive_terms.py, the sums are in double precision.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "checks.h"
#include "ops.h"
#include "terms.h"

namespace spcl {
namespace {

// Of K labels of N rows.
struct Labels {
  const Tensors& values;
  const Tensors gamma;
  const std::vector<double>& windows;  // below 0 for equal labels
  bool is_hard;

  int64_t size() const { return static_cast<int64_t>(values.size()); }
  void check() const {
    SPCL_CHECK(gamma.size() == values.size() && windows.size() == values.size(),
               "gamma and windows must have one value a label, ", values.size(), ", got ",
               gamma.size(), " and ", windows.size());
  }
};

PositivePairs pairs_of(const Tensor& z, const Tensor& lse, const Tensor& tau, const Labels& labels,
                       int64_t k) {
  static const OptionalTensor none;
  const double window = labels.windows[k];
  return {z,   lse, labels.values[k], none, none, tau, labels.gamma[k], labels.is_hard,
          window < 0 ? std::nullopt : std::optional<double>(window)};
}

Tensors scalars(const std::vector<double>& values) {
  Tensors out;
  for (const double x : values) out.push_back(scalar(x));
  return out;
}

// The means of a label.
struct Term {
  double loss, objective, mean_weight, slope;
  int64_t num_anchors;
};

Term reduce(const float* loss, const float* weight_sum, const int64_t* num_pos, int64_t N,
            double gamma, bool is_hard, bool corrects) {
  double losses = 0, weights = 0, shares = 0;
  int64_t count = 0, anchors = 0;
  for (int64_t i = 0; i < N; ++i) {
    losses += loss[i];
    weights += weight_sum[i];
    if (num_pos[i] == 0) continue;
    shares += weight_sum[i] / static_cast<double>(num_pos[i]);
    count += num_pos[i];
    ++anchors;
  }
  const double num_anchors = static_cast<double>(std::max<int64_t>(anchors, 1));
  Term term;
  term.num_anchors = anchors;
  term.slope = 1 / num_anchors;
  term.loss = losses / num_anchors;
  term.mean_weight = weights / static_cast<double>(std::max<int64_t>(count, 1));
  term.objective = term.loss;
  if (!std::isinf(gamma)) {
    term.objective = (term.loss - gamma * shares / num_anchors) * (is_hard ? 1 : .5);
  }
  if (corrects && term.mean_weight > 0) {
    term.loss /= term.mean_weight;
    term.slope /= term.mean_weight;
  }
  return term;
}

// Mean weight and anchors of all labels together; weight_sum and num_pos (K, N).
std::pair<double, int64_t> of_all_labels(const float* weight_sum, const int64_t* num_pos, int64_t K,
                                         int64_t N) {
  double weights = 0;
  int64_t count = 0, anchors = 0;
  for (int64_t i = 0; i < N; ++i) {
    int64_t of_row = 0;
    for (int64_t k = 0; k < K; ++k) {
      weights += weight_sum[k * N + i];
      of_row += num_pos[k * N + i];
    }
    count += of_row;
    anchors += of_row > 0;
  }
  return {weights / static_cast<double>(std::max<int64_t>(count, 1)), anchors};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
contrastive_terms_fwd_cpu(const Tensor& z, double tau_value, const Tensors& values,
                          const std::vector<double>& gamma, const std::vector<double>& windows,
                          const std::vector<double>& factors, bool is_hard, bool corrects,
                          int64_t num_cached) {
  const Labels labels = {values, scalars(gamma), windows, is_hard};
  labels.check();
  const Tensor tau = scalar(tau_value);
  const int64_t K = labels.size(), N = z.size(0);
  SPCL_CHECK(static_cast<int64_t>(factors.size()) == K, "factors must have one value a label, ", K,
             ", got ", factors.size());
  const auto [lse, no_refs, cache] = pair_lse_fwd_cpu(z, std::nullopt, tau, num_cached);
  const Tensor weight_sum = empty({K, N}), num_pos = empty({K, N}, ScalarType::Long);
  const Tensor slopes = empty({2, K}, ScalarType::Double), info = empty({K + 1, 3});
  const Tensor loss = empty({}), losses = empty({K}), num_anchors = empty({K + 1}, ScalarType::Long);
  float* weight_data = weight_sum.mutable_data_ptr<float>();
  int64_t* num_data = num_pos.mutable_data_ptr<int64_t>();
  int64_t* anchors = num_anchors.mutable_data_ptr<int64_t>();
  double* slope = slopes.mutable_data_ptr<double>();
  auto* line = reinterpret_cast<float(*)[3]>(info.mutable_data_ptr<float>());
  std::vector<float> row_loss(N);
  double total = 0, objective = 0;
  for (int64_t k = 0; k < K; ++k) {
    float* weights = weight_data + k * N;
    int64_t* counts = num_data + k * N;
    positive_losses(pairs_of(z, lse, tau, labels, k), row_loss.data(), weights, counts);
    const Term term = reduce(row_loss.data(), weights, counts, N, gamma[k], is_hard, corrects);
    total += factors[k] * term.loss;
    objective += factors[k] * term.objective;
    losses.mutable_data_ptr<float>()[k] = static_cast<float>(term.loss);
    slope[k] = factors[k] * term.slope;
    slope[K + k] = term.slope;
    line[k][0] = static_cast<float>(term.objective);
    line[k][1] = static_cast<float>(term.mean_weight);
    line[k][2] = 0;
    anchors[k] = term.num_anchors;
  }
  const auto [mean_weight, any] = of_all_labels(weight_data, num_data, K, N);
  *loss.mutable_data_ptr<float>() = static_cast<float>(total);
  line[K][0] = static_cast<float>(objective);
  line[K][1] = static_cast<float>(mean_weight);
  line[K][2] = static_cast<float>(collapse_of(z));
  anchors[K] = any;
  return {loss, losses, lse, info, num_anchors, weight_sum, num_pos, slopes, cache};
}

Tensor contrastive_terms_bwd_cpu(const Tensor& z, const Tensor& lse, double tau_value,
                                 const Tensors& values, const std::vector<double>& gamma,
                                 const std::vector<double>& windows, bool is_hard,
                                 const std::vector<int64_t>& joined, const OptionalTensor& dloss,
                                 const OptionalTensor& dlosses, const Tensor& weight_sum,
                                 const Tensor& num_pos, const Tensor& slopes, const Tensor& cache) {
  const Labels labels = {values, scalars(gamma), windows, is_hard};
  labels.check();
  const Tensor tau = scalar(tau_value);
  const int64_t K = labels.size(), N = z.size(0);
  if (dloss) check_given("dloss", *dloss, ScalarType::Float, {});
  if (dlosses) check_values("dlosses", *dlosses, K);
  check_given("weight_sum", weight_sum, ScalarType::Float, {K, N});
  check_given("num_pos", num_pos, ScalarType::Long, {K, N});
  check_given("slopes", slopes, ScalarType::Double, {2, K});
  const Tensor of_labels = dlosses ? as_contiguous(*dlosses) : empty({0});
  const float* upstream = of_labels.const_data_ptr<float>();
  const float* weights = weight_sum.const_data_ptr<float>();
  const int64_t* counts = num_pos.const_data_ptr<int64_t>();
  const double* slope = slopes.const_data_ptr<double>();
  const Tensor dlse = torch::stable::new_zeros(lse, {N});
  float* of_rows = dlse.mutable_data_ptr<float>();
  Tensors c;
  for (int64_t k = 0; k < K; ++k) {
    double of_label = dlosses ? upstream[k] * slope[K + k] : 0;
    if (dloss) of_label += *dloss->const_data_ptr<float>() * slope[k];
    c.push_back(empty({N}));
    float* out = c.back().mutable_data_ptr<float>();
    for (int64_t i = 0; i < N; ++i) {
      const double count = static_cast<double>(std::max<int64_t>(counts[k * N + i], 1));
      out[i] = static_cast<float>(of_label / count);
      of_rows[i] += out[i] * weights[k * N + i];
    }
  }
  Tensors dense_values, dense_c, dense_gamma;
  std::vector<bool> is_dense(K, false);
  for (const int64_t k : joined) {
    is_dense.at(k) = true;
    dense_values.push_back(values[k]);
    dense_c.push_back(c[k]);
    dense_gamma.push_back(labels.gamma[k]);
  }
  Tensor dz = std::get<0>(pair_lse_bwd_cpu(z, std::nullopt, lse, std::nullopt, dlse, std::nullopt,
                                           tau, cache, dense_values, dense_c, dense_gamma, true,
                                           false));
  for (int64_t k = 0; k < K; ++k) {
    if (is_dense[k]) continue;
    const PositivePairs pairs = pairs_of(z, lse, tau, labels, k);
    add_positive_gradients(pairs, c[k], dz.mutable_data_ptr<float>(), nullptr);
  }
  return dz;
}

STABLE_TORCH_LIBRARY_IMPL(spcl_fast, CPU, m) {
  m.impl("contrastive_terms_fwd_native", TORCH_BOX(&contrastive_terms_fwd_cpu));
  m.impl("contrastive_terms_bwd_native", TORCH_BOX(&contrastive_terms_bwd_cpu));
}

}  // namespace spcl
