// The int8 screen's loops, which convert a tile of 8-bit products to float32, and rows to 8-bit codes.
#pragma once

#include <type_traits>

#include "../../mainloop.inl.h"
#include "int8.h"
#include "magnitude.inl.h"

namespace vecbank::cpu {
namespace {

template <class V, class Int8, int Height, int PanelCount, class Tiles, class Epilogue>
VB_INLINE void bound_int8_tiles(const Tiles& t, Epilogue&& epilogue) {
  constexpr bool starts = Tiles::has_starts, tails = Tiles::has_tails;
  const int64_t groups = code_groups(t.width), steps = Int8::lines == 2 ? int8::query_groups(t.width) : groups;
  for_each_tile<Int8, Height, PanelCount, false>(
      t, 0, steps, [&](const auto& sums, int64_t row, int64_t panel, int valid) __attribute__((always_inline)) {
        Tile<V, Height, PanelCount> upper;
        unroll<PanelCount>([&](auto p) __attribute__((always_inline)) {
          const int64_t there = panel + (p.value < valid ? p.value : valid - 1);
          const float* lines = reinterpret_cast<const float*>(t.panels + there * t.panel_stride + groups * kPanel);
          unroll<upper.per_panel>([&](auto w) __attribute__((always_inline)) {
            constexpr int v = p.value * upper.per_panel + w.value;
            const auto step = V::load(lines + w.value * V::width);
            const auto start = starts ? V::load(lines + 3 * kPanel + w.value * V::width) : step;
            const auto tail = tails ? V::load(lines + 4 * kPanel + w.value * V::width) : step;
            // Else the compiler would keep a register for each row's number from one panel to the next, and spill sums.
            const float *row_units = t.units + row, *row_tails = t.tails + row;
            asm("" : "+r"(row_units), "+r"(row_tails));
            unroll<Height>([&](auto r) __attribute__((always_inline)) {
              const auto sum = Int8::to_float(sums.acc[r.value][v]);
              auto& bound = upper.acc[r.value][v];
              bound = starts ? V::multiply_add(sum, step, V::multiply(start, V::fill(row_units[r.value])))
                             : V::multiply(sum, step);
              if constexpr (tails) bound = V::multiply_add(tail, V::fill(row_tails[r.value]), bound);
            });
          });
        });
        epilogue(upper, row, panel, valid);
      });
}

// The upper bounds of a tile. `V`: float32 vectors; `Int8`: sums of products of four, in vectors of the same width.
template <class V, class Int8, int Height, int PanelCount, class Tiles, class Epilogue>
  requires std::is_base_of_v<int8::Tiles, Tiles>
VB_INLINE void bound_tiles(const Tiles& t, Epilogue&& epilogue) {
  bound_int8_tiles<V, Int8, Height, PanelCount>(t, epilogue);
}

// Lines [width][lanes] of float32 as codes: [groups][lanes], and the norms of what they code.
template <class V, class Int8>
struct Coder {
  typename V::Reg squares, errors, sum;  // of the codes and of what rounding took away; the sum of the codes

