#include "simd_scalar.h"
#include "table.inl.h"

namespace vecbank::cpu {
constinit const Kernels kernels_scalar = make_table<Scalar>("scalar");
}
