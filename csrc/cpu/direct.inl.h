// Scores of rows as they lie in memory, the lanes along the coordinates: for products in which a packed bank or packed
// queries would be read too few times.
#pragma once

#include "epilogues.inl.h"
#include "rows.inl.h"

namespace vecbank::cpu {
namespace {

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourMasks __attribute__((vector_size(16)));

// Scores of up to four bank rows, from their sums. Which of them are odd: not finite, or smaller in size than a.least.
VB_INLINE FourMasks finish_direct(const DirectArgs& a, int q, int64_t i, int count, const double* sums) {
  Four score = {static_cast<float>(sums[0]), static_cast<float>(sums[1]), static_cast<float>(sums[2]),
                static_cast<float>(sums[3])};
  if (a.column_scale != nullptr) {
    const float* scales = a.column_scale + i;
    const int last = count - 1;
    const Four four = {scales[0], scales[std::min(1, last)], scales[std::min(2, last)], scales[last]};
    score *= a.row_scale[q] * four;
  }
  if (a.root)
    score = Four{__builtin_sqrtf(score[0]), __builtin_sqrtf(score[1]), __builtin_sqrtf(score[2]),
                 __builtin_sqrtf(score[3])};
  float* out = a.out[q] + i;
  if (count == 4)
    __builtin_memcpy(out, &score, sizeof score);
  else
    for (int r = 0; r < count; ++r) out[r] = score[r];
  const Four size = score < 0.0f ? -score : score, least = {a.least, a.least, a.least, a.least};
  return ~((size >= least) & (size <= kMostScore));
}

// `count` bank rows from i on, at most four, and at most `Banks`. Missing ones are the last one again.
template <class V, Term term, int Queries, int Banks, class Q, class S>
VB_INLINE FourMasks direct_block(const DirectArgs& a, int64_t i, int count) {
  const S* rows[Banks];
  for (int r = 0; r < Banks; ++r)
    rows[r] = static_cast<const S*>(a.bank.data) + (a.first + i + (r < count ? r : count - 1)) * a.bank.row_stride;
  const Q* queries[Queries];
  for (int q = 0; q < Queries; ++q) queries[q] = static_cast<const Q*>(a.queries[q]);
  const int64_t width = a.bank.width, ahead = a.ahead;
  typename V::Sum sum[Queries][Banks];
  for (int q = 0; q < Queries; ++q)
    for (int r = 0; r < Banks; ++r) sum[q][r] = V::zero();
  const auto step = [&](int64_t k, auto&& load) __attribute__((always_inline)) {
    typename V::Reg b[Banks];
    for (int r = 0; r < Banks; ++r) b[r] = load(rows[r] + k);
    for (int q = 0; q < Queries; ++q) {
      const auto x = load(queries[q] + k);
      if (i == 0) __builtin_prefetch(reinterpret_cast<const char*>(queries[q] + k) + ahead, 0, 3);
      for (int r = 0; r < Banks; ++r) {
        if constexpr (term == Term::square)
          sum[q][r] = Gaps<V>::multiply_add(x, b[r], sum[q][r]);
        else
          sum[q][r] = V::multiply_add(x, b[r], sum[q][r]);
      }
    }
  };
  int64_t k = 0;
  for (; k + V::width <= width; k += V::width)
    step(k, [](const auto* p) __attribute__((always_inline)) { return V::load(p); });
  if (k < width)
    step(k, [&](const auto* p) __attribute__((always_inline)) { return load_end<V, V::width>(p, width - k); });
  // The lanes are added in float64, so that what is rounded is the few terms of a lane.
  FourMasks odd = {};
  for (int q = 0; q < Queries; ++q) {
    const auto lanes_of = [&](int r)
                              __attribute__((always_inline)) { return V::to_lanes(sum[q][std::min(r, Banks - 1)]); };
    const typename V::Lanes lanes[4] = {lanes_of(0), lanes_of(1), lanes_of(2), lanes_of(3)};
    double four[4];
    V::Lanes::sum4(lanes, four);
    odd |= finish_direct(a, q, i, count, four);
  }
  return odd;
}

// Whether a score is odd.
template <class V, Term term, int Queries, class Q, class S>
VB_INLINE bool direct_rows(const DirectArgs& a) {
  FourMasks odd = {};
  int64_t i = 0;
  for (; i + 4 <= a.count; i += 4) odd |= direct_block<V, term, Queries, 4, Q, S>(a, i, 4);
  switch (const int left = static_cast<int>(a.count - i); left) {
    case 0: break;
    case 1: odd |= direct_block<V, term, Queries, 1, Q, S>(a, i, 1); break;
    default: odd |= direct_block<V, term, Queries, 4, Q, S>(a, i, left);
  }
  return (odd[0] | odd[1] | odd[2] | odd[3]) != 0;
}

template <class V, Term term, class Q, class S>
bool direct_queries(const DirectArgs& a) {
  switch (a.query_count) {
    case 1: return direct_rows<V, term, 1, Q, S>(a);
    case 2: return direct_rows<V, term, 2, Q, S>(a);
    case 3: return direct_rows<V, term, 3, Q, S>(a);
    default: return direct_rows<V, term, 4, Q, S>(a);
  }
}

template <class V>
bool direct(const DirectArgs& a) {
  return with_dtype(a.bank.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    if constexpr (std::is_same_v<S, double>) {
      return true;  // odd: float64 is not for this way
    } else {
      return a.term == Term::square ? direct_queries<V, Term::square, float, S>(a)
                                    : direct_queries<V, Term::product, float, S>(a);
    }
  });
}

// Rounds to another type.
inline void narrow_floats(const float* values, int64_t count, DType dtype, void* out) {
  with_dtype(dtype, [&](auto type) { emit(values, count, static_cast<Element<decltype(type)>*>(out)); });
}

}  // namespace
}  // namespace vecbank::cpu
