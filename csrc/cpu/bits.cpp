#include "bits.h"

#include <limits>

#include "allowed.h"
#include "api.h"
#include "bits_queries.h"
#include "pieces.h"
#include "search/radius.h"
#include "topk_list.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kUnit = kMostBitRows;            // rows; the parts of a bank are so many times a whole number
constexpr int64_t kLeastPart = 8;                  // units of a part
constexpr int64_t kTogether = 64;                  // queries whose hits are kept before they are looked at
constexpr int64_t kListBytes = int64_t{64} << 20;  // of the lists of a call
// A query that may be given fewer than one row in so many scores these rows one by one.
constexpr double kSelective = 16.0;

static_assert(kUnit % (4 * 32) == 0 && kUnit % (4 * 64) == 0);

// What writing panels costs is shared by the queries of a block.
Grid grid_for(const BitsProblem& p, const BitLayout& layout, int64_t most, int workers) {
  Grid grid;
  const int64_t units = ceil_div(p.bank.count, kUnit);
  most = std::min(most, layout.tables ? layout.most_queries() : 512);
  const int group = most < kMostBitHeight ? 1 : kMostBitHeight;
  grid.set_blocks(p.queries.count, most, group);
  int64_t parts = 1;
  if (grid.blocks < 2 * workers) {
    parts = std::clamp<int64_t>(2 * workers / grid.blocks, 1, std::max<int64_t>(1, units / kLeastPart));
    if (parts * grid.blocks < workers) {  // a small bank
      grid.blocks =
          std::clamp<int64_t>(ceil_div(workers, parts), grid.blocks, std::max<int64_t>(1, p.queries.count / 8));
      grid.even_blocks(group);
    }
  }
  grid.set_parts(units, parts);
  return grid;
}

int64_t panel_bytes(const BitLayout& layout) {
  const int64_t counted = layout.counts() ? layout.counted_rows() * layout.words * 8 * 2 : 0;
  return std::max(layout.tables ? kUnit * layout.positions : 0, counted);
}

BitPanelArgs panel_of(const BitsProblem& p, const BitLayout& layout, int64_t first, int64_t count, uint8_t* out) {
  BitPanelArgs panel;
  panel.data = p.bank.data;
  panel.stride = p.bank.stride;
  panel.first = first;
  panel.count = count;
  panel.bytes = layout.bytes;
  panel.planes = layout.bank_planes;
  panel.plane_positions = layout.plane_positions;
  panel.last_mask = layout.last_mask();
  panel.out = out;
  return panel;
}

void set_tiles(BitTiles& a, const BitTileKernels& k, const BitLayout& layout, bool narrow) {
  a.plane_positions = layout.plane_positions;
  a.planes = layout.bank_planes;
  a.chunk = layout.chunk(narrow);
  a.narrow = narrow;
  a.words = layout.words * k.halves;
}

// The memory of a worker, and what it does: every pair of a block of queries and a part of the bank that is at most as
// far apart as the query's limit goes to `sink`, in ascending order of rows. `sink.limit(q)`: of query q of the block
// as it is now; -1: no row. `sink.take(q, row, distance)`.
class BitWorker {
 public:
  bool reserve(const BitLayout& layout, int64_t block) {
    const int height = layout.tables ? kernels().bits.tables.height : 0;
    if (!queries_.reserve(layout, block, height) || !distances_.reserve(kStretch) || !places_.reserve(kStretch) ||
        !listed_.reserve(kStretch) || !scanned_.reserve(block))
      return false;
    if (height == 0 && !layout.counts()) return true;
    return limits_.reserve(block + kMostBitHeight) && hits_.reserve(kTogether * kUnit) &&
           panels_.reserve(panel_bytes(layout));
  }

