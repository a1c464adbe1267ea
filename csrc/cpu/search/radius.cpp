#include "radius.h"

#include <bit>
#include <cmath>

#include "../ways.h"
#include "among.h"
#include "counted.h"
#include "screens/screen.h"

namespace vecbank::cpu {

void Hits::add(int worker, const Hit& hit) {
  List& list = lists_[worker];
  if (list.count == list.room) {
    const int64_t room = std::max<int64_t>(1024, 2 * list.room);
    Buffer<Hit> more;
    if (!more.reserve(room)) {
      lost_ = true;
      return;
    }
    if (list.count > 0) std::copy_n(list.hits.get(), list.count, more.get());
    list.hits = std::move(more);
    list.room = room;
  }
  list.hits[list.count++] = hit;
}

template <class F>
Status Hits::in_order(const int64_t* offsets, const Parallel& parallel, F&& f) {
  const int64_t total = offsets[queries_];
  Buffer<Scored> sorted;
  Buffer<int64_t> next;
  if (!sorted.reserve(total) || !next.reserve(queries_)) return Status::out_of_memory;
  std::copy_n(offsets, queries_, next.get());
  for (List& list : lists_)
    for (int64_t i = 0; i < list.count; ++i)
      sorted[next[list.hits[i].query]++] = {list.hits[i].key, list.hits[i].index};
  return for_each_task(parallel, queries_, [&](int, int64_t q) {
    std::sort(sorted.get() + offsets[q], sorted.get() + offsets[q + 1], better);
    for (int64_t i = offsets[q]; i < offsets[q + 1]; ++i) f(i, sorted[i]);
  });
}

Status Hits::write(Metric metric, const int64_t* offsets, int64_t* indices, void* values, DType values_dtype,
                   const Parallel& parallel) {
  return in_order(offsets, parallel, [&](int64_t i, const Scored& hit) {
    indices[i] = hit.index;
    const double value = value_of(metric, hit.key);
    if (values_dtype == DType::f64)
      static_cast<double*>(values)[i] = value;
    else
      static_cast<float*>(values)[i] = static_cast<float>(value);
  });
}

Status Hits::write_whole(const int64_t* offsets, int64_t* indices, int32_t* values, const Parallel& parallel) {
  return in_order(offsets, parallel, [&](int64_t i, const Scored& hit) {
    indices[i] = hit.index;
    values[i] = static_cast<int32_t>(-hit.key);
  });
}

namespace {

constexpr int64_t kMostRefinedQueries = 64;  // against a block of the bank

// The least key that may be within a radius: rounding keeps the order, and the root of a square rounds once.
double key_of_radius(const MetricRecord& m, double radius) {
  if (!m.smaller_is_better) return radius;
  if (radius < 0.0) return HUGE_VAL;  // nothing is
  return m.root ? -(radius * radius) * (1.0 + 0x1p-48) - 0x1p-1060 : -radius;
}

class RadiusWorker {
 public:
  // The refiner reads the whole bank; screens read `piece`.
  bool reserve(const SearchProblem& p, Stop stop) {
    if (!refiner_.reserve(p.bank, p.bank.width, p.queries.col_stride == 1) ||
        !queries_.reserve(p.queries, refiner_.slots()) || !alone_.reserve(p.queries, 1))
      return false;
    refiner_.set_stop(stop);
    const bool unit = record(p.metric).unit_rows;
    refiner_.set_metric(p.metric, unit && p.pack != nullptr ? pack_norms(p.pack) : nullptr, 0, p.bias);
    return true;
  }
  bool reserve_piece(const SearchProblem& piece, const SearchPlan& plan) {
    const int64_t rows = plan.grid.rows_per_block;
    if (plan.refined_only) return true;
    return reserve_screens(screens_, std::max(plan.first_screen, first_screen_), piece, plan) &&
           screened_.reserve(piece, plan) && thresholds_.reserve(rows + 16) && sure_.reserve(rows) &&
           waiting_.reserve(rows * kWaiting) && waiting_count_.reserve(rows) && fallbacks_.reserve(rows);
  }

