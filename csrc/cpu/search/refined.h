// Searches without a screen.
#pragma once

#include "../refine.h"
#include "merge.h"

namespace vecbank::cpu {

constexpr int64_t kMostOfSets = 1024;  // queries with a set each that share what is read of the bank

struct RefinedSets {
  AllowedRows allowed;
  int64_t stretch = 0;  // bank rows that are refined for all queries of a task before the next ones; 0: all
};

// Calls f(query, keys, count, row) for runs of the bank rows of [task.from, task.to) that the task's queries may be
// given, in ascending order, where row(j) is the index of key j. A set that all queries share is listed once for all of
// them. Returns how many pairs there were. The refiner knows the metric; `queries` reads p.queries.
template <class F>
int64_t for_each_allowed_run(const SearchProblem& p, const RefinedSets& sets, Refiner& refiner,
                             const RowReader& queries, const GridTask& task, F&& f) {
  int64_t refined = 0;
  const bool masked = sets.allowed.any_set(), each = masked && !sets.allowed.shared();
  const int64_t end = task.first + task.rows, together = each ? 1 : task.rows;
  const int64_t stretch = each && sets.stretch > 0 ? sets.stretch : task.to - task.from;
  for (int64_t from = task.from; from < task.to; from += stretch) {
    const int64_t to = std::min(task.to, from + stretch);
    for (int64_t i = task.first; i < end && !refiner.stopped(); i += together) {
      for (int64_t at = from, count; at < to;) {
        const int64_t begin = at;
        if (masked)
          count = sets.allowed.list(i, &at, to, Refiner::kBlock, refiner.indices());
        else
          at += count = std::min(Refiner::kBlock, to - at);
        for (int64_t r = i; r < i + together && count > 0; r += refiner.slots()) {
          const int slots = static_cast<int>(std::min<int64_t>(refiner.slots(), i + together - r));
          refiner.load_rows(queries, p.queries, r, slots);
          refiner.for_each_run(slots, masked ? refiner.indices() : nullptr, begin, count,
                               [&](int s, const double* keys, int64_t n, auto&& row) { f(r + s, keys, n, row); });
          refined += slots * count;
        }
      }
    }
  }
  return refined;
}

class RefinedWorker {
 public:
  bool reserve(const SearchProblem& p, int64_t rows, Stop stop);
  // Queries of the task against the bank rows [from, to), into the results, or into slot 1 + part.
  // `sets`: which of them, null: all.
  void run(const SearchProblem& p, const RefinedSets* sets, const GridTask& task, Partials* partials);

 private:
  void refine_all(const SearchProblem& p, const GridTask& task);
  void refine_allowed(const SearchProblem& p, const RefinedSets& sets, const GridTask& task);

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
                      const RefinedSets* sets = nullptr);

}  // namespace vecbank::cpu
