#include "matrix.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/version.h>

namespace spcl::cuda {
namespace {

// Half-precision products come out in float32 from PyTorch 2.8 on; before, rows become float32.
#define SPCL_SUMS_HALVES \
  (TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 8))

at::Tensor operand(const at::Tensor& x) {
  return (SPCL_SUMS_HALVES ? x : x.to(at::kFloat)).contiguous();
}

// out = a b, or out += a b.
void multiply(const at::Tensor& a, const at::Tensor& b, at::Tensor out, bool adds) {
  if (a.scalar_type() == out.scalar_type()) {
    if (adds) {
      at::addmm_out(out, out, a, b);
    } else {
      at::mm_out(out, a, b);
    }
    return;
  }
#if SPCL_SUMS_HALVES
  if (!adds) {
    at::mm_out(out, a, b, at::kFloat);
    return;
  }
  // addmm takes a sum of the dtype of the products alone before PyTorch 2.10.
  at::Tensor batch = out.unsqueeze(0);
  at::baddbmm_out(batch, batch, a.unsqueeze(0), b.unsqueeze(0), at::kFloat);
#endif
}

}  // namespace

Matrix::Matrix(const at::Tensor& z, const OptionalTensor& refs)
    : rows_(operand(z)), cols_(refs ? operand(*refs) : rows_), is_square_(!refs) {
  panels_ = make_panels(num_rows(), num_cols(), is_square_);
  sizes_ = largest(panels_);
  products_ = at::empty({sizes_.panel}, float_options());
}

at::Tensor Matrix::view(const at::Tensor& buffer, const Panel& panel) const {
  return buffer.as_strided({panel.num_rows, panel.num_cols}, {panel.stride, 1});
}

float* Matrix::products(const Panel& panel) {
  if (held_ != &panel) {
    multiply(rows_.narrow(0, panel.row0, panel.num_rows),
             cols_.narrow(0, panel.col0, panel.num_cols).t(), view(products_, panel), false);
    held_ = &panel;
  }
  return products_.mutable_data_ptr<float>();
}

at::Tensor Matrix::gradient(const Panel& panel) {
  if (!has_half_rows()) {
    held_ = nullptr;
    return view(products_, panel);
  }
  if (!half_gradient_.defined()) half_gradient_ = at::empty({sizes_.panel}, rows_.options());
  return view(half_gradient_, panel);
}

at::Tensor Matrix::sums(bool is_needed, int64_t size, bool is_final) const {
  const int64_t num_features = rows_.size(1);
  if (!is_needed) return at::empty({0, num_features}, rows_.options());
  const at::TensorOptions options =
      is_final && panels_.size() == 1 ? rows_.options() : float_options();
  if (panels_.empty()) return at::zeros({size, num_features}, options);
  return at::empty({size, num_features}, options);
}

void Matrix::add_products(const Panel& panel, const at::Tensor& h, const at::Tensor& drows,
                          const at::Tensor& dcols) {
  if (drows.defined()) {
    multiply(h, cols_.narrow(0, panel.col0, panel.num_cols),
             drows.narrow(0, panel.row0, panel.num_rows), panel.col0 > 0);
  }
  const int64_t rest = panel.num_cols - panel.first_col;
  if (dcols.defined() && rest > 0) {
    multiply(h.narrow(1, panel.first_col, rest).t(), rows_.narrow(0, panel.row0, panel.num_rows),
             dcols.narrow(0, panel.col0 + panel.first_col, rest), panel.row0 > 0);
  }
}

}  // namespace spcl::cuda
