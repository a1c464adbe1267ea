// A block of queries against a part of a bank: which rows these are, and the block as screens see it.
#include "screens/screen.h"

namespace vecbank::cpu {

SearchTask::SearchTask(const SearchJob& j, const GridTask& t)
    : job(&j), first(t.first), rows(t.rows), from(t.from), to(t.to), part(t.part) {
  begin = from * kPanel;
  end = std::min(j.header.rows, to * kPanel);
  const int64_t one = j.header.first_negligible;
  if (j.header.negligible > 1 && one >= begin && one < end) negligible = one;
}

const bool* SearchTask::allowed(int64_t row, int64_t* stride) const {
  const Mask& mask = job->problem.mask;
  *stride = mask.col_stride;
  return mask.data == nullptr ? nullptr : mask.row(first + row) + job->offset * mask.col_stride;
}

bool ScreenQueries::reserve(const SearchProblem& p, const SearchPlan& plan) {
  const int64_t most = plan.grid.rows_per_block;
  return packed.reserve(p.queries, most, plan.group) && norms.reserve(most) && slacks.reserve(most);
}

void ScreenQueries::pack(const SearchTask& task) {
  const SearchProblem& p = task.job->problem;
  const PackHeader& h = task.job->header;
  rows = task.rows;
  packed.pack(p.queries, h, task.first, rows);
  // Of every screen of a pack with a head, because parts of a bank share their thresholds.
  const double turned = h.head > 0 ? 1.0 + std::sqrt(static_cast<double>(h.width)) : 1.0;
  int known = packed.frame(0).exponent;
  QuerySlack slack = query_slack(p.metric, h.width, known, h.exponent);
  for (int64_t r = 0; r < rows; ++r) {
    const QueryFrame& frame = packed.frame(r);
    if (frame.exponent != known) slack = query_slack(p.metric, h.width, known = frame.exponent, h.exponent);
    norms[r] = above(frame.packed);
    slacks[r] = slack.at(frame.packed) * turned;
  }
}

}  // namespace vecbank::cpu
