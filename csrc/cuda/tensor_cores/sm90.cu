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
// enters its warp's queue in shared memory, out of line. A full queue drops what no longer reaches its row's threshold;
// what is left moves to the rows' candidates, 32 hits at a time. For k = 1 thresholds rise as the screen runs, so few
// hits ever leave the queue.
//
// Budgets, tiles and descriptors are in sm90_layout.h, instructions in sm90_ptx.h.
#include "../kernels.h"

#if !defined(VECBANK_EMULATE) && !__has_include(<cute/arch/mma_sm90_gmma.hpp>)
namespace vecbank::cuda {
bool has_sm90() { return false; }
Error sm90_fault(const Device&) {
  return "the sm90 path was left out of this build: no CUTLASS headers (pip install nvidia-cutlass==4.2.0.0)";
}
Error screen_sm90(const Screen&, const Device& device) { return sm90_fault(device); }
}  // namespace vecbank::cuda
#else

#include <cfloat>

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
  __device__ __forceinline__ Hit* hits(int warp) const {  // of all consumers' warps
    return reinterpret_cast<Hit*>(base + kMap.hits) + warp * kQueue;
  }
  // Of each row of the block: twice_above(its slack).
  __device__ __forceinline__ float* slacks() const { return reinterpret_cast<float*>(base + kMap.slacks); }
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

// ---- Hits ----------------------------------------------------------------------------------------------------------
// These functions are not inlined, because hits are rare. The four threads of a quad share a row, and the whole warp
// calls them.

__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, 1));
  return fmaxf(v, __shfl_xor_sync(kAllLanes, v, 2));
}

// A row's threshold as other blocks have raised it: they write while this one runs, so a quad agrees on the value. It is
// above -inf, which is the score of a column that is not there.
__device__ __forceinline__ float published(const Screen& s, int64_t row) {
  const float seen = row < s.rows ? *static_cast<volatile const float*>(s.thresholds + row) : HUGE_VALF;
  return fmaxf(quad_max(seen), -FLT_MAX);
}

struct WarpHits {  // the thresholds of a thread's four rows, and the hits in its warp's queue
  float threshold[2 * kHalves];
  int queued;
};

// Drops hits that no longer reach their row's threshold. If many are left, or if `all` is set, they become candidates.
// `first`: the query row of the group's row 0.
static __device__ __noinline__ WarpHits drain(const Screen& s, int64_t first, WarpHits warp, Hit* queue, bool all) {
  const int lane = threadIdx.x % 32, number = threadIdx.x / 32 % 4;
  const auto query = [&](int row) { return first + warp_row(number, row); };
  if (s.listed > 0)
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) {
      const int64_t row = query(r * 8 + lane / 4);
      const float known = published(s, row), own = warp.threshold[r];
      if (lane % 4 == 0 && own > known && own < HUGE_VALF) atomic_max(s.thresholds + row, own);
      warp.threshold[r] = fmaxf(own, known);
    }
  __syncwarp();  // the warp has written its queue
  int kept = 0;
  for (int base = 0; base < warp.queued; base += 32) {
    const Hit hit = base + lane < warp.queued ? queue[base + lane] : Hit{0.0f, 0};
    const int row = static_cast<int>(hit.place >> kColumnBits);
    float threshold = 0.0f;
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) {
      const float of = __shfl_sync(kAllLanes, warp.threshold[r], row % 8 * 4);
      if (row / 8 == r) threshold = of;
    }
    // Not for +inf: a row that fell back.
    const bool keep = base + lane < warp.queued && !(hit.upper < threshold) && threshold < HUGE_VALF;
    const unsigned keeps = __ballot_sync(kAllLanes, keep);
    __syncwarp();  // all lanes have read theirs, which a ballot does not promise
    if (keep) queue[kept + __popc(keeps & ((1u << lane) - 1))] = hit;
    kept += __popc(keeps);
  }
  warp.queued = kept;
  if (!all && kept <= kManyHits) return warp;

  __syncwarp();
  for (int base = 0; base < kept; base += 32) {
    const bool mine = base + lane < kept;
    const Hit hit = mine ? queue[base + lane] : Hit{0.0f, 0};
    const int w = static_cast<int>(hit.place >> kColumnBits), i = static_cast<int>(hit.place & ((1u << kColumnBits) - 1));
    const int64_t row = query(w);
    int at = 0;
    if (mine) at = atomicAdd(s.counts + row, 1);
    if (mine && at < s.capacity) {
      const double slack = s.slacks[row] + s.terms.lift[i];
      s.candidates[row * s.capacity + at] = {hit.upper, lower_bound(hit.upper, s.norms[row], s.terms.bound[i], slack),
                                             static_cast<uint32_t>(bank_row(s, i))};
    }
    // A row with more candidates than its capacity falls back, and has no more hits.
    for (unsigned full = __ballot_sync(kAllLanes, mine && at >= s.capacity); full != 0; full &= full - 1) {
      const int over = __shfl_sync(kAllLanes, w, __ffs(static_cast<int>(full)) - 1);
#pragma unroll
      for (int r = 0; r < 2 * kHalves; ++r)
        if (over == r * 8 + lane / 4) warp.threshold[r] = HUGE_VALF;
    }
  }
  __syncwarp();  // the warp has read its queue
  warp.queued = 0;
  return warp;
}

