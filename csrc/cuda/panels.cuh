// Device code shared by whatever writes panels: mapping rows, sums over sixteen threads, the transposing store.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

constexpr int kPanelThreads = 256;  // 16 rows x 16 threads

// x -> (x * pre - centre) * post in float64, as the CPU packs.
struct Map {
  double pre = 1.0;
  const double* centre = nullptr;
  double post = 1.0;
};

template <class S>
__device__ __forceinline__ double mapped(const S* row, int64_t step, int64_t k, const Map& map) {
  double v = widened(row[k * step]);
  if (map.pre != 1.0) v = mul_rn(v, map.pre);
  if (map.centre != nullptr) v = add_rn(v, -map.centre[k]);
  return mul_rn(v, map.post);
}

__device__ __forceinline__ double sum_of_16(double v) {
  for (int step = 8; step > 0; step /= 2) v = add_rn(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}
// Sum of squares of a mapped row, by the sixteen threads that share it.
__device__ __forceinline__ double squares_of(const Rows& rows, int64_t i, bool valid, const Map& map) {
  double sum = 0.0;
  if (valid)
    with_dtype(rows.dtype, [&](auto type) {
      const auto* row = reinterpret_cast<decltype(type)>(row_of(rows, i));
      for (int64_t k = threadIdx.x % 16; k < rows.width; k += 16) {
        const double v = mapped(row, rows.col_stride, k, map);
        sum = add_rn(sum, mul_rn(v, v));
      }
    });
  return sum_of_16(sum);
}

VB_INLINE double least(double a, double b) { return a < b ? a : b; }

// A pack that the caller handed in is believed only if it says what it must.
VB_INLINE bool trusted(const PackHeader& h, const PackHeader& e) {
  const Metric metric = static_cast<Metric>(h.metric), wanted = static_cast<Metric>(e.metric);
  const bool kin = metric == wanted || (is_distance(metric) && is_distance(wanted));  // l2 and sqeuclidean share a pack
  return h.magic == e.magic && h.rows == e.rows && h.width == e.width && kin && h.dtype == e.dtype &&
         h.biased == e.biased && h.panels_at == e.panels_at && h.bytes == e.bytes && h.exponent >= -960 &&
         h.exponent <= 960;
}

// How a query meets the bank, whose own power of two is `shift`. Distances share the bank's frame, and `norm` is in it;
// similarities keep their own origin and, unless extreme, their own scale.
struct QueryFrame {
  int exponent;   // power of two on the query
  double packed;  // at least the norm that the packed query has
  bool usable;    // false: float32 cannot carry it
};
VB_INLINE QueryFrame query_frame(Metric metric, double norm, int shift, bool biased) {
  if (is_distance(metric)) return {shift, norm * (1.0 + 0x1p-20), norm <= least(kMaxQueryNorm, ldexp(kMaxNorm, shift))};
  const bool extreme = norm > 0.0 && norm <= kMaxNorm && !(norm >= 0x1p-60 && norm <= kMaxQueryNorm);
  const int exponent = extreme && !biased ? -ilogb(norm) : 0;  // a bias fixes the scale
  return {exponent, norm * ldexp(1.0, exponent) * (1.0 + 0x1p-20), norm <= (biased ? kMaxQueryNorm : kMaxNorm)};
}

// The contract's norm of row `i`, by the eight threads that share it.
__device__ __forceinline__ double norm_of(const Rows& rows, int64_t i, bool valid) {
  return floored(sqrt(sum_of_8(valid ? self_lane(rows, i, static_cast<int>(threadIdx.x % kLanes)) : 0.0)));
}

// Writes `width` lines of 16 mapped rows; rows that are not `written` become zeros. Reads run along rows, writes along
// lines, with a turn through shared memory. All threads of the block take part. `turn` holds 16 x 17 of T.
template <class T>
__device__ __forceinline__ void write_lines(const Rows& rows, int64_t i, bool written, const Map& map, T* lines,
                                            T* turn) {
  const int row = threadIdx.x / 16, t = threadIdx.x % 16;
  for (int64_t k = 0; k < rows.width; k += 16) {
    T v = 0;
    if (written && k + t < rows.width)
      with_dtype(rows.dtype, [&](auto type) {
        v = static_cast<T>(mapped(reinterpret_cast<decltype(type)>(row_of(rows, i)), rows.col_stride, k + t, map));
      });
    turn[t * 17 + row] = v;
    __syncthreads();
    if (k + row < rows.width) lines[(k + row) * kPanel + t] = turn[row * 17 + t];
    __syncthreads();
  }
}

}  // namespace vecbank::cuda
