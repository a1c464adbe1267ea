// The gradient of project() without a matrix product of a library: for problems, and batches of them, that are so small
// that the calls of one take longer than the work.
//
// A side's gradient is a sum of slopes over the other side (slopes.inl.h). What depends on the metric is what is summed
// and how it ends: cosine takes the rows at length 1, and l2 divides by its distance, scored in float64.
#include "api.h"
#include "isa.h"
#include "kernels.h"

#include <cmath>
#include <cstring>

namespace vecbank::cpu {
namespace {

constexpr int64_t kOthers = 128;         // rows of the other side that are summed together: they stay in L1
constexpr int64_t kTaskTerms = 1 << 20;  // of a task: some 20 us
constexpr int64_t kRowsOfTask = 8;       // a task has a multiple of these
constexpr int64_t kTogether = 64;        // rows whose norms are worked out together
constexpr int64_t kScored = 32;          // queries whose distances are worked out together
constexpr int64_t kCoordinates = 32;     // of a distance that are summed together: what is rounded is few terms

// Rows as the loops need them: float32, padded, at length 1 for a metric with unit rows.
class Side {
 public:
  bool reserve(const Rows& rows, void* gradient, bool unit) {
    given_ = rows, gradient_ = gradient, unit_ = unit;
    width_ = round_up_to(rows.width, kSlopeStep);
    in_place_ = rows.dtype == DType::f32 && rows.width == width_ && !unit;
    stride_ = in_place_ ? rows.row_stride : width_;
    direct_ = rows.dtype == DType::f32 && rows.width == width_;
    return (in_place_ || copy_.reserve(rows.count * width_)) &&
           (!unit || (inverse_.reserve(rows.count) && alive_.reserve(rows.count))) &&
           (direct_ || gradient == nullptr || sums_.reserve(rows.count * width_));
  }
  bool in_place() const { return in_place_; }
  bool wanted() const { return gradient_ != nullptr; }
  int64_t count() const { return given_.count; }
  int64_t width() const { return width_; }
  int64_t stride() const { return stride_; }
  const float* rows(int64_t i) const {
    return in_place_ ? static_cast<const float*>(given_.row(i)) : copy_.get() + i * stride_;
  }
  Rows view() const { return {rows(0), DType::f32, given_.count, given_.width, stride_, 1}; }

  // `wide`: room for a row in float64.
  void load(int64_t first, int64_t count, double* wide) {
    const int64_t d = given_.width;
    for (int64_t r = first; r < first + count; ++r) {
      float* out = copy_.get() + r * width_;
      if (given_.dtype == DType::f32) {
        std::memcpy(out, given_.row(r), static_cast<size_t>(d) * sizeof(float));
      } else {
        kernels().widen(given_.row(r), given_.dtype, d, wide);
        for (int64_t k = 0; k < d; ++k) out[k] = static_cast<float>(wide[k]);
      }
      std::fill(out + d, out + width_, 0.0f);
    }
    double squares[kTogether];
    for (int64_t r = first; unit_ && r < first + count; r += kTogether) {
      const int64_t together = std::min(kTogether, first + count - r);
      kernels().squares(given_, nullptr, r, together, squares);
      for (int64_t i = 0; i < together; ++i) {
        const double norm = std::sqrt(squares[i]);
        const float inverse = inverse_[r + i] = static_cast<float>(1.0 / floored(norm));
        alive_[r + i] = norm < kNormFloor ? 0.0f : 1.0f;
        float* out = copy_.get() + (r + i) * width_;
        for (int64_t k = 0; k < width_; ++k) out[k] *= inverse;
      }
    }
  }

  // The gradient of some rows, given the weights of row 0.
  void sum(const Side& others, Term term, float factor, const float* weights, int64_t weight_row, int64_t weight_other,
           int64_t first, int64_t count, Stop stop) {
    SlopeArgs a;
    a.term = term, a.width = width_, a.count = count;
    a.rows = rows(first), a.row_stride = stride_, a.other_stride = others.stride_;
    a.weight_row = weight_row, a.weight_other = weight_other;
    a.sums = sums(first), a.sum_stride = width_;
    if (others.count() == 0) std::fill_n(a.sums, count * width_, 0.0f);
    in_stretches(stop, 0, others.count(), kOthers, [&](int64_t from, int64_t to) {
      a.others = others.rows(from), a.other_count = to - from;
      a.weights = weights + first * weight_row + from * weight_other;
      a.begins = from == 0;
      kernels().slopes(a);
    });
    SlopeEndArgs e;
    e.factor = factor, e.width = width_, e.count = count, e.sums = a.sums, e.sum_stride = width_;
    if (unit_) e.units = a.rows, e.unit_stride = stride_, e.inverse = &inverse_[first], e.alive = &alive_[first];
    kernels().end_slopes(e);
    if (direct_) return;
    const int64_t d = given_.width, size = static_cast<int64_t>(size_of(given_.dtype));
    for (int64_t r = first; r < first + count; ++r)
      kernels().narrow_floats(sums(r), d, given_.dtype, static_cast<char*>(gradient_) + r * d * size);
  }

