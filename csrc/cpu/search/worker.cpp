// screen -> certify -> refine, for one packed bank: the core of topk, nearest and quantize.
//
// A task is a block of query rows against a part of the bank. Its screen keeps every row whose upper bound reaches the
// k-th best lower bound; float64 decides among those. Query rows that cannot be screened, or whose candidates overflow
// (where all bank rows are equal, for example), are fallback rows: they are refined against every bank row. Parts are
// merged by their float64 keys, so the answer depends neither on the split nor on the instruction set.
#include "worker.h"

#include <bit>
#include <chrono>
#include <numeric>

#include "counted.h"

namespace vecbank::cpu {
namespace {

constexpr double kAfterHead = 2.5;  // a screen after a head's takes so many times as long for a coordinate

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Blocks of panels are visited in a scattered order: in a bank sorted by score, every row would otherwise exceed the
// threshold so far. `together`: visits that follow each other, because what else they read lies side by side.
class Visits {
 public:
  Visits(int64_t from, int64_t to, int64_t each, int64_t together = 1)
      : from_(from), to_(to), each_(each), together_(together), runs_(ceil_div(to - from, each * together)) {
    step_ = std::max<int64_t>(1, static_cast<int64_t>(0.618 * static_cast<double>(runs_)));
    while (std::gcd(step_, runs_) != 1) ++step_;
  }
  int64_t count() const { return runs_ * together_; }
  int64_t panels() const { return each_; }
  Visit operator[](int64_t visit) const {  // after the last visit comes the first, for the next block of rows
    const int64_t at = begin(visit), run_end = begin(visit / together_ * together_) + together_ * each_;
    // Of a shorter last run, some visits are empty.
    return {at, std::min(to_, at + each_), begin(visit + 1), std::min(to_, run_end)};
  }

 private:
  int64_t begin(int64_t visit) const {
    const int64_t run = visit / together_ * step_ % runs_;
    return std::min(to_, from_ + (run * together_ + visit % together_) * each_);
  }

  int64_t from_, to_, each_, together_, runs_, step_;
};

}  // namespace

bool SearchWorker::reserve(const SearchProblem& p, const SearchPlan& plan) {
  const int64_t rows = plan.grid.rows_per_block;
  if (!finalizer_.reserve(p, plan) || !fallback_rows_.reserve(rows)) return false;
  if (plan.refined_only) return true;
  return reserve_screens(screens_, std::max(plan.first_screen, first_screen_), p, plan) && queries_.reserve(p, plan) &&
         lists_.reserve(rows, p.k) && negligible_may_win_.reserve(rows) && tightened_.reserve(rows) &&
         (p.k > kMostSampledK || (argmax_.reserve(rows) && sampled_.reserve(rows * most_sampled_lanes(p))));
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
    screen_with(next_screen(std::max(job.plan.first_screen, first_screen_), job.header, job.plan.group));
    // Bank rows that are nearly equal, and far from their centre, are too alike for a coarse screen. Where a sixteenth
    // of the query rows need the next one, later blocks begin with that.
    for (int64_t undecided; screen_number_ + 1 < kScreenCount && (undecided = undecided_rows()) > few_undecided();) {
      if (undecided > task_.rows / 16) first_screen_ = screen_number_ + 1;
      screen_with(next_screen(screen_number_ + 1, job.header, job.plan.group));
    }
    refined_early_ = finalizer_.refined();
    const double begun = seconds();
    for (int64_t r = 0; r < task_.rows && !job.stop.requested(); ++r) {
      if (lists_.closed(r)) continue;
      int64_t count = 0;
      Candidate* candidates = lists_.fell_back(r) ? nullptr : lists_.finish(r, &count);
      double worst = -HUGE_VAL;
      if (candidates == nullptr ||
          !finalizer_.finalize_row(
              r, candidates, count, negligible_may_win_[r], [&](double key) { return bounds_of(r, key); }, &worst))
        fallback_rows_[fallback_count++] = r;
      else if (job.shared != nullptr && worst > -HUGE_VAL)
        share_threshold(r, bounds_of(r, worst).lower);
    }
    if (refined_more_than_saved(seconds() - begun)) first_screen_ = std::max(first_screen_, screen_number_ + 1);
  }
  finalizer_.refine_all(fallback_rows_.get(), fallback_count);
  if (task_.part == 0) count(Counted::queries, task_.rows);
  count(Counted::refined, finalizer_.refined());
  count(Counted::repeated, fallback_count);
  count(Counted::bytes,
        finalizer_.refined() * job.header.width * static_cast<int64_t>(size_of(job.problem.bank.dtype)));
}

