// The types that every layer shares: element types, statuses, strided views.
#pragma once

#include <cstddef>
#include <cstdint>

// Small functions that a CUDA kernel needs too are written once, for host and device.
#if defined(__CUDACC__)
#define VB_HOST_DEVICE __host__ __device__
#else
#define VB_HOST_DEVICE
#endif
#define VB_INLINE VB_HOST_DEVICE inline __attribute__((always_inline))

namespace vecbank {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
enum class Status : int32_t { ok = 0, out_of_memory = 1, bad_index = 2, stopped = 3, bad_rotation = 4 };

VB_INLINE constexpr size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

// A strided matrix of vectors, strides in elements. The data may be read, never written.
struct Rows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t count = 0, width = 0;
  int64_t row_stride = 0, col_stride = 1;

  VB_HOST_DEVICE const void* row(int64_t i) const {
    return static_cast<const char*>(data) + i * row_stride * static_cast<int64_t>(size_of(dtype));
  }
};

VB_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
VB_INLINE int64_t round_up_to(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace vecbank
