// project() writes the whole similarity matrix, from float64 tiles for float64 inputs and from float32 tiles for all
// others. Its exact form refines every score, of all pairs or of listed ones.
#include <atomic>
#include <limits>

#include "direct.h"
#include "pieces.h"
#include "queries.h"
#include "raw.h"
#include "refine.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kBlockBytes = 192 << 10;  // packed queries of a block: part of L2
constexpr int64_t kPieceBytes = 24 << 20;   // a plain tensor is packed in pieces of this size
constexpr int64_t kAlone = 1 << 16;         // numbers of a problem that is solved in memory kept for the next one
constexpr int64_t kStretch = 1 << 27;  // multiplications between two checks of the flag: at most a tenth of a second

// What a worker needs to score pairs in float64.
struct Scorer {
  static constexpr int64_t kRows = 64;  // queries against one block of the bank, which stays in L2 meanwhile
  RowReader queries;
  Refiner refiner;
  int64_t ranks[Refiner::kBlock];

  bool reserve(const ProjectProblem& p, const double* norms, Stop stop) {
    if (!refiner.reserve(p.bank, p.bank.width, p.queries.col_stride == 1) ||
        !queries.reserve(p.queries, refiner.slots()))
      return false;
    refiner.set_metric(p.metric, norms);
    refiner.set_stop(stop);
    return true;
  }

  void all(const ProjectProblem& p, int64_t first, int64_t count, int64_t from, int64_t columns) {
    char* out = static_cast<char*>(p.out);
    const int64_t size = static_cast<int64_t>(size_of(p.out_dtype));
    const MetricRecord metric = record(p.metric);
    for (int64_t i = first; i < first + count; i += refiner.slots()) {
      const int slots = static_cast<int>(std::min<int64_t>(refiner.slots(), first + count - i));
      refiner.load_rows(queries, p.queries, i, slots);
      refiner.for_each_run(slots, nullptr, from, columns, [&](int s, double* keys, int64_t n, auto&& row) {
        if (metric.arc)
          for (int64_t j = 0; j < n; ++j) keys[j] = value_of(metric, keys[j]);
        else if (metric.smaller_is_better || metric.root)
          kernels().finish({.scores = keys, .count = n, .negate = metric.smaller_is_better, .root = metric.root});
        kernels().narrow(keys, p.out_dtype, n, out + ((i + s) * p.out_columns + row(0)) * size);
      });
    }
  }

  template <class E>
  bool listed(const ProjectProblem& p, int64_t row) {
    const int64_t* indices = p.indices + row * p.k;
    E* out = static_cast<E*>(p.out) + row * p.k;
    const MetricRecord metric = record(p.metric);
    bool loaded = false;
    for (int64_t t = 0; t < p.k;) {
      int64_t found = 0;
      for (; t < p.k && found < Refiner::kBlock; ++t) {
        if (indices[t] < -1 || indices[t] >= p.bank.count) return false;
        if (indices[t] < 0) {
          narrow(0.0, out + t);
          continue;
        }
        refiner.indices()[found] = indices[t];
        ranks[found++] = t;
      }
      if (found == 0) continue;
      if (!loaded) refiner.load(0, queries.row(row), p.queries.dtype);
      loaded = true;
      const int64_t* at = ranks;
      refiner.for_each_key(1, refiner.indices(), 0, found,
                           [&](int, double key, int64_t) { narrow(value_of(metric, key), out + *at++); });
    }
    return true;
  }
};

Status project_exact(const ProjectProblem& p, const Parallel& parallel) {
  KeepSubnormals keep;
  Buffer<double> norms;
  PerWorker<Scorer> workers(parallel.workers);
  if (!norms.reserve(p.bank.count) ||
      !workers.each([&](Scorer& scorer) { return scorer.reserve(p, norms.get(), parallel.stop); }))
    return Status::out_of_memory;
  if (record(p.metric).scaled_rows()) workers[0].refiner.bank_norms(0, p.bank.count, norms.get());
  const int64_t n = p.queries.count, m = p.bank.count;
  if (p.indices == nullptr) {
    const int64_t blocks = ceil_div(n, Scorer::kRows);
    const int64_t columns = std::min(Refiner::kBlock, ceil_div(m, ceil_div(parallel.workers, blocks)));
    const int64_t parts = ceil_div(m, columns);
    return for_each_task(parallel, blocks * parts, [&](int worker, int64_t task) {
      const int64_t first = task / parts * Scorer::kRows, from = task % parts * columns;
      workers[worker].all(p, first, std::min(Scorer::kRows, n - first), from, std::min(columns, m - from));
    });
  }
  std::atomic<bool> bad{false};
  const int64_t rows = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, p.k * p.bank.width));
  const Status scored = for_each_task(parallel, ceil_div(n, rows), [&](int worker, int64_t task) {
    with_dtype(p.out_dtype, [&](auto type) {
      for (int64_t i = task * rows; i < std::min(n, (task + 1) * rows); ++i)
        if (!workers[worker].listed<Element<decltype(type)>>(p, i)) bad = true;
    });
  });
  return bad ? Status::bad_index : scored;
}

