// The refinement of every answer: float64 scores in the contract's order, sorted by (score, lower index).
// refine: a row's candidates. refine_all: a row against every bank row, with a list that cannot overflow.
#include "block_sort.cuh"
#include "rows.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kRefineThreads = 128;
constexpr int kAllThreads = 256;
constexpr int kColumnsAtOnce = 4;                              // per group of eight lanes
constexpr int kBatch = kAllThreads / kLanes * kColumnsAtOnce;  // entries between looks at the list

__device__ __forceinline__ double lane_of(const Rows& x, int64_t i, const Rows& b, int64_t j, Term term) {
  return pair_lane(x, i, b, j, static_cast<int>(threadIdx.x % kLanes), term);
}

// The key of a pair, by eight lanes; the whole warp calls it. Lanes without a pair pass `valid` false.
__device__ __forceinline__ double group_key(const Result& r, int64_t q, double query_norm, int64_t j, bool valid) {
  const MetricRecord m = record(r.metric);
  const double raw = sum_of_8(valid ? lane_of(r.queries, q, r.bank, j, m.term) : 0.0);
  double bank_norm = 1.0;
  if (m.unit_rows) bank_norm = floored(sqrt(sum_of_8(valid ? lane_of(r.bank, j, r.bank, j, Term::product) : 0.0)));
  return key_of(r.metric, raw, query_norm, bank_norm, r.bias != nullptr && valid ? r.bias + j : nullptr);
}
__device__ __forceinline__ double group_norm(const Result& r, int64_t q) {
  if (!record(r.metric).unit_rows) return 1.0;
  return floored(sqrt(sum_of_8(lane_of(r.queries, q, r.queries, q, Term::product))));
}

__device__ __forceinline__ bool allowed(const Result& r, int64_t q, int64_t j) { return r.mask.allows(q, j); }

// Best first.
__device__ void sort_scored(Scored* list, int size) {
  sort_in_block(list, size, [](const Scored& a, const Scored& b) { return better(a, b); });
}

// ---- Results -------------------------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ void copy_row(const Rows& bank, int64_t j, void* out, int64_t row) {
  const T* from = reinterpret_cast<const T*>(row_of(bank, j));
  T* to = static_cast<T*>(out) + row * bank.width;
  for (int64_t k = threadIdx.x; k < bank.width; k += blockDim.x) to[k] = from[k * bank.col_stride];
}

// Ranks [from, from + take) of row q: the first `count` of them from `list`, the rest absent. The whole block takes
// part.
__device__ void write_ranks(const Result& r, int64_t q, const Scored* list, int64_t count, int64_t from, int64_t take) {
  const double worst = worst_value(r.metric);
  for (int64_t i = threadIdx.x; i < take; i += blockDim.x) {
    const int64_t at = q * r.k + from + i;
    if (r.indices != nullptr) r.indices[at] = i < count ? list[i].index : -1;
    if (r.values == nullptr) continue;
    const double value = i < count ? value_of(r.metric, list[i].key) : worst;
    if (r.values_dtype == DType::f64)
      static_cast<double*>(r.values)[at] = value;
    else
      static_cast<float*>(r.values)[at] = static_cast<float>(value);
  }
  if (r.gathered == nullptr || from != 0) return;
  if (count > 0) {
    const int64_t j = list[0].index;
    switch (size_of(r.bank.dtype)) {
      case 8: return copy_row<uint64_t>(r.bank, j, r.gathered, q);
      case 4: return copy_row<uint32_t>(r.bank, j, r.gathered, q);
      default: return copy_row<uint16_t>(r.bank, j, r.gathered, q);
    }
  }
  for (int64_t k = threadIdx.x; k < r.bank.width; k += blockDim.x) {
    const int64_t at = q * r.bank.width + k;
    switch (r.bank.dtype) {
      case DType::f64: static_cast<double*>(r.gathered)[at] = nan(""); break;
      case DType::f32: static_cast<uint32_t*>(r.gathered)[at] = 0x7fc00000u; break;
      case DType::bf16: static_cast<uint16_t*>(r.gathered)[at] = 0x7fc0u; break;
      default: static_cast<uint16_t*>(r.gathered)[at] = 0x7e00u;
    }
  }
}

