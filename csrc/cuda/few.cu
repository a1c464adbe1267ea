// The screen of a few queries against the original bank rows, in any dtype and with any strides. It reads the bank
// once, by loads of 16 bytes where rows are contiguous and aligned, and computes with float32 multiply-adds. The
// proof of the bounds is in few.h.
//
// A warp's step is 16 rows. Eight lanes share four rows: each lane reads 16 bytes of each, at two places at once (but
// see at_once), so that a warp has 4 KiB in flight. The queries lie in shared memory, and a value read there serves
// four rows. The lanes then add their parts and share out the work: each pair of lanes ends with one row, and each of
// the two with half of the queries.
//
// Two launches: the first scores a sample and writes the best lower bound of each of its groups; the second finds the
// k-th best of these, which is its start threshold, and keeps the rows that reach it.
#include <type_traits>

#include "rows.cuh"
#include "survivors.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kGroupLanes = 8, kEach = 4;  // lanes that share rows; rows that they share
// Chunks of a row that a lane reads at once. On 10.0, the most registers that a kernel wants would not fit.
template <int Queries, bool Square>
VB_HOST_DEVICE constexpr int at_once() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return Queries == kFewGroup && Square ? 1 : 2;
#else
  return 2;
#endif
}
constexpr int kWarps = kThreads / 32;
static_assert(32 / kGroupLanes * kEach == kFewRows && kFewGroup <= kWarps);

// ---- How a lane reads a chunk of a row -----------------------------------------------------------------------------
// kElements numbers, as a Raw until they are needed; part(raw, h, out) widens the h-th four of them.

struct alignas(16) Chunk {
  uint32_t w[4];
};

template <class T>
struct Aligned {  // contiguous rows of whole chunks
  static constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  using Raw = Chunk;
  static __device__ __forceinline__ Raw read(const Few&, const char* row, int chunk) {
    return reinterpret_cast<const Chunk*>(row)[chunk];
  }
  static __device__ __forceinline__ Raw none() { return {}; }
  static __device__ __forceinline__ void part(const Raw& raw, int h, float (&out)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (sizeof(T) == 4) {
        out[e] = from_bits(raw.w[e]);
      } else {
        const uint32_t word = raw.w[h * 2 + e / 2];
        if constexpr (std::is_same_v<T, BFloat16>)
          out[e] = from_bits(e % 2 == 0 ? word << 16 : word & 0xffff0000u);
        else
          out[e] = half_value(e % 2 == 0 ? word & 0xffffu : word >> 16);
      }
    }
  }
};

struct Strided {  // everything else, float64 included
  static constexpr int kElements = 4;
  struct Raw {
    float v[4];
  };
  static __device__ __forceinline__ Raw read(const Few& a, const char* row, int chunk) {
    Raw raw{};
    with_dtype(a.bank.dtype, [&](auto type) {
      const auto* from = reinterpret_cast<decltype(type)>(row);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (const int64_t k = chunk * 4 + e; k < a.s.width)
          raw.v[e] = static_cast<float>(widened(from[k * a.bank.col_stride]));
    });
    return raw;
  }
  static __device__ __forceinline__ Raw none() { return {}; }
  static __device__ __forceinline__ void part(const Raw& raw, int, float (&out)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) out[e] = raw.v[e];
  }
};

template <class Load>
VB_INLINE int chunks_of(int64_t width) {
  return static_cast<int>((width + Load::kElements - 1) / Load::kElements);
}

// ---- The queries of a block ----------------------------------------------------------------------------------------

struct FewState {  // shared memory; the queries follow: [query][four of a chunk][chunk][4]
  FewQuery queries[kFewGroup];
  float thresholds[kFewGroup];
  VB_INLINE float* rows() { return reinterpret_cast<float*>(this + 1); }
};
static_assert(sizeof(FewState) % 16 == 0);

