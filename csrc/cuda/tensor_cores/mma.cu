// The tensor-core screen on float32 panels, for sm_80 and later. Only VECBANK_CUDA_PATH=mma selects it.
// Panels, tiles and survivors are those of the portable screen. Each float32 is split into two numbers of 11 bits, and
// three mma.sync give the product to about 2^-20. Its error bound is the float32 screen's times tensor_factor(), which
// rests on an assumed constant of the hardware: bounds.h must be measured before this screen becomes a default.
#include "../mainloop_simt.cuh"
#include "mma_tile.cuh"

namespace vecbank::cuda {
namespace {

using S = Simt<float>;
constexpr int kLine = kTile + 8;  // padded: a fragment reads four lines at once, from different banks
constexpr int kBuffer = S::kDepth * kLine;
constexpr int64_t kBytes = int64_t{4} * kBuffer * 4;
constexpr int kDumped = kTile / 2;  // rows at a time
static_assert(dump_bytes(kDumped) <= kBytes);

struct Split {
  uint32_t high, low;
};
__device__ __forceinline__ Split split(float x) {
  Split s;
  s.high = round_tf32(x);
  s.low = round_tf32(x - __uint_as_float(s.high));  // exact: the leading bits cancel
  return s;
}

// One step of kDepth lines: acc += x * b for this warp's part of the tile.
__device__ __forceinline__ void multiply_step(const float* x, const float* b, const WarpPlace& w, Accumulators& acc) {
#pragma unroll
  for (int k = 0; k < S::kDepth; k += 8) {
    uint32_t b_high[kColumnTiles][2], b_low[kColumnTiles][2];
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Split s = split(b[(k + w.t + 4 * e) * kLine + w.column + 8 * j + w.g]);
        b_high[j][e] = s.high, b_low[j][e] = s.low;
      }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Split s = split(x[(k + w.t + 4 * (e / 2)) * kLine + w.row + 16 * i + w.g + 8 * (e % 2)]);
        high[e] = s.high, low[e] = s.low;
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        mma_tf32(acc[i][j], low, b_high[j]);  // small terms first
        mma_tf32(acc[i][j], high, b_low[j]);
        mma_tf32(acc[i][j], high, b_high[j]);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1) mma_kernel(const __grid_constant__ Screen a) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  TileState& state = *reinterpret_cast<TileState*>(shared_memory() + kBytes);
  const WarpPlace w = warp_place();
  const int64_t query_panels = (a.rows + kPanel - 1) / kPanel;
  begin_run(a, state);
  while (next_segment(a, state)) {
    begin_rows(a, state.first_row, state);
    __syncthreads();

    for (int slot = state.begin; slot < state.end; slot += kTilePanels) {
      find_panels(a, slot, state.end, state);
      Side<float> x = make_side<float>([&](int p) -> const float* {
        const int64_t panel = state.first_row / kPanel + p;
        return panel < query_panels ? a.queries + panel * (a.width + 1) * kPanel : nullptr;
      });
      Side<float> b = make_side<float>([&](int p) -> const float* {
        return state.panels[p] == nullptr ? nullptr : state.panels[p] + kPanel;  // line 0 is a start, not a coordinate
      });
      Accumulators acc;
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = fragment_column(w, j, e);
          const float* panel = state.panels[column / kPanel];
          float start = -HUGE_VALF;
          if (panel != nullptr) {
            start = panel[(a.width + 2) * kPanel + column % kPanel];
            // The panel's start includes the float32 screen's share of the bound; this adds the remainder of this
            // screen's.
            const double r = panel[(a.width + 1) * kPanel + column % kPanel];
            double more = a.start_per_r2 * (1.0 - 1.0 / a.factor) * r * r;
            if (a.biased)
              more += (a.factor - 1.0) * start_bound(a.width, 2.0 * fabs(static_cast<double>(panel[column % kPanel])));
            if (start < HUGE_VALF && more > 0.0) start = round_up(static_cast<double>(start) + more);
          }
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) acc[i][j][e] = acc[i][j][e + 2] = start;
        }

      float *now = shared, *then = shared + 2 * kBuffer;
      int lines = static_cast<int>(a.width) + 1;
      fetch<float, kLine>(x, lines, a.panels, now);
      fetch<float, kLine>(b, lines, a.panels, now + kBuffer);
      commit_copies();
      wait_copies<0>();
      __syncthreads();
      for (; lines > 0; lines -= S::kDepth) {
        if (lines > S::kDepth) {  // into the other buffer: its last readers passed the barrier of the step before
          fetch<float, kLine>(x, lines - S::kDepth, a.panels, then);
          fetch<float, kLine>(b, lines - S::kDepth, a.panels, then + kBuffer);
          commit_copies();
        }
        multiply_step(now, now + kBuffer, w, acc);
        wait_copies<0>();
        __syncthreads();
        float* swap = now;
        now = then;
        then = swap;
      }

      finish_tile<kDumped>(
          a, [&](auto&& f) { each_accumulator(acc, w, f); }, state.first_row, slot, state.end, shared, state, [] {});
    }
  }
}

}  // namespace

Error screen_mma(const Screen& args, const Device& device) { return launch_tiles(mma_kernel, args, kBytes, device); }

}  // namespace vecbank::cuda
