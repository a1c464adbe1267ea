#include "simd_avx2.h"
#include "table.inl.h"

namespace vecbank::cpu {
constinit const Kernels kernels_avx2 = make_table<Avx2>("avx2");
constinit const Kernels kernels_avx2vnni = make_table<Avx2Vnni>("avx2vnni");
}  // namespace vecbank::cpu
