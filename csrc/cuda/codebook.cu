// Gathers, deterministic scatter-adds, and the gradients of selected pairs. Scatter-adds sort the codes and walk each
// segment in ascending order of position. Sums are float64 and rounded once; without float atomics the bits are the
// same every time. A code out of range reads nothing: its row becomes NaN (or does not enter the sums), and a sticky
// flag tells the host.
#include "arena.h"
#include "rows.cuh"
#include "sort.h"

namespace vecbank::cuda {
namespace {

constexpr int kRowThreads = 128;

// ---- lookup --------------------------------------------------------------------------------------------------------

struct LookupArgs {
  LookupProblem p;
  State* state;
};

// A block walks output rows, and its threads walk a row's coordinates.
__global__ void __launch_bounds__(kRowThreads) lookup_kernel(const LookupArgs a) {
  const LookupProblem& p = a.p;
  const int64_t d = p.bank.width;
  const bool plain = p.reduce == Reduce::none && p.weights == nullptr;
  for (int64_t r = blockIdx.x; r < p.count; r += gridDim.x) {
    const int64_t* codes = p.codes + r * p.k;
    bool bad = false;
    int64_t valid = 0;
    for (int64_t t = 0; t < p.k; ++t) {
      bad = bad || codes[t] < -1 || codes[t] >= p.bank.count;
      valid += codes[t] >= 0;
    }
    if (bad && threadIdx.x == 0) atomicAdd(&a.state->bad_codes, 1u);
    for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
      double sum = bad ? nan("") : 0.0;
      if (!bad && plain) {
        if (codes[0] >= 0) sum = at(p.bank, codes[0], c);
      } else if (!bad) {
        for (int64_t t = 0; t < p.k; ++t) {
          if (codes[t] < 0) continue;
          const double w = p.weights == nullptr ? 1.0 : element_of(p.weights, p.bank.dtype, r * p.k + t);
          sum = add_rn(sum, mul_rn(w, at(p.bank, codes[t], c)));
        }
        if (p.reduce == Reduce::mean && valid > 0) sum /= static_cast<double>(valid);
      }
      store(sum, p.out, p.bank.dtype, r * d + c);
    }
  }
}

struct LookupDotArgs {
  LookupDotProblem p;
  State* state;
};

// Eight lanes share a code.
__global__ void __launch_bounds__(kRowThreads) lookup_dot_kernel(const LookupDotArgs a) {
  const LookupDotProblem& p = a.p;
  const int64_t pairs = p.x.count * p.k, groups = int64_t{gridDim.x} * (kRowThreads / kLanes);
  for (int64_t base = int64_t{blockIdx.x} * (kRowThreads / kLanes); base < pairs; base += groups) {
    const int64_t i = base + threadIdx.x / kLanes;
    const int64_t code = i < pairs ? p.codes[i] : -1;
    const bool bad = code < -1 || code >= p.bank.count, there = !bad && code >= 0;
    double sum = 0.0;
    if (there)  // x and bank may have any two dtypes here
      for (int64_t k = threadIdx.x % kLanes; k < p.x.width; k += kLanes)
        sum = add_rn(sum, mul_rn(at(p.x, i / p.k, k), at(p.bank, code, k)));
    sum = sum_of_8(sum);
    if (i >= pairs || threadIdx.x % kLanes != 0) continue;
    if (bad) atomicAdd(&a.state->bad_codes, 1u);
    store(bad ? nan("") : sum, p.out, p.bank.dtype, i);
  }
}

// ---- Sorted segments -----------------------------------------------------------------------------------------------

struct Segments {  // 16 bytes a code
  Sorted pairs;    // of (code, position)
  void* scratch;
  int64_t scratch_bytes;
};

Segments cut_segments(Arena& arena, int64_t codes, int64_t segments) {
  Segments s{};
  for (uint32_t** half : {&s.pairs.keys, &s.pairs.other_keys, &s.pairs.values, &s.pairs.other_values})
    *half = arena.take<uint32_t>(codes);
  s.scratch_bytes = sort_scratch_bytes(codes, segments);
  s.scratch = arena.take<char>(s.scratch_bytes);
  return s;
}

struct KeysArgs {
  const int64_t* codes;
  int64_t count, segments;
  uint32_t *keys, *positions;
  State* state;
};
// A code that enters no sum gets the key after the last segment.
__global__ void __launch_bounds__(kThreads) keys_kernel(const KeysArgs a) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.count; i += int64_t{gridDim.x} * kThreads) {
    const int64_t code = a.codes[i];
    if (code < -1 || code >= a.segments) atomicAdd(&a.state->bad_codes, 1u);
    a.keys[i] = static_cast<uint32_t>(code >= 0 && code < a.segments ? code : a.segments);
    a.positions[i] = static_cast<uint32_t>(i);
  }
}

