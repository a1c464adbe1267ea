// screen -> certify -> refine, for one packed bank: the core of topk, nearest and quantize.
//
// A task is a block of query rows against a part of the bank. Its screen keeps every row whose upper bound reaches the
// k-th best lower bound; float64 decides among those. Query rows that cannot be screened, or whose candidates overflow
// (where all bank rows are equal, for example), are fallback rows: they are refined against every bank row. Parts are
// merged by their float64 keys, so the answer depends neither on the split nor on the instruction set.
#include "worker.h"

#include <bit>
#include <numeric>

namespace vecbank::cpu {
namespace {

std::atomic<int64_t> counted_queries{0}, counted_refined{0}, counted_repeated{0};

// Blocks of panels are visited in a scattered order: in a bank sorted by score, every row would otherwise exceed the
// threshold so far.
class Visits {
 public:
  Visits(int64_t from, int64_t to, int64_t each)
      : from_(from), to_(to), each_(each), count_(ceil_div(to - from, each)) {
    step_ = std::max<int64_t>(1, static_cast<int64_t>(0.618 * static_cast<double>(count_)));
    while (std::gcd(step_, count_) != 1) ++step_;
  }
  int64_t count() const { return count_; }
  int64_t panels() const { return each_; }
  Visit operator[](int64_t visit) const {  // after the last visit comes the first, for the next block of rows
    return {begin(visit), std::min(to_, begin(visit) + each_), begin(visit + 1)};
  }

 private:
  int64_t begin(int64_t visit) const { return from_ + visit * step_ % count_ * each_; }

