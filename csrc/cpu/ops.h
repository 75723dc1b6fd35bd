// The ops on CPUs. N rows of z, M rows of refs, D features; the mathematics is in
// spcl_fast/ops/<op>.py.
#pragma once

#include <optional>
#include <tuple>

#include "arguments.h"

namespace spcl {

// Returns lse (N,), lse of refs (M,) or (0,), and the cached tiles, (0,) without any.
std::tuple<Tensor, Tensor, Tensor> pair_lse_fwd_cpu(
    const Tensor& z,             // (N, D) float32
    const OptionalTensor& refs,  // (M, D)
    const Tensor& tau,           // ()
    int64_t num_cached           // floats that cached tiles may take
);

// Returns dz (N, D) and drefs (M, D), (0, D) where not needed. Of a square problem dz takes along
// the gradients of positive_pair_loss with linear weights, lse held fixed, for any number of
// labels.
std::tuple<Tensor, Tensor> pair_lse_bwd_cpu(
    const Tensor& z,                  // (N, D)
    const OptionalTensor& refs,       // (M, D)
    const Tensor& lse,                // (N,)
    const OptionalTensor& lse_refs,   // (M,)
    const Tensor& dlse,               // (N,)
    const OptionalTensor& dlse_refs,  // (M,)
    const Tensor& tau,                // ()
    const Tensor& cache,              // what the forward cached
    const Tensors& labels,            // (N,) each
    const Tensors& c,                 // (N,) dloss_i / |P(i)| each
    const Tensors& gamma,             // () each
    bool needs_z, bool needs_refs);

// What both passes of positive_pair_loss read, by the names of the op.
struct PositivePairs {
  const Tensor &z, &lse, &labels;
  const OptionalTensor &refs, &ref_labels;
  const Tensor &tau, &gamma;
  bool is_hard;
  std::optional<double> window;
};

// Writes (N,) each.
void positive_losses(const PositivePairs& pairs, float* loss, float* weight_sum, int64_t* num_pos);

// Adds to (N, D) and (M, D), null where not needed; c as for the op.
void add_positive_gradients(const PositivePairs& pairs, const Tensor& c, float* dz, float* drefs);

// Returns loss, weight_sum (N,) float32 and num_pos (N,) int64.
std::tuple<Tensor, Tensor, Tensor> positive_pair_loss_fwd_cpu(
    const Tensor& z,                   // (N, D)
    const Tensor& lse,                 // (N,)
    const Tensor& labels,              // (N,)
    const OptionalTensor& refs,        // (M, D)
    const OptionalTensor& ref_labels,  // (M,)
    const Tensor& tau,                 // ()
    const Tensor& gamma,               // ()
    bool is_hard, std::optional<double> window);

// Returns dz (N, D) and drefs (M, D) with lse held fixed, (0, D) where not needed.
std::tuple<Tensor, Tensor> positive_pair_loss_bwd_cpu(
    const Tensor& c,                   // (N,) dloss_i / |P(i)|
    const Tensor& z,                   // (N, D)
    const Tensor& lse,                 // (N,)
    const Tensor& labels,              // (N,)
    const OptionalTensor& refs,        // (M, D)
    const OptionalTensor& ref_labels,  // (M,)
    const Tensor& tau,                 // ()
    const Tensor& gamma,               // ()
    bool is_hard, std::optional<double> window, bool needs_z, bool needs_refs);

}  // namespace spcl
