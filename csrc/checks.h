// Argument checks of the ops; TORCH_CHECK_VALUE is a ValueError in Python, TORCH_CHECK_TYPE a
// TypeError.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <limits>
#include <optional>

namespace spcl {

inline void check_rows(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.device().is_cpu(), name, " must be on the CPU, got ", x.device());
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name, " must be float32, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() == 2, name, " must be (rows, features), got ", x.sizes());
}

inline void check_refs(const at::Tensor& z, const std::optional<at::Tensor>& refs) {
  if (!refs) return;
  check_rows("refs", *refs);
  TORCH_CHECK_VALUE(refs->size(1) == z.size(1), "refs must be (M, ", z.size(1), ") as z, got ",
                    refs->sizes());
}

// One float32 value a row.
inline void check_values(const char* name, const at::Tensor& x, int64_t num_rows) {
  TORCH_CHECK_VALUE(x.device().is_cpu(), name, " must be on the CPU, got ", x.device());
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name, " must be float32, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() == 1 && x.size(0) == num_rows, name, " must be (", num_rows, ",), got ",
                    x.sizes());
}

inline void check_labels(const char* name, const at::Tensor& labels, int64_t num_rows) {
  TORCH_CHECK_VALUE(labels.device().is_cpu(), name, " must be on the CPU, got ", labels.device());
  TORCH_CHECK_VALUE(labels.dim() == 1 && labels.size(0) == num_rows, name, " must be (", num_rows,
                    ",), got ", labels.sizes());
  TORCH_CHECK_TYPE(!labels.is_complex(), name, " must be real, got ", labels.scalar_type());
}

// Reads a 0-dim tensor, which costs nothing on a CPU.
inline double positive_scalar(const char* name, const at::Tensor& x, bool finite) {
  TORCH_CHECK_VALUE(x.dim() == 0 && x.device().is_cpu(), name,
                    " must be a 0-dim tensor on the CPU, got ", x.sizes(), " on ", x.device());
  TORCH_CHECK_TYPE(at::isFloatingType(x.scalar_type()), name, " must be floating point, got ",
                   x.scalar_type());
  const double value = x.item().toDouble();
  TORCH_CHECK_VALUE(value > 0 && !(finite && std::isinf(value)), name, " must be ",
                    finite ? "finite and above 0" : "above 0", ", got ", value);
  return value;
}

}  // namespace spcl
