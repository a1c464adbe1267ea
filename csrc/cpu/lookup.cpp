// Gathers, segment sums and the gradients of selected pairs. Sums run in float64, in a fixed order (that of sums by
// code is stated in core/lookup.h), and round once: the same bits for any thread count.
#include "api.h"

#include <cmath>
#include <cstring>

#include "../core/exact_score.h"
#include "isa.h"
#include "kernels.h"
#include "members.h"
#include "reader.h"

namespace vecbank::cpu {
namespace {

// Rows widened to float64, and an accumulator, for one worker.
struct Scratch {
  RowReader first, second;
  Buffer<double> sum, part, a, b;
  bool reserve(const Rows& x, const Rows& y) {
    const int64_t width = round_up_to(x.width, 8);
    return first.reserve(x, 1) && second.reserve(y, 1) && sum.reserve(width) && part.reserve(width) &&
           a.reserve(width) && b.reserve(width);
  }
};

bool reserve(PerWorker<Scratch>& workers, const Rows& x, const Rows& y) {
  return workers.each([&](Scratch& scratch) { return scratch.reserve(x, y); });
}

double element(const void* data, DType dtype, int64_t i) {
  return with_dtype(dtype, [&](auto type) { return widened(static_cast<decltype(type)>(data)[i]); });
}

void write_row(const double* values, int64_t width, DType dtype, void* out, int64_t row) {
  kernels().narrow(values, dtype, width, static_cast<char*>(out) + row * width * static_cast<int64_t>(size_of(dtype)));
}

int64_t sum_block(int64_t i, int64_t k) { return (k == 1 ? i : i / k) / kSumBlock; }

// scratch.sum = the sum of one code, in the order of core/lookup.h. member(i) prepares the member at position i, and
// term(column) is then what it adds.
template <class Member, class Term>
void sum_members(const Segments& segments, int64_t code, int64_t k, int64_t width, Stop stop, Scratch& scratch,
                 Member&& member, Term&& term) {
  double *sum = scratch.sum.get(), *part = scratch.part.get();
  const int64_t begin = segments.begin(code), end = segments.end(code);
  std::fill_n(sum, width, 0.0);
  in_stretches(stop, begin, end, stretch_of(width), [&](int64_t from, int64_t to) {
    for (int64_t o = from; o < to; ++o) {
      const int64_t i = segments.order[o], block = sum_block(i, k);
      const bool first = o == begin || sum_block(segments.order[o - 1], k) != block;
      const bool last = o + 1 == end || sum_block(segments.order[o + 1], k) != block;
      member(i);
      if (first && last)  // the block's sum is this term
        for (int64_t c = 0; c < width; ++c) sum[c] += term(c);
      else if (first)
        for (int64_t c = 0; c < width; ++c) part[c] = term(c);
      else if (!last)
        for (int64_t c = 0; c < width; ++c) part[c] += term(c);
      else
        for (int64_t c = 0; c < width; ++c) sum[c] += part[c] + term(c);
    }
  });
}

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0.0;
  for (int64_t k = 0; k < n; ++k) sum += a[k] * b[k];
  return sum;
}

double squared_distance(const double* a, const double* b, int64_t n) {
  double lane[4] = {};  // four sums, because an addition waits for the one before it in its sum
  int64_t k = 0;
  for (; k + 4 <= n; k += 4)
    for (int l = 0; l < 4; ++l) lane[l] += (a[k + l] - b[k + l]) * (a[k + l] - b[k + l]);
  for (; k < n; ++k) lane[k % 4] += (a[k] - b[k]) * (a[k] - b[k]);
  return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

// Calls f(worker, row) for every row. A task has a few rows: enough to outweigh its overhead, few enough to balance.
template <class F>
[[nodiscard]] Status for_each_row(const Parallel& parallel, int64_t rows, int64_t width, F&& f) {
  const int64_t batch = std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1));
  return for_each_task(parallel, ceil_div(rows, batch), [&](int worker, int64_t task) {
    for (int64_t r = task * batch; r < std::min(rows, (task + 1) * batch); ++r) f(worker, r);
  });
}

