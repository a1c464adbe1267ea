// product_quantize() codes all parts of a block of rows, which are read in place, before the next block.
#include "search/worker.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kBlockRows = 24 * kAnyTileRows;

struct Worker {
  SearchWorker search;
  Buffer<int64_t> codes;
};

Status code_part(const ProductProblem& p, int64_t part, int64_t first, int64_t rows, Worker& worker, Stop stop) {
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
  s.indices = worker.codes.get();
  const Status status = search_alone(s, worker.search, stop);
  if (status != Status::ok) return status;
  const int64_t parts = static_cast<int64_t>(p.codebooks.size());
  for (int64_t r = 0; r < rows; ++r) p.codes[(first + r) * parts + part] = worker.codes[r];
  return Status::ok;
}

}  // namespace

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
