// The problems that the kernels solve: plain views of the inputs, and plain pointers to the outputs.
#pragma once

#include "allowed.h"
#include "metric.h"
#include "pack.h"

namespace vecbank {

struct SearchProblem {
  Rows queries, bank;
  const PackHeader* pack = nullptr;  // null: packed on the fly, a bounded piece at a time
  Metric metric = Metric::dot;
  int64_t k = 1;
  const double* bias = nullptr;  // [bank rows], added to dot products; null: none. A pack must be of the same bias
  Mask mask;
  const Allowed* allowed = nullptr;  // on the CPU, in place of a mask
  void* values = nullptr;            // [queries][k] in values_dtype (f32 or f64); null: not wanted
  bool keys = false;                 // the keys instead of values, in f64
  DType values_dtype = DType::f32;
  int64_t* indices = nullptr;  // [queries][k]
  void* gathered = nullptr;    // [queries][width] in the bank's dtype: the best row itself; null: not wanted
};

struct ProjectProblem {
  Rows queries, bank;
  const PackHeader* pack = nullptr;
  Metric metric = Metric::cosine;
  void* out = nullptr;  // [queries][bank rows], contiguous
  DType out_dtype = DType::f32;
  int64_t out_columns = 0;           // set by project()
  bool exact = false;                // the refined float64 scores, rounded once
  const int64_t* indices = nullptr;  // with exact: [queries][k] bank rows instead of all; -1 scores 0
  int64_t k = 0;
};

// The gradient of project()'s result with respect to queries and bank. All sums run in float32.
struct ProjectGradientProblem {
  Rows queries, bank;  // not of float64; col_stride must be 1
  Rows grad;           // [queries][bank rows], of any type and strides
  Metric metric = Metric::cosine;
  void* grad_queries = nullptr;  // [queries][width] in the queries' dtype; null: not wanted
  void* grad_bank = nullptr;     // [bank rows][width] in the bank's dtype; null: not wanted
};

}  // namespace vecbank
