// The refinement of candidates: float64 scores in the contract's order, sorted by (score, lower index). Which of a
// row's candidates are scored depends neither on timing nor on the kernel: those that reach the row's threshold, which
// is the k-th best lower bound of all it has seen.
// Three kernels, because rows are many or few and k is one, short or long. A row costs little work and several
// dependent loads, so where rows are many, each gets few threads.
#include "block_sort.cuh"
#include "refine.cuh"
#include "warp_list.cuh"

namespace vecbank::cuda {
namespace {

// Blocks of a multiprocessor, as many as registers without spills allow; nvcc needs more of these for 10.0.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kManyBlocks = 2, kRowBlocks = 6;
#else
constexpr int kManyBlocks = 3, kRowBlocks = 8;
#endif
constexpr int kManyThreads = 256;
constexpr int kRefineThreads = 128;  // where a block has a row

// Leaves a row to refine_all, whose parts of the row count their arrivals in the row's counter.
__device__ __forceinline__ void fall_back(const Refine& a, int64_t q) {
  a.fallback_rows[atomicAdd(a.fallback_count, 1)] = static_cast<int32_t>(q);
  a.counts[q] = 0;
}

// Adds what the threads of a block have refined, with one atomic operation for the block: millions of rows would wait
// for each other at one address. Every thread calls it once; `sum` lies in shared memory.
__device__ __forceinline__ void count_refined(const Result& r, unsigned refined, unsigned* sum) {
  if (threadIdx.x == 0) *sum = 0;
  __syncthreads();
  for (int step = 16; step > 0; step /= 2) refined += __shfl_xor_sync(kAllLanes, refined, step);
  if (threadIdx.x % 32 == 0 && refined != 0) atomicAdd(sum, refined);
  __syncthreads();
  if (threadIdx.x == 0) count_work(r.state, blockIdx.x == 0 ? r.queries.count : 0, static_cast<int64_t>(*sum), 0);
}

struct Held {  // what a screen leaves of a row besides its candidates
  int32_t count;
  float threshold;
};
__device__ __forceinline__ Held held_by(const Refine& a, int64_t q) {
  return q < a.result.queries.count ? Held{a.counts[q], a.thresholds[q]} : Held{0, HUGE_VALF};
}

// ---- k = 1 ---------------------------------------------------------------------------------------------------------

// Eight lanes to a row, which walk the candidates that reach its threshold one after the other. Most rows have one such
// candidate, which needs no score unless the caller wants it. A row's first candidates are loaded one row ahead, its
// count and threshold two rows.
__global__ void __launch_bounds__(kManyThreads, kManyBlocks) refine_nearest_kernel(const __grid_constant__ Refine a) {
  constexpr int kRows = kManyThreads / kLanes;
  const Result& r = a.result;
  const int lane = threadIdx.x % kLanes, first_lane = static_cast<int>(threadIdx.x % 32) - lane;
  const int rows = static_cast<int>(r.queries.count), step = static_cast<int>(gridDim.x) * kRows;
  unsigned refined = 0;
  int q = static_cast<int>(blockIdx.x * kRows + threadIdx.x / kLanes);
  const auto first_of = [&](const Held& held, int row) {
    Candidate c{};
    if (lane < held.count && held.count <= a.capacity) c = a.candidates[int64_t{row} * a.capacity + lane];
    return c;
  };
  Held next = held_by(a, q), after = held_by(a, q + step);
  Candidate first_next = first_of(next, q);
  for (int base = static_cast<int>(blockIdx.x) * kRows; base < rows; base += step, q += step) {
    const Held held = next;
    const Candidate first = first_next;
    next = after;
    after = held_by(a, q + 2 * step);
    first_next = first_of(next, q + step);
    const bool falls_back = held.count > a.capacity;
    const int n = falls_back ? 0 : held.count;
    const Candidate* list = a.candidates + int64_t{q} * a.capacity;
    Candidate c{};
    // Loads eight candidates from the i-th. Returns a bit for each that reaches the threshold.
    const auto load = [&](int i, bool wanted) {
      const bool there = wanted && i + lane < n;
      if (there) c = i == 0 ? first : list[i + lane];
      return __ballot_sync(kAllLanes, there && !(c.upper < held.threshold)) >> first_lane & 0xffu;
    };

    int kept = 0;
    float upper = -HUGE_VALF;  // of the last that was kept
    Scored best = last_scored();
    for (int i = 0; __any_sync(kAllLanes, i < n); i += kLanes) {
      const unsigned reach = load(i, true);
      const int from = first_lane + (reach != 0 ? __ffs(static_cast<int>(reach)) - 1 : 0);
      const float u = __shfl_sync(kAllLanes, c.upper, from);
      const uint32_t column = __shfl_sync(kAllLanes, c.column, from);
      if (reach != 0) upper = u, best.index = column;
      kept += __popc(reach);
    }
    const bool scored = kept > 1 || (kept == 1 && (r.values != nullptr || !(upper < HUGE_VALF)));
    if (scored) best = last_scored();
    if (__any_sync(kAllLanes, scored)) {
      const double query_norm = group_norm(r, q, scored);
      for (int i = 0; __any_sync(kAllLanes, scored && i < n); i += kLanes)
        for (unsigned left = load(i, scored); __any_sync(kAllLanes, left != 0); left &= left - 1) {
          const bool valid = left != 0;
          const int from = first_lane + (valid ? __ffs(static_cast<int>(left)) - 1 : 0);
          const int64_t j = __shfl_sync(kAllLanes, c.column, from);
          const Scored e{group_key(r, q, query_norm, j, valid), j};
          if (valid && better(e, best)) best = e;  // false for a NaN
        }
    }
    if (falls_back && lane == 0) fall_back(a, q);  // now that all lanes have read the count
    if (falls_back || q >= rows) continue;
    if (lane == 0) write_rank(r, q, best);
    if (lane == 0 && scored) refined += static_cast<unsigned>(kept);
    gather_best(r, q, best.index, lane, kLanes);
  }
  count_refined(r, refined, reinterpret_cast<unsigned*>(shared_memory()));
}

// ---- Short lists ---------------------------------------------------------------------------------------------------

// A warp to a row: it scores four candidates at a time, and lane i holds rank i. k <= kWarpList.
__global__ void __launch_bounds__(kManyThreads, kManyBlocks) refine_short_kernel(const __grid_constant__ Refine a) {
  const Result& r = a.result;
  const int lane = threadIdx.x % 32, group = lane / kLanes, k = static_cast<int>(r.k);
  unsigned refined = 0;
  const int64_t step = int64_t{gridDim.x} * (kManyThreads / 32);
  for (int64_t q = int64_t{blockIdx.x} * (kManyThreads / 32) + threadIdx.x / 32; q < r.queries.count; q += step) {
    const auto [count, found] = held_by(a, q);
    __syncwarp();  // all lanes have read the count
    if (count > a.capacity) {
      if (lane == 0) fall_back(a, q);
      continue;
    }
    const Candidate* list = a.candidates + q * a.capacity;
    const float threshold = count > k ? raised_threshold(list, count, k, found) : found;
    const double query_norm = group_norm(r, q);
    WarpList<Scored> best(k, last_scored());
    for (int base = 0; base < count; base += 32) {
      const bool there = base + lane < count;
      const Candidate c = there ? list[base + lane] : Candidate{};
      unsigned left = __ballot_sync(kAllLanes, there && !(c.upper < threshold));
      if (lane == 0) refined += static_cast<unsigned>(__popc(left));
      while (left != 0) {
        int from = -1;  // the lane whose candidate this group scores
#pragma unroll
        for (int g = 0; g < 32 / kLanes; ++g, left &= left - 1)
          if (g == group) from = __ffs(static_cast<int>(left)) - 1;
        const bool valid = from >= 0;
        const int64_t j = __shfl_sync(kAllLanes, c.column, valid ? from : 0);
        const Scored e{group_key(r, q, query_norm, j, valid), j};
        best.add(valid && lane % kLanes == 0, e);  // a NaN goes before nothing
      }
    }
    if (lane < k) write_rank(r, q * k + lane, best.entry);
    if (r.gathered != nullptr) gather_best(r, q, of_lane(best.entry, 0).index, lane, 32);
  }
  count_refined(r, refined, reinterpret_cast<unsigned*>(shared_memory()));
}

// ---- Long lists, and few rows --------------------------------------------------------------------------------------

// A block to a row. Shared memory: `capacity` entries and two counters.
__global__ void __launch_bounds__(kRefineThreads, kRowBlocks) refine_row_kernel(const __grid_constant__ Refine a) {
  Scored* list = reinterpret_cast<Scored*>(shared_memory());
  float* lowers = reinterpret_cast<float*>(list);         // before there are scores
  int* kept = reinterpret_cast<int*>(list + a.capacity);  // [0] kept, [1] of these with a score
  const Result& r = a.result;
  unsigned refined = 0;
  for (int64_t q = blockIdx.x; q < r.queries.count; q += gridDim.x) {
    const auto [count, found] = held_by(a, q);
    __syncthreads();  // all threads have read the count, and have finished the row before
    if (count > a.capacity) {
      if (threadIdx.x == 0) fall_back(a, q);
      continue;
    }
    const Candidate* held = a.candidates + q * a.capacity;
    float threshold = found;
    int size = 1;
    while (size < count) size *= 2;
    if (count > r.k) {
      for (int i = threadIdx.x; i < size; i += blockDim.x) lowers[i] = i < count ? held[i].lower : -HUGE_VALF;
      __syncthreads();
      sort_in_block(lowers, size, [](float x, float y) { return x > y; });
      if (lowers[r.k - 1] > threshold) threshold = lowers[r.k - 1];
      __syncthreads();  // all threads have the threshold
    }
    if (threadIdx.x == 0) kept[0] = kept[1] = 0;
    __syncthreads();
    bool unbounded = false;  // a candidate whose score may be anything, or NaN
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      if (!(held[i].upper < threshold)) {
        list[atomicAdd(&kept[0], 1)].index = held[i].column;
        unbounded |= !(held[i].upper < HUGE_VALF);
      }
    unbounded = __syncthreads_or(unbounded) != 0;
    const int n = kept[0];
    if (n == 1 && r.values == nullptr && !unbounded) {  // the answer needs no score
      write_ranks(r, q, list, 1, 0, r.k);
      continue;
    }
    if (threadIdx.x == 0) refined += static_cast<unsigned>(n);
    const double query_norm = group_norm(r, q);
    const int group = threadIdx.x / kLanes, groups = kRefineThreads / kLanes;
    for (int base = 0; base < n; base += groups) {
      const int i = base + group;
      const int64_t j = i < n ? list[i].index : 0;
      const double key = group_key(r, q, query_norm, j, i < n);
      __syncwarp();  // all eight lanes have read the index
      if (i < n && threadIdx.x % kLanes == 0) {
        if (isnan(key)) {
          list[i] = last_scored();
        } else {
          list[i].key = key;
          atomicAdd(&kept[1], 1);
        }
      }
    }
    size = 1;
    while (size < n) size *= 2;
    for (int i = n + threadIdx.x; i < size; i += blockDim.x) list[i] = last_scored();
    __syncthreads();
    sort_in_block(list, size, [](const Scored& x, const Scored& y) { return better(x, y); });
    write_ranks(r, q, list, kept[1] < r.k ? kept[1] : r.k, 0, r.k);
  }
  __syncthreads();  // the last row has been written
  count_refined(r, refined, reinterpret_cast<unsigned*>(shared_memory()));
}

}  // namespace

Error refine(const Refine& args, const Device& device) {
  const int64_t rows = args.result.queries.count, k = args.result.k;
  if (k > kWarpList || rows <= 4 * int64_t{device.processors}) {  // a block to each row fills the device
    const int64_t shared = args.capacity * static_cast<int64_t>(sizeof(Scored)) + 2 * static_cast<int64_t>(sizeof(int));
    return launch(refine_row_kernel, grid_for(rows), kRefineThreads, shared, device, args);
  }
  const int64_t each = kManyThreads / (k == 1 ? kLanes : 32);
  const dim3 grid = grid_for(std::min(ceil_div(rows, each), 8 * int64_t{device.processors}));
  return launch(k == 1 ? refine_nearest_kernel : refine_short_kernel, grid, kManyThreads, sizeof(unsigned), device,
                args);
}

}  // namespace vecbank::cuda
