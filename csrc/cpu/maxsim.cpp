// The scores of sets of rows: of all documents in float32, or of those that are listed, exact.
#include "maxsim_exact.h"
#include "maxsim_sweep.h"

namespace vecbank::cpu {
namespace {

void put(const MaxSimProblem& p, int64_t at, double value) {
  if (p.values_dtype == DType::f64)
    static_cast<double*>(p.values)[at] = value;
  else
    static_cast<float*>(p.values)[at] = static_cast<float>(value);
}

// Every score exactly: float64 rows, and metrics that no product gives.
Status exact_scores(const MaxSimProblem& p, int64_t columns, const Parallel& parallel) {
  constexpr int64_t together = 64;
  struct Worker {
    ExactSets exact;
    double scores[together];
  };
  PerWorker<Worker> workers(parallel.workers);
  if (!workers.each([&](Worker& w) { return w.exact.reserve(p, parallel.stop); })) return Status::out_of_memory;
  const int64_t parts = ceil_div(columns, together);
  return for_each_task(parallel, p.queries.count * parts, [&](int worker, int64_t task) {
    Worker& w = workers[worker];
    const int64_t query = task / parts, first = task % parts * together, count = std::min(together, columns - first);
    int64_t* best = p.best == nullptr ? nullptr : p.best + p.queries.offsets[query] * columns + first;
    const auto document = [&](int64_t i) {
      return p.listed == nullptr ? first + i : p.listed[query * columns + first + i];
    };
    w.exact.score(query, count, document, w.scores, best, columns);
    for (int64_t i = 0; i < count; ++i) put(p, query * columns + first + i, w.scores[i]);
  });
}

struct Worker {
  DocumentSweep sweep;
  ExactSets exact;
};

// The scores of one document with all queries.
void give(const MaxSimProblem& p, const TokenPanels& panels, Worker& w, int64_t document, int64_t i) {
  const int64_t count = p.documents.count, size = p.documents.size(document);
  for (int64_t q = 0; q < p.queries.count; ++q) {
    const int64_t begin = panels.begin(q), end = panels.begin(q + 1);
    int64_t* best = p.best == nullptr ? nullptr : p.best + begin * count + document;
    double sum = size == 0 ? -HUGE_VAL : 0.0;
    if (size == 0) {
      for (int64_t t = 0; t < end - begin && best != nullptr; ++t) best[t * count] = -1;
    } else if (begin < end) {
      const float* scores = w.sweep.best(i);
      for (int64_t t = begin; t < end; ++t) sum += static_cast<double>(scores[t]);
      if (w.sweep.odd(i) || panels.odd(q) || !std::isfinite(sum)) {
        w.exact.score(q, 1, [&](int64_t) { return document; }, &sum, best, count);
      } else if (best != nullptr) {
        const float* places = w.sweep.places(i);
        for (int64_t t = begin; t < end; ++t)
          best[(t - begin) * count] = p.documents.offsets[document] + static_cast<int64_t>(places[t]);
      }
    }
    put(p, q * count + document, sum);
  }
}

}  // namespace

Status maxsim(const MaxSimProblem& p, const Parallel& parallel) {
  const int64_t count = p.documents.count;
  if (p.queries.count == 0 || count == 0) return Status::ok;
  if (!has_sweep(p)) return exact_scores(p, count, parallel);
  TokenPanels panels;
  const Status built = panels.build(p, 0, p.queries.count, parallel);
  if (built != Status::ok) return built;
  const bool places = p.best != nullptr;
  PerWorker<Worker> workers(parallel.workers);
  const auto prepare = [&](Worker& w) {
    return w.sweep.reserve(p, panels.panels(), places) && w.exact.reserve(p, parallel.stop);
  };
  if (!workers.each(prepare)) return Status::out_of_memory;
  const int64_t most = DocumentSweep::most_documents(panels.panels());
  const int64_t together = std::clamp<int64_t>(count / (8 * parallel.workers), 1, most);
  return for_each_task(parallel, ceil_div(count, together), [&](int worker, int64_t task) {
    Worker& w = workers[worker];
    const int64_t first = task * together, last = std::min(count, first + together);
    if (panels.panels() > 0) w.sweep.run(panels, first, last, places, false, parallel.stop);
    for (int64_t d = first; d < last && !parallel.stop.requested(); ++d) give(p, panels, w, d, d - first);
  });
}

Status maxsim_pairs(const MaxSimProblem& p, const Parallel& parallel) { return exact_scores(p, p.k, parallel); }

}  // namespace vecbank::cpu
