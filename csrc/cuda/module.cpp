// spcl_fast._C_cuda: loading it registers the ops on GPUs. Unlike csrc/cpu it is bound to the
// PyTorch that it is compiled with: products of half precision summed in float32 (matrix.cu) take
// a Scalar, which the stable ABI of LibTorch has no form for.

#include <Python.h>
#include <cuda_runtime_api.h>

#include <string>

#define SPCL_AS_TEXT(...) #__VA_ARGS__
#define SPCL_TEXT_OF(...) SPCL_AS_TEXT(__VA_ARGS__)

namespace {

PyObject* build_info(PyObject*, PyObject*) {
  const std::string release =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  return Py_BuildValue("{s:s,s:s}", "cuda", release.c_str(), "cuda_architectures",
                       SPCL_TEXT_OF(SPCL_CUDA_ARCHITECTURES));
}

PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr,
                      nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&module); }
