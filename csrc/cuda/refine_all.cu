// The refinement of a row against every bank row, with a list that cannot overflow: fallback rows, and every row where
// no screen runs.
#include "block_sort.cuh"
#include "refine.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kAllThreads = 256;
constexpr int kColumnsAtOnce = 4;                              // per group of eight lanes
constexpr int kBatch = kAllThreads / kLanes * kColumnsAtOnce;  // entries between looks at the list

// The best `take` of a stream of entries, in shared memory. Any thread pushes between two calls of keep_best().
struct BlockList {
  Scored* list;
  int* count;
  int size, take;
  Scored threshold;  // what an entry must precede; the same in every thread

  __device__ void clear() {
    if (threadIdx.x == 0) *count = 0;
    threshold = last_scored();
    __syncthreads();
  }
  __device__ void push(const Scored& e) {
    if (better(e, threshold)) list[atomicAdd(count, 1)] = e;
  }
  // Makes room for `room` more pushes; all threads of the block take part.
  __device__ void keep_best(int room) {
    __syncthreads();
    const int n = *count;
    __syncthreads();  // no thread pushes before all have read the count
    if (n + room > size) finish(n);
  }
  // Sorts and cuts; returns how many there are.
  __device__ int finish(int n) {
    for (int i = n + threadIdx.x; i < size; i += blockDim.x) list[i] = last_scored();
    __syncthreads();
    sort_in_block(list, size, [](const Scored& a, const Scored& b) { return better(a, b); });
    const int kept = n < take ? n : take;
    if (kept == take) threshold = list[take - 1];
    if (threadIdx.x == 0) *count = kept;
    __syncthreads();
    return kept;
  }
  __device__ int finish() {
    __syncthreads();
    const int have = *count;
    __syncthreads();
    return finish(have);
  }
};

// The blocks walk pairs of a row and a part of the bank. The parts' entries carry the float64 key, so the split cannot
// be seen in the answer.
__global__ void __launch_bounds__(kAllThreads) refine_all_kernel(const __grid_constant__ RefineAll a) {
  const Result& r = a.result;
  const int64_t rows = a.fallback_count == nullptr ? r.queries.count : *a.fallback_count;
  if (rows == 0) return;
  const int64_t parts = parts_of_bank(a, rows), per_part = ceil_div(r.bank.count, parts);
  const int group = threadIdx.x / kLanes;

  BlockList best;
  best.list = reinterpret_cast<Scored*>(shared_memory());
  best.count = reinterpret_cast<int*>(best.list + a.list);
  best.size = static_cast<int>(a.list);

  for (int64_t unit = blockIdx.x; unit < rows * parts; unit += gridDim.x) {
    const int64_t item = unit / parts, part = unit % parts;
    const int64_t q = a.fallback_rows == nullptr ? item : a.fallback_rows[item];
    const int64_t begin = part * per_part, stop = begin + per_part, end = stop < r.bank.count ? stop : r.bank.count;
    const double query_norm = group_norm(r, q);
    Scored previous = first_scored();  // with k beyond the list, each pass finds the ranks after the last one's
    for (int64_t done = 0; done < r.k;) {
      const int64_t wanted = r.k - done, most = a.list / 2;
      best.take = static_cast<int>(wanted < most ? wanted : most);
      best.clear();
      for (int64_t base = begin; base < end; base += kBatch) {
        for (int u = 0; u < kColumnsAtOnce; ++u) {
          const int64_t j = base + u * (kAllThreads / kLanes) + group;
          const bool valid = j < end && r.mask.allows(q, j);
          const double key = group_key(r, q, query_norm, j, valid);
          const Scored e{key, j};
          if (valid && threadIdx.x % kLanes == 0 && !isnan(key) && better(previous, e)) best.push(e);
        }
        best.keep_best(kBatch);
      }
      const int found = best.finish();
      if (parts > 1) {
        for (int i = threadIdx.x; i < found; i += blockDim.x) a.partial[unit * r.k + i] = best.list[i];
        if (threadIdx.x == 0) a.partial_counts[unit] = found;
      } else {
        write_ranks(r, q, best.list, found, done, found < best.take ? wanted : best.take);
      }
      if (found > 0) previous = best.list[found - 1];
      done += best.take;
      const bool exhausted = found < best.take;
      __syncthreads();
      if (exhausted) break;
    }
    if (parts > 1 && last_to_arrive(a.arrivals + q, parts, best.count + 1)) {
      best.take = static_cast<int>(r.k);
      best.clear();
      for (int64_t at = item * parts; at < (item + 1) * parts; ++at) {
        const int64_t count = a.partial_counts[at];
        for (int64_t base = 0; base < count; base += kAllThreads) {
          best.keep_best(kAllThreads);
          if (base + threadIdx.x < count) best.push(a.partial[at * r.k + base + threadIdx.x]);
        }
      }
      write_ranks(r, q, best.list, best.finish(), 0, r.k);
      __syncthreads();
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0)
    count_work(r.state, a.fallback_rows == nullptr ? rows : 0, rows * r.bank.count, rows);
}

}  // namespace

Error refine_all(const RefineAll& args, const Device& device) {
  const int64_t shared = args.list * static_cast<int64_t>(sizeof(Scored)) + 2 * static_cast<int64_t>(sizeof(int));
  const int64_t most = 4 * static_cast<int64_t>(device.processors);
  const int64_t blocks = std::max(args.result.queries.count, args.slots);
  return launch(refine_all_kernel, grid_for(std::min(blocks, most)), kAllThreads, shared, device, args);
}

}  // namespace vecbank::cuda