  template <class Sink>
  void walk(const BitsProblem& p, const BitLayout& layout, const AllowedRows& allowed, bool best_only, int64_t first,
            int64_t count, int64_t from, int64_t to, Stop stop, Sink&& sink) {
    for (int64_t q = 0; q < count; ++q) queries_.set_words(layout, q, p.queries.row(first + q));
    const AllowedRows own = allowed.from(first);
    const bool some = allowed.any_set(), together = some && allowed.shared();
    const BitTileKernels* tiles = bit_tiles(layout, count);
    int64_t scanned = 0, single = 0;
    for (int64_t q = 0; q < count && !stop.requested(); ++q) {
      if (some && !together && own.expected(q) * kSelective < static_cast<double>(p.bank.count))
        among(p, layout, own, q, from, to, stop, sink);
      else if (tiles != nullptr)
        scanned_[scanned++] = static_cast<int32_t>(q);
      else if (some)
        among(p, layout, own, q, from, to, stop, sink);
      else
        ++single;
    }
    if (single > 0) {
      const int64_t stretch = layout.stretch();
      for (int64_t at = from; at < to && !stop.requested(); at += stretch)
        for (int64_t q = 0; q < count && !stop.requested(); ++q)
          rows_of(p, layout, q, nullptr, at, std::min(stretch, to - at), sink);
    }
    if (scanned > 0) scan(*tiles, p, layout, own, some, together, best_only, scanned, from, to, stop, sink);
  }

 private:
  // Without panels: rows [first, first + rows), or those that are listed.
  template <class Sink>
  void rows_of(const BitsProblem& p, const BitLayout& layout, int64_t q, const int64_t* listed, int64_t first,
               int64_t rows, Sink& sink) {
    const int64_t found = bit_distances(p, layout, queries_.words(layout, q), listed, first, rows, sink.limit(q),
                                        distances_.get(), places_.get());
    const int32_t *distances = distances_.get(), *places = places_.get();
    for (int64_t i = 0; i < found; ++i)
      if (distances[i] <= sink.limit(q))
        sink.take(q, listed != nullptr ? listed[places[i]] : first + places[i], distances[i]);
  }
  // The rows that a query may be given, one by one.
  template <class Sink>
  void among(const BitsProblem& p, const BitLayout& layout, const AllowedRows& own, int64_t q, int64_t from, int64_t to,
             Stop stop, Sink& sink) {
    for (int64_t at = from; at < to && !stop.requested();) {
      const int64_t rows = own.list(q, &at, to, kStretch, listed_.get());
      if (rows == 0) break;
      rows_of(p, layout, q, listed_.get(), 0, rows, sink);
    }
  }

  template <class Sink>
  void scan(const BitTileKernels& k, const BitsProblem& p, const BitLayout& layout, const AllowedRows& own, bool some,
            bool together, bool best_only, int64_t scanned, int64_t from, int64_t to, Stop stop, Sink& sink) {
    const bool counts = k.scan_columns != nullptr, few = counts && scanned <= kFewQueries;
    const bool narrow = !counts && layout.narrow(true), filter = some && !together;
    const bool words = filter && (own.has_words() || own.has_bools());
    const int64_t unit = counts && !few ? layout.counted_rows() : kUnit;
    if (counts)
      queries_.set_counted(layout, scanned_.get(), scanned, k.halves);
    else
      queries_.set_tables(layout, scanned_.get(), scanned, k.height, narrow);
    BitScanArgs a;
    set_tiles(a, k, layout, narrow);
    a.best_only = best_only && !filter;
    a.panels = panels_.get();
    a.hits = hits_.get();
    for (int64_t at = from; at < to && !stop.requested();) {
      const int64_t first = at;
      int64_t rows = std::min(unit, to - at);
      if (together)
        rows = own.list(0, &at, to, unit, listed_.get());
      else
        at += rows;
      if (rows == 0) break;
      BitPanelArgs panel = panel_of(p, layout, together ? 0 : first, rows, panels_.get());
      panel.index = together ? listed_.get() : nullptr;
      if (!few) k.panel(panel);
      a.panel_count = ceil_div(rows, k.width);
      for (int64_t start = 0; start < scanned; start += kTogether) {
        const int64_t queries = std::min(kTogether, scanned - start);
        for (int64_t i = 0; i < round_up_to(queries, k.height); ++i)
          limits_[i] = i < queries ? sink.limit(scanned_[start + i]) : -1;
        if (counts)
          a.query_words = queries_.counted() + start * a.words;
        else
          a.tables = queries_.tables() + start * layout.positions * 16;
        a.queries = round_up_to(queries, k.height);
        a.limits = limits_.get();
        if (few)
          k.scan_columns(panel, a);
        else
          k.scan(a);
        for (int64_t i = 0; i < a.hit_count; ++i) {
          const BitHit& hit = hits_[i];
          const int64_t q = scanned_[start + hit.query];
          if (hit.row >= rows) continue;  // what fills up the last panel
          const int64_t row = together ? listed_[hit.row] : first + hit.row;
          int32_t sum = hit.sum;
          if (narrow && sum == 255 && layout.largest > 255) {
            int32_t place;
            bit_distances(p, layout, queries_.words(layout, q), nullptr, row, 1, INT32_MAX, &sum, &place);
          }
          if (sum > sink.limit(q)) continue;
          if (filter && !(words ? may(own, q, row) : own.allows(q, row))) continue;
          sink.take(q, row, sum);
        }
      }
    }
  }