// Calls f(worker, first, last) for rows that are equal work: a task has as many as leave each worker some tasks, so
// that it fetches ahead without a break.
template <class F>
[[nodiscard]] Status for_equal_rows(const Parallel& parallel, int64_t rows, int64_t width, F&& f) {
  width = std::max<int64_t>(width, 1);
  const int64_t shared = rows * width / (8 * parallel.workers);
  const int64_t batch = std::max<int64_t>(1, std::clamp<int64_t>(shared, 16384, 1 << 20) / width);
  return for_each_own_task(parallel, ceil_div(rows, batch), [&](int worker, int64_t task) {
    f(worker, task * batch, std::min(rows, (task + 1) * batch));
  });
}

bool all_rows(const int64_t* codes, int64_t count, int64_t rows) {
  bool good = true;
  for (int64_t t = 0; t < count; ++t) good &= codes[t] >= -1 && codes[t] < rows;
  return good;
}

const void* element_at(const void* data, DType dtype, int64_t i) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + i * static_cast<int64_t>(size_of(dtype));
}

// Bytes of a bank that outgrows a core's own cache, and of a result that will not stay in the one that cores share.
constexpr int64_t kFarBank = 1 << 20, kFarOut = 8 << 20;

// The rows as they are: a copy of bytes.
Status copy_rows(const LookupProblem& p, const Parallel& parallel) {
  const int64_t d = p.bank.width, size = static_cast<int64_t>(size_of(p.bank.dtype));
  PerWorker<RowReader> readers(parallel.workers);
  if (!readers.each([&](RowReader& reader) { return reader.reserve(p.bank, 1); })) return Status::out_of_memory;
  std::atomic<bool> bad{false};
  const Status done = for_equal_rows(parallel, p.count, d, [&](int worker, int64_t first, int64_t last) {
    GatherArgs a;
    a.bank = static_cast<const char*>(p.bank.data);
    a.rows = p.bank.count, a.row_bytes = p.bank.row_stride * size, a.bytes = d * size;
    a.far_bank = a.rows * a.row_bytes >= kFarBank, a.far_out = p.count * a.bytes >= kFarOut;
    const auto copy = [&](int64_t from, int64_t count) {
      a.codes = p.codes + from, a.count = count;
      a.out = static_cast<char*>(p.out) + from * d * size;
      if (!kernels().gather(a)) bad = true;
    };
    if (p.bank.col_stride == 1) return copy(first, last - first);
    for (int64_t r = first; r < last; ++r) {
      const int64_t code = p.codes[r];
      if (code >= 0 && code < p.bank.count)  // whatever its number, the row is this copy
        a.bank = static_cast<const char*>(readers[worker].row(code)), a.row_bytes = 0;
      copy(r, 1);
    }
  });
  return bad ? Status::bad_index : done;
}

}  // namespace

Status lookup(const LookupProblem& p, const Parallel& parallel) {
  if (p.reduce == Reduce::none && p.weights == nullptr) return copy_rows(p, parallel);
  const int64_t d = p.bank.width;
  PerWorker<Scratch> workers(parallel.workers);
  if (!reserve(workers, p.bank, p.bank)) return Status::out_of_memory;
  std::atomic<bool> bad{false};
  const Status done = for_equal_rows(parallel, p.count, d * p.k, [&](int worker, int64_t first, int64_t last) {
    Scratch& s = workers[worker];
    BagArgs a;
    a.bank = p.bank, a.sum = s.sum.get();
    for (int64_t r = first; r < last; ++r) {
      const int64_t* codes = p.codes + r * p.k;
      bool good = d > 0 || all_rows(codes, p.k, p.bank.count);  // a loop over columns sees no code where there are none
      std::fill_n(a.sum, round_up_to(d, 8), 0.0);
      const auto add = [&](int64_t from, int64_t to) {
        a.codes = codes + from, a.count = to - from;
        a.ahead = (last - r) * p.k - to;
        a.weights = element_at(p.weights, p.bank.dtype, r * p.k + from);
        good = kernels().add_bag(a) && good;
      };
      if (p.bank.col_stride == 1) {
        in_stretches(parallel.stop, 0, p.k, stretch_of(d), add);
      } else if (good = all_rows(codes, p.k, p.bank.count); good) {  // bags of one row each, a copy
        constexpr int64_t only = 0;
        in_stretches(parallel.stop, 0, p.k, 1, [&](int64_t t, int64_t) {
          if (codes[t] < 0) return;
          a.bank = {s.first.row(codes[t]), p.bank.dtype, 1, d, d, 1};
          a.codes = &only, a.count = 1;
          a.weights = element_at(p.weights, p.bank.dtype, r * p.k + t);
          kernels().add_bag(a);
        });
      }
      if (!good) {
        bad = true;
        return;
      }
      if (p.reduce == Reduce::mean) {
        const int64_t valid = p.k - std::count(codes, codes + p.k, int64_t{-1});
        for (int64_t k = 0; valid > 0 && k < d; ++k) a.sum[k] /= static_cast<double>(valid);
      }
      write_row(a.sum, d, p.bank.dtype, p.out, r);
    }
  });
  return bad ? Status::bad_index : done;
}