  // A call's hits, and the worker's own place among them.
  // `numbers`: of p's queries among those of the hits, null: the same.
  void begin(const SearchProblem& p, const double* radii, const int64_t* numbers, bool count_only, Hits& hits,
             int worker) {
    whole_ = &p;
    radii_ = radii;
    numbers_ = numbers;
    count_only_ = count_only;
    hits_ = &hits;
    worker_ = worker;
    metric_ = record(p.metric);
  }

  // The rows of [task.from, task.to) that the task's queries may be given, in float64.
  void refine(const RefinedSets& sets, const GridTask& task) {
    const int64_t refined = for_each_allowed_run(*whole_, sets, refiner_, queries_, task,
                                                 [&](int64_t query, const double* keys, int64_t n, auto&& row) {
                                                   for (int64_t i = 0; i < n; ++i) take(query, keys[i], row(i));
                                                 });
    counted(refined);
  }

  void run(const SearchJob& job, const GridTask& grid) {
    task_ = SearchTask(job, grid);
    screened_.pack(task_);
    const int number = next_screen(std::max(job.plan.first_screen, first_screen_), job.header, job.plan.group);
    screen_ = screens_[number].get();
    screen_->begin(screened_, job);
    count(Counted::screened, task_.rows, number);
    count(Counted::bytes, (task_.to - task_.from) * screen_->panel_bytes());
    refined_ = 0;
    hit_ = 0;
    int64_t fallbacks = 0;
    for (int64_t r = 0; r < task_.rows + 16; ++r) {
      thresholds_[r] = HUGE_VALF;  // pushes nothing
      if (r >= task_.rows) continue;
      waiting_count_[r] = 0;
      const double key = key_of_radius(metric_, radii_[task_.first + r]);
      const Candidate limit = bounds_of_key(task_, screened_, *screen_, r, key);
      const Candidate inner = bounds_of_key(task_, screened_, *screen_, r, metric_.root ? key * (1.0 - 0x1p-47) : key);
      const bool screens = screened_.packed.frame(r).usable && std::isfinite(limit.lower) && std::isfinite(limit.upper);
      if (screens) {
        thresholds_[r] = limit.lower;
        sure_[r] = inner.upper;
      } else {
        fallbacks_[fallbacks++] = r;
      }
    }
    task_.clip_to_allowed([&](int64_t r) { return thresholds_[r] < HUGE_VALF; });
    scan();
    for (int64_t r = 0; r < task_.rows; ++r) settle(r);
    count_extra();
    // Where the screen leaves far more than there is, later blocks begin with the next one.
    const int64_t columns = (task_.end - task_.begin) * task_.rows;
    if (number + 1 < kScreenCount && job.plan.group == kernels().heights[0] &&
        (refined_ - 2 * hit_) * columns_per_candidate(job.header.width) > columns)
      first_screen_ = std::max(first_screen_, number + 1);
    if (task_.part == 0) count(Counted::queries, task_.rows);
    count(Counted::repeated, fallbacks);
    for (int64_t i = 0; i < fallbacks && !job.stop.requested(); ++i)
      refine({job.allowed}, {task_.first + fallbacks_[i], 1, job.offset + task_.begin, job.offset + task_.end, 0});
    counted(refined_);
  }

 private:
  static constexpr int64_t kWaiting = 64;  // candidates of a query that are refined together

  int64_t number(int64_t query) const { return numbers_ != nullptr ? numbers_[query] : query; }

  void take(int64_t query, double key, int64_t index) {
    const double score = value_of(metric_, key);  // of a NaN neither holds
    if (!(metric_.smaller_is_better ? score <= radii_[query] : score >= radii_[query])) return;
    ++hit_;
    hits_->count(number(query), 1);
    if (!count_only_) hits_->add(worker_, {key, number(query), index});
  }