  // By words of 16 rows, which take less time than single rows of sets that are joined.
  static bool may(const AllowedRows& own, int64_t q, int64_t row) {
    return own.sixteen(q, row / 16 * 16) >> (row % 16) & 1;
  }

  BitQueries queries_;
  Buffer<uint8_t> panels_;
  Buffer<int32_t> limits_, distances_, places_, scanned_;
  Buffer<int64_t> listed_;
  Buffer<BitHit> hits_;
};

// How many rows of each distance a query's list was given, from which its k-th best distance follows at once: a list
// that is not sorted would only know it when it is full.
class DistanceCounts {
 public:
  static constexpr int64_t kMost = 1023;  // the largest distance
  static bool serve(const BitLayout& layout, int64_t k) { return k > TopKList::kSorted && layout.largest <= kMost; }

  bool reserve(const BitLayout& layout, int64_t queries) {
    size_ = layout.largest + 1;
    return counts_.reserve(queries * size_) && limits_.reserve(queries) && within_.reserve(queries);
  }
  void clear(int64_t query) {
    std::fill_n(counts_.get() + query * size_, size_, 0);
    limits_[query] = static_cast<int32_t>(size_) - 1;
    within_[query] = 0;
  }
  int32_t limit(int64_t query) const { return limits_[query]; }
  void add(int64_t query, int32_t distance, int64_t k) {
    int32_t* counts = counts_.get() + query * size_;
    int32_t& limit = limits_[query];
    int64_t& within = within_[query];
    ++counts[distance];
    ++within;
    // An equal distance of a later row never wins, so the limit lies below the k-th best distance.
    while (within >= k) within -= counts[limit--];
  }

 private:
  Buffer<int32_t> counts_, limits_;
  Buffer<int64_t> within_;  // rows at most the limit away, fewer than k
  int64_t size_ = 0;
};

// The lists of a block.
struct ListSink {
  TopKList* lists;
  DistanceCounts* counts;  // null: of no use
  int64_t first, k;        // the number of the first list in `counts`

  int32_t limit(int64_t q) const {
    if (counts != nullptr) return counts->limit(first + q);
    const double threshold = lists[q].threshold();
    return threshold == -std::numeric_limits<double>::infinity() ? INT32_MAX : static_cast<int32_t>(-threshold) - 1;
  }
  void take(int64_t q, int64_t row, int32_t distance) {
    lists[q].push(-static_cast<double>(distance), row);
    if (counts != nullptr) counts->add(first + q, distance, k);
  }
};

struct HitSink {
  const int64_t* radii;  // of the queries of the block
  Hits& hits;
  int worker;
  int64_t first;
  bool count_only;

  int32_t limit(int64_t q) const { return static_cast<int32_t>(std::clamp<int64_t>(radii[q], -1, INT32_MAX)); }
  void take(int64_t q, int64_t row, int32_t distance) {
    if (!count_only) hits.add(worker, {-static_cast<double>(distance), first + q, row});
    hits.count(first + q, 1);
  }
};

void write_best(const BitsProblem& p, int64_t query, const Scored* best, int64_t count) {
  for (int64_t i = 0; i < p.k; ++i) {
    p.values[query * p.k + i] = i < count ? static_cast<int32_t>(-best[i].key) : kNoDistance;
    p.indices[query * p.k + i] = i < count ? best[i].index : -1;
  }
}

