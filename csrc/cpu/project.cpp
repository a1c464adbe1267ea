// project(): the whole similarity matrix, written once. float64 in, float64 tiles; everything else, float32 tiles.
// Its exact form: refined scores alone, of all pairs or of listed ones.
#include <atomic>
#include <limits>
#include <new>

#include "api.h"
#include "pack.h"
#include "queries.h"
#include "refine.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kBlockBytes = 192 << 10;  // packed queries of a block: part of L2
constexpr int64_t kPieceBytes = 24 << 20;   // a plain tensor is packed in pieces of this size
constexpr int kMaxScaleExponent = 120;      // what a float32 scale can undo
constexpr int64_t kStretch = 1 << 27;       // products between two looks at the flag: at most a tenth of a second

template <class T>
void store(const StoreArgs<T>& args) {
  if constexpr (sizeof(T) == 4)
    kernels().store_f32(args);
  else
    kernels().store_f64(args);
}

// Products so small that packing would cost more than they do: every score is refined, to the last bit.
constexpr double kSmall = 1 << 16;

// What a worker needs to score pairs in float64.
struct Scorer {
  static constexpr int64_t kRows = 64;  // queries against one block of the bank, which stays in L2 meanwhile
  RowReader queries;
  Refiner refiner;
  int64_t place[Refiner::kBlock];

  bool reserve(const ProjectProblem& p, const double* norms, Stop stop) {
    if (!queries.reserve(p.queries, 1) || !refiner.reserve(p.bank, p.bank.width)) return false;
    refiner.set_metric(p.metric, norms);
    refiner.set_stop(stop);
    return true;
  }

  template <class E>
  void all(const ProjectProblem& p, int64_t first, int64_t count, int64_t from, int64_t columns) {
    E* out = static_cast<E*>(p.out);
    for (int64_t i = first; i < first + count; i += Refiner::kQueries) {
      const int slots = static_cast<int>(std::min<int64_t>(Refiner::kQueries, first + count - i));
      for (int s = 0; s < slots; ++s) refiner.load(s, queries.row(i + s), p.queries.dtype);
      refiner.for_each_key(slots, nullptr, from, columns, [&](int s, double key, int64_t j) {
        narrow(value_of(p.metric, key), out + (i + s) * p.out_columns + j);
      });
    }
  }

  template <class E>
  bool listed(const ProjectProblem& p, int64_t row) {
    const int64_t* indices = p.indices + row * p.k;
    E* out = static_cast<E*>(p.out) + row * p.k;
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
        place[found++] = t;
      }
      if (found == 0) continue;
      if (!loaded) refiner.load(0, queries.row(row), p.queries.dtype);
      loaded = true;
      const int64_t* at = place;
      refiner.for_each_key(1, refiner.indices(), 0, found,
                           [&](int, double key, int64_t) { narrow(value_of(p.metric, key), out + *at++); });
    }
    return true;
  }
};

Status project_exact(const ProjectProblem& p, const Parallel& parallel) {
  KeepSubnormals keep;
  Buffer<double> norms;
  std::unique_ptr<Scorer[]> crew(new (std::nothrow) Scorer[parallel.workers]);
  if (!crew || !norms.reserve(p.bank.count)) return Status::out_of_memory;
  for (int w = 0; w < parallel.workers; ++w)
    if (!crew[w].reserve(p, norms.get(), parallel.stop)) return Status::out_of_memory;
  if (p.metric == Metric::cosine) crew[0].refiner.bank_norms(norms.get());
  const int64_t n = p.queries.count, m = p.bank.count;
  if (p.indices == nullptr) {
    const int64_t parts = ceil_div(m, Refiner::kBlock);
    return for_each_task(parallel, ceil_div(n, Scorer::kRows) * parts, [&](int worker, int64_t task) {
      const int64_t first = task / parts * Scorer::kRows, from = task % parts * Refiner::kBlock;
      with_dtype(p.out_dtype, [&](auto type) {
        crew[worker].all<Element<decltype(type)>>(p, first, std::min(Scorer::kRows, n - first), from,
                                                  std::min(Refiner::kBlock, m - from));
      });
    });
  }
  std::atomic<bool> bad{false};
  const int64_t rows = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, p.k * p.bank.width));
  const Status scored = for_each_task(parallel, ceil_div(n, rows), [&](int worker, int64_t task) {
    with_dtype(p.out_dtype, [&](auto type) {
      for (int64_t i = task * rows; i < std::min(n, (task + 1) * rows); ++i)
        if (!crew[worker].listed<Element<decltype(type)>>(p, i)) bad = true;
    });
  });
  return bad ? Status::bad_index : scored;
}

