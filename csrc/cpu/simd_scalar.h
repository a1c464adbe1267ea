// The portable vocabulary: plain C++ that a compiler maps to the vectors of the baseline (SSE2, NEON).
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"

namespace vecbank::cpu {
namespace {

template <class Element>
struct Portable {
  using T = Element;
  static constexpr int width = 16 / sizeof(T), lines = 1;
  typedef T Reg __attribute__((vector_size(16)));
  static VB_INLINE Reg load(const T* p) {
    Reg r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }
  static VB_INLINE Reg fill(T x) { return Reg{} + x; }
  static VB_INLINE void store(T* p, Reg a) { std::memcpy(p, &a, sizeof a); }
  static VB_INLINE Reg add(Reg a, Reg b) { return a + b; }
  static VB_INLINE Reg subtract(Reg a, Reg b) { return a - b; }
  static VB_INLINE Reg multiply(Reg a, Reg b) { return a * b; }
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) { return a * b + c; }
  // 2^n, where the low bits of a hold the whole number n, -127 to 127; 0 for -127.
  static VB_INLINE Reg exponent(Reg a) {
    static_assert(sizeof(T) == 4);
    typedef uint32_t Bits __attribute__((vector_size(16)));
    Bits bits;
    std::memcpy(&bits, &a, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    std::memcpy(&a, &bits, sizeof bits);
    return a;
  }
  static VB_INLINE Reg max0(Reg a) { return a < 0 ? Reg{} : a; }  // keeps NaN
  static VB_INLINE Reg root(Reg a) {
    T x[width];
    store(x, a);
    for (int i = 0; i < width; ++i) x[i] = std::sqrt(x[i]);
    return load(x);
  }
  static VB_INLINE Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static VB_INLINE Reg min(Reg a, Reg b) { return a > b ? b : a; }
  static VB_INLINE T largest(Reg a) {
    T x[width];
    store(x, a);
    T most = x[0];
    for (int i = 1; i < width; ++i) most = x[i] > most ? x[i] : most;
    return most;
  }
  static VB_INLINE Reg if_greater(Reg a, Reg b, Reg x, Reg y) { return a > b ? x : y; }
  static VB_INLINE uint32_t not_less(Reg a, Reg b) {
    T x[width], y[width];
    store(x, a);
    store(y, b);
    uint32_t lanes = 0;
    for (int i = 0; i < width; ++i) lanes |= (x[i] < y[i] ? 0u : 1u) << i;
    return lanes;
  }
  struct Gate {
    decltype(Reg{} < Reg{}) hit{};
    VB_INLINE void add(Reg a, Reg b) { hit |= ~(a < b); }
    VB_INLINE bool any() const {
      uint64_t bits[2];
      std::memcpy(bits, &hit, sizeof bits);
      return (bits[0] | bits[1]) != 0;
    }
  };
};

struct PortableInt8 : Portable<int32_t> {  // an element is four codes: unsigned of a query, signed of the bank
  static constexpr int32_t bank_code = 127, product_limit = 1 << 30;
  static constexpr int64_t least_rows = INT64_MAX;  // slower than float32
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {
    for (int shift = 0; shift < 32; shift += 8) c += ((a >> shift) & 0xFF) * ((b << (24 - shift)) >> 24);
    return c;
  }
  static VB_INLINE Portable<float>::Reg to_float(Reg a) { return __builtin_convertvector(a, Portable<float>::Reg); }
  static VB_INLINE Reg whole(Portable<float>::Reg a) { return __builtin_convertvector(a, Reg); }
  static VB_INLINE Reg four(Portable<float>::Reg a, Portable<float>::Reg b, Portable<float>::Reg c,
                            Portable<float>::Reg d, int32_t offset) {
    const auto code = [&](Portable<float>::Reg x, int shift) { return ((whole(x) + offset) & 0xFF) << shift; };
    return code(a, 0) | code(b, 8) | code(c, 16) | code(d, 24);
  }
  static VB_INLINE Reg lower_half(Reg a) { return a & 0xFFFF; }
  static VB_INLINE Reg upper_half(Reg a) { return a >> 16; }
  static VB_INLINE Reg less_times(Reg a, Reg b, int32_t times) { return a - b * times; }
  // sum + the products of twice as many numbers as a vector has elements, added in pairs.
  static VB_INLINE Reg add_pairs(Reg sum, const int16_t* a, const int8_t* b) {
    for (int i = 0; i < width; ++i) sum[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sum;
  }
};

struct PortableLanes {
  static constexpr int banks = 1;  // bank rows that are scored together, for four queries
  double v[8];
  static VB_INLINE PortableLanes fill(double x) { return {{x, x, x, x, x, x, x, x}}; }
  template <class S>
  static VB_INLINE PortableLanes load(const S* p) {
    PortableLanes r;
    for (int i = 0; i < 8; ++i) r.v[i] = widened(p[i]);
    return r;
  }
  template <class S>
  VB_INLINE void store(S* p) const {
    for (int i = 0; i < 8; ++i) p[i] = static_cast<S>(v[i]);
  }
  template <class F>
  static VB_INLINE PortableLanes map(const PortableLanes& a, const PortableLanes& b, F f) {
    PortableLanes r;
    for (int i = 0; i < 8; ++i) r.v[i] = f(a.v[i], b.v[i]);
    return r;
  }
  friend VB_INLINE PortableLanes operator+(const PortableLanes& a, const PortableLanes& b) {
    return map(a, b, [](double x, double y) { return x + y; });
  }
  friend VB_INLINE PortableLanes operator-(const PortableLanes& a, const PortableLanes& b) {
    return map(a, b, [](double x, double y) { return x - y; });
  }
  friend VB_INLINE PortableLanes operator*(const PortableLanes& a, const PortableLanes& b) {
    return map(a, b, [](double x, double y) { return x * y; });
  }
  friend VB_INLINE PortableLanes operator/(const PortableLanes& a, const PortableLanes& b) {
    return map(a, b, [](double x, double y) { return x / y; });
  }
  // sum + a * b, where the product is exact: whether it is fused does not matter.
  static VB_INLINE PortableLanes plus_exact(const PortableLanes& sum, const PortableLanes& a, const PortableLanes& b) {
    return sum + a * b;
  }
  VB_INLINE PortableLanes root() const {
    return map(*this, *this, [](double x, double) { return std::sqrt(x); });
  }
  VB_INLINE PortableLanes abs() const {
    return map(*this, *this, [](double x, double) { return std::fabs(x); });
  }
  // a > b ? x : y
  static VB_INLINE PortableLanes if_greater(const PortableLanes& a, const PortableLanes& b, const PortableLanes& x,
                                            const PortableLanes& y) {
    PortableLanes r;
    for (int i = 0; i < 8; ++i) r.v[i] = a.v[i] > b.v[i] ? x.v[i] : y.v[i];
    return r;
  }
  VB_INLINE double largest() const {
    double most = v[0];
    for (double one : v) most = one > most ? one : most;
    return most;
  }
  VB_INLINE double sum() const { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }
  static VB_INLINE void sum4(const PortableLanes (&s)[4], double* out) {
    for (int i = 0; i < 4; ++i) out[i] = s[i].sum();
  }
};

VB_INLINE void transpose8(const float* in, float* out, int64_t step) {
  for (int column = 0; column < 8; ++column)
    for (int row = 0; row < 8; ++row) out[column * step + row] = in[row * 8 + column];
}

VB_INLINE void transpose16(const float* in, float* out, int64_t step) {
  for (int column = 0; column < 8; ++column)
    for (int row = 0; row < 16; ++row) out[column * step + row] = in[row * 8 + column];
}

struct Scalar {
  using F32 = Portable<float>;
  using F64 = Portable<double>;
  using Int16 = void;
  using Int8 = PortableInt8;
  using Lanes = PortableLanes;
  using BFloat16Pairs = void;
  using Bytes = void;
  using Words = void;
  using UnitWords = void;
  static constexpr bool fused = false;  // multiply_add() rounds the product
  static constexpr int full = 2, full_panels = 1;
  static constexpr int mid = 2, mid_panels = 1;
  static constexpr int one_panels = 1;
  static constexpr int full_f64 = 2;
  static VB_INLINE uint64_t load_word(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
  }
  static VB_INLINE int64_t popcount(uint64_t x) {
#if defined(__aarch64__)
    return __builtin_popcountll(x);
#else  // the compiler would call a function that reads a table
    x -= x >> 1 & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return static_cast<int64_t>(x * 0x0101010101010101u >> 56);
#endif
  }
  static VB_INLINE uint64_t bits_of_bools(const unsigned char* bools) {  // of 64, the first the lowest
    uint64_t bits = 0;
    for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(bools[i] != 0) << i;
    return bits;
  }
};

}  // namespace
}  // namespace vecbank::cpu
