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

int64_t SearchTask::list_allowed(int64_t row, int64_t* from, int64_t to, int64_t room, int64_t* out) const {
  int64_t at = *from + job->offset;
  const int64_t count = job->allowed.list(first + row, &at, to + job->offset, room, out);
  *from = at - job->offset;
  for (int64_t i = 0; i < count; ++i) out[i] -= job->offset;
  return count;
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
  centre_norm = 0.0;
  if (h.centred) {
    const double* centre = pack_centre(&h);
    for (int64_t k = 0; k < h.width; ++k) centre_norm += centre[k] * centre[k];
    centre_norm = std::sqrt(centre_norm) * kNormRoom;
  }
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

double ScreenQueries::packed_score(const SearchTask& task, int64_t row, double key, double* error) const {
  const PackHeader& h = task.job->header;
  const MetricRecord metric = record(task.job->problem.metric);
  const QueryFrame& frame = packed.frame(row);
  double score, rounding;  // of the arithmetic here; slacks covers the refinement
  if (metric.shares_frame) {
    const double distance = std::ldexp(-key, 2 * h.exponent);
    score = 0.5 * (frame.squares - distance);
    rounding = frame.squares + distance;
  } else {
    const double norm = std::sqrt(frame.squares), scaled = metric.unit_rows ? key * floored(norm) : key;
    const double centre = h.centred ? packed.centre_dot(row) : 0.0;
    score = std::ldexp(scaled - centre, frame.exponent + h.exponent);
    rounding = std::ldexp(std::fabs(scaled) + norm * centre_norm, frame.exponent + h.exponent);
  }
  *error = 4.0 * refine_unit(h.width) * rounding + slacks[row];
  return score;
}

Candidate bounds_of_key(const SearchTask& task, const ScreenQueries& queries, const Screen& screen, int64_t row,
                        double key) {
  double error;
  const double score = queries.packed_score(task, row, key, &error), unit = screen.unit(row);
  if (!std::isfinite(score) || !std::isfinite(error)) return {HUGE_VALF, -HUGE_VALF, 0};
  return {above((score + error) * unit), below((score - error) * unit), 0};
}

}  // namespace vecbank::cpu
