// Several codebooks for one vector: a cascade, each on what the ones before it left over; or side by side, each on a
// part of the vector.
#pragma once

#include <vector>

#include "pack.h"
#include "types.h"

namespace vecbank {

struct PackedBook {
  Rows bank;  // float32 or float64, the same for all of them
  const PackHeader* pack = nullptr;
};

// r_0 = x; code_s = the row of bank s nearest to r_s; r_{s+1} = r_s - row, rounded to the banks' dtype.
struct ResidualProblem {
  Rows queries;  // of any dtype, as wide as the banks
  std::vector<PackedBook> stages;
  Metric metric = Metric::sqeuclidean;
  int64_t* codes = nullptr;   // [queries][stages]; -1: no valid row, and what was left over is NaN
  void* quantized = nullptr;  // [queries][width] in the banks' dtype: the stages' rows, added in their order
  double* squares = nullptr;  // [stages]: sum of |r_{s+1}|^2 over the rows with a code, in a fixed order
  int64_t* valid = nullptr;   // [stages]: how many those are
};

// code_p = the row of book p nearest (squared Euclidean) to columns [p w, (p + 1) w); all books are w wide.
struct ProductProblem {
  Rows queries;
  std::vector<PackedBook> books;
  int64_t* codes = nullptr;  // [queries][books]; -1: no valid row
};

}  // namespace vecbank
