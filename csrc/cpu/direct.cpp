#include "direct.h"

#include <cstring>

#include "odd_scores.h"
#include "pieces.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kQueryRows = DirectAlone::kQueryRows;  // of a block
constexpr int64_t kBankBytes = 128 << 10;                // of a block: part of L2
constexpr int64_t kMostColumns = 2048;                   // of a block
constexpr int64_t kStretch = 1024;                       // coordinates of wide rows at a time
constexpr int kTogether = 4;                             // queries of a register block

class DirectWorker {
 public:
  bool reserve(const ProjectProblem& p, Stop stop) {
    unit_ = direct_by_bf16(p);
    wide_ = p.queries.width > kDirectStretch;
    in_place_ = p.queries.dtype == (unit_ ? DType::bf16 : DType::f32) && p.queries.col_stride == 1;
    stride_ = round_up_to(wide_ ? kStretch : p.queries.width, 16);
    if (wide_ && !(copies_.reserve(kTogether * stride_) && sums_.reserve(kTogether * kMostColumns) &&
                   part_.reserve(kTogether * kMostColumns)))
      return false;
    stop_ = stop;
    return queries_.reserve(p.queries, kTogether) && odd_.reserve(p, stop) && scratch_.reserve(stride_ + 8) &&
           (in_place_ || wide_ || copies_.reserve(kQueryRows * stride_)) && row_scales_.reserve(kQueryRows) &&
           (p.out_dtype == DType::f32 || out_.reserve(kTogether * kMostColumns));
  }

  // The scales of bank rows [from, to).
  void scale_columns(const ProjectProblem& p, int64_t from, int64_t to, float* scales) {
    norm_scales(p.bank, queries_, from, to - from, scales + from);  // its columns are adjacent: no reader is asked
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
    for (int64_t r = 0; r < rows && !in_place_ && !wide_; ++r)
      copy(p, queries_.row(first + r), p.queries.width, copies_.get() + r * stride_);
    if (record(p.metric).unit_rows) norm_scales(p.queries, queries_, first, rows, row_scales_.get());
  }

  // A row in the type that the kernel reads.
  void copy(const ProjectProblem& p, const void* row, int64_t d, float* out) {
    if (unit_ || p.queries.dtype == DType::f32) {
      std::memcpy(out, row, static_cast<size_t>(d) * size_of(p.queries.dtype));
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
      if (!wide_) a.queries[q] = in_place_ ? p.queries.row(first + r + q) : copies_.get() + (r + q) * stride_;
      a.row_scale[q] = row_scales_[r + q];
      a.out[q] = straight ? static_cast<float*>(p.out) + (first + r + q) * p.out_columns + from
                          : out_.get() + q * kMostColumns;
    }
    a.least = !metric.smaller_is_better ? 0.0f : metric.root ? 1e-15f : 1e-30f;
    const bool odd = wide_ ? multiply_wide(p, first + r, a) : (unit_ ? kernels().direct_bf16 : kernels().direct)(a);
    for (int64_t q = 0; q < count && !straight; ++q)
      kernels().narrow_floats(a.out[q], a.count, p.out_dtype,
                              static_cast<char*>(p.out) + ((first + r + q) * p.out_columns + from) *
                                                              static_cast<int64_t>(size_of(p.out_dtype)));
    return !odd || odd_.rescore(p, first + r, a.query_count, from, to,
                                [&](int q, int64_t j) { return is_odd(a.out[q][j - from], a.least); });
  }

  // A stretch of coordinates after the other, whose sums are added in float64: a lane would have too many terms.
  bool multiply_wide(const ProjectProblem& p, int64_t row, const DirectArgs& whole) {
    const int64_t d = p.bank.width, size = static_cast<int64_t>(size_of(p.queries.dtype));
    std::fill_n(sums_.get(), whole.query_count * whole.count, 0.0);
    DirectArgs a = whole;
    a.column_scale = nullptr;
    a.root = false;
    a.ahead = 0;
    for (int q = 0; q < a.query_count; ++q) a.row_scale[q] = 1.0f, a.out[q] = part_.get() + q * kMostColumns;
    for (int64_t k = 0; k < d && !stop_.requested(); k += kStretch) {
      a.bank.width = std::min(kStretch, d - k);
      a.bank.data = static_cast<const char*>(p.bank.data) + k * static_cast<int64_t>(size_of(p.bank.dtype));
      for (int q = 0; q < a.query_count; ++q) {
        const char* at = static_cast<const char*>(queries_.row(row + q, q)) + k * size;
        a.queries[q] = at;
        if (in_place_) continue;
        copy(p, at, a.bank.width, copies_.get() + q * stride_);
        a.queries[q] = copies_.get() + q * stride_;
      }
      (unit_ ? kernels().direct_bf16 : kernels().direct)(a);
      for (int q = 0; q < a.query_count; ++q)
        for (int64_t i = 0; i < a.count; ++i) sums_[q * a.count + i] += static_cast<double>(a.out[q][i]);
    }
    bool odd = false;
    for (int q = 0; q < a.query_count; ++q)
      for (int64_t i = 0; i < a.count; ++i) {
        double score = sums_[q * a.count + i];
        if (whole.column_scale != nullptr)
          score *= static_cast<double>(whole.row_scale[q]) * static_cast<double>(whole.column_scale[i]);
        whole.out[q][i] = static_cast<float>(whole.root ? std::sqrt(score) : score);
        odd |= is_odd(whole.out[q][i], whole.least);
      }
    return odd;
  }

  RowReader queries_;
  OddScores odd_;
  Buffer<double> sums_;
  Buffer<float> part_;
  bool wide_ = false;
  Buffer<double> scratch_;
  Buffer<float> copies_, row_scales_, out_;
  int64_t stride_ = 0;
  bool unit_ = false, in_place_ = false;
  Stop stop_;
};

}  // namespace

struct DirectAlone::Parts {
  DirectWorker worker;
  Buffer<float> scales;
};
DirectAlone::DirectAlone() : parts_(new (std::nothrow) Parts) {}
DirectAlone::~DirectAlone() = default;

Status DirectAlone::project(const ProjectProblem& p, Stop stop) {
  const bool unit = record(p.metric).unit_rows;
  if (parts_ == nullptr || !parts_->worker.reserve(p, stop) || (unit && !parts_->scales.reserve(p.bank.count)))
    return Status::out_of_memory;
  const GridTask whole{0, p.queries.count, 0, p.bank.count, 0};
  return parts_->worker.run(p, whole, parts_->scales.get(), unit) ? Status::ok : Status::out_of_memory;
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
