// project through a library's product: first the norms, then the product block by block. One pass finishes each block
// while L2 still holds it: it scales or combines, takes the last step and converts to the output's dtype. Fallback rows
// and columns, whose products could overflow or vanish, are rescored in float64, as in project.cu.
#include "../arena.h"
#include "../panels.cuh"
#include "../project.cuh"
#include "rules.h"

namespace vecbank::cuda {
namespace {

// A row (or column) whose norm is outside of these limits is rescored; within them a product keeps its digits.
template <class T>
struct Extent {
  static constexpr double least = sizeof(T) == 4 ? 0x1p-40 : 0x1p-400, most = sizeof(T) == 4 ? 0x1p60 : 0x1p500;
};

template <class T>
struct RowFactors {
  Rows rows;
  Metric metric;
  T* factor;  // cosine: 1 / norm; distances: norm squared
  unsigned char* fallback;
};

// Sixteen threads share a row.
template <class T>
__global__ void __launch_bounds__(kPanelThreads) row_factor_kernel(const __grid_constant__ RowFactors<T> a) {
  constexpr int64_t step = kPanelThreads / 16;
  for (int64_t base = blockIdx.x * step; base < a.rows.count; base += gridDim.x * step) {
    const int64_t i = base + threadIdx.x / 16;
    const bool valid = i < a.rows.count;
    const double squares = squares_of(a.rows, i, valid, {}), norm = sqrt(squares);
    if (!valid || threadIdx.x % 16 != 0) continue;
    const bool fallback = !(norm <= Extent<T>::most) || (norm > 0.0 && norm < Extent<T>::least);
    a.fallback[i] = fallback;
    const MetricRecord m = record(a.metric);
    a.factor[i] = fallback                 ? T(0)
                  : m.unit_rows            ? static_cast<T>(1.0 / floored(norm))
                  : m.term == Term::square ? static_cast<T>(squares)
                                           : T(1);
  }
}

struct AnyFallback {
  const unsigned char* fallback;
  int64_t count;
  int32_t* any;
};
__global__ void __launch_bounds__(kThreads) any_fallback_kernel(const AnyFallback a) {  // one block
  int found = 0;
  for (int64_t i = threadIdx.x; i < a.count; i += kThreads) found |= a.fallback[i];
  const int any = __syncthreads_or(found);
  if (threadIdx.x == 0) *a.any = any;
}

template <class T>
struct ProductBlock {
  Rows queries, bank;  // of this block of the answer
  Metric metric;
  Finish finish;
  const T *row_factor, *column_factor;
  const unsigned char *row_fallback, *column_fallback;
  const int32_t* any_column_fallback;
  const T* product;  // may be the memory of `out`
  int64_t product_stride;
  void* out;
  DType out_dtype;
  int64_t out_stride;
};

// Each thread has a column, so that a warp loads and stores neighbours. blockIdx.y: kRowsPerFinish rows at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ ProductBlock<T> a) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= a.bank.count) return;
  const T mine = a.column_factor[column];
  const bool distance = record(a.metric).term == Term::square;
  const int64_t first = int64_t{blockIdx.y} * kRowsPerFinish;
#pragma unroll 4
  for (int64_t row = first; row < first + kRowsPerFinish && row < a.queries.count; ++row) {
    const T p = a.product[row * a.product_stride + column], other = a.row_factor[row];
    const T v = distance ? p * T(-2) + (other + mine) : p * other * mine;
    store(last_step<T>(v, a.finish), a.out, a.out_dtype, row * a.out_stride + column);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rescore_block_kernel(const __grid_constant__ ProductBlock<T> a) {
  const bool columns = *a.any_column_fallback != 0;
  for (int64_t row = blockIdx.x; row < a.queries.count; row += gridDim.x) {
    const bool fallback = a.row_fallback[row] != 0;
    if (!fallback && !columns) continue;
    rescore_row(
        a.queries, row, a.bank, 0, a.bank.count, a.metric,
        [&](int64_t column) { return fallback || a.column_fallback[column] != 0; },
        [&](int64_t column, double v) { store(v, a.out, a.out_dtype, row * a.out_stride + column); });
  }
}

template <class T>
struct LibraryWork {
  T *product, *row_factor, *column_factor;
  unsigned char *row_fallback, *column_fallback;
  int32_t* any_column_fallback;
  int64_t bytes;
};
template <class T>
LibraryWork<T> cut_library(const ProjectProblem& p, const LibraryPlan& plan, void* base) {
  LibraryWork<T> w{};
  if (plain_product(p)) return w;
  Arena arena(base);
  if (!plan.in_place) w.product = arena.take<T>(plan.rows * plan.columns);
  w.row_factor = arena.take<T>(plan.rows);
  w.column_factor = arena.take<T>(plan.columns);
  w.row_fallback = arena.take<unsigned char>(plan.rows);
  w.column_fallback = arena.take<unsigned char>(plan.columns);
  w.any_column_fallback = arena.take<int32_t>(1);
  w.bytes = arena.used();
  return w;
}

template <class T>
Error find_factors(const Rows& rows, Metric metric, T* factor, unsigned char* fallback, const Device& device) {
  const RowFactors<T> args{rows, metric, factor, fallback};
  return launch(row_factor_kernel<T>, grid_for(ceil_div(rows.count, kPanelThreads / 16)), kPanelThreads, 0, device,
                args);
}

// The outer loop walks columns and the inner loop rows, so that the factors of a column are computed once.
template <class T>
Error by_library(const ProjectProblem& p, const Multiply& multiply, const Device& device) {
  const LibraryPlan plan = plan_library(p);
  const LibraryWork<T> w = cut_library<T>(p, plan, device.workspace);
  if (w.bytes > device.workspace_bytes) return kTooSmall;
  const int64_t out_size = static_cast<int64_t>(size_of(p.out_dtype));
  for (int64_t column = 0; column < p.bank.count; column += plan.columns) {
    ProductBlock<T> b{};
    b.bank = part_of(p.bank, column, plan.columns, 0, p.bank.width);
    b.metric = p.metric;
    b.finish = finish_of(p.metric);
    b.row_factor = w.row_factor, b.column_factor = w.column_factor;
    b.row_fallback = w.row_fallback, b.column_fallback = w.column_fallback,
    b.any_column_fallback = w.any_column_fallback;
    b.out_dtype = p.out_dtype;
    b.out_stride = p.bank.count;
    const bool plain = plain_product(p);
    if (!plain) {
      VB_TRY(find_factors(b.bank, p.metric, w.column_factor, w.column_fallback, device));
      VB_TRY(launch(any_fallback_kernel, dim3(1), kThreads, 0, device,
                    AnyFallback{w.column_fallback, b.bank.count, w.any_column_fallback}));
    }
    for (int64_t row = 0; row < p.queries.count; row += plan.rows) {
      b.queries = part_of(p.queries, row, plan.rows, 0, p.queries.width);
      b.out = static_cast<char*>(p.out) + (row * b.out_stride + column) * out_size;
      void* product = plan.in_place ? b.out : w.product;
      b.product = static_cast<const T*>(product);
      b.product_stride = plan.in_place ? b.out_stride : b.bank.count;
      if (!plain) VB_TRY(find_factors(b.queries, p.metric, w.row_factor, w.row_fallback, device));
      VB_TRY(multiply.run(multiply.context, b.queries, b.bank, product, plain ? p.out_dtype : product_dtype(p),
                          b.product_stride));
      if (plain) continue;
      const dim3 grid(static_cast<unsigned>(ceil_div(b.bank.count, kThreads)),
                      static_cast<unsigned>(ceil_div(b.queries.count, kRowsPerFinish)));
      VB_TRY(launch(finish_kernel<T>, grid, kThreads, 0, device, b));
      const int64_t most = int64_t{8} * device.processors;
      VB_TRY(launch(rescore_block_kernel<T>, grid_for(std::min(b.queries.count, most)), kThreads, 0, device, b));
    }
  }
  return nullptr;
}

}  // namespace

int64_t project_library_workspace(const ProjectProblem& p) {
  if (p.queries.count == 0 || p.bank.count == 0) return 0;
  const LibraryPlan plan = plan_library(p);
  return product_dtype(p) == DType::f64 ? cut_library<double>(p, plan, nullptr).bytes
                                        : cut_library<float>(p, plan, nullptr).bytes;
}

Error project_by_library(const ProjectProblem& p, const Multiply& multiply, const Device& device) {
  if (p.queries.count == 0 || p.bank.count == 0) return nullptr;
  if (!library_can(p)) return "the library's product cannot carry this projection (library_can is false)";
  return product_dtype(p) == DType::f64 ? by_library<double>(p, multiply, device)
                                        : by_library<float>(p, multiply, device);
}

}  // namespace vecbank::cuda
