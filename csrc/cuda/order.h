// Exact float64 scores: the contract's order of summation, for host and device. Lane i mod 8, each lane ascending, then
// a tree; multiply, then add, never fused. On the device eight neighbouring threads are the eight lanes.
#pragma once

#include <cmath>

#include "../core/half.h"

namespace vecbank::cuda {

VB_INLINE double mul_rn(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
VB_INLINE double add_rn(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

VB_INLINE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}
VB_INLINE double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

constexpr int kLanes = 8;

template <class X, class B>
VB_INLINE double lane_sum(const X* x, int64_t x_step, const B* b, int64_t b_step, int64_t width, int lane,
                          bool distance) {
  double sum = 0.0;
  for (int64_t i = lane; i < width; i += kLanes) {
    const double p = widened(x[i * x_step]), q = widened(b[i * b_step]);
    const double gap = add_rn(p, -q);
    sum = add_rn(sum, distance ? mul_rn(gap, gap) : mul_rn(p, q));
  }
  return sum;
}

VB_INLINE double tree_sum(const double (&lane)[kLanes]) {
  return add_rn(add_rn(add_rn(lane[0], lane[1]), add_rn(lane[2], lane[3])),
                add_rn(add_rn(lane[4], lane[5]), add_rn(lane[6], lane[7])));
}

VB_INLINE double floored(double norm) { return norm < kNormFloor ? kNormFloor : norm; }  // NaN stays

VB_INLINE const char* row_of(const Rows& rows, int64_t i) {
  return static_cast<const char*>(rows.data) + i * rows.row_stride * static_cast<int64_t>(size_of(rows.dtype));
}

// The pairs of element types that meet: the same on both sides, or a 16-bit query with a float32 bank.
template <class F>
VB_INLINE double with_pair(DType x, DType b, F&& f) {
  if (x == b) return with_dtype(x, [&](auto t) { return f(t, t); });
  const float* wide = nullptr;
  return x == DType::bf16 ? f(static_cast<const Brain16*>(nullptr), wide)
                          : f(static_cast<const Half16*>(nullptr), wide);
}

VB_INLINE double pair_lane(const Rows& x, int64_t i, const Rows& b, int64_t j, int lane, bool distance) {
  const char *xs = row_of(x, i), *bs = row_of(b, j);
  return with_pair(x.dtype, b.dtype, [&](auto tx, auto tb) {
    return lane_sum(reinterpret_cast<decltype(tx)>(xs), x.col_stride, reinterpret_cast<decltype(tb)>(bs), b.col_stride,
                    x.width, lane, distance);
  });
}
VB_INLINE double self_lane(const Rows& x, int64_t i, int lane) { return pair_lane(x, i, x, i, lane, false); }

// Larger is better, whatever the metric. `raw` is the sum over terms, the norms are floored already.
VB_INLINE double key_of(Metric metric, double raw, double query_norm, double bank_norm, const double* bias = nullptr) {
  if (is_distance(metric)) return -raw;
  if (metric == Metric::cosine) return raw / mul_rn(query_norm, bank_norm);
  return bias != nullptr ? add_rn(raw, *bias) : raw;
}
VB_INLINE double value_of_key(Metric metric, double key) {
  if (!is_distance(metric)) return key;
  return metric == Metric::l2 ? sqrt(-key) : -key;
}

// A refined row. Order: larger key first, then lower index.
struct Entry {
  double key;
  int64_t index;
};
VB_INLINE bool precedes(const Entry& a, const Entry& b) {
  return a.key > b.key || (a.key == b.key && a.index < b.index);
}
VB_INLINE Entry last_entry() { return {-HUGE_VAL, INT64_MAX}; }  // after every real one; pads sorts
VB_INLINE Entry first_entry() { return {HUGE_VAL, -1}; }         // before every real one

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