// A warp prepares a query. The block that comes first begins the query's list, in the launch of the sample.
template <class Load>
__device__ __forceinline__ void prepare(const Few& a, int64_t q, int j, FewState& state) {
  const int lane = threadIdx.x % 32, chunks = chunks_of<Load>(a.s.width);
  const bool valid = q < a.s.rows, good = a.pack == nullptr || is_pack_of(*a.pack, a.expected);
  double squares = 0.0;
  if (valid)
    for (int64_t k = lane; k < a.s.width; k += 32) {
      const double v = at(a.queries, q, k);
      squares = add_rn(squares, mul_rn(v, v));
    }
  for (int step = 16; step > 0; step /= 2) squares = add_rn(squares, __shfl_xor_sync(kAllLanes, squares, step));
  FewQuery query = few_query(a.s.metric, a.s.width, squares, a.s.biased, a.bank.dtype == DType::f64);
  query.usable = query.usable && valid && good;
  const double scale = ldexp(1.0, query.exponent);
  float* row = state.rows() + static_cast<int64_t>(j) * chunks * Load::kElements;
  for (int i = lane; i < chunks * Load::kElements; i += 32) {
    const int chunk = i / Load::kElements, within = i % Load::kElements;
    row[(within / 4 * chunks + chunk) * 4 + within % 4] =
        query.usable && i < a.s.width ? static_cast<float>(mul_rn(at(a.queries, q, i), scale)) : 0.0f;
  }
  if (lane != 0) return;
  state.queries[j] = query;
  state.thresholds[j] = query.usable ? -HUGE_VALF : HUGE_VALF;
  if (!a.sampling || blockIdx.x != 0) return;
  if (q == 0) *a.fallback_count = 0;
  if (!good && q == 0) atomicAdd(&a.state->bad_codes, 1u);
  if (!valid) return;
  a.s.thresholds[q] = state.thresholds[j];
  a.s.counts[q] = query.usable ? 0 : kFellBack;
}

// The k-th largest of a query's tops, by a warp, bit by bit from the highest. Unsigned numbers order as floats do.
VB_INLINE unsigned ordered(float x) {
  const uint32_t bits = to_bits(x);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float start_threshold(const Few& a, int64_t q) {
  constexpr int kOfLane = kFewTops / 32;
  const int lane = threadIdx.x % 32, count = a.sample.tops();
  unsigned v[kOfLane];
#pragma unroll
  for (int i = 0; i < kOfLane; ++i)
    v[i] = ordered(i * 32 + lane < count ? a.tops[q * kFewTops + i * 32 + lane] : -HUGE_VALF);
  unsigned found = 0;
  for (unsigned bit = 1u << 31; bit != 0; bit >>= 1) {
    unsigned reach = 0;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) reach += v[i] >= (found | bit);
    if (__reduce_add_sync(kAllLanes, reach) >= static_cast<unsigned>(a.k)) found |= bit;
  }
  return from_bits(found >> 31 != 0 ? found & 0x7fffffffu : ~found);
}

// ---- A step --------------------------------------------------------------------------------------------------------

// Adds v over pairs of lanes `mask` apart; each of the two keeps one half of the sums.
template <int Count, int N>
__device__ __forceinline__ void add_halves(float (&v)[N], int mask) {
  const bool high = (threadIdx.x & mask) != 0;
#pragma unroll
  for (int i = 0; i < Count / 2; ++i) {
    const float mine = high ? v[i + Count / 2] : v[i], other = high ? v[i] : v[i + Count / 2];
    v[i] = mine + __shfl_xor_sync(kAllLanes, other, mask);
  }
}

