// What a screen does with a finished tile: gate it against its rows' thresholds, and keep what may still be among the
// best. Shared by every screen; a tile with a survivor is laid out in shared memory, half of its rows at a time, and
// looked through there: indexing accumulators at run time would put them into local memory.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

constexpr int kHalf = kTile / 2;
constexpr int64_t kDumpBytes = int64_t{kHalf} * kTile * 4;

struct TileState {                   // shared memory of a block, beside its buffers
  const float* panels[kTilePanels];  // of the tile in hand (with operands: their starts); null past the end
  int64_t columns[kTilePanels];      // the bank row each panel begins with
  float thresholds[kTile];

  // [kTile][listed], behind this: each row's best lower bounds among this block's columns, best first.
  VB_INLINE float* lists() { return reinterpret_cast<float*>(this + 1); }
};
inline int64_t tile_state_bytes(const Screen& a) {
  return static_cast<int64_t>(sizeof(TileState)) + int64_t{kTile} * a.listed * 4;
}

// Which rows and which slots a block screens. blockIdx.x: query tile. blockIdx.y: a run of tiles_per_block column
// tiles.
struct TileRun {
  int64_t first_row, begin, end;
};
__device__ __forceinline__ TileRun tile_run(const Screen& a) {
  const int64_t begin = a.begin + blockIdx.y * a.tiles_per_block * kTilePanels;
  const int64_t limit = begin + a.tiles_per_block * kTilePanels;
  return {static_cast<int64_t>(blockIdx.x) * kTile, begin, limit < a.end ? limit : a.end};
}
inline Error launch_tiles(void (*kernel)(Screen), Screen a, int64_t shared_bytes, const Device& device) {
  const int64_t row_tiles = ceil_div(a.rows, kTile), column_tiles = ceil_div(a.end - a.begin, kTilePanels);
  if (row_tiles == 0 || column_tiles == 0) return nullptr;
  a.tiles_per_block = ceil_div(column_tiles, a.blocks);
  const dim3 grid(static_cast<unsigned>(row_tiles), static_cast<unsigned>(ceil_div(column_tiles, a.tiles_per_block)));
  return launch(kernel, grid, kThreads, shared_bytes + tile_state_bytes(a), device, a);
}

// Finds the panels of the tile that begins at `slot`; ends with a barrier.
__device__ __forceinline__ void find_panels(const Screen& a, int64_t slot, int64_t end, TileState& state) {
  if (threadIdx.x < kTilePanels) {
    const int64_t at = slot + threadIdx.x, panel = a.schedule.panel(at);
    const int64_t place = a.first_slot < 0 ? panel : at - a.first_slot;
    const float* where =
        a.beside.start != nullptr ? a.beside.start + place * kPanel : a.panels + place * (a.width + 3) * kPanel;
    state.panels[threadIdx.x] = at < end ? where : nullptr;
    state.columns[threadIdx.x] = panel * kPanel;
  }
  __syncthreads();
}

// What others have published of a row's threshold. Not through a cached read-only path: they write it while we run.
// Stale is only slower.
__device__ __forceinline__ float published(const Screen& a, int64_t row) {
  return *static_cast<volatile const float*>(a.thresholds + row);
}

