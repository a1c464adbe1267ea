// All bank rows within a radius of each query.
#pragma once

#include "search.h"

namespace vecbank::cpu {

// The rows that were found, in no order.
struct Hit {
  double key;
  int64_t query, index;
};

// The hits of each worker, and how many each query has.
class Hits {
 public:
  Hits(int64_t workers, int64_t queries) : lists_(workers), queries_(queries) {}

  bool reserve() {
    if (!counts_.reserve(queries_)) return false;
    for (int64_t q = 0; q < queries_; ++q) new (&counts_[q]) std::atomic<int64_t>(0);
    return lists_.each([](List&) { return true; });
  }
  void count(int64_t query, int64_t more) { counts_[query].fetch_add(more, std::memory_order_relaxed); }
  void add(int worker, const Hit& hit);

  int64_t queries() const { return queries_; }
  int64_t of(int64_t query) const { return counts_[query].load(std::memory_order_relaxed); }
  bool complete() const { return !lost_; }

  // Writes the hits in order of query, the best first in each. `offsets`: [queries + 1], filled in.
  Status write(Metric metric, const int64_t* offsets, int64_t* indices, void* values, DType values_dtype,
               const Parallel& parallel);
  // The same of hits whose keys are the negatives of whole numbers.
  Status write_whole(const int64_t* offsets, int64_t* indices, int32_t* values, const Parallel& parallel);

 private:
  // Calls f(i, hit) for the hit in place i.
  template <class F>
  Status in_order(const int64_t* offsets, const Parallel& parallel, F&& f);
  struct List {
    Buffer<Hit> hits;
    int64_t count = 0, room = 0;
  };
  PerWorker<List> lists_;
  Buffer<std::atomic<int64_t>> counts_;
  int64_t queries_;
  std::atomic<bool> lost_{false};  // there was no memory for some hits
};

// p.k stays 1; p.values and p.indices are not read. radii: of each query. `count_only`: hits are counted, not kept.
Status find_within(const SearchProblem& p, const double* radii, bool count_only, Hits& hits, const Parallel& parallel);

}  // namespace vecbank::cpu