template <class T>
class Projector {
 public:
  bool reserve(const ProjectProblem& p, int64_t rows, int group, Stop stop) {
    stop_ = stop;
    refiner_.set_stop(stop);
    return queries_.reserve(p.queries, rows, group) && scale_.reserve(rows + 16) && term_.reserve(rows + 16) &&
           refiner_.reserve(p.bank, p.bank.width) && odd_.reserve(rows);
  }

  // Rows [first, first + count) against panels [from, to) of the piece that starts at bank row `offset`.
  void run(const ProjectProblem& p, const PackHeader& h, int64_t offset, int64_t first, int64_t count, int64_t from,
           int64_t to) {
    queries_.pack(p.queries, h, first, count);
    for (int64_t r = 0; r < count + 16; ++r) scale_[r] = term_[r] = 0;
    for (int64_t r = 0; r < count; ++r) odd_[r] = !frame(p, h, r);
    const Panels<T> panels = panels_as<T>(&h);
    StoreArgs<T> args;
    args.tile = {queries_.data(), queries_.stride(), queries_.group(), count};
    args.tile.panel_stride = panels.stride();
    args.tile.width = h.width;
    args.scale = scale_.get();
    args.term = term_.get();
    args.finish = !is_distance(p.metric) ? Finish::linear : p.metric == Metric::l2 ? Finish::rooted : Finish::squared;
    const int64_t size = static_cast<int64_t>(size_of(p.out_dtype));
    args.out_dtype = p.out_dtype;
    args.out_stride = p.out_columns;
    const int64_t stretch = round_up_to(ceil_div(kStretch, count * (h.width + 1) * kPanel), 8);
    in_stretches(stop_, from, to, stretch, [&](int64_t begin, int64_t end) {
      args.tile.panels = panels.panel(begin);
      args.tile.columns = std::min(h.rows, end * kPanel) - begin * kPanel;
      args.tile.next = end < to ? panels.panel(end) : nullptr;
      args.out = static_cast<char*>(p.out) + (first * p.out_columns + begin * kPanel + offset) * size;
      store(args);
    });
    mend(p, h, offset, first, count, from * kPanel, std::min(h.rows, to * kPanel));
  }

 private:
  // value = score * scale + term brings a tile back from the packed frame. False: float cannot hold the factors.
  bool frame(const ProjectProblem& p, const PackHeader& h, int64_t r) {
    const int shift = queries_.exponent(r) + h.exponent;
    if (!queries_.usable(r) || (sizeof(T) == 4 && std::abs(shift) > kMaxScaleExponent)) return false;
    const double unit = std::ldexp(1.0, -shift);
    double scale = unit, term = queries_.centre_dot(r);
    if (is_distance(p.metric)) {
      scale = -2.0 * unit;
      term = queries_.squares(r) * unit;
    } else if (p.metric == Metric::cosine) {
      const double norm = std::sqrt(queries_.squares(r));
      const double inverse = 1.0 / (norm < kNormFloor ? kNormFloor : norm);
      scale *= inverse;
      term *= inverse;
    }
    scale_[r] = static_cast<T>(scale);
    term_[r] = static_cast<T>(term);
    return true;
  }

  // Rows and columns that the tiles cannot carry (not finite, or out of all proportion) are scored in float64.
  void mend(const ProjectProblem& p, const PackHeader& h, int64_t offset, int64_t first, int64_t count, int64_t begin,
            int64_t end) {
    refiner_.set_frame(h);
    const auto write = [&](int64_t r, int64_t j, double key) {
      with_dtype(p.out_dtype, [&](auto type) {
        narrow(value_of(p.metric, key),
               static_cast<Element<decltype(type)>*>(p.out) + (first + r) * p.out_columns + offset + j);
      });
    };
    for (int64_t r = 0; r < count && !stop_.asked(); ++r) {
      if (!odd_[r]) continue;
      refiner_.load(0, queries_.original(first + r), p.queries.dtype);
      refiner_.for_each_key(1, nullptr, begin, end - begin, [&](int, double key, int64_t j) { write(r, j, key); });
    }
    if (h.odd == h.negligible) return;
    const RowKind* kinds = pack_kinds(&h);
    int64_t scored = 0;
    const auto flush = [&] {
      for (int64_t r = 0; r < count && scored > 0; r += Refiner::kQueries) {
        const int slots = static_cast<int>(std::min<int64_t>(Refiner::kQueries, count - r));
        for (int s = 0; s < slots; ++s) refiner_.load(s, queries_.original(first + r + s), p.queries.dtype);
        refiner_.for_each_key(slots, refiner_.indices(), 0, scored,
                              [&](int s, double key, int64_t j) { write(r + s, j, key); });
      }
      scored = 0;
    };
    for (int64_t j = begin; j < end; ++j) {
      if (kinds[j] == RowKind::special || kinds[j] == RowKind::far) refiner_.indices()[scored++] = j;
      if (scored == Refiner::kBlock) flush();
      if (kinds[j] == RowKind::never)
        for (int64_t r = 0; r < count; ++r) write(r, j, std::numeric_limits<double>::quiet_NaN());
    }
    flush();
  }

