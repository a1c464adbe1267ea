#include "direct.h"

#include <cstring>
#include <limits>

#include "pieces.h"
#include "refine.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kQueryRows = 64;                    // of a block
constexpr int64_t kBankBytes = 128 << 10;             // of a block: part of L2
constexpr int64_t kMostColumns = 2048;                // of a block
constexpr int kTogether = 4;                          // queries of a register block
constexpr double kShortest = 1e-10, kLongest = 1e15;  // norms whose products stay far from the ends of float32
constexpr float kOdd = std::numeric_limits<float>::quiet_NaN();  // the scale of rows that float64 must score

float scale_of(double squares) {
  if (squares == 0.0) return 0.0f;  // a zero row scores 0 beside any finite one
  const double norm = std::sqrt(squares);
  return norm >= kShortest && norm <= kLongest ? static_cast<float>(1.0 / floored(norm)) : kOdd;
}

class DirectWorker {
 public:
  bool reserve(const ProjectProblem& p, Stop stop) {
    unit_ = direct_by_bf16(p);
    const int64_t step = unit_ ? kDirectStepBf16 : kDirectStep;
    in_place_ = p.queries.dtype == (unit_ ? DType::bf16 : DType::f32) && p.queries.col_stride == 1 &&
                p.queries.width % step == 0;
    stride_ = round_up_to(p.queries.width, step);
    stop_ = stop;
    return queries_.reserve(p.queries, kTogether) && scratch_.reserve(round_up_to(p.queries.width, 8)) &&
           (in_place_ || copies_.reserve(kQueryRows * stride_)) && row_scales_.reserve(kQueryRows) &&
           (p.out_dtype == DType::f32 || out_.reserve(kTogether * kMostColumns));
  }

  // The scales of bank rows [from, to).
  void scale_columns(const ProjectProblem& p, int64_t from, int64_t to, float* scales) {
    double squares[64];
    for (int64_t at = from; at < to; at += 64) {
      const int64_t count = std::min<int64_t>(64, to - at);
      kernels().squares(p.bank, nullptr, at, count, squares);
      for (int64_t i = 0; i < count; ++i) scales[at + i] = scale_of(squares[i]);
    }
  }

  // `scales`: of the columns, for a metric with unit rows; `fill`: they are not known yet.
  [[nodiscard]] bool run(const ProjectProblem& p, const GridTask& task, float* scales, bool fill) {
    load(p, task.first, task.rows);
    const int64_t size = static_cast<int64_t>(size_of(p.bank.dtype));
    const int64_t columns = std::clamp<int64_t>(kBankBytes / (p.bank.width * size) / 4 * 4, 16, kMostColumns);
    for (int64_t from = task.from; from < task.to && !stop_.requested(); from += columns) {
      const int64_t to = std::min(task.to, from + columns);
      if (fill) scale_columns(p, from, to, scales);
      for (int64_t r = 0; r < task.rows; r += kTogether)
        if (!multiply(p, task.first, r, std::min<int64_t>(kTogether, task.rows - r), from, to, scales)) return false;
    }
    return true;
  }

 private:
  void load(const ProjectProblem& p, int64_t first, int64_t rows) {
    std::fill_n(row_scales_.get(), rows, 1.0f);
    for (int64_t r = 0; r < rows && !in_place_; ++r) copy(p, queries_.row(first + r), copies_.get() + r * stride_);
    if (!record(p.metric).unit_rows) return;
    double squares[kQueryRows];
    if (p.queries.col_stride == 1)
      kernels().squares(p.queries, nullptr, first, rows, squares);
    else
      for (int64_t r = 0; r < rows; ++r)
        squares[r] = self_squares(queries_.row(first + r), p.queries.dtype, p.queries.width);
    for (int64_t r = 0; r < rows; ++r) row_scales_[r] = scale_of(squares[r]);
  }

  void copy(const ProjectProblem& p, const void* row, float* out) {
    const int64_t d = p.queries.width;
    if (unit_) {
      std::memset(out, 0, static_cast<size_t>(stride_) * 2);
      std::memcpy(out, row, static_cast<size_t>(d) * 2);
      return;
    }
    std::fill_n(out, stride_, 0.0f);
    if (p.queries.dtype == DType::f32) {
      std::memcpy(out, row, static_cast<size_t>(d) * 4);
    } else {
      kernels().widen(row, p.queries.dtype, d, scratch_.get());
      for (int64_t k = 0; k < d; ++k) out[k] = static_cast<float>(scratch_[k]);
    }
  }

