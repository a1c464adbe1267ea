// Between two ranges of columns: each row's threshold rises to the k-th best lower bound among its candidates, and the
// candidates that fall below it are dropped. A row with few candidates stays as it is.
#include "block_sort.cuh"
#include "kernels.h"
#include "warp_list.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kCompactThreads = 128;  // where a block has a row
constexpr int kShortThreads = 256;    // where a warp has one

// Whether the row has candidates to drop. A row whose list overflowed becomes a fallback row; `writes`: one thread.
__device__ __forceinline__ bool has_many(const Compact& a, int64_t row, int32_t count, bool writes) {
  if (count > a.capacity && writes) {
    a.counts[row] = kFellBack;
    a.thresholds[row] = HUGE_VALF;
  }
  return count > a.enough && count <= a.capacity;
}

// A warp to a row; k <= kWarpList.
__global__ void __launch_bounds__(kShortThreads, 4) compact_short_kernel(const __grid_constant__ Compact a) {
  const int lane = threadIdx.x % 32;
  const int64_t step = int64_t{gridDim.x} * (kShortThreads / 32);
  for (int64_t row = int64_t{blockIdx.x} * (kShortThreads / 32) + threadIdx.x / 32; row < a.rows; row += step) {
    const int32_t count = a.counts[row];
    __syncwarp();  // all lanes have read the count
    if (!has_many(a, row, count, lane == 0)) continue;
    Candidate* list = a.candidates + row * a.capacity;
    float threshold = a.thresholds[row];
    if (count >= a.k) threshold = raised_threshold(list, count, static_cast<int>(a.k), threshold);
    int kept = 0;
    for (int base = 0; base < count; base += 32) {
      const Candidate c = base + lane < count ? list[base + lane] : Candidate{};
      const bool keep = base + lane < count && !(c.upper < threshold);
      const unsigned keeps = __ballot_sync(kAllLanes, keep);
      __syncwarp();  // these places may be overwritten: all lanes have read theirs, which a ballot does not promise
      if (keep) list[kept + __popc(keeps & ((1u << lane) - 1))] = c;
      kept += __popc(keeps);
    }
    if (lane == 0) {
      a.thresholds[row] = threshold;
      a.counts[row] = kept;
    }
  }
}

// A block to a row. Shared memory: `capacity` candidates and lower bounds, a counter.
__global__ void __launch_bounds__(kCompactThreads) compact_kernel(const __grid_constant__ Compact a) {
  Candidate* held = reinterpret_cast<Candidate*>(shared_memory());
  float* lowers = reinterpret_cast<float*>(held + a.capacity);  // a power of two: capacity is one
  int* kept = reinterpret_cast<int*>(lowers + a.capacity);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int32_t count = a.counts[row];
    __syncthreads();  // all threads have read the count and have finished the row before
    if (!has_many(a, row, count, threadIdx.x == 0)) continue;
    Candidate* list = a.candidates + row * a.capacity;
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

Error compact(const Compact& args, const Device& device) {
  if (args.k <= kWarpList) {
    const int64_t blocks = ceil_div(args.rows, int64_t{kShortThreads / 32});
    return launch(compact_short_kernel, grid_for(std::min(blocks, 8 * int64_t{device.processors})), kShortThreads, 0,
                  device, args);
  }
  const int64_t shared = args.capacity * static_cast<int64_t>(sizeof(Candidate) + sizeof(float)) + 16;
  return launch(compact_kernel, grid_for(args.rows), kCompactThreads, shared, device, args);
}

}  // namespace vecbank::cuda
