// The gradients of attend(). Scores and weights are made again, block by block.
//
// A task is a group of queries against a part of a piece of the bank. It makes what goes to its bank rows and its
// queries from the same weights, so that these are made once. What goes to queries is summed for each part apart, what
// goes to bank rows for each group of queries, and these sums are added in order. Both divisions depend on the sizes
// alone. Long lists of queries come in chunks, so that the sums of all parts together stay small.
#include <cmath>
#include <limits>

#include "api.h"
#include "attend_sides.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kVisitPanels = 8;        // queries that are looked at together: their weights stay in L2
constexpr int64_t kTasks = 16;             // of a piece
constexpr int64_t kPartNumbers = 1 << 24;  // of the sums of all parts

// Rows in panels, and one after the other, padded with zeros.
struct QuerySide {
  Panels panels;
  Buffer<float> rows;
  int64_t columns = 0, stride = 0;

  bool reserve(const Rows& of) {
    columns = round_up_to(of.width, kPanel);
    stride = columns % (2 * kPanel) == 0 ? columns + kPanel : columns;  // an odd number of cache lines: L1 has room
    return panels.reserve(of) && rows.reserve(ceil_div(of.count, kPanel) * kPanel * stride);
  }
  // `factors`: one for each of the rows that come one after the other; null: 1.
  void write(FloatRows& of, int64_t count, int64_t panel, const float* factors) {
    panels.write(of, panel, panel + 1);
    for (int64_t i = panel * kPanel; i < (panel + 1) * kPanel; ++i) {
      float* out = rows.get() + i * stride;
      const int64_t width = i < count ? of.width() : 0;
      const float* row = width > 0 ? of.row(i) : nullptr;
      const float factor = factors != nullptr && width > 0 ? factors[i] : 1.0f;
      for (int64_t c = 0; c < width; ++c) out[c] = row[c] * factor;
      std::fill(out + width, out + stride, 0.0f);
    }
  }
  const float* row(int64_t panel) const { return rows.get() + panel * kPanel * stride; }
};

class AttendGradients {
 public:
  AttendGradients(const AttendGradientProblem& p, int64_t done, int64_t count)
      : p_(p),
        f_(p.forward),
        done_(done),
        allowed_(f_.allowed != nullptr ? AllowedRows(f_.allowed->from(done)) : AllowedRows()) {
    queries_ = f_.queries, grad_ = p.grad;
    queries_.data = queries_.row(done), queries_.count = count;
    if (summed()) grad_.data = grad_.row(done), grad_.count = count;
  }

  Status run(const Parallel& parallel) {
    panels_ = ceil_div(queries_.count, kPanel);
    const int64_t all = sizes_.blocks(f_.bank.count);
    const int64_t numbers = 2 * f_.bank.width + (summed() ? f_.values.width : 0);
    const int64_t of_piece = sizes_.blocks_of_piece(f_.bank.count, numbers);
    parts_ = std::max<int64_t>(1, std::min(kTasks, of_piece));
    groups_ = of_piece < all ? 1 : std::min(ceil_div(kTasks, parts_), ceil_div(panels_, kVisitPanels));
    PerWorker<Worker> workers(parallel.workers);
    if (!workers.each([&](Worker& w) { return w.reserve(*this); }) || !reserve(of_piece)) return Status::out_of_memory;
    Status status = for_stretches(parallel, panels_, 1, [&](int worker, int64_t panel, int64_t) {
      x_.write(workers[worker].queries, queries_.count, panel, f_.beta + done_);
      if (summed()) g_.write(workers[worker].grad, queries_.count, panel, nullptr);
    });
    for (int64_t block = 0; block < all && status == Status::ok; block += of_piece)
      status = piece(block, std::min(of_piece, all - block), parallel, workers);
    if (status != Status::ok) return status;
    return for_stretches(parallel, panels_, 4, [&](int, int64_t panel, int64_t count) {
      for (int64_t i = panel; i < panel + count; ++i) finish(i);
    });
  }

