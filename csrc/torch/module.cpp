// vecbank._C: only what a torch op cannot be. No torch header here.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../core/problem.h"
#include "../cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.def("isa", [] { return vecbank::kIsaNames[vecbank::isa_in_use()]; }, "The instruction set in use.");
  m.def("available_isas", [] {
    py::list names;
    for (int isa = 0; isa < vecbank::kIsaCount; ++isa)
      if (vecbank::isa_available(isa)) names.append(vecbank::kIsaNames[isa]);
    return names;
  });
  m.def("set_isa", [](const std::string& name) {
    if (!vecbank::set_isa(name.c_str()))
      throw py::value_error(
          "vecbank: name must be an instruction set this processor has (see available_isas()), got '" + name + "'");
  });
  m.def(
      "isa_override_problem", [] { return vecbank::isa_override_problem(); }, "Why VECBANK_ISA was ignored, or None.");
  m.def("counters", [] {
    const vecbank::Counters c = vecbank::read_counters();
    return py::dict(py::arg("queries") = c.queries, py::arg("refined") = c.refined, py::arg("repeated") = c.repeated);
  });
  m.def("reset_counters", &vecbank::reset_counters);
  m.def("build_info", [] {
    return py::dict(py::arg("version") = VECBANK_VERSION, py::arg("compiler") = VECBANK_BUILD_COMPILER,
                    py::arg("flags") = VECBANK_BUILD_FLAGS, py::arg("cuda") = static_cast<bool>(VECBANK_HAS_CUDA));
  });
}
