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

namespace vecbank::cpu {
namespace {

std::atomic<int64_t> counted_queries{0}, counted_refined{0}, counted_repeated{0};

// Panels between jumps.
int64_t visit_panels(int64_t width) { return std::max<int64_t>(4, kVisitBytes / ((width + 3) * kPanel * 4)); }

}  // namespace

Counters read_counters() { return {counted_queries, counted_refined, counted_repeated}; }
void reset_counters() { counted_queries = counted_refined = counted_repeated = 0; }

SearchPlan plan_search(const SearchProblem& p, const PackHeader& h, int workers) {
  SearchPlan plan;
  const int64_t n = p.queries.count;
  const Kernels& table = kernels();
  plan.group = n <= 1 ? table.heights[2] : n <= table.heights[1] ? table.heights[1] : table.heights[0];
  plan.direct = !h.screenable || p.k * 8 >= h.rows;
  plan.fixed = !plan.direct && kernels().scan_fixed != nullptr && plan.group == table.heights[0] &&
               h.width >= kMinFixedWidth && h.width <= kMaxFixedWidth;
  // Queries of a block stay in L2 beside a few panels; candidate lists must not grow without bound either.
  const int64_t by_cache = kQueryBytes / ((h.width + 1) * (plan.fixed ? 2 : 4));
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
                      : lists_.reserve(rows, p.k) && refined_.reserve(CandidateLists::capacity_for(p.k) + p.k)) &&
         zero_wins_.reserve(rows) && norms_.reserve(rows) && slacks_.reserve(rows) && left_.reserve(rows) &&
         units_.reserve(rows + 16) &&
         (!plan.fixed || (fixed_rows_.reserve(rows * fixed_pairs(p.bank.width) + 16) &&
                          fixed_panels_.reserve(visit_panels(p.bank.width) * fixed_stride(p.bank.width)))) &&
         (p.k > 1 || (leaders_.reserve((rows + 16) * kLeaderFloats) && peaks_.reserve(rows)));
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
  refiner_.set_stop(job.stop);
  const int64_t zero = job.header.first_negligible;
  zero_ = job.header.negligible > 1 && zero >= begin_ && zero < end_ ? zero : -1;
  fixed_bound_ = fixed_bound(job.header.width);

  int64_t direct = 0;
  if (job.plan.direct) {
    direct = rows_;
    std::iota(left_.get(), left_.get() + rows_, int64_t{0});
  } else {
    fixed_ = job.plan.fixed && !fixed_poorly_;
    begin_screen();
    screen(from, to);
    if (fixed_ && lost()) {  // rows too alike for 16 bits: nearly equal, far from their centre
      fixed_poorly_ = true;
      fixed_ = false;
      begin_screen();
      screen(from, to);
    }
    for (int64_t r = 0; r < rows_ && !job.stop.asked(); ++r)
      if (!settle(r)) left_[direct++] = r;
  }
  for (int64_t i = 0; i < direct && !job.stop.asked(); i += slots_)
    refine_all(i, static_cast<int>(std::min<int64_t>(slots_, direct - i)));
  if (part == 0) counted_queries.fetch_add(rows_, std::memory_order_relaxed);
  counted_refined.fetch_add(refined_count_, std::memory_order_relaxed);
  counted_repeated.fetch_add(direct, std::memory_order_relaxed);
}

// Few enough allowed rows that refining them beats screening everything.
bool SearchWorker::sparse(int64_t row) const {
  const Mask& mask = job_->problem.mask;
  if (mask.data == nullptr) return false;
  int64_t allowed = 0;
  const bool* at = mask.row(first_ + row) + (job_->offset + begin_) * mask.col_stride;
  for (int64_t j = begin_; j < end_; ++j, at += mask.col_stride) allowed += *at;
  return allowed <= std::max<int64_t>(4 * job_->problem.k, (end_ - begin_) / 16);
}

