#include "raw.h"

#include <atomic>

#include "odd_scores.h"
#include "pieces.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kBlockBytes = 192 << 10;  // interleaved queries of a block: part of L2
constexpr int64_t kPieceBytes = 24 << 20;   // panels at a time
constexpr int64_t kAhead = 4 * kPanel;      // columns of the widest tile
constexpr int64_t kStretch = 1 << 27;       // multiplications between two checks of the flag

// How rows are read: the elements of a panel are float32, or two bfloat16 each.
struct RawRows {
  Rows rows;
  DType dtype;    // of the elements, for interleaving
  int64_t width;  // in elements
  bool pairs;

  explicit RawRows(const Rows& given, bool paired)
      : rows(given),
        dtype(paired ? DType::f32 : given.dtype),
        width(paired ? given.width / 2 : given.width),
        pairs(paired) {}
};

// Interleaves rows [first, first + count), at most 16, into [width][group].
void interleave(const RawRows& r, const RowReader& reader, int64_t first, int count, int group, float* out) {
  const void* rows[16] = {};
  for (int i = 0; i < count; ++i) rows[i] = reader.row(first + i, i);
  kernels().interleave_f32(rows, count, group, r.dtype, r.width, nullptr, out);
}

// One over the norms of these rows; up to 16 may be written. Pairs hide their values, so their rows are read again.
void scale(const RawRows& r, const RowReader& reader, int64_t first, int count, int group, const float* lines,
           float* scales) {
  if (r.pairs) return norm_scales(r.rows, reader, first, count, scales);
  double squares[16];
  kernels().line_squares(lines, r.width, group, squares);
  kernels().norm_scales(squares, count, scales);
}

// The panels of some bank rows, and one over their norms where the metric has unit rows.
class RawPanels {
 public:
  bool reserve(const ProjectProblem& p, bool pairs, int64_t rows) {
    pairs_ = pairs;
    width_ = RawRows(p.bank, pairs).width;
    return panels_.reserve(ceil_div(rows, kPanel) * width_ * kPanel + 16) &&
           (!record(p.metric).unit_rows || scales_.reserve(round_up_to(rows, kPanel) + kAhead));
  }

  // Writes panels [from, to) of the bank `p.bank`, or of a piece of it.
  void write(const ProjectProblem& p, const RowReader& reader, int64_t from, int64_t to) {
    const RawRows r(p.bank, pairs_);
    for (int64_t panel = from; panel < to; ++panel) {
      const int64_t first = panel * kPanel;
      const int count = static_cast<int>(std::min<int64_t>(kPanel, p.bank.count - first));
      float* out = panels_.get() + first * width_;
      interleave(r, reader, first, count, kPanel, out);
      if (record(p.metric).term == Term::square)  // rows that do not exist lie far away, not at distance 0
        for (int c = count; c < kPanel; ++c) out[c] = 1e15f;
      if (record(p.metric).unit_rows) scale(r, reader, first, count, kPanel, out, scales_.get() + first);
    }
    if (record(p.metric).unit_rows && to * kPanel >= p.bank.count)
      std::fill(scales_.get() + p.bank.count, scales_.get() + round_up_to(p.bank.count, kPanel) + kAhead, 0.0f);
  }

  bool pairs() const { return pairs_; }
  int64_t width() const { return width_; }
  const float* panel(int64_t i) const { return panels_.get() + i * kPanel * width_; }
  const float* scales(int64_t i) const { return scales_.get() == nullptr ? nullptr : scales_.get() + i * kPanel; }

 private:
  Buffer<float> panels_, scales_;
  bool pairs_ = false;
  int64_t width_ = 0;
};

class RawWorker {
 public:
  bool reserve(const ProjectProblem& p, const RawPanels& panels, int64_t rows, int group, Stop stop) {
    group_ = group;
    stop_ = stop;
    return reader_.reserve(p.queries, 16) && odd_.reserve(p, stop) && scale_.reserve(rows + 32) &&
           term_.reserve(rows + 16) && queries_.reserve(ceil_div(rows, group) * group * panels.width() + 16);
  }

