// project through a library's product: first the norms of all rows and columns, then the product, whole or block by
// block (plan_library), and a pass that finishes it: it scales or combines, takes the last step and converts to the
// output's dtype. At the end, fallback rows and columns, whose products could overflow or vanish, are rescored in
// float64, as in project.cu. That is two launches, and two for every block, one of them the library's.
#include <type_traits>

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

// The norms of rows and of columns, found by one launch: the first `column_blocks` blocks have the columns.
constexpr int64_t kMostColumnBlocks = 1024;
template <class T>
struct RowFactors {
  Rows rows, columns;
  Metric metric;
  T *row_factor, *column_factor;  // cosine: 1 / norm; distances: norm squared
  unsigned char *row_fallback, *column_fallback;
  unsigned char* any_column_fallback;  // [column_blocks]: whether a column of that block falls back
  unsigned column_blocks;
};

__device__ __forceinline__ float number_of(BFloat16 x) { return widened_f32(x); }
__device__ __forceinline__ float number_of(Float16 x) { return half_value(x.bits); }
__device__ __forceinline__ float number_of(float x) { return x; }
__device__ __forceinline__ double number_of(double x) { return x; }

// The sum of a few squares. `kQuick`: of 16-bit numbers in float32, where their squares are exact and three levels of
// sums lose at most 3 * 2^-24 of them, as long as nothing leaves its range. A conversion to float64 takes as long as
// eight additions in float32.
template <bool kQuick, class S, int kCount>
__device__ __forceinline__ double sum_of_squares(const Neighbours<S, kCount>& x) {
  if constexpr (kQuick && sizeof(S) == 2) {
    float sums[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) sums[e] = number_of(x.of[e]) * number_of(x.of[e]);
#pragma unroll
    for (int gap = kCount / 2; gap > 0; gap /= 2)
#pragma unroll
      for (int e = 0; e < gap; ++e) sums[e] += sums[e + gap];
    return static_cast<double>(sums[0]);
  } else {
    double sum = 0.0;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const double v = number_of(x.of[e]);
      sum = add_rn(sum, mul_rn(v, v));
    }
    return sum;
  }
}

// A thread's part of a row that sixteen threads share. Loads of 16 bytes, four of them on their way at once; numbers
// one by one where the row begins off such a boundary.
template <bool kQuick, class S>
__device__ __forceinline__ double part_of_squares(const S* row, int64_t width) {
  constexpr int wide = 16 / sizeof(S), at_once = 4;
  const int64_t chunks = reinterpret_cast<uintptr_t>(row) % 16 == 0 ? width / wide : 0;
  const int lane = threadIdx.x % 16;
  double sum = 0.0;
  for (int64_t k = lane; k < chunks; k += 16 * at_once) {
    WideWord words[at_once] = {};
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (k + 16 * i < chunks) words[i] = reinterpret_cast<const WideWord*>(row)[k + 16 * i];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      Neighbours<S, wide> some;
      std::memcpy(&some, &words[i], sizeof some);
      sum = add_rn(sum, sum_of_squares<kQuick>(some));
    }
  }
#pragma unroll 8
  for (int64_t k = chunks * wide + lane; k < width; k += 16)
    sum = add_rn(sum, sum_of_squares<kQuick>(Neighbours<S, 1>{row[k]}));
  return sum;
}

// The whole warp calls it. Outside of `least` to `most`, quick sums may have lost small squares, or overflowed.
__device__ __forceinline__ double squares_of_row(const Rows& rows, int64_t i, bool valid, double least, double most) {
  const auto squares = [&](auto quick, bool wanted) {
    double sum = 0.0;
    if (wanted)
      with_dtype(rows.dtype, [&](auto type) {
        sum = part_of_squares<decltype(quick)::value>(reinterpret_cast<decltype(type)>(row_of(rows, i)), rows.width);
      });
    return sum_of_16(sum);
  };
  const double quick = squares(std::true_type{}, valid);
  const bool again = valid && size_of(rows.dtype) == 2 && !(quick >= least && quick <= most);
  if (!__any_sync(kAllLanes, again)) return quick;
  const double slow = squares(std::false_type{}, again);
  return again ? slow : quick;
}