void SearchWorker::begin_screen() {
  const SearchProblem& p = job_->problem;
  const PackHeader& h = job_->header;
  queries_.pack(p.queries, h, first_, rows_);
  lists_.clear(rows_);
  std::fill_n(zero_wins_.get(), rows_, false);
  resigned_ = 0;
  int known = queries_.exponent(0);
  QuerySlack slack = query_slack(p.metric, h.width, known, h.exponent);
  for (int64_t r = 0; r < rows_; ++r) {
    const int exponent = queries_.exponent(r);
    if (exponent != known) slack = query_slack(p.metric, h.width, known = exponent, h.exponent);
    const double scale = is_distance(p.metric) ? 1.0 : std::ldexp(1.0, exponent);
    const double norm = std::sqrt(queries_.squares(r)) * scale * (1.0 + 0x1p-20);
    norms_[r] = above(norm);
    slacks_[r] = slack.at(norm);
    if (!queries_.usable(r) || job_->stop.asked() || sparse(r)) {
      lists_.give_up(r);
      ++resigned_;
      continue;
    }
    queries_.set_bound(r, norms_[r], h.width);
  }
  std::fill_n(units_.get(), round_up_to(rows_, queries_.group()), 1.0f);
  if (fixed_) fix_queries();
  if (job_->shared == nullptr) return;
  for (int64_t r = 0; r < rows_; ++r) {
    if (lists_.gave_up(r)) continue;
    const double known = std::max(job_->shared[first_ + r].load(std::memory_order_relaxed), earlier_bar(r));
    lists_.start(r, known > -HUGE_VAL ? below(known * static_cast<double>(units_[r])) : -HUGE_VALF);
  }
}

void SearchWorker::fix_queries() {
  const int64_t d = job_->header.width;
  const int group = queries_.group();
  const double most = is_distance(job_->problem.metric) ? 0x1p40 : 0x1p80;  // unit times start stays finite
  for (int64_t r = 0; r < rows_; ++r)
    if (queries_.usable(r))
      units_[r] = static_cast<float>(std::min(kFixedQuery / static_cast<double>(norms_[r]), most));
  for (int64_t r = 0; r < rows_; r += group)
    kernels().fix_rows(queries_.data() + r / group * queries_.stride(), group, d, units_.get() + r,
                       fixed_rows_.get() + r * fixed_pairs(d));
  fixed_from_ = -1;
}

// Did fixed point leave rows undecided that float32 may decide?
bool SearchWorker::lost() const {
  int64_t rows = 0;
  for (int64_t r = 0; r < rows_; ++r) rows += lists_.gave_up(r);
  return rows - resigned_ > rows_ / 16;
}

// What the k-th best of earlier pieces is in this piece's screen units, rounded down: no lesser row can still win.
float SearchWorker::earlier_bar(int64_t row) const {
  const SearchProblem& p = job_->problem;
  const PackHeader& h = job_->header;
  const int64_t query = first_ + row;
  if (job_->earlier == nullptr || job_->earlier_counts[query] < p.k) return -HUGE_VALF;
  const double key = job_->earlier[query * p.k + p.k - 1].key, squares = queries_.squares(row);
  double score, rounding;  // of the arithmetic here; slacks_ has that of the refinement
  if (is_distance(p.metric)) {
    const double distance = std::ldexp(-key, 2 * h.exponent);
    score = 0.5 * (squares - distance);
    rounding = squares + distance;
  } else {
    if (h.centred) return -HUGE_VALF;
    const double norm = p.metric == Metric::cosine ? std::max(std::sqrt(squares), kNormFloor) : 1.0;
    score = std::ldexp(key * norm, queries_.exponent(row) + h.exponent);
    rounding = std::fabs(score);
  }
  const double bar = score - 4.0 * refine_unit(h.width) * rounding - slacks_[row];
  return std::isfinite(bar) ? round_down(bar) : -HUGE_VALF;
}

namespace {

// Blocks of panels are visited in a scattered order: a bank sorted by score would otherwise beat its own threshold
// with every row.
class Visits {
 public:
  Visits(int64_t from, int64_t to, int64_t each) : from_(from), to_(to), each_(each) {
    count_ = ceil_div(to - from, each_);
    step_ = std::max<int64_t>(1, static_cast<int64_t>(0.618 * static_cast<double>(count_)));
    while (std::gcd(step_, count_) != 1) ++step_;
  }
  int64_t count() const { return count_; }
  int64_t panels() const { return each_; }
  Visit operator[](int64_t visit) const {  // after the last one comes the first, for the next block of rows
    return {begin(visit), std::min(to_, begin(visit) + each_), begin(visit + 1)};
  }

 private:
  int64_t begin(int64_t visit) const { return from_ + visit * step_ % count_ * each_; }

  int64_t from_, to_, each_, count_, step_;
};

}  // namespace