  // Queries against the panels of the bank rows from `offset` on. False: no memory.
  [[nodiscard]] bool run(const ProjectProblem& p, const RawPanels& panels, int64_t rows, int64_t offset,
                         const GridTask& task) {
    const MetricRecord metric = record(p.metric);
    const RawRows r(p.queries, panels.pairs());
    const int64_t stride = panels.width() * group_;
    std::fill_n(term_.get(), task.rows + 16, 0.0f);
    std::fill_n(scale_.get(), task.rows + 16, 1.0f);
    for (int64_t at = 0; at < task.rows; at += group_) {
      const int count = static_cast<int>(std::min<int64_t>(group_, task.rows - at));
      float* out = queries_.get() + at / group_ * stride;
      interleave(r, reader_, task.first + at, count, group_, out);
      if (metric.unit_rows) scale(r, reader_, task.first + at, count, group_, out, scale_.get() + at);
    }
    bool odd = false;
    StoreArgs<float> args;
    args.tile = {queries_.get(), stride, group_, task.rows};
    args.tile.panel_stride = kPanel * panels.width();
    args.tile.width = panels.width();
    args.scale = scale_.get();
    args.term = term_.get();
    args.finish = metric.root ? Finish::rooted : Finish::linear;
    args.least = !metric.smaller_is_better ? -HUGE_VALF : metric.root ? 1e-15f : 1e-30f;
    args.odd = &odd;
    args.out_dtype = p.out_dtype;
    args.out_stride = p.out_columns;
    const auto& kernel = panels.pairs()                ? kernels().raw.pairs
                         : metric.term == Term::square ? kernels().raw.square
                                                       : kernels().raw.product;
    const int64_t size = static_cast<int64_t>(size_of(p.out_dtype));
    const int64_t stretch = round_up_to(ceil_div(kStretch, task.rows * (panels.width() + 1) * kPanel), 8);
    bool good = true;
    in_stretches(stop_, task.from, task.to, stretch, [&](int64_t begin, int64_t end) {
      args.tile.panels = panels.panel(begin);
      args.tile.columns = std::min(rows, end * kPanel) - begin * kPanel;
      args.tile.next = end < task.to ? panels.panel(end) : nullptr;
      args.column_scale = metric.unit_rows ? panels.scales(begin) : nullptr;
      args.out = static_cast<char*>(p.out) + (task.first * p.out_columns + begin * kPanel + offset) * size;
      odd = false;
      kernel(args);
      if (odd) good = good && rescore(p, task, offset + begin * kPanel, args.tile.columns, args.least);
    });
    return good;
  }

 private:
  bool rescore(const ProjectProblem& p, const GridTask& task, int64_t from, int64_t columns, float least) {
    for (int64_t q = 0; q < task.rows; q += Refiner::kQueries) {
      const int count = static_cast<int>(std::min<int64_t>(Refiner::kQueries, task.rows - q));
      const bool done = odd_.rescore(p, task.first + q, count, from, from + columns, [&](int i, int64_t j) {
        return with_dtype(p.out_dtype, [&](auto type) {
          const auto* out = static_cast<const Element<decltype(type)>*>(p.out);
          const float value = static_cast<float>(widened(out[(task.first + q + i) * p.out_columns + j]));
          return is_odd(value, std::max(least, 0.0f));
        });
      });
      if (!done) return false;
    }
    return true;
  }

  RowReader reader_;
  OddScores odd_;
  Buffer<float> queries_, scale_, term_;
  int group_ = 1;
  Stop stop_;
};

Status project_piece(const ProjectProblem& p, const Rows& bank, int64_t offset, RawPanels& panels,
                     const Parallel& parallel) {
  ProjectProblem part = p;
  part.bank = bank;
  const int64_t count = ceil_div(bank.count, kPanel), together = 8;
  PerWorker<RowReader> readers(std::min<int64_t>(parallel.workers, ceil_div(count, together)));
  if (!panels.reserve(part, raw_by_pairs(p), bank.count) ||
      !readers.each([&](RowReader& reader) { return reader.reserve(bank, kPanel); }))
    return Status::out_of_memory;
  const Status written = for_each_task(parallel, ceil_div(count, together), [&](int worker, int64_t task) {
    panels.write(part, readers[worker], task * together, std::min(count, (task + 1) * together));
  });
  if (written != Status::ok) return written;
  const int group = kernels().height_for(p.queries.count);
  const Grid grid =
      product_grid(p.queries.count, bank.count, kBlockBytes / (panels.width() * 4), group, parallel.workers);
  PerWorker<RawWorker> workers(std::min<int64_t>(parallel.workers, grid.tasks()));
  if (!workers.each([&](RawWorker& w) { return w.reserve(p, panels, grid.rows_per_block, group, parallel.stop); }))
    return Status::out_of_memory;
  std::atomic<bool> good{true};
  const Status done = for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    if (!workers[worker].run(p, panels, bank.count, offset, task)) good = false;
  });
  return good ? done : Status::out_of_memory;
}

}  // namespace

struct RawAlone::Parts {
  RawPanels panels;
  RawWorker worker;
  RowReader reader;
};
RawAlone::RawAlone() : parts_(new (std::nothrow) Parts) {}
RawAlone::~RawAlone() = default;

Status RawAlone::project(const ProjectProblem& p, Stop stop) {
  const int group = kernels().height_for(p.queries.count);
  if (parts_ == nullptr || !parts_->reader.reserve(p.bank, kPanel) ||
      !parts_->panels.reserve(p, raw_by_pairs(p), p.bank.count) ||
      !parts_->worker.reserve(p, parts_->panels, p.queries.count, group, stop))
    return Status::out_of_memory;
  const int64_t count = ceil_div(p.bank.count, kPanel);
  parts_->panels.write(p, parts_->reader, 0, count);
  const bool good = parts_->worker.run(p, parts_->panels, p.bank.count, 0, {0, p.queries.count, 0, count, 0});
  return good ? Status::ok : Status::out_of_memory;
}

Status project_raw(const ProjectProblem& p, const Parallel& parallel) {
  RawPanels panels;
  const int64_t rows = rows_of_piece(kPieceBytes, p.bank.width, sizeof(float));
  Status status = Status::ok;
  for (int64_t at = 0; at < p.bank.count && status == Status::ok; at += rows) {
    Rows bank = p.bank;
    bank.data = p.bank.row(at);
    bank.count = std::min(rows, p.bank.count - at);
    status = project_piece(p, bank, at, panels, parallel);
  }
  return status;
}

}  // namespace vecbank::cpu
