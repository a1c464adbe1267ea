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
  // `negligible_may_win`: the first negligible row may be the best. `bounds_of(key)`: the bounds of a refined score.
  // `worst`: the key of the k-th best, where that many were refined.
  template <class BoundsOf>
  bool finalize_row(int64_t row, Candidate* candidates, int64_t count, bool negligible_may_win, BoundsOf&& bounds_of,
                    double* worst) {
    const SearchProblem& p = task_->job->problem;
    if (task_->job->header.far > 0 && !beats_far(candidates, count)) return false;
    if (count == 1 && p.values == nullptr && task_->job->partial == nullptr && candidates[0].upper < HUGE_VALF &&
        !negligible_may_win) {
      const Scored only{0.0, task_->begin + candidates[0].place()};  // the caller wants no score
      task_->report(row, &only, 1);
      return true;
    }
    load(row);
    // The best bounds are refined first, and then what the k-th best of these scores does not rule out.
    int64_t kept = 0;
    if (count > p.k + p.k / 2 + 4) {
      const int64_t first = p.k + 2;
      std::nth_element(candidates, candidates + first, candidates + count,
                       [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
      kept = refine(candidates, first, kept);
      if (kept >= p.k) {
        std::nth_element(refined_.get(), refined_.get() + (p.k - 1), refined_.get() + kept, better);
        const float threshold = bounds_of(refined_[p.k - 1].key).lower;
        count = std::remove_if(candidates + first, candidates + count,
                               [threshold](const Candidate& c) { return c.upper < threshold; }) -
                candidates;
      }
      candidates += first;
      count -= first;
    }
    kept = refine(candidates, count, kept);
    if (negligible_may_win && !add_negligible(row, &kept)) return false;
    kept = selector_.best(refined_.get(), kept, p.k);
    if (kept == p.k) *worst = refined_[kept - 1].key;
    task_->report(row, refined_.get(), kept);
    return true;
  }

  // Gives every candidate that has not been refined yet the bounds of its refined score. A score that is NaN never
  // wins.
  template <class BoundsOf>
  void tighten(int64_t row, Candidate* candidates, int64_t count, BoundsOf&& bounds_of) {
    load(row);
    Candidate* at = candidates;
    const Candidate* end = candidates + count;
    while (at < end) {
      Candidate* first = at;
      int64_t n = 0;
      for (; at < end && n < Refiner::kBlock; ++at)
        if (!at->refined()) refiner_.indices()[n++] = task_->begin + at->column;
      refiner_.for_each_key(1, refiner_.indices(), 0, n, [&](int, double key, int64_t) {
        while (first->refined()) ++first;
        const Candidate bounds = std::isnan(key) ? Candidate{-HUGE_VALF, -HUGE_VALF, 0} : bounds_of(key);
        *first = {bounds.upper, bounds.lower, ~first->column};
      });
      refined_count_ += n;
    }
  }

  // Refines rows of the block against every bank row of the part, and reports them.
  void refine_all(const int64_t* rows, int64_t count);

  int64_t refined() const { return refined_count_; }  // rows scored since begin()

 private:
  void load(int64_t row) { refiner_.load(0, original_.row(task_->first + row), task_->job->problem.queries.dtype); }
  int64_t refine(const Candidate* candidates, int64_t count, int64_t kept);
  bool beats_far(const Candidate* candidates, int64_t count) const;
  bool add_negligible(int64_t row, int64_t* kept);
  void refine_chosen(int list, int slots, bool apart, int64_t masked_row);
  void refine_together(const int64_t* rows, int slots);

  const SearchTask* task_ = nullptr;
  Refiner refiner_;
  RowReader original_;
  Buffer<Scored> refined_;
  Selector selector_;
  TopKList lists_[Refiner::kQueries];
  int slots_ = 1;
  int64_t refined_count_ = 0;
};

}  // namespace vecbank::cpu
