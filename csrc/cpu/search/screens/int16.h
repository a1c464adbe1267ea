// The int16 screen: queries and bank rows as 16 bit codes, products summed in int32, which is exact. It has half the
// bytes of float32, and up to twice the products a second. This file has the constants and the proof, int16.inl.h the
// loops, int16.cpp the driver.
//
// A query row is scaled by its unit s, a bank row by 1 / step, and both are rounded to 16 bits: |sums| <= (|x~| s +
// |e_x|) (|b~| / step + |e_b|) < kQueryNorm kBankNorm < 2^31 by Cauchy and Schwarz, with |e| <= 0.51 sqrt(d) (half a
// step a coordinate, and float32 scaling). In units of s, with the names of core/bounds.h,
//     |S - T| <= |e_x| |b~| + (|x~| s + |e_x|) |e_b| step + kQueryNorm r_b + four roundings of the float32 that
//     follows,
// so the margin is a constant times the step, plus a constant times r_b: no query appears in it. Most query rows use
// nearly the whole of kQueryTarget, so little precision is lost (a row of one large coordinate uses half of it); r_b
// still covers the packing and the refinement.
#pragma once

#include "../../../core/bounds.h"
#include "../../tiles.h"

namespace vecbank::cpu::int16 {

constexpr int64_t kLeastWidth = 16;       // below this, converting sums to scores costs what the products save
constexpr int64_t kMostWidth = 1 << 14;   // 0.51 sqrt(d) < 66
constexpr double kQueryTarget = 65400.0;  // norms that codes are scaled to
constexpr double kBankTarget = 32600.0;
constexpr double kQueryNorm = 65500.0;  // norms that no row of codes exceeds; kBankNorm bounds a coordinate too
constexpr double kBankNorm = 32700.0;
static_assert(kQueryNorm * kBankNorm < 2147483647.0 && kBankNorm < 32767.0);

struct Bound {
  float step_per_r, least_step, margin_per_step, margin_per_r;
  VB_INLINE float step(float r) const { return r * step_per_r > least_step ? r * step_per_r : least_step; }
  VB_INLINE float margin(float r) const { return step(r) * margin_per_step + r * margin_per_r; }
};
inline Bound bound_of(int64_t width) {
  const double error = 0.51 * std::sqrt(static_cast<double>(width)) * (1.0 + 0x1p-20);
  Bound b;
  b.step_per_r = static_cast<float>(1.0 / (screen_unit(width) * kBankTarget));  // r_b >= screen_unit |b~|
  b.least_step = 0x1p-110f;
  b.margin_per_step = round_up((error * (kQueryNorm + kBankNorm) + 0x1p-22 * kQueryNorm * kBankNorm) * (1.0 + 0x1p-20));
  b.margin_per_r = round_up(kQueryNorm * (1.0 + 0x1p-20));
  return b;
}

// Two coordinates to an element of int32.
//   panel: [ceil(width / 2)][16] pairs of codes, then float32 lines of steps, margins and starts (core/pack.h)
constexpr int64_t pairs_of(int64_t width) { return (width + 1) / 2; }
constexpr int64_t panel_stride(int64_t width) { return (pairs_of(width) + 3) * kPanel; }
struct Tiles : TileArgs<int32_t> {
  const float* units = nullptr;  // per row, padded to whole groups: score = float(sum) * step + margin + start * unit
};

struct Kernels : ScreenKernels<Tiles> {
  // One group of interleaved rows. `units`: on entry the largest allowed, per row of the group. Both functions may read
  // and write a few elements past the end.
  void (*quantize_queries)(const float* lines, int group, int64_t width, float* units, int32_t* out) = nullptr;
  void (*quantize_panels)(const float* panels, int64_t count, int64_t width, const Bound& bound,
                          int32_t* out) = nullptr;
};

}  // namespace vecbank::cpu::int16
