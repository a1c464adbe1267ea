// How far a screen's score can be from the refined score. The proof below covers every constant.
//
// Units: the packed, centred, power-of-two scaled ones of pack.h. With u = 2^-24, d the width, x~ and b~ the packed
// rows (each coordinate one float32 rounding from the exact map of the original), a screen score is
//     S = start + sum x~ b~,  accumulated in d + 1 float32 steps, fused or not, in any order.
// Against T, the exact map of the refined float64 score, |S - T| <= |x~| r_b + beta_b + slack_x, where
//     r_b     = unit(d) |b~| + the refinement's rounding in proportion to |x|    (the panel's bound line)
//     beta_b  = unit(d) |b~|^2 / 2 for distances, whose start is -|b~|^2 / 2      (folded into the screen's start)
//     slack_x = underflow, and for distances the refinement's rounding in proportion to |x~|^2.
// The refinement adds in eight lanes, ceil(d / 8) steps each, and then in three more steps. A term costs three
// roundings; the norms and the quotient of a cosine cost as much as two more sums. Hence refine_unit(d), four times for
// similarities.
// unit(d) = u (d + 16): d + 2 accumulation steps (Higham, gamma_n), 2 for packing either side, 2 for the start, the
// bound line's own step, and spare; 2 % covers the second order while u (d + 16) < 0.01.
#pragma once

#include <cmath>

#include "metric.h"

namespace vecbank {

constexpr int64_t kMaxScreenWidth = 1 << 17;  // unit(d) < 0.01
constexpr double kMaxBankNorm = 0x1p40;       // packed units; a larger column always goes to refinement
constexpr double kMaxQueryNorm = 0x1p60;      // packed units; a larger query is not screened
constexpr double kFarNorm = 0x1p62;           // packed units, distances; above, T < -|b~|^2 / 5 for screened queries
constexpr double kMaxNorm = 0x1p510;          // original units; products of two stay finite in float64

VB_HOST_DEVICE inline double screen_unit(int64_t width) { return static_cast<double>(width + 16) * 0x1p-24 * 1.02; }
VB_HOST_DEVICE inline double refine_unit(int64_t width) { return static_cast<double>(width / 8 + 16) * 0x1p-53 * 1.02; }

VB_HOST_DEVICE inline float round_up(double x) {
#if defined(__CUDA_ARCH__)
  return __double2float_ru(x);
#else
  const float f = static_cast<float>(x);
  return static_cast<double>(f) < x ? std::nextafterf(f, HUGE_VALF) : f;
#endif
}
VB_HOST_DEVICE inline float round_down(double x) {
#if defined(__CUDA_ARCH__)
  return __double2float_rd(x);
#else
  const float f = static_cast<float>(x);
  return static_cast<double>(f) > x ? std::nextafterf(f, -HUGE_VALF) : f;
#endif
}

// above(x) >= x and below(x) <= x, each within two float32 steps of x, without a branch or a call.
VB_HOST_DEVICE inline float above(double x) { return static_cast<float>(x + (std::fabs(x) * 0x1p-23 + 0x1p-149)); }
VB_HOST_DEVICE inline float below(double x) { return static_cast<float>(x - (std::fabs(x) * 0x1p-23 + 0x1p-149)); }

// r_b. `packed`: |b~|. `original`: |b| 2^exponent (dot), or that divided by the floored norm (cosine).
VB_HOST_DEVICE inline float bank_bound(Metric metric, int64_t width, double packed, double original) {
  double r = screen_unit(width) * packed;
  if (record(metric).term == Term::product) r += 4.0 * refine_unit(width) * original;
  return round_up(r * (1.0 + 0x1p-18));
}

// beta_b, from |b~|^2; and beta_b per r_b^2, for the survivors' path, which has r_b alone.
VB_HOST_DEVICE inline double start_bound(int64_t width, double squares) {
  return screen_unit(width) * squares * 0.5 * (1.0 + 0x1p-16);
}
VB_HOST_DEVICE inline double start_bound_per_r2(Metric metric, int64_t width) {
  return record(metric).term == Term::square ? 0.5 / screen_unit(width) * (1.0 + 0x1p-10) : 0.0;
}

// slack_x, a polynomial in the query's norm, whose coefficients depend on the exponents alone. `query_exponent` and
// `bank_exponent`: the powers of two that scale the query and the bank.
struct QuerySlack {
  double constant, linear, square;
  VB_HOST_DEVICE double at(double norm) const { return (constant + (linear + square * norm) * norm) * (1.0 + 0x1p-40); }
};
VB_HOST_DEVICE inline QuerySlack query_slack(Metric metric, int64_t width, int query_exponent, int bank_exponent) {
  const double steps = static_cast<double>(width + 16);
  const double apart = steps * std::ldexp(1.0, -1073 + bank_exponent);
  QuerySlack s;
  s.constant = steps * 0x1p-149 * (1.0 + 2.0 * kMaxBankNorm) + apart +
               steps * std::ldexp(1.0 / kNormFloor, -1073 + query_exponent + bank_exponent);
  s.linear = steps * 0x1p-149 + apart;
  s.square = record(metric).term == Term::square ? refine_unit(width) * 1.02 : 0.0;
  return s;
}

}  // namespace vecbank
