// 16-bit floats as plain structs, and exact conversions. bf16 and fp16 are storage types: nothing is computed in them.
#pragma once

#include <cstdint>
#include <cstring>

#include "types.h"

namespace vecbank {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

VB_INLINE float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
VB_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

VB_INLINE float widened_f32(BFloat16 h) { return from_bits(static_cast<uint32_t>(h.bits) << 16); }
VB_INLINE float widened_f32(Float16 h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t magnitude = h.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)
    return from_bits(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13) | ((magnitude & 0x3ffu) ? 0x400000u : 0u));
  if (magnitude >= 0x400u) return from_bits(sign | ((magnitude << 13) + (112u << 23)));
  const float tiny = static_cast<float>(magnitude) * 0x1p-24f;  // exact: at most ten bits
  return sign ? -tiny : tiny;
}
VB_INLINE float widened_f32(float x) { return x; }

VB_INLINE double widened(double x) { return x; }
template <class S>
VB_INLINE double widened(S x) {
  return static_cast<double>(widened_f32(x));
}

// Round to nearest, ties to even; NaN stays NaN.
VB_INLINE BFloat16 to_bfloat16(float x) {
  const uint32_t b = to_bits(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((b >> 16) | 0x40u)};
  return {static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};
}
VB_INLINE Float16 to_float16(float x) {
  const uint32_t b = to_bits(x);
  const uint16_t sign = static_cast<uint16_t>((b >> 16) & 0x8000u);
  const uint32_t a = b & 0x7fffffffu;
  if (a > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (a >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 65536 or beyond
  if (a < 0x38800000u) {                                                 // subnormal result: let float addition round
    const uint32_t r = to_bits(from_bits(a) + 0.5f);
    return {static_cast<uint16_t>(sign | (r - 0x3f000000u))};
  }
  return {static_cast<uint16_t>(sign | ((a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13))};
}

// Calls f with a typed null pointer of the element type; Element<decltype(pointer)> names the type.
template <class P>
struct ElementOf;
template <class S>
struct ElementOf<const S*> {
  using type = S;
};
template <class P>
using Element = typename ElementOf<P>::type;

template <class F>
VB_INLINE decltype(auto) with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(static_cast<const double*>(nullptr));
    case DType::bf16: return f(static_cast<const BFloat16*>(nullptr));
    case DType::f16: return f(static_cast<const Float16*>(nullptr));
    default: return f(static_cast<const float*>(nullptr));
  }
}

// float64 -> any element type; 16-bit types round through float32 as torch does.
VB_INLINE void narrow(double x, double* out) { *out = x; }
VB_INLINE void narrow(double x, float* out) { *out = static_cast<float>(x); }
VB_INLINE void narrow(double x, BFloat16* out) { *out = to_bfloat16(static_cast<float>(x)); }
VB_INLINE void narrow(double x, Float16* out) { *out = to_float16(static_cast<float>(x)); }

}  // namespace vecbank
