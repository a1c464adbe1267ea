// The Hopper screen (sm_90a), which search_path (heuristics.h) chooses on compute capability 9.0.
//
// A block has three warpgroups, and each multiprocessor one block. The producer, one thread, streams bank tiles of 128
// rows through a ring in shared memory by TMA. Each of two consumer groups keeps 128 query rows in shared memory and
// multiplies them with every tile (wgmma, two accumulator blocks of 64 x 128). The groups use the matrix units in turn,
// so that one group compares its scores while the other computes a product.
//
// An accumulator starts at its column's start + the row's norm * the column's bound, so it ends as an upper bound: a
// score costs one multiply-add before the product and one maximum after it. A thread has four rows of a tile with 32
// scores each; the maximum of every eight (a bunch) is compared with the row's threshold. A bunch with a score that
// reaches it enters its warp's queue in shared memory. From time to time the warp looks at its queue, a bunch a lane:
// for k = 1 it raises the thresholds and drops what no longer reaches them, so that few bunches are left at the end of
// a segment (the tiles in a row that meet the same queries); what is left, and for larger k everything, becomes
// candidates.
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
  __device__ __forceinline__ BunchQueue& queue(int warp) const {  // warp: of all consumers' warps
    return reinterpret_cast<BunchQueue*>(base + kMap.queues)[warp];
  }
  __device__ __forceinline__ WarpRows& rows(int warp) const {
    return reinterpret_cast<WarpRows*>(base + kMap.rows)[warp];
  }
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

// ---- Queues --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, 1));
  return fmaxf(v, __shfl_xor_sync(kAllLanes, v, 2));
}

// A row's threshold as other blocks have raised it; they write while this one runs. It is above -inf, which is the
// score of a column that is not there. +inf: there is no such row, or it fell back.
__device__ __forceinline__ float published(const Screen& s, int64_t row) {
  return row < s.rows ? fmaxf(*static_cast<volatile const float*>(s.thresholds + row), -FLT_MAX) : HUGE_VALF;
}

struct QueuedBunch {
  uint32_t place;
  int row;           // of the warp's
  unsigned reaches;  // bit u: v[u] reaches the row's threshold
  __device__ __forceinline__ QueuedBunch(const BunchQueue& queue, const WarpRows& rows, int at, bool valid)
      : place(valid ? queue.place[at] : 0), row(static_cast<int>(place >> kColumnBits)), reaches(0) {
    const float threshold = rows.threshold[row];
    if (!valid || !(threshold < HUGE_VALF)) return;
#pragma unroll
    for (int u = 0; u < kBunch; ++u)
      if (!(queue.v[u][at] < threshold)) reaches |= 1u << u;
  }
  // Calls f(u, column) for the scores that reach the threshold and whose column is of this launch and allowed.
  template <class F>
  __device__ __forceinline__ void each(const Screen& s, int64_t query, F&& f) const {
    const int end = static_cast<int>(s.end - s.first_slot) * kPanel;
    for (unsigned left = reaches; left != 0; left &= left - 1) {  // usually one
      const int u = __ffs(static_cast<int>(left)) - 1;
      const int column = static_cast<int>(place & ((1u << kColumnBits) - 1)) + bunch_column(u);
      if (column < end && s.mask.allows(query, bank_row(s, static_cast<uint32_t>(column)))) f(u, column);
    }
  }
};