void SearchWorker::screen_with(int number) {
  screen_number_ = number;
  screen_ = screens_[number].get();
  screen_->begin(queries_, *task_.job);
  told_from_ = told_to_ = 0;
  count(Counted::screened, task_.rows, number);
  count(Counted::bytes, (task_.to - task_.from) * screen_->panel_bytes());
  start_lists();
  share_ = share_allowed();
  const AllowedRows& allowed = task_.job->allowed;
  by_bits_ = allowed.has_words() && task_.negligible < 0 &&
             share_ <= (allowed.has_bools() ? kMostBoolShare : kMostBitShare) &&
             allowed_rows_.reserve(2 * (task_.rows + kPanel)) &&
             allowed_words_.reserve(task_.rows * std::max(kPanelsTogether, screen_->panels_per_visit()));
  by_panel_ = !by_bits_ && task_.negligible < 0 && allowed.is_mask();
  // Negligible rows keep all panels: the first of them stands for others.
  if (task_.job->header.negligible <= 1) task_.clip_to_allowed([&](int64_t r) { return !lists_.fell_back(r); });
  const int64_t together = std::min(kPanelsTogether, (task_.to - task_.from) / kLeastRuns);
  visits_together_ = by_bits_ ? std::max<int64_t>(1, together / screen_->panels_per_visit()) : 1;
  const double begun = seconds();
  visit_all();
  screening_ = seconds() - begun;
  const int64_t pairs = task_.rows * (task_.end - task_.begin), tail = screen_->tail_width();
  count(Counted::dimensions, pairs * (task_.job->header.width - tail) + screen_->survivors() * tail);
  count(Counted::pairs, pairs);
  if (SharedHeadUse* use = task_.job->head_use; use != nullptr && tail == 0) {
    use->repeated.fetch_add(pairs);
  } else if (use != nullptr) {
    use->scanned.fetch_add(task_.rows * std::min(scanned_columns_, task_.end - task_.begin));
    use->survivors.fetch_add(screen_->survivors());
  }
  for (int64_t r = 0; r < task_.rows && task_.job->shared != nullptr; ++r)
    if (!lists_.fell_back(r) && lists_.threshold(r) > CandidateLists::kNone) share_threshold(r, lists_.threshold(r));
}

// Whether the block's candidates took longer than the next screen would have, so that later blocks begin with that. A
// finer screen takes about as long again (longer after a head), and leaves 2 k candidates. How many columns a candidate
// is worth differs fourfold between processors, so both are timed; the answer does not depend on it. `deciding`: the
// seconds of the candidates that were not refined early. Few candidates are below what a timer tells.
bool SearchWorker::refined_more_than_saved(double deciding) const {
  const SearchJob& job = *task_.job;
  if (screen_number_ + 1 >= kScreenCount || job.plan.group != kernels().heights[0]) return false;
  const int64_t timed = finalizer_.refined() - refined_early_;
  const int64_t more = finalizer_.refined() - 2 * job.problem.k * task_.rows;
  if (timed < 256 ||
      4 * more < task_.rows * ((task_.end - task_.begin) / columns_per_candidate(task_.job->header.width)))
    return false;
  const double each = deciding / static_cast<double>(timed);
  const double next = screening_ - each * static_cast<double>(refined_early_);
  const PackHeader& h = job.header;
  return each * static_cast<double>(more) >
         (h.head > 0 ? next * kAfterHead * static_cast<double>(h.width) / h.head : next);
}

// Refining all bank rows costs some 60 times as much as screening them, so more undecided rows than these are enough to
// try the next screen. Where float panels must be written first, that costs about as much as refining all bank rows for
// 16 queries.
int64_t SearchWorker::few_undecided() const {
  return std::max<int64_t>(task_.rows / 64, task_.job->header.panels == PanelKind::int8 ? 16 : 0);
}

