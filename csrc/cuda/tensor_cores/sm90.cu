// The Hopper screen (sm_90a). Only VECBANK_CUDA_PATH=sm90 selects it.
//
// A block has three warpgroups, and each multiprocessor one block. The producer, one thread, streams bank tiles of 128
// rows through a ring in shared memory by TMA. Each of two consumer groups keeps 128 query rows in shared memory and
// multiplies them with every tile (wgmma, two accumulator blocks of 64 x 128). The groups use the matrix units in turn,
// so that one group compares its scores while the other computes a product.
//
// An accumulator starts at its column's start + the row's norm * the column's bound, so it ends as an upper bound: a
// score costs one multiply-add before the product and one maximum after it. A thread has four rows of a tile with 32
// scores each; the maximum of every eight is compared with the row's threshold. A score that reaches the threshold
// enters, out of line, a short list in shared memory that only the row's four threads use (no atomics). The list moves
// to the row's candidates when it is full and at the end of the row's tiles. For k = 1 the threshold rises as the
// screen runs.
//
// Budgets, tiles and descriptors are in sm90_layout.h, instructions in sm90_ptx.h.
#include "../kernels.h"

#if !defined(VECBANK_EMULATE) && !__has_include(<cute/arch/mma_sm90_gmma.hpp>)
namespace vecbank::cuda {
Error sm90_fault(const Device&) {
  return "the sm90 path was left out of this build: no CUTLASS headers (pip install nvidia-cutlass==4.2.0.0)";
}
Error screen_sm90(const Screen&, const Device& device) { return sm90_fault(device); }
}  // namespace vecbank::cuda
#else

#include "../order.h"
#if !defined(VECBANK_EMULATE)
#include "sm90_ptx.h"
#endif

