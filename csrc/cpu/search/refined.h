// Searches without a screen.
#pragma once

#include "../refine.h"
#include "merge.h"

namespace vecbank::cpu {

class RefinedWorker {
 public:
  bool reserve(const SearchProblem& p, int64_t rows, Stop stop);
  // Queries of the task against the bank rows [from, to), into the results, or into slot 1 + part.
  // `allowed`: which of them, null: all.
  void run(const SearchProblem& p, const AllowedRows* allowed, const GridTask& task, Partials* partials);

 private:
  void refine_all(const SearchProblem& p, const GridTask& task);
  void refine_allowed(const SearchProblem& p, const AllowedRows& allowed, const GridTask& task);

  RowReader queries_;
  Refiner refiner_;
  Selector selector_;
  Buffer<double> norms_;
  std::unique_ptr<TopKList[]> lists_;
  int64_t list_count_ = 0, refined_ = 0;
};

// Scores every pair in float64; p.pack is not read. `alone`: the worker of a call with one thread, if there is one
// already.
Status search_refined(const SearchProblem& p, const Parallel& parallel, RefinedWorker* alone = nullptr,
                      const AllowedRows* allowed = nullptr);

}  // namespace vecbank::cpu