// sums[row * Queries + query] of this lane's chunks of four rows, and the rows' squares where bounds need them.
template <class Load, int Queries, bool Square>
__device__ __forceinline__ void add_rows(const Few& a, const char* const (&rows)[kEach], const float* queries,
                                         float (&sums)[kEach * Queries], float (&squares)[kEach]) {
  const int chunks = chunks_of<Load>(a.s.width), part = threadIdx.x % kGroupLanes;
  constexpr int kParts = Load::kElements / 4, kAtOnce = at_once<Queries, Square>();
  for (int base = 0; base < chunks; base += kAtOnce * kGroupLanes) {
    typename Load::Raw raw[kAtOnce][kEach];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int chunk = base + u * kGroupLanes + part;
#pragma unroll
      for (int r = 0; r < kEach; ++r) raw[u][r] = chunk < chunks ? Load::read(a, rows[r], chunk) : Load::none();
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int chunk = base + u * kGroupLanes + part;
      if (chunk >= chunks) continue;
#pragma unroll
      for (int h = 0; h < kParts; ++h) {
        float b[kEach][4];
#pragma unroll
        for (int r = 0; r < kEach; ++r) Load::part(raw[u][r], h, b[r]);
        if constexpr (!Square) {
#pragma unroll
          for (int r = 0; r < kEach; ++r)
#pragma unroll
            for (int e = 0; e < 4; ++e) squares[r] = fused(b[r][e], b[r][e], squares[r]);
        }
#pragma unroll
        for (int q = 0; q < Queries; ++q) {
          const Chunk words = *reinterpret_cast<const Chunk*>(queries + ((q * kParts + h) * chunks + chunk) * 4);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float x = from_bits(words.w[e]);
#pragma unroll
            for (int r = 0; r < kEach; ++r) {
              float& sum = sums[r * Queries + q];
              if constexpr (Square) {
                const float gap = x - b[r][e];
                sum = fused(gap, gap, sum);
              } else {
                sum = fused(x, b[r][e], sum);
              }
            }
          }
        }
      }
    }
  }
}

// A row that reaches the threshold becomes a candidate. For k = 1 its lower bound is a threshold for all blocks.
// Returns the query's threshold.
static __device__ __noinline__ float keep(const Few& a, int64_t q, int64_t row, Interval bounds, float threshold) {
  const float elsewhere = published(a.s, q);
  if (elsewhere > threshold) threshold = elsewhere;
  if (bounds.upper < threshold || !a.s.mask.allows(q, row)) return threshold;
  if (const int place = reserve(a.s, q, 1); place < a.s.capacity)
    a.s.candidates[q * a.s.capacity + place] = {bounds.upper, bounds.lower, static_cast<uint32_t>(row)};
  if (a.k != 1 || !(bounds.lower > threshold)) return threshold;
  atomic_max(a.s.thresholds + q, bounds.lower);
  return bounds.lower;
}

template <class Load, int Queries, bool Square>
__global__ void __launch_bounds__(kThreads, 2) few_kernel(const __grid_constant__ Few a) {
  FewState& state = *reinterpret_cast<FewState*>(shared_memory());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / kGroupLanes, part = lane % kGroupLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * Queries;
  if (warp < Queries) {
    prepare<Load>(a, first + warp, warp, state);
    __syncwarp();
    if (!a.sampling && a.sample.rows > 0 && state.thresholds[warp] < HUGE_VALF) {
      const float threshold = start_threshold(a, first + warp);
      __syncwarp();
      if (lane == 0) {
        state.thresholds[warp] = threshold;
        if (blockIdx.x == 0) atomic_max(a.s.thresholds + first + warp, threshold);
      }
    }
  }
  __syncthreads();

  // What this lane has after a step's sums: one row and these queries. With one query, both lanes of a pair have it.
  constexpr int kMine = Queries > 1 ? Queries / 2 : 1;
  const int query = Queries > 1 ? part % 2 * kMine : 0;
  const bool working = Queries > 1 || part % 2 == 0;
  float limits[kMine];  // thresholds; of a sample: the best lower bounds
#pragma unroll
  for (int i = 0; i < kMine; ++i) limits[i] = a.sampling ? -HUGE_VALF : state.thresholds[query + i];

  const MetricRecord m = record(a.s.metric);
  const int64_t count = a.sampling ? a.sample.rows : a.s.columns, steps = (count + kFewRows - 1) / kFewRows;
  const int64_t warps = a.sampling ? a.sample.warps : static_cast<int64_t>(gridDim.x) * kWarps;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  const auto row_at = [&](int64_t i) {  // the sample is scattered over the bank
    i = i < count ? i : count - 1;
    return a.sampling ? a.s.schedule.panel(i) : i;
  };
  for (int64_t step = place; step < steps && place < warps; step += warps) {
    const int64_t from = step * kFewRows + group * kEach, mine = from + part / 2, row = row_at(mine);
    const char* rows[kEach];
#pragma unroll
    for (int r = 0; r < kEach; ++r) rows[r] = row_of(a.bank, row_at(from + r));
    const float bias = a.bias != nullptr ? static_cast<float>(a.bias[row]) : 0.0f;
    float sums[kEach * Queries] = {}, squares[kEach] = {};
    add_rows<Load, Queries, Square>(a, rows, state.rows(), sums, squares);
    add_halves<kEach * Queries>(sums, 4);
    add_halves<kEach * Queries / 2>(sums, 2);
    FewRow of_row{};
    if constexpr (!Square) {
      add_halves<4>(squares, 4);
      add_halves<2>(squares, 2);
      of_row = few_row(m, squares[0] + __shfl_xor_sync(kAllLanes, squares[0], 1), a.unit);
    }
    if constexpr (Queries > 1)
      add_halves<Queries>(sums, 1);
    else
      sums[0] += __shfl_xor_sync(kAllLanes, sums[0], 1);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const FewQuery& x = state.queries[query + i];
      Interval bounds;
      if constexpr (Square)
        bounds = few_square(sums[i], a.unit, x);
      else
        bounds = few_product(sums[i], of_row, bias, x);
      if (!working || mine >= count || !x.usable) continue;
      if (a.sampling) {
        if (bounds.lower > limits[i] && a.s.mask.allows(first + query + i, row)) limits[i] = bounds.lower;
      } else if (!(bounds.upper < limits[i])) {
        limits[i] = keep(a, first + query + i, row, bounds, limits[i]);
      }
    }
  }
  if (!a.sampling || place >= warps) return;

  // The groups of a sample: the slots of a warp's step, or several of them together.
