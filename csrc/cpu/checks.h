// Argument checks of the ops on CPUs; TORCH_CHECK_VALUE is a ValueError in Python, TORCH_CHECK_TYPE
// a TypeError.
#pragma once

#include <ATen/core/Tensor.h>

#include "../arguments.h"

namespace spcl {

inline void check_rows(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.device().is_cpu(), name, " must be on the CPU, got ", x.device());
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name, " must be float32, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.dim() == 2, name, " must be (rows, features), got ", x.sizes());
}

inline void check_refs(const at::Tensor& z, const OptionalTensor& refs) {
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

}  // namespace spcl
