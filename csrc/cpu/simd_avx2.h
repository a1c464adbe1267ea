// The AVX2 vocabulary: what mainloop, epilogues and rows need, and nothing else.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels.h"

namespace vecbank::cpu {
namespace {

// Eight float32 values from any element type; narrower ones widen exactly.
VB_INLINE __m256 load8_f32(const float* p) { return _mm256_loadu_ps(p); }
VB_INLINE __m256 load8_f32(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
VB_INLINE __m256 load8_f32(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// The first `count` of eight float32 values, of which only these exist, and zeros.
VB_INLINE __m256 load_first_f32(const float* p, int64_t count) {
  static constexpr int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_maskload_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - count)));
}

struct Avx2Lanes;

struct Avx2F32 {
  using T = float;
  using Reg = __m256;
  static constexpr int width = 8, lines = 1;
  using Sum = Reg;
  template <class S>
  static VB_INLINE Reg load(const S* p) {
    return load8_f32(p);
  }
  static VB_INLINE Reg load_first(const T* p, int64_t count) { return load_first_f32(p, count); }
  static VB_INLINE Reg fill(T x) { return _mm256_set1_ps(x); }
  static VB_INLINE Sum zero() { return _mm256_setzero_ps(); }
  using Lanes = Avx2Lanes;
  static VB_INLINE Lanes to_lanes(Sum s);
  static VB_INLINE void store(T* p, Reg a) { _mm256_storeu_ps(p, a); }
  static VB_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static VB_INLINE Reg subtract(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static VB_INLINE Reg multiply(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  // 2^n, where the low bits of a hold the whole number n, -127 to 127; 0 for -127.
  static VB_INLINE Reg exponent(Reg a) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(a), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_castps_si256(fill(1.0f))));
  }
  static VB_INLINE Reg max0(Reg a) { return _mm256_max_ps(_mm256_setzero_ps(), a); }  // keeps NaN
  static VB_INLINE Reg root(Reg a) { return _mm256_sqrt_ps(a); }
  static VB_INLINE Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }  // of numbers: neither is NaN
  static VB_INLINE Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static VB_INLINE T largest(Reg a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  static VB_INLINE Reg if_greater(Reg a, Reg b, Reg x, Reg y) {  // a > b ? x : y, lane by lane
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
  }
  static VB_INLINE uint32_t not_less(Reg a, Reg b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ)));
  }
  struct Gate {  // whether any lane of a tile reaches its threshold
    Reg hit = _mm256_setzero_ps();
    VB_INLINE void add(Reg a, Reg b) { hit = _mm256_or_ps(hit, _mm256_cmp_ps(a, b, _CMP_NLT_UQ)); }
    VB_INLINE bool any() const { return _mm256_movemask_ps(hit) != 0; }
  };
};