  int64_t from_, to_, each_, count_, step_;
};

}  // namespace

Counters read_counters() { return {counted_queries, counted_refined, counted_repeated}; }
void reset_counters() { counted_queries = counted_refined = counted_repeated = 0; }

SearchTask::SearchTask(const SearchJob& j, const GridTask& t)
    : job(&j), first(t.first), rows(t.rows), from(t.from), to(t.to), part(t.part) {
  begin = from * kPanel;
  end = std::min(j.header.rows, to * kPanel);
  start_per_r2 = start_bound_per_r2(j.problem.metric, j.header.width);
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
  int known = packed.frame(0).exponent;
  QuerySlack slack = query_slack(p.metric, h.width, known, h.exponent);
  for (int64_t r = 0; r < rows; ++r) {
    const QueryFrame& frame = packed.frame(r);
    if (frame.exponent != known) slack = query_slack(p.metric, h.width, known = frame.exponent, h.exponent);
    norms[r] = above(frame.packed);
    slacks[r] = slack.at(frame.packed);
  }
}

bool SearchWorker::reserve(const SearchProblem& p, const SearchPlan& plan) {
  const int64_t rows = plan.grid.rows_per_block;
  if (!finalizer_.reserve(p, plan) || !fallback_rows_.reserve(rows)) return false;
  if (plan.refined_only) return true;
  for (int s = std::max(plan.first_screen, first_screen_); s < kScreenCount; ++s) {
    if (screens_[s] == nullptr) screens_[s] = kScreens[s]->make();
    if (screens_[s] == nullptr || !screens_[s]->reserve(p, plan)) return false;
  }
  return queries_.reserve(p, plan) && lists_.reserve(rows, p.k) && negligible_may_win_.reserve(rows) &&
         (p.k > 1 || argmax_.reserve(rows));
}

void SearchWorker::run(const SearchJob& job, const GridTask& task) {
  task_ = SearchTask(job, task);
  finalizer_.begin(task_);
  int64_t fallback_count = 0;
  if (job.plan.refined_only) {
    fallback_count = task_.rows;
    std::iota(fallback_rows_.get(), fallback_rows_.get() + fallback_count, int64_t{0});
  } else {
    queries_.pack(task_);
    int s = std::max(job.plan.first_screen, first_screen_);
    screen_with(*screens_[s]);
    // Bank rows that are nearly equal, and far from their centre, are too alike for a coarse screen.
    while (s + 1 < kScreenCount && too_many_fallbacks()) {
      first_screen_ = ++s;
      screen_with(*screens_[s]);
    }
    for (int64_t r = 0; r < task_.rows && !job.stop.requested(); ++r) {
      if (lists_.closed(r)) continue;
      int64_t count = 0;
      const Candidate* candidates = lists_.fell_back(r) ? nullptr : lists_.finish(r, &count);
      if (lists_.fell_back(r) || !finalizer_.finalize_row(r, candidates, count, negligible_may_win_[r]))
        fallback_rows_[fallback_count++] = r;
    }
  }
  finalizer_.refine_all(fallback_rows_.get(), fallback_count);
  if (task_.part == 0) counted_queries.fetch_add(task_.rows, std::memory_order_relaxed);
  counted_refined.fetch_add(finalizer_.refined(), std::memory_order_relaxed);
  counted_repeated.fetch_add(fallback_count, std::memory_order_relaxed);
}

void SearchWorker::screen_with(Screen& screen) {
  screen_ = &screen;
  screen.begin(queries_, *task_.job);
  start_lists();
  visit_all();
  if (task_.job->shared != nullptr) share_thresholds();
}

// Whether the screen has left so many rows undecided that the next one is tried.
bool SearchWorker::too_many_fallbacks() const {
  int64_t rows = 0;
  for (int64_t r = 0; r < task_.rows; ++r) rows += lists_.fell_back(r);
  return rows - fallbacks_ > task_.rows / 16;
}

// Whether the mask allows so few rows that it is faster to refine them than to screen all.
bool SearchWorker::few_allowed(int64_t row) const {
  int64_t stride, count = 0;
  const bool* allowed = task_.allowed(row, &stride);
  if (allowed == nullptr) return false;
  for (int64_t j = task_.begin; j < task_.end; ++j) count += allowed[j * stride];
  return count <= std::max<int64_t>(4 * task_.job->problem.k, (task_.end - task_.begin) / 16);
}

void SearchWorker::start_lists() {
  const SearchJob& job = *task_.job;
  lists_.clear(task_.rows);
  std::fill_n(negligible_may_win_.get(), task_.rows, false);
  fallbacks_ = 0;
  for (int64_t r = 0; r < task_.rows; ++r) {
    if (!queries_.packed.frame(r).usable || job.stop.requested() || few_allowed(r)) {
      lists_.fall_back(r);
      ++fallbacks_;
    } else if (job.shared != nullptr) {
      const double shared = job.shared[task_.first + r].load(std::memory_order_relaxed);
      const double known = std::max(shared, earlier_threshold(r));
      lists_.start(r, known > -HUGE_VAL ? below(known * screen_->unit(r)) : -HUGE_VALF);
    }
  }
}

// The score of the k-th best of earlier pieces, in this piece's packed units and rounded down: no row below it can win.
double SearchWorker::earlier_threshold(int64_t row) const {
  const SearchJob& job = *task_.job;
  const SearchProblem& p = job.problem;
  const PackHeader& h = job.header;
  const MetricRecord metric = record(p.metric);
  const int64_t query = task_.first + row;
  if (job.earlier == nullptr || job.earlier_counts[query] < p.k) return -HUGE_VAL;
  const double key = job.earlier[query * p.k + p.k - 1].key, squares = queries_.packed.frame(row).squares;
  double score, rounding;  // of the arithmetic here; slacks covers the refinement
  if (metric.shares_frame) {
    const double distance = std::ldexp(-key, 2 * h.exponent);
    score = 0.5 * (squares - distance);
    rounding = squares + distance;
  } else {
    if (h.centred) return -HUGE_VAL;
    const double norm = metric.unit_rows ? floored(std::sqrt(squares)) : 1.0;
    score = std::ldexp(key * norm, queries_.packed.frame(row).exponent + h.exponent);
    rounding = std::fabs(score);
  }
  const double threshold = score - 4.0 * refine_unit(h.width) * rounding - queries_.slacks[row];
  return std::isfinite(threshold) ? static_cast<double>(round_down(threshold)) : -HUGE_VAL;
}

void SearchWorker::visit_all() {
  const Visits visits(task_.from, task_.to, screen_->panels_per_visit());
  const Stop stop = task_.job->stop;
  int64_t v = 0;
  if (argmax_.serves(task_)) {
    argmax_.clear(task_.rows, task_.from);
    for (; v < visits.count() && v * visits.panels() < kArgmaxPanels && !stop.requested(); ++v)
      screen_->argmax(visits[v], argmax_.running());
    take_argmax(v == visits.count(), [&](int64_t row, int64_t rows, const float* thresholds) {
      for (int64_t again = 0; again < v; ++again) scan(visits[again], row, rows, thresholds);
    });
  }
  for (; v < visits.count() && !stop.requested(); ++v) scan(visits[v], 0, task_.rows, lists_.thresholds());
}

void SearchWorker::share_thresholds() {
  for (int64_t r = 0; r < task_.rows; ++r) {
    if (lists_.fell_back(r) || !(lists_.threshold(r) > CandidateLists::kNone)) continue;
    auto& shared = task_.job->shared[task_.first + r];
    const float known = below(static_cast<double>(lists_.threshold(r)) / screen_->unit(r));
    float seen = shared.load(std::memory_order_relaxed);
    while (seen < known && !shared.compare_exchange_weak(seen, known)) {
    }
  }
}

// Pushes the columns of a visit's panels that reach `thresholds`, for rows [row, row + rows) of the block.
void SearchWorker::scan(const Visit& visit, int64_t row, int64_t rows, const float* thresholds) {
  scanned_row_ = row;
  scanned_panel_ = visit.from;
  const auto push = [](void* self, int64_t r, int64_t panel, const float* upper, uint32_t lanes) {
    auto& worker = *static_cast<SearchWorker*>(self);
    worker.push(worker.scanned_row_ + r, worker.scanned_panel_ + panel, upper, lanes);
  };
  screen_->scan(visit, row, rows, {thresholds, push, this});
}

void SearchWorker::push(int64_t row, int64_t panel, const float* upper, uint32_t lanes) {
  for (; lanes != 0; lanes &= lanes - 1) {
    const int c = std::countr_zero(lanes);
    if (!(upper[c] < lists_.threshold(row))) push_lane(row, panel, upper[c], c, lower_bound(row, panel, upper[c], c));
  }
}

void SearchWorker::push_lane(int64_t row, int64_t panel, float upper, int lane, float lower) {
  const SearchJob& job = *task_.job;
  const int64_t j = panel * kPanel + lane;
  if (j == task_.negligible) negligible_may_win_[row] = true;
  if (j >= task_.end || !job.problem.mask.allows(task_.first + row, job.offset + j)) return;
  lists_.add(row, upper, lower, static_cast<int32_t>(j - task_.begin));
}

// The lower bound of a column's score, from its upper bound.
inline float SearchWorker::lower_bound(int64_t row, int64_t panel, float upper, int lane) const {
  if (!(upper < HUGE_VALF)) return -HUGE_VALF;  // a fallback column has no lower bound
  const PackHeader& h = task_.job->header;
  const Panels<float> panels = pack_panels(&h);
  const double r = panels.line(panel, h.width + 1)[lane];
  double slack = task_.start_per_r2 * r * r + queries_.slacks[row];
  if (h.biased) slack += start_bound(h.width, 2.0 * std::fabs(panels.line(panel, 0)[lane]));
  return below(static_cast<double>(upper) - 2.0 * screen_->margin(row, r, slack));
}

// The running argmax of each lane becomes a candidate; a candidate that no other bound reaches is the answer. The
// column of a lane's second largest is not known: where it may win, the row's panels are scanned again, a group of rows
// at a time.
template <class Rescan>
void SearchWorker::take_argmax(bool last, Rescan&& rescan) {
  const SearchJob& job = *task_.job;
  const int64_t group = queries_.packed.group();
  const bool answers = last && job.problem.values == nullptr && job.partial == nullptr;
  argmax_.reduce(task_.rows);
  int64_t unclear = 0;
  for (int64_t g = 0; g < task_.rows; g += group) {
    const int64_t rows = std::min<int64_t>(group, task_.rows - g);
    float thresholds[kPanel];
    bool again = false;
    std::fill_n(thresholds, kPanel, HUGE_VALF);
    for (int64_t r = g; r < g + rows; ++r) {
      const RowArgmax& best = argmax_.row(r);
      if (lists_.fell_back(r) || !(best.largest > -HUGE_VALF)) continue;
      const int64_t panel = argmax_.panel(r, best.lane), j = panel * kPanel + best.lane;
      const float lower = lower_bound(r, panel, best.largest, best.lane);
      const float threshold = std::max(lists_.threshold(r), lower);
      if (answers && best.next < threshold && best.largest < HUGE_VALF && j != task_.negligible && j < task_.end) {
        const Scored only{0.0, j};  // the caller wants no score
        task_.report(r, &only, 1);
        lists_.close(r);
        continue;
      }
      lists_.start(r, threshold);
      if (argmax_.second_reaches(r, threshold)) {
        thresholds[r - g] = threshold;
        again = true;
        ++unclear;
        continue;
      }
      for (uint32_t lanes = argmax_.reaching(r, threshold); lanes != 0; lanes &= lanes - 1) {
        const int c = std::countr_zero(lanes);
        const int64_t at = argmax_.panel(r, c);
        const float upper = argmax_.largest(r, c);
        push_lane(r, at, upper, c, c == best.lane ? lower : lower_bound(r, at, upper, c));
      }
    }
    if (again) rescan(g, rows, thresholds);
  }
  argmax_.note(unclear, task_.rows);
}

}  // namespace vecbank::cpu
