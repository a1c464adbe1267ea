// vecbank._C: the functions that cannot be torch ops. This file includes no torch header.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "../cpu/api.h"
#include "../cpu/isa.h"
#include "../cpu/kernels.h"
#include "../cuda/pack_layout.h"
#include "interrupt.h"

namespace py = pybind11;
using vecbank::PanelKind;
using vecbank::ScreenChoice;

namespace {

PyObject *getsignal, *default_int_handler, *sigint;  // of Python's signal module, never released

// call(op, *arguments) returns the op's result. Where Ctrl-C means KeyboardInterrupt, Ctrl-C stops a long call of the
// main thread, and KeyboardInterrupt is raised here. In a program with its own handler, calls run to their end.
PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count == 0) {
    PyErr_SetString(PyExc_TypeError, "call() needs an op");
    return nullptr;
  }
  const py::object handler = py::reinterpret_steal<py::object>(PyObject_CallOneArg(getsignal, sigint));
  if (handler.ptr() == nullptr) return nullptr;
  const auto run = [&] { return PyObject_Vectorcall(arguments[0], arguments + 1, count - 1, nullptr); };
  if (handler.ptr() != default_int_handler) return run();
  const vecbank::InterruptibleThread thread;
  PyObject* result = run();
  if (result == nullptr && thread.interrupted() && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
    PyErr_Clear();  // the op's "vecbank: interrupted"
    if (PyErr_CheckSignals() == 0) PyErr_SetNone(PyExc_KeyboardInterrupt);
  }
  return result;
}
PyMethodDef call_method = {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL,
                           "call(op, *arguments): the op's result, or KeyboardInterrupt soon after Ctrl-C."};

// A size in Python: an int, or a symbol while a program is traced. The formula of the pack's layout computes with such
// sizes.
struct Size {
  py::object value;

  Size(py::object of) : value(std::move(of)) {}
  Size(int64_t of) : value(py::int_(of)) {}
  friend Size operator+(const Size& a, const Size& b) { return a.value + b.value; }
  friend Size operator*(const Size& a, const Size& b) { return a.value * b.value; }
  friend Size operator/(const Size& a, const Size& b) {
    PyObject* quotient = PyNumber_FloorDivide(a.value.ptr(), b.value.ptr());
    if (quotient == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(quotient);
  }
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  const py::module_ signals = py::module_::import("_signal");
  getsignal = py::object(signals.attr("getsignal")).release().ptr();
  default_int_handler = py::object(signals.attr("default_int_handler")).release().ptr();
  sigint = py::object(signals.attr("SIGINT")).release().ptr();
  m.attr("call") =
      py::reinterpret_steal<py::object>(PyCFunction_NewEx(&call_method, nullptr, m.attr("__name__").ptr()));
  m.def("metrics", [] {  // the code that the ops take, by the metric's name
    py::dict codes;
    for (int code = 0; code < vecbank::kMetrics; ++code) codes[vecbank::kMetricNames[code]] = code;
    return codes;
  });
  m.def(
      "pack_bytes",
      [](py::object rows, py::object width, int code, bool biased, bool cuda, bool int8, int64_t head) {
        const Size m(std::move(rows)), d(std::move(width));
        const auto metric = static_cast<vecbank::Metric>(code);
        return (cuda ? vecbank::cuda::device_pack_parts(m, d, metric).bytes
                     : vecbank::pack_parts(m, d, metric, biased, int8 ? PanelKind::int8 : PanelKind::float32, head)
                           .bytes)
            .value;
      },
      py::arg("rows"), py::arg("width"), py::arg("metric"), py::arg("biased"), py::arg("cuda") = false,
      py::arg("int8") = false, py::arg("head") = 0,
      "The size of a pack in bytes, on the CPU or on a CUDA device; symbolic where rows or width are.");
  m.def(
      "int8_panels",
      [](int64_t rows, int64_t width, int code, int use) {
        return use > 0 && vecbank::cpu::panels_for_search(rows, width, static_cast<vecbank::Metric>(code),
                                                          static_cast<ScreenChoice>(use - 1)) == PanelKind::int8;
      },
      py::arg("rows"), py::arg("width"), py::arg("metric"), py::arg("use"),
      "Whether the CPU's pack for this use holds the codes of the int8 screen; its panels are float32 else.");
  m.def("has_int16", [] { return vecbank::cpu::kernels().int16.scan != nullptr; }, "Whether there is an int16 screen.");
  m.def("isa", [] { return vecbank::cpu::kIsaNames[vecbank::cpu::isa_in_use()]; }, "The instruction set in use.");
  m.def("available_isas", [] {
    py::list names;
    for (int isa = 0; isa < vecbank::cpu::kIsaCount; ++isa)
      if (vecbank::cpu::isa_available(isa)) names.append(vecbank::cpu::kIsaNames[isa]);
    return names;
  });
  m.def("set_isa", [](const std::string& name) {
    if (!vecbank::cpu::set_isa(name.c_str()))
      throw py::value_error(
          "vecbank: name must be an instruction set this processor has (see available_isas()), got '" + name + "'");
  });
  m.def(
      "isa_override_problem", [] { return vecbank::cpu::isa_override_problem(); },
      "Why VECBANK_ISA was ignored, or None.");
  m.def("counters", [] {
    const vecbank::cpu::Counters c = vecbank::cpu::read_counters();
    return py::dict(py::arg("queries") = c.queries, py::arg("refined") = c.refined, py::arg("repeated") = c.repeated,
                    py::arg("head") = c.screened[0], py::arg("int8") = c.screened[1], py::arg("int16") = c.screened[2],
                    py::arg("float32") = c.screened[3], py::arg("bytes") = c.bytes,
                    py::arg("dimensions") = c.dimensions, py::arg("pairs") = c.pairs);
  });
  m.def("reset_counters", &vecbank::cpu::reset_counters);
  m.def(
      "force_ways",
      [](int search, int project) {
        if (search < 0 || search > 3 || project < 0 || project > 4)
          throw py::value_error("vecbank: search must lie between 0 and 3, project between 0 and 4");
        vecbank::cpu::force_ways(static_cast<vecbank::cpu::SearchWay>(search),
                                 static_cast<vecbank::cpu::ProjectWay>(project));
      },
      py::arg("search") = 0, py::arg("project") = 0,
      "For tests: searches on the CPU go by screens (1), score every pair (2) or gather the rows that all queries "
      "share "
      "first (3), products are packed (1), direct (2), "
      "exact (3) or raw (4), where they can; 0: what is fastest.");
  m.def(
      "take_head_use",
      [](uintptr_t pack) {
        const vecbank::cpu::HeadUse use = vecbank::cpu::take_head_use(reinterpret_cast<const void*>(pack));
        return py::make_tuple(use.searches, use.pairs, use.scanned, use.survivors, use.repeated);
      },
      "What the head of the pack at this address left to do since it was last asked for: searches, and pairs, scanned, "
      "survivors, repeated.");
  m.def("packed_rows", &vecbank::cpu::packed_rows, "Bank rows packed so far; it only grows.");
  m.def("build_info", [] {
    return py::dict(py::arg("version") = VECBANK_VERSION, py::arg("compiler") = VECBANK_BUILD_COMPILER,
                    py::arg("flags") = VECBANK_BUILD_FLAGS, py::arg("cuda") = static_cast<bool>(VECBANK_HAS_CUDA));
  });
}