Status lookup_dot(const LookupDotProblem& p, const Parallel& parallel) {
  const int64_t d = p.x.width;
  PerWorker<Scratch> workers(parallel.workers);
  if (!reserve(workers, p.x, p.bank)) return Status::out_of_memory;
  std::atomic<bool> bad{false};
  const Status done = for_each_row(parallel, p.x.count, d * p.k, [&](int worker, int64_t r) {
    Scratch& s = workers[worker];
    kernels().widen(s.first.row(r), p.x.dtype, d, s.a.get());
    for (int64_t t = 0; t < p.k && !parallel.stop.requested(); ++t) {
      const int64_t code = p.codes[r * p.k + t];
      if (code < -1 || code >= p.bank.count) {
        bad = true;
        return;
      }
      double value = 0.0;
      if (code >= 0) {
        kernels().widen(s.second.row(code), p.bank.dtype, d, s.b.get());
        value = dot(s.a.get(), s.b.get(), d);
      }
      write_row(&value, 1, p.bank.dtype, p.out, r * p.k + t);
    }
  });
  return bad ? Status::bad_index : done;
}

// For many rows a code. The rows are read as a stream, a block at a time, and a slice of the columns at a time, so that
// the sums stay in L2. Within a block the rows of each code are added up one after another: every sum is then read and
// written once a block, and gets the same terms in the same order as in sum_members().
class StreamedSum {
 public:
  // The width of a slice; 0: the rows are better gathered.
  static int64_t columns(const SegmentSumProblem& p, int workers) {
    const int64_t d = p.source.width;
    if (p.k != 1 || p.source.col_stride != 1 || p.segments == 0 || p.count < 4 * p.segments) return 0;
    const int64_t most = std::min(round_up_to(ceil_div(d, workers), kLeast), kBytes / 8 / p.segments / 8 * 8);
    return most >= std::min(d, kLeast) ? most : 0;
  }

  static Status run(const SegmentSumProblem& p, int64_t columns, const Parallel& parallel) {
    const int64_t d = p.source.width;
    Buffer<int64_t> counts;
    PerWorker<StreamedSum> workers(parallel.workers);
    if (!workers.each([&](StreamedSum& s) { return s.reserve(p.segments, columns); }) || !counts.reserve(p.segments))
      return Status::out_of_memory;
    const Status counted = count_codes(p.codes, p.count, p.segments, counts.get(), parallel.stop);
    if (counted != Status::ok) return counted;
    const Status summed = for_each_task(parallel, ceil_div(d, columns), [&](int worker, int64_t task) {
      const int64_t first = task * columns;
      workers[worker].slice(p, first, std::min(columns, d - first), parallel.stop);
    });
    if (p.counts != nullptr)
      for (int64_t c = 0; c < p.segments; ++c) p.counts[c] = static_cast<float>(counts[c]);
    return summed;
  }

 private:
  static constexpr int64_t kBytes = 1 << 20, kLeast = 16;

  bool reserve(int64_t segments, int64_t columns) {
    const int64_t stride = round_up_to(columns, 8);
    return sum_.reserve(segments * stride) && part_.reserve(stride) && last_.reserve(segments);
  }

