// Sums of slopes, of which the gradient of project() is made: the arguments of the loops in slopes.inl.h.
#pragma once

#include "../core/metric.h"

namespace vecbank::cpu {

constexpr float kLeastSquare = 1e-30f;  // below it a float32 sum of squares may have lost some
constexpr int64_t kSlopeStep = 16;      // rows are padded with zeros to a multiple of this

// sums[r] = the sum over the others o of weight[r][o] * slope_of(term, rows[r], others[o]). Or, of distances, the sum
// of (weight[r][o] - others[o])^2: where the weights of a row are its coordinates, and each other holds one coordinate
// of kPanel bank rows, these are its squared distances to them. (The rows are not read then.)
struct SlopeArgs {
  Term term = Term::product;
  bool distances = false;
  int64_t width = 0;  // of all rows, a multiple of kSlopeStep
  const float *rows = nullptr, *others = nullptr;
  int64_t row_stride = 0, other_stride = 0;
  int64_t count = 0, other_count = 0;
  const float* weights = nullptr;
  int64_t weight_row = 0, weight_other = 0;  // from the weight of a row to that of the next; of another one
  bool begins = true;                        // else the sums go on
  float* sums = nullptr;
  int64_t sum_stride = 0;
};

// The last step of a sum: from the gradient of a unit row to that of the row itself, less the part along the row, and
// the factor that all have.
struct SlopeEndArgs {
  float factor = 1.0f;
  int64_t width = 0, count = 0;
  const float* units = nullptr;  // null: the rows are no unit rows
  int64_t unit_stride = 0;
  const float *inverse = nullptr, *alive = nullptr;  // one over each norm; 0 where that is a constant, else 1
  float* sums = nullptr;
  int64_t sum_stride = 0;
};

}  // namespace vecbank::cpu