 private:
  struct Worker {
    FloatRows queries, grad, bank, values;
    Buffer<float> scores, slopes;          // [panel][row][16]
    Buffer<float> grad_bank, grad_values;  // [row][columns]
    bool reserve(const AttendGradients& a) {
      const int64_t scored = kVisitPanels * a.sizes_.block * kPanel;
      return queries.reserve(a.queries_) && bank.reserve(a.f_.bank) &&
             grad_bank.reserve(a.sizes_.block * a.bank_columns()) && scores.reserve(scored) &&
             (!a.summed() || (grad.reserve(a.grad_) && values.reserve(a.f_.values) && slopes.reserve(scored) &&
                              grad_values.reserve(a.sizes_.block * a.value_columns())));
    }
  };

  bool wants_queries() const { return p_.grad_queries != nullptr || p_.grad_beta != nullptr; }
  bool summed() const { return f_.summed; }
  int64_t bank_columns() const { return round_up_to(f_.bank.width, kPanel); }
  int64_t value_columns() const { return summed() ? round_up_to(f_.values.width, kPanel) : 0; }
  int64_t rows_of(int64_t block) const { return sizes_.rows_of(block, f_.bank.count); }
  int64_t part_numbers() const { return f_.bank.width * kPanel; }  // of a panel

  bool reserve(int64_t blocks) {
    const int64_t lanes = panels_ * kPanel, d = f_.bank.width, e = summed() ? f_.values.width : 0;
    if (!x_.reserve(queries_) || (summed() && !g_.reserve(grad_)) || !by_rows_.reserve(blocks * sizes_.stride(d)) ||
        (summed() && !values_.reserve(blocks * sizes_.stride(e))))
      return false;
    if (wants_queries()) {
      if (!by_columns_.reserve(blocks * sizes_.stride(d)) || !sums_.reserve(parts_ * panels_ * part_numbers()))
        return false;
      std::fill_n(sums_.get(), parts_ * panels_ * part_numbers(), 0.0f);
    }
    if (groups_ > 1 && ((p_.grad_bank != nullptr && !bank_sums_.reserve(groups_ * f_.bank.count * d)) ||
                        (p_.grad_values != nullptr && !value_sums_.reserve(groups_ * f_.bank.count * e))))
      return false;
    if (!scale_.reserve(lanes) || !high_.reserve(lanes) || !low_.reserve(lanes) || !along_.reserve(lanes)) return false;
    std::fill_n(ones_, kVisitPanels * kPanel, 1.0f);
    for (int64_t i = 0; i < lanes; ++i) {
      const bool exists = i < queries_.count;
      const double lse = exists ? f_.lse[done_ + i] : -std::numeric_limits<double>::infinity();
      const bool none = lse == -std::numeric_limits<double>::infinity();  // its weights are zeros
      scale_[i] = exists ? static_cast<float>(static_cast<double>(f_.beta[done_ + i]) * kLog2E) : 0.0f;
      high_[i] = none ? 1e30f : static_cast<float>(lse);
      low_[i] = none || !std::isfinite(lse) ? 0.0f : static_cast<float>(lse - static_cast<double>(high_[i]));
      along_[i] = exists ? p_.along[done_ + i] : 0.0f;
    }
    return true;
  }

