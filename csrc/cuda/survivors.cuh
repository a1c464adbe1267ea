// What every screen does with a finished tile: it compares the tile with its rows' thresholds and keeps the columns
// that may still be among the best. A few hits are queued directly from the accumulators. A tile with many hits is
// first written to shared memory, because indexing accumulators at run time would put them into local memory.
#pragma once

#include "kernels.h"
#include "warp_list.cuh"

namespace vecbank::cuda {

constexpr int64_t dump_bytes(int rows) { return int64_t{rows} * kTile * 4; }
constexpr int kQueue = 256;

struct Hit {
  float upper;
  int position;  // row * kTile + column, within the tile
};

struct TileState {                   // shared memory of a block, after its buffers
  const float* panels[kTilePanels];  // of the current tile (with operands: their starts); null past the end
  int64_t columns[kTilePanels];      // the bank row each panel begins with
  float thresholds[kTile];
  int at, first_row, begin, end;  // of the run: the next pair; of its segment: the first row, the slots
  int hits;                       // may exceed kQueue; the queue holds the first of them
  Hit queue[kQueue];
  // [kTile][listed], behind this struct: each row's best lower bounds among this block's columns, best first.
  VB_INLINE float* lists() { return reinterpret_cast<float*>(this + 1); }
};
inline int64_t tile_state_bytes(const Screen& a) {
  return static_cast<int64_t>(sizeof(TileState)) + int64_t{kTile} * a.listed * 4;
}

// A block's run of the work. What describes its segment stays in shared memory, as the product needs the registers.
__device__ __forceinline__ void begin_run(const Screen& a, TileState& state) {
  if (threadIdx.x == 0) state.at = a.work.begin(static_cast<int>(blockIdx.x));
}
// Moves on to the next segment; false: there is none. The whole block calls this. Slots fit 32 bits, since columns do.
__device__ __forceinline__ bool next_segment(const Screen& a, TileState& state) {
  __syncthreads();  // all threads have finished the last one
  if (threadIdx.x == 0) {
    const int at = state.at, stop = a.work.begin(static_cast<int>(blockIdx.x) + 1);
    state.begin = state.end = 0;
    if (at < stop) {
      const TileSegment segment = a.work.segment(at, stop);
      const int64_t limit = a.begin + int64_t{segment.end} * kTilePanels;
      state.first_row = segment.row_tile * kTile;
      state.begin = static_cast<int>(a.begin + int64_t{segment.begin} * kTilePanels);
      state.end = static_cast<int>(limit < a.end ? limit : a.end);
      state.at = at + segment.end - segment.begin;
    }
  }
  __syncthreads();
  return state.begin < state.end;
}
static_assert(kMostColumns / kPanel < INT32_MAX);
inline Error launch_tiles(void (*kernel)(Screen), Screen a, int64_t shared_bytes, const Device& device) {
  const int64_t row_tiles = ceil_div(a.rows, kTile), end = a.end;
  if (row_tiles == 0) return nullptr;
  for (const int64_t most = most_column_tiles(row_tiles) * kTilePanels; a.begin < end; a.begin = a.end) {
    a.end = std::min(end, a.begin + most);
    a.work =
        make_tile_work(row_tiles, ceil_div(a.end - a.begin, kTilePanels), kTileBlocks * device.processors, a.blocks);
    VB_TRY(launch(kernel, dim3(static_cast<unsigned>(a.work.blocks)), kThreads, shared_bytes + tile_state_bytes(a),
                  device, a));
  }
  return nullptr;
}

// Finds the panels of the tile that begins at `slot`; ends with a barrier.
__device__ __forceinline__ void find_panels(const Screen& a, int slot, int end, TileState& state) {
  if (threadIdx.x < kTilePanels) {
    const int64_t at = slot + static_cast<int>(threadIdx.x), panel = a.schedule.panel(at);
    const int64_t stored = a.first_slot < 0 ? panel : at - a.first_slot;
    const float* where =
        a.terms.start != nullptr ? a.terms.start + stored * kPanel : a.panels + stored * (a.width + 3) * kPanel;
    state.panels[threadIdx.x] = at < end ? where : nullptr;
    state.columns[threadIdx.x] = panel * kPanel;
  }
  __syncthreads();
}

// A row's threshold as other blocks have published it. The load avoids the cached read-only path, because those blocks
// write while this one runs. A stale threshold costs time and changes no answer.
__device__ __forceinline__ float published(const Screen& a, int64_t row) {
  return *static_cast<volatile const float*>(a.thresholds + row);
}

// Before a segment's first tile; a barrier must follow.
__device__ __forceinline__ void begin_rows(const Screen& a, int64_t first_row, TileState& state) {
  for (int i = threadIdx.x; i < kTile * a.listed; i += blockDim.x) state.lists()[i] = -HUGE_VALF;
  if (threadIdx.x < kTile) {
    const int64_t row = first_row + threadIdx.x;
    state.thresholds[threadIdx.x] = row < a.rows ? published(a, row) : HUGE_VALF;
  }
}

struct Survivor {  // a hit with its bank row and lower bound; not valid: no such row, or masked out
  int64_t row, column;
  float lower;
  bool valid;
};

__device__ __forceinline__ Survivor look_up(const Screen& a, float upper, int64_t row, int column,
                                            const TileState& state) {
  Survivor survivor{row, 0, -HUGE_VALF, false};
  const float* panel = state.panels[column / kPanel];
  if (row >= a.rows || panel == nullptr) return survivor;
  survivor.column = state.columns[column / kPanel] + column % kPanel;
  survivor.valid = survivor.column < a.columns && a.mask.allows(row, survivor.column);
  if (!survivor.valid) return survivor;
  double r = 0.0, slack = a.slacks[row];
  if (a.terms.start != nullptr) {
    const int64_t at = panel - a.terms.start + column % kPanel;
    r = a.terms.bound[at], slack += a.terms.lift[at];
  } else {
    r = panel[(a.width + 1) * kPanel + column % kPanel];
    if (a.biased) slack += start_bound(a.width, 2.0 * fabs(static_cast<double>(panel[column % kPanel])));
    slack += a.start_per_r2 * r * r;
  }
  survivor.lower = lower_bound(upper, a.norms[row], r, slack);
  return survivor;
}

// A row's list of k <= 32 lower bounds of this block's columns. The k-th entry is a threshold, since k columns are at
// least as good.
__device__ __forceinline__ WarpList<float> list_of(const Screen& a, TileState& state, int row, int lane) {
  return {a.listed, lane < a.listed ? state.lists()[row * a.listed + lane] : -HUGE_VALF};
}
// Returns the row's threshold, and publishes it to other blocks if it has risen.
__device__ __forceinline__ float close_list(const WarpList<float>& list, const Screen& a, TileState& state,
                                            int64_t first_row, int row, float threshold, int lane) {
  if (lane < a.listed) state.lists()[row * a.listed + lane] = list.entry;
  if (!(list.last > threshold)) return threshold;
  if (lane == 0) atomic_max(a.thresholds + first_row + row, list.last);
  return list.last;
}

// The better of the block's own threshold and the published one. Lanes may read different values, so the value of lane
// 0 counts.
__device__ __forceinline__ float shared_threshold(const Screen& a, int64_t row, float threshold) {
  const float elsewhere = __shfl_sync(kAllLanes, published(a, row), 0);
  return elsewhere > threshold ? elsewhere : threshold;
}

// Reserves `count` places among a row's candidates; one lane calls it. A row with more candidates than its capacity is
// a fallback row.
__device__ __forceinline__ int reserve(const Screen& a, int64_t row, int count) {
  int32_t* counter = a.counts + row;
  return *static_cast<volatile int32_t*>(counter) > a.capacity ? a.capacity : atomicAdd(counter, count);
}

// Keeps the queued hits. Each row belongs to a warp, which passes the row's hits through the row's list one by one and
// appends those that still reach the threshold to the row's candidates. The whole block calls this function after a
// barrier, and it ends with a barrier. It is not inlined, because it is rare and would take registers from the product.
static __device__ __noinline__ void keep_hits(const Screen& a, int first_row, TileState& state) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, count = state.hits;
  for (int base = 0; base < count; base += 32) {
    const Hit hit = base + lane < count ? state.queue[base + lane] : Hit{0.0f, -1};
    const int row = hit.position / kTile;
    Survivor survivor{0, 0, -HUGE_VALF, false};
    if (hit.position >= 0 && row % warps == warp)
      survivor = look_up(a, hit.upper, first_row + row, hit.position % kTile, state);
    for (unsigned left = __ballot_sync(kAllLanes, survivor.valid); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1, r = __shfl_sync(kAllLanes, row, from);
      const float upper = __shfl_sync(kAllLanes, hit.upper, from), lower = __shfl_sync(kAllLanes, survivor.lower, from);
      float threshold = state.thresholds[r];
      if (!(threshold < HUGE_VALF)) continue;  // +inf: a fallback row
      threshold = shared_threshold(a, first_row + r, threshold);
      const bool keep = !(upper < threshold);
      if (keep && a.listed > 0) {
        WarpList<float> list = list_of(a, state, r, lane);
        list.push(lower);
        threshold = close_list(list, a, state, first_row, r, threshold, lane);
      }
      if (keep && lane == from) {
        const int at = reserve(a, first_row + r, 1);
        if (at < a.capacity)
          a.candidates[(first_row + r) * a.capacity + at] = {upper, lower, static_cast<uint32_t>(survivor.column)};
      }
      if (lane == 0) state.thresholds[r] = threshold;
      __syncwarp();
    }
  }
  __syncthreads();
}