namespace vecbank::cuda {
namespace sm90 {

// ---- Parameters ----------------------------------------------------------------------------------------------------

struct Args {
  TensorMap query_map, bank_map;
  Screen s;
  Work work;
};

// The row of the operand at which a tile of this launch begins.
VB_INLINE int first_column(const Screen& s, int tile) {
  return static_cast<int>(s.begin - s.first_slot) * kPanel + tile * kColumns;
}
// The bank row that is the operand's row i.
VB_INLINE int64_t bank_row(const Screen& s, uint32_t i) {
  return s.schedule.panel(s.first_slot + i / kPanel) * kPanel + i % kPanel;
}

struct Barriers {
  uint64_t full[kMostStages], empty[kMostStages], queries_full, queries_empty;
};
static_assert(sizeof(Barriers) == (2 * kMostStages + 2) * 8);

#if defined(VECBANK_SM90_CODE)

template <int Blocks>
struct Shared {  // one thread's view of shared memory
  static constexpr SharedMap kMap = shared_map(Blocks);
  char* base;
  __device__ __forceinline__ Shared() : base(shared_memory()) {
    base += (0u - shared_address(base)) & (kAlignment - 1);
  }
  __device__ __forceinline__ Barriers& barriers() const { return *reinterpret_cast<Barriers*>(base + kMap.barriers); }
  __device__ __forceinline__ char* queries(int group, int block) const {
    return base + kMap.queries + (group * Blocks + block) * kQueryBox;
  }
  __device__ __forceinline__ char* stage(int stage) const { return base + kMap.ring + stage * kBankBox; }
  __device__ __forceinline__ TileTerms& columns(int tile) const {
    return reinterpret_cast<TileTerms*>(base + kMap.columns)[tile];
  }
  __device__ __forceinline__ Candidate* list(int row) const {
    return reinterpret_cast<Candidate*>(base + kMap.lists) + row * kListed;
  }
  __device__ __forceinline__ double* slacks() const { return reinterpret_cast<double*>(base + kMap.slacks); }
};

// ---- The producer --------------------------------------------------------------------------------------------------

template <int Blocks>
__device__ __forceinline__ void produce(const Args& a, const Shared<Blocks>& shared) {
  int at = a.work.begin(static_cast<int>(blockIdx.x));
  const int end = a.work.begin(static_cast<int>(blockIdx.x) + 1);
  Barriers& barriers = shared.barriers();
  Turn ring;
  unsigned parity = 0;
  int slot = 0;  // where the tile's column terms are kept
  while (at < end) {
    const Segment segment = a.work.segment(at, end);
    barrier_wait(&barriers.queries_empty, parity ^ 1);
    parity ^= 1;
    barrier_expect(&barriers.queries_full, kGroups * Blocks * kQueryBox);
    for (int g = 0; g < kGroups; ++g)
      for (int block = 0; block < Blocks; ++block)
        load_box(a.query_map, &barriers.queries_full, shared.queries(g, block), block * kOperandDepth,
                 int64_t{segment.row_tile} * kRows + g * kGroupRows);
    for (int tile = segment.begin; tile < segment.end; ++tile) {
      const int column = first_column(a.s, tile);
      for (int block = 0; block < Blocks; ++block) {
        uint64_t* full = &barriers.full[ring.stage];
        barrier_wait(&barriers.empty[ring.stage], ring.parity ^ 1);
        barrier_expect(full, kBankBox + (block == 0 ? static_cast<int>(sizeof(TileTerms)) : 0));
        load_box(a.bank_map, full, shared.stage(ring.stage), block * kOperandDepth, column);
        if (block == 0) {
          TileTerms& terms = shared.columns(slot);
          load_bytes(a.s.terms.start + column, full, terms.start, sizeof terms.start);
          load_bytes(a.s.terms.bound + column, full, terms.bound, sizeof terms.bound);
          load_bytes(a.s.terms.lift + column, full, terms.lift, sizeof terms.lift);
        }
        ring.advance(Shared<Blocks>::kMap.stages);
      }
      slot = slot + 1 == Shared<Blocks>::kMap.tiles ? 0 : slot + 1;
    }
    at += segment.end - segment.begin;
  }
}

// ---- Survivors -----------------------------------------------------------------------------------------------------
// These functions are not inlined, because survivors are rare. The four threads of a quad share a row, and the whole
// warp calls them.

struct RowState {
  float threshold;
  int listed;  // candidates in the row's list, whose columns are rows of the operand until flush()
};

__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, 1));
  return fmaxf(v, __shfl_xor_sync(kAllLanes, v, 2));
}
struct QuadRank {  // how many threads of the quad keep a score: those before this thread, and all
  int before, all;
};
__device__ __forceinline__ QuadRank rank_in_quad(bool keep) {
  const unsigned lane = threadIdx.x % 32, quad = __ballot_sync(kAllLanes, keep) >> (lane & 28u) & 15u;
  return {__popc(quad & ((1u << lane % 4) - 1)), __popc(quad)};
}

// Moves the list of each `wanted` row to its candidates, without the entries that no longer reach the threshold.
static __device__ __noinline__ RowState flush(const Screen& s, int64_t row, RowState state, Candidate* list,
                                              bool wanted) {
  const int t = threadIdx.x % 4;
  float threshold = -HUGE_VALF;  // other blocks may have published a better one
  if (wanted && s.listed > 0) threshold = *static_cast<volatile const float*>(s.thresholds + row);
  threshold = fmaxf(quad_max(threshold), state.threshold);
  __syncwarp();  // the quad has written its list
  for (int base = 0; base < kListed; base += 4) {
    const int i = base + t;
    const bool keep = wanted && i < state.listed && !(list[i].upper < threshold);
    const QuadRank rank = rank_in_quad(keep);
    int at = 0;
    if (t == 0 && rank.all > 0) at = atomicAdd(s.counts + row, rank.all);
    at = __shfl_sync(kAllLanes, at, threadIdx.x % 32 & 28);
    if (keep && at + rank.before < s.capacity) {
      Candidate candidate = list[i];
      candidate.column = static_cast<uint32_t>(bank_row(s, candidate.column));
      s.candidates[row * s.capacity + at + rank.before] = candidate;
    }
    if (rank.all > 0 && at + rank.all > s.capacity) threshold = HUGE_VALF;  // full: a fallback row
  }
  __syncwarp();  // the quad has read its list
  return {threshold, wanted ? 0 : state.listed};
}

struct Bunch {
  float v[kBunch];  // v[u] is the upper bound of column first + 8 (u / 2) + u % 2
};

