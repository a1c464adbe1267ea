// The int8 screen: queries and bank rows as 8 bit codes, products summed in int32, which is exact. It has a quarter of
// the bytes of float32, and up to four times the products a second. This file has the constants, the proof and the
// layout, int8.inl.h the loops, int8.cpp the driver.
//
// With the names of core/bounds.h: a packed query is x~ = (xi + e_x) / unit, and a packed bank row b~ = (beta + e_b)
// step, where xi and beta are whole numbers. Then
//     unit <x~, b~> / step = <xi, beta> + <xi, e_b> + <e_x, b~ / step>,
// and by Cauchy and Schwarz the last two are at most
//     margin = C |e_b| + E n,    C >= |xi|, E >= |e_x|, n >= |b~| / step,
// with C and E the largest of the block of queries. |e_b| and n are measured when a row is coded, not assumed, and
// stored rounded up. The accumulators start at the margin, rounded up, less the code sum that undoes the queries'
// offset, so that a sum is an upper bound in units of step / unit without further arithmetic.
// Everything else that can be off is in proportion to something measured, and is added to it:
//   |e_b|   r_b / step, for the float32 rounding of packed rows and the refinement's rounding (core/bounds.h), and
//           kRounding n: scaling a row in float32 before it is rounded, a step that is rounded, and the sum's
//           conversion to float32 and product with the step, each at most 2^-23 of C n
//   n       r_b / step too, since |unit x~| <= C + E
//   E       kRounding C, for scaling the query
//   start   beta_b of core/bounds.h, and kRounding |start| for three float32 roundings
// The norms are sums of squares in float32, each within a relative (d + 4) 2^-24.
//
// A sum can be off by the margin in either direction, and the margin is rounded up by less than two steps, so the lower
// bound lies 2 (margin + 2) steps below the upper one, and for the start twice (screen_unit + kRounding) |start| more.
//
// A coordinate that is much larger than the others would leave them few levels. Where a sample of the bank shows that,
// rows and queries are rotated before they are coded: signs that look random, then Hadamard transforms of windows of
// 4^j coordinates, which are orthogonal and need additions alone. Rounding moves a row by at most 2^-24 of its norm a
// stage, and a coordinate passes through at most 20 stages: kRotation covers them, and is added to kRounding.
#pragma once

#include <algorithm>

#include "../../../core/bounds.h"
#include "../../tiles.h"

namespace vecbank::cpu::int8 {

constexpr int64_t kLeastWidth = 24;      // below this, converting sums to scores costs what the products save
constexpr int64_t kMostWidth = 1 << 15;  // 255 * 127 * 2^15 + 2^30 < 2^31
constexpr double kNormPerRoot = 42.0;    // queries are scaled to codes of the norm 42 sqrt(d), or less
constexpr double kMostUnit = 0x1p40;     // with this limit a unit times a start stays finite
constexpr int32_t kBlankSum = 1 << 23;   // the code sum of rows that never, or always, survive

constexpr double kRounding = 0x1p-20, kRotation = 0x1p-19;
constexpr int64_t kWidestWindow = 1024;
inline double rounding_of(const PackHeader& h) { return kRounding + (h.rotated != 0 ? kRotation : 0.0); }

// Norms are stored rounded up: n in the upper 16 bits, |e_b| in the lower ones, in units of 1 / kErrorUnit. A row
// whose norms do not fit is refined for every query.
constexpr float kErrorUnit = 512.0f;
constexpr double kMostError = 65534.0 / 512.0, kMostNorm = 32766.0;
inline bool serves(int64_t width, Metric metric) { return width >= 1 && width <= kMostWidth && !refined_only(metric); }

// A panel of core/pack.h: [groups][16] four codes each, then lines [16] of the step (float32), the code sum (int32),
// the two norms (int32), and the start (float32) where the metric or a bias has one. Panels of heads (head.h) always
// have a start, and then a line of tails (float32).
struct Layout {
  int64_t width, groups, lines;  // `width`: of the panels, in coordinates

