// What a screen does with a finished tile: gate it against its rows' thresholds, and keep what may still be among the
// best. Shared by every screen; a tile hands over (row, column, upper bound) through a queue in shared memory.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

struct Survivor {
  float upper;
  uint32_t where;  // row * kTile + column, within the tile
};

struct TileState {  // shared memory of a block beside its queue
  float thresholds[kTile];
  int total, queued;
};

// Larger of what is there and `value`, bit by bit: floats of one sign order like integers. Returns what was there.
__device__ __forceinline__ float atomic_max(float* at, float value) {
  value += 0.0f;  // no -0
  if (value >= 0.0f) return __int_as_float(atomicMax(reinterpret_cast<int*>(at), __float_as_int(value)));
  return __uint_as_float(atomicMin(reinterpret_cast<unsigned*>(at), __float_as_uint(value)));
}

// Panel of tile column c when the tile starts at `slot`, and its place among the bank's panels in memory.
__device__ __forceinline__ int64_t panel_at(const Screen& a, int64_t slot) { return a.schedule.panel(slot); }
__device__ __forceinline__ const float* panel_data(const Screen& a, int64_t slot) {
  const int64_t place = a.first_slot < 0 ? panel_at(a, slot) : slot - a.first_slot;
  return a.panels + place * (a.width + 3) * kPanel;
}

// Before a block's first tile, and after the thresholds elsewhere may have risen.
__device__ __forceinline__ void load_thresholds(const Screen& a, int64_t first_row, TileState& state) {
  if (threadIdx.x < kTile) {
    const int64_t row = first_row + threadIdx.x;
    // Not through a cached read-only path: with `raise`, other blocks write these while we run. Stale is only slower.
    state.thresholds[threadIdx.x] = row < a.rows ? *static_cast<volatile const float*>(a.thresholds + row) : HUGE_VALF;
  }
}

struct Spot {  // a survivor, looked up
  int64_t row, column;
  int tile_row;
  float lower;
  bool valid;
};

__device__ __forceinline__ Spot look_up(const Screen& a, const Survivor& s, int64_t first_row, int64_t slot) {
  Spot spot;
  spot.tile_row = static_cast<int>(s.where / kTile);
  const int column = static_cast<int>(s.where % kTile);
  spot.row = first_row + spot.tile_row;
  const int64_t at = slot + column / kPanel;
  spot.valid = spot.row < a.rows && at < a.end;
  spot.lower = -HUGE_VALF;
  spot.column = 0;
  if (!spot.valid) return spot;
  spot.column = panel_at(a, at) * kPanel + column % kPanel;
  spot.valid = spot.column < a.columns &&
               (a.mask.data == nullptr || a.mask.data[spot.row * a.mask.row_stride + spot.column * a.mask.col_stride]);
  if (!spot.valid) return spot;
  const double r = a.exact ? panel_data(a, at)[(a.width + 1) * kPanel + column % kPanel] : 0.0f;
  spot.lower = lower_bound(s.upper, a.norms[spot.row], r, a.start_per_r2, a.slacks[spot.row]);
  return spot;
}

// Everything in the queue: first, with `raise`, lift the rows' thresholds; then append what still reaches them. All
// threads of the block take part, after a barrier that follows the last push; ends with a barrier.
__device__ __forceinline__ void keep_survivors(const Screen& a, const Survivor* queue, int count, int64_t first_row,
                                               int64_t slot, TileState& state) {
  if (a.raise) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const Spot s = look_up(a, queue[i], first_row, slot);
      if (!s.valid || !(state.thresholds[s.tile_row] < s.lower)) continue;
      const float elsewhere = atomic_max(a.thresholds + s.row, s.lower);
      atomic_max(&state.thresholds[s.tile_row], elsewhere > s.lower ? elsewhere : s.lower);
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const float threshold = state.thresholds[queue[i].where / kTile];
    if (queue[i].upper < threshold || !(threshold < HUGE_VALF)) continue;  // +inf: the row was given up
    const Spot s = look_up(a, queue[i], first_row, slot);
    if (!s.valid) continue;
    int32_t* counter = a.counts + s.row;
    if (*static_cast<volatile int32_t*>(counter) > a.capacity) continue;  // full: refined against everything later
    const int32_t at = atomicAdd(counter, 1);
    if (at < a.capacity)
      a.candidates[s.row * a.capacity + at] = {queue[i].upper, s.lower, static_cast<uint32_t>(s.column)};
  }
  __syncthreads();
}

}  // namespace vecbank::cuda
