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
