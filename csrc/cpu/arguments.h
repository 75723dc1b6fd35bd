// What the ops on CPUs take, by the stable ABI of LibTorch: csrc/cpu runs with every PyTorch from
// TORCH_TARGET_VERSION on, whichever it is compiled with.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace spcl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Throws what is a ValueError in Python. No exception of the stable ABI is a TypeError.
#define SPCL_CHECK(holds, ...)                                          \
  do {                                                                  \
    if (!(holds)) throw std::invalid_argument(spcl::text(__VA_ARGS__)); \
  } while (false)

inline std::string shape(const Tensor& x) {
  std::string out = "[";
  for (int64_t size : x.sizes()) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "]";
}

inline std::string device(const Tensor& x) {
  if (x.is_cpu()) return "cpu";
  if (x.is_cuda()) return "cuda:" + std::to_string(x.get_device_index());
  return "another device";
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline Tensor as_type(const Tensor& x, ScalarType type) {
  return x.scalar_type() == type ? x : torch::stable::to(x, type);
}

inline Tensor as_contiguous(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// Uninitialised, on the CPU.
inline Tensor empty(Sizes sizes, ScalarType type = ScalarType::Float) {
  return torch::stable::empty(sizes, type);
}

inline bool is_floating_point(ScalarType type) {
  return type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

inline bool is_complex(ScalarType type) {
  return type == ScalarType::ComplexHalf || type == ScalarType::ComplexFloat ||
         type == ScalarType::ComplexDouble;
}

// NaN stands for a tensor that is not above 0.
inline double positive_scalar(const char* name, const Tensor& x) {
  SPCL_CHECK(x.dim() == 0 && x.is_cpu(), name, " must be a 0-dim tensor on the CPU, got ", shape(x),
             " on ", device(x));
  SPCL_CHECK(is_floating_point(x.scalar_type()), name, " must be floating point, got ",
             x.scalar_type());
  const double value = *as_type(x, ScalarType::Double).const_data_ptr<double>();
  SPCL_CHECK(!(value <= 0), name, " must be above 0, got ", value);
  return value;
}

}  // namespace spcl