Error sort_codes(const int64_t* codes, int64_t count, int64_t segments, Segments* s, const Device& device) {
  if (count >= (int64_t{1} << 32) || segments >= (int64_t{1} << 32) - 1) return "more than 2^32 codes in one call";
  if (count == 0) return nullptr;
  const KeysArgs a{codes, count, segments, s->pairs.keys, s->pairs.values, device.state};
  VB_TRY(launch(keys_kernel, grid_for(ceil_div(count, kThreads)), kThreads, 0, device, a));
  return sort_pairs(s->scratch, s->scratch_bytes, &s->pairs, count, segments, device);
}

// The first position whose key is at least `key`.
VB_INLINE int64_t lower_position(const uint32_t* keys, int64_t count, uint32_t key) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

struct SumArgs {
  SegmentSumProblem p;
  const uint32_t *keys, *positions;  // sorted
};

// A block walks segments, and its threads walk the coordinates.
__global__ void __launch_bounds__(kRowThreads) segment_sum_kernel(const SumArgs a) {
  const SegmentSumProblem& p = a.p;
  const int64_t d = p.source.width;
  for (int64_t s = blockIdx.x; s < p.segments; s += gridDim.x) {
    const int64_t begin = lower_position(a.keys, p.count, static_cast<uint32_t>(s));
    const int64_t end = lower_position(a.keys, p.count, static_cast<uint32_t>(s) + 1);
    for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
      double sum = 0.0;
      for (int64_t o = begin; o < end; ++o) {
        const int64_t i = a.positions[o];
        const double w = p.weights == nullptr ? 1.0 : element_of(p.weights, p.weights_dtype, i);
        sum = add_rn(sum, mul_rn(w, at(p.source, i / p.k, c)));
      }
      store(sum, p.out, p.out_dtype, s * d + c);
    }
    if (p.counts != nullptr && threadIdx.x == 0) p.counts[s] = static_cast<float>(end - begin);
  }
}

// ---- Gradients of selected pairs -----------------------------------------------------------------------------------

// d value / d x = along * b - own_query * x (similarities), or along * (x - b) (distances); the bank's gradient has the
// same form. The query's own part is summed at once, so a pair stores only `along` and the bank's own part: 16 bytes.
struct PairArgs {
  PairProblem p;
  double *along, *own_bank;          // [pairs]
  const uint32_t *keys, *positions;  // sorted by bank row
  State* state;
};

struct Factors {
  double along, own_query, own_bank;
};
VB_INLINE Factors pair_factors(Metric metric, double grad, double raw, double query_squares, double bank_squares) {
  const MetricRecord m = record(metric);
  if (m.root) return {raw > 0.0 ? grad / sqrt(raw) : 0.0, 0.0, 0.0};  // distance 0: gradient 0
  if (!m.unit_rows) return {m.term == Term::square ? 2.0 * grad : grad, 0.0, 0.0};
  const double nx = sqrt(query_squares), nb = sqrt(bank_squares), fx = floored(nx), fb = floored(nb);
  const double score = raw / (fx * fb);
  // A norm under the floor counts as that constant, so it has no gradient of its own.
  return {grad / (fx * fb), nx < kNormFloor ? 0.0 : grad * score / (nx * nx),
          nb < kNormFloor ? 0.0 : grad * score / (nb * nb)};
}

