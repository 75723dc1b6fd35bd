// spcl_fast._C: loading it registers the kernels; what it offers itself is small.

#include <torch/csrc/Exceptions.h>
#include <torch/version.h>

#include "cpu/cache_memory.h"
#include "cpu/schedule.h"
#include "cpu/tile_kernels.h"

#ifdef SPCL_CUDA_ARCHITECTURES  // set where csrc/cuda is compiled too: 8.0,9.0+PTX
#include <cuda_runtime_api.h>

#include <string>

#define SPCL_AS_TEXT(...) #__VA_ARGS__
#define SPCL_TEXT_OF(...) SPCL_AS_TEXT(__VA_ARGS__)
#endif

namespace {

void check_python_signals() {
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return;
  python_error interrupt;
  interrupt.persist();
  throw interrupt;
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["cpu_kernels"] = spcl::best_tile_kernels().name;
#ifdef SPCL_CUDA_ARCHITECTURES
  info["cuda"] =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["cuda_architectures"] = SPCL_TEXT_OF(SPCL_CUDA_ARCHITECTURES);
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  spcl::check_interrupt = check_python_signals;
  m.def("release_kept_memory", &spcl::release_cache_memory);
  m.def("build_info", &build_info);
}
