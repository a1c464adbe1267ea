// How rows enter the frame of a pack, on both devices. The frame is a centre, which is subtracted from every bank row,
// and a power of two, which scales the difference. The backends choose the frame (cpu/frame.cpp, cuda/pack.cu) and
// write panels in it.
#pragma once

#include "bounds.h"
#include "exact_score.h"

namespace vecbank {

// x -> (x * pre - centre) * post, in float64; null centre means zero.
struct Affine {
  const double* centre = nullptr;
  double pre = 1.0, post = 1.0;
};

constexpr double kNormRoom = 1.0 + 0x1p-20;  // a norm times this is at least the exact norm, for any order of the sum

VB_INLINE double least(double a, double b) { return a < b ? a : b; }

// ---- Queries -------------------------------------------------------------------------------------------------------

// Where the metric shares the frame, a query is moved and scaled as the bank's rows are; otherwise a query keeps its
// origin and, unless its norm is extreme, its scale.
struct QueryFrame {
  int exponent;    // power of two on the query
  double squares;  // at least the squared norm, in packed units where the frame is shared, else before scaling
  double packed;   // at least the norm of the packed query
  bool usable;     // false: float32 cannot represent the query
};

// The largest norm of a usable query, the same for all queries of a bank. `shift`: the bank's exponent.
VB_INLINE double query_limit(Metric metric, int shift, bool biased) {
  if (record(metric).shares_frame) return least(kMaxQueryNorm, std::ldexp(kMaxNorm, shift));
  return biased ? kMaxQueryNorm : kMaxNorm;
}

// `squares`: the query's squared norm, after moving and scaling where the frame is shared. `limit`: query_limit().
VB_INLINE QueryFrame query_frame(Metric metric, int64_t width, double squares, int shift, bool biased, double limit) {
  if (record(metric).shares_frame) return {shift, squares, std::sqrt(squares) * kNormRoom, squares <= limit * limit};
  if (squares > 0.0) squares += static_cast<double>(width) * 0x1p-1074;  // room for squares that underflowed
  const double norm = std::sqrt(squares);
  const bool extreme = norm > 0.0 && norm <= kMaxNorm && !(norm >= 0x1p-60 && norm <= kMaxQueryNorm);
  const int exponent = extreme && !biased ? -std::ilogb(norm) : 0;  // a bias fixes the scale
  return {exponent, squares, norm * std::ldexp(1.0, exponent) * kNormRoom, squares <= limit * limit};
}

// How a row of a dense product is converted from packed units: value = score * scale + term, before the finish.
template <class T>
struct DenseFactors {
  T scale = 0, term = 0;
  bool fits = false;  // false: the row is a fallback row, whose values are scored in float64
};
constexpr int kMaxScaleExponent = 120;  // the largest that a float32 scale can undo

// `centre_dot`: the query's dot product with the bank's centre, which a similarity adds back.
template <class T>
VB_INLINE DenseFactors<T> dense_factors(Metric metric, const QueryFrame& query, double centre_dot, int shift) {
  const MetricRecord m = record(metric);
  const int undo = query.exponent + shift;
  if (!query.usable || (sizeof(T) == 4 && (undo > kMaxScaleExponent || undo < -kMaxScaleExponent))) return {};
  const double unit = std::ldexp(1.0, -undo);
  if (m.term == Term::square) return {static_cast<T>(-2.0 * unit), static_cast<T>(query.squares * unit), true};
  const double inverse = m.unit_rows ? 1.0 / floored(std::sqrt(query.squares)) : 1.0;
  return {static_cast<T>(unit * inverse), static_cast<T>(centre_dot * inverse), true};
}

// ---- Bank rows -----------------------------------------------------------------------------------------------------

// What a panel holds of a bank row besides the coordinates. A row that does not fit is a fallback row
// (RowKind::fallback), which every query refines. The kinds never, far and negligible (pack.h), which avoid that work,
// are found by the CPU's packing alone; a pack made on a CUDA device has none of them.
struct ColumnFacts {
  double packed;  // at least the norm of the packed row
  double whole;   // about the norm of the row before the centre is taken, in packed units
  double start;   // the start of a dense product's sum
  bool fits;      // false: a screen cannot represent the row
};
// `squares`: the packed row's squared norm. `norm`: the floored norm, where the metric has unit rows. `bias`: 0 if
// there is none.
VB_INLINE ColumnFacts column_facts(Metric metric, double squares, double whole, double norm, double bias, double post) {
  const MetricRecord m = record(metric);
  ColumnFacts f{};
  f.packed = std::sqrt(squares) * kNormRoom;
  f.whole = whole;
  f.start = m.term == Term::square ? -0.5 * squares : bias * post;
  f.fits = f.packed <= least(kMaxBankNorm, kMaxNorm * post) &&
           (m.unit_rows ? norm <= kMaxNorm : whole <= kMaxNorm * least(post, 1.0)) &&
           std::fabs(bias) * post <= kMaxBankNorm;
  return f;
}

}  // namespace vecbank