  Status piece(int64_t first, int64_t blocks, const Parallel& parallel, PerWorker<Worker>& workers) {
    const int64_t d = f_.bank.width, e = summed() ? f_.values.width : 0;
    Status status = for_stretches(parallel, blocks, 1, [&](int worker, int64_t b, int64_t) {
      Worker& w = workers[worker];
      const int64_t row = (first + b) * sizes_.block, count = rows_of(first + b);
      group_rows(w.bank, row, count, sizes_.height, by_rows_.get() + b * sizes_.stride(d));
      if (wants_queries()) group_columns(w.bank, row, count, sizes_.height, by_columns_.get() + b * sizes_.stride(d));
      if (summed()) group_rows(w.values, row, count, sizes_.height, values_.get() + b * sizes_.stride(e));
    });
    if (status != Status::ok) return status;
    status = for_each_task(parallel, groups_ * parts_, [&](int worker, int64_t task) {
      const int64_t part = task / groups_, group = task % groups_;
      const int64_t visits = ceil_div(panels_, kVisitPanels);
      const int64_t from = std::min(panels_, visits * group / groups_ * kVisitPanels);
      const int64_t to = std::min(panels_, visits * (group + 1) / groups_ * kVisitPanels);
      for (int64_t b = blocks * part / parts_; b < blocks * (part + 1) / parts_; ++b) {
        for (int64_t panel = from; panel < to; panel += kVisitPanels) {
          if (parallel.stop.requested()) return;
          visit(first, b, part, panel, std::min(kVisitPanels, to - panel), panel == from, workers[worker]);
        }
        flush(first + b, group, workers[worker]);
      }
    });
    if (status != Status::ok || groups_ == 1) return status;
    return for_stretches(parallel, f_.bank.count, 64, [&](int, int64_t row, int64_t count) {
      add_groups(bank_sums_.get(), row * d, count * d, f_.bank.count * d, p_.grad_bank);
      add_groups(value_sums_.get(), row * e, count * e, f_.bank.count * e, p_.grad_values);
    });
  }

  // A block of bank rows and some panels of queries.
  void visit(int64_t first, int64_t b, int64_t part, int64_t panel, int64_t panels, bool begins, Worker& w) {
    const AttendKernels& loops = kernels().attend;
    const int64_t rows = rows_of(first + b), d = f_.bank.width, stride = sizes_.block * kPanel, at = panel * kPanel;
    float *scores = w.scores.get(), *slopes = summed() ? w.slopes.get() : nullptr;
    const auto product = [&](const float* a, const Panels& with, int64_t width, float* out) {
      LaneProductArgs s;
      s.a = a, s.rows = rows, s.steps = width;
      s.b = with.panel(panel), s.b_stride = with.stride(), s.panels = panels;
      s.out = out, s.out_stride = stride;
      loops.lane_product(s);
    };
    product(by_rows_.get() + b * sizes_.stride(d), x_.panels, d, scores);
    if (summed()) product(values_.get() + b * sizes_.stride(f_.values.width), g_.panels, f_.values.width, slopes);
    SlopeWeightArgs weigh;
    weigh.scores = scores, weigh.slopes = slopes, weigh.stride = stride, weigh.rows = rows, weigh.panels = panels;
    weigh.scale = &scale_[at], weigh.high = &high_[at], weigh.low = &low_[at], weigh.along = &along_[at];
    const bool some = allowed_.any_set();
    if (some)
      exclude(allowed_, queries_.count, panel, panels, (first + b) * sizes_.block, rows, scale_.get(), scores, stride);
    if (some) weigh.scale = ones_;
    loops.weigh_slopes(weigh);

    RowProductArgs sum;
    sum.a_stride = stride, sum.rows = rows, sum.panels = panels, sum.begins = begins;
    const auto add = [&](const float* a, const QuerySide& side, float* out) {
      sum.a = a, sum.b = side.row(panel), sum.b_stride = side.stride, sum.columns = sum.out_stride = side.columns;
      sum.out = out;
      loops.row_product(sum);
    };
    if (p_.grad_values != nullptr) add(scores, g_, w.grad_values.get());
    const float* weighed = summed() ? slopes : scores;
    if (p_.grad_bank != nullptr) add(weighed, x_, w.grad_bank.get());
    if (!wants_queries()) return;
    LaneProductArgs back;
    back.a = by_columns_.get() + b * sizes_.stride(d);
    back.rows = d, back.steps = rows;
    back.b = weighed, back.b_stride = stride, back.panels = panels;
    back.out = sums_.get() + (part * panels_ + panel) * part_numbers(), back.out_stride = part_numbers();
    back.begins = false;
    loops.lane_product(back);
  }

