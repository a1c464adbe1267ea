// A screen's scores: a float32 tile as it is multiplied, or a tile of 16 bit products made float32. And how rows become
// 16 bit codes. The arithmetic is proved in core/bounds.h.
#pragma once

#include "../core/bounds.h"
#include "mainloop.inl.h"

namespace vecbank::cpu {
namespace {

// epilogue(tile of float32 upper bounds, row, panel, valid panels)
template <class Isa, int Height, int PanelCount, class Epilogue>
VB_INLINE void screen_tiles(const TileArgs<float>& t, Epilogue&& epilogue) {
  for_each_tile<typename Isa::F32, Height, PanelCount, false>(
      t, t.width + 2, 1, t.width + 1, epilogue);  // the bound line rides along as one more coordinate
}

template <class Isa, int Height, int PanelCount, class Epilogue>
VB_INLINE void screen_tiles(const FixedTiles& t, Epilogue&& epilogue) {
  static_assert(PanelCount == 1);
  using V = typename Isa::F32;
  using Fixed = typename Isa::Fixed;
  const int64_t pairs = fixed_pairs(t.width);
  for_each_tile<Fixed, Height, 1, false>(
      t, -1, 0, pairs, [&](const auto& sums, int64_t row, int64_t panel, int valid) __attribute__((always_inline)) {
        const float* lines = reinterpret_cast<const float*>(t.panels + panel * t.panel_stride + pairs * kPanel);
        Tile<V, Height, 1> upper;
        unroll<upper.vectors>([&](auto v) __attribute__((always_inline)) {
          const auto step = V::load(lines + v.value * V::width);
          const auto margin = V::load(lines + kPanel + v.value * V::width);
          const auto start = V::load(lines + 2 * kPanel + v.value * V::width);
          unroll<Height>([&](auto r) __attribute__((always_inline)) {
            const auto product = V::multiply_add(Fixed::to_float(sums.acc[r.value][v.value]), step, margin);
            upper.acc[r.value][v.value] = V::multiply_add(start, V::fill(t.units[row + r.value]), product);
          });
        });
        epilogue(upper, row, panel, valid);
      });
}

// Lines [width][lanes] of float32, times a scale per lane, rounded: [ceil(width / 2)][lanes] pairs. Lanes ascend, so
// what a vector spills past a line is overwritten by the next one.
template <class Isa>
VB_INLINE void fix_lines(const float* lines, int lanes, int64_t width, const float* scales, int32_t* out) {
  using V = typename Isa::F32;
  const auto zero = V::fill(0);
  const auto scaled = [&](int64_t k, int at) __attribute__((always_inline)) {
    return V::multiply_add(V::load(lines + k * lanes + at), V::load(scales + at), zero);
  };
  for (int64_t k = 0; k < width; k += 2)
    for (int at = 0; at < lanes; at += V::width)
      Isa::Fixed::store(out + k / 2 * lanes + at,
                        Isa::Fixed::pair(scaled(k, at), k + 1 < width ? scaled(k + 1, at) : zero));
}

template <class Isa>
void fix_rows(const float* lines, int group, int64_t width, float* units, int32_t* out) {
  using V = typename Isa::F32;
  static_assert(Isa::full <= V::width);
  auto most = V::fill(0);
  const auto zero = most, minus = V::fill(-1);
  for (int64_t k = 0; k < width; ++k) {
    const auto x = V::load(lines + k * group);
    most = V::max(most, V::max(x, V::multiply_add(x, minus, zero)));
  }
  alignas(64) float largest[V::width], scales[V::width] = {};
  V::store(largest, most);
  for (int r = 0; r < group; ++r) {
    const float allowed = static_cast<float>(kFixedBank) / largest[r];
    scales[r] = units[r] = allowed < units[r] ? allowed : units[r];
  }
  fix_lines<Isa>(lines, group, width, scales, out);
}

template <class Isa>
void fix_panels(const float* panels, int64_t count, int64_t width, const FixedBound& fixed, int32_t* out) {
  for (int64_t p = 0; p < count; ++p, panels += (width + 3) * kPanel, out += fixed_stride(width)) {
    const float *bound = panels + (width + 1) * kPanel, *start = bound + kPanel;
    float* lines = reinterpret_cast<float*>(out + fixed_pairs(width) * kPanel);
    alignas(64) float scales[kPanel];
    for (int c = 0; c < kPanel; ++c) {
      const float step = fixed.step(bound[c]);
      scales[c] = 1.0f / step;
      lines[c] = step;
      lines[kPanel + c] = fixed.margin(bound[c]);
      lines[2 * kPanel + c] = start[c];
    }
    fix_lines<Isa>(panels + kPanel, kPanel, width, scales, out);
  }
}

}  // namespace
}  // namespace vecbank::cpu
