// The AVX-512 vocabulary. Row conversion and transposition are those of AVX2, since they take little of the time.
#pragma once

// gcc 11-13 warn about the deliberately undefined operand inside their own AVX-512 headers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#include "simd_avx2.h"

namespace vecbank::cpu {
namespace {

struct Avx512Lanes {
  static constexpr int banks = 4;  // bank rows that are scored together, for four queries: sixteen sums
  __m512d v;
  static VB_INLINE Avx512Lanes fill(double x) { return {_mm512_set1_pd(x)}; }
  static VB_INLINE Avx512Lanes load(const double* p) { return {_mm512_loadu_pd(p)}; }
  template <class S>
  static VB_INLINE Avx512Lanes load(const S* p) {
    return {_mm512_cvtps_pd(load8_f32(p))};
  }
  static VB_INLINE Avx512Lanes load_first(const float* p, int64_t count) {
    return {_mm512_cvtps_pd(load_first_f32(p, count))};
  }
  static VB_INLINE Avx512Lanes load_first(const double* p, int64_t count) {
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p)};
  }
  VB_INLINE void store(double* p) const { _mm512_storeu_pd(p, v); }
  VB_INLINE void store(float* p) const { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
  friend VB_INLINE Avx512Lanes operator+(Avx512Lanes a, Avx512Lanes b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend VB_INLINE Avx512Lanes operator-(Avx512Lanes a, Avx512Lanes b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend VB_INLINE Avx512Lanes operator*(Avx512Lanes a, Avx512Lanes b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend VB_INLINE Avx512Lanes operator/(Avx512Lanes a, Avx512Lanes b) { return {_mm512_div_pd(a.v, b.v)}; }
  // sum + a * b, where the product is exact: whether it is fused does not matter.
  static VB_INLINE Avx512Lanes plus_exact(Avx512Lanes sum, Avx512Lanes a, Avx512Lanes b) {
    return {_mm512_fmadd_pd(a.v, b.v, sum.v)};
  }
  static VB_INLINE Avx512Lanes if_greater(Avx512Lanes a, Avx512Lanes b, Avx512Lanes x, Avx512Lanes y) {
    return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ), y.v, x.v)};
  }
  VB_INLINE double largest() const { return _mm512_reduce_max_pd(v); }
  VB_INLINE Avx512Lanes root() const { return {_mm512_sqrt_pd(v)}; }
  VB_INLINE Avx512Lanes abs() const { return {_mm512_abs_pd(v)}; }
  VB_INLINE double sum() const { return sum_tree(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1)); }
  // The sums of four at once, each in the order of sum().
  static VB_INLINE void sum4(const Avx512Lanes (&s)[4], double* out) {
    const auto pairs = [](__m512d a, __m512d b) __attribute__((always_inline)) {  // a0+1, b0+1, a2+3, b2+3, ...
      return _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    };
    const __m512d u = pairs(s[0].v, s[1].v), w = pairs(s[2].v, s[3].v);
    const __m512d fours = _mm512_add_pd(_mm512_shuffle_f64x2(u, w, 0x88), _mm512_shuffle_f64x2(u, w, 0xDD));
    const __m512d apart = _mm512_shuffle_f64x2(fours, fours, 0xD8);  // the lower fours, then the upper ones
    _mm256_storeu_pd(out, _mm256_add_pd(_mm512_castpd512_pd256(apart), _mm512_extractf64x4_pd(apart, 1)));
  }
};

struct Avx512F32 {
  using T = float;
  using Reg = __m512;
  static constexpr int width = 16, lines = 1;
  using Sum = Reg;
  static VB_INLINE Reg load(const T* p) { return _mm512_loadu_ps(p); }
  static VB_INLINE Reg load(const Float16* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static VB_INLINE Reg load(const BFloat16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  // The first `count` elements, of which only these exist, and zeros.
  static VB_INLINE Reg load_first(const T* p, int64_t count) { return _mm512_maskz_loadu_ps((1u << count) - 1, p); }
  static VB_INLINE Reg load_first(const Float16* p, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << count) - 1, p));
  }
  static VB_INLINE Reg load_first(const BFloat16* p, int64_t count) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((1u << count) - 1, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static VB_INLINE Reg fill(T x) { return _mm512_set1_ps(x); }
  static VB_INLINE Sum zero() { return _mm512_setzero_ps(); }
  using Lanes = Avx512Lanes;
  static VB_INLINE Lanes to_lanes(Sum s) {
    return {_mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(s)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(s, 1)))};
  }
  static VB_INLINE void store(T* p, Reg a) { _mm512_storeu_ps(p, a); }
  static VB_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static VB_INLINE Reg subtract(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static VB_INLINE Reg multiply(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  // 2^n, where the low bits of a hold the whole number n, -127 to 127; 0 for -127.
  static VB_INLINE Reg exponent(Reg a) {
    const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(a), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_castps_si512(fill(1.0f))));
  }
  static VB_INLINE Reg max0(Reg a) { return _mm512_max_ps(_mm512_setzero_ps(), a); }
  static VB_INLINE Reg root(Reg a) { return _mm512_sqrt_ps(a); }
  static VB_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static VB_INLINE Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static VB_INLINE T largest(Reg a) { return _mm512_reduce_max_ps(a); }
  static VB_INLINE Reg if_greater(Reg a, Reg b, Reg x, Reg y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
  }
  static VB_INLINE uint32_t not_less(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
  struct Gate {
    uint32_t hit = 0;
    VB_INLINE void add(Reg a, Reg b) { hit |= not_less(a, b); }
    VB_INLINE bool any() const { return hit != 0; }
  };
};

