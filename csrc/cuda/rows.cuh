// Device code of the kernels that walk rows one by one: their elements, sums over a block, the counters.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

// An fp16 number by its bits, in one instruction. A NaN's bits may differ from widened_f32()'s, and no score shows
// them.
VB_INLINE float half_value(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(static_cast<unsigned short>(bits)));
  return f;
#else
  return widened_f32(Float16{static_cast<uint16_t>(bits)});
#endif
}

// An element of a row as float64.
template <class S>
__device__ __forceinline__ double element(S x) {
  return widened(x);
}
__device__ __forceinline__ double element(Float16 x) { return static_cast<double>(half_value(x.bits)); }

// 16 bytes, or N neighbouring elements, which one instruction loads or stores.
struct alignas(16) WideWord {
  uint32_t words[4];
};
template <class S, int N>
struct alignas(sizeof(S) * N) Neighbours {
  S of[N];
};

// A NaN in an element type, repeated in 8 bytes.
VB_INLINE uint64_t nan_bits(DType dtype) {
  switch (dtype) {
    case DType::f64: return 0x7ff8000000000000u;
    case DType::bf16: return 0x7fc07fc07fc07fc0u;
    case DType::f16: return 0x7e007e007e007e00u;
    default: return 0x7fc000007fc00000u;
  }
}

__device__ __forceinline__ double element_of(const void* data, DType dtype, int64_t i) {
  return with_dtype(dtype, [&](auto type) { return widened(static_cast<decltype(type)>(data)[i]); });
}
__device__ __forceinline__ double at(const Rows& rows, int64_t i, int64_t k) {
  return element_of(row_of(rows, i), rows.dtype, k * rows.col_stride);
}
__device__ __forceinline__ void store(double value, void* out, DType dtype, int64_t i) {
  with_dtype(dtype, [&](auto type) { narrow(value, static_cast<Element<decltype(type)>*>(out) + i); });
}

// Rows [first, first + count), cut at the last row of x, and `width` columns from `column`.
inline Rows part_of(const Rows& x, int64_t first, int64_t count, int64_t column, int64_t width) {
  Rows rows = x;
  rows.data = row_of(x, first) + column * x.col_stride * static_cast<int64_t>(size_of(x.dtype));
  rows.count = count < x.count - first ? count : x.count - first;
  rows.width = width;
  return rows;
}

// Adds up over the block's kThreads threads in a fixed tree; element 0 holds the sums. Both arrays lie in shared memory
// and hold one element a thread.
__device__ __forceinline__ void block_sums(double* squares, int64_t* valid) {
  for (int gap = kThreads / 2; gap > 0; gap /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < gap) {
      squares[threadIdx.x] = add_rn(squares[threadIdx.x], squares[threadIdx.x + gap]);
      valid[threadIdx.x] += valid[threadIdx.x + gap];
    }
  }
  __syncthreads();
}

// Tells whether this block is the last of `parts` to arrive; it may then read what the others have written. `flag` lies
// in shared memory. The whole block calls this.
template <class Count>
__device__ __forceinline__ bool last_to_arrive(Count* arrivals, int64_t parts, int* flag) {
  __threadfence();  // this block's part is written
  __syncthreads();
  if (threadIdx.x == 0) *flag = static_cast<int64_t>(atomicAdd(arrivals, Count{1})) == parts - 1;
  __syncthreads();
  __threadfence();
  return *flag != 0;
}

__device__ __forceinline__ void count_work(State* state, int64_t queries, int64_t refined, int64_t repeated) {
  if (queries != 0) atomicAdd(&state->queries, static_cast<unsigned long long>(queries));
  if (refined != 0) atomicAdd(&state->refined, static_cast<unsigned long long>(refined));
  if (repeated != 0) atomicAdd(&state->repeated, static_cast<unsigned long long>(repeated));
}

}  // namespace vecbank::cuda
