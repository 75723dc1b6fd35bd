// The matrix of similarities, which exists a panel at a time: products by PyTorch's mm (cuBLAS)
// into one buffer, kernels on them, products with what the kernels leave. Sizes alone decide what
// is launched, so nothing waits for the device and a CUDA graph can hold it all.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "../arguments.h"
#include "panels.h"

namespace spcl::cuda {

class Matrix {
 public:
  Matrix(const at::Tensor& z, const OptionalTensor& refs);

  bool is_square() const { return is_square_; }
  const at::Tensor& rows() const { return rows_; }
  const at::Tensor& cols() const { return cols_; }
  int64_t num_rows() const { return rows_.size(0); }
  int64_t num_cols() const { return cols_.size(0); }
  const std::vector<Panel>& panels() const { return panels_; }
  const PanelSizes& sizes() const { return sizes_; }
  at::TensorOptions float_options() const { return rows_.options().dtype(at::kFloat); }

  // The products of a panel, in float32 for rows of any dtype: half precision would leave
  // similarities of 1 / tau = 14 with an absolute error of 2^-8 or 2^-5. Valid until the next call.
  float* products(const Panel& panel);
  // Where the gradient h of a panel goes, of the dtype of the rows: in place of the products of
  // float32, else beside them, for products at the rate of half precision.
  at::Tensor gradient(const Panel& panel);
  // drows += h cols and, of a square matrix too, dcols += h^T rows; undefined: not needed.
  void add_products(const Panel& panel, const at::Tensor& h, const at::Tensor& drows,
                    const at::Tensor& dcols);

 private:
  at::Tensor view(const at::Tensor& buffer, const Panel& panel) const;
  void add_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& sum);

  at::Tensor rows_, cols_;  // contiguous
  bool is_square_;
  std::vector<Panel> panels_;
  PanelSizes sizes_;
  at::Tensor products_, half_gradient_, product_;
};

}  // namespace spcl::cuda