#pragma unroll
  for (int i = 0; i < kMine; ++i)
    for (int slots = kFewRows; slots > a.sample.slots; slots /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, limits[i], slots);
      limits[i] = other > limits[i] ? other : limits[i];
    }
  if (!working || lane / 2 >= a.sample.slots) return;
#pragma unroll
  for (int i = 0; i < kMine; ++i)
    if (first + query + i < a.s.rows)
      a.tops[(first + query + i) * kFewTops + place * a.sample.slots + lane / 2] = limits[i];
}

template <class Load, int Queries>
Error run(Few a, const Device& device) {
  const int64_t shared =
      static_cast<int64_t>(sizeof(FewState)) + Queries * chunks_of<Load>(a.s.width) * Load::kElements * int64_t{4};
  const auto kernel =
      record(a.s.metric).term == Term::square ? few_kernel<Load, Queries, true> : few_kernel<Load, Queries, false>;
  const int64_t groups = ceil_div(a.s.rows, Queries), most = ceil_div(ceil_div(a.s.columns, kFewRows), kWarps);
  const auto grid = [&](int64_t blocks) {
    return dim3(static_cast<unsigned>(std::max<int64_t>(blocks, 1)), static_cast<unsigned>(groups));
  };
  a.sampling = true;
  VB_TRY(launch(kernel, grid(ceil_div(a.sample.warps, kWarps)), kThreads, shared, device, a));
  a.sampling = false;
  // All groups of queries run at once and walk the same rows, so that the bank is read from memory once.
  return launch(kernel, grid(std::min(most, 2 * device.processors / groups)), kThreads, shared, device, a);
}

template <class Load>
Error run_group(const Few& a, const Device& device) {
  switch (few_group(a.s.rows, a.s.width)) {
    case 8: return run<Load, 8>(a, device);
    case 4: return run<Load, 4>(a, device);
    default: return run<Load, 1>(a, device);
  }
}

}  // namespace

Error screen_few(const Few& args, const Device& device) {
  Few a = args;
  a.unit = round_up(few_unit(a.s.width) * (record(a.s.metric).unit_rows ? 1.5 : 1.0));
  const Rows& b = a.bank;
  const int64_t size = static_cast<int64_t>(size_of(b.dtype));
  const bool aligned = b.col_stride == 1 && b.width * size % 16 == 0 && b.row_stride * size % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(b.data) % 16 == 0;
  if (aligned && b.dtype == DType::f32) return run_group<Aligned<float>>(a, device);
  if (aligned && b.dtype == DType::bf16) return run_group<Aligned<BFloat16>>(a, device);
  if (aligned && b.dtype == DType::f16) return run_group<Aligned<Float16>>(a, device);
  return run_group<Strided>(a, device);
}

}  // namespace vecbank::cuda
