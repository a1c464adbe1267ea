// The ops on CUDA: the schemas and contracts of register_cpu.cpp. A library of its own (_C_cuda), loaded only beside a
// torch with CUDA. `repack_` has no CUDA form: a pack there carries no stamp and is made anew.
#include "device_cuda.h"
#include "ops_codebook.h"
#include "ops_search.h"

STABLE_TORCH_LIBRARY_IMPL(vecbank, CUDA, m) {
  vecbank::ops::register_searches<vecbank::CudaScope>(m);
  vecbank::ops::register_codebook_ops<vecbank::CudaScope>(m);
}
