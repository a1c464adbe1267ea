// The int16 screen's loops, which convert a tile of 16-bit products to float32, and rows to 16-bit codes.
#pragma once

#include "../../mainloop.inl.h"
#include "int16.h"
#include "magnitude.inl.h"

namespace vecbank::cpu {
namespace {

// The upper bounds of a tile. `V`: float32 vectors; `Int16`: sums of products of pairs, in vectors of the same width.
template <class V, class Int16, int Height, int PanelCount, class Epilogue>
VB_INLINE void bound_tiles(const int16::Tiles& t, Epilogue&& epilogue) {
  const int64_t pairs = int16::pairs_of(t.width);
  for_each_tile<Int16, Height, PanelCount, false>(
      t, 0, pairs, [&](const auto& sums, int64_t row, int64_t panel, int valid) __attribute__((always_inline)) {
        Tile<V, Height, PanelCount> upper;
        unroll<PanelCount>([&](auto p) __attribute__((always_inline)) {
          const int64_t there = panel + (p.value < valid ? p.value : valid - 1);
          const float* lines = reinterpret_cast<const float*>(t.panels + there * t.panel_stride + pairs * kPanel);
          unroll<upper.per_panel>([&](auto w) __attribute__((always_inline)) {
            constexpr int v = p.value * upper.per_panel + w.value;
            const auto step = V::load(lines + w.value * V::width);
            const auto margin = V::load(lines + kPanel + w.value * V::width);
            const auto start = V::load(lines + 2 * kPanel + w.value * V::width);
            unroll<Height>([&](auto r) __attribute__((always_inline)) {
              const auto product = V::multiply_add(Int16::to_float(sums.acc[r.value][v]), step, margin);
              upper.acc[r.value][v] = V::multiply_add(start, V::fill(t.units[row + r.value]), product);
            });
          });
        });
        epilogue(upper, row, panel, valid);
      });
}

// Lines [width][lanes] of float32, times a scale per lane, rounded: [ceil(width / 2)][lanes] pairs. Lanes ascend, so
// what a vector spills past a line is overwritten by the next one.
template <class V, class Int16>
VB_INLINE void quantize_lines(const float* lines, int lanes, int64_t width, const float* scales, int32_t* out) {
  const auto zero = V::fill(0);
  const auto scaled = [&](int64_t k, int at) __attribute__((always_inline)) {
    return V::multiply_add(V::load(lines + k * lanes + at), V::load(scales + at), zero);
  };
  for (int64_t k = 0; k < width; k += 2)
    for (int at = 0; at < lanes; at += V::width)
      Int16::store(out + k / 2 * lanes + at, Int16::pair(scaled(k, at), k + 1 < width ? scaled(k + 1, at) : zero));
}

template <class V, class Int16>
void quantize_queries(const float* lines, int group, int64_t width, float* units, int32_t* out) {
  alignas(64) float largest[kPanel], scales[kPanel] = {};
  for (int at = 0; at < group; at += V::width) V::store(largest + at, largest_magnitude<V>(lines + at, group, width));
  for (int r = 0; r < group; ++r) {
    const float allowed = static_cast<float>(int16::kBankTarget) / largest[r];
    scales[r] = units[r] = allowed < units[r] ? allowed : units[r];
  }
  quantize_lines<V, Int16>(lines, group, width, scales, out);
}

template <class V, class Int16>
void quantize_panels(const float* panels, int64_t count, int64_t width, const int16::Bound& bound, int32_t* out) {
  for (int64_t p = 0; p < count; ++p, panels += (width + 3) * kPanel, out += int16::panel_stride(width)) {
    const float *bounds = panels + (width + 1) * kPanel, *start = bounds + kPanel;
    float* lines = reinterpret_cast<float*>(out + int16::pairs_of(width) * kPanel);
    alignas(64) float scales[kPanel];
    for (int c = 0; c < kPanel; ++c) {
      const float step = bound.step(bounds[c]);
      scales[c] = 1.0f / step;
      lines[c] = step;
      lines[kPanel + c] = bound.margin(bounds[c]);
      lines[2 * kPanel + c] = start[c];
    }
    quantize_lines<V, Int16>(panels + kPanel, kPanel, width, scales, out);
  }
}

}  // namespace
}  // namespace vecbank::cpu
