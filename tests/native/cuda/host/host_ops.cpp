// The ops of csrc/cuda as they are, but for tensors on the CPU and kernels on the host.
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/mm.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

// What each file registers is the device's; is_cuda() is asked by the checks alone.
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) [[maybe_unused]] static void C10_UID_NAME(m)
#define C10_UID_NAME(m) C10_CONCATENATE(registers_, C10_UID)(torch::Library & m)
#define is_cuda is_cpu

// What the ops ask of a device is logged, and unless `is_dry` done on the host.
namespace host {

inline bool is_dry = false;
inline int64_t num_products = 0, num_kernels = 0, bytes = 0, peak_bytes = 0;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Arguments... arguments) {
  ++num_kernels;
  if (!is_dry) SIMULATOR::launch(kernel, arguments...);
}

// Counts the memory of all tensors made on the CPU.
struct CountingAllocator : c10::Allocator {
  struct Block {
    c10::DataPtr memory;
    int64_t size;
  };
  c10::Allocator* base = c10::GetCPUAllocator();

  static void free(void* block) {
    bytes -= static_cast<Block*>(block)->size;
    delete static_cast<Block*>(block);
  }
  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block{base->allocate(size), static_cast<int64_t>(size)};
    bytes += block->size;
    peak_bytes = std::max(peak_bytes, bytes);
    return {block->memory.get(), block, &free, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, std::size_t size) const override {
    default_copy_data(to, from, size);
  }
};

// From here on nothing has been asked.
inline void start_log(bool dry) {
  static CountingAllocator allocator;
  c10::SetCPUAllocator(&allocator, 1);
  is_dry = dry;
  num_products = num_kernels = bytes = peak_bytes = 0;
}

// Products, kernels, bytes at the peak.
inline std::vector<int64_t> read_log() { return {num_products, num_kernels, peak_bytes}; }

}  // namespace host

namespace at {

// Half precision is summed in float32, which the CPU has no products for.
inline Tensor product(const Tensor& a, const Tensor& b) {
  ++host::num_products;
  return host::is_dry ? Tensor() : mm(a.to(kFloat), b.to(kFloat));
}
inline Tensor& host_mm_out(Tensor& out, const Tensor& a, const Tensor& b,
                           std::optional<ScalarType> = {}) {
  const Tensor x = product(a, b);
  return host::is_dry ? out : out.copy_(x);
}
inline Tensor& host_addmm_out(Tensor& out, const Tensor& sum, const Tensor& a, const Tensor& b) {
  TORCH_CHECK(out.is_same(sum), "another sum would be copied");
  const Tensor x = product(a, b);
  return host::is_dry ? out : out.add_(x);
}
inline Tensor& host_baddbmm_out(Tensor& out, const Tensor& sum, const Tensor& a, const Tensor& b,
                                ScalarType) {
  TORCH_CHECK(out.is_same(sum), "another sum would be copied");
  const Tensor x = product(a[0], b[0]);
  return host::is_dry ? out : out.add_(x);
}

}  // namespace at

#include "panels.h"

namespace spcl::cuda {

// Small problems have several panels, unless the log is that of a device.
inline std::vector<Panel> host_panels(int64_t num_rows, int64_t num_cols, bool is_square) {
  if (host::is_dry) return make_panels(num_rows, num_cols, is_square);
  return make_panels(num_rows, num_cols, is_square, 128 * 192, 128);
}

}  // namespace spcl::cuda

#define make_panels host_panels
#define mm_out host_mm_out
#define addmm_out host_addmm_out
#define baddbmm_out host_baddbmm_out
#undef SIMULATOR
#define SIMULATOR host

#include "contrastive_rows.cu"
#include "matrix.cu"
#include "pair_lse.cu"
#include "passes.cu"
#include "positive_pair_histogram.cu"
#include "positive_pair_loss.cu"
#include "positives.cu"

TORCH_LIBRARY(spcl_fast_cuda_on_host, m) {
  m.def("start_log", &host::start_log);
  m.def("read_log", &host::read_log);
  m.def("contrastive_rows_fwd", &spcl::contrastive_rows_fwd_cuda);
  m.def("contrastive_rows_bwd", &spcl::contrastive_rows_bwd_cuda);
  m.def("pair_lse_fwd", &spcl::pair_lse_fwd_cuda);
  m.def("pair_lse_bwd", &spcl::pair_lse_bwd_cuda);
  m.def("positive_pair_loss_fwd", &spcl::positive_pair_loss_fwd_cuda);
  m.def("positive_pair_loss_bwd", &spcl::positive_pair_loss_bwd_cuda);
  m.def("positive_pair_histogram", &spcl::positive_pair_histogram_cuda);
}
