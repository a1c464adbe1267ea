// What both paths of project share: the last step of a score, and the fallback rows and columns.
#pragma once

#include "rows.cuh"

namespace vecbank::cuda {

template <class T>
VB_INLINE T last_step(T v, Finish finish) {
  if (finish != Finish::linear) v = v < 0 ? T(0) : v;  // keeps NaN
  return finish == Finish::rooted ? sqrt(v) : v;
}

// Scores one row in float64, eight lanes a score, for those of its `columns` columns that `wanted_at` names. Column 0
// is bank row `first_column`. All threads of the block take part.
template <class Wanted, class Write>
__device__ __forceinline__ void rescore_row(const Rows& queries, int64_t row, const Rows& bank, int64_t first_column,
                                            int64_t columns, Metric metric, Wanted&& wanted_at, Write&& write) {
  constexpr int groups = kThreads / kLanes;
  const MetricRecord m = record(metric);
  const int lane = threadIdx.x % kLanes;
  const double query_norm = m.scaled_rows() ? row_factor(m, sum_of_8(self_lane(queries, row, lane))) : 1.0;
  for (int64_t base = 0; base < columns; base += groups) {
    const int64_t column = base + threadIdx.x / kLanes, j = first_column + column;
    const bool wanted = column < columns && wanted_at(column);
    if (!__any_sync(kAllLanes, wanted)) continue;
    const double raw = sum_of_8(wanted ? pair_lane(queries, row, bank, j, lane, m.term) : 0.0);
    const double bank_norm = m.scaled_rows() ? row_factor(m, sum_of_8(wanted ? self_lane(bank, j, lane) : 0.0)) : 1.0;
    if (wanted && lane == 0) write(column, value_of(metric, key_of(metric, raw, query_norm, bank_norm)));
  }
}

}  // namespace vecbank::cuda