// The factors of a block's rows, sixteen at a time; whether one of this thread's rows falls back.
template <class T>
__device__ __forceinline__ bool find_factors_of(const Rows& rows, Metric metric, T* factor, unsigned char* fallback,
                                                BlockOf block) {
  using Limit = Extent<T>;
  constexpr int64_t step = kPanelThreads / 16;
  const MetricRecord m = record(metric);
  bool any = false;
  for (int64_t base = block.number * step; base < rows.count; base += block.count * step) {
    const int64_t i = base + threadIdx.x / 16;
    const bool valid = i < rows.count;
    const double squares = squares_of_row(rows, i, valid, Limit::least * Limit::least, Limit::most * Limit::most);
    if (!valid || threadIdx.x % 16 != 0) continue;
    const double norm = sqrt(squares);
    const bool falls_back = !(norm <= Limit::most) || (norm > 0.0 && norm < Limit::least);
    any = any || falls_back;
    fallback[i] = falls_back;
    factor[i] = falls_back               ? T(0)
                : m.unit_rows            ? static_cast<T>(1.0 / floored(norm))
                : m.term == Term::square ? static_cast<T>(squares)
                                         : T(1);
  }
  return any;
}

template <class T>
__global__ void __launch_bounds__(kPanelThreads, 4) row_factor_kernel(const __grid_constant__ RowFactors<T> a) {
  const bool of_columns = blockIdx.x < a.column_blocks;
  const BlockOf block = of_columns ? BlockOf{blockIdx.x, a.column_blocks}
                                   : BlockOf{blockIdx.x - a.column_blocks, gridDim.x - a.column_blocks};
  const bool any =
      find_factors_of(of_columns ? a.columns : a.rows, a.metric, of_columns ? a.column_factor : a.row_factor,
                      of_columns ? a.column_fallback : a.row_fallback, block);
  if (!of_columns) return;
  const bool one = __syncthreads_or(any) != 0;
  if (threadIdx.x == 0) a.any_column_fallback[block.number] = one;
}

template <class T>
struct ProductBlock {
  Rows queries, bank;  // of this block of the answer
  Metric metric;
  Finish finish;
  const T *row_factor, *column_factor;
  const unsigned char *row_fallback, *column_fallback;
  const unsigned char* any_column_fallback;
  unsigned column_blocks;  // as RowFactors
  const void* product;     // may be the memory of `out`
  DType product_dtype;     // T's, or bf16
  int64_t product_stride;
  void* out;
  DType out_dtype;
  int64_t out_stride;
  int across;       // finish_grid
  unsigned beside;  // likewise, x
};

// Stores sixteen bytes by one instruction, or eight. Left to itself, the compiler stores number by number; a double
// moves the bits alone, but two doubles are taken apart again.
struct [[gnu::may_alias]] EightBytes {
  double bits;
};
__device__ __forceinline__ void store_wide(const WideWord& from, void* to) {
#if defined(__CUDA_ARCH__)
  const uint32_t* w = from.words;
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
#else
  std::memcpy(to, &from, sizeof from);
#endif
}
template <class S, int kWide>
__device__ __forceinline__ void store_several(const Neighbours<S, kWide>& from, S* to) {
  constexpr int bytes = sizeof(S) * kWide;
  if constexpr (bytes % sizeof(WideWord) == 0) {
    WideWord words[bytes / sizeof(WideWord)];
    std::memcpy(words, &from, bytes);
#pragma unroll
    for (size_t i = 0; i < std::size(words); ++i)
      store_wide(words[i], reinterpret_cast<char*>(to) + i * sizeof(WideWord));
  } else if constexpr (bytes == sizeof(EightBytes)) {
    EightBytes all;
    std::memcpy(&all, &from, bytes);
    *reinterpret_cast<EightBytes*>(to) = all;
  } else {
    *reinterpret_cast<Neighbours<S, kWide>*>(to) = from;
  }
}

