// The exact scores of core/exact_score.h on the device, where eight neighbouring threads are the eight lanes.
#pragma once

#include "../core/exact_score.h"
#include "../core/types.h"

namespace vecbank::cuda {

template <class T>
VB_INLINE T fused(T a, T b, T c) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 4)
    return __fmaf_rn(a, b, c);
  else
    return __fma_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

VB_INLINE const char* row_of(const Rows& rows, int64_t i) { return static_cast<const char*>(rows.row(i)); }

// The pairs of element types that meet: the same on both sides, or a 16-bit query with a float32 bank.
template <class F>
VB_INLINE double with_pair(DType x, DType b, F&& f) {
  if (x == b) return with_dtype(x, [&](auto t) { return f(t, t); });
  const float* wide = nullptr;
  return x == DType::bf16 ? f(static_cast<const BFloat16*>(nullptr), wide)
                          : f(static_cast<const Float16*>(nullptr), wide);
}

VB_INLINE double pair_lane(const Rows& x, int64_t i, const Rows& b, int64_t j, int lane, Term term) {
  const char *xs = row_of(x, i), *bs = row_of(b, j);
  return with_pair(x.dtype, b.dtype, [&](auto tx, auto tb) {
    return lane_sum(reinterpret_cast<decltype(tx)>(xs), x.col_stride, reinterpret_cast<decltype(tb)>(bs), b.col_stride,
                    x.width, lane, term);
  });
}
VB_INLINE double self_lane(const Rows& x, int64_t i, int lane) { return pair_lane(x, i, x, i, lane, Term::product); }

VB_INLINE Scored last_scored() { return {-HUGE_VAL, INT64_MAX}; }  // after every real one; pads sorts
VB_INLINE Scored first_scored() { return {HUGE_VAL, -1}; }         // before every real one

VB_INLINE int64_t power_of_two_from(int64_t n) {
  int64_t p = 1;
  while (p < n) p *= 2;
  return p;
}

#if defined(__CUDACC__) || defined(VECBANK_EMULATE)
// The tree over eight neighbouring threads, each of which gets the sum; the whole warp takes part.
__device__ __forceinline__ double sum_of_8(double v) {
  v = add_rn(v, __shfl_xor_sync(0xffffffffu, v, 1));
  v = add_rn(v, __shfl_xor_sync(0xffffffffu, v, 2));
  return add_rn(v, __shfl_xor_sync(0xffffffffu, v, 4));
}

// Larger of what is there and `value`, bit by bit: floats of one sign order like integers. Returns what was there.
__device__ __forceinline__ float atomic_max(float* at, float value) {
  value += 0.0f;  // no -0
  if (value >= 0.0f) return __int_as_float(atomicMax(reinterpret_cast<int*>(at), __float_as_int(value)));
  return __uint_as_float(atomicMin(reinterpret_cast<unsigned*>(at), __float_as_uint(value)));
}
#endif

}  // namespace vecbank::cuda