// Lists the scores of a bunch that reach the threshold. `terms`: of the tile, whose first column is row `column` of the
// operand. `first`: the bunch's first column in the tile.
static __device__ __noinline__ RowState keep(const Screen& s, const Bunch bunch, int64_t row, float norm, double slack,
                                             RowState state, Candidate* list, const TileTerms& terms, int column,
                                             int first) {
  unsigned reaches = 0;  // bit u: bunch.v[u] reaches the threshold; not for -inf, which is no column
#pragma unroll
  for (int u = 0; u < kBunch; ++u)
    if (!(bunch.v[u] < state.threshold) && bunch.v[u] != -HUGE_VALF) reaches |= 1u << u;
  if (!(state.threshold < HUGE_VALF)) reaches = 0;
  const unsigned some = __reduce_or_sync(kAllLanes, reaches);  // usually one bit
  const int end = static_cast<int>(s.end - s.first_slot) * kPanel;
  float best = state.threshold, lower[kBunch];
#pragma unroll
  for (int u = 0; u < kBunch; ++u) {
    lower[u] = -HUGE_VALF;
    if ((some >> u & 1) == 0 || (reaches >> u & 1) == 0) continue;
    const int at = first + u / 2 * 8 + u % 2, i = column + at;
    const bool valid = i < end && s.mask.allows(row, bank_row(s, i));
    if (!valid) {
      reaches &= ~(1u << u);
      continue;
    }
    lower[u] = lower_bound(bunch.v[u], norm, terms.bound[at], terms.lift[at] + slack);
    best = fmaxf(best, lower[u]);
  }
  if (s.listed > 0) {
    best = quad_max(best);
    if (threadIdx.x % 4 == 0 && state.threshold < best) atomic_max(s.thresholds + row, best);
    state.threshold = best;
  }
#pragma unroll
  for (int u = 0; u < kBunch; ++u) {
    if ((some >> u & 1) == 0) continue;
    const bool kept = (reaches >> u & 1) != 0 && !(bunch.v[u] < state.threshold) && state.threshold < HUGE_VALF;
    const QuadRank rank = rank_in_quad(kept);
    const bool full = state.listed + rank.all > kListed;
    if (__any_sync(kAllLanes, full)) state = flush(s, row, state, list, full);
    if (kept)
      list[state.listed + rank.before] = {bunch.v[u], lower[u],
                                          static_cast<uint32_t>(column + first + u / 2 * 8 + u % 2)};
    state.listed += rank.all;
  }
  return state;
}

// ---- The consumers -------------------------------------------------------------------------------------------------

template <int Blocks>
struct Consumer {
  const Args& a;
  const Shared<Blocks>& shared;
  int group, thread;  // 0 or 1; 0 to 127
  Turn ring;
  int slot = 0;
  float acc[kHalves][kScores];
  // A thread's four rows of its group: 64 h + score_row + 8 i, numbered 2 h + i.
  float norm[2 * kHalves], threshold[2 * kHalves];
  int listed[2 * kHalves];

  __device__ __forceinline__ Consumer(const Args& args, const Shared<Blocks>& view, int g)
      : a(args), shared(view), group(g), thread(static_cast<int>(threadIdx.x) % 128) {}

  __device__ __forceinline__ int row_in_block(int r) const {
    return group * kGroupRows + r / 2 * 64 + score_row(thread, 2 * (r % 2));
  }

  __device__ __forceinline__ void begin_rows(int64_t first) {
    __syncwarp();  // all lanes have finished with the slacks of the rows before
    {
      const int lane = thread % 32, row = group * kGroupRows + lane / 16 * 64 + thread / 32 * 16 + lane % 16;
      shared.slacks()[row] = first + row < a.s.rows ? a.s.slacks[first + row] : 0.0;
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) {
      const int64_t row = first + row_in_block(r);
      const bool valid = row < a.s.rows;
      norm[r] = valid ? a.s.norms[row] : 0.0f;
      // As published() in survivors.cuh: other blocks raise the thresholds while this block runs.
      threshold[r] = quad_max(valid ? *static_cast<volatile const float*>(a.s.thresholds + row) : HUGE_VALF);
      listed[r] = 0;
    }
  }