// Registers of int32: sums of products, or elements of codes.
struct Avx2Int32 {
  using T = int32_t;
  using Reg = __m256i;
  static constexpr int width = 8;
  static VB_INLINE Reg load(const T* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static VB_INLINE Reg fill(T x) { return _mm256_set1_epi32(x); }
  static VB_INLINE void store(T* p, Reg a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static VB_INLINE __m256 to_float(Reg a) { return _mm256_cvtepi32_ps(a); }
};

struct Avx2Int16 : Avx2Int32 {  // an element is two int16; a register holds eight int32 sums or eight such pairs
  static constexpr int lines = 1;
  static constexpr int panels = 1;  // of a register tile
  // The asm keeps both instructions together: gcc would otherwise compute all products of a step first, and spill.
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {
    Reg product;
    asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(c), "=&x"(product) : "x"(a), "x"(b));
    return c;
  }
  static VB_INLINE Reg pair(__m256 even, __m256 odd) {  // rounded to nearest
    return _mm256_blend_epi16(_mm256_cvtps_epi32(even), _mm256_slli_epi32(_mm256_cvtps_epi32(odd), 16), 0xAA);
  }
};

struct Avx2Int8 : Avx2Int32 {  // an element is four codes: unsigned of a query, signed of the bank
  static constexpr int lines = 2;
  // Products are added in pairs in 16 bits, which saturate, and two such sums before they are widened.
  static constexpr int32_t bank_code = 63, product_limit = 32767 / 4;
  // Codes of 7 bits leave more candidates, which pays in large banks alone (bench/NOTES.md).
  static constexpr int64_t least_rows = 8192;
  static VB_INLINE Reg multiply_add_pair(Reg a, const T* b, Reg c, const T* d, Reg sum) {
    Reg first, second;  // asm for the reason given in Avx2Int16
    asm("vpmaddubsw %5, %3, %1\n\tvpmaddubsw %6, %4, %2\n\tvpaddw %2, %1, %1\n\t"
        "vpmaddwd %7, %1, %1\n\tvpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(first), "=&x"(second)
        : "x"(a), "x"(c), "m"(*reinterpret_cast<const __m256i_u*>(b)), "m"(*reinterpret_cast<const __m256i_u*>(d)),
          "x"(_mm256_set1_epi16(1)));
    return sum;
  }
  static VB_INLINE Reg whole(__m256 a) { return _mm256_cvtps_epi32(a); }
  static VB_INLINE Reg four(__m256 a, __m256 b, __m256 c, __m256 d, int32_t offset) {
    const auto code = [&](__m256 x) __attribute__((always_inline)) {
      return _mm256_and_si256(_mm256_add_epi32(whole(x), fill(offset)), fill(0xFF));
    };
    return _mm256_or_si256(_mm256_or_si256(code(a), _mm256_slli_epi32(code(b), 8)),
                           _mm256_or_si256(_mm256_slli_epi32(code(c), 16), _mm256_slli_epi32(code(d), 24)));
  }
  static VB_INLINE Reg lower_half(Reg a) { return _mm256_and_si256(a, fill(0xFFFF)); }
  static VB_INLINE Reg upper_half(Reg a) { return _mm256_srai_epi32(a, 16); }
  static VB_INLINE Reg less_times(Reg a, Reg b, int32_t times) {
    return _mm256_sub_epi32(a, _mm256_mullo_epi32(b, fill(times)));
  }
  static VB_INLINE Reg add_pairs(Reg sum, const int16_t* a, const int8_t* b) {
    const Reg wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b)));
    const Reg query = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(wide, query));
  }
};

// AVX-VNNI: the products of AVX512-VNNI in half its width, encoded as AVX is. {vex}: gcc's assembler takes the longer
// encoding otherwise, which these processors may lack. (In an asm's text, braces need a percent sign.)
struct Avx2VnniInt16 : Avx2Int16 {
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
  }
};

struct Avx2VnniInt8 : Avx2Int8 {   // four products at once, which do not saturate: int32 sums alone limit them
  static constexpr int lines = 1;  // so multiply_add() is used, and the inherited multiply_add_pair() is not
  static constexpr int32_t bank_code = 127, product_limit = 1 << 30;
  static constexpr int64_t least_rows = 0;
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(c) : "x"(a), "x"(b));
    return c;
  }
};

struct Avx2F64 {
  using T = double;
  using Reg = __m256d;
  static constexpr int width = 4, lines = 1;
  static VB_INLINE Reg load(const T* p) { return _mm256_loadu_pd(p); }
  static VB_INLINE Reg fill(T x) { return _mm256_set1_pd(x); }
  static VB_INLINE void store(T* p, Reg a) { _mm256_storeu_pd(p, a); }
  static VB_INLINE Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static VB_INLINE Reg max0(Reg a) { return _mm256_max_pd(_mm256_setzero_pd(), a); }
  static VB_INLINE Reg root(Reg a) { return _mm256_sqrt_pd(a); }
};

VB_INLINE double sum_tree(__m256d low, __m256d high) {  // ((0+1)+(2+3))+((4+5)+(6+7))
  const __m256d pairs = _mm256_hadd_pd(low, high);      // 0+1, 4+5, 2+3, 6+7
  const __m128d fours = _mm_add_pd(_mm256_castpd256_pd128(pairs), _mm256_extractf128_pd(pairs, 1));
  return _mm_cvtsd_f64(_mm_add_sd(fours, _mm_unpackhi_pd(fours, fours)));
}

