// The 16-bit operands of a tensor-core screen, and their column terms. One layout serves mma.sync (cp.async, ldmatrix)
// and Hopper (TMA with a 128-byte swizzle, wgmma):
//
//   rows      [whole tiles][pitch] of bf16 or fp16, a row's coordinates side by side ("K-major" on both sides)
//   pitch     elements from row to row: the width rounded up to 64, so a row is a multiple of 128 bytes; the base is
//             256-byte aligned. Zeros beyond the width
//   count     rounded up to whole tiles of kOperandTile; rows beyond the last are zeros
//
// A query row has a norm (float32; zero for a fallback row). A bank row ("column") has three terms, one float32 each
// (a pack has two bounds: the first for queries of the operands' own type, the other for queries that are rounded to
// it):
//
//   start     the start of its accumulators: the map of -|b|^2/2, the bias or 0, raised by its own error bound; -inf
//             for padding, which so never survives; +inf for a fallback column, which must be refined
//   bound     the error bound of a score, per unit of the query's norm
//   lift      the amount by which `start` was raised
//
// THE BOUND: with S = start + sum x^ b^ over the operands x^, b^, accumulated by tensor cores, T the exact map of the
// refined float64 score, slack a number per query (for underflow and the refinement itself),
//   upper = S + norm * bound,  lower = upper - 2 (norm * bound + lift + slack),  lower <= T - slack <= upper,
// so a column whose upper lies below another's lower is not better. norm * bound may be added to the start or at the
// end. Proof and constants: bounds.h, "16-bit operands".
//
// Order: bank row i of a piece is row schedule.panel(first_slot + i / 16) * 16 + i % 16 of the bank: pieces follow the
// schedule's scattered panels, as float32 panels do. The frame (centre, power of two) is that of the float32 pack.
// A Bank's pack holds the operands of the whole bank (pack_layout.h), where a piece is a shifted pointer. For a plain
// tensor they are written in each call, a piece of the bank at a time, or whole where the caller provides the room.
#pragma once

#include "../../core/types.h"

namespace vecbank::cuda {

constexpr int64_t kOperandTile = 256;  // rows of a whole tile: two tiles of mma.sync, two bank tiles of Hopper's screen
constexpr int64_t kOperandDepth = 64;  // elements of a step: 128 bytes, the widest swizzle
constexpr int64_t kWidestSm90 = 256;   // the query rows of Hopper's screen stay in shared memory

VB_INLINE constexpr int64_t operand_pitch(int64_t width) {
  return (width + kOperandDepth - 1) / kOperandDepth * kOperandDepth;
}
VB_INLINE constexpr int64_t operand_rows(int64_t count) {
  return (count + kOperandTile - 1) / kOperandTile * kOperandTile;
}

// One side of the product.
struct Operand {
  DType type = DType::bf16;  // bf16 or f16
  uint16_t* rows = nullptr;
  int64_t pitch = 0;
};
struct ColumnTerms {  // [operand_rows(count)] each
  float *start = nullptr, *bound = nullptr, *lift = nullptr;
};
struct BankTerms {  // the same before the queries' dtype is known
  float *start = nullptr, *lift = nullptr;
  float* bounds[2] = {};  // for queries of the operands' own type; for others. Null: not wanted
  ColumnTerms of_queries(bool own_type) const { return {start, bounds[own_type ? 0 : 1], lift}; }
};
constexpr int64_t kTermBytes = sizeof(float);
VB_INLINE constexpr int64_t operand_bytes(int64_t width) {  // of a bank row whose queries are known
  return operand_pitch(width) * 2 + 3 * kTermBytes;
}
// The elements of a piece: screens compute offsets within it in 32 bits.
constexpr int64_t kMostOperandElements = int64_t{1} << 30;

}  // namespace vecbank::cuda
