// screen -> certify -> refine, for one bank that fits its pack: the heart of topk, nearest and quantize.
//
// A task is a block of query rows against a part of the bank. Its screen keeps every row whose upper bound reaches the
// k-th best lower bound; float64 decides among those. Rows that cannot be screened, or whose candidates overflow (all
// rows equal, say), are refined against every bank row instead. Parts are merged by their float64 keys, so neither
// the split nor the instruction set can be seen in the answer.
#include "search.h"

#include <atomic>
#include <bit>
#include <numeric>

namespace vecbank {
namespace {

std::atomic<int64_t> counted_queries{0}, counted_refined{0}, counted_repeated{0};

}  // namespace

Counters read_counters() { return {counted_queries, counted_refined, counted_repeated}; }
void reset_counters() { counted_queries = counted_refined = counted_repeated = 0; }

SearchPlan plan_search(const SearchProblem& p, const PackHeader& h, int workers) {
  SearchPlan plan;
  const int64_t n = p.queries.count;
  const Kernels& table = kernels();
  plan.group = n <= 1 ? table.heights[2] : n <= table.heights[1] ? table.heights[1] : table.heights[0];
  plan.direct = !h.screenable || p.k * 8 >= h.rows;
  // Queries of a block stay in L2 beside a few panels; candidate lists must not grow without bound either.
  const int64_t by_cache = kQueryBytes / ((h.width + 1) * 4);
  const int64_t by_lists = kListBytes / CandidateLists::bytes_per_row(plan.direct ? 1 : p.k);
  const int64_t most = std::max<int64_t>(std::min({by_cache, by_lists, int64_t{1024}}), plan.group);
  plan.blocks = ceil_div(n, most / plan.group * plan.group);
  plan.rows_per_block = round_up_to(ceil_div(n, plan.blocks), plan.group);
  plan.blocks = ceil_div(n, plan.rows_per_block);

  const int64_t panels = ceil_div(h.rows, kPanel);
  int64_t parts = 1;
  if (workers > 1 && plan.blocks < 3 * workers) {
    const int64_t least = std::max<int64_t>(64, ceil_div(4 * p.k, kPanel));  // panels worth a task of their own
    const int64_t affordable = kPartialBytes / (n * p.k * static_cast<int64_t>(sizeof(Scored)));
    parts = std::max<int64_t>(1, std::min({ceil_div(4 * workers, plan.blocks), panels / least, affordable}));
  }
  parts = std::max(parts, ceil_div(panels, (int64_t{1} << 30) / kPanel));  // columns of a part are counted in int32
  plan.panels_per_part = ceil_div(panels, parts);
  plan.parts = ceil_div(panels, plan.panels_per_part);
  return plan;
}

bool SearchWorker::reserve(const SearchProblem& p, const SearchPlan& plan) {
  const int64_t rows = plan.rows_per_block;
  slots_ = p.k > 65536 ? 1 : Refiner::kQueries;
  for (int s = 0; s < slots_; ++s)
    if (!direct_[s].reserve(p.k)) return false;
  return queries_.reserve(p.queries, rows, plan.group) && refiner_.reserve(p.bank, p.bank.width) &&
         original_.reserve(p.queries, 1) &&
         (plan.direct ? lists_.reserve(rows, 1)
                      : lists_.reserve(rows, p.k) && refined_.reserve(CandidateLists::capacity_for(p.k))) &&
         norms_.reserve(rows) && slacks_.reserve(rows) && left_.reserve(rows);
}

void SearchWorker::run(const SearchJob& job, int64_t block, int64_t part) {
  job_ = &job;
  const SearchProblem& p = job.problem;
  first_ = block * job.plan.rows_per_block;
  rows_ = std::min(job.plan.rows_per_block, p.queries.count - first_);
  const int64_t panels = job.panels.count();
  const int64_t from = part * job.plan.panels_per_part, to = std::min(panels, from + job.plan.panels_per_part);
  begin_ = from * kPanel;
  end_ = std::min(job.header.rows, to * kPanel);
  part_ = part;
  refined_count_ = 0;
  refiner_.set_frame(job.header);

  int64_t direct = 0;
  if (job.plan.direct) {
    direct = rows_;
    std::iota(left_.get(), left_.get() + rows_, int64_t{0});
  } else {
    begin_screen();
    screen(from, to);
    for (int64_t r = 0; r < rows_; ++r)
      if (!settle(r)) left_[direct++] = r;
  }
  for (int64_t i = 0; i < direct; i += slots_) refine_all(i, static_cast<int>(std::min<int64_t>(slots_, direct - i)));
  if (part == 0) counted_queries.fetch_add(rows_, std::memory_order_relaxed);
  counted_refined.fetch_add(refined_count_, std::memory_order_relaxed);
  counted_repeated.fetch_add(direct, std::memory_order_relaxed);
}

// Few enough allowed rows that refining them beats screening everything.
bool SearchWorker::sparse(int64_t row) const {
  const Mask& mask = job_->problem.mask;
  if (mask.data == nullptr) return false;
  int64_t allowed = 0;
  for (int64_t j = begin_; j < end_; ++j) allowed += mask.allows(first_ + row, job_->offset + j);
  return allowed <= std::max<int64_t>(4 * job_->problem.k, (end_ - begin_) / 16);
}

void SearchWorker::begin_screen() {
  const SearchProblem& p = job_->problem;
  const PackHeader& h = job_->header;
  queries_.pack(p.queries, h, first_, rows_);
  lists_.clear(rows_);
  for (int64_t r = 0; r < rows_; ++r) {
    const int exponent = queries_.exponent(r);
    const double scale = is_distance(p.metric) ? 1.0 : std::ldexp(1.0, exponent);
    const double norm = std::sqrt(queries_.squares(r)) * scale * (1.0 + 0x1p-20);
    norms_[r] = p.exact ? round_up(norm) : 0.0f;
    slacks_[r] = p.exact ? query_slack(p.metric, h.width, norm, exponent, h.exponent) : 0.0;
    if (!queries_.usable(r) || sparse(r)) {
      lists_.give_up(r);
      continue;
    }
    queries_.set_bound(r, norms_[r], h.width);
    if (job_->shared != nullptr) lists_.start(r, job_->shared[first_ + r].load(std::memory_order_relaxed));
  }
}

// Blocks of panels are visited in a scattered order: a bank sorted by score would otherwise beat its own threshold
// with every row.
void SearchWorker::screen(int64_t from, int64_t to) {
  const int64_t per_visit = std::max<int64_t>(4, kVisitBytes / (job_->panels.stride() * 4));
  const int64_t visits = ceil_div(to - from, per_visit);
  int64_t step = std::max<int64_t>(1, static_cast<int64_t>(0.618 * static_cast<double>(visits)));
  while (std::gcd(step, visits) != 1) ++step;
  ScanArgs args;
  args.tile.queries = queries_.data();
  args.tile.query_stride = queries_.stride();
  args.tile.group = queries_.group();
  args.tile.rows = rows_;
  args.tile.panel_stride = job_->panels.stride();
  args.tile.width = job_->header.width;
  args.thresholds = lists_.thresholds();
  args.context = this;
  args.offer = [](void* self, int64_t row, int64_t panel, const float* upper, uint32_t lanes) {
    static_cast<SearchWorker*>(self)->offer(row, panel, upper, lanes);
  };
  for (int64_t v = 0, at = 0; v < visits; ++v, at = (at + step) % visits) {
    visit_ = from + at * per_visit;
    const int64_t stop = std::min(to, visit_ + per_visit);
    args.tile.panels = job_->panels.panel(visit_);
    args.tile.columns = std::min(job_->header.rows, stop * kPanel) - visit_ * kPanel;
    kernels().scan(args);
  }
  if (job_->shared == nullptr) return;
  for (int64_t r = 0; r < rows_; ++r) {
    if (lists_.gave_up(r)) continue;
    auto& shared = job_->shared[first_ + r];
    float seen = shared.load(std::memory_order_relaxed);
    while (seen < lists_.threshold(r) && !shared.compare_exchange_weak(seen, lists_.threshold(r))) {
    }
  }
}

void SearchWorker::offer(int64_t row, int64_t panel, const float* upper, uint32_t lanes) {
  const int64_t d = job_->header.width;
  const float* bound = job_->panels.line(visit_ + panel, d + 1);
  const int64_t column = (visit_ + panel) * kPanel;
  for (; lanes != 0; lanes &= lanes - 1) {
    const int c = std::countr_zero(lanes);
    const int64_t j = column + c;
    if (j >= end_) return;
    if (!job_->problem.mask.allows(first_ + row, job_->offset + j)) continue;
    float lower = -HUGE_VALF;  // a special column promises nothing
    if (upper[c] < HUGE_VALF) {
      const double r = job_->problem.exact ? bound[c] : 0.0;
      double slack = static_cast<double>(norms_[row]) * r + job_->start_bound * r * r + slacks_[row];
      if (job_->header.biased && job_->problem.exact)
        slack += start_bound(d, 2.0 * std::fabs(job_->panels.line(visit_ + panel, 0)[c]));
      lower = round_down(static_cast<double>(upper[c]) - 2.0 * slack);
    }
    lists_.add(row, upper[c], lower, static_cast<int32_t>(j - begin_));
  }
}

// Refines a row's candidates and reports its best k. False: the row must be refined against everything.
bool SearchWorker::settle(int64_t row) {
  if (lists_.gave_up(row)) return false;
  int64_t count;
  const Candidate* candidates = lists_.finish(row, &count);
  if (lists_.gave_up(row)) return false;
  const SearchProblem& p = job_->problem;
  if (count == 1 && p.values == nullptr && job_->partial == nullptr && candidates[0].upper < HUGE_VALF) {
    const Scored only{0.0, begin_ + candidates[0].column};  // nobody asked for the score
    job_->report(first_ + row, part_, &only, 1);
    return true;
  }
  refiner_.load(0, original_.row(first_ + row), p.queries.dtype);
  int64_t kept = 0;
  for (int64_t at = 0; at < count; at += Refiner::kBlock) {
    const int64_t n = std::min(Refiner::kBlock, count - at);
    for (int64_t i = 0; i < n; ++i) refiner_.indices()[i] = begin_ + candidates[at + i].column;
    refiner_.for_each_key(1, refiner_.indices(), 0, n, [&](int, double key, int64_t index) {
      if (!std::isnan(key)) refined_[kept++] = {key, index};
    });
  }
  refined_count_ += count;
  job_->report(first_ + row, part_, refined_.get(), select_best(refined_.get(), kept, p.k));
  return true;
}

void SearchWorker::refine_all(int64_t at, int slots) {
  const SearchProblem& p = job_->problem;
  for (int s = 0; s < slots; ++s) {
    direct_[s].clear();
    refiner_.load(s, original_.row(first_ + left_[at + s]), p.queries.dtype);
  }
  if (p.mask.data == nullptr) {
    refiner_.for_each_key(slots, nullptr, begin_, end_ - begin_,
                          [&](int s, double key, int64_t index) { direct_[s].push(key, index); });
    refined_count_ += slots * (end_ - begin_);
  } else {
    for (int s = 0; s < slots; ++s) {
      const int64_t row = first_ + left_[at + s];
      if (s != 0) refiner_.load(0, original_.row(row), p.queries.dtype);
      int64_t n = 0;
      const auto flush = [&] {
        refiner_.for_each_key(1, refiner_.indices(), 0, n,
                              [&](int, double key, int64_t index) { direct_[s].push(key, index); });
        refined_count_ += n;
        n = 0;
      };
      for (int64_t j = begin_; j < end_; ++j) {
        if (!p.mask.allows(row, job_->offset + j)) continue;
        refiner_.indices()[n++] = j;
        if (n == Refiner::kBlock) flush();
      }
      flush();
    }
  }
  for (int s = 0; s < slots; ++s) {
    const int64_t count = direct_[s].finish();
    job_->report(first_ + left_[at + s], part_, direct_[s].data(), count);
  }
}

}  // namespace vecbank
