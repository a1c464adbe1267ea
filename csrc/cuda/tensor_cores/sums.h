// Sums that show how a tensor core adds: what one instruction multiplies and where its sum starts, for the self-check
// and its tests. Numbers are a function of their place, so host and device draw the same ones without storing them.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../core/types.h"

namespace vecbank::cuda {

// The first two kinds are exact in every arithmetic that bounds.h allows. Each of the others is near the worst of some
// way to round.
enum class Sums : int32_t {
  integers,        // up to 128, at every place of an operand another one
  subnormals,      // fp16 subnormals (in bf16 they are small numbers) times small integers
  noise,           // all of one size
  one_large,       // one large product, the others anywhere below
  half_bits,       // every product near half of the last bit of the start
  cancelling,      // products of both signs, a small rest
  all_exponents,   // products of very different size
  small,           // fp16: subnormals among small numbers
  below_cut,       // every product just below the unit to which the models cut on 9.0 and 10.0, or twice as large;
  below_next_cut,  // likewise on 8.x
};
constexpr int kSumKinds = 10;

VB_INLINE uint64_t scattered(uint64_t x) {  // splitmix64: neighbours have nothing in common
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
VB_INLINE double power_of_two(int exponent) { return ldexp(1.0, exponent); }

// The place of a number: its trial, its operand and where it stands there.
struct Place {
  uint64_t trial;
  int operand, at;  // operand 0: left, at row * 16 + k; 1: right, at column * 16 + k; 2: the start, at row * 8 + column
  VB_INLINE uint64_t draw(int which) const {
    const int number = (operand * 256 + at) * 4 + which;
    return scattered(trial * 4096 + static_cast<uint64_t>(number));
  }
  VB_INLINE double noise(int which) const {  // between -2 and 2
    return static_cast<double>(draw(which) >> 11) * 0x1p-51 - 2.0;
  }
  VB_INLINE int below(int which, int limit) const {
    return static_cast<int>(draw(which) % static_cast<uint64_t>(limit));
  }
  // 257 is a prime: `at` and `at` times anything but its multiples differ at all of an operand's 256 places.
  VB_INLINE int distinct() const {
    const int factor = 1 + Place{trial, operand, 0}.below(0, 255);
    return (at + 1) * factor % 257 - 128;
  }
};

// A number before it is rounded to the operands' type. `widest`: of its exponents, either way.
VB_INLINE double sum_part(Sums kind, const Place& p, int widest) {
  const bool left = p.operand == 0, start = p.operand == 2;
  const int k = p.at % 16;
  const double noise = p.noise(0), tiny = power_of_two(-p.below(1, 30));
  switch (kind) {
    case Sums::integers: return p.distinct();
    case Sums::subnormals:
      return left ? (1 + p.below(0, 255)) * 0x1p-24 : start ? 0.0 : static_cast<double>(p.below(0, 17) - 8);
    case Sums::noise: return noise;
    case Sums::one_large: return left ? (k == 0 ? 1.0 : tiny) : start ? noise : 1.0;
    case Sums::half_bits: return left ? (noise > 0.0 ? 1.999 : 1.0) * 0x1p-24 : 1.0;
    case Sums::cancelling: return left ? (k % 2 == 0 ? 1.0 : -1.0) + 0.001 * noise : start ? tiny : 1.0;
    case Sums::all_exponents:
      return left ? noise * power_of_two(p.below(1, 2 * widest) - widest) : start ? noise * tiny : noise;
    case Sums::small: return left ? noise * 0x1p-18 : start ? 0.0 : noise;
    case Sums::below_cut:
    case Sums::below_next_cut: {
      const int twice = (kind == Sums::below_next_cut) + (p.below(0, 8) == 0);
      return left ? 255.0 / 128.0 * power_of_two(twice - 13) : start ? 1.0 : 0x1p-13;
    }
  }
  return 0.0;
}

}  // namespace vecbank::cuda
