// Argument checks of the ops on CPUs.
#pragma once

#include "arguments.h"

namespace spcl {

inline void check_rows(const char* name, const Tensor& x) {
  SPCL_CHECK(x.is_cpu(), name, " must be on the CPU, got ", device(x));
  SPCL_CHECK(x.scalar_type() == ScalarType::Float, name, " must be float32, got ", x.scalar_type());
  SPCL_CHECK(x.dim() == 2, name, " must be (rows, features), got ", shape(x));
}

inline void check_refs(const Tensor& z, const OptionalTensor& refs) {
  if (!refs) return;
  check_rows("refs", *refs);
  SPCL_CHECK(refs->size(1) == z.size(1), "refs must be (M, ", z.size(1), ") as z, got ",
             shape(*refs));
}

// One float32 value a row.
inline void check_values(const char* name, const Tensor& x, int64_t num_rows) {
  SPCL_CHECK(x.is_cpu(), name, " must be on the CPU, got ", device(x));
  SPCL_CHECK(x.scalar_type() == ScalarType::Float, name, " must be float32, got ", x.scalar_type());
  SPCL_CHECK(x.dim() == 1 && x.size(0) == num_rows, name, " must be (", num_rows, ",), got ",
             shape(x));
}

// What a forward kept for its backward, or the gradient of what it returned.
inline void check_given(const char* name, const Tensor& x, ScalarType type, Sizes sizes) {
  bool fits = x.is_cpu() && x.scalar_type() == type && x.is_contiguous() &&
              static_cast<size_t>(x.dim()) == sizes.size();
  for (int64_t d = 0; fits && d < x.dim(); ++d) fits = x.size(d) == sizes[d];
  std::string wanted;
  for (int64_t size : sizes) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  SPCL_CHECK(fits, name, " must be ", type, " [", wanted, "] on the CPU, got ", x.scalar_type(),
             " ", shape(x), " on ", device(x));
}

inline void check_labels(const char* name, const Tensor& labels, int64_t num_rows) {
  SPCL_CHECK(labels.is_cpu(), name, " must be on the CPU, got ", device(labels));
  SPCL_CHECK(labels.dim() == 1 && labels.size(0) == num_rows, name, " must be (", num_rows,
             ",), got ", shape(labels));
  SPCL_CHECK(!is_complex(labels.scalar_type()), name, " must be real, got ", labels.scalar_type());
}

}  // namespace spcl
