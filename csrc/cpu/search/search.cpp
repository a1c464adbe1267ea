// search(): pieces of a plain tensor, parts of a piece, and the merge of their results.
#include <cstring>
#include <limits>
#include <new>

#include "../ways.h"
#include "among.h"
#include "counted.h"
#include "merge.h"
#include "worker.h"

namespace vecbank::cpu {

// A plain tensor is packed in pieces of this size, or up to kMostPackBytes where that is fewer than kPieceRows rows.
constexpr int64_t kPackBytes = 6 << 20, kPieceRows = 512;

void write_result(const SearchProblem& p, int64_t query, const Scored* best, int64_t count) {
  const double worst = worst_value(p.metric);
  for (int64_t i = 0; i < p.k; ++i) {
    const int64_t at = query * p.k + i;
    if (p.indices != nullptr) p.indices[at] = i < count ? best[i].index : -1;
    if (p.values == nullptr) continue;
    const double value = p.keys      ? (i < count ? best[i].key : -HUGE_VAL)
                         : i < count ? value_of(p.metric, best[i].key)
                                     : worst;
    if (p.values_dtype == DType::f64)
      static_cast<double*>(p.values)[at] = value;
    else
      static_cast<float*>(p.values)[at] = static_cast<float>(value);
  }
  if (p.gathered == nullptr) return;
  const int64_t d = p.bank.width, size = static_cast<int64_t>(size_of(p.bank.dtype));
  char* out = static_cast<char*>(p.gathered) + query * d * size;
  if (count > 0) {
    copy_row(p.bank, best[0].index, out);
    return;
  }
  with_dtype(p.bank.dtype, [&](auto type) {
    auto* values = reinterpret_cast<Element<decltype(type)>*>(out);
    for (int64_t k = 0; k < d; ++k) narrow(std::numeric_limits<double>::quiet_NaN(), values + k);
  });
}

void SearchTask::report(int64_t row, const Scored* best, int64_t count) const {
  const int64_t query = first + row, k = job->problem.k;
  if (job->partial == nullptr) return write_result(job->problem, query, best, count);
  const int64_t at = part * job->problem.queries.count + query;
  job->partial_counts[at] = count;
  Scored* out = job->partial + at * k;
  for (int64_t i = 0; i < count; ++i) out[i] = {best[i].key, best[i].index + job->offset};
}

namespace {

// Which rows the queries of a search may be given, for its jobs.
struct ScreenedSets {
  AllowedRows allowed;
  const float* expected = nullptr;
  int64_t bank_rows = 0;

