// The screen of a few queries: its bounds and the size of its sample. Plain functions, tested on the host.
//
// few.cu reads the original bank rows once and computes each score in float32, without frame, pack or tiles. A query is
// scaled by a power of two where its norm is extreme (query_frame, without a centre); x~ is its float32 row, b~ that of
// the bank row: both are exact but for float64 inputs, which are rounded. Screen units, per query:
//     dot      2^exponent x.b + bias  (a biased bank has exponent 0)
//     cosine   2^exponent x.b / max(|b|, kNormFloor)
//     squares  -|x - b|^2
//
// THE BOUND. With u = 2^-24, eight lanes share a row: a lane adds at most d / 8 + 9 fused terms, and three more sums
// join the lanes, so a sum has a relative error of at most (d / 8 + 12) u in the sum of its terms' magnitudes (Higham).
//   dot      |S - x.b| <= few_unit |x||b|. few_unit adds 2 u for rounding both rows, 1 u for adding the bias, and spare
//            for the few float32 roundings of the bound itself and for the refinement's float64. |b| comes from the
//            row's float32 squares: 1 % covers that sum and its root.
//   cosine   the quotient costs half the error of the norm's sum, and a root, a division and a product: 1.5 few_unit
//            |x| covers them, whatever the row.
//   squares  x~ - b~ costs one rounding, its square two units: |s - |x~ - b~|^2| <= few_unit s. For float64 inputs
//            e = u (|x| + |b|) <= u (2 |x| + D) moves the distance D, so D^2 moves by at most 2 D e + e^2: the terms
//            `cross` sqrt(s), part of `slack`, and part of few_unit.
// `slack` also covers underflow: every step loses at most 2^-150, a square that vanishes hides a norm of 2^-74.5.
// A row whose squares are not below kFewSquares (a NaN, an infinity, overflow) has the bounds {+inf, -inf}, so it is
// refined. A squared distance above it proves the row far; its upper bound is finite, and only NaN is refined.
#pragma once

#include <algorithm>

#include "../core/frame.h"
#include "candidates.h"

namespace vecbank::cuda {

constexpr int64_t kFewQueries = 16;       // up to so many; more are faster on tiles
constexpr int64_t kFewPacked = 4;         // the same where operands are packed: 16 took 0.62 ms, operands 0.31 (H200)
constexpr int64_t kMostFew = 128;         // up to this k
constexpr int64_t kFewShared = 48 << 10;  // bytes of the queries of a block
constexpr int kFewGroup = 8;              // queries of a block, at most: as many as it has warps
constexpr int kFewRows = 16;              // bank rows of a warp's step
constexpr int kFewTops = 1024;            // groups of the sample, whose best scores are kept
constexpr float kFewSquares = 0x1p124f;   // squared norms of bank rows
constexpr float kFewDistance = 0x1p125f;  // squared distances; query norms are below 2^60
constexpr float kFewBias = 0x1p60f;

VB_INLINE double few_unit(int64_t width) { return static_cast<double>(width / 8 + 24) * 0x1p-24 * 1.04; }

struct FewQuery {
  float norm;   // at least the norm of the query in screen units
  float slack;  // what does not depend on the row
  float cross;  // per distance; 0 unless the inputs are float64
  int exponent;
  bool usable;  // false: float32 cannot represent the query
};

// `squares`: the query's squared norm in float64. `rounded`: float64 inputs.
VB_INLINE FewQuery few_query(Metric metric, int64_t width, double squares, bool biased, bool rounded) {
  const QueryFrame f = query_frame(metric, width, squares, 0, biased, query_limit(metric, 0, biased));
  FewQuery q{};
  q.usable = f.usable;
  q.exponent = f.exponent;
  if (!f.usable) return q;
  const double steps = static_cast<double>(width + 16), norm = f.packed * (1.0 + 0x1p-20) + 0x1p-120;
  const double moved = rounded ? 0x1.04p-23 * f.packed + steps * 0x1p-149 : 0.0;  // at least 2 u |x|
  q.norm = round_up(norm);
  q.cross = round_up(2.0 * moved * (1.0 + 0x1p-10));
  q.slack = round_up(steps * (record(metric).unit_rows ? 0x1p-121 : 0x1p-148) + norm * 0x1p-80 +
                     moved * moved * (1.0 + 0x1p-10));
  return q;
}

// What bounds a row's scores. `unit`: few_unit() as a float; for cosine 1.5 times that.
struct FewRow {
  float scale, bound;  // of its dot products; the error bound per unit of the query's norm
  bool fits;
};
VB_INLINE FewRow few_row(const MetricRecord& m, float squares, float unit) {
  const float norm = sqrtf(squares);
  if (!m.unit_rows) return {1.0f, unit * norm * 1.01f, squares <= kFewSquares};
  const float floor = static_cast<float>(kNormFloor);
  return {1.0f / (norm < floor ? floor : norm), unit, squares <= kFewSquares};
}

struct Interval {
  float upper, lower;
};
VB_INLINE Interval few_product(float dot, const FewRow& row, float bias, const FewQuery& q) {
  if (!(row.fits && std::fabs(bias) <= kFewBias)) return {HUGE_VALF, -HUGE_VALF};
  const float score = dot * row.scale + bias, size = std::fabs(score) * 0x1p-22f;
  const float error = (q.norm * row.bound + q.slack + std::fabs(bias) * 0x1p-21f) * (1.0f + 0x1p-20f) + size;
  return {score + error, score - error};
}
VB_INLINE Interval few_square(float s, float unit, const FewQuery& q) {
  if (s != s) return {HUGE_VALF, -HUGE_VALF};
  if (!(s < kFewDistance)) return {-0.5f * kFewDistance, -HUGE_VALF};
  float error = s * unit + q.slack;
  if (q.cross > 0.0f) error += q.cross * sqrtf(s);
  error *= 1.0f + 0x1p-20f;
  return {error - s, -(s + error)};
}

// ---- The sample ----------------------------------------------------------------------------------------------------

// The start threshold is the k-th best among the best lower bounds of disjoint groups of a sample's rows. A pass over
// the whole bank then keeps about k columns / rows candidates. More than `capacity` would mean that fewer than k of the
// best capacity + k rows are in the sample, whose expected number is 2 k + 22: about once in 10^9 rows.
struct FewSample {
  int64_t rows = 0;  // 0: no sample, as every row may be a candidate
  int warps = 0;     // that share them
  int slots = 1;     // groups of a warp
  VB_HOST_DEVICE int tops() const { return warps * slots; }
};
inline FewSample few_sample(int64_t k, int64_t columns, int64_t capacity) {
  FewSample s;
  if (columns <= capacity) return s;
  s.rows = std::min(columns, ceil_div(columns * (2 * k + 22), capacity));
  s.warps = static_cast<int>(std::min<int64_t>(ceil_div(s.rows, kFewRows), kFewTops));
  for (s.slots = kFewRows; s.tops() > kFewTops;) s.slots /= 2;
  return s;
}

// Queries of a block: 8, 4 or 1; 0: not even one fits. A lane reads at most 8 numbers at a time, hence the padding.
inline int few_group(int64_t queries, int64_t width) {
  for (const int64_t group : {8, 4, 1})
    if ((group == 1 || queries > (group == 8 ? 4 : 1)) && group * round_up_to(width, 8) * 4 <= kFewShared)
      return static_cast<int>(group);
  return 0;
}

}  // namespace vecbank::cuda
