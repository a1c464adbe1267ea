// The gradients of selected pairs. A bank row's gradient is a sum over the pairs that chose it: segments.cuh adds it
// up.
#include "refine.cuh"
#include "segments.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kPairThreads = 128;
constexpr int kPairRows = 8;     // bank rows of a warp that are on their way
constexpr int kPairColumns = 2;  // of a lane

// The gradient of a pair's value is that of core/exact_score.h. The query's own part is summed at once, so a pair
// stores only `along` and the bank's own part: 16 bytes.
struct PairArgs {
  PairProblem p;
  double *along, *own_bank;  // [pairs]; own_bank is written where rows are scaled
};

// Factors that need the pair's score, eight lanes a pair. Returns the query's own factor. The whole warp calls it.
__device__ __forceinline__ double scored_factors(const PairArgs& a, int64_t q, const MetricRecord& m) {
  const PairProblem& p = a.p;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const bool scaled = m.scaled_rows();
  const double query_squares = scaled ? raw_score(p.queries, q, p.queries, q, Term::product, true) : 0.0;
  double own = 0.0;
  for (int64_t base = 0; base < p.k; base += 32 / kLanes) {
    const int64_t t = base + lane / kLanes, i = q * p.k + t;
    const int64_t j = t < p.k ? p.indices[i] : -1;
    const bool there = j >= 0 && j < p.bank.count;
    const double raw = raw_score(p.queries, q, p.bank, j, m.term, there);
    const double bank_squares = scaled ? raw_score(p.bank, j, p.bank, j, Term::product, there) : 0.0;
    PairFactors f{0.0, 0.0, 0.0};
    if (there) f = pair_factors(m, element_of(p.grad, p.grad_dtype, i), raw, query_squares, bank_squares);
    if (t < p.k && lane % kLanes == 0) {
      a.along[i] = f.along;
      if (scaled) a.own_bank[i] = f.own_bank;
    }
    for (int from = 0; from < 32; from += kLanes) own += __shfl_sync(kAllLanes, f.own_query, from);
  }
  return own;
}

// A warp walks queries: it finds the factors of the pairs, then the query's gradient, two columns a lane. B: the bank's
// elements. No warp waits for another. Scored: factors need the pairs' scores.
template <class B, bool Scored>
__global__ void __launch_bounds__(kPairThreads) pair_queries_kernel(const __grid_constant__ PairArgs a) {
  constexpr uint32_t none = ~0u;
  const PairProblem& p = a.p;
  const int lane = static_cast<int>(threadIdx.x % 32), width = static_cast<int>(p.queries.width);
  const MetricRecord m = record(p.metric);
  const int64_t step = int64_t{gridDim.x} * (kPairThreads / 32), k = p.k;
  for (int64_t q = int64_t{blockIdx.x} * (kPairThreads / 32) + threadIdx.x / 32; q < p.queries.count; q += step) {
    double own = 0.0;
    if constexpr (Scored)
      own = scored_factors(a, q, m);
    else
      for (int64_t i = q * k + lane; i < q * k + k; i += 32) {
        const int64_t j = p.indices[i];
        const bool there = j >= 0 && j < p.bank.count;
        a.along[i] = there ? pair_factors(m, element_of(p.grad, p.grad_dtype, i), 0.0, 0.0, 0.0).along : 0.0;
      }
    __syncwarp();  // the factors are there
    if (p.grad_queries == nullptr) continue;
    for (int first = 0; first < width; first += 32 * kPairColumns) {
      double x[kPairColumns], sum[kPairColumns];
      const B* column[kPairColumns];  // of bank row 0
#pragma unroll
      for (int v = 0; v < kPairColumns; ++v) {
        const int c = first + 32 * v + lane;
        x[v] = c < width ? at(p.queries, q, c) : 0.0, sum[v] = 0.0;
        column[v] = static_cast<const B*>(p.bank.data) + (c < width ? c : 0) * p.bank.col_stride;
      }
      for (int64_t base = 0; base < k; base += 32) {
        const int64_t i = q * k + base + lane;
        const bool in_list = base + lane < k;
        const int64_t index = in_list ? p.indices[i] : -1;
        const uint32_t mine = index >= 0 && index < p.bank.count ? static_cast<uint32_t>(index) : none;
        const double along = in_list ? a.along[i] : 0.0;
        const int pairs = k - base < 32 ? static_cast<int>(k - base) : 32;
        for (int e = 0; e < pairs; e += kPairRows) {
          uint32_t row[kPairRows];
          B b[kPairRows][kPairColumns] = {};
#pragma unroll
          for (int u = 0; u < kPairRows; ++u) {
            row[u] = __shfl_sync(kAllLanes, mine, e + u);
            if (row[u] == none) continue;
#pragma unroll
            for (int v = 0; v < kPairColumns; ++v) b[u][v] = column[v][row[u] * p.bank.row_stride];
          }
          const auto add = [&](Term term) {
#pragma unroll
            for (int u = 0; u < kPairRows; ++u) {
              const double factor = __shfl_sync(kAllLanes, along, e + u);
              if (row[u] == none) continue;
#pragma unroll
              for (int v = 0; v < kPairColumns; ++v)
                sum[v] = add_rn(sum[v], mul_rn(factor, slope_of(term, x[v], element(b[u][v]))));
            }
          };
          switch (m.term) {
            case Term::product: add(Term::product); break;
            case Term::square: add(Term::square); break;
            default: add(Term::absolute);
          }
        }
      }
#pragma unroll
      for (int v = 0; v < kPairColumns; ++v) {
        const int c = first + 32 * v + lane;
        if (m.scaled_rows()) sum[v] = add_rn(sum[v], -mul_rn(own, x[v]));
        if (c < width) store(sum[v], p.grad_queries, p.queries.dtype, q * width + c);
      }
    }
  }
}

// What a pair adds to the gradient of its bank row.
struct BankTerm {
  PairArgs a;
  Term kind;
  bool scaled_rows;
  __device__ void load(Member* m, uint32_t position) const {
    m->first = a.along[position];
    if (scaled_rows) m->second = a.own_bank[position];
  }
  __device__ double own(int64_t row, int64_t column) const { return at(a.p.bank, row, column); }
  template <class F>
  __device__ __forceinline__ void with(F&& add) const {
    const auto add_slope = [&](Term term) {
      add([term](double x, const Member& m, double b) { return mul_rn(m.first, slope_of(term, b, x)); });
    };
    const auto add_both = [&](Term term) {
      add([term](double x, const Member& m, double b) {
        return add_rn(mul_rn(m.first, slope_of(term, b, x)), -mul_rn(m.second, b));
      });
    };
    if (scaled_rows) return kind == Term::product ? add_both(Term::product) : add_both(Term::square);
    switch (kind) {
      case Term::product: return add_slope(Term::product);
      case Term::square: return add_slope(Term::square);
      default: return add_slope(Term::absolute);
    }
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
  VB_TRY(sort_codes(p.indices, nullptr, &s, device));  // it also reports bad codes
  const dim3 grid = grid_for(ceil_div(p.queries.count, kPairThreads / 32));
  const MetricRecord m = record(p.metric);
  VB_TRY(with_dtype(p.bank.dtype, [&](auto type) {
    using B = Element<decltype(type)>;
    return launch(m.root || m.scaled_rows() ? pair_queries_kernel<B, true> : pair_queries_kernel<B, false>, grid,
                  kPairThreads, 0, device, a);
  }));
  if (p.grad_bank == nullptr) return nullptr;
  return sum_segments(s, p.queries, BankTerm{a, m.term, m.scaled_rows()}, device);
}

}  // namespace vecbank::cuda
