// The passes over all panels of which the ops are made.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "labels.cuh"
#include "matrix.h"
#include "positives.h"

namespace spcl::cuda {

// Log-sum-exps of rows (N,) and, of a rectangular matrix, of columns (M,), else empty.
std::tuple<at::Tensor, at::Tensor> sum_rows(Matrix& matrix, const at::Tensor& tau);

struct PositiveSums {
  std::vector<at::Tensor> loss, weight_sum;  // (N,) float32 of every label
};
PositiveSums sum_positives(Matrix& matrix, const at::Tensor& tau, const at::Tensor& lse,
                           const Positives& positives, at::TensorList gamma, bool is_hard);

// What gradients come from; each of them can be missing.
struct Upstream {
  at::Tensor lse, lse_refs;    // lse_refs undefined: square, or no gradient of a log-sum-exp
  at::Tensor dlse, dlse_refs;  // undefined: none
  std::vector<at::Tensor> c;   // of every label, (N,) dloss / |P|
};

// dz (N, D) and drefs (M, D) of type `type`, empty where not needed. labels: without factors.
std::tuple<at::Tensor, at::Tensor> gradients(Matrix& matrix, const at::Tensor& tau,
                                             const Upstream& upstream, Labels labels,
                                             at::ScalarType type, bool needs_z, bool needs_refs);

}  // namespace spcl::cuda
