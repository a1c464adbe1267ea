// residual_quantize() runs all stages for a block of rows before the next block, so that the residual stays in L2.
#include "search/worker.h"

namespace vecbank::cpu {
namespace {

// Rows of a block: whole register tiles on every instruction set, and enough blocks for any number of threads. The size
// depends on the problem alone, since the order of the sums over rows depends on the size.
int64_t rows_of_block(int64_t count, int64_t width) {
  const int64_t cached = std::max(kQueryBytes / ((width + 1) * 4) / kAnyTileRows, int64_t{1}) * kAnyTileRows;
  return std::min(cached, round_up_to(std::max<int64_t>(1, ceil_div(count, 16)), kAnyTileRows));
}

struct Sum {
  double squares = 0.0;
  int64_t valid = 0;
};

template <class T>
class Worker {
 public:
  bool reserve(const ResidualProblem& p, int64_t rows) {
    const int64_t d = p.queries.width;
    return reader_.reserve(p.queries, 1) && residual_.reserve(rows * d) && row_.reserve(rows * d) &&
           codes_.reserve(rows) && wide_.reserve(round_up_to(d, 8));
  }

  Status run(const ResidualProblem& p, int64_t first, int64_t rows, Sum* sums, Stop stop) {
    const int64_t d = p.queries.width, stages = static_cast<int64_t>(p.stages.size());
    T* total = static_cast<T*>(p.quantized) + first * d;
    for (int64_t r = 0; r < rows; ++r) {
      kernels().widen(reader_.row(first + r), p.queries.dtype, d, wide_.get());
      for (int64_t k = 0; k < d; ++k) residual_[r * d + k] = static_cast<T>(wide_[k]);
    }
    for (int64_t s = 0; s < stages; ++s) {
      const Status status = nearest(p, p.stages[s], rows, stop);
      if (status != Status::ok) return status;
      for (int64_t r = 0; r < rows; ++r) p.codes[(first + r) * stages + s] = codes_[r];
      if (s == 0)
        std::copy_n(row_.get(), rows * d, total);
      else
        for (int64_t i = 0; i < rows * d; ++i) total[i] += row_[i];
      for (int64_t i = 0; i < rows * d; ++i) residual_[i] -= row_[i];
      for (int64_t r = 0; r < rows; ++r) {
        if (codes_[r] < 0) continue;
        sums[s].squares += squares(residual_.get() + r * d, d);
        ++sums[s].valid;
      }
    }
    return Status::ok;
  }

 private:
  // Codes and rows of one stage for the rows of the block.
  Status nearest(const ResidualProblem& whole, const PackedCodebook& stage, int64_t rows, Stop stop) {
    SearchProblem p;
    p.queries = {residual_.get(), stage.bank.dtype, rows, whole.queries.width, whole.queries.width, 1};
    p.bank = stage.bank;
    p.pack = stage.pack;
    p.metric = whole.metric;
    p.indices = codes_.get();
    p.gathered = row_.get();
    if (p.bank.count == 0) {
      for (int64_t r = 0; r < rows; ++r) write_result(p, r, nullptr, 0);
      return Status::ok;
    }
    return search_alone(p, search_, stop);
  }

  static double squares(const T* row, int64_t d) {
    double lane[4] = {};
    for (int64_t k = 0; k < d; ++k) lane[k % 4] += static_cast<double>(row[k]) * static_cast<double>(row[k]);
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
  }

  SearchWorker search_;
  RowReader reader_;
  Buffer<T> residual_, row_;
  Buffer<int64_t> codes_;
  Buffer<double> wide_;
};

template <class T>
Status run_all(const ResidualProblem& p, const Parallel& parallel) {
  const int64_t n = p.queries.count, stages = static_cast<int64_t>(p.stages.size());
  const int64_t rows = rows_of_block(n, p.queries.width), blocks = ceil_div(n, rows);
  Buffer<Sum> sums;
  PerWorker<Worker<T>> workers(parallel.workers);
  if (!sums.reserve(blocks * stages) || !workers.each([&](Worker<T>& worker) { return worker.reserve(p, rows); }))
    return Status::out_of_memory;
  std::fill_n(sums.get(), blocks * stages, Sum{});
  std::atomic<Status> failed{Status::ok};
  const Status all = for_each_task(parallel, blocks, [&](int worker, int64_t block) {
    const int64_t first = block * rows;
    const Status status =
        workers[worker].run(p, first, std::min(rows, n - first), sums.get() + block * stages, parallel.stop);
    if (status != Status::ok) failed = status;
  });
  for (int64_t s = 0; s < stages; ++s) {
    p.squares[s] = 0.0;
    p.valid[s] = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      p.squares[s] += sums[b * stages + s].squares;
      p.valid[s] += sums[b * stages + s].valid;
    }
  }
  return all != Status::ok ? all : failed.load();
}

}  // namespace

Status residual_quantize(const ResidualProblem& p, const Parallel& parallel) {
  const bool wide = !p.stages.empty() && p.stages[0].bank.dtype == DType::f64;
  return wide ? run_all<double>(p, parallel) : run_all<float>(p, parallel);
}

}  // namespace vecbank::cpu
