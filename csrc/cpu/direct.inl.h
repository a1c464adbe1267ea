// Scores of rows as they lie in memory, the lanes along the coordinates: for products in which a packed bank or packed
// queries would be read too few times.
#pragma once

#include "epilogues.inl.h"
#include "rows.inl.h"

namespace vecbank::cpu {
namespace {

// V::width elements, of which only `count` exist; the others are zeros.
template <class V, class S>
VB_INLINE typename V::Reg load_part(const S* p, int64_t count) {
  S some[V::width] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = p[i];
  return V::load(some);
}

// Four bank rows from i on; those that are missing are the last one again.
template <class V, Term term, int Queries, class Q, class S>
VB_INLINE void direct_block(const DirectArgs& a, int64_t i, int count) {
  constexpr int Banks = 4;
  const S* rows[Banks];
  for (int r = 0; r < Banks; ++r)
    rows[r] = static_cast<const S*>(a.bank.data) + (a.first + i + (r < count ? r : count - 1)) * a.bank.row_stride;
  typename V::Sum sum[Queries][4];
  for (int q = 0; q < Queries; ++q)
    for (int r = 0; r < 4; ++r) sum[q][r] = V::zero();
  const auto step = [&](int64_t k, auto&& load) __attribute__((always_inline)) {
    typename V::Reg b[Banks];
    for (int r = 0; r < Banks; ++r) b[r] = load(rows[r] + k);
    for (int q = 0; q < Queries; ++q) {
      const auto x = V::load(static_cast<const Q*>(a.queries[q]) + k);
      if (i == 0) __builtin_prefetch(static_cast<const char*>(a.queries[q]) + k * sizeof(Q) + a.ahead, 0, 3);
      for (int r = 0; r < Banks; ++r) {
        if constexpr (term == Term::square)
          sum[q][r] = Gaps<V>::multiply_add(x, b[r], sum[q][r]);
        else
          sum[q][r] = V::multiply_add(x, b[r], sum[q][r]);
      }
    }
  };
  int64_t k = 0;
  for (; k + V::width <= a.bank.width; k += V::width)
    step(k, [](const S* p) __attribute__((always_inline)) { return V::load(p); });
  if (k < a.bank.width)
    step(k, [&](const S* p) __attribute__((always_inline)) { return load_part<V>(p, a.bank.width - k); });
  // The lanes are added in float64, so that what is rounded is the few terms of a lane.
  for (int q = 0; q < Queries; ++q) {
    const typename V::Lanes lanes[4] = {V::to_lanes(sum[q][0]), V::to_lanes(sum[q][1]), V::to_lanes(sum[q][2]),
                                        V::to_lanes(sum[q][3])};
    double four[4];
    V::Lanes::sum4(lanes, four);
    for (int r = 0; r < count; ++r) a.out[q][i + r] = static_cast<float>(four[r]);
  }
}

// Sums become scores. Whether one is not finite, or shorter than a.least.
inline bool finish_direct(const DirectArgs& a) {
  int odd = 0;
  for (int q = 0; q < a.query_count; ++q) {
    float* out = a.out[q];
    const float scale = a.row_scale[q], *scales = a.column_scale;
    if (scales != nullptr)
      for (int64_t i = 0; i < a.count; ++i) out[i] *= scale * scales[i];
    if (a.root)
      for (int64_t i = 0; i < a.count; ++i) out[i] = __builtin_sqrtf(out[i]);
    for (int64_t i = 0; i < a.count; ++i) odd |= is_odd(out[i], a.least);
  }
  return odd != 0;
}

template <class V, Term term, int Queries, class Q, class S>
VB_INLINE bool direct_rows(const DirectArgs& a) {
  int64_t i = 0;
  for (; i + 4 <= a.count; i += 4) direct_block<V, term, Queries, Q, S>(a, i, 4);
  if (i < a.count) direct_block<V, term, Queries, Q, S>(a, i, static_cast<int>(a.count - i));
  return finish_direct(a);
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
      return true;  // not for float32
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