struct MergeWorker {
  Selector selector;
  Buffer<Scored> all;
};

AllowedRows allowed_of(const BitsProblem& p) { return p.allowed != nullptr ? AllowedRows(*p.allowed) : AllowedRows(); }

// One worker where there is too little work to share: some tens of microseconds.
Parallel workers_of(const BitsProblem& p, const BitLayout& layout, const Parallel& parallel) {
  const auto queries = static_cast<double>(p.queries.count), rows = static_cast<double>(p.bank.count);
  const double each = queries + 4.0 * std::min(queries, static_cast<double>(kLeastForTables));  // rows or panels first
  Parallel chosen = parallel;
  if (each * rows * static_cast<double>(layout.bytes * layout.bank_planes) < 2e6) chosen.workers = 1;
  return chosen;
}

}  // namespace

Status bits_topk(const BitsProblem& p, const Parallel& callers) {
  const BitLayout layout(p);
  const Parallel parallel = workers_of(p, layout, callers);
  const int64_t k = std::min(p.k, p.bank.count);
  if (k == 0 || p.queries.count == 0) {
    for (int64_t q = 0; q < p.queries.count; ++q) write_best(p, q, nullptr, 0);
    return Status::ok;
  }
  const int64_t list_bytes = TopKList::capacity_for(k, p.bank.count) * static_cast<int64_t>(sizeof(Scored));
  const Grid grid =
      grid_for(p, layout, std::max<int64_t>(1, kListBytes / (parallel.workers * list_bytes)), parallel.workers);
  const int64_t part_rows = std::min(grid.panels_per_part * kUnit, p.bank.count), per_part = std::min(k, part_rows);
  const bool merge = grid.parts > 1;
  const int64_t list_count = merge ? grid.parts * p.queries.count : parallel.workers * grid.rows_per_block;
  PerWorker<TopKList> lists(list_count);
  DistanceCounts distance_counts;
  DistanceCounts* counts = DistanceCounts::serve(layout, per_part) ? &distance_counts : nullptr;
  PerWorker<BitWorker> workers(parallel.workers);
  PerWorker<MergeWorker> mergers(parallel.workers);
  if (counts != nullptr && !counts->reserve(layout, list_count)) return Status::out_of_memory;
  const int64_t entries = merge ? grid.parts * per_part : TopKList::capacity_for(k, p.bank.count);
  if (!lists.each([&](TopKList& list) {
        list.clear();  // of a part that has no rows, which no task begins
        return list.reserve(per_part, part_rows);
      }) ||
      !workers.each([&](BitWorker& w) { return w.reserve(layout, grid.rows_per_block); }) ||
      !mergers.each([&](MergeWorker& m) {
        return m.selector.reserve(std::max(entries, TopKList::capacity_for(per_part, part_rows))) &&
               m.all.reserve(entries);
      }))
    return Status::out_of_memory;
  const AllowedRows allowed = allowed_of(p);
  Status status = for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    const int64_t first = merge ? task.part * p.queries.count + task.first : worker * grid.rows_per_block;
    TopKList* own = lists.begin() + first;
    for (int64_t q = 0; q < task.rows; ++q) {
      own[q].clear();
      if (counts != nullptr) counts->clear(first + q);
    }
    workers[worker].walk(p, layout, allowed, p.k == 1, task.first, task.rows, task.from * kUnit,
                         std::min(task.to * kUnit, p.bank.count), parallel.stop,
                         ListSink{own, counts, first, per_part});
    for (int64_t q = 0; q < task.rows; ++q) {
      const int64_t count = own[q].finish(mergers[worker].selector);
      if (!merge) write_best(p, task.first + q, own[q].data(), count);
    }
  });
  if (status != Status::ok || !merge) return status;
  return for_each_task(parallel, p.queries.count, [&](int worker, int64_t q) {
    MergeWorker& m = mergers[worker];
    int64_t count = 0;
    for (int64_t part = 0; part < grid.parts; ++part) {
      TopKList& list = lists[part * p.queries.count + q];
      const int64_t some = list.finish(m.selector);
      std::copy_n(list.data(), some, m.all.get() + count);
      count += some;
    }
    count = m.selector.best(m.all.get(), count, k);
    write_best(p, q, m.all.get(), count);
  });
}

