// project through a library's product: first the norms of all rows and columns, then the product block by block. One
// pass finishes each block while L2 still holds it: it scales or combines, takes the last step and converts to the
// output's dtype. At the end, fallback rows and columns, whose products could overflow or vanish, are rescored in
// float64, as in project.cu. That is three launches, and two for every block.
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
  int32_t *none, *any;  // flags: the rows' launch clears one, the columns' launch sets it if any falls back; or null
};

// Sixteen threads share a row. The loads of eight steps are on their way at once.
__device__ __forceinline__ double squares_of_row(const Rows& rows, int64_t i, bool valid) {
  double sum = 0.0;
  if (valid)
    with_dtype(rows.dtype, [&](auto type) {
      const auto* row = reinterpret_cast<decltype(type)>(row_of(rows, i));
#pragma unroll 8
      for (int64_t k = threadIdx.x % 16; k < rows.width; k += 16) {
        const double v = widened(row[k]);
        sum = add_rn(sum, mul_rn(v, v));
      }
    });
  return sum_of_16(sum);
}

template <class T>
__global__ void __launch_bounds__(kPanelThreads) row_factor_kernel(const __grid_constant__ RowFactors<T> a) {
  constexpr int64_t step = kPanelThreads / 16;
  if (a.none != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *a.none = 0;
  for (int64_t base = blockIdx.x * step; base < a.rows.count; base += gridDim.x * step) {
    const int64_t i = base + threadIdx.x / 16;
    const bool valid = i < a.rows.count;
    const double squares = squares_of_row(a.rows, i, valid), norm = sqrt(squares);
    if (!valid || threadIdx.x % 16 != 0) continue;
    const bool fallback = !(norm <= Extent<T>::most) || (norm > 0.0 && norm < Extent<T>::least);
    a.fallback[i] = fallback;
    if (fallback && a.any != nullptr) *a.any = 1;
    const MetricRecord m = record(a.metric);
    a.factor[i] = fallback                 ? T(0)
                  : m.unit_rows            ? static_cast<T>(1.0 / floored(norm))
                  : m.term == Term::square ? static_cast<T>(squares)
                                           : T(1);
  }
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
  int across;  // finish_grid
};

template <class S, int kWide>
struct alignas(sizeof(S) * kWide) Several {
  S at[kWide];
};

template <int kCount>
struct [[gnu::may_alias]] alignas(kCount * sizeof(double)) Words {
  double at[kCount];
};

// Stores eight bytes at once. Left to itself, the compiler stores number by number; as doubles it moves the bits alone.
template <class S, int kWide>
__device__ __forceinline__ void store_several(const Several<S, kWide>& from, S* to) {
  constexpr int bytes = sizeof(S) * kWide;
  if constexpr (bytes % sizeof(double) == 0) {
    Words<bytes / sizeof(double)> words;
    std::memcpy(&words, &from, bytes);
    *reinterpret_cast<Words<bytes / sizeof(double)>*>(to) = words;
  } else {
    *reinterpret_cast<Several<S, kWide>*>(to) = from;
  }
}

// Calls f with the function that makes a score of a product and the factors of its row and column.
template <class T, class F>
__device__ __forceinline__ void with_score(Finish finish, F&& f) {
  const auto distance = [](T p, T row, T column) { return p * T(-2) + (row + column); };
  if (finish == Finish::linear)
    f([](T p, T row, T column) { return p * row * column; });
  else if (finish == Finish::rooted)
    f([=](T p, T row, T column) { return last_step<T>(distance(p, row, column), Finish::rooted); });
  else
    f([=](T p, T row, T column) { return last_step<T>(distance(p, row, column), Finish::squared); });
}

template <class T, class Out, int kWide>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ ProductBlock<T> a) {
  const int down = kThreads / a.across;
  const int64_t column = (int64_t{blockIdx.x} * a.across + threadIdx.x % a.across) * kWide;
  const int64_t first = int64_t{blockIdx.y} * down * kFinishRows + threadIdx.x / a.across;
  if (column >= a.bank.count) return;
  const auto mine = *reinterpret_cast<const Several<T, kWide>*>(a.column_factor + column);
  const auto row_at = [&](int i) { return first + i * down; };
  Several<T, kWide> p[kFinishRows];  // all loads are on their way before the first is waited for
  T other[kFinishRows];
#pragma unroll
  for (int i = 0; i < kFinishRows; ++i)
    if (row_at(i) < a.queries.count) {
      p[i] = *reinterpret_cast<const Several<T, kWide>*>(a.product + row_at(i) * a.product_stride + column);
      other[i] = a.row_factor[row_at(i)];
    }
  with_score<T>(a.finish, [&](auto&& score) {
#pragma unroll
    for (int i = 0; i < kFinishRows; ++i)
      if (row_at(i) < a.queries.count) {
        Several<Out, kWide> done;
#pragma unroll
        for (int w = 0; w < kWide; ++w) narrow(score(p[i].at[w], other[i], mine.at[w]), &done.at[w]);
        store_several(done, static_cast<Out*>(a.out) + row_at(i) * a.out_stride + column);
      }
  });
}

