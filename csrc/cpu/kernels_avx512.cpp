#include "simd_avx512.h"
#include "table.inl.h"

namespace vecbank::cpu {
constinit const Kernels kernels_avx512 = make_table<Avx512>("avx512");
constinit const Kernels kernels_avx512vnni = make_table<Avx512Vnni>("avx512vnni");
}  // namespace vecbank::cpu
