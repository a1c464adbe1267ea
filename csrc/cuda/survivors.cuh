// What a screen does with a finished tile: gate it against its rows' thresholds, and keep what may still be among the
// best. Shared by every screen; a tile with a survivor is laid out in shared memory, half of its rows at a time, and
// looked through there: indexing accumulators at run time would put them into local memory.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

constexpr int kHalf = kTile / 2;
constexpr int64_t kDumpBytes = int64_t{kHalf} * kTile * 4;

struct TileState {                   // shared memory of a block, beside its buffers
  const float* panels[kTilePanels];  // of the tile in hand; null past the end
  int64_t columns[kTilePanels];      // the bank row each panel begins with
  float thresholds[kTile];
};

// Larger of what is there and `value`, bit by bit: floats of one sign order like integers. Returns what was there.
__device__ __forceinline__ float atomic_max(float* at, float value) {
  value += 0.0f;  // no -0
  if (value >= 0.0f) return __int_as_float(atomicMax(reinterpret_cast<int*>(at), __float_as_int(value)));
  return __uint_as_float(atomicMin(reinterpret_cast<unsigned*>(at), __float_as_uint(value)));
}

// Finds the panels of the tile that begins at `slot`; ends with a barrier.
__device__ __forceinline__ void find_panels(const Screen& a, int64_t slot, int64_t end, TileState& state) {
  if (threadIdx.x < kTilePanels) {
    const int64_t at = slot + threadIdx.x, panel = a.schedule.panel(at);
    const int64_t place = a.first_slot < 0 ? panel : at - a.first_slot;
    state.panels[threadIdx.x] = at < end ? a.panels + place * (a.width + 3) * kPanel : nullptr;
    state.columns[threadIdx.x] = panel * kPanel;
  }
  __syncthreads();
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
  float lower;
  bool valid;
};

__device__ __forceinline__ Spot look_up(const Screen& a, float upper, int64_t row, int column, const TileState& state) {
  Spot spot{row, 0, -HUGE_VALF, false};
  const float* panel = state.panels[column / kPanel];
  if (row >= a.rows || panel == nullptr) return spot;
  spot.column = state.columns[column / kPanel] + column % kPanel;
  spot.valid = spot.column < a.columns &&
               (a.mask.data == nullptr || a.mask.data[row * a.mask.row_stride + spot.column * a.mask.col_stride]);
  if (!spot.valid) return spot;
  const double r = a.exact ? panel[(a.width + 1) * kPanel + column % kPanel] : 0.0f;
  double slack = a.slacks[row];
  if (a.biased && a.exact)
    slack += a.factor * start_bound(a.width, 2.0 * fabs(static_cast<double>(panel[column % kPanel])));
  spot.lower = lower_bound(upper, a.norms[row], r, a.start_per_r2, slack);
  return spot;
}

// Half a tile, uppers[64][128], whose row 0 is the tile's row `from`: first, with `raise`, lift the rows' thresholds;
// then append what still reaches them. The whole block calls it, after a barrier; it ends with one. Rare, so it is a
// call: inlined, it would take registers from the product.
static __device__ __noinline__ void keep_survivors(const Screen& a, const float* uppers, int64_t first_row, int from,
                                                   TileState& state) {
  if (a.raise) {
    for (int i = threadIdx.x; i < kHalf * kTile; i += blockDim.x) {
      const int row = from + i / kTile;
      if (uppers[i] < state.thresholds[row]) continue;
      const Spot s = look_up(a, uppers[i], first_row + row, i % kTile, state);
      if (!s.valid || !(state.thresholds[row] < s.lower)) continue;
      const float elsewhere = atomic_max(a.thresholds + s.row, s.lower);
      atomic_max(&state.thresholds[row], elsewhere > s.lower ? elsewhere : s.lower);
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < kHalf * kTile; i += blockDim.x) {
    const int row = from + i / kTile;
    const float threshold = state.thresholds[row];
    if (uppers[i] < threshold || !(threshold < HUGE_VALF)) continue;  // +inf: the row was given up
    const Spot s = look_up(a, uppers[i], first_row + row, i % kTile, state);
    if (!s.valid) continue;
    int32_t* counter = a.counts + s.row;
    if (*static_cast<volatile int32_t*>(counter) > a.capacity) continue;  // full: refined against everything later
    const int32_t at = atomicAdd(counter, 1);
    if (at < a.capacity) a.candidates[s.row * a.capacity + at] = {uppers[i], s.lower, static_cast<uint32_t>(s.column)};
  }
  __syncthreads();
}

}  // namespace vecbank::cuda
