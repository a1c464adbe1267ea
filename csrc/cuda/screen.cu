// The portable screen: float32 tiles whose accumulators start at the column's upper start and carry the bound line as
// one more coordinate, so an accumulator is an upper bound of the score. And the compaction between ranges of columns.
#include "mainloop_simt.cuh"
#include "survivors.cuh"

namespace vecbank::cuda {
namespace {

using S = Simt<float>;
static_assert(S::kSize == kTile);

constexpr int kQueue = static_cast<int>(S::kSharedBytes / sizeof(Survivor));  // the tile's buffers, free by then
constexpr int kRowsAtOnce = 2;  // of a thread's 8, when a tile has more survivors than the queue holds
static_assert(kRowsAtOnce * S::kSide * kThreads <= kQueue);

__device__ __forceinline__ int survivors_of(const float (&acc)[S::kSide][S::kSide], const float (&thresholds)[S::kSide],
                                            int from, int to) {
  int hits = 0;
#pragma unroll
  for (int i = 0; i < S::kSide; ++i)
#pragma unroll
    for (int j = 0; j < S::kSide; ++j) hits += i >= from && i < to && !(acc[i][j] < thresholds[i]);
  return hits;
}

// blockIdx.x: query tile. blockIdx.y: a run of tiles_per_block column tiles of the range.
__global__ void __launch_bounds__(kThreads, 2) screen_kernel(const Screen a) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  Survivor* queue = reinterpret_cast<Survivor*>(shared);
  TileState& state = *reinterpret_cast<TileState*>(shared_memory() + S::kSharedBytes);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t begin = a.begin + blockIdx.y * a.tiles_per_block * kTilePanels;
  const int64_t limit = begin + a.tiles_per_block * kTilePanels, end = limit < a.end ? limit : a.end;

  const int64_t query_panels = (a.rows + kPanel - 1) / kPanel;
  Side<float> x;
  for (int p = 0; p < S::kPanels; ++p) {
    const int64_t panel = first_row / kPanel + p;
    x.panels[p] = panel < query_panels ? a.queries + panel * (a.width + 1) * kPanel : nullptr;
  }
  load_thresholds(a, first_row, state);
  if (threadIdx.x == 0) state.total = state.queued = 0;
  __syncthreads();

  for (int64_t slot = begin; slot < end; slot += kTilePanels) {
    Side<float> b;
    for (int p = 0; p < S::kPanels; ++p) b.panels[p] = slot + p < end ? panel_data(a, slot + p) : nullptr;

    float acc[S::kSide][S::kSide];
#pragma unroll
    for (int j = 0; j < S::kSide; ++j) {
      const int column = S::spread(j, tx);
      const float* panel = slot + column / kPanel < end ? panel_data(a, slot + column / kPanel) : nullptr;
      const float start = panel != nullptr ? panel[(a.width + 2) * kPanel + column % kPanel] : -HUGE_VALF;
#pragma unroll
      for (int i = 0; i < S::kSide; ++i) acc[i][j] = start;
    }
    multiply<float>(x, b, a.width + 1, shared, acc);

    float thresholds[S::kSide];
#pragma unroll
    for (int i = 0; i < S::kSide; ++i) thresholds[i] = state.thresholds[S::spread(i, ty)];
    const int hits = survivors_of(acc, thresholds, 0, S::kSide);
    if (!__syncthreads_or(hits)) continue;

    if (hits != 0) atomicAdd(&state.total, hits);
    __syncthreads();
    const int at_once = state.total <= kQueue ? S::kSide : kRowsAtOnce;
    for (int from = 0; from < S::kSide; from += at_once) {
      const int mine = survivors_of(acc, thresholds, from, from + at_once);
      int place = mine != 0 ? atomicAdd(&state.queued, mine) : 0;
#pragma unroll
      for (int i = 0; i < S::kSide; ++i)
#pragma unroll
        for (int j = 0; j < S::kSide; ++j)
          if (i >= from && i < from + at_once && !(acc[i][j] < thresholds[i]))
            queue[place++] = {acc[i][j], static_cast<uint32_t>(S::spread(i, ty) * kTile + S::spread(j, tx))};
      __syncthreads();
      const int count = state.queued;
      keep_survivors(a, queue, count, first_row, slot, state);
      if (threadIdx.x == 0) state.queued = state.total = 0;
      __syncthreads();
    }
  }
}

// ---- Compaction ------------------------------------------------------------------------------------------------------

// Sorts `size` (a power of two) floats in shared memory, largest first; all threads of the block take part.
__device__ void sort_floats(float* values, int size) {
  for (int run = 2; run <= size; run *= 2)
    for (int gap = run / 2; gap > 0; gap /= 2) {
      for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const int j = i ^ gap;
        if (j <= i) continue;
        const float a = values[i], b = values[j];
        if ((i & run) == 0 ? b > a : a > b) values[i] = b, values[j] = a;
      }
      __syncthreads();
    }
}

constexpr int kCompactThreads = 128;

// A block per row.
__global__ void __launch_bounds__(kCompactThreads) compact_kernel(const Compact a) {
  Candidate* held = reinterpret_cast<Candidate*>(shared_memory());
  float* lowers = reinterpret_cast<float*>(held + a.capacity);  // a power of two: capacity is one
  int* kept = reinterpret_cast<int*>(lowers + a.capacity);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int32_t count = a.counts[row];
    Candidate* list = a.candidates + row * a.capacity;
    __syncthreads();  // everyone has read the count, and is done with the row before
    if (count > a.capacity) {
      if (threadIdx.x == 0) {
        a.counts[row] = kGivenUp;
        a.thresholds[row] = HUGE_VALF;
      }
      continue;
    }
    int size = 1;
    while (size < count) size *= 2;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
      if (i < count) held[i] = list[i];
      lowers[i] = i < count ? held[i].lower : -HUGE_VALF;
    }
    if (threadIdx.x == 0) *kept = 0;
    __syncthreads();
    float threshold = a.thresholds[row];
    if (count >= a.k) {
      sort_floats(lowers, size);
      if (lowers[a.k - 1] > threshold) threshold = lowers[a.k - 1];
    }
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      if (!(held[i].upper < threshold)) list[atomicAdd(kept, 1)] = held[i];
    __syncthreads();
    if (threadIdx.x == 0) {
      a.thresholds[row] = threshold;
      a.counts[row] = *kept;
    }
  }
}

}  // namespace

Error screen_simt(const Screen& args, const Device& device) {
  Screen a = args;
  const int64_t row_tiles = ceil_div(a.rows, kTile), column_tiles = ceil_div(a.end - a.begin, kTilePanels);
  if (row_tiles == 0 || column_tiles == 0) return nullptr;
  const int64_t blocks = std::min<int64_t>(column_blocks(row_tiles, column_tiles, device.processors), 65535);
  a.tiles_per_block = ceil_div(column_tiles, blocks);
  const dim3 grid(static_cast<unsigned>(row_tiles), static_cast<unsigned>(ceil_div(column_tiles, a.tiles_per_block)));
  return launch(screen_kernel, grid, kThreads, S::kSharedBytes + static_cast<int64_t>(sizeof(TileState)), device, a);
}

Error compact(const Compact& args, const Device& device) {
  const int64_t shared = args.capacity * static_cast<int64_t>(sizeof(Candidate) + sizeof(float)) + 16;
  return launch(compact_kernel, grid_for(args.rows), kCompactThreads, shared, device, args);
}

}  // namespace vecbank::cuda