// Keeps many hits: uppers[rows][128], whose row 0 is the tile's row `from`. All hits of a row enter its list before any
// is appended, so the first tile of a block gives each row about k candidates. The rest is as in keep_hits.
static __device__ __noinline__ void keep_survivors(const Screen& a, const float* uppers, int first_row, int from,
                                                   int rows, TileState& state) {
  constexpr int kEach = kTile / 32;  // columns of a lane
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < rows && first_row + from + i < a.rows; i += blockDim.x / 32) {
    const int64_t row = first_row + from + i;
    float threshold = state.thresholds[from + i];
    if (!(threshold < HUGE_VALF)) continue;
    float upper[kEach], lower[kEach];
    bool hit = false;
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      upper[c] = uppers[i * kTile + c * 32 + lane];
      hit |= !(upper[c] < threshold);
    }
    if (!__any_sync(kAllLanes, hit)) continue;
    threshold = shared_threshold(a, row, threshold);

    bool keep[kEach];
    uint32_t column[kEach] = {};
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      keep[c] = !(upper[c] < threshold);
      if (!keep[c]) continue;
      const Survivor s = look_up(a, upper[c], row, c * 32 + lane, state);
      keep[c] = s.valid, lower[c] = s.lower, column[c] = static_cast<uint32_t>(s.column);
    }
    if (a.listed > 0) {
      WarpList<float> list = list_of(a, state, from + i, lane);
      if (a.listed == 1) {  // the best of all of them is enough
        float best = -HUGE_VALF;
#pragma unroll
        for (int c = 0; c < kEach; ++c)
          if (keep[c] && lower[c] > best) best = lower[c];
        for (int step = 16; step > 0; step /= 2) {
          const float other = __shfl_xor_sync(kAllLanes, best, step);
          best = other > best ? other : best;
        }
        list.push(best);
      } else {
#pragma unroll
        for (int c = 0; c < kEach; ++c) list.add(keep[c], lower[c]);
      }
      threshold = close_list(list, a, state, first_row, from + i, threshold, lane);
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
    int at = __shfl_sync(kAllLanes, lane == 0 ? reserve(a, row, total) : 0, 0);
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

// Compares a finished tile with the thresholds and keeps its survivors. `each(f)` calls f(upper, row, column) for this
// thread's accumulators in an unrolled loop. A tile with more hits than the queue holds passes through `dump`, `Rows`
// rows at a time, after the whole block has called `make_room`. Returns whether the tile passed through `dump`.
template <int Rows, class Each, class MakeRoom>
__device__ __forceinline__ bool finish_tile(const Screen& a, Each&& each, int first_row, int slot, int end, float* dump,
                                            TileState& state, MakeRoom&& make_room) {
  bool hit = false;
  each([&](float upper, int row, int) { hit |= !(upper < state.thresholds[row]); });
  const int threads = __syncthreads_count(hit);
  if (threads == 0) return false;
  if (threadIdx.x == 0) state.hits = 0;
  find_panels(a, slot, end, state);
  if (threads <= kQueue / 2) {
    if (hit)
      each([&](float upper, int row, int column) {
        if (upper < state.thresholds[row]) return;
        const int at = atomicAdd(&state.hits, 1);
        if (at < kQueue) state.queue[at] = {upper, row * kTile + column};
      });
    __syncthreads();
    if (state.hits <= kQueue) {
      keep_hits(a, first_row, state);
      return false;
    }
  }
  make_room();
#pragma unroll
  for (int from = 0; from < kTile; from += Rows) {
    each([&](float upper, int row, int column) {
      if (row >= from && row < from + Rows) dump[(row - from) * kTile + column] = upper;
    });
    __syncthreads();
    keep_survivors(a, dump, first_row, from, Rows, state);
  }
  return true;
}

}  // namespace vecbank::cuda