Status bits_within(const BitsProblem& p, const int64_t* radii, bool count_only, Hits& hits, const Parallel& callers) {
  if (!hits.reserve()) return Status::out_of_memory;
  if (p.queries.count == 0 || p.bank.count == 0) return Status::ok;
  const BitLayout layout(p);
  const Parallel parallel = workers_of(p, layout, callers);
  const Grid grid = grid_for(p, layout, INT64_MAX, parallel.workers);
  PerWorker<BitWorker> workers(parallel.workers);
  if (!workers.each([&](BitWorker& w) { return w.reserve(layout, grid.rows_per_block); })) return Status::out_of_memory;
  const AllowedRows allowed = allowed_of(p);
  const Status status = for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    workers[worker].walk(p, layout, allowed, false, task.first, task.rows, task.from * kUnit,
                         std::min(task.to * kUnit, p.bank.count), parallel.stop,
                         HitSink{radii + task.first, hits, worker, task.first, count_only});
  });
  return status != Status::ok ? status : hits.complete() ? Status::ok : Status::out_of_memory;
}

Status bits_scores(const BitsProblem& p, const Parallel& callers) {
  if (p.queries.count == 0 || p.bank.count == 0) return Status::ok;
  const BitLayout layout(p);
  const Parallel parallel = workers_of(p, layout, callers);
  const Grid grid = grid_for(p, layout, INT64_MAX, parallel.workers);
  const int height = layout.tables ? kernels().bits.tables.height : 0;
  struct Worker {
    BitQueries queries;
    Buffer<uint8_t> panels;
    Buffer<int32_t> places;
  };
  PerWorker<Worker> workers(parallel.workers);
  if (!workers.each([&](Worker& w) {
        return w.queries.reserve(layout, grid.rows_per_block, height) && w.panels.reserve(panel_bytes(layout)) &&
               w.places.reserve(kStretch);
      }))
    return Status::out_of_memory;
  return for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    Worker& w = workers[worker];
    const int64_t from = task.from * kUnit, to = std::min(task.to * kUnit, p.bank.count);
    for (int64_t q = 0; q < task.rows; ++q) w.queries.set_words(layout, q, p.queries.row(task.first + q));
    int32_t* out = p.values + task.first * p.bank.count;
    const BitTileKernels* tiles = bit_tiles(layout, task.rows);
    if (tiles == nullptr) {
      const int64_t stretch = layout.stretch();
      for (int64_t at = from; at < to && !parallel.stop.requested(); at += stretch)
        for (int64_t q = 0; q < task.rows && !parallel.stop.requested(); ++q)
          (void)bit_distances(p, layout, w.queries.words(layout, q), nullptr, at, std::min(stretch, to - at), INT32_MAX,
                              out + q * p.bank.count + at, w.places.get());
      return;
    }
    const BitTileKernels& k = *tiles;
    const bool counts = k.scan_columns != nullptr, narrow = !counts && layout.narrow(false);
    const int64_t unit = counts ? layout.counted_rows() : kUnit;
    if (counts)
      w.queries.set_counted(layout, nullptr, task.rows, k.halves);
    else
      w.queries.set_tables(layout, nullptr, task.rows, k.height, narrow);
    BitStoreArgs a;
    set_tiles(a, k, layout, narrow);
    a.tables = w.queries.tables();
    a.query_words = w.queries.counted();
    a.queries = round_up_to(task.rows, k.height);
    a.wanted = task.rows;
    a.panels = w.panels.get();
    a.out_stride = p.bank.count;
    for (int64_t at = from; at < to && !parallel.stop.requested(); at += unit) {
      a.rows = std::min(unit, to - at);
      k.panel(panel_of(p, layout, at, a.rows, w.panels.get()));
      a.panel_count = ceil_div(a.rows, k.width);
      a.out = out + at;
      k.store(a);
    }
  });
}

}  // namespace vecbank::cpu
