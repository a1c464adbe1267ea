// Device code shared by whatever writes panels: mapping rows into the frame (core/frame.h), sums over sixteen threads,
// the transposing store.
#pragma once

#include "../core/frame.h"
#include "kernels.h"
#include "tensor_cores/bounds.h"

namespace vecbank::cuda {

constexpr int kPanelThreads = 256;  // 16 rows x 16 threads

// Queries and a bank are packed by one launch, because neither needs the other: the bank has the first blocks.
template <class Queries, class Bank>
struct PackBoth {
  Queries queries;
  Bank bank;
  unsigned bank_blocks;
};
struct BlockOf {  // of those that share one kind of work
  unsigned number, count;
};
template <class Queries, class Bank>
Error pack_both(void (*kernel)(PackBoth<Queries, Bank>), const Queries* queries, int64_t query_blocks, const Bank* bank,
                int64_t bank_blocks, int threads, int64_t shared, const Device& device) {
  PackBoth<Queries, Bank> both{};
  if (queries != nullptr) both.queries = *queries;
  if (bank != nullptr) both.bank = *bank;
  both.bank_blocks = grid_for(bank_blocks).x;
  return launch(kernel, dim3(both.bank_blocks + grid_for(query_blocks).x), threads, shared, device, both);
}

__device__ __forceinline__ double mapped(double v, int64_t k, const Affine& map) {
  if (map.pre != 1.0) v = mul_rn(v, map.pre);
  if (map.centre != nullptr) v = add_rn(v, -map.centre[k]);
  return mul_rn(v, map.post);
}
template <class S>
__device__ __forceinline__ double mapped(const S* row, int64_t step, int64_t k, const Affine& map) {
  return mapped(widened(row[k * step]), k, map);
}

__device__ __forceinline__ double sum_of_16(double v) {
  for (int step = 8; step > 0; step /= 2) v = add_rn(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}
// Sum of squares of a mapped row, by the sixteen threads that share it.
__device__ __forceinline__ double squares_of(const Rows& rows, int64_t i, bool valid, const Affine& map) {
  double sum = 0.0;
  if (valid)
    with_dtype(rows.dtype, [&](auto type) {
      const auto* row = reinterpret_cast<decltype(type)>(row_of(rows, i));
      for (int64_t k = threadIdx.x % 16; k < rows.width; k += 16) {
        const double v = mapped(row, rows.col_stride, k, map);
        sum = add_rn(sum, mul_rn(v, v));
      }
    });
  return sum_of_16(sum);
}

// The contract's norm of row `i`, by the eight threads that share it.
__device__ __forceinline__ double norm_of(const Rows& rows, int64_t i, bool valid) {
  return floored(sqrt(sum_of_8(valid ? self_lane(rows, i, static_cast<int>(threadIdx.x % kLanes)) : 0.0)));
}

// ---- Rows before their coordinates are written ---------------------------------------------------------------------

// The norms of a panel's rows, eight threads a row; the upper half of the block repeats the lower half's rows. A
// barrier must follow.
__device__ __forceinline__ void norms_of_panel(const BankPanels& a, int64_t column, double* norms) {
  const int r = threadIdx.x / kLanes % kPanel;
  const double norm = norm_of(a.bank, column + r, column + r < a.bank.count);
  if (threadIdx.x % kLanes != 0 || threadIdx.x >= kPanel * kLanes) return;
  norms[r] = norm;
}

// `squares`: of the mapped row; `original_squares`: without the centre. `norm`: floored, where there are unit rows.
__device__ __forceinline__ ColumnFacts facts_of_column(const BankPanels& a, int64_t column, double squares,
                                                       double original_squares, double norm, double post) {
  const double whole = record(a.metric).unit_rows ? post : sqrt(original_squares) * kNormRoom;
  return column_facts(a.metric, squares, whole, norm, a.bias != nullptr ? a.bias[column] : 0.0, post);
}

// Whether the header of a caller's pack holds what this call expects; the first block raises the sticky flag if not.
__device__ __forceinline__ bool trusted(const QueryPanels& a, bool first) {
  const bool good = is_pack_of(*a.header, a.expected);
  if (!good && first && threadIdx.x == 0) atomicAdd(&a.state->bad_codes, 1u);
  return good;
}

struct QueryFacts {
  Affine map;
  QueryFrame frame;  // not usable without a row, or a pack that is trusted
};
// How a query is mapped before its norm is known.
__device__ __forceinline__ Affine map_of_queries(const QueryPanels& a, bool good) {
  if (!record(a.metric).shares_frame || !good) return {};
  return {a.header->centred ? a.centre : nullptr, 1.0, ldexp(1.0, a.header->exponent)};
}
// `squares`: of the query, so mapped.
__device__ __forceinline__ QueryFacts query_facts(const QueryPanels& a, bool valid, bool good, const Affine& map,
                                                  double squares) {
  const int shift = good ? a.header->exponent : 0;
  QueryFacts f{map, query_frame(a.metric, a.queries.width, squares, shift, a.expected.biased,
                                query_limit(a.metric, shift, a.expected.biased))};
  if (!record(a.metric).shares_frame) f.map.post = ldexp(1.0, f.frame.exponent);
  f.frame.usable = f.frame.usable && valid && good;
  return f;
}

// Writes what a screen keeps of a query besides its coordinates; one thread calls it.
__device__ __forceinline__ void begin_query(const QueryPanels& a, int64_t q, const QueryFacts& f, bool usable,
                                            float norm) {
  a.norms[q] = norm;
  double slack = 0.0;
  if (usable) {
    slack = query_slack(a.metric, a.queries.width, f.frame.exponent, a.header->exponent).at(f.frame.packed);
    if (a.tensor) slack += tensor_slack(a.queries.width, f.frame.packed);
  }
  a.slacks[q] = slack;
  a.thresholds[q] = usable ? -HUGE_VALF : HUGE_VALF;
  a.counts[q] = usable ? 0 : kFellBack;
  if (q == 0 && a.fallback_count != nullptr) *a.fallback_count = 0;
}

// Writes `width` lines of 16 mapped rows; rows that are not `written` become zeros. Reads run along rows, writes along
// lines, with a turn through shared memory. All threads of the block take part. `turn` holds 16 x 17 of T.
template <class T>
__device__ __forceinline__ void write_lines(const Rows& rows, int64_t i, bool written, const Affine& map, T* lines,
                                            T* turn) {
  const int row = threadIdx.x / 16, t = threadIdx.x % 16;
  for (int64_t k = 0; k < rows.width; k += 16) {
    T v = 0;
    if (written && k + t < rows.width)
      with_dtype(rows.dtype, [&](auto type) {
        v = static_cast<T>(mapped(reinterpret_cast<decltype(type)>(row_of(rows, i)), rows.col_stride, k + t, map));
      });
    turn[t * 17 + row] = v;
    __syncthreads();
    if (k + row < rows.width) lines[(k + row) * kPanel + t] = turn[row * 17 + t];
    __syncthreads();
  }
}

}  // namespace vecbank::cuda
