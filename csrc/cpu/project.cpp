// project(): the whole similarity matrix, written once. float64 in, float64 tiles; everything else, float32 tiles.
#include <new>

#include "../core/pack_internal.h"
#include "../core/problem.h"
#include "queries.h"
#include "refine.h"

namespace vecbank {
namespace {

constexpr int64_t kBlockBytes = 192 << 10;  // packed queries of a block: part of L2
constexpr int64_t kPieceBytes = 24 << 20;   // a plain tensor is packed in pieces of this size
constexpr int kMaxScaleExponent = 120;      // what a float32 scale can undo

template <class T>
void store(const StoreArgs<T>& args) {
  if constexpr (sizeof(T) == 4)
    kernels().store_f32(args);
  else
    kernels().store_f64(args);
}

// Products so small that packing would cost more than they do: every score is refined, to the last bit.
constexpr double kSmall = 1 << 16;

Status project_small(const ProjectProblem& p) {
  KeepSubnormals keep;
  Refiner refiner;
  RowReader queries;
  Buffer<double> norms;
  const int64_t n = p.queries.count, m = p.bank.count;
  if (!refiner.reserve(p.bank, p.bank.width) || !queries.reserve(p.queries, 1) || !norms.reserve(m))
    return Status::out_of_memory;
  refiner.set_metric(p.metric, norms.get());
  if (p.metric == Metric::cosine) refiner.bank_norms(norms.get());
  with_dtype(p.out_dtype, [&](auto type) {
    auto* out = static_cast<Element<decltype(type)>*>(p.out);
    for (int64_t i = 0; i < n; ++i) {
      refiner.load(0, queries.row(i), p.queries.dtype);
      refiner.for_each_key(1, nullptr, 0, m, [&](int, double key, int64_t j) {
        narrow(value_of(p.metric, key), out + i * p.out_columns + j);
      });
    }
  });
  return Status::ok;
}

template <class T>
class Projector {
 public:
  bool reserve(const ProjectProblem& p, int64_t rows, int group) {
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
    args.tile = {
        queries_.data(),    queries_.stride(), queries_.group(), count,
        panels.panel(from), panels.stride(),   h.width,          std::min(h.rows, to * kPanel) - from * kPanel};
    args.scale = scale_.get();
    args.term = term_.get();
    args.finish = !is_distance(p.metric) ? Finish::linear : p.metric == Metric::l2 ? Finish::rooted : Finish::squared;
    const int64_t size = static_cast<int64_t>(size_of(p.out_dtype));
    const int64_t columns = from * kPanel + offset;
    args.out = static_cast<char*>(p.out) + (first * p.out_columns + columns) * size;
    args.out_dtype = p.out_dtype;
    args.out_stride = p.out_columns;
    store(args);
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
    const Panels<T> panels = panels_as<T>(&h);
    const auto write = [&](int64_t r, int64_t j, double key) {
      with_dtype(p.out_dtype, [&](auto type) {
        narrow(value_of(p.metric, key),
               static_cast<Element<decltype(type)>*>(p.out) + (first + r) * p.out_columns + offset + j);
      });
    };
    for (int64_t r = 0; r < count; ++r) {
      if (!odd_[r] && h.special == 0) continue;
      refiner_.load(0, queries_.original(first + r), p.queries.dtype);
      if (odd_[r]) {
        refiner_.for_each_key(1, nullptr, begin, end - begin, [&](int, double key, int64_t j) { write(r, j, key); });
        continue;
      }
      for (int64_t j = begin; j < end; ++j)
        if (panels.line(j / kPanel, h.width + 2)[j % kPanel] == std::numeric_limits<T>::infinity())  // special
          refiner_.for_each_key(1, &j, 0, 1, [&](int, double key, int64_t column) { write(r, column, key); });
    }
  }

  QueryBlock<T> queries_;
  Buffer<T> scale_, term_;
  Buffer<bool> odd_;
  Refiner refiner_;
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
    if (!crew[w].reserve(p, rows, group)) return Status::out_of_memory;
  for_each_task(parallel, blocks * parts, [&](int worker, int64_t task) {
    const int64_t first = task / parts * rows, from = task % parts * per_part;
    if (from < panels)
      crew[worker].run(p, h, offset, first, std::min(rows, n - first), from, std::min(panels, from + per_part));
  });
  return Status::ok;
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
  if (problem.queries.count == 0 || problem.bank.count == 0) return Status::ok;
  ProjectProblem p = problem;
  p.out_columns = p.bank.count;
  const double work =
      static_cast<double>(p.queries.count) * static_cast<double>(p.bank.count) * static_cast<double>(p.bank.width + 8);
  if (work < kSmall) return project_small(p);
  const Parallel alone;
  const Parallel& chosen = work < 2e5 ? alone : parallel;
  return p.bank.dtype == DType::f64 ? project_as<double>(p, chosen) : project_as<float>(p, chosen);
}

}  // namespace vecbank
