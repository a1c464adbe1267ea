// The instructions of mma.sync, one function for each. The tests' block emulator has its own versions.
#pragma once

#include "../async_copy.h"

#if defined(__CUDACC__)
namespace vecbank::cuda {

// Four 8 x 8 matrices of 16-bit elements: lane 8 m + i gives the address of row i of matrix m in shared memory (16
// bytes, aligned), and lane l receives elements (l / 4, 2 (l % 4)) and the next of each matrix.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

// c[16][8] += a[16][16] * b[16][8] over a warp, bf16 or fp16. With g = lane / 4, t = lane % 4, two neighbours in k a
// word, the lower one first: a holds (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); b holds (2t, g), (2t + 8, g)
// as (k, column); c holds (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <bool Bf16>
__device__ __forceinline__ void mma_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (Bf16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace vecbank::cuda
#endif