// ---- A row's candidates --------------------------------------------------------------------------------------------

// A block per row. Shared memory: `capacity` entries, two counters.
__global__ void __launch_bounds__(kRefineThreads) refine_kernel(const Refine a) {
  Scored* list = reinterpret_cast<Scored*>(shared_memory());
  int* kept = reinterpret_cast<int*>(list + a.capacity);  // [0] kept, [1] of these with a score, [2] any fallback row
  const Result& r = a.result;
  for (int64_t q = blockIdx.x; q < r.queries.count; q += gridDim.x) {
    const int32_t count = a.counts[q];
    if (threadIdx.x == 0) kept[0] = kept[1] = kept[2] = 0;
    __syncthreads();
    if (count > a.capacity) {
      if (threadIdx.x == 0) {
        a.fallback_rows[atomicAdd(a.fallback_count, 1)] = static_cast<int32_t>(q);
        count_work(r.state, 1, 0, 1);
      }
      __syncthreads();
      continue;
    }
    const Candidate* held = a.candidates + q * a.capacity;
    const float threshold = a.thresholds[q];
    for (int i = threadIdx.x; i < count; i += blockDim.x)
      if (!(held[i].upper < threshold)) {
        list[atomicAdd(&kept[0], 1)].index = held[i].column;
        if (!(held[i].upper < HUGE_VALF)) kept[2] = 1;
      }
    __syncthreads();
    const int n = kept[0];
    if (n == 1 && r.values == nullptr && kept[2] == 0) {  // the answer needs no score
      if (threadIdx.x == 0) count_work(r.state, 1, 0, 0);
      write_ranks(r, q, list, 1, 0, r.k);
      __syncthreads();
      continue;
    }
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
    int size = 1;
    while (size < n) size *= 2;
    for (int i = n + threadIdx.x; i < size; i += blockDim.x) list[i] = last_scored();
    __syncthreads();
    sort_scored(list, size);
    const int64_t found = kept[1] < r.k ? kept[1] : r.k;
    if (threadIdx.x == 0) count_work(r.state, 1, n, 0);
    write_ranks(r, q, list, found, 0, r.k);
    __syncthreads();
  }
}

// ---- Everything ----------------------------------------------------------------------------------------------------

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
    sort_scored(list, size);
    const int kept = n < take ? n : take;
    if (kept == take) threshold = list[take - 1];
    if (threadIdx.x == 0) *count = kept;
    __syncthreads();
    return kept;
  }
};

