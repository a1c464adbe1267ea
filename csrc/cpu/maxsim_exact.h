// Exact scores of sets of rows, in float64: the last word on every answer (core/maxsim.h says what they are).
#pragma once

#include <cmath>

#include "../core/maxsim.h"
#include "refine.h"

namespace vecbank::cpu {

class ExactSets {
 public:
  bool reserve(const MaxSimProblem& p, Stop stop) {
    problem_ = &p;
    stop_ = stop;
    record_ = record(p.metric);
    if (!refiner_.reserve(p.documents.rows, p.documents.rows.width)) return false;
    refiner_.set_metric(p.metric, nullptr);
    refiner_.set_stop(stop);
    return reader_.reserve(p.queries.rows, refiner_.slots());
  }

  // The scores of `count` documents, the first of which is number document(0), with one query; of -1 and of an empty
  // document -inf. `best`: of the query's first token and the first document; the documents of one token lie side by
  // side, and the next token's `stride` further; null: not wanted.
  template <class DocumentOf>
  void score(int64_t query, int64_t count, DocumentOf&& document, double* out, int64_t* best, int64_t stride) {
    const RowSets &queries = problem_->queries, &documents = problem_->documents;
    const auto none = [&](int64_t d) { return d < 0 || documents.size(d) == 0; };
    for (int64_t i = 0; i < count; ++i) out[i] = none(document(i)) ? -HUGE_VAL : 0.0;
    const int64_t first = queries.offsets[query], size = queries.size(query);
    for (int64_t at = 0; at < size && !stop_.requested(); at += refiner_.slots()) {
      const int slots = static_cast<int>(std::min<int64_t>(refiner_.slots(), size - at));
      refiner_.load_rows(reader_, queries.rows, first + at, slots);
      for (int64_t i = 0; i < count && !stop_.requested(); ++i) {
        const int64_t d = document(i);
        Best found[Refiner::kMostQueries];
        if (!none(d)) find(slots, documents.offsets[d], documents.size(d), found);
        for (int s = 0; s < slots; ++s) {
          if (!none(d)) out[i] += value_of(found[s].key);
          if (best != nullptr) best[(at + s) * stride + i] = none(d) ? -1 : found[s].row;
        }
      }
    }
  }

 private:
  struct Best {
    double key = -HUGE_VAL;
    int64_t row = -1;
  };
  void find(int slots, int64_t begin, int64_t size, Best* found) {
    for (int s = 0; s < slots; ++s) found[s] = {-HUGE_VAL, begin};
    refiner_.for_each_run(slots, nullptr, begin, size, [&](int s, const double* keys, int64_t n, auto&& row) {
      Best best = found[s];
      for (int64_t i = 0; i < n && !std::isnan(best.key); ++i)
        if (!(keys[i] <= best.key)) best = {keys[i], row(i)};  // a NaN as well
      found[s] = best;
    });
  }
  double value_of(double key) const {
    const double value = vecbank::value_of(record_, key);
    return record_.smaller_is_better ? 0.0 - value : value;
  }

  const MaxSimProblem* problem_ = nullptr;
  MetricRecord record_ = record(Metric::dot);
  Refiner refiner_;
  RowReader reader_;
  Stop stop_;
};

}  // namespace vecbank::cpu
