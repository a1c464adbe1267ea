// The portable screen. The accumulators of its float32 tiles start at the
// column's upper start and take the bound line as one more coordinate, so an accumulator is an upper bound of the
// score.
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

}  // namespace

Error screen_simt(const Screen& args, const Device& device) {
  return launch_tiles(screen_kernel, args, S::kSharedBytes, device);
}

}  // namespace vecbank::cuda