 private:
  float* sums(int64_t i) const {  // the gradient itself, where it has no other type and no padding
    return (direct_ ? static_cast<float*>(gradient_) : sums_.get()) + i * width_;
  }

  Rows given_;
  void* gradient_ = nullptr;
  bool unit_ = false, in_place_ = false, direct_ = false;
  int64_t width_ = 0, stride_ = 0;
  Buffer<float> copy_, sums_, inverse_, alive_;
};

// The memory of a problem; it serves one after another.
class Gradients {
 public:
  Status run(const ProjectGradientProblem& p, const Parallel& parallel) {
    KeepSubnormals keep;
    const MetricRecord metric = record(p.metric);
    const int64_t n = p.queries.count, m = p.bank.count;
    // Slopes of nothing are zeros, and there are no rows where there is no width.
    if (!x_.reserve(p.queries, p.grad_queries, metric.unit_rows) ||
        !bank_.reserve(p.bank, p.grad_bank, metric.unit_rows))
      return Status::out_of_memory;
    const int64_t width = x_.width(), columns = round_up_to(m, kPanel);
    const bool as_given = p.grad.dtype == DType::f32 && !metric.root;
    if (!as_given && !weights_.reserve(n * columns)) return Status::out_of_memory;
    if (metric.root && !panels_.reserve(columns * p.bank.width)) return Status::out_of_memory;
    const bool works = !as_given || !x_.in_place() || !bank_.in_place();
    if (works && !scratch_.reserve(parallel.workers, round_up_to(p.queries.width, 8), metric.root ? columns : 0))
      return Status::out_of_memory;

    for (Side* side : {&x_, &bank_}) {
      if (side->in_place()) continue;
      const Status loaded = for_rows(parallel, side->count(), width, [&](int worker, int64_t first, int64_t count) {
        side->load(first, count, scratch_[worker].wide.get());
      });
      if (loaded != Status::ok) return loaded;
    }

    if (metric.root) interleave(m, p.bank.width);

    const float* weights = as_given ? static_cast<const float*>(p.grad.data) : weights_.get();
    const int64_t row = as_given ? p.grad.row_stride : columns, column = as_given ? p.grad.col_stride : 1;
    const float factor = metric.term == Term::square && !metric.root ? 2.0f : 1.0f;
    const Status queries = for_rows(parallel, n, m * width, [&](int worker, int64_t first, int64_t count) {
      if (!as_given) weigh(p, metric, first, count, scratch_[worker]);
      if (x_.wanted()) x_.sum(bank_, metric.term, factor, weights, row, column, first, count, parallel.stop);
    });
    if (queries != Status::ok || !bank_.wanted()) return queries;
    return for_rows(parallel, m, n * width, [&](int, int64_t first, int64_t count) {
      bank_.sum(x_, metric.term, factor, weights, column, row, first, count, parallel.stop);
    });
  }

 private:
  struct Scratch {
    Buffer<double> wide, exact;    // [width], [bank rows]
    Buffer<float> squares, grads;  // [kScored][bank rows], [bank rows]
    Buffer<int64_t> odd;           // [bank rows]
    bool reserve(int64_t width, int64_t columns) {
      return wide.reserve(width) && (columns == 0 || (exact.reserve(columns) && squares.reserve(kScored * columns) &&
                                                      grads.reserve(columns) && odd.reserve(columns)));
    }
  };
  class PerWorkerScratch {
   public:
    bool reserve(int64_t workers, int64_t width, int64_t columns) {
      if (workers > count_) {
        list_.reset(new (std::nothrow) Scratch[static_cast<size_t>(workers)]);
        count_ = list_ ? workers : 0;
      }
      bool good = workers <= count_;
      for (int64_t w = 0; good && w < workers; ++w) good = list_[w].reserve(width, columns);
      return good;
    }
    Scratch& operator[](int64_t worker) { return list_[worker]; }

   private:
    std::unique_ptr<Scratch[]> list_;
    int64_t count_ = 0;
  };

  // Calls f(worker, first, count) for rows of so many terms each.
  template <class F>
  [[nodiscard]] static Status for_rows(const Parallel& parallel, int64_t rows, int64_t terms, F&& f) {
    const int64_t of_task = round_up_to(ceil_div(kTaskTerms, std::max<int64_t>(terms, 1)), kRowsOfTask);
    if (rows <= of_task) {  // most problems: to hand out one task takes longer than a tiny problem
      if (!parallel.stop.requested()) f(0, int64_t{0}, rows);
      return parallel.stop.requested() ? Status::stopped : Status::ok;
    }
    return for_each_task(parallel, ceil_div(rows, of_task), [&](int worker, int64_t task) {
      f(worker, task * of_task, std::min(of_task, rows - task * of_task));
    });
  }