// Looks at the `queued` bunches of a warp's queue, and returns how many are left. For k = 1, thresholds rise, and
// bunches that no longer reach them are dropped. If many are left, if `all` is set, and for larger k, the rest becomes
// candidates. `first`: the query row of the group's row 0. It is not inlined, because it is rare.
static __device__ __noinline__ int look(const Screen& s, int64_t first, BunchQueue& queue, WarpRows& rows, int queued,
                                        bool all) {
  const int lane = threadIdx.x % 32, number = threadIdx.x / 32 % 4;
  const auto query = [&](int row) { return first + warp_row(number, row); };
  const bool raises = s.listed > 0;
  __syncwarp();  // the warp has written its queue and its thresholds
  if (raises) {
    const float known = published(s, query(lane));
    if (known > rows.threshold[lane]) rows.threshold[lane] = known;
    __syncwarp();
    for (int at = lane; at < queued; at += 32) {
      const QueuedBunch bunch(queue, rows, at, true);
      float best = -HUGE_VALF;
      bunch.each(s, query(bunch.row), [&](int u, int i) {
        const float slack = 2.0f * s.terms.lift[i] + rows.twice_slack[bunch.row];
        best = fmaxf(best, lower_bound_of(queue.v[u][at], rows.norm[bunch.row], s.terms.bound[i], slack));
      });
      if (best > rows.threshold[bunch.row]) atomic_max(&rows.threshold[bunch.row], best);
    }
    __syncwarp();
    const float own = rows.threshold[lane];
    if (own > known && own < HUGE_VALF) atomic_max(s.thresholds + query(lane), own);
  }

  int kept = 0;
  for (int base = 0; base < queued; base += 32) {
    const int at = base + lane;
    const QueuedBunch bunch(queue, rows, at < queued ? at : 0, at < queued);
    float v[kBunch];
#pragma unroll
    for (int u = 0; u < kBunch; ++u) v[u] = bunch.reaches != 0 ? queue.v[u][at] : 0.0f;
    const unsigned keeps = __ballot_sync(kAllLanes, bunch.reaches != 0);
    __syncwarp();  // all lanes have read theirs, which a ballot does not promise
    if (bunch.reaches != 0) {
      const int to = kept + __popc(keeps & ((1u << lane) - 1));
      queue.place[to] = bunch.place;
#pragma unroll
      for (int u = 0; u < kBunch; ++u) queue.v[u][to] = v[u];
    }
    kept += __popc(keeps);
  }
  __syncwarp();
  if (raises && !all && kept <= kMostKept) return kept;

  for (int at = lane; at < kept; at += 32) {
    const QueuedBunch bunch(queue, rows, at, true);
    const int64_t row = query(bunch.row);
    int count = 0;
    bunch.each(s, row, [&](int, int) { ++count; });
    if (count == 0) continue;
    int to = atomicAdd(s.counts + row, count);
    if (to + count > s.capacity) rows.threshold[bunch.row] = HUGE_VALF;  // the row falls back, and has no more bunches
    bunch.each(s, row, [&](int u, int i) {
      if (to >= s.capacity) return;
      const float upper = queue.v[u][at];
      const float lower = lower_bound(upper, s.norms[row], s.terms.bound[i], s.terms.lift[i] + s.slacks[row]);
      s.candidates[row * s.capacity + to++] = {upper, lower,
                                               static_cast<uint32_t>(bank_row(s, static_cast<uint32_t>(i)))};
    });
  }
  __syncwarp();  // the warp has read its queue and written its thresholds
  return 0;
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
  int queued = 0, look_at = kNewBunches;  // bunches in the queue; with so many the warp looks at them

  __device__ __forceinline__ Consumer(const Args& args, const Shared<Blocks>& view, int g)
      : a(args), shared(view), group(g), thread(static_cast<int>(threadIdx.x) % 128) {}

  // The warp's row that is this thread's row r.
  __device__ __forceinline__ int row_in_warp(int r) const { return r * 8 + thread % 32 / 4; }

  __device__ __forceinline__ BunchQueue& queue() const { return shared.queue(group * 4 + thread / 32); }
  __device__ __forceinline__ WarpRows& rows() const { return shared.rows(group * 4 + thread / 32); }

  __device__ __forceinline__ void read_thresholds() {
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) threshold[r] = rows().threshold[row_in_warp(r)];
  }
  // `first`: the query row of the group's row 0.
  __device__ __forceinline__ void begin_rows(int64_t first) {
    {
      const int lane = thread % 32;
      const int64_t row = first + warp_row(thread / 32, lane);
      const bool valid = row < a.s.rows;
      rows().norm[lane] = valid ? a.s.norms[row] : 0.0f;
      rows().twice_slack[lane] = valid ? twice_above(a.s.slacks[row]) : 0.0f;
      rows().threshold[lane] = published(a.s, row);
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r) norm[r] = rows().norm[row_in_warp(r)];
    read_thresholds();
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
    for (int c = 0; c < kColumns; c += 32) {
      bound = fmaxf(bound, terms.bound[c + thread % 32]);
      lift = fmaxf(lift, terms.lift[c + thread % 32]);
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
      for (int q = 0; q < kBunches; ++q)
        if (largest[r][q] < HUGE_VALF) best = fmaxf(best, largest[r][q]);
      const int row = row_in_warp(r);
      best = quad_max(lower_bound_of(best, norm[r], bound, 2.0f * lift + rows().twice_slack[row]));
      threshold[r] = fmaxf(threshold[r], best);
      if (thread % 4 == 0) rows().threshold[row] = threshold[r];
    }
  }

  // Queues the bunches with a score that reaches its row's threshold. `fresh`: the rows' first tile.
  __device__ __forceinline__ void gate(int64_t first, int column, bool fresh) {
    float largest[2 * kHalves][kBunches];
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
      for (int q = 0; q < kBunches; ++q) {
        largest[r][q] = score(r, q, 0);
#pragma unroll
        for (int u = 1; u < kBunch; ++u) largest[r][q] = max_nan(largest[r][q], score(r, q, u));
      }
    const bool whole = column + kColumns <= static_cast<int>(a.s.end - a.s.first_slot) * kPanel;
    if (fresh && whole && a.s.listed > 0 && a.s.mask.data == nullptr) raise_thresholds(largest);
    unsigned mine = 0;  // bit r * kBunches + q: bunch q of row r
#pragma unroll
    for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
      for (int q = 0; q < kBunches; ++q)
        if (!(largest[r][q] < threshold[r])) mine |= 1u << (r * kBunches + q);
    unsigned some = __reduce_or_sync(kAllLanes, mine);
    while (some != 0) {
#pragma unroll
      for (int r = 0; r < 2 * kHalves; ++r)
#pragma unroll
        for (int q = 0; q < kBunches; ++q) {
          const unsigned bit = 1u << (r * kBunches + q);
          if ((some & bit) == 0 || queued > kFull) continue;
          some &= ~bit;
          const unsigned found = __ballot_sync(kAllLanes, (mine & bit) != 0);
          if ((mine & bit) != 0) {
            const int at = queued + __popc(found & ((1u << thread % 32) - 1));
            queue().place[at] = static_cast<uint32_t>(row_in_warp(r)) << kColumnBits |
                                static_cast<uint32_t>(column + score_column(thread, 0) + q * kBunch * 4);
#pragma unroll
            for (int u = 0; u < kBunch; ++u) queue().v[u][at] = score(r, q, u);
          }
          queued += __popc(found);
        }
      if (queued >= look_at || some != 0) look_at_queue(first, false);
    }
  }
  __device__ __forceinline__ void look_at_queue(int64_t first, bool all) {
    queued = look(a.s, first, queue(), rows(), queued, all);
    look_at = queued + kNewBunches;
    read_thresholds();
  }
  // Score u of bunch q of row r: a row's scores are every second pair of an accumulator block.
  __device__ __forceinline__ float score(int r, int q, int u) const {
    return acc[r / 2][(q * kBunch / 2 + u / 2) * 4 + r % 2 * 2 + u % 2];
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
      const int64_t first = int64_t{segment.row_tile} * kRows + group * kGroupRows;
      begin_rows(first);
      barrier_wait(&barriers.queries_full, parity);
      parity ^= 1;
      for (int tile = segment.begin; tile < segment.end; ++tile, ++at) {
        multiply_tile<Bf16>(at + 1 == end);
        gate(first, first_column(a.s, tile), tile == segment.begin);
        slot = slot + 1 == Shared<Blocks>::kMap.tiles ? 0 : slot + 1;
      }
      if (thread % 32 == 0) barrier_arrive(&barriers.queries_empty);  // what follows needs no query in shared memory
      look_at_queue(first, true);
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
