// Writes 16-bit operands (operands.h). Frame, map and fallback rows are those of float32 panels; rounding and layout
// differ.
#include "../panels.cuh"
#include "bounds.h"

namespace vecbank::cuda {
namespace {

constexpr int kChunk = 8;  // elements of a 16-byte store

struct alignas(16) Chunk {
  uint16_t bits[kChunk];
};

__device__ __forceinline__ uint16_t rounded_bits(double v, DType type) {
  if (type == DType::bf16) return to_bfloat16(static_cast<float>(v)).bits;
  return to_float16(static_cast<float>(v)).bits;
}
__device__ __forceinline__ double value_of_bits(uint16_t bits, DType type) {
  return type == DType::bf16 ? widened(BFloat16{bits}) : widened(Float16{bits});
}

// Writes row `row` of the operand from row i, or zeros unless `written`. Returns the sum of squares that rounding lost.
// The sixteen threads that share the row call this function.
__device__ __forceinline__ double write_row(const Rows& rows, int64_t i, bool written, const Affine& map,
                                            const Operand& to, int64_t row) {
  double lost = 0.0;
  for (int64_t k = threadIdx.x % 16 * kChunk; k < to.pitch; k += 16 * kChunk) {
    Chunk chunk{};
    if (written)
      with_dtype(rows.dtype, [&](auto type) {
        const auto* from = reinterpret_cast<decltype(type)>(row_of(rows, i));
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
          if (k + e >= rows.width) continue;
          const double v = mapped(from, rows.col_stride, k + e, map);
          chunk.bits[e] = rounded_bits(v, to.type);
          const double gap = add_rn(v, -value_of_bits(chunk.bits[e], to.type));
          lost = add_rn(lost, mul_rn(gap, gap));
        }
      });
    *reinterpret_cast<Chunk*>(to.rows + row * to.pitch + k) = chunk;
  }
  return sum_of_16(lost);
}

// Each block has 16 rows.
__global__ void __launch_bounds__(kPanelThreads, 4)
    write_query_operands_kernel(const __grid_constant__ QueryOperands args) {
  const QueryPanels& a = args.common;
  const bool good = trusted(a);
  const double share = operand_share(args.to.type, a.queries.dtype, a.metric, good && a.header->centred);
  for (int64_t p = blockIdx.x; p < operand_rows(a.queries.count) / kPanel; p += gridDim.x) {
    const int64_t q = p * kPanel + threadIdx.x / 16;
    const bool valid = q < a.queries.count;
    const QueryFacts f = query_facts(a, q, valid, good);
    const double lost = sqrt(write_row(a.queries, q, f.frame.usable, f.map, args.to, q)) * (1.0 + 0x1p-20);
    const bool usable = f.frame.usable && lost <= kMaxQueryNorm;  // false if a coordinate overflowed
    if (f.frame.usable && !usable) write_row(a.queries, q, false, f.map, args.to, q);
    if (valid && threadIdx.x % 16 == 0)
      begin_query(a, q, f, usable, usable ? operand_norm(f.frame.packed, lost, share) : 0.0f);
  }
}

// Each block has 16 rows, the padding included.
__global__ void __launch_bounds__(kPanelThreads, 4)
    write_bank_operands_kernel(const __grid_constant__ BankOperands args) {
  double* norms = reinterpret_cast<double*>(shared_memory());  // 16
  const BankPanels& a = args.common;
  const int64_t d = a.bank.width, pitch = args.to.pitch;
  const double post = ldexp(1.0, a.header->exponent);
  const double* centre = a.header->centred ? a.centre : nullptr;
  const bool unit_rows = record(a.metric).unit_rows;
  const double share = operand_share(args.to.type, args.queries, a.metric, a.header->centred);
  for (int64_t slot = blockIdx.x; slot < operand_rows(a.count * kPanel) / kPanel; slot += gridDim.x) {
    const int64_t first = slot < a.count ? a.schedule.panel(a.first_slot + slot) * kPanel : a.bank.count;
    if (unit_rows) norms_of_panel(a, first, norms);
    __syncthreads();
    const int row = threadIdx.x / 16;
    const int64_t column = first + row, to = slot * kPanel + row;
    const bool valid = column < a.bank.count;
    Affine map{centre, 1.0, post};
    if (unit_rows) map.pre = 1.0 / norms[row];
    const double squares = squares_of(a.bank, column, valid, map);
    double original = squares;
    if (centre != nullptr && !unit_rows) original = squares_of(a.bank, column, valid, {nullptr, 1.0, post});
    ColumnFacts f{};
    if (valid) f = facts_of_column(a, column, squares, original, unit_rows ? norms[row] : 1.0, post);
    const double lost = sqrt(write_row(a.bank, column, valid && f.fits, map, args.to, to)) * (1.0 + 0x1p-20);
    if (valid && f.fits && !(lost <= kMaxBankNorm)) {
      f.fits = false;
      write_row(a.bank, column, false, map, args.to, to);
    }
    if (threadIdx.x % 16 == 0) {
      const bool usual = valid && f.fits;
      const float start = usual ? operand_start(f.start, pitch) : 0.0f;
      args.terms.start[to] = usual ? start : valid ? HUGE_VALF : -HUGE_VALF;
      args.terms.bound[to] = usual ? operand_bound(a.metric, d, pitch, f.packed, lost, share, f.whole) : 0.0f;
      args.terms.lift[to] = round_up(static_cast<double>(start) - (usual ? f.start : 0.0));
    }
    __syncthreads();  // all threads have read the norms
  }
}

}  // namespace

Error pack_query_operands(const QueryOperands& args, const Device& device) {
  return launch(write_query_operands_kernel, grid_for(operand_rows(args.common.queries.count) / kPanel), kPanelThreads,
                0, device, args);
}
Error pack_bank_operands(const BankOperands& args, const Device& device) {
  return launch(write_bank_operands_kernel, grid_for(operand_rows(args.common.count * kPanel) / kPanel), kPanelThreads,
                kPanel * static_cast<int64_t>(sizeof(double)), device, args);
}

}  // namespace vecbank::cuda