template <class T>
class Projector {
  static_assert(Refiner::kQueries <= QueryBlock<T>::kOriginals);

 public:
  bool reserve(const ProjectProblem& p, int64_t rows, int group, Stop stop) {
    stop_ = stop;
    refiner_.set_stop(stop);
    return queries_.reserve(p.queries, rows, group) && scale_.reserve(rows + 16) && term_.reserve(rows + 16) &&
           refiner_.reserve(p.bank, p.bank.width) && fallback_.reserve(rows);
  }

  // Multiplies a block of queries with a part of the piece that starts at bank row `offset`.
  void run(const ProjectProblem& p, const PackHeader& h, int64_t offset, const GridTask& task) {
    const int64_t first = task.first, count = task.rows, from = task.from, to = task.to;
    queries_.pack(p.queries, h, first, count);
    for (int64_t r = 0; r < count + 16; ++r) scale_[r] = term_[r] = 0;
    for (int64_t r = 0; r < count; ++r) {
      const auto back = dense_factors<T>(p.metric, queries_.frame(r), queries_.centre_dot(r), h.exponent);
      scale_[r] = back.scale;
      term_[r] = back.term;
      fallback_[r] = !back.fits;
    }
    const Panels<T> panels = panels_as<T>(&h);
    StoreArgs<T> args;
    args.tile = {queries_.data(), queries_.stride(), queries_.group(), count};
    args.tile.panel_stride = args.tile.start_stride = panels.stride();
    args.tile.width = h.width;
    args.scale = scale_.get();
    args.term = term_.get();
    args.finish = finish_of(p.metric);
    const int64_t size = static_cast<int64_t>(size_of(p.out_dtype));
    args.out_dtype = p.out_dtype;
    args.out_stride = p.out_columns;
    const int64_t stretch = round_up_to(ceil_div(kStretch, count * (h.width + 1) * kPanel), 8);
    in_stretches(stop_, from, to, stretch, [&](int64_t begin, int64_t end) {
      args.tile.panels = args.tile.starts = panels.panel(begin);
      args.tile.columns = std::min(h.rows, end * kPanel) - begin * kPanel;
      args.tile.next = end < to ? panels.panel(end) : nullptr;
      args.out = static_cast<char*>(p.out) + (first * p.out_columns + begin * kPanel + offset) * size;
      if constexpr (sizeof(T) == 4)
        kernels().store_f32(args);
      else
        kernels().store_f64(args);
    });
    rescore(p, h, offset, first, count, from * kPanel, std::min(h.rows, to * kPanel));
  }

 private:
  // Fallback rows and columns, which tiles cannot carry (not finite, or of extreme scale), are scored in float64.
  void rescore(const ProjectProblem& p, const PackHeader& h, int64_t offset, int64_t first, int64_t count,
               int64_t begin, int64_t end) {
    refiner_.set_frame(h, nullptr);
    const auto write = [&](int64_t r, int64_t j, double key) {
      with_dtype(p.out_dtype, [&](auto type) {
        narrow(value_of(p.metric, key),
               static_cast<Element<decltype(type)>*>(p.out) + (first + r) * p.out_columns + offset + j);
      });
    };
    for (int64_t r = 0; r < count && !stop_.requested(); ++r) {
      if (!fallback_[r]) continue;
      refiner_.load(0, queries_.original(first + r), p.queries.dtype);
      refiner_.for_each_key(1, nullptr, begin, end - begin, [&](int, double key, int64_t j) { write(r, j, key); });
    }
    if (h.exceptional == h.negligible) return;
    const RowKind* kinds = pack_kinds(&h);
    int64_t scored = 0;
    const auto flush = [&] {
      for (int64_t r = 0; r < count && scored > 0; r += Refiner::kQueries) {
        const int slots = static_cast<int>(std::min<int64_t>(Refiner::kQueries, count - r));
        for (int s = 0; s < slots; ++s) refiner_.load(s, queries_.original(first + r + s, s), p.queries.dtype);
        refiner_.for_each_key(slots, refiner_.indices(), 0, scored,
                              [&](int s, double key, int64_t j) { write(r + s, j, key); });
      }
      scored = 0;
    };
    for (int64_t j = begin; j < end; ++j) {
      if (kinds[j] == RowKind::fallback || kinds[j] == RowKind::far) refiner_.indices()[scored++] = j;
      if (scored == Refiner::kBlock) flush();
      if (kinds[j] == RowKind::never)
        for (int64_t r = 0; r < count; ++r) write(r, j, std::numeric_limits<double>::quiet_NaN());
    }
    flush();
  }

