// The tensor-core screen on 16-bit operands (operands.h), for sm_80 and later; heuristics.h says when it runs.
// 16-bit inputs of one type are taken as they are, others are rounded to bf16. A tile of 128 x 128 is computed in steps
// of 64 coordinates. Two steps have buffers, and the loads of a step overlap the product of the step before, across
// tiles too. The proof of the bounds is in bounds.h.
#include "../plan.h"
#include "mma_tile.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kDepth = kOperandDepth;     // coordinates of a step: 128 bytes a row
constexpr int kChunks = kDepth * 2 / 16;  // 16-byte chunks of such a row
constexpr int kSideBytes = kTile * kDepth * 2;
constexpr int kStageBytes = 2 * kSideBytes;         // query rows, then bank rows
constexpr int kLoads = kTile * kChunks / kThreads;  // 16-byte loads per thread, side and step
static_assert(dump_bytes(kTile) <= 2 * kStageBytes && kLoads * kThreads == kTile * kChunks);

struct TileTerms {  // the column terms of the current tile and of the next
  float starts[2][kTile], bounds[2][kTile];
  float norms[kTile];
};
constexpr int64_t kBytes = 2 * kStageBytes + static_cast<int64_t>(sizeof(TileTerms));

// The offset of chunk c of row r within a side. The swizzle puts the eight rows of a matrix into different banks.
VB_INLINE int chunk_offset(int r, int c) { return r * kDepth * 2 + ((c ^ (r % kChunks)) * 16); }

// Loads this block's steps in order. Offsets within a piece or within the queries fit 32 bits.
struct Loader {
  int x, mine;            // elements before the query tile; elements before this thread's first chunk of a tile
  int column, tiles;      // the column of the piece where the block's first tile begins; the number of tiles
  int depth;              // steps of a tile
  int tile = 0, k = 0;    // the next step
  unsigned resident = 0;  // a bit for each stage that already holds its query step

  // Starts to copy the next step, if any, into stage s.
  __device__ __forceinline__ void next(const Screen& a, char* stages, int s, TileTerms& terms) {
    if (tile < tiles) {
      char* stage = stages + s * kStageBytes;
      const int row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks, pitch = depth * kDepth;
      const int from = column + tile * kTile;
      const bool with_x = depth > 2 || (resident >> s & 1) == 0;
#pragma unroll
      for (int u = 0; u < kLoads; ++u) {
        const int r = row + u * (kThreads / kChunks), skip = mine + u * (kThreads / kChunks) * pitch + k * kDepth;
        if (with_x) copy_async(stage + chunk_offset(r, chunk), a.query_operand.rows + (x + skip), true);
        copy_async(stage + kSideBytes + chunk_offset(r, chunk), a.bank_operand.rows + (from * pitch + skip), true);
      }
      if (depth <= 2) resident |= 1u << s;
      if (k == 0 && threadIdx.x < 2 * kTile / 4) {
        const int at = threadIdx.x % (kTile / 4) * 4;
        if (threadIdx.x < kTile / 4)
          copy_async(&terms.starts[tile % 2][at], a.terms.start + (from + at), true);
        else
          copy_async(&terms.bounds[tile % 2][at], a.terms.bound + (from + at), true);
      }
      if (++k == depth) k = 0, ++tile;
    }
    commit_copies();
  }
};
static_assert(kMostOperandElements + 256 * kWidestScreen <= INT32_MAX && kRowShare <= INT32_MAX);

// acc += x * b over one step, for this warp's part of the tile.
template <bool Bf16>
__device__ __forceinline__ void multiply_step(const char* stage, const WarpPlace& w, Accumulators& acc) {
  const int lane = threadIdx.x % 32, row = lane % 8;
#pragma unroll
  for (int k = 0; k < kChunks; k += 2) {
    uint32_t b[kColumnTiles / 2][4];  // two column tiles a load: rows 0-7 and 8-15, each with both halves of k
#pragma unroll
    for (int j = 0; j < kColumnTiles / 2; ++j)
      load_matrices(b[j], stage + kSideBytes + chunk_offset(w.column + 16 * j + row + lane / 16 * 8, k + lane / 8 % 2));
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      uint32_t x[4];
      load_matrices(x, stage + chunk_offset(w.row + 16 * i + row + lane / 8 % 2 * 8, k + lane / 16));
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) mma_16<Bf16>(acc[i][j], x, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }
}

template <bool Bf16>
__global__ void __launch_bounds__(kThreads, 2) mma16_kernel(const __grid_constant__ Screen a) {
  char* stages = shared_memory();
  TileTerms& terms = *reinterpret_cast<TileTerms*>(stages + 2 * kStageBytes);
  TileState& state = *reinterpret_cast<TileState*>(stages + kBytes);
  const WarpPlace w = warp_place();
  begin_run(a, state);
  while (next_segment(a, state)) {
    begin_rows(a, state.first_row, state);
    if (threadIdx.x < kTile)
      terms.norms[threadIdx.x] = state.first_row + threadIdx.x < a.rows ? a.norms[state.first_row + threadIdx.x] : 0.0f;

    const int pitch = static_cast<int>(a.bank_operand.pitch);
    Loader loader;
    loader.x = static_cast<int>(state.first_row) * pitch;
    loader.mine = threadIdx.x / kChunks * pitch + threadIdx.x % kChunks * 8;
    loader.column = static_cast<int>(state.begin - a.first_slot) * kPanel;
    loader.tiles = (state.end - state.begin + kTilePanels - 1) / kTilePanels;
    loader.depth = pitch / kDepth;
    loader.next(a, stages, 0, terms);

    int stage = 0;
    for (int tile = 0; tile < loader.tiles; ++tile) {
      Accumulators acc;
      for (int k = 0; k < loader.depth; ++k, stage ^= 1) {
        wait_copies<0>();
        __syncthreads();  // this step has arrived, and no thread still reads the other stage
        loader.next(a, stages, stage ^ 1, terms);
        if (k == 0)  // accumulators include the bound, so they end as upper bounds
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
            for (int j = 0; j < kColumnTiles; ++j)
#pragma unroll
              for (int e = 0; e < 4; ++e) {
                const int column = fragment_column(w, j, e);
                acc[i][j][e] = fused(terms.norms[fragment_row(w, i, e)], terms.bounds[tile % 2][column],
                                     terms.starts[tile % 2][column]);
              }
        multiply_step<Bf16>(stages + stage * kStageBytes, w, acc);
      }
      // Many hits overwrite both stages, also the one that is being filled, whose step is then loaded again.
      const auto each = [&](auto&& f) { each_accumulator(acc, w, f); };
      const auto make_room = [] {
        wait_copies<0>();
        __syncthreads();
      };
      if (finish_tile<kTile>(a, each, state.first_row, state.begin + tile * kTilePanels, state.end,
                             reinterpret_cast<float*>(stages), state, make_room)) {
        loader.tile = tile + 1, loader.k = 0, loader.resident = 0;
        loader.next(a, stages, stage, terms);
      }
    }
  }
}

}  // namespace

Error screen_mma16(const Screen& args, const Device& device) {
  if (args.bank_operand.type == DType::bf16) return launch_tiles(mma16_kernel<true>, args, kBytes, device);
  return launch_tiles(mma16_kernel<false>, args, kBytes, device);
}

}  // namespace vecbank::cuda
