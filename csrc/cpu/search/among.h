// The queries of a search among candidate sets: how many rows each may be given, and which are given so few that these
// are refined rather than screened.
#pragma once

#include "refined.h"

namespace vecbank::cpu {

class Among {
 public:
  // p.queries are those of `allowed`. A set that all queries share is counted once.
  [[nodiscard]] Status begin(const SearchProblem& p, const AllowedRows& allowed, const Parallel& parallel);

  double mean() const { return mean_; }  // of the rows that a query may be given
  // Sets queries apart that are faster refined; of a set for all there are none, as the search goes one way.
  [[nodiscard]] bool set_apart(const SearchProblem& p);

  const float* expected() const { return expected_.get(); }
  const bool* apart() const { return few_count_ > 0 ? apart_.get() : nullptr; }
  bool all_apart() const { return few_count_ == queries_; }
  // All queries, or those that are apart.
  RefinedSets sets() const;
  RefinedSets few() const;

 private:
  AllowedRows allowed_;
  int64_t queries_ = 0, bank_rows_ = 0, row_bytes_ = 0, few_count_ = 0;
  double mean_ = 0.0, few_mean_ = 0.0;
  Buffer<float> expected_;
  Buffer<bool> apart_;
  Buffer<int64_t> few_;
};

}  // namespace vecbank::cpu