// Eight float64 lanes: the refinement's unit of work on every instruction set.
struct Avx2Lanes {
  static constexpr int banks = 1;  // bank rows that are scored together, for four queries: eight registers of sums
  __m256d low, high;
  static VB_INLINE Avx2Lanes fill(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
  static VB_INLINE Avx2Lanes load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
  template <class S>
  static VB_INLINE Avx2Lanes load(const S* p) {
    return widened(load8_f32(p));
  }
  static VB_INLINE Avx2Lanes load_first(const float* p, int64_t count) { return widened(load_first_f32(p, count)); }
  static VB_INLINE Avx2Lanes widened(__m256 v) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
  }
  VB_INLINE void store(double* p) const {
    _mm256_storeu_pd(p, low);
    _mm256_storeu_pd(p + 4, high);
  }
  VB_INLINE void store(float* p) const {
    _mm_storeu_ps(p, _mm256_cvtpd_ps(low));
    _mm_storeu_ps(p + 4, _mm256_cvtpd_ps(high));
  }
  friend VB_INLINE Avx2Lanes operator+(Avx2Lanes a, Avx2Lanes b) {
    return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)};
  }
  friend VB_INLINE Avx2Lanes operator-(Avx2Lanes a, Avx2Lanes b) {
    return {_mm256_sub_pd(a.low, b.low), _mm256_sub_pd(a.high, b.high)};
  }
  friend VB_INLINE Avx2Lanes operator*(Avx2Lanes a, Avx2Lanes b) {
    return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
  }
  friend VB_INLINE Avx2Lanes operator/(Avx2Lanes a, Avx2Lanes b) {
    return {_mm256_div_pd(a.low, b.low), _mm256_div_pd(a.high, b.high)};
  }
  // sum + a * b, where the product is exact: whether it is fused does not matter.
  static VB_INLINE Avx2Lanes plus_exact(Avx2Lanes sum, Avx2Lanes a, Avx2Lanes b) {
    return {_mm256_fmadd_pd(a.low, b.low, sum.low), _mm256_fmadd_pd(a.high, b.high, sum.high)};
  }
  VB_INLINE Avx2Lanes root() const { return {_mm256_sqrt_pd(low), _mm256_sqrt_pd(high)}; }
  VB_INLINE Avx2Lanes abs() const {
    const __m256d sign = _mm256_set1_pd(-0.0);
    return {_mm256_andnot_pd(sign, low), _mm256_andnot_pd(sign, high)};
  }
  static VB_INLINE Avx2Lanes if_greater(Avx2Lanes a, Avx2Lanes b, Avx2Lanes x, Avx2Lanes y) {  // a > b ? x : y
    return {_mm256_blendv_pd(y.low, x.low, _mm256_cmp_pd(a.low, b.low, _CMP_GT_OQ)),
            _mm256_blendv_pd(y.high, x.high, _mm256_cmp_pd(a.high, b.high, _CMP_GT_OQ))};
  }
  VB_INLINE double largest() const {
    const __m256d four = _mm256_max_pd(low, high);
    const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
  }
  VB_INLINE double sum() const { return sum_tree(low, high); }
  // The sums of four at once, each in the order of sum().
  static VB_INLINE void sum4(const Avx2Lanes (&s)[4], double* out) {
    const auto fours = [](__m256d a, __m256d b, __m256d c, __m256d d) __attribute__((always_inline)) {
      const __m256d ab = _mm256_hadd_pd(a, b), cd = _mm256_hadd_pd(c, d);  // a0+1, b0+1, a2+3, b2+3
      return _mm256_add_pd(_mm256_permute2f128_pd(ab, cd, 0x20), _mm256_permute2f128_pd(ab, cd, 0x31));
    };
    _mm256_storeu_pd(out, _mm256_add_pd(fours(s[0].low, s[1].low, s[2].low, s[3].low),
                                        fours(s[0].high, s[1].high, s[2].high, s[3].high)));
  }
};

VB_INLINE Avx2Lanes Avx2F32::to_lanes(Sum s) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(s)), _mm256_cvtps_pd(_mm256_extractf128_ps(s, 1))};
}