// Before a block's first tile; a barrier must follow.
__device__ __forceinline__ void begin_rows(const Screen& a, int64_t first_row, TileState& state) {
  for (int i = threadIdx.x; i < kTile * a.listed; i += blockDim.x) state.lists()[i] = -HUGE_VALF;
  if (threadIdx.x < kTile) {
    const int64_t row = first_row + threadIdx.x;
    state.thresholds[threadIdx.x] = row < a.rows ? published(a, row) : HUGE_VALF;
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
  double r = 0.0, rest = a.slacks[row];
  if (a.beside.start != nullptr) {
    const int64_t at = panel - a.beside.start + column % kPanel;
    if (a.exact) r = a.beside.bound[at], rest += a.beside.lift[at];
  } else {
    if (a.exact) r = panel[(a.width + 1) * kPanel + column % kPanel];
    if (a.biased && a.exact)
      rest += a.factor * start_bound(a.width, 2.0 * fabs(static_cast<double>(panel[column % kPanel])));
    rest += a.start_per_r2 * r * r;
  }
  spot.lower = lower_bound(upper, a.norms[row], r, rest);
  return spot;
}

// Puts a value into a sorted list of k <= 32, best first, one entry a lane; what falls off the end is lost. The whole
// warp calls it with the same value.
__device__ __forceinline__ void insert(float& entry, float value, int lane) {
  const int place = __popc(__ballot_sync(kAllLanes, entry >= value));
  const float before = __shfl_up_sync(kAllLanes, entry, 1);
  if (lane >= place) entry = lane == place ? value : before;
}

// Half a tile, uppers[64][128], whose row 0 is the tile's row `from`. A row belongs to a warp, which first puts the
// lower bounds of what reaches its threshold into the row's list: the k-th best of the list is a threshold too, since k
// of our columns are at least that good, and is published for the other blocks. Then what still reaches it is appended
// to the row's candidates. The whole block calls it, after a barrier; it ends with one. Rare, so it is a call: inlined,
// it would take registers from the product.
static __device__ __noinline__ void keep_survivors(const Screen& a, const float* uppers, int64_t first_row, int from,
                                                   TileState& state) {
  constexpr int kEach = kTile / 32;  // columns of a lane
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < kHalf && first_row + from + i < a.rows; i += blockDim.x / 32) {
    const int64_t row = first_row + from + i;
    float threshold = state.thresholds[from + i];
    if (!(threshold < HUGE_VALF)) continue;  // +inf: the row was given up
    float upper[kEach], lower[kEach];
    bool hit = false;
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      upper[c] = uppers[i * kTile + c * 32 + lane];
      hit |= !(upper[c] < threshold);
    }
    if (!__any_sync(kAllLanes, hit)) continue;
    const float elsewhere = __shfl_sync(kAllLanes, published(a, row), 0);  // lanes may have read different values
    if (elsewhere > threshold) threshold = elsewhere;

    bool keep[kEach];
    uint32_t column[kEach];
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      keep[c] = !(upper[c] < threshold);
      if (!keep[c]) continue;
      const Spot s = look_up(a, upper[c], row, c * 32 + lane, state);
      keep[c] = s.valid, lower[c] = s.lower, column[c] = static_cast<uint32_t>(s.column);
    }
    if (a.listed > 0) {
      float* list = state.lists() + (from + i) * a.listed;
      float entry = lane < a.listed ? list[lane] : -HUGE_VALF;
      float last = __shfl_sync(kAllLanes, entry, a.listed - 1);
#pragma unroll
      for (int c = 0; c < kEach; ++c)
        for (unsigned left = __ballot_sync(kAllLanes, keep[c] && lower[c] > last); left != 0; left &= left - 1) {
          const float value = __shfl_sync(kAllLanes, lower[c], __ffs(static_cast<int>(left)) - 1);
          if (!(value > last)) continue;  // the same in every lane
          insert(entry, value, lane);
          last = __shfl_sync(kAllLanes, entry, a.listed - 1);
        }
      if (lane < a.listed) list[lane] = entry;
      if (last > threshold) {
        threshold = last;
        if (lane == 0) atomic_max(a.thresholds + row, threshold);
      }
    }
    if (lane == 0) state.thresholds[from + i] = threshold;

    unsigned kept[kEach];
    int total = 0;
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      kept[c] = __ballot_sync(kAllLanes, keep[c] && !(upper[c] < threshold));
      total += __popc(kept[c]);
    }
    if (total == 0) continue;
    int at = 0;
    if (lane == 0) {  // more than full already: refined against everything later
      int32_t* counter = a.counts + row;
      at = *static_cast<volatile int32_t*>(counter) > a.capacity ? a.capacity : atomicAdd(counter, total);
    }
    at = __shfl_sync(kAllLanes, at, 0);
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      const int mine = at + __popc(kept[c] & ((1u << lane) - 1));
      if ((kept[c] >> lane & 1) != 0 && mine < a.capacity)
        a.candidates[row * a.capacity + mine] = {upper[c], lower[c], column[c]};
      at += __popc(kept[c]);
    }
  }
  __syncthreads();
}

}  // namespace vecbank::cuda
