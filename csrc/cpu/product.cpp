// product_quantize() codes all parts of a block of rows, which are read in place, before the next block.
#include "search/refined.h"
#include "search/worker.h"
#include "ways.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kBlockRows = 24 * kAnyTileRows;

struct Worker {
  SearchWorker search;
  RefinedWorker refined;
  Buffer<int64_t> codes;
};

// The nearest rows of a part's codebook to that part of some rows.
SearchProblem search_of(const ProductProblem& p, int64_t part, int64_t first, int64_t rows) {
  const PackedCodebook& codebook = p.codebooks[static_cast<size_t>(part)];
  SearchProblem s;
  s.queries = p.queries;
  s.queries.data = static_cast<const char*>(p.queries.row(first)) +
                   part * codebook.bank.width * p.queries.col_stride * static_cast<int64_t>(size_of(p.queries.dtype));
  s.queries.count = rows;
  s.queries.width = codebook.bank.width;
  s.bank = codebook.bank;
  s.pack = codebook.pack;
  s.metric = Metric::sqeuclidean;
  return s;
}

Status code_part(const ProductProblem& p, int64_t part, int64_t first, int64_t rows, Worker& worker, Stop stop) {
  SearchProblem s = search_of(p, part, first, rows);
  s.indices = worker.codes.get();
  Parallel alone;
  alone.stop = stop;
  const Status status =
      s.pack == nullptr ? search_refined(s, alone, &worker.refined) : search_alone(s, worker.search, stop);
  if (status != Status::ok) return status;
  const int64_t parts = static_cast<int64_t>(p.codebooks.size());
  for (int64_t r = 0; r < rows; ++r) p.codes[(first + r) * parts + part] = worker.codes[r];
  return Status::ok;
}

}  // namespace

bool codes_without_packs(const ProductProblem& p) {
  return p.codebooks.empty() || way_of(search_of(p, 0, 0, p.queries.count)) == SearchWay::refined;
}

Status product_quantize(const ProductProblem& p, const Parallel& parallel) {
  PerWorker<Worker> workers(parallel.workers);
  if (!workers.each([](Worker& worker) { return worker.codes.reserve(kBlockRows); })) return Status::out_of_memory;
  std::atomic<Status> failed{Status::ok};
  const Status all = for_each_task(parallel, ceil_div(p.queries.count, kBlockRows), [&](int worker, int64_t block) {
    const int64_t first = block * kBlockRows, rows = std::min(kBlockRows, p.queries.count - first);
    for (int64_t part = 0; part < static_cast<int64_t>(p.codebooks.size()); ++part) {
      const Status status = code_part(p, part, first, rows, workers[worker], parallel.stop);
      if (status != Status::ok) failed = status;
    }
  });
  return all != Status::ok ? all : failed.load();
}

}  // namespace vecbank::cpu