VB_INLINE void transposed8(const float* in, __m256 (&s)[8]) {
  __m256 r[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_load_ps(in + 8 * i);
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    s[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    s[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
}

// in[8 rows][8] -> out[8 columns], `step` elements apart. Later columns may overwrite the tail of earlier ones.
VB_INLINE void transpose8(const float* in, float* out, int64_t step) {
  __m256 columns[8];
  transposed8(in, columns);
  for (int i = 0; i < 8; ++i) _mm256_storeu_ps(out + i * step, columns[i]);
}

// The same of in[16 rows][8].
VB_INLINE void transpose16(const float* in, float* out, int64_t step) {
  __m256 upper[8], lower[8];
  transposed8(in, upper);
  transposed8(in + 64, lower);
  for (int i = 0; i < 8; ++i) {
    _mm256_storeu_ps(out + i * step, upper[i]);
    _mm256_storeu_ps(out + i * step + 8, lower[i]);
  }
}

// Vectors of bytes, for packed bits: tables of 16 bytes are looked up by bytes below 16.
struct Avx2Bytes {
  using Reg = __m256i;
  static constexpr int width = 32;
  static constexpr int height = 2, panels = 4;  // of a tile: eight sums, two tables and what was looked up
  static VB_INLINE Reg load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static VB_INLINE void store(uint8_t* p, Reg a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static VB_INLINE Reg fill(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static VB_INLINE Reg table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static VB_INLINE Reg look_up(Reg table, Reg codes) { return _mm256_shuffle_epi8(table, codes); }
  static VB_INLINE Reg add8(Reg a, Reg b) { return _mm256_add_epi8(a, b); }
  static VB_INLINE Reg add_up_to_255(Reg a, Reg b) { return _mm256_adds_epu8(a, b); }
  static VB_INLINE Reg min(Reg a, Reg b) { return _mm256_min_epu8(a, b); }
  static VB_INLINE uint64_t at_most(Reg a, Reg b) {  // a bit for each byte
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(a, b), a)));
  }
  static VB_INLINE uint8_t least(Reg a) {
    const __m128i half = _mm_min_epu8(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i words = _mm_min_epu8(half, _mm_srli_epi16(half, 8));  // of each, the low byte is the less of two
    return static_cast<uint8_t>(_mm_extract_epi16(_mm_minpos_epu16(_mm_and_si128(words, _mm_set1_epi16(0xFF))), 0));
  }
  static VB_INLINE Reg low8(Reg a) { return _mm256_and_si256(a, _mm256_set1_epi16(0xFF)); }
  static VB_INLINE Reg high8(Reg a) { return _mm256_srli_epi16(a, 8); }
  static VB_INLINE Reg add16(Reg a, Reg b) { return _mm256_add_epi16(a, b); }
  static VB_INLINE Reg low16(Reg a) { return _mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)); }
  static VB_INLINE Reg high16(Reg a) { return _mm256_srli_epi32(a, 16); }
  static VB_INLINE void add32(int32_t* p, Reg a, int shift) {
    const __m256i before = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i more = _mm256_sll_epi32(a, _mm_cvtsi32_si128(shift));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_add_epi32(before, more));
  }
  static VB_INLINE bool any_at_most(const int32_t* p, int count, int32_t limit) {
    __m256i least = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    for (int i = 8; i < count; i += 8)
      least = _mm256_min_epi32(least, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i)));
    return _mm256_movemask_epi8(_mm256_cmpgt_epi32(least, _mm256_set1_epi32(limit))) != -1;
  }
  // The nibbles of bytes [byte, byte + some) of 32 rows: position i of row r goes to out[i * width + r]. At most
  // `positions` of them; `some` is at most 16.
  static VB_INLINE void nibbles(const uint8_t* const* rows, int64_t byte, int64_t some, uint8_t* out,
                                int64_t positions) {
    nibbles_of(rows, byte, some, out, positions, width);
  }
  static VB_INLINE void nibbles_of(const uint8_t* const* rows, int64_t byte, int64_t some, uint8_t* out,
                                   int64_t positions, int64_t step) {
    __m256i a[16], b[16];  // of 16 rows in each half
    for (int i = 0; i < 16; ++i)
      a[i] = _mm256_set_m128i(first_bytes(rows[i + 16] + byte, some), first_bytes(rows[i] + byte, some));
    // Each round turns the number of a byte, its row's four bits and its own four, by one bit; four rounds transpose.
    const auto round = [](const __m256i(&from)[16], __m256i(&to)[16]) __attribute__((always_inline)) {
      for (int i = 0; i < 8; ++i) {
        to[2 * i] = _mm256_unpacklo_epi8(from[i], from[i + 8]);
        to[2 * i + 1] = _mm256_unpackhi_epi8(from[i], from[i + 8]);
      }
    };
    round(a, b);
    round(b, a);
    round(a, b);
    round(b, a);
    const Reg low = fill(15);
    for (int i = 0; i < 16; ++i) {
      if (2 * i < positions && i < some) store(out + 2 * i * step, _mm256_and_si256(a[i], low));
      if (2 * i + 1 < positions && i < some)
        store(out + (2 * i + 1) * step, _mm256_and_si256(_mm256_srli_epi16(a[i], 4), low));
    }
  }
  static VB_INLINE __m128i first_bytes(const uint8_t* p, int64_t some) {
    if (some == 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (some == 8) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    alignas(16) uint8_t bytes[16] = {};
    for (int64_t i = 0; i < some; ++i) bytes[i] = p[i];
    return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
  }
};