  __device__ __forceinline__ void release(int stage) const {
    if (thread % 32 == 0) barrier_arrive(&shared.barriers().empty[stage]);
  }

  template <bool Bf16>
  __device__ __forceinline__ void multiply_tile(bool last) {
    Barriers& barriers = shared.barriers();
    barrier_wait(&barriers.full[ring.stage], ring.parity);
    const TileTerms& terms = shared.columns(slot);
#pragma unroll
    for (int e = 0; e < kScores; e += 4) {
      const int column = score_column(thread, e);
      const float2 start = *reinterpret_cast<const float2*>(terms.start + column);
      const float2 bound = *reinterpret_cast<const float2*>(terms.bound + column);
#pragma unroll
      for (int r = 0; r < 2 * kHalves; ++r) {
        acc[r / 2][e + r % 2 * 2] = __fmaf_rn(norm[r], bound.x, start.x);
        acc[r / 2][e + r % 2 * 2 + 1] = __fmaf_rn(norm[r], bound.y, start.y);
      }
    }
    const uint64_t x = tile_descriptor(shared_address(shared.queries(group, 0)));
    const uint64_t b = tile_descriptor(shared_address(shared.stage(0)));
    turn_wait(group);
    products_begin(acc);
    int before = 0;
#pragma unroll
    for (int block = 0; block < Blocks; ++block) {
      if (block > 0) {
        barrier_wait(&barriers.full[ring.stage], ring.parity);
        products_go_on();
      }
#pragma unroll
      for (int step = 0; step < kOperandDepth / kStep; ++step)
#pragma unroll
        for (int h = 0; h < kHalves; ++h)
          multiply<Bf16>(acc[h], x + block * kQueryOffset + h * kHalfOffset + step * kStepOffset,
                         b + ring.stage * kStageOffset + step * kStepOffset);
      products_commit();
      if (block > 0) {
        products_wait<1>();
        release(before);
      }
      before = ring.stage;
      ring.advance(Shared<Blocks>::kMap.stages);
    }
    if (!last || group == 0) turn_pass(1 - group);  // no product follows the last one of all
    products_wait_all(acc);
    release(before);
  }

  __device__ __forceinline__ void gate(int64_t first, int column) {
    unsigned hits = 0;  // bit r * kBunches + q: bunch q of row r
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
      for (int q = 0; q < kBunches; ++q) {
        const Bunch bunch = bunch_of(r, q);
        float largest = bunch.v[0];
#pragma unroll
        for (int u = 1; u < kBunch; ++u) largest = max_nan(largest, bunch.v[u]);
        if (!(largest < threshold[r])) hits |= 1u << (r * kBunches + q);
      }
    hits = __reduce_or_sync(kAllLanes, hits);
    if (hits == 0) return;
    const TileTerms& terms = shared.columns(slot);
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
      for (int q = 0; q < kBunches; ++q) {
        if ((hits >> (r * kBunches + q) & 1) == 0) continue;
        const int row = row_in_block(r);
        const RowState state =
            keep(a.s, bunch_of(r, q), first + row, norm[r], shared.slacks()[row], {threshold[r], listed[r]},
                 shared.list(row), terms, column, score_column(thread, 0) + q * kBunch * 4);
        threshold[r] = state.threshold;
        listed[r] = state.listed;
      }
  }
  // The scores of row r from q * kBunch on, which are every second pair of an accumulator block.
  __device__ __forceinline__ Bunch bunch_of(int r, int q) const {
    Bunch bunch;
#pragma unroll
    for (int u = 0; u < kBunch; ++u) bunch.v[u] = acc[r / 2][(q * kBunch / 2 + u / 2) * 4 + r % 2 * 2 + u % 2];
    return bunch;
  }

