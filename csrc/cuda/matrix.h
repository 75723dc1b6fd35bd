// The matrix of similarities, which exists a panel at a time: products by PyTorch's mm (cuBLAS)
// into one buffer, kernels on them, products with what the kernels leave. Sizes alone decide what
// is launched, so nothing waits for the device and a CUDA graph can hold it all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "arguments.h"
#include "panels.h"

namespace spcl::cuda {

class Matrix {
 public:
  Matrix(const at::Tensor& z, const OptionalTensor& refs);

  bool is_square() const { return is_square_; }
  bool has_half_rows() const { return rows_.scalar_type() != at::kFloat; }
  int64_t num_rows() const { return rows_.size(0); }
  int64_t num_cols() const { return cols_.size(0); }
  const std::vector<Panel>& panels() const { return panels_; }
  const PanelSizes& sizes() const { return sizes_; }
  at::TensorOptions float_options() const { return rows_.options().dtype(at::kFloat); }

  // The products of a panel, in float32 for rows of any dtype: half precision would leave
  // similarities of 1 / tau = 14 with an absolute error of 2^-8 or 2^-5. Valid until those of
  // another panel, or the gradient of this one, are asked for.
  float* products(const Panel& panel);
  // Where the gradient h of a panel goes, of the dtype of the rows: in place of the products of
  // float32, else beside them, for products at the rate of half precision.
  at::Tensor gradient(const Panel& panel);
  // What the gradient of `size` rows is summed up in: float32, or if one product is all of it, and
  // is_final, their own dtype. Empty where it is not needed.
  at::Tensor sums(bool is_needed, int64_t size, bool is_final) const;
  // drows += h cols and, of a square matrix too, dcols += h^T rows, which the first panel of every
  // row and column writes; undefined: not needed.
  void add_products(const Panel& panel, const at::Tensor& h, const at::Tensor& drows,
                    const at::Tensor& dcols);

 private:
  at::Tensor view(const at::Tensor& buffer, const Panel& panel) const;

  at::Tensor rows_, cols_;  // contiguous
  bool is_square_;
  std::vector<Panel> panels_;
  PanelSizes sizes_;
  at::Tensor products_, half_gradient_;
  const Panel* held_ = nullptr;  // whose products there are
};

}  // namespace spcl::cuda
