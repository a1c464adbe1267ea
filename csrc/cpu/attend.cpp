// Sums of rows weighted by a softmax, in one pass over the bank: an online softmax, whose state is the largest score,
// the total and the sums of each query.
//
// A task is a block of queries against a part of a piece of the bank. Each part has states of its own, which are merged
// in the order of the parts. Parts depend on the sizes alone, and not on the number of workers.
#include <cmath>
#include <limits>

#include "api.h"
#include "attend_sides.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kQueryPanels = 16;  // of a block of queries: panels and states stay in L2
constexpr int64_t kTasks = 48;        // of a piece, where the bank is long enough

class Attend {
 public:
  explicit Attend(const AttendProblem& p)
      : p_(p), allowed_(p.allowed != nullptr ? AllowedRows(*p.allowed) : AllowedRows()) {}

  Status run(const Parallel& parallel) {
    const int64_t n = p_.queries.count, m = p_.bank.count;
    panels_ = ceil_div(n, kPanel);
    query_blocks_ = ceil_div(panels_, kQueryPanels);
    const int64_t all = sizes_.blocks(m), of_piece = sizes_.blocks_of_piece(m, p_.bank.width + values_width());
    parts_ = std::max<int64_t>(1, std::min(ceil_div(kTasks, query_blocks_), of_piece));
    PerWorker<Worker> workers(parallel.workers);
    if (!workers.each([&](Worker& w) { return w.reserve(*this); }) || !reserve(of_piece)) return Status::out_of_memory;
    Status status = for_stretches(parallel, panels_, 4, [&](int worker, int64_t first, int64_t count) {
      queries_.write(workers[worker].queries, first, first + count);
    });
    for (int64_t block = 0; block < all && status == Status::ok; block += of_piece)
      status = piece(block, std::min(of_piece, all - block), parallel, workers);
    if (status != Status::ok) return status;
    return for_stretches(parallel, panels_, 1,
                         [&](int worker, int64_t panel, int64_t) { finish(panel, workers[worker]); });
  }

 private:
  struct Worker {
    FloatRows queries, bank, values;
    Buffer<float> scores, merged;
    Buffer<float> rows, columns;  // of one block of the bank, where no other block of queries needs it
    bool reserve(const Attend& a) {
      return queries.reserve(a.p_.queries) && bank.reserve(a.p_.bank) && (!a.summed() || values.reserve(a.p_.values)) &&
             scores.reserve(kQueryPanels * a.score_stride()) &&
             merged.reserve(kPanel * std::max<int64_t>(1, a.values_width())) &&
             (a.query_blocks_ > 1 ||
              (rows.reserve(a.sizes_.stride(a.p_.bank.width)) && columns.reserve(a.sizes_.stride(a.values_width()))));
    }
  };

  bool summed() const { return p_.summed; }
  int64_t values_width() const { return summed() ? p_.values.width : 0; }
  int64_t score_stride() const { return sizes_.block * kPanel; }
  int64_t sums_stride() const { return values_width() * kPanel; }

  bool reserve(int64_t blocks) {
    const int64_t states = parts_ * panels_;
    if (query_blocks_ == 1) blocks = 0;
    if (!queries_.reserve(p_.queries) || !rows_.reserve(blocks * sizes_.stride(p_.bank.width)) ||
        !scale_.reserve(panels_ * kPanel) || !most_.reserve(states * kPanel) || !total_.reserve(states * kPanel))
      return false;
    if (summed() &&
        (!columns_.reserve(blocks * sizes_.stride(values_width())) || !sums_.reserve(states * sums_stride())))
      return false;
    std::fill_n(most_.get(), states * kPanel, -std::numeric_limits<float>::infinity());
    std::fill_n(total_.get(), states * kPanel, 0.0f);
    std::fill_n(sums_.get(), states * sums_stride(), 0.0f);
    std::fill_n(scale_.get(), panels_ * kPanel, 0.0f);
    for (int64_t i = 0; i < p_.queries.count; ++i)
      scale_[i] = static_cast<float>(static_cast<double>(p_.beta[i]) * kLog2E);
    std::fill_n(ones_, kQueryPanels * kPanel, 1.0f);
    return true;
  }

  void group(int64_t block, Worker& w, float* rows, float* columns) {
    const int64_t row = block * sizes_.block, count = sizes_.rows_of(block, p_.bank.count);
    group_rows(w.bank, row, count, sizes_.height, rows);
    if (summed()) group_columns(w.values, row, count, sizes_.height, columns);
  }

