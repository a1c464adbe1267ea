// A tile of mma.sync: eight warps of 64 x 32 on 128 x 128. The layout of the accumulators is that of mma.sync.
#pragma once

#include "../survivors.cuh"
#include "ptx.h"

namespace vecbank::cuda {

constexpr int kWarpRows = 64, kWarpColumns = 32;  // 8 warps: 2 x 4
constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
using Accumulators = float[kRowTiles][kColumnTiles][4];

struct WarpPlace {
  int row, column;  // where this warp's part of the tile begins
  int g, t;         // the group of this lane, and the lane's number in the group
};
__device__ __forceinline__ WarpPlace warp_place() {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  return {warp / 4 * kWarpRows, warp % 4 * kWarpColumns, lane / 4, lane % 4};
}

// Rows and columns of accumulator e of fragment (i, j), within the tile.
VB_INLINE int fragment_row(const WarpPlace& w, int i, int e) { return w.row + 16 * i + w.g + 8 * (e / 2); }
VB_INLINE int fragment_column(const WarpPlace& w, int j, int e) { return w.column + 8 * j + 2 * w.t + e % 2; }

// For finish_tile: calls f(upper, row, column) for every accumulator of this thread.
template <class F>
__device__ __forceinline__ void each_accumulator(const Accumulators& acc, const WarpPlace& w, F&& f) {
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) f(acc[i][j][e], fragment_row(w, i, e), fragment_column(w, j, e));
}

}  // namespace vecbank::cuda