void SearchWorker::screen(int64_t from, int64_t to) {
  const int64_t each = rows_ <= 4 && !fixed_ ? std::max<int64_t>(4, kLongVisitBytes / (job_->panels.stride() * 4))
                                             : visit_panels(job_->header.width);
  const Visits visits(from, to, each);
  int64_t v = 0;
  if (leads(to)) {
    for (int64_t r = 0; r < rows_ + 16; ++r) {
      std::fill_n(leaders_.get() + r * kLeaderFloats, 2 * kPanel, -HUGE_VALF);
      std::fill_n(leaders_.get() + r * kLeaderFloats + 2 * kPanel, kPanel, static_cast<float>(from));
    }
    for (; v < visits.count() && v * visits.panels() < kLeadPanels; ++v) lead(visits[v]);
    take_leaders(v == visits.count(), [&](int64_t row, int64_t rows, const float* thresholds) {
      for (int64_t again = 0; again < v; ++again) scan(visits[again], row, rows, thresholds);
    });
  }
  for (; v < visits.count(); ++v) scan(visits[v], 0, rows_, lists_.thresholds());
  if (job_->shared == nullptr) return;
  for (int64_t r = 0; r < rows_; ++r) {
    if (lists_.gave_up(r)) continue;
    auto& shared = job_->shared[first_ + r];
    float seen = shared.load(std::memory_order_relaxed);
    const float known = lists_.threshold(r) > CandidateLists::kNone
                            ? below(static_cast<double>(lists_.threshold(r)) / static_cast<double>(units_[r]))
                            : -HUGE_VALF;
    while (seen < known && !shared.compare_exchange_weak(seen, known)) {
    }
  }
}

// Points a tile at rows [row, row + rows) of the block and a visit's panels, whose codes are made here when asked for.
template <class Tiles>
void SearchWorker::aim(Tiles& t, const Visit& visit, int64_t row, int64_t rows) {
  const int64_t d = job_->header.width;
  const int group = queries_.group();
  const Panels<float>& panels = job_->panels;
  t.group = group;
  t.rows = rows;
  t.width = d;
  t.columns = std::min(job_->header.rows, visit.to * kPanel) - visit.from * kPanel;
  if constexpr (std::is_same_v<Tiles, FixedTiles>) {
    if (fixed_from_ != visit.from)
      kernels().fix_panels(panels.panel(visit.from), visit.to - visit.from, d, fixed_bound_, fixed_panels_.get());
    fixed_from_ = visit.from;
    t.units = units_.get() + row;
    t.queries = fixed_rows_.get() + row * fixed_pairs(d);
    t.query_stride = group * fixed_pairs(d);
    t.panels = fixed_panels_.get();
    t.panel_stride = fixed_stride(d);
    t.stream = panels.panel(visit.next);
    t.stream_bytes = (visit.to - visit.from) * panels.stride() * 4;
  } else {
    t.queries = queries_.data() + row / group * queries_.stride();
    t.query_stride = queries_.stride();
    t.panels = panels.panel(visit.from);
    t.panel_stride = panels.stride();
    t.next = panels.panel(visit.next);
  }
}

void SearchWorker::lead(const Visit& visit) {
  if (job_->stop.asked()) return;
  const auto run = [&](auto args, auto kernel) {
    aim(args.tile, visit, 0, rows_);
    args.leaders = leaders_.get();
    args.first_panel = visit.from;
    kernel(args);
  };
  if (fixed_)
    run(LeadArgs<FixedTiles>{}, kernels().lead_fixed);
  else
    run(LeadArgs<TileArgs<float>>{}, kernels().lead);
}

// Offers what reaches `thresholds` among a visit's panels to rows [row, row + rows) of the block.
void SearchWorker::scan(const Visit& visit, int64_t row, int64_t rows, const float* thresholds) {
  if (job_->stop.asked()) return;
  const auto run = [&](auto args, auto kernel) {
    aim(args.tile, visit, row, rows);
    args.thresholds = thresholds;
    args.context = this;
    args.offer = [](void* self, int64_t r, int64_t panel, const float* upper, uint32_t lanes) {
      auto& worker = *static_cast<SearchWorker*>(self);
      worker.offer(worker.scanned_row_ + r, worker.scanned_panel_ + panel, upper, lanes);
    };
    scanned_row_ = row;
    scanned_panel_ = visit.from;
    kernel(args);
  };
  if (fixed_)
    run(ScanArgs<FixedTiles>{}, kernels().scan_fixed);
  else
    run(ScanArgs<TileArgs<float>>{}, kernels().scan);
}

// One winner of ordinary numbers: the first panels need no gate.
bool SearchWorker::leads(int64_t panels) const {
  return job_->problem.k == 1 && job_->problem.mask.data == nullptr && job_->header.special == 0 &&
         panels < (int64_t{1} << 24) && !leads_poorly_;
}