  // A vector of lanes, of lines that are `stride` wide, to lines that are `out_stride` wide.
  VB_INLINE Coder(const float* lines, int64_t stride, int64_t width, typename V::Reg scale, int32_t offset,
                  int32_t* out, int64_t out_stride)
      : squares(V::fill(0)), errors(V::fill(0)), sum(V::fill(0)) {
    const int64_t groups = code_groups(width);
    const auto rounds = V::fill(0x1.8p23f);  // a sum of this size is rounded to a whole number
    for (int64_t g = 0; g < groups; ++g) {
      typename V::Reg code[kCodeGroup];
      for (int64_t i = 0; i < kCodeGroup; ++i) {
        const int64_t k = g * kCodeGroup + i;
        const auto exact = k < width ? V::multiply(V::load(lines + k * stride), scale) : V::fill(0);
        code[i] = V::subtract(V::add(exact, rounds), rounds);
        const auto error = V::subtract(exact, code[i]);
        squares = V::multiply_add(code[i], code[i], squares);
        errors = V::multiply_add(error, error, errors);
        sum = V::add(sum, code[i]);
      }
      Int8::store(out + g * out_stride, Int8::four(code[0], code[1], code[2], code[3], offset));
    }
  }
};

template <class V, class Int8>
void quantize_queries(const float* lines, int64_t stride, int group, int64_t width, int32_t most, double rounding,
                      float* units, int8::QueryNorms* norms, int32_t* out) {
  alignas(64) float scales[kPanel + 16] = {}, squares[kPanel + 16], errors[kPanel + 16];
  for (int at = 0; at < group; at += V::width) V::store(scales + at, largest_magnitude<V>(lines + at, stride, width));
  for (int r = 0; r < group; ++r) {
    const float largest = scales[r];
    if (static_cast<float>(most) < units[r] * largest) units[r] = static_cast<float>(most) / largest;
    scales[r] = units[r];
  }
  // Lanes ascend, so what a vector spills past a line is overwritten by the next one; the first lanes come last.
  const int32_t offset = most + 1;
  for (int at = 0; at < group; at += V::width) {
    const Coder<V, Int8> coded(lines + at, stride, width, V::load(scales + at), offset, out + at, group);
    if (int8::query_groups(width) != code_groups(width))
      Int8::store(out + code_groups(width) * group + at, Int8::fill(0));
    V::store(squares + at, coded.squares);
    V::store(errors + at, coded.errors);
  }
  for (int r = 0; r < group; ++r) {
    const double c = __builtin_sqrt(static_cast<double>(squares[r])) * int8::norm_room(width);
    const double e = __builtin_sqrt(static_cast<double>(errors[r])) * int8::norm_room(width) + rounding * c;
    if (c > static_cast<double>(norms->codes)) norms->codes = above(c);
    if (e > static_cast<double>(norms->errors)) norms->errors = above(e);
  }
}

template <class V, class Int8>
void quantize_panel(const float* coordinates, const float* bound, const float* upper, const int8::Layout& layout,
                    int32_t most, double rounding, int32_t* out) {
  const int64_t width = layout.width;
  int32_t *lines = out + layout.groups * kPanel, *sum = lines + kPanel, *norms = sum + kPanel;
  float *steps = reinterpret_cast<float*>(lines), *starts = layout.has_starts() ? steps + 3 * kPanel : nullptr;
  alignas(64) float largest[kPanel], scales[kPanel], squares[kPanel], errors[kPanel], sums[kPanel];
  for (int at = 0; at < kPanel; at += V::width)
    V::store(largest + at, largest_magnitude<V>(coordinates + at, kPanel, width));
  for (int c = 0; c < kPanel; ++c) {
    const float finest = 0x1p96f;  // no code is larger than `most` with the smaller of the two
    scales[c] = largest[c] * finest > static_cast<float>(most) ? static_cast<float>(most) / largest[c] : finest;
    // A negligible row stands for others that lie much farther from it than its own length.
    if (scales[c] * bound[c] > 1.0f) scales[c] = 1.0f / bound[c];
  }
  for (int at = 0; at < kPanel; at += V::width) {
    const Coder<V, Int8> coded(coordinates + at, kPanel, width, V::load(scales + at), 0, out + at, kPanel);
    V::store(squares + at, coded.squares);
    V::store(errors + at, coded.errors);
    V::store(sums + at, coded.sum);
  }
  for (int c = 0; c < kPanel; ++c) {
    const double r = static_cast<double>(bound[c]) * static_cast<double>(scales[c]) * (1.0 + rounding);
    double error = __builtin_sqrt(static_cast<double>(errors[c])) * int8::norm_room(width);
    const double coded = __builtin_sqrt(static_cast<double>(squares[c])) * int8::norm_room(width);
    const double norm = (coded + error) * (1.0 + rounding) + r;
    error += r + rounding * norm;
    const bool never = upper[c] == -__builtin_inff();
    if (!never && upper[c] < __builtin_inff() && error < int8::kMostError && norm < int8::kMostNorm) {
      steps[c] = 1.0f / scales[c];
      sum[c] = static_cast<int32_t>(sums[c]);
      norms[c] = static_cast<int32_t>(norm + 1.0) << 16 |
                 static_cast<int32_t>(error * static_cast<double>(int8::kErrorUnit) + 1.0);
      if (starts != nullptr)
        starts[c] =
            above(static_cast<double>(upper[c]) + int8::kRounding * __builtin_fabs(static_cast<double>(upper[c])));
    } else {  // its bound is infinite: a positive sum times an infinite step, or a negative one
      steps[c] = __builtin_inff();
      sum[c] = never ? int8::kBlankSum : -int8::kBlankSum;
      norms[c] = 0;
      if (starts != nullptr) starts[c] = 0.0f;
    }
  }
  for (int c = 0; c < kPanel; ++c)
    if (norms[c] == 0)
      for (int64_t g = 0; g < layout.groups; ++g) out[g * kPanel + c] = 0;
}

template <class V>
void rotate(const float* lines, int64_t stride, int64_t width, float* out) {
  for (int64_t k = 0; k < width; ++k) {
    const bool flip = (static_cast<uint64_t>(k + 1) * 0x9E3779B97F4A7C15ull >> 40 & 1) != 0;
    for (int c = 0; c < kPanel; ++c) out[k * kPanel + c] = flip ? -lines[k * stride + c] : lines[k * stride + c];
  }
  int64_t window = 4;
  while (window * 4 <= width && window * 4 <= int8::kWidestWindow) window *= 4;
  if (width < window) return;
  for (int64_t at = 0; at < width; at += window) {
    float* first = out + (at + window <= width ? at : width - window) * kPanel;  // the last window may overlap
    for (int64_t apart = 1; apart < window; apart *= 2) {
      const auto half = V::fill(0.5f);  // every other stage; a stage doubles the squares
      const bool halve = (apart & 0x5555555555555555) != 0;
      for (int64_t k = 0; k < window; ++k) {
        if ((k & apart) != 0) continue;
        for (int c = 0; c < kPanel; c += V::width) {
          float *p = first + k * kPanel + c, *q = p + apart * kPanel;
          const auto a = V::load(p), b = V::load(q);
          V::store(p, halve ? V::multiply(V::add(a, b), half) : V::add(a, b));
          V::store(q, halve ? V::multiply(V::subtract(a, b), half) : V::subtract(a, b));
        }
      }
    }
  }
}

template <class Int8>
int32_t tail_product(const int16_t* query, const int8_t* codes, int64_t count) {
  constexpr int64_t step = 2 * Int8::width;  // divides 32, so two sums need no remainder
  auto even = Int8::fill(0), odd = Int8::fill(0);
  int64_t k = 0;
  for (; k + 2 * step <= count; k += 2 * step) {
    even = Int8::add_pairs(even, query + k, codes + k);
    odd = Int8::add_pairs(odd, query + k + step, codes + k + step);
  }
  for (; k < count; k += step) even = Int8::add_pairs(even, query + k, codes + k);
  alignas(64) int32_t sums[2 * Int8::width];
  Int8::store(sums, even);
  Int8::store(sums + Int8::width, odd);
  int32_t sum = 0;
  for (const int32_t one : sums) sum += one;
  return sum;
}

template <class V, class Int8>
void start_sums(const int32_t* panels, int64_t count, const int8::Layout& layout, int32_t offset,
                int8::QueryNorms norms, int32_t* out) {
  const auto c = V::fill(norms.codes * (1.0f + 0x1p-20f) / int8::kErrorUnit);
  const auto e = V::fill(norms.errors * (1.0f + 0x1p-20f)), one = V::fill(1);  // the sum is rounded either way
  for (int64_t p = 0; p < count; ++p) {
    const int32_t* lines = panels + p * layout.stride() + layout.groups * kPanel;
    for (int at = 0; at < kPanel; at += V::width) {
      const auto both = Int8::load(lines + 2 * kPanel + at);
      const auto margin = V::multiply_add(Int8::to_float(Int8::upper_half(both)), e,
                                          V::multiply_add(Int8::to_float(Int8::lower_half(both)), c, one));
      Int8::store(out + p * kPanel + at,
                  Int8::less_times(Int8::whole(margin), Int8::load(lines + kPanel + at), offset));
    }
  }
}

}  // namespace
}  // namespace vecbank::cpu
