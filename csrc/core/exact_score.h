// The exact score of a pair of rows, to the last bit and the same on every device: the refinement's last word, and the
// answer of every exact op.
//
// A raw score is a float64 sum over the coordinates. Coordinate i belongs to lane i mod 8; each lane adds its terms in
// ascending order, then the lanes are added in a tree. A product is rounded before it is added, never fused.
// The raw score becomes a key, larger is better whatever the metric, and rows are ordered by (key, lower index).
// The CPU's cpu/scores.inl.h keeps the eight lanes in vector registers; tests/cpp/test_exact_score.cpp compares it with
// this.
#pragma once

#include <cmath>

#include "half.h"
#include "metric.h"

namespace vecbank {

VB_INLINE double mul_rn(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
VB_INLINE double add_rn(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

// ---- The raw score -------------------------------------------------------------------------------------------------

constexpr int kLanes = 8;

VB_INLINE double term_of(Term term, double x, double b) {
  if (term == Term::product) return mul_rn(x, b);
  const double gap = add_rn(x, -b);
  return term == Term::absolute ? std::fabs(gap) : mul_rn(gap, gap);
}

// The derivative of a term in x, but for the factor 2 of a square; 0 where |x - b| has none. The derivative in b is
// slope_of(term, b, x).
VB_INLINE double slope_of(Term term, double x, double b) {
  if (term == Term::product) return b;
  const double gap = add_rn(x, -b);
  return term == Term::square ? gap : gap > 0.0 ? 1.0 : gap < 0.0 ? -1.0 : 0.0;
}

// One lane of a row x and a row b, whose coordinates lie `x_step` and `b_step` elements apart.
template <class X, class B>
VB_INLINE double lane_sum(const X* x, int64_t x_step, const B* b, int64_t b_step, int64_t width, int lane, Term term) {
  double sum = 0.0;
  for (int64_t i = lane; i < width; i += kLanes)
    sum = add_rn(sum, term_of(term, widened(x[i * x_step]), widened(b[i * b_step])));
  return sum;
}

VB_INLINE double tree_sum(const double (&lane)[kLanes]) {
  return add_rn(add_rn(add_rn(lane[0], lane[1]), add_rn(lane[2], lane[3])),
                add_rn(add_rn(lane[4], lane[5]), add_rn(lane[6], lane[7])));
}

// A norm as cosine divides by it: the root of the raw score of a row with itself, never below the floor. NaN stays.
VB_INLINE double floored(double norm) { return norm < kNormFloor ? kNormFloor : norm; }

// ---- Key and value -------------------------------------------------------------------------------------------------

// The norms are floored already; metrics without unit rows ignore them. `bias`: of the bank row; null: none.
VB_INLINE double key_of(const MetricRecord& m, double raw, double query_norm, double bank_norm,
                        const double* bias = nullptr) {
  if (m.smaller_is_better) return -raw;
  if (m.unit_rows) return raw / mul_rn(query_norm, bank_norm);
  return bias != nullptr ? add_rn(raw, *bias) : raw;
}

// What the caller is given for a key.
VB_INLINE double value_of(const MetricRecord& m, double key) {
  const double score = m.smaller_is_better ? -key : key;
  return m.root ? std::sqrt(score) : score;
}

// A loop over pairs asks for the record once, before it begins.
VB_INLINE double key_of(Metric metric, double raw, double query_norm, double bank_norm, const double* bias = nullptr) {
  return key_of(record(metric), raw, query_norm, bank_norm, bias);
}
VB_INLINE double value_of(Metric metric, double key) { return value_of(record(metric), key); }

// The value of a rank that no row fills.
VB_INLINE double worst_value(const MetricRecord& m) { return m.smaller_is_better ? HUGE_VAL : -HUGE_VAL; }
VB_INLINE double worst_value(Metric metric) { return worst_value(record(metric)); }

// ---- Order ---------------------------------------------------------------------------------------------------------

struct Scored {  // a bank row and its key, which is not NaN
  double key;
  int64_t index;
};
VB_INLINE bool better(const Scored& a, const Scored& b) {
  return a.key > b.key || (a.key == b.key && a.index < b.index);
}

}  // namespace vecbank