  void scan() {
    const SearchJob& job = *task_.job;
    const auto push = [](void* self, int64_t r, int64_t panel, const float* upper, uint32_t lanes) {
      static_cast<RadiusWorker*>(self)->push(r, panel, upper, lanes);
    };
    const int64_t each = screen_->panels_per_visit();
    for (int64_t at = task_.from; at < task_.to && !job.stop.requested(); at += each) {
      scanned_panel_ = at;
      const Visit visit{at, std::min(task_.to, at + each), at + each < task_.to ? at + each : task_.from};
      screen_->scan(visit, 0, task_.rows, {thresholds_.get(), push, this});
    }
  }

  void push(int64_t row, int64_t panel, const float* upper, uint32_t lanes) {
    if (row >= task_.rows || thresholds_[row] == HUGE_VALF) return;  // a fallback column reaches even that
    panel += scanned_panel_;
    for (; lanes != 0; lanes &= lanes - 1) {
      const int c = std::countr_zero(lanes);
      const int64_t j = panel * kPanel + c;
      if (upper[c] < thresholds_[row] || j >= task_.end || j == task_.negligible || !task_.allows(row, j)) continue;
      if (upper[c] < HUGE_VALF) {  // a fallback column has no bounds
        const Bounds seen = screen_->bounds(row, panel, c, upper[c], thresholds_[row], false);
        if (seen.upper < thresholds_[row]) continue;
        if (count_only_ && seen.lower > sure_[row]) {
          hits_->count(number(task_.first + row), 1);
          continue;
        }
      }
      waiting_[row * kWaiting + waiting_count_[row]++] = task_.job->offset + j;
      if (waiting_count_[row] == kWaiting) settle(row);
    }
  }

  void settle(int64_t row) {
    const int64_t count = waiting_count_[row];
    waiting_count_[row] = 0;
    if (count > 0) refine_listed(row, waiting_.get() + row * kWaiting, count);
  }

  void refine_listed(int64_t row, const int64_t* listed, int64_t count) {
    const int64_t query = task_.first + row;
    refiner_.load(0, alone_.row(query), whole_->queries.dtype);
    refiner_.for_each_key(1, listed, 0, count, [&](int, double key, int64_t j) { take(query, key, j); });
    refined_ += count;
  }

  // Rows that no screen sees: those that are too far for it, and those that are negligible.
  void count_extra() {
    const PackHeader& h = task_.job->header;
    if (h.far == 0 && h.negligible == 0) return;
    const RowKind* kinds = pack_kinds(&h);
    int64_t listed[kWaiting], n = 0;
    const auto flush = [&] {
      for (int64_t r = 0; r < task_.rows; ++r) {
        if (thresholds_[r] == HUGE_VALF) continue;  // it falls back
        int64_t own[kWaiting], count = 0;
        for (int64_t i = 0; i < n; ++i) {
          own[count] = task_.job->offset + listed[i];
          count += task_.allows(r, listed[i]);
        }
        if (count > 0) refine_listed(r, own, count);
      }
      n = 0;
    };
    for (int64_t j = task_.begin; j < task_.end; ++j) {
      const bool unseen = kinds[j] == RowKind::far ||
                          (kinds[j] == RowKind::negligible && (h.negligible > 1 || j != h.first_negligible));
      if (!unseen) continue;
      listed[n++] = j;
      if (n == kWaiting) flush();
    }
    flush();
  }

  void counted(int64_t refined) {
    count(Counted::refined, refined);
    count(Counted::bytes, refined * whole_->bank.width * static_cast<int64_t>(size_of(whole_->bank.dtype)));
  }

  const SearchProblem* whole_ = nullptr;
  const double* radii_ = nullptr;
  const int64_t* numbers_ = nullptr;
  Hits* hits_ = nullptr;
  MetricRecord metric_ = record(Metric::dot);
  bool count_only_ = false;
  int worker_ = 0;