// The compiler keeps loads of 32-bit words together, and of wider numbers; those of 16-bit numbers it may take apart.
template <class S, int kWide>
__device__ __forceinline__ Neighbours<S, kWide> load_several(const S* from) {
  if constexpr (sizeof(S) * kWide == sizeof(WideWord)) {
    const WideWord bits = *reinterpret_cast<const WideWord*>(from);
    Neighbours<S, kWide> to;
    std::memcpy(&to, &bits, sizeof to);
    return to;
  } else {
    return *reinterpret_cast<const Neighbours<S, kWide>*>(from);
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
constexpr bool kRoundsTwo = true;  // one instruction rounds two numbers to 16 bits, where a dozen would round each
#else
constexpr bool kRoundsTwo = false;
#endif

// In the output's dtype.
template <class Out, class T, int kWide>
__device__ __forceinline__ Neighbours<Out, kWide> narrowed(const Neighbours<T, kWide>& from) {
  Neighbours<Out, kWide> to;
  if constexpr (kRoundsTwo && std::is_same_v<T, float> && sizeof(Out) == 2 && kWide % 2 == 0) {
#pragma unroll
    for (int w = 0; w < kWide; w += 2) {
      uint32_t both;
      if constexpr (std::is_same_v<Out, BFloat16>)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(from.of[w + 1]), "f"(from.of[w]));
      else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(from.of[w + 1]), "f"(from.of[w]));
      to.of[w].bits = static_cast<uint16_t>(both), to.of[w + 1].bits = static_cast<uint16_t>(both >> 16);
    }
  } else {
#pragma unroll
    for (int w = 0; w < kWide; ++w) narrow(from.of[w], &to.of[w]);
  }
  return to;
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

// The product's last rows come first, because L2 still holds them.
template <class T, class P, class Out, int kWide>
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ ProductBlock<T> a) {
  const unsigned block = gridDim.x - 1 - blockIdx.x, below = block / a.beside, beside = block - below * a.beside;
  const int down = kThreads / a.across;
  const int64_t column = (int64_t{beside} * a.across + threadIdx.x % a.across) * kWide;
  const int64_t first = int64_t{below} * down * kFinishRows + threadIdx.x / a.across;
  if (column >= a.bank.count) return;
  const auto row_at = [&](int i) { return first + i * down; };
  Neighbours<P, kWide> p[kFinishRows];  // all loads are on their way before the first is waited for
  T other[kFinishRows];
#pragma unroll
  for (int i = 0; i < kFinishRows; ++i)
    if (row_at(i) < a.queries.count) {
      p[i] = load_several<P, kWide>(static_cast<const P*>(a.product) + row_at(i) * a.product_stride + column);
      other[i] = a.row_factor[row_at(i)];
    }
  const auto mine = *reinterpret_cast<const Neighbours<T, kWide>*>(a.column_factor + column);
  with_score<T>(a.finish, [&](auto&& score) {
#pragma unroll
    for (int i = 0; i < kFinishRows; ++i)
      if (row_at(i) < a.queries.count) {
        Neighbours<T, kWide> done;
#pragma unroll
        for (int w = 0; w < kWide; ++w) done.of[w] = score(T(number_of(p[i].of[w])), other[i], mine.of[w]);
        store_several(narrowed<Out>(done), static_cast<Out*>(a.out) + row_at(i) * a.out_stride + column);
      }
  });
}

template <class T, class P, class Out, int kWide>
Error finish_by(ProductBlock<T> b, const Device& device) {
  const FinishGrid grid = finish_grid(b.queries.count, b.bank.count, kWide);
  b.across = grid.across;
  b.beside = static_cast<unsigned>(grid.x);
  return launch(finish_kernel<T, P, Out, kWide>, dim3(static_cast<unsigned>(grid.x * grid.y)), kThreads, 0, device, b);
}

// Several columns a thread where every row begins at a multiple of so many numbers.
template <class T, class P, class Out>
Error finish_as(const ProductBlock<T>& b, const Device& device) {
  constexpr int wide = sizeof(P) == 2 ? 8 : 4;
  const auto whole = [&](int count) {
    return b.bank.count % count == 0 && b.out_stride % count == 0 && b.product_stride % count == 0 &&
           reinterpret_cast<uintptr_t>(b.product) % (count * sizeof(P)) == 0 &&
           reinterpret_cast<uintptr_t>(b.out) % (count * sizeof(Out)) == 0;
  };
  return whole(wide) ? finish_by<T, P, Out, wide>(b, device)
         : whole(4)  ? finish_by<T, P, Out, 4>(b, device)
                     : finish_by<T, P, Out, 1>(b, device);
}
template <class T>
Error finish_block(const ProductBlock<T>& b, const Device& device) {
  if constexpr (sizeof(T) == 4)
    if (b.product_dtype == DType::bf16) return finish_as<T, BFloat16, BFloat16>(b, device);
  return with_dtype(b.out_dtype, [&](auto type) { return finish_as<T, T, Element<decltype(type)>>(b, device); });
}

// The fallback rows and columns of rows and columns that share their factors. A block's threads look at kThreads of its
// rows at once: of 65,536 rows it has 62 on an H200, and as many reads one after the other would take 10 to 20 us.
template <class T>
__global__ void __launch_bounds__(kThreads) rescore_block_kernel(const __grid_constant__ ProductBlock<T> a) {
  bool any = false;
  for (unsigned i = threadIdx.x; i < a.column_blocks; i += kThreads) any = any || a.any_column_fallback[i] != 0;
  const bool columns = __syncthreads_or(any) != 0;
  const int count = static_cast<int>(a.queries.count), step = static_cast<int>(gridDim.x);  // at most kMostFactors
  for (int first = static_cast<int>(blockIdx.x); first < count; first += kThreads * step) {
    const int mine = first + static_cast<int>(threadIdx.x) * step;
    if (__syncthreads_or(mine < count && a.row_fallback[mine] != 0) == 0 && !columns) continue;
    for (int row = first; row < count && row < first + kThreads * step; row += step) {
      const bool fallback = a.row_fallback[row] != 0;
      if (!fallback && !columns) continue;
      rescore_row(
          a.queries, row, a.bank, 0, a.bank.count, a.metric,
          [&](int64_t column) { return fallback || a.column_fallback[column] != 0; },
          [&](int64_t column, double v) { store(v, a.out, a.out_dtype, row * a.out_stride + column); });
    }
  }
}