// Vectors of 64-bit words, for counts of bits that differ: a lane is a row.
struct Avx2Words {
  using Reg = __m256i;
  static constexpr int width = 4;
  static constexpr int height = 2, panels = 2;  // of a tile: four sums, two rows or queries, constants
  static constexpr int halves = 1;              // with two, reading rows takes as much longer as counting saves
  static constexpr int64_t chunk = 31;          // words whose counts, up to 8 a byte, are added in bytes
  static constexpr int64_t most_queries = 12;   // more: tables take less time
  static constexpr bool scalar_row = true;      // counts of one query: word by word, rows of some words take less time
  static VB_INLINE Reg load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static VB_INLINE void store(uint8_t* p, Reg a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static VB_INLINE Reg fill(uint64_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
  static VB_INLINE Reg both(Reg a, Reg b) { return _mm256_and_si256(a, b); }
  static VB_INLINE Reg lower(Reg a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
  static VB_INLINE Reg upper(Reg a) { return lower(_mm256_srli_epi16(a, 4)); }
  static VB_INLINE Reg add_count(Reg sum, Reg a, Reg b) {  // how many bits of each byte differ
    const Reg counts = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const Reg differ = _mm256_xor_si256(a, b);
    const Reg low = _mm256_shuffle_epi8(counts, lower(differ)), high = _mm256_shuffle_epi8(counts, upper(differ));
    return _mm256_add_epi8(sum, _mm256_add_epi8(low, high));
  }
  static VB_INLINE Reg add(Reg a, Reg b) { return _mm256_add_epi64(a, b); }
  static VB_INLINE Reg total(Reg counts) { return _mm256_sad_epu8(counts, _mm256_setzero_si256()); }
  static VB_INLINE Reg min(Reg a, Reg b) { return _mm256_min_epi32(a, b); }  // of sums, which fit in 31 bits
  static VB_INLINE bool any_at_most(Reg a, int32_t limit) {
    return _mm256_movemask_epi8(_mm256_cmpgt_epi64(a, _mm256_set1_epi64x(limit))) != -1;
  }
  static VB_INLINE void store_sums(int32_t* p, Reg a) {
    const Reg sums = _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(sums));
  }
  // Four words of each row: [word][row].
  static VB_INLINE void transpose4(const uint8_t* const* rows, int64_t byte, Reg (&out)[4]) {
    const Reg a = load(rows[0] + byte), b = load(rows[1] + byte), c = load(rows[2] + byte), d = load(rows[3] + byte);
    const Reg ab0 = _mm256_unpacklo_epi64(a, b), ab1 = _mm256_unpackhi_epi64(a, b);  // words 0 and 2, 1 and 3
    const Reg cd0 = _mm256_unpacklo_epi64(c, d), cd1 = _mm256_unpackhi_epi64(c, d);
    out[0] = _mm256_permute2x128_si256(ab0, cd0, 0x20);
    out[1] = _mm256_permute2x128_si256(ab1, cd1, 0x20);
    out[2] = _mm256_permute2x128_si256(ab0, cd0, 0x31);
    out[3] = _mm256_permute2x128_si256(ab1, cd1, 0x31);
  }
};

struct Avx2 {
  using F32 = Avx2F32;
  using F64 = Avx2F64;
  using Int16 = Avx2Int16;
  using Int8 = Avx2Int8;
  using Lanes = Avx2Lanes;
  using BFloat16Pairs = void;
  using Bytes = Avx2Bytes;
  using Words = Avx2Words;
  using UnitWords = void;
  static constexpr bool fused = true;
  // Twelve accumulators, two bank vectors and a broadcast: fifteen of sixteen registers.
  static constexpr int full = 6, full_panels = 1;
  static constexpr int mid = 3, mid_panels = 2;
  static constexpr int one_panels = 4;
  static constexpr int full_f64 = 3;
  static VB_INLINE uint64_t load_word(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    asm("" : "+r"(word));  // gcc would load several words into a vector, and take them out of it again
    return word;
  }
  static VB_INLINE int64_t popcount(uint64_t x) { return __builtin_popcountll(x); }
  static VB_INLINE uint64_t bits_of_bools(const unsigned char* bools) {  // of 64, the first the lowest
    uint64_t bits = 0;
    for (int half = 0; half < 2; ++half) {
      const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bools + 32 * half));
      const __m256i none = _mm256_cmpeq_epi8(some, _mm256_setzero_si256());
      bits |= static_cast<uint64_t>(~static_cast<uint32_t>(_mm256_movemask_epi8(none))) << (32 * half);
    }
    return bits;
  }
};

struct Avx2Vnni : Avx2 {
  using Int16 = Avx2VnniInt16;
  using Int8 = Avx2VnniInt8;
};

}  // namespace
}  // namespace vecbank::cpu
