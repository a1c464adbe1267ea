// Searches without a screen.
#pragma once

#include "../refine.h"
#include "merge.h"

namespace vecbank::cpu {

// Calls f(query, keys, count, row) for runs of the bank rows of [task.from, task.to) that the task's queries may be
// given, in ascending order, where row(i) is the index of key i. A set that all queries share is listed once for all of
// them. Returns how many pairs there were. The refiner knows the metric; `queries` reads p.queries.
template <class F>
int64_t for_each_allowed_run(const SearchProblem& p, const AllowedRows& allowed, Refiner& refiner,
                             const RowReader& queries, const GridTask& task, F&& f) {
  int64_t refined = 0;
  const bool masked = allowed.any_set();
  const int64_t end = task.first + task.rows, together = masked && !allowed.shared() ? 1 : task.rows;
  for (int64_t q = task.first; q < end; q += together) {
    for (int64_t at = task.from, count; at < task.to;) {
      const int64_t begin = at;
      if (masked)
        count = allowed.list(q, &at, task.to, Refiner::kBlock, refiner.indices());
      else
        at += count = std::min(Refiner::kBlock, task.to - at);
      for (int64_t r = q; r < q + together && count > 0; r += refiner.slots()) {
        const int slots = static_cast<int>(std::min<int64_t>(refiner.slots(), q + together - r));
        refiner.load_rows(queries, p.queries, r, slots);
        refiner.for_each_run(slots, masked ? refiner.indices() : nullptr, begin, count,
                             [&](int s, const double* keys, int64_t n, auto&& row) { f(r + s, keys, n, row); });
        refined += slots * count;
      }
    }
  }
  return refined;
}

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