  Status piece(int64_t first, int64_t blocks, const Parallel& parallel, PerWorker<Worker>& workers) {
    const int64_t stride = sizes_.stride(p_.bank.width), values_stride = sizes_.stride(values_width());
    const bool once = query_blocks_ > 1;  // else a block is grouped where it is needed, and stays in cache
    if (once) {
      const Status grouped = for_stretches(parallel, blocks, 1, [&](int worker, int64_t b, int64_t) {
        group(first + b, workers[worker], rows_.get() + b * stride, columns_.get() + b * values_stride);
      });
      if (grouped != Status::ok) return grouped;
    }
    return for_each_task(parallel, query_blocks_ * parts_, [&](int worker, int64_t task) {
      Worker& w = workers[worker];
      const int64_t part = task / query_blocks_, block = task % query_blocks_;
      const int64_t panel = block * kQueryPanels, panels = std::min(kQueryPanels, panels_ - panel);
      for (int64_t b = blocks * part / parts_; b < blocks * (part + 1) / parts_; ++b) {
        if (parallel.stop.requested()) return;
        float* rows = once ? rows_.get() + b * stride : w.rows.get();
        float* columns = once ? columns_.get() + b * values_stride : w.columns.get();
        if (!once) group(first + b, w, rows, columns);
        add_block(first + b, rows, columns, part, panel, panels, w.scores.get());
      }
    });
  }

  // A block of bank rows, in groups, for some panels of queries.
  void add_block(int64_t block, const float* grouped_rows, const float* grouped_columns, int64_t part, int64_t panel,
                 int64_t panels, float* scores) {
    const AttendKernels& loops = kernels().attend;
    const int64_t rows = sizes_.rows_of(block, p_.bank.count), state = part * panels_ + panel;
    LaneProductArgs product;
    product.a = grouped_rows;
    product.rows = rows, product.steps = p_.bank.width;
    product.b = queries_.panel(panel), product.b_stride = queries_.stride(), product.panels = panels;
    product.out = scores, product.out_stride = score_stride();
    loops.lane_product(product);
    const bool some = allowed_.any_set();
    if (some)
      exclude(allowed_, p_.queries.count, panel, panels, block * sizes_.block, rows, scale_.get(), scores,
              score_stride());
    WeighArgs weigh;
    weigh.scores = scores, weigh.stride = score_stride(), weigh.rows = rows, weigh.panels = panels;
    weigh.scale = some ? ones_ : &scale_[panel * kPanel];
    weigh.most = &most_[state * kPanel], weigh.total = &total_[state * kPanel];
    if (summed()) {
      weigh.sums = sums_.get() + state * sums_stride();
      weigh.sums_stride = sums_stride(), weigh.width = values_width();
    }
    loops.weigh(weigh);
    if (!summed()) return;
    LaneProductArgs sum;
    sum.a = grouped_columns;
    sum.rows = values_width(), sum.steps = rows;
    sum.b = scores, sum.b_stride = score_stride(), sum.panels = panels;
    sum.out = weigh.sums, sum.out_stride = sums_stride(), sum.begins = false;
    loops.lane_product(sum);
  }

  // Merges the states of a panel, in the order of the parts.
  void finish(int64_t panel, Worker& worker) {
    const int64_t e = values_width();
    double most[kPanel], total[kPanel] = {};
    float* merged = worker.merged.get();
    std::fill_n(most, kPanel, -std::numeric_limits<double>::infinity());
    std::fill_n(merged, kPanel * e, 0.0f);
    const auto state = [&](int64_t part) { return (part * panels_ + panel) * kPanel; };
    for (int64_t part = 0; part < parts_; ++part)
      for (int i = 0; i < kPanel; ++i) most[i] = std::max(most[i], static_cast<double>(most_[state(part) + i]));
    for (int64_t part = 0; part < parts_; ++part) {
      float factor[kPanel];
      for (int i = 0; i < kPanel; ++i) {
        const double own = total_[state(part) + i],
                     down = std::exp2(static_cast<double>(most_[state(part) + i]) - most[i]);
        factor[i] = own == 0.0 ? 0.0f : static_cast<float>(down);
        if (own != 0.0) total[i] += own * down;
      }
      const float* sums = sums_.get() + (part * panels_ + panel) * sums_stride();
      for (int64_t c = 0; c < e; ++c)
        for (int i = 0; i < kPanel; ++i) merged[c * kPanel + i] += sums[c * kPanel + i] * factor[i];
    }
    for (int64_t i = 0; i < std::min<int64_t>(kPanel, p_.queries.count - panel * kPanel); ++i) {
      const int64_t query = panel * kPanel + i;
      p_.lse[query] = most[i] + std::log2(total[i]);
      const float inverse = total[i] == 0.0 ? 0.0f : static_cast<float>(1.0 / total[i]);
      for (int64_t c = 0; c < e; ++c) p_.out[query * e + c] = merged[c * kPanel + i] * inverse;
    }
  }

  const AttendProblem p_;
  const AllowedRows allowed_;
  const AttendSizes sizes_;
  int64_t panels_ = 0, query_blocks_ = 0, parts_ = 1;
  Panels queries_;
  Buffer<float> rows_, columns_;  // of a piece: the bank in groups of rows, values in groups of columns
  Buffer<float> scale_;           // [queries, in whole panels]
  Buffer<float> most_, total_;    // [part][panel][16]
  Buffer<float> sums_;            // [part][panel][width][16]
  float ones_[kQueryPanels * kPanel];
};

}  // namespace

Status attend(const AttendProblem& problem, const Parallel& parallel) {
  if (problem.queries.count == 0) return Status::ok;
  KeepSubnormals keep;
  return Attend(problem).run(parallel);
}

}  // namespace vecbank::cpu
