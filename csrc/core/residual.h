// Several codebooks for one vector: in a cascade, each quantises the residual of the ones before it; side by side, each
// quantises a part of the vector.
#pragma once

#include <vector>

#include "pack.h"
#include "types.h"

namespace vecbank {

struct PackedCodebook {
  Rows bank;  // float32 or float64, the same for all codebooks
  const PackHeader* pack = nullptr;
};

// r_0 = x; code_s = the row of bank s nearest to r_s; r_{s+1} = r_s - row, rounded to the banks' dtype.
struct ResidualProblem {
  Rows queries;  // of any dtype, as wide as the banks
  std::vector<PackedCodebook> stages;
  Metric metric = Metric::sqeuclidean;
  int64_t* codes = nullptr;   // [queries][stages]; -1: no valid row, and the residual becomes NaN
  void* quantized = nullptr;  // [queries][width] in the banks' dtype: the stages' rows, added in their order
  double* squares = nullptr;  // [stages]: sum of |r_{s+1}|^2 over the rows with a code, in a fixed order
  int64_t* valid = nullptr;   // [stages]: the number of these rows
};

// code_p = the row of codebook p nearest (squared Euclidean) to columns [p w, (p + 1) w); all codebooks are w wide.
struct ProductProblem {
  Rows queries;
  std::vector<PackedCodebook> codebooks;
  int64_t* codes = nullptr;  // [queries][codebooks]; -1: no valid row
};

}  // namespace vecbank
