// Sums of slopes: one row against others, the lanes along the coordinates. Differences are taken before they are
// multiplied, so that nothing cancels where rows are close to one another.
#pragma once

#include "rows.inl.h"
#include "slopes.h"

namespace vecbank::cpu {
namespace {

constexpr int kSlopeSums = 8;  // registers of sums: as many as hide the time that an addition takes

// The derivative of a term, as slope_of() of core/exact_score.h has it.
template <class V, Term term>
VB_INLINE typename V::Reg slope(typename V::Reg x, typename V::Reg b) {
  if constexpr (term == Term::product)
    return b;
  else if constexpr (term == Term::square)
    return V::subtract(x, b);
  else
    return V::if_greater(x, b, V::fill(1.0f), V::if_greater(b, x, V::fill(-1.0f), V::fill(0.0f)));
}

// What the others add to the sum of a row.
template <class V, Term term>
struct SlopeSum {
  static constexpr bool reads_rows = term != Term::product;
  using Reg = typename V::Reg;
  static VB_INLINE Reg add(Reg weight, Reg x, Reg b, Reg sum) {
    return V::multiply_add(weight, slope<V, term>(x, b), sum);
  }
};
template <class V>
struct DistanceSum {
  static constexpr bool reads_rows = false;
  using Reg = typename V::Reg;
  static VB_INLINE Reg add(Reg weight, Reg, Reg b, Reg sum) { return Gaps<V>::multiply_add(weight, b, sum); }
};

// Some rows from r on, and some registers of coordinates from c on.
template <class V, class Sum, int Rows, int Registers>
VB_INLINE void slope_tile(const SlopeArgs& a, int64_t r, int64_t c) {
  typename V::Reg sum[Rows][Registers], x[Rows][Registers];
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Registers; ++v) {
      sum[i][v] = V::fill(0.0f);
      x[i][v] = Sum::reads_rows ? V::load(a.rows + (r + i) * a.row_stride + c + v * V::width) : sum[i][v];
    }
  const float *other = a.others + c, *weight = a.weights + r * a.weight_row;
  for (int64_t o = 0; o < a.other_count; ++o, other += a.other_stride, weight += a.weight_other) {
    typename V::Reg b[Registers];
    for (int v = 0; v < Registers; ++v) b[v] = V::load(other + v * V::width);
    for (int i = 0; i < Rows; ++i) {
      const auto w = V::fill(weight[i * a.weight_row]);
      for (int v = 0; v < Registers; ++v) sum[i][v] = Sum::add(w, x[i][v], b[v], sum[i][v]);
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int v = 0; v < Registers; ++v) {
      float* to = a.sums + (r + i) * a.sum_stride + c + v * V::width;
      V::store(to, a.begins ? sum[i][v] : V::add(V::load(to), sum[i][v]));
    }
}

template <class V, class Sum, int Rows, int Registers>
VB_INLINE void slope_rows(const SlopeArgs& a, int64_t r, int64_t c) {
  for (; r + Rows <= a.count; r += Rows) slope_tile<V, Sum, Rows, Registers>(a, r, c);
  if constexpr (Rows > 1) slope_rows<V, Sum, Rows / 2, Registers>(a, r, c);
}

template <class V, class Sum>
void slopes_of(const SlopeArgs& a) {
  int64_t c = 0;
  const auto columns = [&](auto registers) {
    for (constexpr int n = registers.value; c + n * V::width <= a.width; c += n * V::width)
      slope_rows<V, Sum, kSlopeSums / n, n>(a, 0, c);
  };
  columns(std::integral_constant<int, 4>{});
  columns(std::integral_constant<int, 2>{});
  columns(std::integral_constant<int, 1>{});
}

template <class V>
void slopes(const SlopeArgs& a) {
  static_assert(kSlopeStep % V::width == 0);
  if (a.distances) return slopes_of<V, DistanceSum<V>>(a);
  switch (a.term) {
    case Term::product: return slopes_of<V, SlopeSum<V, Term::product>>(a);
    case Term::square: return slopes_of<V, SlopeSum<V, Term::square>>(a);
    case Term::absolute: return slopes_of<V, SlopeSum<V, Term::absolute>>(a);
  }
}

template <class V>
void end_slopes(const SlopeEndArgs& a) {
  for (int64_t r = 0; r < a.count; ++r) {
    float *sums = a.sums + r * a.sum_stride, along = 0.0f, scale = a.factor;
    const float* unit = a.units == nullptr ? sums : a.units + r * a.unit_stride;
    if (a.units != nullptr) {
      auto part = V::fill(0.0f);
      for (int64_t k = 0; k < a.width; k += V::width)
        part = V::multiply_add(V::load(unit + k), V::load(sums + k), part);
      float lanes[V::width];
      V::store(lanes, part);
      double total = 0.0;
      for (const float lane : lanes) total += static_cast<double>(lane);
      along = static_cast<float>(-total) * a.alive[r];
      scale *= a.inverse[r];
    }
    if (a.units == nullptr && scale == 1.0f) continue;
    for (int64_t k = 0; k < a.width; k += V::width)
      V::store(sums + k,
               V::multiply(V::multiply_add(V::fill(along), V::load(unit + k), V::load(sums + k)), V::fill(scale)));
  }
}

// Whether a square is odd.
inline bool divide_by_roots(const float* squares, const float* grads, int64_t step, int64_t count, float* out) {
  int odd = 0;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = grads[i * step] / __builtin_sqrtf(squares[i]);
    odd |= is_odd(squares[i], kLeastSquare);
  }
  return odd != 0;
}

}  // namespace
}  // namespace vecbank::cpu