  // False: no memory.
  bool multiply(const ProjectProblem& p, int64_t first, int64_t r, int64_t count, int64_t from, int64_t to,
                const float* scales) {
    const MetricRecord metric = record(p.metric);
    DirectArgs a;
    a.query_count = static_cast<int>(count);
    a.bank = p.bank;
    if (in_place_) a.ahead = kTogether * p.queries.row_stride * static_cast<int64_t>(size_of(p.queries.dtype));
    a.term = metric.term;
    a.first = from;
    a.count = to - from;
    a.column_scale = metric.unit_rows ? scales + from : nullptr;
    a.root = metric.root;
    const bool straight = p.out_dtype == DType::f32;
    for (int64_t q = 0; q < count; ++q) {
      a.queries[q] = in_place_ ? p.queries.row(first + r + q) : copies_.get() + (r + q) * stride_;
      a.row_scale[q] = row_scales_[r + q];
      a.out[q] = straight ? static_cast<float*>(p.out) + (first + r + q) * p.out_columns + from
                          : out_.get() + q * kMostColumns;
    }
    a.least = !metric.smaller_is_better ? 0.0f : metric.root ? 1e-15f : 1e-30f;
    const bool odd = (unit_ ? kernels().direct_bf16 : kernels().direct)(a);
    for (int64_t q = 0; q < count && !straight; ++q)
      kernels().narrow_floats(a.out[q], a.count, p.out_dtype,
                              static_cast<char*>(p.out) + ((first + r + q) * p.out_columns + from) *
                                                              static_cast<int64_t>(size_of(p.out_dtype)));
    return !odd || rescore(p, a, first + r, from);
  }

  // The columns where a value of these queries is odd.
  bool rescore(const ProjectProblem& p, const DirectArgs& a, int64_t row, int64_t from) {
    if (!refiner_.reserve(p.bank, p.bank.width)) return false;
    const MetricRecord metric = record(p.metric);
    refiner_.set_metric(p.metric, nullptr);
    refiner_.set_stop(stop_);
    for (int q = 0; q < a.query_count; ++q) refiner_.load(q, queries_.row(row + q, q), p.queries.dtype);
    int64_t listed = 0;
    const auto flush = [&] {
      refiner_.for_each_key(a.query_count, refiner_.indices(), 0, listed, [&](int q, double key, int64_t j) {
        if (!is_odd(a.out[q][j - from], a.least)) return;
        with_dtype(p.out_dtype, [&](auto type) {
          narrow(value_of(metric, key), static_cast<Element<decltype(type)>*>(p.out) + (row + q) * p.out_columns + j);
        });
      });
      listed = 0;
    };
    for (int64_t i = 0; i < a.count; ++i) {
      bool odd = false;
      for (int q = 0; q < a.query_count; ++q) odd |= is_odd(a.out[q][i], a.least);
      if (!odd) continue;
      refiner_.indices()[listed++] = from + i;
      if (listed == Refiner::kBlock) flush();
    }
    if (listed > 0) flush();
    return true;
  }

  RowReader queries_;
  Refiner refiner_;
  Buffer<double> scratch_;
  Buffer<float> copies_, row_scales_, out_;
  int64_t stride_ = 0;
  bool unit_ = false, in_place_ = false;
  Stop stop_;
};

}  // namespace

Status project_direct_each(const ProjectProblem* problems, int64_t count, const Parallel& parallel) {
  PerWorker<DirectWorker> workers(parallel.workers);
  PerWorker<Buffer<float>> scales(parallel.workers);
  const auto nothing = [](auto&) { return true; };
  if (!workers.each(nothing) || !scales.each(nothing)) return Status::out_of_memory;
  return solve_each(problems, count, parallel, [&](int w, const ProjectProblem& given, const Parallel& alone) {
    if (given.queries.count == 0 || given.bank.count == 0) return Status::ok;
    ProjectProblem p = given;
    p.out_columns = p.bank.count;
    if (p.queries.count > kQueryRows || way_of(p) != ProjectWay::direct) return project(given, alone);
    const bool unit = record(p.metric).unit_rows;
    if (!workers[w].reserve(p, alone.stop) || (unit && !scales[w].reserve(p.bank.count))) return Status::out_of_memory;
    const bool done = workers[w].run(p, {0, p.queries.count, 0, p.bank.count, 0}, scales[w].get(), unit);
    return done ? Status::ok : Status::out_of_memory;
  });
}

Status project_direct(const ProjectProblem& p, const Parallel& parallel) {
  const int64_t n = p.queries.count, m = p.bank.count;
  Grid grid;
  grid.set_blocks(n, kQueryRows, kTogether);
  if (grid.blocks > 1 && grid.blocks < 8 * parallel.workers) {
    grid.blocks = round_up_to(grid.blocks, parallel.workers);
    grid.even_blocks(kTogether);
  }
  grid.set_parts(m, std::min(ceil_div(4 * parallel.workers, grid.blocks), ceil_div(m, 256)));  // panels are rows here
  PerWorker<DirectWorker> workers(std::min<int64_t>(parallel.workers, std::max<int64_t>(grid.tasks(), 1)));
  const bool unit = record(p.metric).unit_rows;
  Buffer<float> scales;
  if ((unit && !scales.reserve(m)) ||
      !workers.each([&](DirectWorker& worker) { return worker.reserve(p, parallel.stop); }))
    return Status::out_of_memory;
  const bool fill = unit && grid.blocks == 1;  // every task then has columns of its own
  if (unit && !fill) {
    Grid rows = grid;
    rows.blocks = 1;
    const Status scaled = for_each_task(rows, parallel, [&](int worker, const GridTask& task) {
      workers[worker].scale_columns(p, task.from, task.to, scales.get());
    });
    if (scaled != Status::ok) return scaled;
  }
  std::atomic<bool> failed{false};
  const Status done = for_each_task(grid, parallel, [&](int worker, const GridTask& task) {
    if (!workers[worker].run(p, task, scales.get(), fill)) failed = true;
  });
  return failed ? Status::out_of_memory : done;
}

}  // namespace vecbank::cpu
