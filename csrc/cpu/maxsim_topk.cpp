// The best documents, exact. A pass in float32 bounds every document's score from both sides; those whose upper bound
// reaches the k-th best lower bound are scored in float64. Where there are codes, a pass over these comes first, and
// float32 looks at the documents whose upper bound by the codes reaches the k-th best lower bound so far.
#include <atomic>
#include <functional>
#include <memory>

#include "allowed.h"
#include "maxsim_codes.h"
#include "maxsim_exact.h"
#include "maxsim_sweep.h"
#include "topk_list.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kTogether = 16;       // documents that are scored exactly at a time
constexpr double kMostBound = 0x1p120;  // of scores that lists of float32 bounds can tell apart

void give(const MaxSimProblem& p, int64_t query, const Scored* best, int64_t count) {
  double* values = static_cast<double*>(p.values) + query * p.k;
  int64_t* found = p.found + query * p.k;
  for (int64_t i = 0; i < p.k; ++i) {
    values[i] = i < count ? best[i].key : -HUGE_VAL;
    found[i] = i < count ? best[i].index : -1;
  }
}

struct Finisher {
  ExactSets exact;
  TopKList list;
  Selector selector;
  bool reserve(const MaxSimProblem& p, Stop stop) {
    const int64_t capacity = TopKList::capacity_for(p.k, p.documents.count);
    return exact.reserve(p, stop) && list.reserve(p.k, p.documents.count) && selector.reserve(capacity);
  }
};

// The answer of a query from the exact scores of some documents, ascending; NaN: it is not one of them.
template <class DocumentOf>
void finish(const MaxSimProblem& p, Finisher& f, int64_t query, const double* scores, int64_t count,
            DocumentOf&& document) {
  f.list.clear();
  for (int64_t i = 0; i < count; ++i) f.list.push(scores[i], document(i));
  const int64_t kept = f.list.finish(f.selector);
  give(p, query, f.list.data(), kept);
}

// A query whose documents are all scored exactly. `scores`: [documents].
Status search_all(const MaxSimProblem& p, const AllowedRows& allowed, int64_t query, PerWorker<Finisher>& finishers,
                  double* scores, const Parallel& parallel) {
  const int64_t count = p.documents.count;
  const Status scored = for_each_task(parallel, ceil_div(count, kTogether), [&](int worker, int64_t task) {
    const int64_t first = task * kTogether, last = std::min(count, first + kTogether);
    int64_t some[kTogether], n = 0;
    double found[kTogether];
    for (int64_t d = first; d < last; ++d) {
      scores[d] = HUGE_VAL - HUGE_VAL;
      if (p.documents.size(d) > 0 && (!allowed.any_set() || allowed.allows(query, d))) some[n++] = d;
    }
    finishers[worker].exact.score(query, n, [&](int64_t i) { return some[i]; }, found, nullptr, 0);
    for (int64_t i = 0; i < n; ++i) scores[some[i]] = found[i];
  });
  if (scored == Status::ok) finish(p, finishers[0], query, scores, count, [](int64_t i) { return i; });
  return scored;
}

struct Worker {
  DocumentSweep sweep;
  CodeSweep codes;
  ExactSets exact;
  CandidateLists lists;
};

// A full list: its candidates are scored exactly, and the list is made again of these. False: it is full still, or a
// score is too large for it.
bool tighten(Worker& w, int64_t row, int64_t query) {
  int64_t count;
  Candidate* c = w.lists.candidates(row, &count);
  for (int64_t i = 0; i < count; ++i) {
    if (c[i].refined()) continue;
    double score;
    w.exact.score(query, 1, [&](int64_t) { return int64_t{c[i].column}; }, &score, nullptr, 0);
    const bool none = std::isnan(score);
    if (!none && !(std::fabs(score) < kMostBound)) return false;
    c[i] = {none ? -HUGE_VALF : above(score), none ? -HUGE_VALF : below(score), ~c[i].column};
  }
  return w.lists.tighten(row);
}

// Some queries, [first, first + count), as the passes need them, and what is known of their thresholds.
struct Asked {
  int64_t first = 0, count = 0;
  TokenPanels panels;
  CodedQueries coded;
  std::unique_ptr<std::atomic<float>[]> thresholds;  // the best of any worker: each is one of the whole search

  [[nodiscard]] Status build(const MaxSimProblem& p, int64_t query, int64_t queries, const Parallel& parallel) {
    first = query, count = queries;
    const Status built = panels.build(p, query, query + queries, parallel);
    if (built != Status::ok) return built;
    thresholds.reset(new (std::nothrow) std::atomic<float>[static_cast<size_t>(queries)]);
    if (thresholds == nullptr) return Status::out_of_memory;
    for (int64_t q = 0; q < queries; ++q) thresholds[static_cast<size_t>(q)] = -HUGE_VALF;
    const bool good = !has_codes(p) || coded.build(panels, query, queries, p.queries.rows.width);
    return good ? Status::ok : Status::out_of_memory;
  }
  float threshold(const Worker& w, int64_t q) const {
    return std::max(w.lists.threshold(q), thresholds[static_cast<size_t>(q)].load(std::memory_order_relaxed));
  }
  void raise(const Worker& w, int64_t q) {
    std::atomic<float>& shared = thresholds[static_cast<size_t>(q)];
    const float own = w.lists.threshold(q);
    for (float now = shared.load(std::memory_order_relaxed);
         !w.lists.fell_back(q) && own > now && !shared.compare_exchange_weak(now, own, std::memory_order_relaxed);) {
    }
  }
};

