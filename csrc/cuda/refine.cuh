// Device code of both refinements: the key of a pair by eight lanes, and the writing of an answer.
#pragma once

#include "rows.cuh"

namespace vecbank::cuda {

// lane_sum() of core/exact_score.h for lane threadIdx.x % 8 of two rows without gaps, with up to eight coordinates of
// either row in flight: a row comes from far away, and its coordinates must not come one by one. A term of two zeros
// changes no sum.
template <class X, class B>
__device__ __forceinline__ double dense_lane(const X* x, const B* b, int width, Term term) {
  constexpr int kAtOnce = sizeof(X) == 8 ? 4 : 8;
  double sum = 0.0;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % kLanes); i < width; i += kLanes * kAtOnce) {
    X xs[kAtOnce] = {};
    B bs[kAtOnce] = {};
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e)
      if (i + e * kLanes < width) xs[e] = x[i + e * kLanes], bs[e] = b[i + e * kLanes];
    const auto add = [&](Term of) {
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) sum = add_rn(sum, term_of(of, element(xs[e]), element(bs[e])));
    };
    switch (term) {
      case Term::product: add(Term::product); break;
      case Term::square: add(Term::square); break;
      default: add(Term::absolute);
    }
  }
  return sum;
}
template <class X, class B>
__device__ __forceinline__ double strided_lane(const X* x, int64_t x_step, const B* b, int64_t b_step, int width,
                                               Term term) {
  double sum = 0.0;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % kLanes); i < width; i += kLanes)
    sum = add_rn(sum, term_of(term, element(x[i * x_step]), element(b[i * b_step])));
  return sum;
}

// It is not inlined: inlined loops for every pair of element types would take the registers that keep several rows in
// flight.
static __device__ __noinline__ double lane_of(const char* x, int64_t x_step, DType x_type, const char* b,
                                              int64_t b_step, DType b_type, int width, Term term) {
  return with_pair(x_type, b_type, [&](auto tx, auto tb) {
    const auto xs = reinterpret_cast<decltype(tx)>(x);
    const auto bs = reinterpret_cast<decltype(tb)>(b);
    return x_step == 1 && b_step == 1 ? dense_lane(xs, bs, width, term)
                                      : strided_lane(xs, x_step, bs, b_step, width, term);
  });
}
// The raw score of a pair, by eight lanes; the whole warp calls it. Lanes without a pair pass `valid` false.
__device__ __forceinline__ double raw_score(const Rows& x, int64_t i, const Rows& b, int64_t j, Term term, bool valid) {
  return sum_of_8(valid ? lane_of(row_of(x, i), x.col_stride, x.dtype, row_of(b, j), b.col_stride, b.dtype,
                                  static_cast<int>(x.width), term)
                        : 0.0);
}
__device__ __forceinline__ double factor_by_8(const MetricRecord& m, const Rows& x, int64_t i, bool valid) {
  return row_factor(m, raw_score(x, i, x, i, Term::product, valid));
}
__device__ __forceinline__ double group_norm(const Result& r, int64_t q, bool valid = true) {
  return r.metric.scaled_rows() ? factor_by_8(r.metric, r.queries, q, valid) : 1.0;
}
__device__ __forceinline__ double group_key(const Result& r, int64_t q, double query_norm, int64_t j, bool valid) {
  const double raw = raw_score(r.queries, q, r.bank, j, r.metric.term, valid);
  const double bank_norm = r.metric.scaled_rows() ? factor_by_8(r.metric, r.bank, j, valid) : 1.0;
  return key_of(r.metric, raw, query_norm, bank_norm, r.bias != nullptr && valid ? r.bias + j : nullptr);
}

// ---- Results -------------------------------------------------------------------------------------------------------

// Rank `at` of all ranks of the chunk. last_scored() stands for an absent row.
__device__ __forceinline__ void write_rank(const Result& r, int64_t at, const Scored& found) {
  const bool absent = found.index == INT64_MAX;
  if (r.indices != nullptr) r.indices[at] = absent ? -1 : found.index;
  if (r.values == nullptr) return;
  const double value = absent ? worst_value(r.metric) : value_of(r.metric, found.key);
  if (r.values_dtype == DType::f64)
    static_cast<double*>(r.values)[at] = value;
  else
    static_cast<float*>(r.values)[at] = static_cast<float>(value);
}

template <class T>
__device__ __forceinline__ void copy_row(const char* from, int64_t step, char* to, int64_t count, int thread,
                                         int threads) {
  for (int64_t k = thread; k < count; k += threads)
    reinterpret_cast<T*>(to)[k] = reinterpret_cast<const T*>(from)[k * step];
}

// Writes the best bank row of query q, or NaN where there is none. `threads` threads do it together.
__device__ __forceinline__ void gather_best(const Result& r, int64_t q, int64_t j, int thread, int threads) {
  if (r.gathered == nullptr) return;
  const int64_t bytes = r.bank.width * static_cast<int64_t>(size_of(r.bank.dtype));
  char* to = static_cast<char*>(r.gathered) + q * bytes;
  if (j != INT64_MAX) {
    const char* from = row_of(r.bank, j);
    const auto misplaced =
        reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(bytes);
    if (r.bank.col_stride == 1 && misplaced % sizeof(WideWord) == 0)
      return copy_row<WideWord>(from, 1, to, bytes / static_cast<int64_t>(sizeof(WideWord)), thread, threads);
    switch (size_of(r.bank.dtype)) {
      case 8: return copy_row<uint64_t>(from, r.bank.col_stride, to, r.bank.width, thread, threads);
      case 4: return copy_row<uint32_t>(from, r.bank.col_stride, to, r.bank.width, thread, threads);
      default: return copy_row<uint16_t>(from, r.bank.col_stride, to, r.bank.width, thread, threads);
    }
  }
  const uint64_t none = nan_bits(r.bank.dtype);
  for (int64_t k = thread; k < r.bank.width; k += threads) switch (size_of(r.bank.dtype)) {
      case 8: reinterpret_cast<uint64_t*>(to)[k] = none; break;
      case 4: reinterpret_cast<uint32_t*>(to)[k] = static_cast<uint32_t>(none); break;
      default: reinterpret_cast<uint16_t*>(to)[k] = static_cast<uint16_t>(none);
    }
}

// Ranks [from, from + take) of row q: the first `count` of them from `list`, the rest absent. The whole block takes
// part.
__device__ __forceinline__ void write_ranks(const Result& r, int64_t q, const Scored* list, int64_t count, int64_t from,
                                            int64_t take) {
  for (int64_t i = threadIdx.x; i < take; i += blockDim.x)
    write_rank(r, q * r.k + from + i, i < count ? list[i] : last_scored());
  if (from == 0)
    gather_best(r, q, count > 0 ? list[0].index : INT64_MAX, static_cast<int>(threadIdx.x),
                static_cast<int>(blockDim.x));
}

}  // namespace vecbank::cuda