  // What a group of queries has made of a block of bank rows. The chunks of queries before this one have left sums.
  void flush(int64_t block, int64_t group, Worker& w) const {
    const int64_t row = block * sizes_.block, rows = rows_of(block);
    const auto write = [&](const float* from, int64_t columns, int64_t width, float* apart, float* out) {
      if (out == nullptr) return;
      const bool alone = groups_ == 1;
      float* to = (alone ? out : apart + group * f_.bank.count * width) + row * width;
      for (int64_t r = 0; r < rows; ++r, from += columns, to += width)
        for (int64_t c = 0; c < width; ++c) to[c] = alone && done_ > 0 ? to[c] + from[c] : from[c];
    };
    write(w.grad_bank.get(), bank_columns(), f_.bank.width, bank_sums_.get(), p_.grad_bank);
    if (summed()) write(w.grad_values.get(), value_columns(), f_.values.width, value_sums_.get(), p_.grad_values);
  }

  void add_groups(const float* sums, int64_t first, int64_t count, int64_t stride, float* out) const {
    if (out == nullptr) return;
    for (int64_t i = first; i < first + count; ++i) {
      float sum = done_ > 0 ? out[i] : 0.0f;
      for (int64_t group = 0; group < groups_; ++group) sum += sums[group * stride + i];
      out[i] = sum;
    }
  }

  // Adds up, for the queries of a panel, what the parts have summed: slopes times bank rows, before beta.
  void finish(int64_t panel) const {
    if (!wants_queries()) return;
    const int64_t d = f_.bank.width, count = std::min<int64_t>(kPanel, queries_.count - panel * kPanel);
    const float* x = x_.panels.panel(panel);
    double grad_beta[kPanel] = {};
    for (int64_t c = 0; c < d; ++c) {
      float total[kPanel] = {};
      for (int64_t part = 0; part < parts_; ++part) {
        const float* sums = sums_.get() + (part * panels_ + panel) * part_numbers() + c * kPanel;
        for (int i = 0; i < kPanel; ++i) total[i] += sums[i];
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t query = done_ + panel * kPanel + i;
        if (p_.grad_queries != nullptr) p_.grad_queries[query * d + c] = total[i] * f_.beta[query];
        grad_beta[i] += static_cast<double>(total[i]) * static_cast<double>(x[c * kPanel + i]);
      }
    }
    for (int64_t i = 0; i < count && p_.grad_beta != nullptr; ++i)
      p_.grad_beta[done_ + panel * kPanel + i] = static_cast<float>(grad_beta[i]);
  }

  const AttendGradientProblem& p_;
  const AttendProblem& f_;
  const int64_t done_;  // queries of the chunks before this one
  const AllowedRows allowed_;
  const AttendSizes sizes_;
  Rows queries_, grad_;  // of this chunk
  int64_t panels_ = 0, parts_ = 1, groups_ = 1;
  QuerySide x_, g_;                              // x_.rows are multiplied by beta
  Buffer<float> by_rows_, by_columns_, values_;  // of a piece, in groups
  Buffer<float> scale_, high_, low_, along_;     // [queries, in whole panels]
  Buffer<float> sums_;                           // [part][panel][width][16]
  Buffer<float> bank_sums_, value_sums_;         // [group][bank rows][width]
  float ones_[kVisitPanels * kPanel];
};

}  // namespace

Status attend_gradients(const AttendGradientProblem& problem, const Parallel& parallel) {
  KeepSubnormals keep;
  const AttendProblem& f = problem.forward;
  const int64_t n = f.queries.count, m = f.bank.count, d = f.bank.width;
  if (n == 0 || m == 0) {  // sums of nothing
    const auto clear = [](float* out, int64_t count) {
      if (out != nullptr) std::fill_n(out, count, 0.0f);
    };
    clear(problem.grad_queries, n * d);
    clear(problem.grad_beta, n);
    clear(problem.grad_bank, m * d);
    clear(problem.grad_values, m * f.values.width);
    return Status::ok;
  }
  const int64_t most =
      round_up_to(std::max<int64_t>(1, kPartNumbers / (kTasks * std::max<int64_t>(1, d))), kVisitPanels * kPanel);
  for (int64_t done = 0; done < n; done += most) {
    const Status status = AttendGradients(problem, done, std::min(most, n - done)).run(parallel);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace vecbank::cpu
