// Scores that float32 cannot hold, or lost digits of, among those that a product wrote: they are scored in float64.
#pragma once

#include "reader.h"
#include "refine.h"

namespace vecbank::cpu {

// One over the norms of rows [first, first + count), as Kernels::norm_scales gives them.
inline void norm_scales(const Rows& rows, const RowReader& reader, int64_t first, int64_t count, float* scales) {
  constexpr int64_t kTogether = 64;
  double squares[kTogether];
  float found[kTogether];  // the scales that follow may be another worker's
  for (int64_t at = first; at < first + count; at += kTogether, scales += kTogether) {
    const int64_t some = std::min(kTogether, first + count - at);
    self_squares(rows, reader, nullptr, at, some, squares);
    kernels().norm_scales(squares, some, found);
    std::copy_n(found, some, scales);
  }
}

class OddScores {
 public:
  bool reserve(const ProjectProblem& p, Stop stop) {
    stop_ = stop;
    return queries_.reserve(p.queries, Refiner::kQueries);
  }

  // Of queries [row, row + count), at most Refiner::kQueries, and bank rows [from, to): those pairs for which
  // odd(q, column) is true. False: no memory.
  template <class Odd>
  [[nodiscard]] bool rescore(const ProjectProblem& p, int64_t row, int count, int64_t from, int64_t to, Odd&& odd) {
    if (!refiner_.reserve(p.bank, p.bank.width)) return false;
    const MetricRecord metric = record(p.metric);
    refiner_.set_metric(p.metric, nullptr);
    refiner_.set_stop(stop_);
    refiner_.load_rows(queries_, p.queries, row, count);
    int64_t listed = 0;
    const auto flush = [&] {
      refiner_.for_each_key(count, refiner_.indices(), 0, listed, [&](int q, double key, int64_t j) {
        if (!odd(q, j)) return;
        with_dtype(p.out_dtype, [&](auto type) {
          narrow(value_of(metric, key), static_cast<Element<decltype(type)>*>(p.out) + (row + q) * p.out_columns + j);
        });
      });
      listed = 0;
    };
    for (int64_t j = from; j < to && !stop_.requested(); ++j) {
      bool any = false;
      for (int q = 0; q < count; ++q) any |= odd(q, j);
      if (!any) continue;
      refiner_.indices()[listed++] = j;
      if (listed == Refiner::kBlock) flush();
    }
    if (listed > 0) flush();
    return true;
  }

 private:
  RowReader queries_;
  Refiner refiner_;
  Stop stop_;
};

}  // namespace vecbank::cpu
