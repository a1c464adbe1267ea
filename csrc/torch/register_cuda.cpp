// The ops on CUDA: the schemas and contracts of register_cpu.cpp. They are a library of their own (_C_cuda), which is
// loaded only with a torch that has CUDA. `repack_` has no CUDA form: a pack on a CUDA device is made anew.
#include "device_cuda.h"
#include "ops_codebook.h"
#include "ops_search.h"

STABLE_TORCH_LIBRARY_IMPL(vecbank, CUDA, m) {
  vecbank::ops::register_searches<vecbank::CudaScope>(m);
  vecbank::ops::register_codebook_ops<vecbank::CudaScope>(m);
}
