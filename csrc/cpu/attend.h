// The loops of attend.cpp and attend_gradients.cpp. Queries lie side by side on the lanes, in panels of 16: scores are
// lines of a panel, [bank row][16 queries], so that a maximum or a sum over bank rows needs nothing across lanes, and
// no matrix is ever transposed.
#pragma once

#include "../core/attend.h"
#include "../core/pack.h"

namespace vecbank::cpu {

// A product's rows come in groups of heights that the register tile has: as many of the full height as there are, then
// 8, 4, 2 and 1. A group of a row height h holds [step][h], and begins at (its first row) * (steps).
inline int group_height(int64_t remaining, int full) {
  if (remaining >= full) return full;
  int height = 8;
  while (height > remaining) height /= 2;
  return height;
}

// out[panel][row][lane] = the sum over steps of a(row, step) * b[panel][step][lane], or that much more.
struct LaneProductArgs {
  const float* a = nullptr;  // in groups
  int64_t rows = 0, steps = 0;
  const float* b = nullptr;
  int64_t b_stride = 0;  // between panels, here and below
  int64_t panels = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  bool begins = true;
};

// out[row][column] = the sum over panels and lanes of a[panel][row][lane] * b[16 panel + lane][column], or that more.
struct RowProductArgs {
  const float* a = nullptr;
  int64_t a_stride = 0;
  int64_t rows = 0, panels = 0;
  const float* b = nullptr;
  int64_t b_stride = 0;  // between rows
  int64_t columns = 0;   // a multiple of 16
  float* out = nullptr;
  int64_t out_stride = 0;
  bool begins = true;
};

// The next bank rows of an online softmax, in powers of two: scores become weights exp2(scale * score - most), where
// `most` is the largest of the lane so far; what was summed before is scaled down to that.
struct WeighArgs {
  float* scores = nullptr;  // [panel][row][16]
  int64_t stride = 0;
  int64_t rows = 0, panels = 0;
  const float* scale = nullptr;             // [panel][16], here and below
  float *most = nullptr, *total = nullptr;  // the total of the weights
  float* sums = nullptr;                    // [panel][width][16]; null: none
  int64_t sums_stride = 0, width = 0;
};

// scores become weights w = exp2(scale * score - high - low), and slopes (those of the weights, in place) become
// w * (slope - along). Without slopes these are zeros, and scores become what slopes would.
struct SlopeWeightArgs {
  float *scores = nullptr, *slopes = nullptr;  // [panel][row][16]
  int64_t stride = 0;
  int64_t rows = 0, panels = 0;
  const float *scale = nullptr, *high = nullptr, *low = nullptr, *along = nullptr;  // [panel][16]
};

struct AttendKernels {
  int height = 1;       // of full groups
  int64_t block = 112;  // bank rows of a block: whole groups, and whole words of candidate sets
  void (*lane_product)(const LaneProductArgs&) = nullptr;
  void (*row_product)(const RowProductArgs&) = nullptr;
  void (*weigh)(const WeighArgs&) = nullptr;
  void (*weigh_slopes)(const SlopeWeightArgs&) = nullptr;
};

}  // namespace vecbank::cpu