// A block walks queries: it finds the factors of the pairs, eight lanes a pair, then the query's gradient.
__global__ void __launch_bounds__(kRowThreads) pair_queries_kernel(const PairArgs a) {
  const PairProblem& p = a.p;
  constexpr int groups = kRowThreads / kLanes;
  double* own = reinterpret_cast<double*>(shared_memory());  // [groups], and their running sum
  const int64_t d = p.queries.width;
  const MetricRecord m = record(p.metric);
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  for (int64_t q = blockIdx.x; q < p.queries.count; q += gridDim.x) {
    if (threadIdx.x == 0) own[groups] = 0.0;
    const double query_squares = sum_of_8(m.unit_rows ? self_lane(p.queries, q, lane) : 0.0);
    for (int64_t base = 0; base < p.k; base += groups) {
      const int64_t t = base + group, i = q * p.k + t;
      const int64_t j = t < p.k ? p.indices[i] : -1;
      const bool there = j >= 0 && j < p.bank.count;
      const double raw = sum_of_8(there ? pair_lane(p.queries, q, p.bank, j, lane, m.term) : 0.0);
      const double bank_squares = sum_of_8(there && m.unit_rows ? self_lane(p.bank, j, lane) : 0.0);
      if (lane == 0) {
        Factors f{0.0, 0.0, 0.0};
        if (there) f = pair_factors(p.metric, element_of(p.grad, p.grad_dtype, i), raw, query_squares, bank_squares);
        if (t < p.k) a.along[i] = f.along, a.own_bank[i] = f.own_bank;
        own[group] = f.own_query;
      }
      __syncthreads();
      if (threadIdx.x == 0)
        for (int g = 0; g < groups; ++g) own[groups] += own[g];
      __syncthreads();
    }
    if (p.grad_queries != nullptr)
      for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
        const double x = at(p.queries, q, c);
        double sum = 0.0;
        for (int64_t t = 0; t < p.k; ++t) {
          const int64_t j = p.indices[q * p.k + t];
          if (j < 0 || j >= p.bank.count) continue;
          const double b = at(p.bank, j, c);
          sum = add_rn(sum, mul_rn(a.along[q * p.k + t], slope_of(m.term, x, b)));
        }
        if (m.unit_rows) sum = add_rn(sum, -mul_rn(own[groups], x));
        store(sum, p.grad_queries, p.queries.dtype, q * d + c);
      }
    __syncthreads();
  }
}

// A block walks bank rows, and adds up the pairs that chose a row in ascending order.
__global__ void __launch_bounds__(kRowThreads) pair_bank_kernel(const PairArgs a) {
  const PairProblem& p = a.p;
  const int64_t d = p.queries.width, pairs = p.queries.count * p.k;
  const MetricRecord m = record(p.metric);
  for (int64_t j = blockIdx.x; j < p.bank.count; j += gridDim.x) {
    const int64_t begin = lower_position(a.keys, pairs, static_cast<uint32_t>(j));
    const int64_t end = lower_position(a.keys, pairs, static_cast<uint32_t>(j) + 1);
    for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
      const double b = begin < end ? at(p.bank, j, c) : 0.0;
      double sum = 0.0;
      for (int64_t o = begin; o < end; ++o) {
        const int64_t i = a.positions[o];
        const double x = at(p.queries, i / p.k, c);
        double step = mul_rn(a.along[i], slope_of(m.term, b, x));
        if (m.unit_rows) step = add_rn(step, -mul_rn(a.own_bank[i], b));
        sum = add_rn(sum, step);
      }
      store(sum, p.grad_bank, p.bank.dtype, j * d + c);
    }
  }
}

// ---- The loss of a quantisation ------------------------------------------------------------------------------------

struct LossArgs {
  QuantizeLossProblem p;
  double* squares;  // [blocks]
  int64_t* valid;   // [blocks]
  int64_t blocks;
};
constexpr int kLossRows = 256;  // of a block; fixed, because the order of the sums is

__global__ void __launch_bounds__(kThreads) loss_kernel(const LossArgs a) {
  const QuantizeLossProblem& p = a.p;
  double* squares = reinterpret_cast<double*>(shared_memory());
  int64_t* valid = reinterpret_cast<int64_t*>(squares + kThreads);
  const int64_t d = p.x.width;
  const int lane = threadIdx.x % kLanes;
  for (int64_t block = blockIdx.x; block < a.blocks; block += gridDim.x) {
    double sum = 0.0;
    int64_t rows = 0;
    for (int i = threadIdx.x / kLanes; i < kLossRows; i += kThreads / kLanes) {
      const int64_t r = block * kLossRows + i;
      const bool there = r < p.x.count, kept = there && (p.keep == nullptr || p.keep[r]);
      const bool counts = kept && p.codes[r] >= 0;
      if (counts) {
        for (int64_t k = lane; k < d; k += kLanes) {
          const double gap = add_rn(at(p.x, r, k), -at(p.quantized, r, k));
          sum = add_rn(sum, mul_rn(gap, gap));
        }
        rows += lane == 0;
      } else if (there && !kept) {
        for (int64_t k = lane; k < d; k += kLanes)
          store(at(p.x, r, k), const_cast<void*>(p.quantized.data), p.quantized.dtype, r * d + k);
        if (lane == 0) p.codes[r] = -1;
      }
    }
    squares[threadIdx.x] = sum;
    valid[threadIdx.x] = rows;
    block_sums(squares, valid);
    if (threadIdx.x == 0) a.squares[block] = squares[0], a.valid[block] = valid[0];
    __syncthreads();
  }
}

