// vecbank._C_cuda: importing it registers the ops on CUDA. Its functions read the counters and the flag that kernels
// left on the device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../cuda/api.h"

namespace py = pybind11;

namespace {

void check(vecbank::cuda::Error error) {
  if (error != nullptr) throw std::runtime_error(std::string("vecbank: CUDA: ") + error);
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.def(
      "state",
      [](int device) {
        int64_t c[4];
        check(vecbank::cuda::read_state(device, c));
        return py::dict(py::arg("queries") = c[0], py::arg("refined") = c[1], py::arg("repeated") = c[2],
                        py::arg("bad_codes") = c[3]);
      },
      "Counters of a device since they were last cleared; waits for the device.");
  m.def(
      "clear", [](int device, bool counters, bool flag) { check(vecbank::cuda::clear_state(device, counters, flag)); },
      py::arg("device"), py::arg("counters"), py::arg("flag"));
  m.def("architectures", [] { return VECBANK_CUDA_ARCHITECTURES; });
}
