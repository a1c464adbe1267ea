// Gathers and deterministic scatter-adds, which decode and update a codebook.
#pragma once

#include "metric.h"

namespace vecbank {

enum class Reduce : int32_t { none = 0, sum = 1, mean = 2 };

struct LookupProblem {
  const int64_t* codes = nullptr;  // [count][k], contiguous; k is 1 for Reduce::none
  int64_t count = 0, k = 1;
  Rows bank;
  const void* weights = nullptr;  // [count][k] in the bank's dtype; null: ones
  Reduce reduce = Reduce::none;
  void* out = nullptr;  // [count][width] in the bank's dtype
};

// The order of every float64 sum of rows by code: of segment_sum(), and of the bank's gradient through selected pairs.
// Member i of a code (a position in `codes`) belongs to source row i / k, and to block (i / k) / kSumBlock: blocks lie
// at absolute rows. Within a block, the members of a code are added up from zero in ascending order of position; then
// the blocks' sums p are added up from zero in ascending order, t = t + p. A block without a member of this code is
// left out. Products are rounded before they are added, never fused, and the last t is rounded to the output
// (to 16 bits by way of float32).
// Neither threads, nor the instruction set, nor the device change this order. When several processes share the rows,
// each with whole blocks, they get the same bits if they add up the p of all blocks in ascending order: a process may
// go on from the t of the one before it, or send its p.
constexpr int64_t kSumBlock = 1024;

// out[c] = the sum of weight[i] * source[i / k] over all i with codes[i] == c; code -1 is skipped.
struct SegmentSumProblem {
  const int64_t* codes = nullptr;  // [count], contiguous
  int64_t count = 0, k = 1;        // source has count / k rows
  int64_t segments = 0;
  Rows source;
  const void* weights = nullptr;  // [count] in weights_dtype; null: ones
  DType weights_dtype = DType::f32;
  DType out_dtype = DType::f32;
  void* out = nullptr;      // [segments][width]
  float* counts = nullptr;  // [segments]: members of each; null: not wanted
};

// The mean squared distance between rows and their quantised rows, over the rows that have a code. Where `keep` is
// false, the row's code becomes -1 and its quantised row becomes the row itself.
struct QuantizeLossProblem {
  Rows x;
  int64_t* codes = nullptr;  // [x rows]
  Rows quantized;            // written where keep is false
  const bool* keep = nullptr;
  double squares = 0.0;  // out: summed in a fixed order
  int64_t valid = 0;     // out: rows that counted
};

// The gradient of topk's values with respect to queries and bank, through the selected pairs.
struct PairProblem {
  Rows queries, bank;
  const int64_t* indices = nullptr;  // [queries][k]; -1: no pair
  const void* grad = nullptr;        // [queries][k], f32 or f64
  DType grad_dtype = DType::f32;
  int64_t k = 1;
  Metric metric = Metric::dot;
  void* grad_queries = nullptr;  // [queries][width] in the queries' dtype; null: not wanted
  void* grad_bank = nullptr;     // [bank][width] in the bank's dtype; null: not wanted
};

// out[i][t] = x[i] . bank[codes[i][t]]; 0 where the code is -1. This is the gradient of lookup's weights.
struct LookupDotProblem {
  const int64_t* codes = nullptr;  // [x rows][k]
  int64_t k = 1;
  Rows x, bank;
  void* out = nullptr;  // [x rows][k] in the bank's dtype
};

}  // namespace vecbank
