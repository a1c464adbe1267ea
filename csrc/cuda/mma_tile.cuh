// What the tensor-core screens share: eight warps of 64 x 32 on a tile of 128 x 128, and the end of a tile.
// Accumulators lie as mma.sync leaves them, which is the same for tf32 and 16-bit operands.
#pragma once

#include "ptx.h"
#include "survivors.cuh"

namespace vecbank::cuda {

constexpr int kWarpRows = 64, kWarpColumns = 32;  // 8 warps: 2 x 4
constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
using Accumulators = float[kRowTiles][kColumnTiles][4];

struct WarpPlace {
  int row, column;  // of the tile, where this warp's part begins
  int g, t;         // this lane's group and place in it
};
__device__ __forceinline__ WarpPlace warp_place() {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  return {warp / 4 * kWarpRows, warp % 4 * kWarpColumns, lane / 4, lane % 4};
}

// Rows and columns of accumulator e of fragment (i, j), within the tile.
VB_INLINE int fragment_row(const WarpPlace& w, int i, int e) { return w.row + 16 * i + w.g + 8 * (e / 2); }
VB_INLINE int fragment_column(const WarpPlace& w, int j, int e) { return w.column + 8 * j + 2 * w.t + e % 2; }

// Gates a finished tile, and keeps its survivors by way of `dump` (kDumpBytes). The whole block calls it, when every
// warp has its accumulators; nobody reads `dump` as something else meanwhile. Returns whether it was written.
__device__ __forceinline__ bool finish_tile(const Screen& a, const Accumulators& acc, const WarpPlace& w,
                                            int64_t first_row, int64_t slot, int64_t end, float* dump,
                                            TileState& state) {
  bool hit = false;
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const float threshold = state.thresholds[fragment_row(w, i, e)];
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) hit |= !(acc[i][j][e] < threshold) || !(acc[i][j][e + 1] < threshold);
    }
  if (!__syncthreads_or(hit)) return false;
  find_panels(a, slot, end, state);
  for (int half = 0; half < 2; ++half) {
    if (w.row == half * kHalf)
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            dump[(fragment_row(w, i, e) - w.row) * kTile + fragment_column(w, j, e)] = acc[i][j][e];
    __syncthreads();
    keep_survivors(a, dump, first_row, half * kHalf, state);
  }
  return true;
}

}  // namespace vecbank::cuda