// AVX512-BF16 multiplies pairs and adds both products to the sum in one instruction.
struct Avx512BFloat16Pairs {
  static constexpr int width = 32;
  using Reg = __m512i;
  using Sum = __m512;
  static VB_INLINE Reg load(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static VB_INLINE Reg load_first(const BFloat16* p, int64_t count) {
    return _mm512_maskz_loadu_epi16((1u << count) - 1, p);
  }
  static VB_INLINE Sum zero() { return _mm512_setzero_ps(); }
  static VB_INLINE Sum multiply_add(Reg a, Reg b, Sum c) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
  using Lanes = Avx512Lanes;
  static VB_INLINE Lanes to_lanes(Sum s) { return Avx512F32::to_lanes(s); }
};

// The same with the bits of two values in every float of a tile.
struct Avx512BFloat16Tile : Avx512F32 {
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {
    return Avx512BFloat16Pairs::multiply_add(_mm512_castps_si512(a), _mm512_castps_si512(b), c);
  }
};

struct Avx512Int32 {
  using T = int32_t;
  using Reg = __m512i;
  static constexpr int width = 16;
  static VB_INLINE Reg load(const T* p) { return _mm512_loadu_si512(p); }
  static VB_INLINE Reg fill(T x) { return _mm512_set1_epi32(x); }
  static VB_INLINE void store(T* p, Reg a) { _mm512_storeu_si512(p, a); }
  static VB_INLINE __m512 to_float(Reg a) { return _mm512_cvtepi32_ps(a); }
};

struct Avx512Int16 : Avx512Int32 {
  static constexpr int lines = 1;
  static constexpr int panels = 1;
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {  // asm for the reason given in simd_avx2.h
    Reg product;
    asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+v"(c), "=&v"(product) : "v"(a), "v"(b));
    return c;
  }
  static VB_INLINE Reg pair(__m512 even, __m512 odd) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_cvtps_epi32(even),
                                   _mm512_slli_epi32(_mm512_cvtps_epi32(odd), 16));
  }
};