  void slice(const SegmentSumProblem& p, int64_t first, int64_t width, Stop stop) {
    BlockSumArgs a;
    a.dtype = p.source.dtype, a.row_stride = p.source.row_stride, a.width = width, a.stride = round_up_to(width, 8);
    a.sums = sum_.get(), a.part = part_.get(), a.last = last_.get(), a.first = first_, a.next = next_ + 1;
    std::fill_n(sum_.get(), p.segments * a.stride, 0.0);
    std::fill_n(last_.get(), p.segments, int16_t{-1});
    in_stretches(stop, 0, ceil_div(p.count, kSumBlock), stretch_of(width * kSumBlock), [&](int64_t from, int64_t to) {
      for (int64_t begin = from * kSumBlock; begin < std::min(p.count, to * kSumBlock); begin += kSumBlock) {
        a.codes = p.codes + begin;
        a.rows = std::min(kSumBlock, p.count - begin);
        a.ahead = std::min(kSumBlock, p.count - begin - a.rows);
        a.source = element_at(p.source.row(begin), a.dtype, first);
        if (p.weights != nullptr) {
          kernels().widen(element_at(p.weights, p.weights_dtype, begin), p.weights_dtype, a.rows, weights_);
          a.weights = weights_;
        }
        kernels().add_block(a);
      }
    });
    const int64_t size = static_cast<int64_t>(size_of(p.out_dtype));
    for (int64_t c = 0; c < p.segments; ++c)
      kernels().narrow(sum_.get() + c * a.stride, p.out_dtype, width,
                       static_cast<char*>(p.out) + (c * p.source.width + first) * size);
  }

  Buffer<double> sum_, part_;
  Buffer<int16_t> last_;         // [segments]: the last row of its list so far; -1: none
  int16_t first_[kSumBlock];     // of each list
  int16_t next_[1 + kSumBlock];  // the row after each row in its list; -1: none
  double weights_[kSumBlock];    // of a block's rows
};

Status segment_sum(const SegmentSumProblem& p, const Parallel& parallel) {
  const int64_t d = p.source.width;
  if (const int64_t columns = StreamedSum::columns(p, parallel.workers); columns > 0 && d > 0)
    return StreamedSum::run(p, columns, parallel);
  PerWorker<Scratch> workers(parallel.workers);
  Segments segments;
  if (!reserve(workers, p.source, p.source)) return Status::out_of_memory;
  const Status built = segments.build(p.codes, p.count, p.segments, parallel.stop);
  if (built != Status::ok) return built;
  const int64_t members = 1 + p.count / std::max<int64_t>(p.segments, 1);
  return for_each_row(parallel, p.segments, d * members, [&](int worker, int64_t c) {
    Scratch& s = workers[worker];
    double w = 1.0;
    const auto member = [&](int64_t i) {
      if (p.weights != nullptr) w = element(p.weights, p.weights_dtype, i);
      kernels().widen(s.first.row(i / p.k), p.source.dtype, d, s.a.get());
    };
    sum_members(segments, c, p.k, d, parallel.stop, s, member, [&](int64_t k) { return w * s.a[k]; });
    write_row(s.sum.get(), d, p.out_dtype, p.out, c);
    if (p.counts != nullptr) p.counts[c] = static_cast<float>(segments.end(c) - segments.begin(c));
  });
}