// Adds a document that the pass in float32 has been over, as number i of it.
void consider(const MaxSimProblem& p, const AllowedRows& allowed, Asked& asked, int64_t q, int64_t document, int64_t i,
              Worker& w) {
  const int64_t query = asked.first + q, begin = asked.panels.begin(query), end = asked.panels.begin(query + 1);
  const float* scores = w.sweep.best(i);
  double sum = 0.0, size = 0.0;
  for (int64_t t = begin; t < end; ++t) {
    sum += static_cast<double>(scores[t]);
    size += std::fabs(static_cast<double>(scores[t]));
  }
  const double error = sweep_error(p, asked.panels.norm(query), end - begin, w.sweep.norm(i), size);
  const bool sure = std::fabs(sum) + error < kMostBound && !w.sweep.odd(i);  // not where one is NaN
  const float upper = sure ? above(sum + error) : HUGE_VALF, lower = sure ? below(sum - error) : -HUGE_VALF;
  if (upper < asked.threshold(w, q) || (allowed.any_set() && !allowed.allows(query, document))) return;
  if (!w.lists.add(q, upper, lower, static_cast<int32_t>(document)) && !tighten(w, q, query)) w.lists.fall_back(q);
  asked.raise(w, q);
}

// Documents [first, last).
void screen(const MaxSimProblem& p, const AllowedRows& allowed, Asked& asked, int64_t first, int64_t last, Worker& w,
            Stop stop) {
  const bool coded = has_codes(p);
  if (coded)
    w.codes.run(p, asked.coded, first, last, stop);
  else
    w.sweep.run(asked.panels, first, last, false, true, stop);
  for (int64_t d = first; d < last && !stop.requested(); ++d) {
    if (p.documents.size(d) == 0) continue;
    for (int64_t q = 0; q < asked.count; ++q) {
      if (!coded) {
        consider(p, allowed, asked, q, d, d - first, w);
        continue;
      }
      const float threshold = asked.threshold(w, q);
      if (threshold == HUGE_VALF) continue;  // it fell back
      const int64_t query = asked.first + q, begin = asked.panels.begin(query), end = asked.panels.begin(query + 1);
      const float upper = asked.coded.upper(p.codes.facts + 3 * d, w.codes.best(d - first), begin, end, q);
      if (upper < threshold || (allowed.any_set() && !allowed.allows(query, d))) continue;
      w.sweep.run_one(asked.panels, begin, end, d, stop);
      consider(p, allowed, asked, q, d, 0, w);
    }
  }
}

// What the workers' lists leave of a query, ascending, into `out`; returns how many these are.
int64_t survivors_of(PerWorker<Worker>& workers, int64_t row, int64_t k, Buffer<float>& lowers, int64_t* out) {
  int64_t all = 0, kept = 0;
  for (Worker& w : workers) {
    int64_t count;
    const Candidate* c = w.lists.candidates(row, &count);
    for (int64_t i = 0; i < count; ++i) lowers[all++] = c[i].lower;
  }
  float threshold = -HUGE_VALF;
  if (all >= k) {
    std::nth_element(lowers.get(), lowers.get() + (k - 1), lowers.get() + all, std::greater<float>());
    threshold = lowers[k - 1];
  }
  for (Worker& w : workers) {
    int64_t count;
    const Candidate* c = w.lists.candidates(row, &count);
    for (int64_t i = 0; i < count; ++i)
      if (c[i].upper >= threshold) out[kept++] = c[i].place();
  }
  std::sort(out, out + kept);
  return kept;
}

class Screened {
 public:
  Screened(const MaxSimProblem& p, const AllowedRows& allowed, PerWorker<Finisher>& finishers, double* scores,
           const Parallel& parallel)
      : p_(p),
        allowed_(allowed),
        finishers_(finishers),
        scores_(scores),
        parallel_(parallel),
        workers_(parallel.workers) {}