  template <bool Bf16>
  __device__ __forceinline__ void consume() {
    int at = a.work.begin(static_cast<int>(blockIdx.x));
    const int end = a.work.begin(static_cast<int>(blockIdx.x) + 1);
    Barriers& barriers = shared.barriers();
    unsigned parity = 0;
    if (group == 1 && at < end) turn_pass(0);
    while (at < end) {
      const Segment segment = a.work.segment(at, end);
      const int64_t first = int64_t{segment.row_tile} * kRows;
      begin_rows(first);
      barrier_wait(&barriers.queries_full, parity);
      parity ^= 1;
      for (int tile = segment.begin; tile < segment.end; ++tile, ++at) {
        multiply_tile<Bf16>(at + 1 == end);
        gate(first, first_column(a.s, tile));
        slot = slot + 1 == Shared<Blocks>::kMap.tiles ? 0 : slot + 1;
      }
      if (thread % 32 == 0) barrier_arrive(&barriers.queries_empty);
#pragma unroll
      for (int r = 0; r < 2 * kHalves; ++r) {
        const int row = row_in_block(r);
        flush(a.s, first + row, {threshold[r], listed[r]}, shared.list(row), first + row < a.s.rows);
      }
    }
  }
};

#endif  // VECBANK_SM90_CODE

// ---- The kernel ----------------------------------------------------------------------------------------------------

template <int Blocks, bool Bf16>
__global__ void __launch_bounds__(kThreads, 1) sm90_kernel(const __grid_constant__ Args a) {
#if defined(VECBANK_SM90_CODE)
  const Shared<Blocks> shared;
  if (threadIdx.x == 0) {
    Barriers& barriers = shared.barriers();
    for (int i = 0; i < Shared<Blocks>::kMap.stages; ++i) {
      barrier_init(&barriers.full[i], 1);
      barrier_init(&barriers.empty[i], kConsumerWarps);
    }
    barrier_init(&barriers.queries_full, 1);
    barrier_init(&barriers.queries_empty, kConsumerWarps);
    barrier_init_done();
  }
  __syncthreads();
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);  // uniform over the warp
  if (group == kGroups) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x == kGroups * 128) produce<Blocks>(a, shared);
  } else {
    take_registers<kConsumerRegisters>();
    Consumer<Blocks>(a, shared, group).template consume<Bf16>();
  }
#elif defined(__CUDA_ARCH__)
  __trap();  // built for 9.0 without the "a", or from PTX: an error is better than no candidates
#endif
}

template <int Blocks>
Error start(const Args& a, bool bf16, const Device& device) {
  return launch(bf16 ? sm90_kernel<Blocks, true> : sm90_kernel<Blocks, false>,
                dim3(static_cast<unsigned>(a.work.blocks)), kThreads, shared_map(Blocks).bytes, device, a);
}

}  // namespace sm90

// ---- On the host ---------------------------------------------------------------------------------------------------

Error sm90_fault(const Device& device) {
  return device.capability == 90 ? nullptr : "the sm90 path is for compute capability 9.0 only";
}

Error screen_sm90(const Screen& args, const Device& device) {
  VB_TRY(sm90_fault(device));
  const int64_t pitch = args.bank_operand.pitch;
  if (pitch > kWidestSm90 || args.listed > 1) return "screen_sm90 serves widths up to 256 and lists of one entry";
  sm90::Args a{};
  a.s = args;
  VB_TRY(sm90::encode(sm90::tensor_spec(args.query_operand, args.rows, sm90::kGroupRows), &a.query_map));
  VB_TRY(sm90::encode(sm90::tensor_spec(args.bank_operand, (args.end - args.first_slot) * kPanel, sm90::kColumns),
                      &a.bank_map));
  const int64_t most = sm90::most_columns(args.rows) / kPanel;
  const bool bf16 = args.bank_operand.type == DType::bf16;
  for (a.s.begin = args.begin; a.s.begin < args.end; a.s.begin = a.s.end) {
    a.s.end = std::min(args.end, a.s.begin + most);
    a.work = sm90::make_work(args.rows, (a.s.end - a.s.begin) * kPanel, device.processors, args.blocks);
    switch (sm90::blocks_of(pitch)) {
      case 1: VB_TRY(sm90::start<1>(a, bf16, device)); break;
      case 2: VB_TRY(sm90::start<2>(a, bf16, device)); break;
      case 3: VB_TRY(sm90::start<3>(a, bf16, device)); break;
      default: VB_TRY(sm90::start<4>(a, bf16, device));
    }
  }
  return nullptr;
}

}  // namespace vecbank::cuda
#endif