  SearchTask task_;
  ScreenQueries screened_;
  Screens screens_;
  Screen* screen_ = nullptr;
  int first_screen_ = 0;
  Refiner refiner_;
  RowReader queries_, alone_;
  Buffer<float> thresholds_, sure_;
  Buffer<int64_t> waiting_, waiting_count_, fallbacks_;
  int64_t scanned_panel_ = 0, refined_ = 0, hit_ = 0;
};

Status refine_within(const SearchProblem& p, const RefinedSets& sets, PerWorker<RadiusWorker>& workers,
                     const Parallel& parallel) {
  Grid grid;
  const bool each = !sets.allowed.shared();
  const int64_t n = p.queries.count;
  grid.set_blocks(n, each ? kMostOfSets : kMostRefinedQueries, 1);
  if (grid.blocks < (each ? 1 : 4) * parallel.workers) {
    grid.blocks = std::min(n, round_up_to(grid.blocks, parallel.workers));
    grid.even_blocks(1);
  }
  grid.set_parts(p.bank.count, std::min(ceil_div(parallel.workers, grid.blocks), ceil_div(p.bank.count, 1024)));
  return for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    if (task.part == 0) count(Counted::queries, task.rows), count(Counted::repeated, task.rows);
    workers[worker].refine(sets, task);  // the grid's panels are single rows here
  });
}

Status screen_within(const SearchProblem& p, const AllowedRows& allowed, PerWorker<RadiusWorker>& workers,
                     const Parallel& parallel) {
  const int64_t rows = rows_of_piece(kMostPackBytes, p.bank.width, sizeof(float));
  return for_each_piece<float>(p.bank, p.pack, p.metric, p.bias, rows, panels_of(p), parallel, [&](const Piece& piece) {
    SearchProblem of_piece = p;
    of_piece.bank = piece.bank;
    of_piece.bias = piece.bias;
    SearchJob job{of_piece, piece.header, plan_search(of_piece, piece.header, parallel.workers), parallel.stop};
    job.offset = piece.offset;
    job.allowed = allowed;
    if (!workers.each([&](RadiusWorker& w) { return w.reserve_piece(of_piece, job.plan); }))
      return Status::out_of_memory;
    if (!job.plan.refined_only)
      return for_each_task(job.plan.grid, parallel,
                           [&](int worker, const GridTask& task) { workers[worker].run(job, task); });
    // No screen serves this width.
    return for_each_task(parallel, p.queries.count, [&](int worker, int64_t query) {
      workers[worker].refine({allowed}, {query, 1, piece.offset, piece.offset + piece.bank.count, 0});
    });
  });
}

}  // namespace

Status find_within(const SearchProblem& p, const double* radii, bool count_only, Hits& hits, const Parallel& parallel) {
  if (!hits.reserve()) return Status::out_of_memory;
  const int64_t n = p.queries.count, m = p.bank.count;
  if (n == 0 || m == 0) return Status::ok;
  const Parallel chosen =
      workers_for(parallel, static_cast<double>(n), static_cast<double>(m), static_cast<double>(p.bank.width));
  const AllowedRows allowed = p.allowed != nullptr ? AllowedRows(*p.allowed) : AllowedRows();
  Among among;
  PerWorker<RadiusWorker> workers(chosen.workers);
  Buffer<double> own_radii;
  const auto find = [&](const SearchProblem& own, const AllowedRows& rows, const Among::Group& group, SearchWay way) {
    const bool chooses = group.queries != nullptr;
    if (chooses && !own_radii.reserve(n)) return Status::out_of_memory;
    for (int64_t i = 0; i < group.count && chooses; ++i) own_radii[i] = radii[group.queries[i]];
    int next = 0;
    if (!workers.each([&](RadiusWorker& w) {
          w.begin(own, chooses ? own_radii.get() : radii, group.queries, count_only, hits, next++);
          return w.reserve(own, chosen.stop);
        }))
      return Status::out_of_memory;
    return way == SearchWay::refined ? refine_within(own, refined_sets(own, rows, group.mean), workers, chosen)
                                     : screen_within(own, rows, workers, chosen);
  };
  Status status;
  if (allowed.any_set()) {
    status = among.begin(p, allowed, chosen);
    if (status == Status::ok) status = among.search_groups(p, allowed, find);
  } else {
    status = find(p, allowed, {nullptr, nullptr, n, static_cast<double>(m)}, way_of(p));
  }
  return status == Status::ok && !hits.complete() ? Status::out_of_memory : status;
}

}  // namespace vecbank::cpu
