// The last step of a search: float64 scores decide among the candidates of the screen, or among all rows.
#pragma once

#include "../refine.h"
#include "search.h"

namespace vecbank::cpu {

class Finalizer {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan);
  void begin(const SearchTask& task);

  // Refines a row's candidates and reports its best k. False: the row must be refined against every bank row.
  // `negligible_may_win`: the first negligible row may be the best.
  bool finalize_row(int64_t row, const Candidate* candidates, int64_t count, bool negligible_may_win);

  // Refines rows of the block against every bank row of the part, and reports them.
  void refine_all(const int64_t* rows, int64_t count);

  int64_t refined() const { return refined_count_; }  // rows scored since begin()

 private:
  bool beats_far(const Candidate* candidates, int64_t count) const;
  bool add_negligible(int64_t row, int64_t* kept);
  template <class F>
  void refine_chosen(int list, int slots, bool apart, F&& allowed);
  void refine_together(const int64_t* rows, int slots);

  const SearchTask* task_ = nullptr;
  Refiner refiner_;
  RowReader original_;
  Buffer<Scored> refined_;
  TopKList lists_[Refiner::kQueries];
  int slots_ = 1;
  int64_t refined_count_ = 0;
};

}  // namespace vecbank::cpu
