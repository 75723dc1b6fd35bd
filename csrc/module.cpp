// spcl_fast._C: loading it registers the ops on CPUs; what it offers itself is small. Python's
// limited API, as csrc/cpu keeps to the stable ABI of LibTorch.

#include <Python.h>
#include <torch/headeronly/version.h>

#include <stdexcept>

#include "cpu/cache_memory.h"
#include "cpu/schedule.h"
#include "cpu/tile_kernels.h"

namespace {

struct Raised {
  PyObject *type, *value, *traceback;
};

int raise(void* kept) {
  const Raised raised = *static_cast<Raised*>(kept);
  delete static_cast<Raised*>(kept);
  PyErr_Restore(raised.type, raised.value, raised.traceback);
  return -1;
}

// No exception of Python's passes through the stable ABI. What a signal's handler has raised, like
// KeyboardInterrupt, Python raises as soon as it runs again; spcl_fast/native/_extension.py waits.
void check_python_signals() {
  const PyGILState_STATE gil = PyGILState_Ensure();
  const bool is_interrupted = PyErr_CheckSignals() != 0;
  if (is_interrupted) {
    auto* raised = new Raised;
    PyErr_Fetch(&raised->type, &raised->value, &raised->traceback);
    Py_AddPendingCall(&raise, raised);
  }
  PyGILState_Release(gil);
  if (is_interrupted) throw std::runtime_error("interrupted by the handler of a signal");
}

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s}", "torch", TORCH_VERSION, "compiler", __VERSION__,
                       "cpu_kernels", spcl::best_tile_kernels().name);
}

PyObject* release_kept_memory(PyObject*, PyObject*) {
  spcl::release_cache_memory();
  return Py_BuildValue("");  // None
}

PyObject* use_cpu_capability(PyObject*, PyObject* arguments) {
  const char* name = nullptr;
  if (!PyArg_ParseTuple(arguments, "s", &name)) return nullptr;
  spcl::use_cpu_capability(name);
  return Py_BuildValue("");
}

PyMethodDef methods[] = {{"build_info", build_info, METH_NOARGS, nullptr},
                         {"release_kept_memory", release_kept_memory, METH_NOARGS, nullptr},
                         {"use_cpu_capability", use_cpu_capability, METH_VARARGS, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  spcl::check_interrupt = check_python_signals;
  return PyModule_Create(&module);
}