struct Bunch {
  float v[kBunch];  // v[u] is the upper bound of column 8 (u / 2) + u % 2 from the bunch's first one on
};
struct Kept {
  float threshold;
  int hits;
};
struct Rules {  // of a launch, in registers: a function that is not inlined reads the kernel's arguments slowly
  bool raises, masked;
};

// Queues the scores of a bunch that reach the threshold, and raises the threshold where the screen does so. `terms`,
// `place`, `limit`: of the bunch's first column; columns from `limit` on are not of this launch. `row`: the query.
static __device__ __noinline__ Kept keep(const Screen& s, Rules rules, const Bunch bunch, float threshold, float norm,
                                         float slack, Hit* queue, const float* terms, uint32_t place, int limit,
                                         int64_t row) {
  constexpr int kBounds = kColumns, kLifts = 2 * kColumns;  // in TileTerms, behind the starts
  unsigned reaches = 0;                                     // bit u: bunch.v[u] reaches the threshold
#pragma unroll
  for (int u = 0; u < kBunch; ++u)
    if (!(bunch.v[u] < threshold)) reaches |= 1u << u;
  if (!(threshold < HUGE_VALF)) reaches = 0;
  float best = threshold;
  int hits = 0;
  for (unsigned some = __reduce_or_sync(kAllLanes, reaches); some != 0; some &= some - 1) {  // usually one bit
    const int u = __ffs(static_cast<int>(some)) - 1, at = u / 2 * 8 + u % 2;
    float upper = bunch.v[0];
#pragma unroll
    for (int other = 1; other < kBunch; ++other)
      if (u == other) upper = bunch.v[other];
    bool hit = (reaches >> u & 1) != 0 && at < limit;
    if (hit && rules.masked)
      hit = s.mask.allows(row, bank_row(s, (place & ((1u << kColumnBits) - 1)) + static_cast<uint32_t>(at)));
    if (hit && rules.raises)
      best = fmaxf(best, lower_bound_of(upper, norm, terms[kBounds + at], 2.0f * terms[kLifts + at] + slack));
    const unsigned found = __ballot_sync(kAllLanes, hit);
    if (hit) queue[hits + __popc(found & ((1u << threadIdx.x % 32) - 1))] = {upper, place + static_cast<uint32_t>(at)};
    hits += __popc(found);
  }
  return {rules.raises ? quad_max(best) : best, hits};
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
  float norm[2 * kHalves];
  WarpHits warp;

  __device__ __forceinline__ Consumer(const Args& args, const Shared<Blocks>& view, int g)
      : a(args), shared(view), group(g), thread(static_cast<int>(threadIdx.x) % 128) {}

  __device__ __forceinline__ int row_in_block(int r) const {
    return group * kGroupRows + r / 2 * 64 + score_row(thread, 2 * (r % 2));
  }

  __device__ __forceinline__ Hit* queue() const { return shared.hits(group * 4 + thread / 32); }

  __device__ __forceinline__ void begin_rows(int64_t first) {
    __syncwarp();  // all lanes have finished with the slacks of the rows before
    {
      const int row = group * kGroupRows + warp_row(thread / 32, thread % 32);
      shared.slacks()[row] = first + row < a.s.rows ? twice_above(a.s.slacks[first + row]) : 0.0f;
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) {
      const int64_t row = first + row_in_block(r);
      norm[r] = row < a.s.rows ? a.s.norms[row] : 0.0f;
      warp.threshold[r] = published(a.s, row);
    }
    warp.queued = 0;
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

  // Where rows meet their first tile, its best scores give a threshold: each is at least as good as its upper bound
  // less the widest gap of the tile. All columns of the tile must be there, and allowed.
  __device__ __forceinline__ void raise_thresholds(const float (&largest)[2 * kHalves][kBunches]) {
    const TileTerms& terms = shared.columns(slot);
    float bound = 0.0f, lift = 0.0f;
#pragma unroll
    for (int c = thread % 32; c < kColumns; c += 32) {
      bound = fmaxf(bound, terms.bound[c]);
      lift = fmaxf(lift, terms.lift[c]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      bound = fmaxf(bound, __shfl_xor_sync(kAllLanes, bound, step));
      lift = fmaxf(lift, __shfl_xor_sync(kAllLanes, lift, step));
    }
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) {
      float best = -HUGE_VALF;
#pragma unroll
      for (int q = 0; q < kBunches; ++q) {
        const float v = largest[r][q];
        if (v < HUGE_VALF && v > best) best = v;
      }
      best = lower_bound_of(best, norm[r], bound, 2.0f * lift + shared.slacks()[row_in_block(r)]);
      warp.threshold[r] = fmaxf(warp.threshold[r], quad_max(best));
    }
  }

  __device__ __forceinline__ void gate(int64_t first, int column, bool fresh) {
    float largest[2 * kHalves][kBunches];
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
      for (int q = 0; q < kBunches; ++q) {
        const Bunch bunch = bunch_of(r, q);
        largest[r][q] = bunch.v[0];
#pragma unroll
        for (int u = 1; u < kBunch; ++u) largest[r][q] = max_nan(largest[r][q], bunch.v[u]);
      }
    const int columns = static_cast<int>(a.s.end - a.s.first_slot) * kPanel - column;  // of this launch, from here on
    if (fresh && a.s.listed > 0 && columns >= kColumns && a.s.mask.data == nullptr) raise_thresholds(largest);
    unsigned hits = 0;  // bit r * kBunches + q: bunch q of row r
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
      for (int q = 0; q < kBunches; ++q)
        if (!(largest[r][q] < warp.threshold[r])) hits |= 1u << (r * kBunches + q);
    hits = __reduce_or_sync(kAllLanes, hits);
    if (hits == 0) return;
    const float* terms = shared.columns(slot).start;
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
      for (int q = 0; q < kBunches; ++q) {
        if ((hits >> (r * kBunches + q) & 1) == 0) continue;
        if (warp.queued > kQueue - kMostHits) warp = drain(a.s, first + group * kGroupRows, warp, queue(), false);
        const int at = score_column(thread, 0) + q * kBunch * 4, row = row_in_block(r);
        const uint32_t place = static_cast<uint32_t>(r * 8 + thread % 32 / 4) << kColumnBits;
        const Kept kept =
            keep(a.s, {a.s.listed > 0, a.s.mask.data != nullptr}, bunch_of(r, q), warp.threshold[r], norm[r],
                 shared.slacks()[row], queue() + warp.queued, terms + at, place + static_cast<uint32_t>(column + at),
                 columns - at, first + row);
        warp.threshold[r] = kept.threshold;
        warp.queued += kept.hits;
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
        gate(first, first_column(a.s, tile), tile == segment.begin);
        slot = slot + 1 == Shared<Blocks>::kMap.tiles ? 0 : slot + 1;
      }
      if (thread % 32 == 0) barrier_arrive(&barriers.queries_empty);
      warp = drain(a.s, first + group * kGroupRows, warp, queue(), true);
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

bool has_sm90() { return true; }
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
