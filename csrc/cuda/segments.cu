// segment_sum(), and the sorted segments on which it and the gradients of selected pairs (pairs.cu) rest. There are no
// float atomics, and the order of the sums is fixed (core/lookup.h): the same bits every time, and those of the CPU.
#include "segments.cuh"

namespace vecbank::cuda {
namespace {

struct KeysArgs {
  const int64_t* codes;
  int64_t count, segments;
  uint32_t *keys, *positions;
  SumCounters* counters;
  State* state;
};
// A code that enters no sum gets the key after the last segment.
__global__ void __launch_bounds__(kThreads) keys_kernel(const KeysArgs a) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *a.counters = SumCounters{};
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.count; i += int64_t{gridDim.x} * kThreads) {
    const int64_t code = a.codes[i];
    if (code < -1 || code >= a.segments) atomicAdd(&a.state->bad_codes, 1u);
    a.keys[i] = static_cast<uint32_t>(code >= 0 && code < a.segments ? code : a.segments);
    a.positions[i] = static_cast<uint32_t>(i);
  }
}

struct StartsArgs {
  SortedSegments s;
  float* counts;
};
// A thread finds where its segment begins; where it ends is what the next thread finds, so the last one only helps.
__global__ void __launch_bounds__(kThreads) starts_kernel(const StartsArgs a) {
  const SortedSegments& s = a.s;
  int64_t* begins = reinterpret_cast<int64_t*>(shared_memory());  // [kThreads]
  constexpr int each = kThreads - 1;
  for (int64_t first = int64_t{blockIdx.x} * each; first <= s.segments; first += int64_t{gridDim.x} * each) {
    const int64_t segment = first + threadIdx.x;
    const int64_t begin = segment > s.segments ? s.codes : lower_position(s.pairs.keys, 0, s.codes, segment);
    begins[threadIdx.x] = begin;
    __syncthreads();
    if (threadIdx.x < each && segment <= s.segments) s.start[segment] = static_cast<uint32_t>(begin);
    if (threadIdx.x < each && segment < s.segments) {
      const int64_t members = begins[threadIdx.x + 1] - begin;
      if (a.counts != nullptr) a.counts[segment] = static_cast<float>(members);
      uint32_t slot = kNotCut;
      if (s.capacity > 0 && members >= kCutMembers && members >= kCutRows * s.row_blocks) {
        // Which segments get room may differ from call to call where there is not enough. Their sums do not.
        const uint32_t room = atomicAdd(&s.counters->used, static_cast<unsigned>(s.row_blocks));
        if (room + s.row_blocks <= s.capacity) {
          slot = room;
          const uint64_t pieces = static_cast<uint64_t>(pieces_of(members, s.row_blocks));
          // One counter for both, so that the segments' first pieces ascend.
          const uint64_t before = atomicAdd(&s.counters->cut, static_cast<unsigned long long>(1ull << 32 | pieces));
          const int64_t number = static_cast<int64_t>(before >> 32);
          s.cut[number] = {static_cast<uint32_t>(segment), static_cast<uint32_t>(before)};
          for (int64_t slice = 0; slice < s.slices; ++slice) s.finished[number * s.slices + slice] = 0;
        }
      }
      s.slot[segment] = slot;
    }
    __syncthreads();
  }
}

struct WeightedRow {
  const void* weights;
  DType weights_dtype, out_dtype;
  int64_t width;
  void* out;
  __device__ void load(Member* m, uint32_t position) const {
    if (weights != nullptr) m->first = element_of(weights, weights_dtype, position);
  }
  __device__ double own(int64_t, int64_t) const { return 0.0; }
  template <class F>
  __device__ __forceinline__ void with(F&& add) const {
    if (weights == nullptr)
      add([](double x, const Member&, double) { return x; });
    else
      add([](double x, const Member& m, double) { return mul_rn(m.first, x); });
  }
  __device__ void store(double sum, int64_t segment, int64_t column) const {
    cuda::store(sum, out, out_dtype, segment * width + column);
  }
};

}  // namespace

SortedSegments cut_workspace(Arena& arena, int64_t codes, int64_t k, int64_t segments, const Rows& source) {
  const int64_t width = source.width;
  SortedSegments s{};
  s.codes = codes;
  s.k = k < 1 ? 1 : k;
  s.segments = segments;
  s.row_blocks = ceil_div(ceil_div(codes, s.k), kSumBlock);
  if (s.row_blocks > 1 && codes >= kCutMembers && width > 0) {
    // All segments that are long enough may be cut, or as many as fit, but always a few.
    const int64_t fits = kPartialBytes / (8 * width), few = 8 * s.row_blocks, most = fits > few ? fits : few;
    const int64_t all = codes / kCutRows;
    s.capacity = all < most ? all : most;
  }
  for (uint32_t** half : {&s.pairs.keys, &s.pairs.other_keys, &s.pairs.values, &s.pairs.other_values})
    *half = arena.take<uint32_t>(codes);
  s.scratch_bytes = sort_scratch_bytes(codes, segments);
  s.scratch = arena.take<char>(s.scratch_bytes);
  s.start = arena.take<uint32_t>(segments + 1);
  s.slot = arena.take<uint32_t>(segments);
  s.slices = ceil_div(width, kSumThreads * columns_of_thread(size_of(source.dtype)));
  const int64_t most_cut = s.capacity == 0 ? 0 : s.capacity / s.row_blocks;
  s.cut = arena.take<Cut>(most_cut);
  s.finished = arena.take<uint32_t>(most_cut * s.slices);
  s.counters = arena.take<SumCounters>(1);
  s.partials = arena.take<double>(s.capacity * width);
  return s;
}

Error sort_codes(const int64_t* codes, float* counts, SortedSegments* s, const Device& device) {
  if (s->codes >= (int64_t{1} << 32) || s->segments >= (int64_t{1} << 32) - 1)
    return "more than 2^32 codes in one call";
  const KeysArgs a{codes, s->codes, s->segments, s->pairs.keys, s->pairs.values, s->counters, device.state};
  VB_TRY(launch(keys_kernel, grid_for(s->codes == 0 ? 1 : ceil_div(s->codes, kThreads)), kThreads, 0, device, a));
  if (s->codes > 0) VB_TRY(sort_pairs(s->scratch, s->scratch_bytes, &s->pairs, s->codes, s->segments, device));
  return launch(starts_kernel, grid_for(ceil_div(s->segments + 1, kThreads - 1)), kThreads,
                kThreads * static_cast<int64_t>(sizeof(int64_t)), device, StartsArgs{*s, counts});
}

int64_t segment_sum_workspace(const SegmentSumProblem& p) {
  Arena arena(nullptr);
  cut_workspace(arena, p.count, p.k, p.segments, p.source);
  return arena.used();
}

Error segment_sum(const SegmentSumProblem& p, const Device& device) {
  Arena arena(device.workspace);
  SortedSegments s = cut_workspace(arena, p.count, p.k, p.segments, p.source);
  if (!fit(&s, p.source.width, arena.used(), device)) return kTooSmall;
  VB_TRY(sort_codes(p.codes, p.counts, &s, device));
  const WeightedRow term{p.weights, p.weights_dtype, p.out_dtype, p.source.width, p.out};
  return sum_segments(s, p.source, term, device);
}

}  // namespace vecbank::cuda
