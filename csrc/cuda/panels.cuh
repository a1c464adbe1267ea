// Device code shared by whatever writes panels: mapping rows, sums over sixteen threads, the transposing store.
#pragma once

#include "kernels.h"
#include "tensor_cores/bounds.h"

namespace vecbank::cuda {

constexpr int kPanelThreads = 256;  // 16 rows x 16 threads

// x -> (x * pre - centre) * post in float64, as the CPU packs.
struct Map {
  double pre = 1.0;
  const double* centre = nullptr;
  double post = 1.0;
};

template <class S>
__device__ __forceinline__ double mapped(const S* row, int64_t step, int64_t k, const Map& map) {
  double v = widened(row[k * step]);
  if (map.pre != 1.0) v = mul_rn(v, map.pre);
  if (map.centre != nullptr) v = add_rn(v, -map.centre[k]);
  return mul_rn(v, map.post);
}

__device__ __forceinline__ double sum_of_16(double v) {
  for (int step = 8; step > 0; step /= 2) v = add_rn(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}
// Sum of squares of a mapped row, by the sixteen threads that share it.
__device__ __forceinline__ double squares_of(const Rows& rows, int64_t i, bool valid, const Map& map) {
  double sum = 0.0;
  if (valid)
    with_dtype(rows.dtype, [&](auto type) {
      const auto* row = reinterpret_cast<decltype(type)>(row_of(rows, i));
      for (int64_t k = threadIdx.x % 16; k < rows.width; k += 16) {
        const double v = mapped(row, rows.col_stride, k, map);
        sum = add_rn(sum, mul_rn(v, v));
      }
    });
  return sum_of_16(sum);
}

VB_INLINE double least(double a, double b) { return a < b ? a : b; }

// Whether the header of a caller's pack holds what this call expects.
VB_INLINE bool trusted(const PackHeader& h, const PackHeader& e) {
  const Metric metric = static_cast<Metric>(h.metric), wanted = static_cast<Metric>(e.metric);
  const bool kin = metric == wanted || (is_distance(metric) && is_distance(wanted));  // l2 and sqeuclidean share a pack
  return h.magic == e.magic && h.rows == e.rows && h.width == e.width && kin && h.dtype == e.dtype &&
         h.biased == e.biased && h.panels_at == e.panels_at && h.bytes == e.bytes && h.exponent >= -960 &&
         h.exponent <= 960;
}

// How a query meets the bank, whose own power of two is `shift`. Distances share the bank's frame, and `norm` is in it;
// similarities keep their own origin and, unless extreme, their own scale.
struct QueryFrame {
  int exponent;   // power of two on the query
  double packed;  // at least the norm that the packed query has
  bool usable;    // false: float32 cannot carry it
};
VB_INLINE QueryFrame query_frame(Metric metric, double norm, int shift, bool biased) {
  if (is_distance(metric)) return {shift, norm * (1.0 + 0x1p-20), norm <= least(kMaxQueryNorm, ldexp(kMaxNorm, shift))};
  const bool extreme = norm > 0.0 && norm <= kMaxNorm && !(norm >= 0x1p-60 && norm <= kMaxQueryNorm);
  const int exponent = extreme && !biased ? -ilogb(norm) : 0;  // a bias fixes the scale
  return {exponent, norm * ldexp(1.0, exponent) * (1.0 + 0x1p-20), norm <= (biased ? kMaxQueryNorm : kMaxNorm)};
}

// The contract's norm of row `i`, by the eight threads that share it.
__device__ __forceinline__ double norm_of(const Rows& rows, int64_t i, bool valid) {
  return floored(sqrt(sum_of_8(valid ? self_lane(rows, i, static_cast<int>(threadIdx.x % kLanes)) : 0.0)));
}

// ---- Rows before their coordinates are written ---------------------------------------------------------------------

// The norms of a panel's rows, eight threads a row; the upper half of the block repeats the lower half's rows. A
// barrier must follow.
__device__ __forceinline__ void norms_of_panel(const BankPanels& a, int64_t column, double* norms) {
  const int r = threadIdx.x / kLanes % kPanel;
  const double norm = norm_of(a.bank, column + r, column + r < a.bank.count);
  if (threadIdx.x % kLanes != 0 || threadIdx.x >= kPanel * kLanes) return;
  norms[r] = norm;
  if (a.norms != nullptr && column + r < a.bank.count) a.norms[column + r] = norm;
}

struct ColumnFacts {
  double packed, whole;  // norms in packed units: centred, and not
  double half;           // what a dense product starts from
  bool special;          // beyond what a screen can carry
};
__device__ __forceinline__ ColumnFacts column_facts(const BankPanels& a, int64_t column, double squares,
                                                    double original_squares, double norm, double post) {
  const bool cosine = a.metric == Metric::cosine;
  ColumnFacts f;
  f.packed = sqrt(squares) * (1.0 + 0x1p-20);
  f.whole = cosine ? post : sqrt(original_squares) * (1.0 + 0x1p-20);
  const double bias = a.bias != nullptr ? a.bias[column] * post : 0.0;
  f.half = is_distance(a.metric) ? -0.5 * squares : bias;
  f.special = !(f.packed <= least(kMaxBankNorm, kMaxNorm * post)) ||
              !(cosine ? norm <= kMaxNorm : f.whole <= kMaxNorm * least(post, 1.0)) || !(fabs(bias) <= kMaxBankNorm);
  return f;
}

// Whether the header of a caller's pack holds what this call expects; the sticky flag is raised if not.
__device__ __forceinline__ bool trusted(const QueryPanels& a) {
  const bool good = trusted(*a.header, a.expected);
  if (!good && blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(&a.state->bad_codes, 1u);
  return good;
}

struct QueryFacts {
  Map map;
  double squares = 0.0, norm = 0.0;  // before the scale of a similarity
  double packed = 0.0;               // the norm in packed units, rounded up
  int exponent = 0;                  // power of two on the query
  bool usable = false;
};
// Distances share the bank's frame; similarities keep their own origin and, unless extreme, their own scale. The
// sixteen threads of row q call it.
__device__ __forceinline__ QueryFacts query_facts(const QueryPanels& a, int64_t q, bool valid, bool good) {
  const int shift = good ? a.header->exponent : 0;
  const bool distance = is_distance(a.metric);
  QueryFacts f;
  if (distance) f.map = {1.0, good && a.header->centred ? a.centre : nullptr, ldexp(1.0, shift)};
  f.squares = squares_of(a.queries, q, valid, f.map);
  f.norm = sqrt(f.squares);
  const QueryFrame frame = query_frame(a.metric, f.norm, shift, a.expected.biased);
  f.exponent = frame.exponent;
  if (!distance) f.map.post = ldexp(1.0, f.exponent);
  f.usable = valid && good && frame.usable;
  f.packed = frame.packed;
  return f;
}

// Writes what a screen keeps of a query besides its coordinates; one thread calls it.
__device__ __forceinline__ void begin_query(const QueryPanels& a, int64_t q, const QueryFacts& f, bool usable,
                                            float norm) {
  a.norms[q] = norm;
  double slack = 0.0;
  if (usable) {
    slack = query_slack(a.metric, a.queries.width, f.exponent, a.header->exponent).at(f.packed);
    if (a.tensor) slack += tensor_slack(a.queries.width, f.packed);
  }
  a.slacks[q] = slack;
  a.thresholds[q] = usable ? -HUGE_VALF : HUGE_VALF;
  a.counts[q] = usable ? 0 : kGivenUp;
}

// Writes `width` lines of 16 mapped rows; rows that are not `written` become zeros. Reads run along rows, writes along
// lines, with a turn through shared memory. All threads of the block take part. `turn` holds 16 x 17 of T.
template <class T>
__device__ __forceinline__ void write_lines(const Rows& rows, int64_t i, bool written, const Map& map, T* lines,
                                            T* turn) {
  const int row = threadIdx.x / 16, t = threadIdx.x % 16;
  for (int64_t k = 0; k < rows.width; k += 16) {
    T v = 0;
    if (written && k + t < rows.width)
      with_dtype(rows.dtype, [&](auto type) {
        v = static_cast<T>(mapped(reinterpret_cast<decltype(type)>(row_of(rows, i)), rows.col_stride, k + t, map));
      });
    turn[t * 17 + row] = v;
    __syncthreads();
    if (k + row < rows.width) lines[(k + row) * kPanel + t] = turn[row * 17 + t];
    __syncthreads();
  }
}

}  // namespace vecbank::cuda
