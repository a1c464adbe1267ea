// Searches that score every pair in float64, straight from the caller's rows: where there is no screen for the metric,
// and where preparing one would take longer, as with few pairs, or with nearly as many ranks as rows. Nothing is
// packed.
#include "refined.h"

#include "counted.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kMostQueries = 64;                 // against a block of the bank, which stays in L2 meanwhile
constexpr int64_t kListBytes = 8 << 20;              // of a worker
constexpr int64_t kLeastPart = 2 * Refiner::kBlock;  // bank rows that are worth a task; of wide rows,
constexpr int64_t kLeastWidePart = 64;

}  // namespace

bool RefinedWorker::reserve(const SearchProblem& p, int64_t rows, Stop stop) {
  if (list_count_ < rows) {
    lists_.reset(new (std::nothrow) TopKList[static_cast<size_t>(rows)]);
    list_count_ = lists_ == nullptr ? 0 : rows;
  }
  if (list_count_ < rows || !selector_.reserve(TopKList::capacity_for(p.k, p.bank.count))) return false;
  for (int64_t r = 0; r < rows; ++r)
    if (!lists_[r].reserve(p.k, p.bank.count)) return false;
  if (!refiner_.reserve(p.bank, p.bank.width, p.queries.col_stride == 1) ||
      !queries_.reserve(p.queries, refiner_.slots()))
    return false;
  refiner_.set_stop(stop);
  return !record(p.metric).scaled_rows() || norms_.reserve(Refiner::kBlock);
}

void RefinedWorker::refine_all(const SearchProblem& p, const GridTask& task) {
  const MetricRecord metric = record(p.metric);
  const bool packed = metric.unit_rows && p.pack != nullptr;
  for (int64_t from = task.from; from < task.to; from += Refiner::kBlock) {
    const int64_t rows = std::min(Refiner::kBlock, task.to - from);
    refiner_.set_metric(p.metric, nullptr);
    if (metric.scaled_rows() && !packed) refiner_.bank_norms(from, rows, norms_.get());
    const double* norms = !metric.scaled_rows() ? nullptr : packed ? pack_norms(p.pack) : norms_.get();
    refiner_.set_metric(p.metric, norms, packed ? 0 : from, p.bias);
    for (int64_t r = 0; r < task.rows; r += refiner_.slots()) {
      const int slots = static_cast<int>(std::min<int64_t>(refiner_.slots(), task.rows - r));
      refiner_.load_rows(queries_, p.queries, task.first + r, slots);
      refiner_.for_each_run(slots, nullptr, from, rows, [&](int s, const double* keys, int64_t n, auto&& row) {
        lists_[r + s].push_all(keys, n, row);
      });
      refined_ += slots * rows;
    }
  }
}

void RefinedWorker::refine_allowed(const SearchProblem& p, const RefinedSets& sets, const GridTask& task) {
  const bool normed = record(p.metric).unit_rows && p.pack != nullptr;
  refiner_.set_metric(p.metric, normed ? pack_norms(p.pack) : nullptr, 0, p.bias);
  refined_ = for_each_allowed_run(
      p, sets, refiner_, queries_, task,
      [&](int64_t q, const double* keys, int64_t n, auto&& row) { lists_[q - task.first].push_all(keys, n, row); });
}

void RefinedWorker::run(const SearchProblem& p, const RefinedSets* sets, const GridTask& task, Partials* partials) {
  for (int64_t r = 0; r < task.rows; ++r) lists_[r].clear();
  refined_ = 0;
  if (sets == nullptr)
    refine_all(p, task);
  else
    refine_allowed(p, *sets, task);
  if (task.part == 0) count(Counted::queries, task.rows);
  count(Counted::refined, refined_);
  count(Counted::repeated, task.rows);
  count(Counted::bytes, refined_ * p.bank.width * static_cast<int64_t>(size_of(p.bank.dtype)));
  for (int64_t r = 0; r < task.rows; ++r) {
    const int64_t kept = lists_[r].finish(selector_);
    if (partials == nullptr)
      write_result(p, task.first + r, lists_[r].data(), kept);
    else
      partials->put(1 + task.part, task.first + r, lists_[r].data(), kept);
  }
}

Status search_refined(const SearchProblem& p, const Parallel& parallel, RefinedWorker* alone, const RefinedSets* sets) {
  const int64_t n = p.queries.count, m = p.bank.count;
  const int64_t by_lists = kListBytes / (TopKList::capacity_for(p.k, m) * static_cast<int64_t>(sizeof(Scored)));
  Grid grid;
  const bool each = sets != nullptr && !sets->allowed.shared();
  grid.set_blocks(n, std::min(each ? kMostOfSets : kMostQueries, by_lists),
                  by_lists < Refiner::kQueries ? 1 : Refiner::kQueries);
  // Wide rows come from memory once for each block of queries, so it is rather the bank that is divided.
  const bool wide = p.bank.width > Refiner::kWide && m >= kLeastWidePart * parallel.workers;
  if (grid.blocks < kMostQueries && !(wide && grid.blocks < parallel.workers)) {  // as many for every worker
    grid.blocks = std::min(n, round_up_to(grid.blocks, parallel.workers));
    grid.even_blocks(wide ? Refiner::kQueries : 1);
  }
  int64_t parts = std::min(ceil_div(parallel.workers, grid.blocks), m / (wide ? kLeastWidePart : kLeastPart));
  parts = std::min(parts, kPartialBytes / (n * p.k * static_cast<int64_t>(sizeof(Scored))));
  grid.set_parts(m, parts);  // the grid's panels are single rows here
  Partials partials;
  if (grid.parts > 1 && !partials.begin(grid.parts + 1, n, p.k)) return Status::out_of_memory;
  if (alone != nullptr && grid.parts == 1) {
    if (!alone->reserve(p, grid.rows_per_block, parallel.stop)) return Status::out_of_memory;
    return for_each_task(grid, parallel, [&](int, const GridTask& task) { alone->run(p, sets, task, nullptr); });
  }
  PerWorker<RefinedWorker> workers(std::min<int64_t>(parallel.workers, grid.tasks()));
  if (!workers.each([&](RefinedWorker& w) { return w.reserve(p, grid.rows_per_block, parallel.stop); }))
    return Status::out_of_memory;
  const Status found = for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    workers[worker].run(p, sets, task, grid.parts > 1 ? &partials : nullptr);
  });
  return grid.parts > 1 && found == Status::ok ? merge(p, grid.parts + 1, true, partials, parallel) : found;
}

}  // namespace vecbank::cpu
