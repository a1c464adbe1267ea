// The portable screen, and the compaction between ranges of columns. The accumulators of its float32 tiles start at the
// column's upper start and take the bound line as one more coordinate, so an accumulator is an upper bound of the
// score.
#include "block_sort.cuh"
#include "mainloop_simt.cuh"
#include "survivors.cuh"

namespace vecbank::cuda {
namespace {

using S = Simt<float>;
static_assert(S::kSize == kTile);

constexpr int kDumped = kTile / 2;  // rows at a time
static_assert(dump_bytes(kDumped) <= S::kSharedBytes);

__global__ void __launch_bounds__(kThreads, 2) screen_kernel(const __grid_constant__ Screen a) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  TileState& state = *reinterpret_cast<TileState*>(shared_memory() + S::kSharedBytes);
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  begin_run(a, state);
  while (next_segment(a, state)) {
    begin_rows(a, state.first_row, state);
    for (int slot = state.begin; slot < state.end; slot += kTilePanels) {
      find_panels(a, slot, state.end, state);
      const Side<float> x = make_side<float>([&](int p) -> const float* {
        const int row = state.first_row + p * kPanel;
        return row < a.rows ? a.queries + row * (a.width + 1) : nullptr;
      });
      const Side<float> b = make_side<float>([&](int p) -> const float* {
        return state.panels[p] == nullptr ? nullptr : state.panels[p] + kPanel;  // line 0 is a start, not a coordinate
      });

      float acc[S::kSide][S::kSide];
#pragma unroll
      for (int j = 0; j < S::kSide; ++j) {
        const int column = S::spread(j, tx);
        const float* panel = state.panels[column / kPanel];
        const float start = panel != nullptr ? panel[(a.width + 2) * kPanel + column % kPanel] : -HUGE_VALF;
#pragma unroll
        for (int i = 0; i < S::kSide; ++i) acc[i][j] = start;
      }
      multiply<float>(x, b, static_cast<int>(a.width) + 1, a.panels, shared, acc);

      const auto each = [&](auto&& f) {
#pragma unroll
        for (int i = 0; i < S::kSide; ++i)
#pragma unroll
          for (int j = 0; j < S::kSide; ++j) f(acc[i][j], S::spread(i, ty), S::spread(j, tx));
      };
      finish_tile<kDumped>(a, each, state.first_row, slot, state.end, shared, state, [] {});
    }
  }
}

// ---- Compaction ----------------------------------------------------------------------------------------------------

constexpr int kCompactThreads = 128;

// Each block has a row.
__global__ void __launch_bounds__(kCompactThreads) compact_kernel(const Compact a) {
  Candidate* held = reinterpret_cast<Candidate*>(shared_memory());
  float* lowers = reinterpret_cast<float*>(held + a.capacity);  // a power of two: capacity is one
  int* kept = reinterpret_cast<int*>(lowers + a.capacity);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int32_t count = a.counts[row];
    Candidate* list = a.candidates + row * a.capacity;
    __syncthreads();  // all threads have read the count and have finished the row before
    if (count > a.capacity) {
      if (threadIdx.x == 0) {
        a.counts[row] = kFellBack;
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
      sort_in_block(lowers, size, [](float x, float y) { return x > y; });
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
  return launch_tiles(screen_kernel, args, S::kSharedBytes, device);
}

Error compact(const Compact& args, const Device& device) {
  const int64_t shared = args.capacity * static_cast<int64_t>(sizeof(Candidate) + sizeof(float)) + 16;
  return launch(compact_kernel, grid_for(args.rows), kCompactThreads, shared, device, args);
}

}  // namespace vecbank::cuda
