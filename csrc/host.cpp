// fastwm._host: build facts, CPU features and instruction set control.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "fastwm/isa.h"
#include "fastwm/stop.h"
#include "fastwm/stopped.h"

namespace py = pybind11;
using namespace fastwm;

namespace {

const std::array<const char*, 3> kIsaNames = {"baseline", "avx2", "avx512"};

std::vector<std::string> isa_levels() {
  return {kIsaNames.begin(), kIsaNames.begin() + static_cast<int>(best_isa()) + 1};
}

void set_isa_by_name(const std::string& name) {
  const std::vector<std::string> levels = isa_levels();
  for (size_t i = 0; i < levels.size(); ++i)
    if (levels[i] == name) return set_isa(static_cast<Isa>(i));
  std::string have;
  for (const std::string& level : levels) have += (have.empty() ? "" : ", ") + level;
  throw std::invalid_argument("instruction set level '" + name + "' is not available on this CPU; available: " + have);
}

std::map<std::string, bool> cpu_features() {
#if defined(__x86_64__)
  return {{"avx2", __builtin_cpu_supports("avx2")},         {"fma", __builtin_cpu_supports("fma")},
          {"avx512f", __builtin_cpu_supports("avx512f")},   {"avx512bw", __builtin_cpu_supports("avx512bw")},
          {"avx512dq", __builtin_cpu_supports("avx512dq")}, {"avx512vl", __builtin_cpu_supports("avx512vl")}};
#else
  return {};
#endif
}

std::map<std::string, std::string> build_info() {
  return {{"compiler", FASTWM_COMPILER},
          {"torch", FASTWM_TORCH},
          {"torch_target", FASTWM_TORCH_TARGET},
          {"cuda_archs", FASTWM_CUDA_ARCHS},
          {"commit", FASTWM_COMMIT}};
}

int num_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Ctrl-C in a long operator: Python's handlers run inside it, and what they raise comes out of it.
unsigned long main_thread = 0;
PyObject* raised[3] = {};  // type, value, traceback

bool handler_raised() {
  if (PyThread_get_thread_ident() != main_thread || !Py_IsInitialized()) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  const bool stop = PyErr_CheckSignals() != 0;
  if (stop) {
    for (PyObject*& each : raised) Py_CLEAR(each);
    PyErr_Fetch(&raised[0], &raised[1], &raised[2]);
  }
  PyGILState_Release(state);
  return stop;
}

void raise_again(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const Stopped&) {
    PyErr_Restore(raised[0], raised[1], raised[2]);
    for (PyObject*& each : raised) each = nullptr;
  }
}

void watch_signals() {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
  py::register_exception_translator(&raise_again);
  set_stop_question(&handler_raised);
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Facts and controls of fastwm's native library.";
  watch_signals();
  m.def("build_info", &build_info, "What the library was built with and for.");
  m.def("cpu_features", &cpu_features, "What instruction set levels need, and whether this CPU has it.");
  m.def("isa_levels", &isa_levels, "The instruction set levels this CPU can run, slowest first.");
  m.def("isa", [] { return kIsaNames[static_cast<int>(isa())]; }, "The instruction set level in use.");
  m.def("set_isa", &set_isa_by_name, py::arg("level"), "Use one of isa_levels() from now on, in every thread.");
  m.def("num_threads", &num_threads, "Threads a kernel may use; torch.set_num_threads() sets them.");
}