  // The bank in panels, whose distances to a query are sums side by side.
  void interleave(int64_t rows, int64_t width) {
    for (int64_t j = 0; j < rows; j += kPanel) {
      const void* panel[kPanel];
      const int count = static_cast<int>(std::min<int64_t>(kPanel, rows - j));
      for (int i = 0; i < count; ++i) panel[i] = bank_.rows(j + i);
      kernels().interleave_f32(panel, count, kPanel, DType::f32, width, nullptr, panels_.get() + j * width);
    }
  }

  // What the slopes of some queries are multiplied by, where that is not the gradient as it was given.
  void weigh(const ProjectGradientProblem& p, const MetricRecord& metric, int64_t first, int64_t count, Scratch& s) {
    const int64_t m = p.bank.count, columns = round_up_to(m, kPanel);
    for (int64_t r = first; r < first + count; ++r) {
      const int64_t slot = (r - first) % kScored;
      if (metric.root && slot == 0) square(p.bank, r, std::min(kScored, first + count - r), columns, s);
      float* out = weights_.get() + r * columns;
      const float* grads = static_cast<const float*>(p.grad.row(r));
      int64_t step = p.grad.col_stride;
      if (p.grad.dtype != DType::f32) {
        float* narrow = metric.root ? s.grads.get() : out;
        with_dtype(p.grad.dtype, [&](auto type) {
          const auto* from = static_cast<decltype(type)>(p.grad.row(r));
          for (int64_t j = 0; j < m; ++j) narrow[j] = static_cast<float>(widened(from[j * step]));
        });
        grads = narrow, step = 1;
      }
      if (!metric.root) continue;
      const float* squares = s.squares.get() + slot * columns;
      if (kernels().divide_by_roots(squares, grads, step, m, out)) divide_odd(metric, r, squares, grads, step, out, s);
    }
  }

  // The squared distances of some queries to the whole bank.
  void square(const Rows& bank, int64_t first, int64_t count, int64_t columns, Scratch& s) {
    SlopeArgs a;
    a.distances = true, a.width = a.other_stride = kPanel, a.count = count;
    a.weight_row = x_.stride(), a.weight_other = 1, a.sum_stride = columns;
    for (int64_t j = 0; j < bank.count; j += kPanel) {
      a.sums = s.squares.get() + j;
      for (int64_t k = 0; k < bank.width; k += kCoordinates) {
        a.weights = x_.rows(first) + k, a.others = panels_.get() + j * bank.width + k * kPanel;
        a.other_count = std::min(kCoordinates, bank.width - k), a.begins = k == 0;
        kernels().slopes(a);
      }
    }
  }

  // By distances in float64, where float32 does not hold their squares. l2 has no slope at a distance of 0.
  void divide_odd(const MetricRecord& metric, int64_t query, const float* squares, const float* grads, int64_t step,
                  float* out, Scratch& s) {
    const Rows x = x_.view();
    ScoreArgs a;
    a.bank = bank_.view(), a.term = metric.term, a.narrow = true;
    a.query_stride = round_up_to(x.width, 8);
    kernels().widen(x.row(query), x.dtype, x.width, s.wide.get());
    a.queries = s.wide.get(), a.index = s.odd.get(), a.out = s.exact.get();
    for (int64_t j = 0; j < a.bank.count; ++j)
      if (is_odd(squares[j], kLeastSquare)) s.odd[a.count++] = j;
    kernels().score(a);
    for (int64_t i = 0; i < a.count; ++i) {
      const int64_t j = s.odd[i];
      const double grad = static_cast<double>(grads[j * step]);
      out[j] = s.exact[i] == 0.0 ? 0.0f : static_cast<float>(grad / std::sqrt(s.exact[i]));
    }
  }

  Side x_, bank_;
  Buffer<float> weights_;  // [queries][bank rows, in whole panels]
  Buffer<float> panels_;
  PerWorkerScratch scratch_;
};

}  // namespace

Status project_gradients(const ProjectGradientProblem& problem, const Parallel& parallel) {
  return Gradients().run(problem, parallel);
}

Status project_gradients_each(const ProjectGradientProblem* problems, int64_t count, const Parallel& parallel) {
  PerWorker<Gradients> workers(parallel.workers);
  if (!workers.each([](Gradients&) { return true; })) return Status::out_of_memory;
  return solve_each(problems, count, parallel, [&](int worker, const ProjectGradientProblem& p, const Parallel& alone) {
    return workers[worker].run(p, alone);
  });
}

}  // namespace vecbank::cpu