  // Queries [query, query + count).
  Status run(int64_t query, int64_t count) {
    const int64_t documents = p_.documents.count;
    const Status built = asked_.build(p_, query, count, parallel_);
    if (built != Status::ok) return built;
    const int64_t panels = asked_.panels.panels();
    const auto prepare = [&](Worker& w) {
      return w.sweep.reserve(p_, panels, false) && (!has_codes(p_) || w.codes.reserve(panels)) &&
             w.exact.reserve(p_, parallel_.stop) && w.lists.reserve(count, p_.k);
    };
    const int64_t most = CandidateLists::capacity_for(p_.k) * parallel_.workers;
    if (!workers_.each(prepare) || !lowers_.reserve(most) || !starts_.reserve(count + 1) ||
        !survivors_.reserve(count * most) || !exact_.reserve(count * most))
      return Status::out_of_memory;
    for (Worker& w : workers_) w.lists.clear(count);
    for (int64_t q = 0; q < count; ++q)
      if (asked_.panels.odd(query + q) || asked_.panels.begin(query + q) == asked_.panels.begin(query + q + 1))
        for (Worker& w : workers_) w.lists.fall_back(q);
    const int64_t at_once = DocumentSweep::most_documents(panels);
    const int64_t together = std::clamp<int64_t>(documents / (8 * parallel_.workers), 1, at_once);
    const Status screened = for_each_task(parallel_, ceil_div(documents, together), [&](int worker, int64_t task) {
      const int64_t first = task * together, last = std::min(documents, first + together);
      screen(p_, allowed_, asked_, first, last, workers_[worker], parallel_.stop);
    });
    return screened == Status::ok ? refine(query, count) : screened;
  }

 private:
  Status refine(int64_t query, int64_t count) {
    starts_[0] = 0;
    for (int64_t q = 0; q < count; ++q) {
      const bool all_of_them = fell_back(q);
      starts_[q + 1] = starts_[q];
      if (!all_of_them) starts_[q + 1] += survivors_of(workers_, q, p_.k, lowers_, survivors_.get() + starts_[q]);
      if (!all_of_them) continue;
      const Status all = search_all(p_, allowed_, query + q, finishers_, scores_, parallel_);
      if (all != Status::ok) return all;
    }
    // Tasks of a few documents each: one query alone has work for all workers.
    int64_t tasks = 0;
    for (int64_t q = 0; q < count; ++q) tasks += ceil_div(starts_[q + 1] - starts_[q], kTogether);
    if (!tasks_.reserve(2 * tasks)) return Status::out_of_memory;
    for (int64_t q = 0, at = 0; q < count; ++q)
      for (int64_t i = starts_[q]; i < starts_[q + 1]; i += kTogether) tasks_[at++] = q, tasks_[at++] = i;
    Status status = for_each_task(parallel_, tasks, [&](int worker, int64_t task) {
      const int64_t q = tasks_[2 * task], at = tasks_[2 * task + 1];
      const int64_t n = std::min(kTogether, starts_[q + 1] - at), *some = survivors_.get() + at;
      finishers_[worker].exact.score(query + q, n, [&](int64_t i) { return some[i]; }, exact_.get() + at, nullptr, 0);
    });
    if (status != Status::ok) return status;
    return for_each_task(parallel_, count, [&](int worker, int64_t q) {
      if (fell_back(q)) return;
      const int64_t* some = survivors_.get() + starts_[q];
      finish(p_, finishers_[worker], query + q, exact_.get() + starts_[q], starts_[q + 1] - starts_[q],
             [&](int64_t i) { return some[i]; });
    });
  }
  bool fell_back(int64_t q) {
    bool any = false;
    for (Worker& w : workers_) any |= w.lists.fell_back(q);
    return any;
  }

  const MaxSimProblem& p_;
  const AllowedRows& allowed_;
  PerWorker<Finisher>& finishers_;
  double* scores_;
  const Parallel& parallel_;
  PerWorker<Worker> workers_;
  Asked asked_;
  Buffer<double> exact_;
  Buffer<float> lowers_;
  Buffer<int64_t> starts_, survivors_, tasks_;
};

}  // namespace

Status maxsim_topk(const MaxSimProblem& p, const Parallel& parallel) {
  const AllowedRows allowed = p.allowed == nullptr ? AllowedRows() : AllowedRows(*p.allowed);
  PerWorker<Finisher> finishers(parallel.workers);
  Buffer<double> scores;
  if (!finishers.each([&](Finisher& f) { return f.reserve(p, parallel.stop); }) || !scores.reserve(p.documents.count))
    return Status::out_of_memory;
  Status status = Status::ok;
  if (!has_sweep(p) || p.documents.count > INT32_MAX) {
    for (int64_t q = 0; q < p.queries.count && status == Status::ok; ++q)
      status = search_all(p, allowed, q, finishers, scores.get(), parallel);
    return status;
  }
  // Some queries at a time: their tokens and lists take a few tens of MiB.
  constexpr int64_t kMostTokensAtOnce = 4096, kMostBytes = 32 << 20;
  const int64_t list_bytes = (CandidateLists::bytes_per_row(p.k) + 16 * CandidateLists::capacity_for(p.k)) *
                             static_cast<int64_t>(parallel.workers);
  const int64_t most = std::max<int64_t>(1, kMostBytes / list_bytes);
  Screened screened(p, allowed, finishers, scores.get(), parallel);
  for (int64_t q = 0; q < p.queries.count && status == Status::ok;) {
    int64_t last = q + 1;
    while (last < p.queries.count && last - q < most &&
           p.queries.offsets[last + 1] - p.queries.offsets[q] <= kMostTokensAtOnce)
      ++last;
    status = screened.run(q, last - q);
    q = last;
  }
  return status;
}

}  // namespace vecbank::cpu