// The least that a column's score can be, given the most that it can be.
inline float SearchWorker::lower_bound(int64_t row, int64_t panel, float upper, int lane) const {
  if (!(upper < HUGE_VALF)) return -HUGE_VALF;  // a special column promises nothing
  const int64_t d = job_->header.width;
  const double r = job_->panels.line(panel, d + 1)[lane];
  double slack = job_->start_bound * r * r + slacks_[row];
  if (job_->header.biased) slack += start_bound(d, 2.0 * std::fabs(job_->panels.line(panel, 0)[lane]));
  if (fixed_)
    slack = slack * static_cast<double>(units_[row]) +
            static_cast<double>(fixed_bound_.margin(static_cast<float>(r))) * (1.0 + 0x1p-20);
  else
    slack += static_cast<double>(norms_[row]) * r;
  return below(static_cast<double>(upper) - 2.0 * slack);
}

// Which lanes reach the bar, a bit each.
inline uint32_t reaching(const float* lanes, float bar) {
  uint32_t bits = 0;
  for (uint32_t c = 0; c < kPanel; ++c) bits |= lanes[c] >= bar ? 1u << c : 0u;
  return bits;
}

// Leaders become candidates; a leader that nothing else can reach is the answer. Where a lane's second may win as well,
// nobody knows its column: such rows see the panels once more, through the gate, a group at a time.
template <class Rescan>
void SearchWorker::take_leaders(bool last, Rescan&& rescan) {
  const int group = queries_.group();
  const bool answers = last && job_->problem.values == nullptr && job_->partial == nullptr;
  kernels().peaks(leaders_.get(), rows_, peaks_.get());
  int64_t unclear = 0;
  for (int64_t g = 0; g < rows_; g += group) {
    const int64_t rows = std::min<int64_t>(group, rows_ - g);
    float thresholds[16];
    bool again = false;
    for (int64_t i = 0; i < 16; ++i) thresholds[i] = HUGE_VALF;
    for (int64_t r = g; r < g + rows; ++r) {
      const Peak& peak = peaks_[r];
      if (lists_.gave_up(r) || !(peak.most > -HUGE_VALF)) continue;
      const float *leader = leaders_.get() + r * kLeaderFloats, *second = leader + kPanel;
      const float* place = second + kPanel;
      const int64_t best = static_cast<int64_t>(place[peak.lane]);
      const float lower = lower_bound(r, best, peak.most, peak.lane);
      const float bar = std::max(lists_.threshold(r), lower);
      if (answers && peak.next < bar && peak.most < HUGE_VALF && best * kPanel + peak.lane != zero_ &&
          best * kPanel + peak.lane < end_) {
        const Scored only{0.0, best * kPanel + peak.lane};  // nobody asked for the score
        job_->report(first_ + r, part_, &only, 1);
        lists_.close(r);
        continue;
      }
      lists_.start(r, bar);
      if (*std::max_element(second, second + kPanel) >= bar) {
        thresholds[r - g] = bar;
        again = true;
        ++unclear;
        continue;
      }
      for (uint32_t lanes = reaching(leader, bar); lanes != 0; lanes &= lanes - 1) {
        const int c = std::countr_zero(lanes);
        const int64_t panel = static_cast<int64_t>(place[c]);
        offer_lane(r, panel, leader[c], c, c == peak.lane ? lower : lower_bound(r, panel, leader[c], c));
      }
    }
    if (again) rescan(g, rows, thresholds);
  }
  leads_poorly_ = unclear > rows_ / 4;  // duplicates, say: no use for the next block either
}

void SearchWorker::offer(int64_t row, int64_t panel, const float* upper, uint32_t lanes) {
  for (; lanes != 0; lanes &= lanes - 1) {
    const int c = std::countr_zero(lanes);
    if (!(upper[c] < lists_.threshold(row))) offer_lane(row, panel, upper[c], c, lower_bound(row, panel, upper[c], c));
  }
}

void SearchWorker::offer_lane(int64_t row, int64_t panel, float upper, int lane, float lower) {
  const int64_t j = panel * kPanel + lane;
  if (j == zero_) zero_wins_[row] = true;
  if (j >= end_ || !job_->problem.mask.allows(first_ + row, job_->offset + j)) return;
  lists_.add(row, upper, lower, static_cast<int32_t>(j - begin_));
}

}  // namespace vecbank::cpu
