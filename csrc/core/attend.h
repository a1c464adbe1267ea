// Sums of rows weighted by the softmax of their dot products with a query, and the gradients of these sums.
//
// With z[i][j] = beta[i] * queries[i] . bank[j] / log(2): lse[i] = log2(sum of 2^z[i][j]), and out[i] = the sum of
// 2^(z[i][j] - lse[i]) * values[j], over the rows j that query i may be given. Where there is none: -inf, and zeros.
// Powers of two, so that the largest z[i][j] is in lse as it is, and its weight is the same on the way back.
// Everything is float32, but for lse. The order of sums depends on the sizes and the instruction set alone.
#pragma once

#include "allowed.h"
#include "types.h"

namespace vecbank {

struct AttendProblem {
  Rows queries, bank;  // not of float64
  Rows values;         // as many as the bank's
  bool summed = true;  // else lse alone is wanted, and there are no values
  const float* beta = nullptr;
  const Allowed* allowed = nullptr;
  float* out = nullptr;  // [queries][values' width]
  double* lse = nullptr;
};

struct AttendGradientProblem {
  AttendProblem forward;          // its lse is an input, its out is not read
  Rows grad;                      // of out, if there are values
  const float* along = nullptr;   // [queries]: grad[i] . out[i] less the gradient of lse[i] log(2)
  float* grad_queries = nullptr;  // [queries][width]; null here and below: not wanted
  float* grad_bank = nullptr;     // [bank rows][width]
  float* grad_values = nullptr;   // [bank rows][values' width]
  float* grad_beta = nullptr;     // [queries]
};

}  // namespace vecbank
