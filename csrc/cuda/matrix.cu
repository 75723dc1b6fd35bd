#include "matrix.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>
#include <torch/version.h>

namespace spcl::cuda {
namespace {

// Half-precision products come out in float32 from PyTorch 2.8 on; before, rows become float32.
constexpr bool kSumsHalves =
    TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 8);

int attribute(cudaDeviceAttr name, const at::Tensor& z) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, z.get_device()));
  return value;
}

// A panel is written by one kernel and read by the next: half of the L2 cache holds it. It has a
// tile of 128 x 128 for every multiprocessor in any case, and takes 32 MiB at most.
int64_t panel_elements(const at::Tensor& z) {
  const int64_t cached = attribute(cudaDevAttrL2CacheSize, z) / 2 / sizeof(float);
  const int64_t busy = attribute(cudaDevAttrMultiProcessorCount, z) * int64_t{128 * 128};
  return std::min<int64_t>(std::max(cached, busy), 1 << 23);
}

at::Tensor operand(const at::Tensor& x) {
  return (kSumsHalves ? x : x.to(at::kFloat)).contiguous();
}

// out = a b, in float32.
void multiply(const at::Tensor& a, const at::Tensor& b, at::Tensor out) {
  if (a.scalar_type() == at::kFloat) {
    at::mm_out(out, a, b);
    return;
  }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 8
  at::mm_out(out, a, b, at::kFloat);
#endif
}

}  // namespace

Matrix::Matrix(const at::Tensor& z, const OptionalTensor& refs)
    : rows_(operand(z)), cols_(refs ? operand(*refs) : rows_), is_square_(!refs) {
  panels_ = make_panels(num_rows(), num_cols(), is_square_, panel_elements(z));
  sizes_ = largest(panels_);
  products_ = at::empty({sizes_.panel}, float_options());
}

at::Tensor Matrix::view(const at::Tensor& buffer, const Panel& panel) const {
  return buffer.as_strided({panel.num_rows, panel.num_cols}, {panel.stride, 1});
}

float* Matrix::products(const Panel& panel) {
  multiply(rows_.narrow(0, panel.row0, panel.num_rows),
           cols_.narrow(0, panel.col0, panel.num_cols).t(), view(products_, panel));
  return products_.mutable_data_ptr<float>();
}

at::Tensor Matrix::gradient(const Panel& panel) {
  if (rows_.scalar_type() == at::kFloat) return view(products_, panel);
  if (!half_gradient_.defined()) half_gradient_ = at::empty({sizes_.panel}, rows_.options());
  return view(half_gradient_, panel);
}

void Matrix::add_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor& sum) {
  if (a.scalar_type() == at::kFloat) {
    sum.addmm_(a, b);
    return;
  }
  if (!product_.defined()) {
    int64_t most = 0;
    for (const Panel& panel : panels_) {
      most = std::max({most, panel.num_rows, panel.num_cols - panel.first_col});
    }
    product_ = at::empty({most, rows_.size(1)}, float_options());
  }
  const at::Tensor product = product_.narrow(0, 0, sum.size(0));
  multiply(a, b, product);
  sum.add_(product);
}

void Matrix::add_products(const Panel& panel, const at::Tensor& h, const at::Tensor& drows,
                          const at::Tensor& dcols) {
  if (drows.defined()) {
    add_product(h, cols_.narrow(0, panel.col0, panel.num_cols),
                drows.narrow(0, panel.row0, panel.num_rows));
  }
  const int64_t rest = panel.num_cols - panel.first_col;
  if (dcols.defined() && rest > 0) {
    add_product(h.narrow(1, panel.first_col, rest).t(), rows_.narrow(0, panel.row0, panel.num_rows),
                dcols.narrow(0, panel.col0 + panel.first_col, rest));
  }
}

}  // namespace spcl::cuda