// How many rows the screen has left undecided.
int64_t SearchWorker::undecided_rows() const {
  int64_t rows = 0;
  for (int64_t r = 0; r < task_.rows; ++r) rows += lists_.fell_back(r);
  return rows - fallbacks_;
}

void SearchWorker::start_lists() {
  const SearchJob& job = *task_.job;
  lists_.clear(task_.rows);
  std::fill_n(negligible_may_win_.get(), task_.rows, false);
  std::fill_n(tightened_.get(), task_.rows, 0);
  scanned_columns_ = 0;
  fallbacks_ = 0;
  for (int64_t r = 0; r < task_.rows; ++r) {
    if (!queries_.packed.frame(r).usable || job.stop.requested()) {
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
  const int64_t query = task_.first + row;
  if (job.earlier == nullptr || job.earlier_counts[query] < p.k) return -HUGE_VAL;
  double error;
  const double threshold = queries_.packed_score(task_, row, job.earlier[query * p.k + p.k - 1].key, &error) - error;
  return std::isfinite(threshold) ? static_cast<double>(round_down(threshold)) : -HUGE_VAL;
}

void SearchWorker::visit_all() {
  const Visits visits(task_.from, task_.to, screen_->panels_per_visit());
  const Stop stop = task_.job->stop;
  // Calls f for visits of the first `panels` panels; the last of them may be a part of a visit.
  const auto visit_first = [&](int64_t panels, auto&& f) {
    for (int64_t v = 0; v < visits.count() && panels > 0 && !stop.requested(); ++v) {
      Visit visit = visits[v];
      visit.to = std::min(visit.to, visit.from + panels);
      panels -= visit.to - visit.from;
      f(visit);
    }
  };
  int64_t ungated = 0;
  if (argmax_.serves(task_, *screen_)) {
    ungated = screen_->argmax_panels();
    argmax_.clear(task_.rows, task_.from);
    visit_first(ungated, [&](const Visit& visit) { screen_->argmax(visit, argmax_.running()); });
    start_from_argmax();
  } else if (samples()) {
    start_from_sample(visit_first);
  }
  const Visits scans(task_.from, task_.to, screen_->panels_per_visit(), visits_together_);
  for (int64_t v = 0, passed = 0; v < scans.count() && !stop.requested(); ++v) {
    if (task_.rows > few_undecided() && !worth_its_survivors()) {
      for (int64_t r = 0; r < task_.rows; ++r) lists_.fall_back(r);
      return;
    }
    Visit visit = scans[v];
    const int64_t panels = visit.to - visit.from;
    visit.from = std::min(visit.to, visit.from + std::max<int64_t>(0, ungated - passed));
    passed += panels;
    if (visit.from < visit.to) scan(visit, 0, task_.rows, lists_.thresholds());
    scanned_columns_ += panels * kPanel;
  }
  if (ungated > 0)
    take_argmax([&](int64_t row, int64_t rows, const float* thresholds) {
      visit_first(ungated, [&](const Visit& visit) { scan(visit, row, rows, thresholds); });
    });
}

// The sample is cut into as many runs as there must be lanes: the largest bound of a lane in a run is a column of its
// own, so the k-th best of their lower bounds is a threshold.
template <class VisitFirst>
void SearchWorker::start_from_sample(VisitFirst&& visit_first) {
  const int64_t k = task_.job->problem.k, lanes = sampled_lanes(sampled_rank()), runs = lanes / kPanel;
  const int64_t each = ceil_div(sample_panels(), runs);
  int64_t run = -1, left = 0;
  const auto collect = [&] {
    for (int64_t r = 0; r < task_.rows && run >= 0; ++r)
      for (int lane = 0; lane < kPanel; ++lane) {
        const float upper = argmax_.largest(r, lane);
        const int64_t panel = argmax_.panel(r, lane);
        const int64_t j = panel * kPanel + lane;
        const bool found = upper > -HUGE_VALF && upper < HUGE_VALF && !lists_.fell_back(r) && given(r, j);
        const Bounds seen = found ? bounds(r, panel, upper, lane, true) : Bounds{-HUGE_VALF, -HUGE_VALF};
        sampled_[r * lanes + run * kPanel + lane] = {
            seen.upper, seen.lower, found ? static_cast<int32_t>(panel * kPanel + lane - task_.begin) : -1};
      }
  };
  visit_first(each * runs, [&](const Visit& visit) {
    for (Visit part = visit; part.from < visit.to; part.from = part.to) {
      if (left == 0) {
        collect();
        ++run;
        left = each;
        argmax_.clear(task_.rows, task_.from);
      }
      part.to = std::min(visit.to, part.from + left);
      left -= part.to - part.from;
      screen_->argmax(part, argmax_.running());
    }
  });
  collect();
  if (run + 1 < runs) return;  // stopped
  for (int64_t r = 0; r < task_.rows && !task_.job->stop.requested(); ++r) {
    if (lists_.fell_back(r)) continue;
    Candidate* best = sampled_.get() + r * lanes;
    refine_best(r, best, lanes, k);
    std::nth_element(best, best + (k - 1), best + lanes,
                     [](const Candidate& a, const Candidate& b) { return a.lower > b.lower; });
    lists_.start(r, std::max(lists_.threshold(r), best[k - 1].lower));
  }
}

// Gives the candidates with the largest bounds, so many as decide a threshold, the bounds of their refined scores.
void SearchWorker::refine_best(int64_t row, Candidate* candidates, int64_t count, int64_t wanted) {
  if (count > wanted)
    std::nth_element(candidates, candidates + wanted, candidates + count,
                     [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
  finalizer_.tighten(row, candidates, std::min(count, wanted), [&](double key) { return bounds_of(row, key); });
}

// Tells the other parts of the bank what a row's candidates must reach, in the units of the screen in use.
void SearchWorker::share_threshold(int64_t row, float threshold) {
  auto& shared = task_.job->shared[task_.first + row];
  const float known = below(static_cast<double>(threshold) / screen_->unit(row));
  float seen = shared.load(std::memory_order_relaxed);
  while (seen < known && !shared.compare_exchange_weak(seen, known)) {
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
  ScanTarget target{thresholds, push, this};
  if (by_bits_) tell_allowed(visit, &target);  // all rows of the block: the argmax, which scans some, has no sets
  screen_->scan(visit, row, rows, target);
  settle_waiting();
}

void SearchWorker::push(int64_t row, int64_t panel, const float* upper, uint32_t lanes) {
  const bool waits = screen_->tail_width() > 0, told = by_bits_ || by_panel_;  // which lanes may be given
  // Of bools those of a panel are looked at together: they are of one cache line.
  if (by_panel_) lanes &= task_.job->allowed.sixteen(task_.first + row, task_.job->offset + panel * kPanel);
  for (; lanes != 0; lanes &= lanes - 1) {
    const int c = std::countr_zero(lanes);
    if (upper[c] < lists_.threshold(row)) continue;
    if (told ? panel * kPanel + c >= task_.end : !may_win(row, panel, c)) continue;
    if (!waits) {
      settle(row, panel, upper[c], c);
      continue;
    }
    screen_->fetch(panel, c);
    waiting_[waiting_count_++] = {row, panel, upper[c], c};
    if (waiting_count_ == kWaiting) settle_waiting();
  }
}

void SearchWorker::settle(int64_t row, int64_t panel, float upper, int lane) {
  const Bounds seen = bounds(row, panel, upper, lane);
  if (!(seen.upper < lists_.threshold(row))) push_lane(row, panel, seen, lane);
}

void SearchWorker::settle_waiting() {
  for (int i = 0; i < waiting_count_; ++i) {
    const Waiting& w = waiting_[i];
    if (!(w.upper < lists_.threshold(w.row))) settle(w.row, w.panel, w.upper, w.lane);
  }
  waiting_count_ = 0;
}

// Whether a row of the piece is one of the part that this query may be given.
bool SearchWorker::given(int64_t row, int64_t j) const { return j < task_.end && task_.allows(row, j); }

// Whether a column that reaches its row's threshold may be given: looked at before anything is computed for it.
bool SearchWorker::may_win(int64_t row, int64_t panel, int lane) {
  const int64_t j = panel * kPanel + lane;
  if (j == task_.negligible) negligible_may_win_[row] = true;
  return given(row, j);
}

void SearchWorker::push_lane(int64_t row, int64_t panel, Bounds seen, int lane) {
  const int64_t place = panel * kPanel + lane - task_.begin;
  if (!lists_.add(row, seen.upper, seen.lower, static_cast<int32_t>(place))) tighten(row);
}

// Where bounds alone leave too many candidates, the best of them are refined early, which raises the threshold. Where
// that does not help enough, or has cost more than a finer screen would, the row falls back; with the last screen only
// after all have been refined.
void SearchWorker::tighten(int64_t row) {
  const bool last = screen_number_ + 1 == kScreenCount;
  const int64_t k = task_.job->problem.k;
  for (const bool all : {false, true}) {
    int64_t count = 0;
    Candidate* candidates = lists_.candidates(row, &count);
    const int64_t before = finalizer_.refined();
    refine_best(row, candidates, count, all ? count : k);
    tightened_[row] += static_cast<int32_t>(finalizer_.refined() - before);
    if (lists_.tighten(row)) break;
    const int64_t worth = 2 * k + 32 + 2 * scanned_columns_ / columns_per_candidate(task_.job->header.width);
    if (all || (!last && tightened_[row] > worth)) return lists_.fall_back(row);
  }
}

// Whether a head leaves fewer of the columns so far than would cost more than it saves; else the queries are unlike the
// bank. The first columns have no threshold yet.
bool SearchWorker::worth_its_survivors() const {
  return screen_->survivors() <= task_.rows * (512 + 16 * task_.job->problem.k + scanned_columns_ / 8);
}

// The bounds of a column's score, from the upper one.
inline Bounds SearchWorker::bounds(int64_t row, int64_t panel, float upper, int lane, bool by_argmax) {
  return upper < HUGE_VALF ? screen_->bounds(row, panel, lane, upper, lists_.threshold(row), by_argmax)
                           : Bounds{upper, -HUGE_VALF};  // a fallback column has none
}

// The panels that are not gated give every row its first threshold.
void SearchWorker::start_from_argmax() {
  argmax_.reduce(task_.rows);
  for (int64_t r = 0; r < task_.rows; ++r) {
    const RowArgmax& best = argmax_.row(r);
    if (lists_.fell_back(r) || !(best.largest > -HUGE_VALF)) continue;
    const float lower = bounds(r, argmax_.panel(r, best.lane), best.largest, best.lane, true).lower;
    lists_.start(r, std::max(lists_.threshold(r), lower));
  }
}

// The running argmax of each lane becomes a candidate, after all other panels have raised the threshold; a candidate
// that no other bound reaches is the answer. The column of a lane's second largest is not known: where it may win, the
// row's panels are scanned again, a group of rows at a time.
template <class Rescan>
void SearchWorker::take_argmax(Rescan&& rescan) {
  const SearchJob& job = *task_.job;
  const int64_t group = queries_.packed.group();
  const bool answers = job.problem.values == nullptr && job.partial == nullptr;
  int64_t unclear = 0;
  for (int64_t g = 0; g < task_.rows; g += group) {
    const int64_t rows = std::min<int64_t>(group, task_.rows - g);
    float thresholds[kPanel];
    bool again = false;
    std::fill_n(thresholds, kPanel, HUGE_VALF);
    for (int64_t r = g; r < g + rows; ++r) {
      const RowArgmax& best = argmax_.row(r);
      const float threshold = lists_.threshold(r);
      if (lists_.fell_back(r) || best.largest < threshold) continue;
      const int64_t panel = argmax_.panel(r, best.lane), j = panel * kPanel + best.lane;
      if (answers && lists_.empty(r) && best.next < threshold && best.largest < HUGE_VALF && j != task_.negligible &&
          j < task_.end) {
        const Scored only{0.0, j};  // the caller wants no score
        task_.report(r, &only, 1);
        lists_.close(r);
        continue;
      }
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
        if (may_win(r, at, c)) push_lane(r, at, bounds(r, at, upper, c, true), c);
      }
    }
    if (again) rescan(g, rows, thresholds);
  }
  argmax_.note(unclear, task_.rows);
}

}  // namespace vecbank::cpu
