// What the ops on GPUs take.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace spcl {

using OptionalTensor = std::optional<at::Tensor>;

// Reads a 0-dim tensor, which costs nothing on a CPU. NaN stands for a tensor that is not above 0.
inline double positive_scalar(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 0 && x.device().is_cpu(), name,
                    " must be a 0-dim tensor on the CPU, got ", x.sizes(), " on ", x.device());
  TORCH_CHECK_TYPE(at::isFloatingType(x.scalar_type()), name, " must be floating point, got ",
                   x.scalar_type());
  const double value = x.item().toDouble();
  TORCH_CHECK_VALUE(!(value <= 0), name, " must be above 0, got ", value);
  return value;
}

}  // namespace spcl
