// Late interaction: a query and a document are sets of rows ("tokens"), and the score of the two is the sum, over the
// query's tokens, of the best score among the document's tokens.
//
// The exact score: the key of each pair of tokens (exact_score.h) is a float64 number; the best of a document is its
// largest key, of equal ones that of the lower token, and NaN where one of them is NaN. It becomes a value, negated for
// distances, and the values are added in the order of the query's tokens. Documents are ordered by (score, lower
// number).
#pragma once

#include "allowed.h"
#include "metric.h"

namespace vecbank {

// Set s is rows [offsets[s], offsets[s + 1]).
struct RowSets {
  Rows rows;
  const int64_t* offsets = nullptr;  // [count + 1], from 0 to rows.count, never falling
  int64_t count = 0;
  int64_t size(int64_t s) const { return offsets[s + 1] - offsets[s]; }
};

// Codes of the documents' tokens (cpu/maxsim_codes.h), made by maxsim_pack().
struct MaxSimCodes {
  const uint8_t* codes = nullptr;  // [tokens][width, rounded up to a multiple of 4]; null: there are none
  const float* facts = nullptr;    // [documents][step | error | norm]
};

struct MaxSimProblem {
  RowSets queries, documents;
  Metric metric = Metric::dot;
  const int64_t* listed = nullptr;   // [queries][k] documents, -1 for none, instead of all; of maxsim_pairs()
  int64_t k = 0;                     // of maxsim_pairs() and maxsim_topk()
  const Allowed* allowed = nullptr;  // of maxsim_topk(): the documents that a query may be given; null: all
  void* values = nullptr;            // [queries][documents, or k]
  DType values_dtype = DType::f64;   // f32 is for maxsim() alone
  int64_t* best = nullptr;           // [query tokens][documents, or k]: the best row, -1 where there is none; null
  MaxSimCodes codes;                 // of maxsim_topk()
  int64_t* found = nullptr;          // of maxsim_topk(): [queries][k] documents, -1 where there is none
};

}  // namespace vecbank
