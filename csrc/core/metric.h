// What a metric is: one record, the same for both backends. Code depends on the properties in the record and never on
// the metric's name, so that a new metric is a new record.
#pragma once

#include "types.h"

namespace vecbank {

// The codes are those that the torch ops take.
enum class Metric : int32_t {
  dot = 0,
  cosine = 1,
  l2 = 2,
  sqeuclidean = 3,
  l1 = 4,
  poincare = 5,
  poincare_ratio = 6,  // what ranks by poincare: its keys are the negated ratios, as those of l2 are negated squares
  // The farthest rows are the best. No op takes these codes: farthest() makes them.
  farthest_l2 = 64,
  farthest_sqeuclidean = 65,
  farthest_l1 = 66,
  farthest_poincare = 67,
  farthest_poincare_ratio = 68,
};

// What a pair of coordinates adds to the raw score.
enum class Term : int32_t { product, square, absolute };  // x b, (x - b)^2, and |x - b|

// Metrics of one family share a pack. Metrics without a family have no screen: they are refined only, and their packs
// are headers without panels. A metric with unit rows needs a family, as packs of a family hold the rows' norms.
enum class PackFamily : int32_t { none, dot, cosine, euclidean };

struct MetricRecord {
  Term term;
  bool smaller_is_better;  // a distance: its key is the negated raw score
  bool unit_rows;          // the raw score is divided by both norms, each at least kNormFloor
  bool root;               // the value is the square root of the raw score; the raw score decides the order
  bool shares_frame;       // a screen moves and scales queries as the bank is moved and scaled
  PackFamily family;
  bool ball = false;  // points of the unit ball: the raw score is divided by 1 - |x|^2 and 1 - |b|^2
  bool arc = false;  // the value is the distance in that ball, twice_asinh_root() of the ratio, which decides the order

  // Whether the raw score is divided by a number of each row (row_factor() in exact_score.h).
  VB_INLINE constexpr bool scaled_rows() const { return unit_rows || ball; }
};

VB_INLINE constexpr MetricRecord record(Metric metric) {
  switch (metric) {
    case Metric::cosine: return {Term::product, false, true, false, false, PackFamily::cosine};
    case Metric::l2: return {Term::square, true, false, true, true, PackFamily::euclidean};
    case Metric::sqeuclidean: return {Term::square, true, false, false, true, PackFamily::euclidean};
    case Metric::l1: return {Term::absolute, true, false, false, false, PackFamily::none};
    case Metric::poincare: return {Term::square, true, false, false, false, PackFamily::none, true, true};
    case Metric::poincare_ratio: return {Term::square, true, false, false, false, PackFamily::none, true, false};
    case Metric::farthest_l2: return {Term::square, false, false, true, false, PackFamily::none};
    case Metric::farthest_sqeuclidean: return {Term::square, false, false, false, false, PackFamily::none};
    case Metric::farthest_l1: return {Term::absolute, false, false, false, false, PackFamily::none};
    case Metric::farthest_poincare: return {Term::square, false, false, false, false, PackFamily::none, true, true};
    case Metric::farthest_poincare_ratio:
      return {Term::square, false, false, false, false, PackFamily::none, true, false};
    default: return {Term::product, false, false, false, false, PackFamily::dot};
  }
}
VB_INLINE constexpr Metric farthest(Metric distance) {
  return distance == Metric::l2               ? Metric::farthest_l2
         : distance == Metric::sqeuclidean    ? Metric::farthest_sqeuclidean
         : distance == Metric::poincare       ? Metric::farthest_poincare
         : distance == Metric::poincare_ratio ? Metric::farthest_poincare_ratio
                                              : Metric::farthest_l1;
}
// By code, as Python writes them.
constexpr const char* kMetricNames[] = {"dot", "cosine", "l2", "sqeuclidean", "l1", "poincare", "poincare_ratio"};
constexpr int kMetrics = sizeof kMetricNames / sizeof *kMetricNames;

// The last step of a dense product: none; clamped at 0; the square root of that.
enum class Finish : int32_t { linear, squared, rooted };
VB_INLINE constexpr Finish finish_of(Metric metric) {
  const MetricRecord m = record(metric);
  return m.root ? Finish::rooted : m.smaller_is_better ? Finish::squared : Finish::linear;
}

// Whether a search by one metric may use a pack that was made for the other.
VB_INLINE constexpr bool share_a_pack(Metric a, Metric b) {
  return a == b || (record(a).family == record(b).family && record(a).family != PackFamily::none);
}
VB_INLINE constexpr bool refined_only(Metric metric) { return record(metric).family == PackFamily::none; }

// A norm below this counts as this constant (cosine of a zero vector is 0, not NaN).
constexpr double kNormFloor = 1e-8;

}  // namespace vecbank
