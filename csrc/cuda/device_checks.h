// Argument checks of the ops on a CUDA device; nothing here reads a value from it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "arguments.h"

namespace spcl::cuda {

inline void check_device(const char* name, const at::Tensor& x, const at::Tensor& z) {
  TORCH_CHECK_VALUE(x.device() == z.device(), name, " must be on ", z.device(), " as z, got ",
                    x.device());
}

inline void check_rows(const at::Tensor& z, const OptionalTensor& refs) {
  TORCH_CHECK_VALUE(z.is_cuda(), "z must be on a CUDA device, got ", z.device());
  const at::ScalarType type = z.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
                   "z must be float32, bfloat16 or float16, got ", type);
  TORCH_CHECK_VALUE(z.dim() == 2, "z must be (rows, features), got ", z.sizes());
  // Ranks and the sizes of products are 32-bit integers.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(z.size(0) < kMost && z.size(1) < kMost,
                    "z must be below 2^31 - 1 in both sizes, got ", z.sizes());
  if (!refs) return;
  check_device("refs", *refs, z);
  TORCH_CHECK_TYPE(refs->scalar_type() == type, "refs must be ", type, " as z, got ",
                   refs->scalar_type());
  TORCH_CHECK_VALUE(refs->dim() == 2 && refs->size(1) == z.size(1) && refs->size(0) < kMost,
                    "refs must be (M, ", z.size(1), ") as z, got ", refs->sizes());
}

// One float32 value a row.
inline void check_values(const char* name, const at::Tensor& x, const at::Tensor& rows) {
  check_device(name, x, rows);
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name, " must be float32, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() == 1 && x.size(0) == rows.size(0), name, " must be (", rows.size(0),
                    ",), got ", x.sizes());
}

inline void check_labels(const char* name, const at::Tensor& labels, const at::Tensor& rows) {
  check_device(name, labels, rows);
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == rows.size(0), name, " must be (",
                    rows.size(0), ",), got ", labels.sizes());
  TORCH_CHECK_TYPE(!labels.is_complex(), name, " must be real, got ", labels.scalar_type());
}

// Checks the arguments of positive pairs.
inline void check_pairs(const at::Tensor& z, const at::Tensor& lse, const at::Tensor& labels,
                        const OptionalTensor& refs, const OptionalTensor& ref_labels,
                        std::optional<double> window) {
  check_rows(z, refs);
  check_values("lse", lse, z);
  check_labels("labels", labels, z);
  TORCH_CHECK_VALUE(refs.has_value() == ref_labels.has_value(),
                    "refs and ref_labels must be given together, got one alone");
  if (refs) check_labels("ref_labels", *ref_labels, *refs);
  TORCH_CHECK_VALUE(!window || (*window >= 0 && std::isfinite(*window)),
                    "window must be finite and at least 0, got ", *window);
}

// A 0-dim number, on the CPU, where its range is checked, or on the device of z.
inline void check_scalar(const char* name, const at::Tensor& x, const at::Tensor& z) {
  if (x.device().is_cpu()) {
    positive_scalar(name, x);
    return;
  }
  check_device(name, x, z);
  TORCH_CHECK_VALUE(x.dim() == 0, name, " must be a 0-dim tensor, got ", x.sizes());
  TORCH_CHECK_TYPE(at::isFloatingType(x.scalar_type()), name, " must be floating point, got ",
                   x.scalar_type());
}

}  // namespace spcl::cuda
