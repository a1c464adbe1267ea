// The gradients of selected pairs. A bank row's gradient is a sum over the pairs that chose it: segments.cuh adds it
// up.
#include "segments.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kPairThreads = 128;

// d value / d x = along * b - own_query * x (similarities), or along * (x - b) (distances); the bank's gradient has the
// same form. The query's own part is summed at once, so a pair stores only `along` and the bank's own part: 16 bytes.
struct PairArgs {
  PairProblem p;
  double *along, *own_bank;  // [pairs]
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
__global__ void __launch_bounds__(kPairThreads) pair_queries_kernel(const PairArgs a) {
  const PairProblem& p = a.p;
  constexpr int groups = kPairThreads / kLanes;
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

// What a pair adds to the gradient of its bank row.
struct BankTerm {
  static constexpr int kAtOnce = 4, kBlocks = 4;
  PairArgs a;
  Term kind;
  bool unit_rows;
  __device__ void load(Member* m, uint32_t position) const {
    m->first = a.along[position];
    m->second = a.own_bank[position];
  }
  __device__ double own(int64_t row, int64_t column) const { return at(a.p.bank, row, column); }
  __device__ double of(double x, double along, double own_bank, double b) const {
    const double across = mul_rn(along, slope_of(kind, b, x));
    return unit_rows ? add_rn(across, -mul_rn(own_bank, b)) : across;
  }
  __device__ void store(double sum, int64_t row, int64_t column) const {
    cuda::store(sum, a.p.grad_bank, a.p.bank.dtype, row * a.p.bank.width + column);
  }
};

SortedSegments cut_pairs(Arena& arena, const PairProblem& p, PairArgs* a) {
  const int64_t pairs = p.queries.count * p.k;
  a->along = arena.take<double>(pairs);
  a->own_bank = arena.take<double>(pairs);
  return cut_workspace(arena, pairs, p.k, p.bank.count, p.queries);
}

}  // namespace

int64_t pair_workspace(const PairProblem& p) {
  Arena arena(nullptr);
  PairArgs a{p, nullptr, nullptr};
  cut_pairs(arena, p, &a);
  return arena.used();
}

Error pair_gradients(const PairProblem& p, const Device& device) {
  Arena arena(device.workspace);
  PairArgs a{p, nullptr, nullptr};
  SortedSegments s = cut_pairs(arena, p, &a);
  if (!fit(&s, p.queries.width, arena.used(), device)) return kTooSmall;
  const int64_t shared = (kPairThreads / kLanes + 1) * static_cast<int64_t>(sizeof(double));
  VB_TRY(sort_codes(p.indices, nullptr, &s, device));  // it also reports bad codes
  VB_TRY(launch(pair_queries_kernel, grid_for(p.queries.count), kPairThreads, shared, device, a));
  if (p.grad_bank == nullptr) return nullptr;
  const MetricRecord m = record(p.metric);
  return sum_segments(s, p.queries, BankTerm{a, m.term, m.unit_rows}, device);
}

}  // namespace vecbank::cuda