Status quantize_loss(QuantizeLossProblem& p, const Parallel& parallel) {
  constexpr int64_t block = 256;  // fixed, so that the sum does not depend on the thread count
  const int64_t d = p.x.width, blocks = ceil_div(p.x.count, block);
  PerWorker<Scratch> workers(parallel.workers);
  Buffer<double> partial;
  Buffer<int64_t> valid;
  if (!reserve(workers, p.x, p.quantized) || !partial.reserve(blocks) || !valid.reserve(blocks))
    return Status::out_of_memory;
  const Status done = for_each_task(parallel, blocks, [&](int worker, int64_t task) {
    Scratch& s = workers[worker];
    double squares = 0.0;
    int64_t rows = 0;
    for (int64_t r = task * block; r < std::min(p.x.count, (task + 1) * block); ++r) {
      const bool kept = p.keep == nullptr || p.keep[r];
      if (kept && p.codes[r] < 0) continue;
      kernels().widen(s.first.row(r), p.x.dtype, d, s.a.get());
      if (!kept) {
        p.codes[r] = -1;
        write_row(s.a.get(), d, p.quantized.dtype, const_cast<void*>(p.quantized.data), r);
        continue;
      }
      kernels().widen(s.second.row(r), p.quantized.dtype, d, s.b.get());
      squares += squared_distance(s.a.get(), s.b.get(), d);
      ++rows;
    }
    partial[task] = squares;
    valid[task] = rows;
  });
  if (done != Status::ok) return done;
  for (int64_t t = 0; t < blocks; ++t) {
    p.squares += partial[t];
    p.valid += valid[t];
  }
  return Status::ok;
}

namespace {

VB_INLINE double pair_gradient(Term term, double along, double own, double x, double b) {
  const double across = along * slope_of(term, x, b);
  return own == 0.0 ? across : across - own * x;
}

PairFactors pair_factors(const MetricRecord& m, double grad, const double* x, const double* b, int64_t d) {
  const bool scaled = m.scaled_rows();
  const double raw = m.term == Term::square && (scaled || m.root) ? squared_distance(x, b, d)
                     : scaled                                     ? dot(x, b, d)
                                                                  : 0.0;
  return vecbank::pair_factors(m, grad, raw, scaled ? dot(x, x, d) : 0.0, scaled ? dot(b, b, d) : 0.0);
}

}  // namespace

Status pair_gradients(const PairProblem& p, const Parallel& parallel) {
  const int64_t d = p.queries.width, n = p.queries.count, pairs = n * p.k;
  PerWorker<Scratch> workers(parallel.workers);
  Segments segments;
  Buffer<PairFactors> factors;
  if (!reserve(workers, p.queries, p.bank) || !factors.reserve(pairs)) return Status::out_of_memory;
  const Status built = segments.build(p.indices, pairs, p.bank.count, parallel.stop);
  if (built != Status::ok) return built;
  const MetricRecord metric = record(p.metric);
  const Term term = metric.term;

  const Status paired = for_each_row(parallel, n, d * p.k, [&](int worker, int64_t q) {
    Scratch& s = workers[worker];
    std::fill_n(s.sum.get(), d, 0.0);
    kernels().widen(s.first.row(q), p.queries.dtype, d, s.a.get());
    for (int64_t t = 0; t < p.k && !parallel.stop.requested(); ++t) {
      const int64_t i = q * p.k + t;
      if (p.indices[i] < 0) continue;
      kernels().widen(s.second.row(p.indices[i]), p.bank.dtype, d, s.b.get());
      const PairFactors f = factors[i] =
          pair_factors(metric, element(p.grad, p.grad_dtype, i), s.a.get(), s.b.get(), d);
      for (int64_t k = 0; k < d; ++k) s.sum[k] += pair_gradient(term, f.along, f.own_query, s.a[k], s.b[k]);
    }
    if (p.grad_queries != nullptr) write_row(s.sum.get(), d, p.queries.dtype, p.grad_queries, q);
  });
  if (p.grad_bank == nullptr || paired != Status::ok) return paired;

  return for_each_row(parallel, p.bank.count, d, [&](int worker, int64_t j) {
    Scratch& s = workers[worker];
    if (segments.begin(j) < segments.end(j)) kernels().widen(s.second.row(j), p.bank.dtype, d, s.b.get());
    PairFactors f{};
    const auto member = [&](int64_t i) {
      f = factors[i];
      kernels().widen(s.first.row(i / p.k), p.queries.dtype, d, s.a.get());
    };
    sum_members(segments, j, p.k, d, parallel.stop, s, member,
                [&](int64_t c) { return pair_gradient(term, f.along, f.own_bank, s.b[c], s.a[c]); });
    write_row(s.sum.get(), d, p.bank.dtype, p.grad_bank, j);
  });
}

}  // namespace vecbank::cpu
