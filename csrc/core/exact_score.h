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
#include <cstring>

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

// What the raw score is divided by for each of its two rows, from the row's raw score with itself; 1 for other metrics.
// A point that does not lie inside the unit ball has none: it scores NaN.
VB_INLINE double row_factor(const MetricRecord& m, double squares) {
  if (!m.ball) return m.unit_rows ? floored(std::sqrt(squares)) : 1.0;
  return squares < 1.0 ? add_rn(1.0, -squares) : NAN;
}

// ---- Distance in the Poincare ball ---------------------------------------------------------------------------------

// log((1 + s) / (1 - s)) for |s| <= 0.172, by its series, whose next term is below 2^-60 of the first.
VB_INLINE double log_of_quotient(double s) {
  const double z = mul_rn(s, s);
  double sum = 1.0 / 23.0;
  for (int n = 21; n > 0; n -= 2) sum = add_rn(mul_rn(sum, z), 1.0 / n);
  return mul_rn(2.0, mul_rn(s, sum));
}

// 2 asinh(sqrt(t)), t >= 0, by arithmetic that rounds alike on every device; within 4 units in the last place. It is
// 2 log(1 + w), and nothing cancels in w.
VB_INLINE double twice_asinh_root(double t) {
  if (!(t < HUGE_VAL)) return t;
  const double w = add_rn(std::sqrt(t), t / add_rn(1.0, std::sqrt(add_rn(1.0, t))));
  if (w < 0.41) return mul_rn(2.0, log_of_quotient(w / add_rn(2.0, w)));
  constexpr uint64_t kMantissa = (uint64_t{1} << 52) - 1;
  const double whole = add_rn(1.0, w);
  uint64_t bits;
  memcpy(&bits, &whole, sizeof bits);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  bits = (bits & kMantissa) | (uint64_t{1023} << 52);
  double part;
  memcpy(&part, &bits, sizeof part);
  if (part > 1.4142135623730951) part *= 0.5, ++exponent;
  constexpr double kLog2 = 0x1.62e42fefa38p-1, kLog2Rest = 0x1.ef35793c7673p-45;  // exact times an exponent; the rest
  const double of_part = log_of_quotient(add_rn(part, -1.0) / add_rn(part, 1.0));
  const double log = add_rn(mul_rn(exponent, kLog2), add_rn(mul_rn(exponent, kLog2Rest), of_part));
  return mul_rn(2.0, log);
}

// ---- Key and value -------------------------------------------------------------------------------------------------

// The factors are those of row_factor(); metrics without scaled rows ignore them. `bias`: of the bank row; null: none.
VB_INLINE double key_of(const MetricRecord& m, double raw, double query_factor, double bank_factor,
                        const double* bias = nullptr) {
  if (m.scaled_rows()) raw = raw / mul_rn(query_factor, bank_factor);
  if (m.smaller_is_better) return -raw;
  if (m.scaled_rows()) return raw;
  return bias != nullptr ? add_rn(raw, *bias) : raw;
}

// What the caller is given for a key.
VB_INLINE double value_of(const MetricRecord& m, double key) {
  const double score = m.smaller_is_better ? -key : key;
  if (m.arc) return twice_asinh_root(score);
  return m.root ? std::sqrt(score) : score;
}

// A loop over pairs asks for the record once, before it begins.
VB_INLINE double key_of(Metric metric, double raw, double query_factor, double bank_factor,
                        const double* bias = nullptr) {
  return key_of(record(metric), raw, query_factor, bank_factor, bias);
}
VB_INLINE double value_of(Metric metric, double key) { return value_of(record(metric), key); }

// The value of a rank that no row fills.
VB_INLINE double worst_value(const MetricRecord& m) { return m.smaller_is_better ? HUGE_VAL : -HUGE_VAL; }
VB_INLINE double worst_value(Metric metric) { return worst_value(record(metric)); }

// ---- The gradient of a value
// -----------------------------------------------------------------------------------------

// d value / d x = along * slope_of(term, x, b) - own_query * x, and likewise for b. Only scaled rows have an own part.
struct PairFactors {
  double along, own_query, own_bank;
};

// `raw`: the pair's raw score; the squares are the rows' raw scores with themselves, which scaled rows alone need.
VB_INLINE PairFactors pair_factors(const MetricRecord& m, double grad, double raw, double query_squares,
                                   double bank_squares) {
  if (m.root) return {raw > 0.0 ? grad / std::sqrt(raw) : 0.0, 0.0, 0.0};  // distance 0: gradient 0
  if (m.ball) {
    const double fx = row_factor(m, query_squares), fb = row_factor(m, bank_squares), t = raw / (fx * fb);
    if (m.arc && t == 0.0) return {0.0, 0.0, 0.0};
    const double slope = 2.0 * grad / (m.arc ? std::sqrt(t * (1.0 + t)) : 1.0);
    return {slope / (fx * fb), -slope * t / fx, -slope * t / fb};
  }
  if (!m.unit_rows) return {m.term == Term::square ? 2.0 * grad : grad, 0.0, 0.0};
  const double nx = std::sqrt(query_squares), nb = std::sqrt(bank_squares), fx = floored(nx), fb = floored(nb);
  const double score = raw / (fx * fb);
  // A norm below the floor counts as a constant, which has no gradient.
  return {grad / (fx * fb), nx < kNormFloor ? 0.0 : grad * score / (nx * nx),
          nb < kNormFloor ? 0.0 : grad * score / (nb * nb)};
}

// ---- Order ---------------------------------------------------------------------------------------------------------

struct Scored {  // a bank row and its key, which is not NaN
  double key;
  int64_t index;
};
VB_INLINE bool better(const Scored& a, const Scored& b) {
  return a.key > b.key || (a.key == b.key && a.index < b.index);
}

}  // namespace vecbank