  QueryBlock<T> queries_;
  Buffer<T> scale_, term_;
  Buffer<bool> odd_;
  Refiner refiner_;
  Stop stop_;
};

template <class T>
Status project_piece(const ProjectProblem& whole, const PackHeader& h, int64_t offset, const Parallel& parallel) {
  ProjectProblem p = whole;
  p.bank.data = whole.bank.row(offset);
  p.bank.count = h.rows;
  const Kernels& table = kernels();
  const int64_t n = p.queries.count;
  int group = table.height_f64;
  if constexpr (sizeof(T) == 4)
    group = n <= 1 ? table.heights[2] : n <= table.heights[1] ? table.heights[1] : table.heights[0];
  const int64_t most = std::max<int64_t>(group, kBlockBytes / ((h.width + 1) * static_cast<int64_t>(sizeof(T))));
  int64_t blocks = ceil_div(n, most / group * group);
  blocks = std::min(ceil_div(n, group), round_up_to(blocks, std::min<int64_t>(parallel.workers, 64)));
  const int64_t rows = round_up_to(ceil_div(n, blocks), group);
  blocks = ceil_div(n, rows);
  const int64_t panels = ceil_div(h.rows, kPanel);
  // With few blocks the panels are split too; each part packs the queries again, so parts stay large.
  const int64_t parts = std::clamp<int64_t>(2 * parallel.workers / blocks, 1, ceil_div(panels, 64));
  const int64_t per_part = ceil_div(panels, parts);

  const int workers = static_cast<int>(std::min<int64_t>(parallel.workers, blocks * parts));
  std::unique_ptr<Projector<T>[]> crew(new (std::nothrow) Projector<T>[workers]);
  if (!crew) return Status::out_of_memory;
  for (int w = 0; w < workers; ++w)
    if (!crew[w].reserve(p, rows, group, parallel.stop)) return Status::out_of_memory;
  return for_each_task(parallel, blocks * parts, [&](int worker, int64_t task) {
    const int64_t first = task / parts * rows, from = task % parts * per_part;
    if (from < panels)
      crew[worker].run(p, h, offset, first, std::min(rows, n - first), from, std::min(panels, from + per_part));
  });
}

template <class T>
Status project_as(const ProjectProblem& p, const Parallel& parallel) {
  if (sizeof(T) == 4 && p.pack != nullptr) return project_piece<T>(p, *p.pack, 0, parallel);
  const int64_t element = sizeof(T);
  const int64_t piece = std::max<int64_t>(1, kPieceBytes / ((p.bank.width + 3) * kPanel * element)) * kPanel;
  Buffer<char> pack;
  for (int64_t at = 0; at < p.bank.count; at += piece) {
    Rows rows = p.bank;
    rows.data = p.bank.row(at);
    rows.count = std::min(piece, p.bank.count - at);
    if (!pack.reserve(pack_bytes_as(rows.count, rows.width, p.metric, element))) return Status::out_of_memory;
    Status status = pack_as<T>(rows, p.metric, pack.get(), parallel);
    if (status == Status::ok)
      status = project_piece<T>(p, *reinterpret_cast<const PackHeader*>(pack.get()), at, parallel);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace

Status project(const ProjectProblem& problem, const Parallel& parallel) {
  if (problem.queries.count == 0 || (problem.bank.count == 0 && problem.indices == nullptr)) return Status::ok;
  ProjectProblem p = problem;
  p.out_columns = p.bank.count;
  const double columns = static_cast<double>(p.indices == nullptr ? p.bank.count : p.k);
  const double work = static_cast<double>(p.queries.count) * columns * static_cast<double>(p.bank.width + 8);
  Parallel chosen = parallel;
  if (work < 2e5) chosen.workers = 1;
  if (p.exact || work < kSmall) return project_exact(p, chosen);
  return p.bank.dtype == DType::f64 ? project_as<double>(p, chosen) : project_as<float>(p, chosen);
}

}  // namespace vecbank::cpu
