// The bounds of the tensor-core screens, and what these assume of the hardware. Plain functions, tested on the host.
#pragma once

#include "../../core/bounds.h"
#include "operands.h"

namespace vecbank::cuda {

// ---- Tensor cores --------------------------------------------------------------------------------------------------
// ASSUMED, not documented: one tensor-core instruction adds its products to the accumulator with an error of at most
// kTensorUnit times the sum of the magnitudes of all terms. tests/cuda/accumulation*.cu
// measure this, and one constant serves every architecture until each is measured. Bit-exact models that others fitted
// to hardware (MMA-Sim, for one) cut every term at a unit 2^-24 (8.x) or 2^-25 (9.0, 10.0) below the largest, and round
// the sum towards zero. On 8.x an instruction is two steps of 8 products, which lose 2 (8 + 2) 2^-24 = 5 * 2^-22. The
// other architectures lose less.
constexpr double kTensorUnit = 5.5 * 0x1p-22;
// Covers inputs below 2^-126, which tensor cores may count as zero. `norm`: of the packed query.
VB_INLINE double tensor_slack(int64_t width, double norm) {
  return static_cast<double>(width + 16) * 0x1p-124 * (1.0 + norm + 2.0 * kMaxBankNorm);
}

// ---- 16-bit operands -----------------------------------------------------------------------------------------------
// x^, b^ are the packed rows x~, b~ rounded to bf16 or fp16. |x~.b~ - x^.b^| <= |x~ - x^| |b~| + |x^| |b~ - b^|, and
// packing measures both losses in float64. 16-bit inputs in their own type that are neither centred nor divided by a
// norm lose nothing. A centred frame or float32 inputs widen the bound by what they lose, so that every input has this
// screen. Products of two 16-bit numbers are exact in float32; kTensorUnit covers their sum, one instruction for every
// 16 coordinates.
//   bound(b) = share |b~| + |b~ - b^| + operand_unit (|b~| + |b~ - b^|) + the refinement's rounding (operand_bound)
//   norm(x)  = max(|x~| + |x~ - x^|, |x~ - x^| / share)                                            (operand_norm)
// so norm * bound covers both losses for any `share`, which is the part of its norm that a query is expected to lose.
// The hardware is assumed to honour fp16 subnormals (accumulation.cu checks it); tensor_slack covers those of bf16.
constexpr int kOperandStep = 16;                // coordinates of an instruction
VB_INLINE double operand_unit(int64_t pitch) {  // includes the start's two roundings
  return (static_cast<double>(pitch / kOperandStep + 2) * kTensorUnit + 4.0 * 0x1p-24) * 1.02;
}
// Half a unit in the last place is 2^-8 in bf16 and 2^-11 in fp16; over a whole row the loss is about 0.38 of that.
VB_INLINE double operand_share(DType type, DType queries, Metric metric, bool centred) {
  if (queries == type && !(record(metric).shares_frame && centred)) return 0x1p-24;  // nothing is lost
  return type == DType::bf16 ? 0x1p-9 : 0x1p-12;
}
VB_INLINE float operand_norm(double packed, double lost, double share) {
  const double with = packed + lost, alone = lost / share;
  return round_up((with > alone ? with : alone) * (1.0 + 0x1p-20));
}
// `packed`, `original`: as in bank_bound.
VB_INLINE float operand_bound(Metric metric, int64_t width, int64_t pitch, double packed, double lost, double share,
                              double original) {
  double r = share * packed + lost + operand_unit(pitch) * (packed + lost);
  if (record(metric).term == Term::product) r += 4.0 * refine_unit(width) * original;
  return round_up(r * (1.0 + 0x1p-18));
}
// The start of a column, raised to cover its own rounding and its part of the rounding of the sum.
VB_INLINE float operand_start(double half, int64_t pitch) {
  return round_up(half + operand_unit(pitch) * fabs(half) * (1.0 + 0x1p-16));
}

}  // namespace vecbank::cuda