template <class T>
struct LibraryWork {
  T *product, *row_factor, *column_factor;
  unsigned char *row_fallback, *column_fallback, *any_column_fallback;
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
  w.any_column_fallback = arena.take<unsigned char>(kMostColumnBlocks);
  w.bytes = arena.used();
  return w;
}

template <class T>
Error find_factors(const ProductBlock<T>& part, const LibraryWork<T>& w, const Device& device) {
  const RowFactors<T> args{part.queries,   part.bank,         part.metric,           w.row_factor,      w.column_factor,
                           w.row_fallback, w.column_fallback, w.any_column_fallback, part.column_blocks};
  return launch(row_factor_kernel<T>,
                dim3(args.column_blocks + grid_for(ceil_div(args.rows.count, kPanelThreads / 16)).x), kPanelThreads, 0,
                device, args);
}

// A part of the answer whose rows and columns have their factors, block by block.
template <class T>
Error multiply_in_blocks(const ProductBlock<T>& part, const LibraryPlan& plan, T* product, const Multiply& multiply,
                         const Device& device) {
  const int64_t out_size = static_cast<int64_t>(size_of(part.out_dtype));
  for (int64_t column = 0; column < part.bank.count; column += plan.columns)
    for (int64_t row = 0; row < part.queries.count; row += plan.rows) {
      ProductBlock<T> b = part;
      b.queries = part_of(part.queries, row, plan.rows, 0, part.queries.width);
      b.bank = part_of(part.bank, column, plan.columns, 0, part.bank.width);
      b.row_factor += row;
      b.column_factor += column;
      b.out = static_cast<char*>(part.out) + (row * part.out_stride + column) * out_size;
      void* to = plan.in_place ? b.out : product;
      b.product = to;
      b.product_stride = plan.in_place ? b.out_stride : b.bank.count;
      VB_TRY(multiply.run(multiply.context, b.queries, b.bank, to, b.product_dtype, b.product_stride));
      VB_TRY(finish_block(b, device));
    }
  return nullptr;
}

template <class T>
Error by_library(const ProjectProblem& p, const Multiply& multiply, const Device& device) {
  const LibraryPlan plan = plan_library(p, device.l2_bytes);
  const LibraryWork<T> w = cut_library<T>(p, plan, device.workspace);
  if (w.bytes > device.workspace_bytes) return kTooSmall;
  const auto multiply_whole = [&] {
    return multiply.run(multiply.context, p.queries, p.bank, p.out, p.out_dtype, p.bank.count);
  };
  if (plain_product(p)) return multiply_whole();
  const int64_t out_size = static_cast<int64_t>(size_of(p.out_dtype));
  ProductBlock<T> part{};
  part.metric = p.metric;
  part.finish = finish_of(p.metric);
  part.row_factor = w.row_factor, part.column_factor = w.column_factor;
  part.row_fallback = w.row_fallback, part.column_fallback = w.column_fallback;
  part.any_column_fallback = w.any_column_fallback;
  part.product_dtype = product_dtype(p);
  part.out_dtype = p.out_dtype;
  part.product_stride = part.out_stride = p.bank.count;
  for (int64_t row = 0; row < p.queries.count; row += kMostFactors)
    for (int64_t column = 0; column < p.bank.count; column += kMostFactors) {
      part.queries = part_of(p.queries, row, kMostFactors, 0, p.queries.width);
      part.bank = part_of(p.bank, column, kMostFactors, 0, p.bank.width);
      part.out = static_cast<char*>(p.out) + (row * part.out_stride + column) * out_size;
      part.product = part.out;
      part.column_blocks =
          static_cast<unsigned>(std::min(ceil_div(part.bank.count, kPanelThreads / 16), kMostColumnBlocks));
      VB_TRY(find_factors(part, w, device));
      if (plan.whole) {
        if (row == 0 && column == 0) VB_TRY(multiply_whole());  // after the norms, which would take its place in L2
        VB_TRY(finish_block(part, device));
      } else {
        VB_TRY(multiply_in_blocks(part, plan, w.product, multiply, device));
      }
      const int64_t most = int64_t{8} * device.processors;
      VB_TRY(launch(rescore_block_kernel<T>, grid_for(std::min(part.queries.count, most)), kThreads, 0, device, part));
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