  QueryBlock<T> queries_;
  Buffer<T> scale_, term_;
  Buffer<bool> fallback_;
  Refiner refiner_;
  Stop stop_;
};

template <class T>
Status project_piece(const ProjectProblem& whole, const Piece& piece, const Parallel& parallel) {
  ProjectProblem p = whole;
  p.bank = piece.bank;
  const int group = sizeof(T) == 4 ? kernels().height_for(p.queries.count) : kernels().height_f64;
  const int64_t rows = kBlockBytes / ((p.bank.width + 1) * static_cast<int64_t>(sizeof(T)));
  const Grid grid = product_grid(p.queries.count, p.bank.count, rows, group, parallel.workers);
  PerWorker<Projector<T>> workers(std::min<int64_t>(parallel.workers, grid.tasks()));
  if (!workers.each([&](auto& worker) { return worker.reserve(p, grid.rows_per_block, group, parallel.stop); }))
    return Status::out_of_memory;
  return for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    workers[worker].run(p, piece.header, piece.offset, task);
  });
}

template <class T>
Status project_as(const ProjectProblem& p, const Parallel& parallel) {
  const PackHeader* pack =
      sizeof(T) == 4 && p.pack != nullptr && p.pack->panels == PanelKind::float32 ? p.pack : nullptr;
  const PanelKind kind = sizeof(T) == 4 ? PanelKind::float32 : PanelKind::float64;
  return for_each_piece<T>(p.bank, pack, p.metric, nullptr, rows_of_piece(kPieceBytes, p.bank.width, sizeof(T)), kind,
                           parallel, [&](const Piece& piece) { return project_piece<T>(p, piece, parallel); });
}

}  // namespace

Status project(const ProjectProblem& problem, const Parallel& parallel) {
  if (problem.queries.count == 0 || (problem.bank.count == 0 && problem.indices == nullptr)) return Status::ok;
  ProjectProblem p = problem;
  p.out_columns = p.bank.count;
  const double columns = static_cast<double>(p.indices == nullptr ? p.bank.count : p.k);
  const double queries = static_cast<double>(p.queries.count), width = static_cast<double>(p.bank.width);
  const Parallel chosen = workers_for(parallel, queries, columns, width);
  const ProjectWay way = way_of(p);
  if (way == ProjectWay::exact) return project_exact(p, chosen);
  if (way == ProjectWay::direct) return project_direct(p, chosen);
  if (way == ProjectWay::raw) return project_raw(p, chosen);
  return p.bank.dtype == DType::f64 ? project_as<double>(p, chosen) : project_as<float>(p, chosen);
}

Status project_each(const ProjectProblem* problems, int64_t count, const Parallel& parallel) {
  struct Alone {
    DirectAlone direct;
    RawAlone raw;
  };
  PerWorker<Alone> workers(parallel.workers);
  if (!workers.each([](Alone&) { return true; })) return Status::out_of_memory;
  return solve_each(problems, count, parallel, [&](int worker, const ProjectProblem& given, const Parallel& alone) {
    if (given.queries.count == 0 || given.bank.count == 0) return Status::ok;
    ProjectProblem p = given;
    p.out_columns = p.bank.count;
    const ProjectWay way = way_of(p);
    if (way == ProjectWay::raw && (p.queries.count + p.bank.count) * p.bank.width < kAlone)
      return workers[worker].raw.project(p, alone.stop);
    if (way == ProjectWay::direct && p.queries.count <= DirectAlone::kQueryRows)
      return workers[worker].direct.project(p, alone.stop);
    return project(given, alone);
  });
}

}  // namespace vecbank::cpu