// VNNI multiplies pairs and adds them to the sum in one instruction.
struct Avx512VnniInt16 : Avx512Int16 {
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {
    asm("vpdpwssd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
};

struct Avx512Int8 : Avx512Int32 {
  static constexpr int lines = 2;
  static constexpr int32_t bank_code = Avx2Int8::bank_code, product_limit = Avx2Int8::product_limit;
  static constexpr int64_t least_rows = Avx2Int8::least_rows;
  static VB_INLINE Reg multiply_add_pair(Reg a, const T* b, Reg c, const T* d, Reg sum) {
    Reg first, second;  // asm for the reason given in simd_avx2.h
    asm("vpmaddubsw %5, %3, %1\n\tvpmaddubsw %6, %4, %2\n\tvpaddw %2, %1, %1\n\t"
        "vpmaddwd %7, %1, %1\n\tvpaddd %1, %0, %0"
        : "+v"(sum), "=&v"(first), "=&v"(second)
        : "v"(a), "v"(c), "m"(*reinterpret_cast<const __m512i_u*>(b)), "m"(*reinterpret_cast<const __m512i_u*>(d)),
          "v"(_mm512_set1_epi16(1)));
    return sum;
  }
  static VB_INLINE Reg whole(__m512 a) { return _mm512_cvtps_epi32(a); }
  static VB_INLINE Reg four(__m512 a, __m512 b, __m512 c, __m512 d, int32_t offset) {
    const auto code = [&](__m512 x) __attribute__((always_inline)) {
      return _mm512_and_si512(_mm512_add_epi32(whole(x), fill(offset)), fill(0xFF));
    };
    return _mm512_or_si512(_mm512_or_si512(code(a), _mm512_slli_epi32(code(b), 8)),
                           _mm512_or_si512(_mm512_slli_epi32(code(c), 16), _mm512_slli_epi32(code(d), 24)));
  }
  static VB_INLINE Reg lower_half(Reg a) { return _mm512_and_si512(a, fill(0xFFFF)); }
  static VB_INLINE Reg upper_half(Reg a) { return _mm512_srai_epi32(a, 16); }
  static VB_INLINE Reg less_times(Reg a, Reg b, int32_t times) {
    return _mm512_sub_epi32(a, _mm512_mullo_epi32(b, fill(times)));
  }
  static VB_INLINE Reg add_pairs(Reg sum, const int16_t* a, const int8_t* b) {
    const Reg wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(wide, _mm512_loadu_si512(a)));
  }
};

// VNNI multiplies four codes with four and adds them to the sum in one instruction, which does not saturate.
struct Avx512VnniInt8 : Avx512Int8 {
  static constexpr int lines = 1;
  static constexpr int32_t bank_code = 127, product_limit = 1 << 30;
  static constexpr int64_t least_rows = 0;
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) {
    asm("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
};

struct Avx512F64 {
  using T = double;
  using Reg = __m512d;
  static constexpr int width = 8, lines = 1;
  static VB_INLINE Reg load(const T* p) { return _mm512_loadu_pd(p); }
  static VB_INLINE Reg fill(T x) { return _mm512_set1_pd(x); }
  static VB_INLINE void store(T* p, Reg a) { _mm512_storeu_pd(p, a); }
  static VB_INLINE Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static VB_INLINE Reg max0(Reg a) { return _mm512_max_pd(_mm512_setzero_pd(), a); }
  static VB_INLINE Reg root(Reg a) { return _mm512_sqrt_pd(a); }
};

struct Avx512Bytes {
  using Reg = __m512i;
  static constexpr int width = 64;
  static constexpr int height = 4, panels = 4;  // of a tile: sixteen sums, four tables and what was looked up
  static VB_INLINE Reg load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static VB_INLINE void store(uint8_t* p, Reg a) { _mm512_storeu_si512(p, a); }
  static VB_INLINE Reg fill(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static VB_INLINE Reg table(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static VB_INLINE Reg look_up(Reg table, Reg codes) { return _mm512_shuffle_epi8(table, codes); }
  static VB_INLINE Reg add8(Reg a, Reg b) { return _mm512_add_epi8(a, b); }
  static VB_INLINE Reg add_up_to_255(Reg a, Reg b) { return _mm512_adds_epu8(a, b); }
  static VB_INLINE Reg min(Reg a, Reg b) { return _mm512_min_epu8(a, b); }
  static VB_INLINE uint64_t at_most(Reg a, Reg b) { return _mm512_cmple_epu8_mask(a, b); }
  static VB_INLINE uint8_t least(Reg a) {
    return Avx2Bytes::least(_mm256_min_epu8(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1)));
  }
  static VB_INLINE Reg low8(Reg a) { return _mm512_and_si512(a, _mm512_set1_epi16(0xFF)); }
  static VB_INLINE Reg high8(Reg a) { return _mm512_srli_epi16(a, 8); }
  static VB_INLINE Reg add16(Reg a, Reg b) { return _mm512_add_epi16(a, b); }
  static VB_INLINE Reg low16(Reg a) { return _mm512_and_si512(a, _mm512_set1_epi32(0xFFFF)); }
  static VB_INLINE Reg high16(Reg a) { return _mm512_srli_epi32(a, 16); }
  static VB_INLINE void add32(int32_t* p, Reg a, int shift) {
    _mm512_storeu_si512(p, _mm512_add_epi32(_mm512_loadu_si512(p), _mm512_sll_epi32(a, _mm_cvtsi32_si128(shift))));
  }
  static VB_INLINE bool any_at_most(const int32_t* p, int count, int32_t limit) {
    Reg least = _mm512_loadu_si512(p);
    for (int i = 16; i < count; i += 16) least = _mm512_min_epi32(least, _mm512_loadu_si512(p + i));
    return _mm512_cmple_epi32_mask(least, _mm512_set1_epi32(limit)) != 0;
  }
  static VB_INLINE void nibbles(const uint8_t* const* rows, int64_t byte, int64_t some, uint8_t* out,
                                int64_t positions) {
    Avx2Bytes::nibbles_of(rows, byte, some, out, positions, width);
  }
};

struct Avx512Words {
  using Reg = __m512i;
  static constexpr int width = 8;
  static constexpr int height = 4, panels = 2;  // of a tile: eight sums, and what is looked up
  static constexpr int halves = 2;
  static constexpr int64_t chunk = 63;  // words of nibbles, whose counts are up to 4
  static constexpr int64_t most_queries = 12;
  static constexpr bool scalar_row = false;
  static VB_INLINE Reg load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static VB_INLINE void store(uint8_t* p, Reg a) { _mm512_storeu_si512(p, a); }
  static VB_INLINE Reg fill(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
  static VB_INLINE Reg both(Reg a, Reg b) { return _mm512_and_si512(a, b); }
  static VB_INLINE Reg lower(Reg a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
  static VB_INLINE Reg upper(Reg a) { return lower(_mm512_srli_epi16(a, 4)); }
  static VB_INLINE Reg add_count(Reg sum, Reg a, Reg b) {
    const Reg counts = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    return _mm512_add_epi8(sum, _mm512_shuffle_epi8(counts, _mm512_xor_si512(a, b)));
  }
  static VB_INLINE Reg add(Reg a, Reg b) { return _mm512_add_epi64(a, b); }
  static VB_INLINE Reg total(Reg counts) { return _mm512_sad_epu8(counts, _mm512_setzero_si512()); }
  static VB_INLINE Reg min(Reg a, Reg b) { return _mm512_min_epi32(a, b); }
  static VB_INLINE bool any_at_most(Reg a, int32_t limit) {
    return _mm512_cmple_epi64_mask(a, _mm512_set1_epi64(limit)) != 0;
  }
  static VB_INLINE void store_sums(int32_t* p, Reg a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi64_epi32(a));
  }
  static VB_INLINE void transpose4(const uint8_t* const* rows, int64_t byte, Reg (&out)[4]) {
    Reg pair[4];  // rows i and i + 4
    for (int i = 0; i < 4; ++i)
      pair[i] = _mm512_inserti64x4(_mm512_castsi256_si512(Avx2Words::load(rows[i] + byte)),
                                   Avx2Words::load(rows[i + 4] + byte), 1);
    const Reg ab0 = _mm512_unpacklo_epi64(pair[0], pair[1]), ab1 = _mm512_unpackhi_epi64(pair[0], pair[1]);
    const Reg cd0 = _mm512_unpacklo_epi64(pair[2], pair[3]), cd1 = _mm512_unpackhi_epi64(pair[2], pair[3]);
    const Reg even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    out[0] = _mm512_permutex2var_epi64(ab0, even, cd0);
    out[1] = _mm512_permutex2var_epi64(ab1, even, cd1);
    out[2] = _mm512_permutex2var_epi64(ab0, odd, cd0);
    out[3] = _mm512_permutex2var_epi64(ab1, odd, cd1);
  }
};

// AVX512-VPOPCNTDQ counts the bits of a word in one instruction.
struct Avx512UnitWords : Avx512Words {
  static constexpr int panels = 4;  // sixteen sums
  static constexpr int halves = 1;
  static constexpr int64_t chunk = INT64_MAX;
  static VB_INLINE Reg add_count(Reg sum, Reg a, Reg b) {
    Reg count;
    asm("vpopcntq %1, %0" : "=v"(count) : "v"(_mm512_xor_si512(a, b)));
    return _mm512_add_epi64(sum, count);
  }
  static VB_INLINE Reg total(Reg counts) { return counts; }
};

struct Avx512 {
  using F32 = Avx512F32;
  using F64 = Avx512F64;
  using Int16 = Avx512Int16;
  using Int8 = Avx512Int8;
  using Lanes = Avx512Lanes;
  using BFloat16Pairs = void;
  using Bytes = Avx512Bytes;
  using Words = Avx512Words;
  using UnitWords = void;
  static constexpr bool fused = true;
  // Twenty-eight accumulators, two bank vectors and a broadcast: thirty-one of thirty-two registers.
  static constexpr int full = 14, full_panels = 2;
  static constexpr int mid = 4, mid_panels = 4;
  static constexpr int one_panels = 4;
  static constexpr int full_f64 = 14;
  static VB_INLINE uint64_t load_word(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, sizeof word);
    asm("" : "+r"(word));  // gcc would load several words into a vector, and take them out of it again
    return word;
  }
  static VB_INLINE int64_t popcount(uint64_t x) { return __builtin_popcountll(x); }
  static VB_INLINE uint64_t bits_of_bools(const unsigned char* bools) {  // of 64, the first the lowest
    const __m512i all = _mm512_loadu_si512(bools);
    return _mm512_test_epi8_mask(all, all);
  }
};

struct Avx512Vnni : Avx512 {
  using UnitWords = Avx512UnitWords;
  using BFloat16Pairs = Avx512BFloat16Pairs;
  using BFloat16Tile = Avx512BFloat16Tile;
  using Int16 = Avx512VnniInt16;
  using Int8 = Avx512VnniInt8;
};

}  // namespace
}  // namespace vecbank::cpu