  ScreenedSets from(int64_t query) const {
    return {allowed.from(query), expected == nullptr ? nullptr : expected + query, bank_rows};
  }
};

Status search_piece(const SearchProblem& whole, const ScreenedSets& sets, const Piece& piece, Partials& partials,
                    const Parallel& parallel) {
  SearchProblem p = whole;
  p.bank = piece.bank;
  p.bias = piece.bias;
  SearchJob job{p, piece.header, plan_search(p, piece.header, parallel.workers), parallel.stop};
  job.allowed = sets.allowed;
  job.expected = sets.expected;
  job.expected_of = sets.bank_rows;
  const int64_t n = p.queries.count, parts = job.plan.grid.parts;
  const bool merging = !(piece.first && piece.last) || parts > 1;
  Buffer<std::atomic<float>> shared;
  if (merging) {
    if (!(piece.first ? partials.begin(parts + 1, n, p.k) : partials.reserve(parts + 1, n, p.k)) || !shared.reserve(n))
      return Status::out_of_memory;
    for (int64_t i = 0; i < n; ++i) new (&shared[i]) std::atomic<float>(-HUGE_VALF);
    job.shared = shared.get();
    if (!piece.first) job.earlier = partials.lists.get(), job.earlier_counts = partials.counts.get();
    job.partial = partials.lists.get() + n * p.k;
    job.partial_counts = partials.counts.get() + n;
  }
  job.offset = piece.offset;
  PerWorker<SearchWorker> workers(std::min<int64_t>(parallel.workers, job.plan.grid.tasks()));
  if (!workers.each([&](SearchWorker& worker) { return worker.reserve(p, job.plan); })) return Status::out_of_memory;
  SharedHeadUse use;
  if (job.plan.begins_with_head()) job.head_use = &use;
  const Status found =
      for_each_task(job.plan.grid, parallel, [&](int worker, const GridTask& task) { workers[worker].run(job, task); });
  if (job.head_use != nullptr)
    add_head_use(&piece.header, {1, n * p.bank.count, use.scanned, use.survivors, use.repeated});
  return merging && found == Status::ok ? merge(whole, parts + 1, piece.last, partials, parallel) : found;
}

}  // namespace

Status search_alone(const SearchProblem& p, SearchWorker& worker, Stop stop) {
  Parallel alone;
  alone.stop = stop;
  const SearchJob job{p, *p.pack, plan_search(p, *p.pack, 1), stop};
  if (job.plan.grid.parts != 1) return search(p, alone);  // a bank beyond 2^30 rows
  if (!worker.reserve(p, job.plan)) return Status::out_of_memory;
  return for_each_task(job.plan.grid, alone, [&](int, const GridTask& task) { worker.run(job, task); });
}

Status search_each(const SearchProblem* problems, int64_t count, const Parallel& parallel) {
  PerWorker<RefinedWorker> workers(parallel.workers);
  if (!workers.each([](RefinedWorker&) { return true; })) return Status::out_of_memory;
  return solve_each(problems, count, parallel, [&](int worker, const SearchProblem& p, const Parallel& alone) {
    const bool masked = p.allowed != nullptr || p.mask.data != nullptr;
    const bool refined = p.queries.count > 0 && p.bank.count > 0 && !masked && way_of(p) == SearchWay::refined;
    return refined ? search_refined(p, alone, &workers[worker]) : search(p, alone);
  });
}

namespace {

// By screens. `chosen`: among these rows of the bank alone, `count` of them.
Status search_screened(const SearchProblem& p, const ScreenedSets& sets, const Parallel& parallel,
                       const int64_t* chosen = nullptr, int64_t count = 0) {
  Rows bank = p.bank;
  if (chosen != nullptr) bank.count = count;
  const PackHeader* pack = chosen != nullptr ? nullptr : p.pack;
  // Pieces are of even size: a small last piece would have too few rows to screen, and be refined entirely.
  // The queries are packed once for each piece, so a piece of wide rows is larger.
  const int64_t wanted = kPieceRows * bank.width * static_cast<int64_t>(sizeof(float));
  const int64_t most = rows_of_piece(std::clamp(wanted, kPackBytes, kMostPackBytes), bank.width, sizeof(float));
  const int64_t rows = round_up_to(ceil_div(bank.count, ceil_div(bank.count, most)), kPanel);
  // The best rows of all queries are kept from piece to piece, so the number of queries at a time is bounded.
  const bool pieces = pack == nullptr && rows < bank.count;
  const int64_t step =
      pieces ? std::max<int64_t>(1024, kPartialBytes / (p.k * static_cast<int64_t>(sizeof(Scored)))) : p.queries.count;
  SearchProblem of_kind = p;
  of_kind.bank = bank;
  of_kind.pack = pack;
  const PanelKind kind = panels_of(of_kind);
  Status status = Status::ok;
  for (int64_t q = 0; q < p.queries.count && status == Status::ok; q += step) {
    SearchProblem slice = of_kind;
    slice.queries.data = p.queries.row(q);
    slice.queries.count = std::min(step, p.queries.count - q);
    if (p.indices != nullptr) slice.indices = p.indices + q * p.k;
    if (p.values != nullptr)
      slice.values = static_cast<char*>(p.values) + q * p.k * static_cast<int64_t>(size_of(p.values_dtype));
    if (p.gathered != nullptr)
      slice.gathered = static_cast<char*>(p.gathered) + q * bank.width * static_cast<int64_t>(size_of(bank.dtype));
    const ScreenedSets part = sets.from(q);
    Partials partials;
    status = for_each_piece<float>(
        bank, pack, p.metric, p.bias, rows, kind, parallel,
        [&](const Piece& piece) { return search_piece(slice, part, piece, partials, parallel); }, chosen);
  }
  for (int64_t i = 0; i < p.queries.count * p.k && chosen != nullptr && status == Status::ok; ++i)
    if (p.indices[i] >= 0) p.indices[i] = chosen[p.indices[i]];
  return status;
}

// Among candidate sets. A set that all queries share is listed once, and its rows are gathered, refined or screened. Of
// sets of their own, queries that may be given few rows have them refined, and the others pass over what they may not
// be given.
Status search_among(const SearchProblem& p, const AllowedRows& allowed, const Parallel& parallel) {
  const int64_t n = p.queries.count, m = p.bank.count;
  Among among;
  if (const Status told = among.begin(p, allowed, parallel); told != Status::ok) return told;
  if (!allowed.shared())
    return among.search_groups(
        p, allowed, [&](const SearchProblem& own, const AllowedRows& rows, const Among::Group& group, SearchWay way) {
          if (way == SearchWay::screened) return search_screened(own, {rows, group.expected, m}, parallel);
          const RefinedSets sets = refined_sets(own, rows, group.mean);
          return search_refined(own, parallel, nullptr, &sets);
        });
  const bool gathers = p.indices != nullptr && p.gathered == nullptr;  // rows are renumbered
  const SearchWay way = way_among(p, among.mean(), gathers);
  if (way == SearchWay::refined) {
    const RefinedSets all{allowed};
    return search_refined(p, parallel, nullptr, &all);
  }
  if (way == SearchWay::screened) {  // once for all queries
    Buffer<uint16_t> words;
    const int64_t count = ceil_div(m, 16);
    if (!words.reserve(count)) return Status::out_of_memory;
    allowed.words(0, 0, count, words.get());
    CandidateSet bits;
    bits.kind = SetKind::bits;
    bits.data = words.get();
    bits.width = 2 * count;
    const int32_t program = 0;
    return search_screened(p, {AllowedRows(Allowed{&bits, 1, &program, 1, m}), among.expected(), m}, parallel);
  }
  Buffer<int64_t> rows;
  const AllowedRows::Extent extent = allowed.extent(0);
  if (!rows.reserve(std::max<int64_t>(extent.most, 0) + 64)) return Status::out_of_memory;
  int64_t count = 0, at = extent.first;
  while (const int64_t more = allowed.list(0, &at, extent.end, extent.most + 64 - count, rows.get() + count))
    count += more;
  if (count == 0) {
    for (int64_t q = 0; q < n; ++q) write_result(p, q, nullptr, 0);
    return Status::ok;
  }
  return search_screened(p, {{}, nullptr, count}, parallel, rows.get(), count);
}

}  // namespace

Status search(const SearchProblem& p, const Parallel& parallel) {
  if (p.queries.count == 0) return Status::ok;
  if (p.bank.count == 0) {
    for (int64_t q = 0; q < p.queries.count; ++q) write_result(p, q, nullptr, 0);
    return Status::ok;
  }
  const Parallel chosen = workers_for(parallel, static_cast<double>(p.queries.count), static_cast<double>(p.bank.count),
                                      static_cast<double>(p.bank.width));
  if (p.allowed != nullptr || p.mask.data != nullptr) {
    CandidateSet alone;
    alone.mask = p.mask;
    const int32_t program = 0;
    return search_among(
        p, AllowedRows(p.allowed != nullptr ? *p.allowed : Allowed{&alone, 1, &program, 1, p.bank.count}), chosen);
  }
  return way_of(p) == SearchWay::refined ? search_refined(p, chosen) : search_screened(p, {}, chosen);
}

}  // namespace vecbank::cpu