  Layout(int64_t d, Metric metric, bool biased, int64_t head = 0)
      : width(head > 0 ? head : d), groups(code_groups(width)), lines(code_lines(metric, biased, head)) {}
  explicit Layout(const PackHeader& h) : Layout(h.width, static_cast<Metric>(h.metric), h.biased != 0, h.head) {}
  bool has_starts() const { return lines >= 4; }
  int64_t stride() const { return (groups + lines) * kPanel; }  // elements of int32
};

// Groups of a query's codes, an even number, because products may take two groups at once. The last one is then zero:
// beside it lies a line of the bank's panel that is no code.
inline int64_t query_groups(int64_t width) { return round_up_to(code_groups(width), 2); }

// To a whole number: a float32 sum of this size has no fraction.
VB_INLINE float rounded(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

// A norm times this is at least the exact norm, for any order of the sum.
VB_INLINE double norm_room(int64_t width) { return 1.0 + static_cast<double>(width + 16) * 0x1p-24; }

struct Tiles : TileArgs<int32_t> {
  static constexpr bool has_starts = true, has_tails = false;
  const float* units = nullptr;  // per row, padded to whole groups: score = float(sum) * step + start * unit
  const float* tails = nullptr;  // of heads, padded alike: tail * tails is added
};
struct StartlessTiles : Tiles {
  static constexpr bool has_starts = false;  // score = float(sum) * step
};
struct HeadTiles : Tiles {
  static constexpr bool has_tails = true;
};
struct StartlessHeadTiles : HeadTiles {
  static constexpr bool has_starts = false;
};

// What a block of queries brings to the margin: C and E of the proof.
struct QueryNorms {
  float codes = 0.0f, errors = 0.0f;
};

// The largest query code next to this largest bank code. Queries are offset by one more, to be unsigned.
inline int32_t query_code(int32_t bank_code, int32_t product_limit) {
  return std::min(127, (product_limit / bank_code - 1) / 2);
}

struct Kernels {
  ScreenKernels<Tiles> with_starts;
  ScreenKernels<StartlessTiles> without;
  ScreenKernels<HeadTiles> heads_with_starts;
  ScreenKernels<StartlessHeadTiles> heads;
  int32_t bank_code = 0;      // the largest code of a bank row that is packed here
  int32_t product_limit = 0;  // of a query's largest code times the bank's, so that no product saturates
  int64_t least_rows = 0;     // of a bank for which this screen is faster than the others
  // One group of interleaved rows, in lines that are `stride` wide. `units`: on entry the largest allowed, per row of
  // the group. `norms` grows. All of these functions may read and write a few elements past the end.
  void (*quantize_queries)(const float* lines, int64_t stride, int group, int64_t width, int32_t most, double rounding,
                           float* units, QueryNorms* norms, int32_t* out) = nullptr;
  // One panel of coordinates, which may have been rotated; `bound` and `upper`: the last lines of its float32 panel.
  void (*quantize_panel)(const float* coordinates, const float* bound, const float* upper, const Layout& layout,
                         int32_t most, double rounding, int32_t* out) = nullptr;
  // Copies lines of at most 16 lanes to lines of 16, and rotates them.
  void (*rotate)(const float* lines, int64_t stride, int64_t width, float* out) = nullptr;
  // What the accumulators of so many panels start from, [panel][16].
  void (*start_sums)(const int32_t* panels, int64_t count, const Layout& layout, int32_t offset, QueryNorms norms,
                     int32_t* out) = nullptr;
  // sum query[i] * codes[i]. `count`: a multiple of 32, past whose codes 31 more bytes may be read.
  int32_t (*tail_product)(const int16_t* query, const int8_t* codes, int64_t count) = nullptr;
};

}  // namespace vecbank::cpu::int8