template <class T, class Out, int kWide>
Error finish_by(ProductBlock<T> b, const Device& device) {
  const FinishGrid grid = finish_grid(b.queries.count, b.bank.count, kWide);
  b.across = grid.across;
  return launch(finish_kernel<T, Out, kWide>, dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)),
                kThreads, 0, device, b);
}

// Four columns a thread where every row begins at a multiple of four numbers.
template <class T>
Error finish_block(const ProductBlock<T>& b, const Device& device) {
  return with_dtype(b.out_dtype, [&](auto type) {
    using Out = Element<decltype(type)>;
    const bool whole = b.bank.count % 4 == 0 && b.out_stride % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(b.product) % (4 * sizeof(T)) == 0 &&
                       reinterpret_cast<uintptr_t>(b.out) % (4 * sizeof(Out)) == 0;
    return whole ? finish_by<T, Out, 4>(b, device) : finish_by<T, Out, 1>(b, device);
  });
}

// The fallback rows and columns of rows and columns that share their factors.
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
  const int64_t rows = std::min(p.queries.count, kMostFactors), columns = std::min(p.bank.count, kMostFactors);
  Arena arena(base);
  if (!plan.in_place) w.product = arena.take<T>(plan.rows * plan.columns);
  w.row_factor = arena.take<T>(rows);
  w.column_factor = arena.take<T>(columns);
  w.row_fallback = arena.take<unsigned char>(rows);
  w.column_fallback = arena.take<unsigned char>(columns);
  w.any_column_fallback = arena.take<int32_t>(1);
  w.bytes = arena.used();
  return w;
}

template <class T>
Error find_factors(const RowFactors<T>& args, const Device& device) {
  return launch(row_factor_kernel<T>, grid_for(ceil_div(args.rows.count, kPanelThreads / 16)), kPanelThreads, 0, device,
                args);
}

// A part of the answer whose rows and columns have their factors: block by block, then the fallbacks.
template <class T>
Error multiply_part(const ProductBlock<T>& part, const LibraryPlan& plan, T* product, const Multiply& multiply,
                    const Device& device) {
  const int64_t out_size = static_cast<int64_t>(size_of(part.out_dtype));
  const DType dtype = sizeof(T) == 8 ? DType::f64 : DType::f32;
  for (int64_t column = 0; column < part.bank.count; column += plan.columns)
    for (int64_t row = 0; row < part.queries.count; row += plan.rows) {
      ProductBlock<T> b = part;
      b.queries = part_of(part.queries, row, plan.rows, 0, part.queries.width);
      b.bank = part_of(part.bank, column, plan.columns, 0, part.bank.width);
      b.row_factor += row;
      b.column_factor += column;
      b.out = static_cast<char*>(part.out) + (row * part.out_stride + column) * out_size;
      b.product = plan.in_place ? static_cast<const T*>(b.out) : product;
      b.product_stride = plan.in_place ? b.out_stride : b.bank.count;
      VB_TRY(multiply.run(multiply.context, b.queries, b.bank, const_cast<T*>(b.product), dtype, b.product_stride));
      VB_TRY(finish_block(b, device));
    }
  const int64_t most = int64_t{8} * device.processors;
  return launch(rescore_block_kernel<T>, grid_for(std::min(part.queries.count, most)), kThreads, 0, device, part);
}

template <class T>
Error by_library(const ProjectProblem& p, const Multiply& multiply, const Device& device) {
  const LibraryPlan plan = plan_library(p, device.l2_bytes);
  const LibraryWork<T> w = cut_library<T>(p, plan, device.workspace);
  if (w.bytes > device.workspace_bytes) return kTooSmall;
  if (plain_product(p)) return multiply.run(multiply.context, p.queries, p.bank, p.out, p.out_dtype, p.bank.count);
  const int64_t out_size = static_cast<int64_t>(size_of(p.out_dtype));
  ProductBlock<T> part{};
  part.metric = p.metric;
  part.finish = finish_of(p.metric);
  part.row_factor = w.row_factor, part.column_factor = w.column_factor;
  part.row_fallback = w.row_fallback, part.column_fallback = w.column_fallback;
  part.any_column_fallback = w.any_column_fallback;
  part.out_dtype = p.out_dtype;
  part.out_stride = p.bank.count;
  for (int64_t row = 0; row < p.queries.count; row += kMostFactors) {
    part.queries = part_of(p.queries, row, kMostFactors, 0, p.queries.width);
    VB_TRY(find_factors<T>({part.queries, p.metric, w.row_factor, w.row_fallback, w.any_column_fallback, nullptr},
                           device));
    for (int64_t column = 0; column < p.bank.count; column += kMostFactors) {
      part.bank = part_of(p.bank, column, kMostFactors, 0, p.bank.width);
      part.out = static_cast<char*>(p.out) + (row * part.out_stride + column) * out_size;
      VB_TRY(find_factors<T>({part.bank, p.metric, w.column_factor, w.column_fallback, nullptr, w.any_column_fallback},
                             device));
      VB_TRY(multiply_part(part, plan, w.product, multiply, device));
    }
  }
  return nullptr;
}

}  // namespace

int64_t project_library_workspace(const ProjectProblem& p, const Device& device) {
  if (p.queries.count == 0 || p.bank.count == 0) return 0;
  const LibraryPlan plan = plan_library(p, device.l2_bytes);
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