constexpr int64_t kSumsBytes = kThreads * static_cast<int64_t>(sizeof(double) + sizeof(int64_t));

// Each block has a mean.
__global__ void __launch_bounds__(kThreads) mean_kernel(const Means a) {
  double* squares = reinterpret_cast<double*>(shared_memory());
  int64_t* valid = reinterpret_cast<int64_t*>(squares + kThreads);
  for (int64_t m = blockIdx.x; m < a.count; m += gridDim.x) {
    double sum = 0.0;
    int64_t rows = 0;
    for (int64_t i = threadIdx.x; i < a.parts; i += kThreads)
      sum = add_rn(sum, a.squares[m * a.parts + i]), rows += a.valid[m * a.parts + i];
    squares[threadIdx.x] = sum;
    valid[threadIdx.x] = rows;
    block_sums(squares, valid);
    const double count = static_cast<double>(valid[0]) * static_cast<double>(a.width);
    if (threadIdx.x == 0) store(squares[0] / fmax(1.0, count), a.out, a.dtype, m);
    __syncthreads();
  }
}

}  // namespace

Error lookup(const LookupProblem& p, const Device& device) {
  return launch(lookup_kernel, grid_for(p.count), kRowThreads, 0, device, LookupArgs{p, device.state});
}

Error lookup_dot(const LookupDotProblem& p, const Device& device) {
  return launch(lookup_dot_kernel, grid_for(ceil_div(p.x.count * p.k, kRowThreads / kLanes)), kRowThreads, 0, device,
                LookupDotArgs{p, device.state});
}

int64_t segment_sum_workspace(int64_t codes, int64_t segments) {
  Arena arena(nullptr);
  cut_segments(arena, codes, segments);
  return arena.used();
}

Error segment_sum(const SegmentSumProblem& p, const Device& device) {
  Arena arena(device.workspace);
  Segments s = cut_segments(arena, p.count, p.segments);
  if (arena.used() > device.workspace_bytes) return kTooSmall;
  VB_TRY(sort_codes(p.codes, p.count, p.segments, &s, device));
  const SumArgs a{p, s.pairs.keys, s.pairs.values};
  return launch(segment_sum_kernel, grid_for(p.segments), kRowThreads, 0, device, a);
}

int64_t pair_workspace(int64_t pairs, int64_t segments) {
  Arena arena(nullptr);
  cut_segments(arena, pairs, segments);
  arena.take<double>(pairs);
  arena.take<double>(pairs);
  return arena.used();
}

Error pair_gradients(const PairProblem& p, const Device& device) {
  const int64_t pairs = p.queries.count * p.k;
  Arena arena(device.workspace);
  Segments s = cut_segments(arena, pairs, p.bank.count);
  PairArgs a{p, nullptr, nullptr, nullptr, nullptr, device.state};
  a.along = arena.take<double>(pairs);
  a.own_bank = arena.take<double>(pairs);
  if (arena.used() > device.workspace_bytes) return kTooSmall;
  const int64_t shared = (kRowThreads / kLanes + 1) * static_cast<int64_t>(sizeof(double));
  VB_TRY(sort_codes(p.indices, pairs, p.bank.count, &s, device));  // it also reports bad codes
  a.keys = s.pairs.keys;
  a.positions = s.pairs.values;
  VB_TRY(launch(pair_queries_kernel, grid_for(p.queries.count), kRowThreads, shared, device, a));
  if (p.grad_bank == nullptr) return nullptr;
  return launch(pair_bank_kernel, grid_for(p.bank.count), kRowThreads, 0, device, a);
}

int64_t quantize_loss_workspace(int64_t rows) {
  Arena arena(nullptr);
  arena.take<double>(ceil_div(rows, kLossRows));
  arena.take<int64_t>(ceil_div(rows, kLossRows));
  return arena.used();
}

Error quantize_loss(const QuantizeLossProblem& p, void* mean, DType dtype, const Device& device) {
  LossArgs a{p, nullptr, nullptr, ceil_div(p.x.count, kLossRows)};
  Arena arena(device.workspace);
  a.squares = arena.take<double>(a.blocks);
  a.valid = arena.take<int64_t>(a.blocks);
  if (arena.used() > device.workspace_bytes) return kTooSmall;
  VB_TRY(launch(loss_kernel, grid_for(a.blocks), kThreads, kSumsBytes, device, a));
  return means({a.squares, a.valid, 1, a.blocks, p.x.width, mean, dtype}, device);
}

Error means(const Means& a, const Device& device) {
  return launch(mean_kernel, grid_for(a.count), kThreads, kSumsBytes, device, a);
}

}  // namespace vecbank::cuda
