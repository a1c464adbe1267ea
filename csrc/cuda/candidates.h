// Candidates of a screen, and the bounds that their scores keep: shared by the screens, the refinement and the tests.
#pragma once

#include "../core/bounds.h"
#include "order.h"

namespace vecbank::cuda {

constexpr int64_t kMostColumns = int64_t{1} << 32;  // a candidate names its column in 32 bits

struct Candidate {  // a screened row: its refined score lies in [lower, upper], in screen units
  float upper, lower;
  uint32_t column;
};

constexpr int32_t kFellBack = 1 << 30;  // the count of a fallback row, which is refined against everything

// A lower bound of the float64 score of a column with this upper bound; shared by screens and tests. `r`: the column's
// bound; `slack`: the amount by which the column's start was raised, plus the row's slack.
VB_INLINE float lower_bound(float upper, float norm, double r, double slack) {
  if (!(upper < HUGE_VALF)) return -HUGE_VALF;  // a fallback column has no lower bound
  return round_down(static_cast<double>(upper) - 2.0 * (static_cast<double>(norm) * r + slack));
}

// The same for a row whose columns are in registers, without float64 for each column. The lower bound of a column is
// its upper bound less column_gap, whose last factor covers its few roundings. The row's threshold is the largest lower
// bound less twice the slack, which all columns share: the term in |best| covers the rounding of the difference and the
// two roundings here, and the factor in twice_above() the other half of the last one.
VB_INLINE float column_gap(float twice_norm, float r, float twice_start_per_r2) {
  return r * (twice_norm + twice_start_per_r2 * r) * (1.0f + 0x1p-20f);
}
// The same where each column has a slack of its own, in `twice_slack` (twice the column's lift + twice_above(the row's
// slack)). Two roundings make the gap, whose factor covers them, and two subtract it. 2^-140 covers what underflows.
VB_INLINE float lower_bound_of(float upper, float norm, float r, float twice_slack) {
  const float gap = fused(2.0f * norm, r, twice_slack), covered = fused(gap, 1.0f + 0x1p-20f, 0x1p-140f);
  const float lower = upper - fused(std::fabs(upper), 0x1p-22f, covered);
  return upper < HUGE_VALF && lower > -HUGE_VALF ? lower : -HUGE_VALF;  // a fallback column, or NaN, has none
}
VB_INLINE float twice_above(double slack) { return above(2.0 * slack * (1.0 + 0x1p-20)); }
VB_INLINE float row_threshold(float best, float twice_slack) { return best - std::fabs(best) * 0x1p-22f - twice_slack; }

}  // namespace vecbank::cuda