// blockIdx.x walks the rows, blockIdx.y is the part of the bank.
__global__ void __launch_bounds__(kAllThreads) refine_all_kernel(const RefineAll a) {
  const Result& r = a.result;
  const int64_t items = a.fallback_count == nullptr ? r.queries.count : *a.fallback_count;
  const int64_t per_split = (r.bank.count + a.splits - 1) / a.splits;
  const int64_t begin = blockIdx.y * per_split;
  const int64_t stop = begin + per_split, end = stop < r.bank.count ? stop : r.bank.count;
  const int group = threadIdx.x / kLanes;

  BlockList best;
  best.list = reinterpret_cast<Scored*>(shared_memory());
  best.count = reinterpret_cast<int*>(best.list + a.list);
  best.size = static_cast<int>(a.list);

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t q = a.fallback_rows == nullptr ? item : a.fallback_rows[item];
    const double query_norm = group_norm(r, q);
    Scored previous = first_scored();  // with k beyond the list, each pass finds the ranks after the last one's
    for (int64_t done = 0; done < r.k;) {
      const int64_t wanted = r.k - done, most = a.list / 2;
      best.take = static_cast<int>(wanted < most ? wanted : most);
      best.clear();
      for (int64_t base = begin; base < end; base += kBatch) {
        for (int u = 0; u < kColumnsAtOnce; ++u) {
          const int64_t j = base + u * (kAllThreads / kLanes) + group;
          const bool valid = j < end && allowed(r, q, j);
          const double key = group_key(r, q, query_norm, j, valid);
          const Scored e{key, j};
          if (valid && threadIdx.x % kLanes == 0 && !isnan(key) && better(previous, e)) best.push(e);
        }
        best.keep_best(kBatch);
      }
      __syncthreads();
      const int have = *best.count;
      __syncthreads();
      const int found = best.finish(have);
      if (a.partial != nullptr) {
        const int64_t at = q * a.splits + blockIdx.y;
        for (int i = threadIdx.x; i < found; i += blockDim.x) a.partial[at * r.k + i] = best.list[i];
        if (threadIdx.x == 0) a.partial_counts[at] = found;
      } else {
        write_ranks(r, q, best.list, found, done, found < best.take ? wanted : best.take);
      }
      if (found > 0) previous = best.list[found - 1];
      done += best.take;
      const bool exhausted = found < best.take;
      __syncthreads();
      if (exhausted) break;
    }
    if (threadIdx.x == 0) {
      const int64_t columns = end > begin ? end - begin : 0;
      const bool all = a.fallback_rows == nullptr;
      count_work(r.state, all && blockIdx.y == 0 ? 1 : 0, columns, all && blockIdx.y == 0 ? 1 : 0);
    }
  }
}

// Merges the parts of each row: their entries carry the float64 key, so the split cannot be seen in the answer.
__global__ void __launch_bounds__(kAllThreads) merge_kernel(const RefineAll a) {
  const Result& r = a.result;
  const int64_t items = a.fallback_count == nullptr ? r.queries.count : *a.fallback_count;
  BlockList best;
  best.list = reinterpret_cast<Scored*>(shared_memory());
  best.count = reinterpret_cast<int*>(best.list + a.list);
  best.size = static_cast<int>(a.list);
  best.take = static_cast<int>(r.k);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t q = a.fallback_rows == nullptr ? item : a.fallback_rows[item];
    best.clear();
    for (int64_t s = 0; s < a.splits; ++s) {
      const int64_t at = q * a.splits + s, count = a.partial_counts[at];
      for (int64_t base = 0; base < count; base += kAllThreads) {
        best.keep_best(kAllThreads);
        if (base + threadIdx.x < count) best.push(a.partial[at * r.k + base + threadIdx.x]);
      }
    }
    __syncthreads();
    const int have = *best.count;
    __syncthreads();
    const int found = best.finish(have);
    write_ranks(r, q, best.list, found, 0, r.k);
    __syncthreads();
  }
}

}  // namespace

Error refine(const Refine& args, const Device& device) {
  const int64_t shared = args.capacity * static_cast<int64_t>(sizeof(Scored)) + 3 * static_cast<int64_t>(sizeof(int));
  return launch(refine_kernel, grid_for(args.result.queries.count), kRefineThreads, shared, device, args);
}

Error refine_all(const RefineAll& args, const Device& device) {
  const int64_t shared = args.list * static_cast<int64_t>(sizeof(Scored)) + static_cast<int64_t>(sizeof(int));
  const int64_t most = 8 * static_cast<int64_t>(device.processors);
  const unsigned x = static_cast<unsigned>(std::clamp<int64_t>(args.result.queries.count, 1, most));
  VB_TRY(launch(refine_all_kernel, dim3(x, static_cast<unsigned>(args.splits)), kAllThreads, shared, device, args));
  if (args.partial == nullptr) return nullptr;
  return launch(merge_kernel, dim3(x), kAllThreads, shared, device, args);
}

}  // namespace vecbank::cuda
