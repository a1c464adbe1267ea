// The loops of attend.h.
#pragma once

#include "attend.h"
#include "mainloop.inl.h"

namespace vecbank::cpu {
namespace {

// Calls f(height, row) for the groups of these rows; the height is a constant.
template <class Isa, class F>
VB_INLINE void for_each_group(int64_t rows, F&& f) {
  int64_t r = 0;
  for (; r + Isa::full <= rows; r += Isa::full) f(Index<Isa::full>{}, r);
  const auto rest = [&](auto height) __attribute__((always_inline)) {
    if constexpr (height.value < Isa::full)
      if (rows - r >= height.value) {
        f(height, r);
        r += height.value;
      }
  };
  rest(Index<8>{});
  rest(Index<4>{});
  rest(Index<2>{});
  rest(Index<1>{});
}

// Steps whose products are summed in registers. Longer sums are made of such runs, so that rounding errors grow with
// the run and the number of runs instead of with the length.
constexpr int64_t kStepsOfRun = 128;

template <class V, int Height, int PanelCount>
VB_INLINE void lane_tile(const LaneProductArgs& s, int64_t row, int64_t panel, int64_t first, int64_t steps) {
  const float *b[PanelCount], *none[PanelCount] = {};
  for (int p = 0; p < PanelCount; ++p) b[p] = s.b + (panel + p) * s.b_stride;
  const float* a = s.a + row * s.steps + first * Height;
  Prefetcher prefetcher{reinterpret_cast<const char*>(a + Height * s.steps), Height * static_cast<int64_t>(sizeof(*a))};
  Tile<V, Height, PanelCount> tile;
  tile.multiply(a, b, none, first, steps, prefetcher);
  const bool begins = s.begins && first == 0;
  unroll<PanelCount>([&](auto p) __attribute__((always_inline)) {
    float* out = s.out + (panel + p.value) * s.out_stride + row * kPanel;
    unroll<Height>([&](auto r) __attribute__((always_inline)) {
      unroll<tile.per_panel>([&](auto w) __attribute__((always_inline)) {
        auto sum = tile.acc[r.value][p.value * tile.per_panel + w.value];
        float* to = out + r.value * kPanel + w.value * V::width;
        V::store(to, begins ? sum : V::add(V::load(to), sum));
      });
    });
  });
}

template <class Isa, int PanelCount>
void lane_tiles(const LaneProductArgs& s, int64_t panel) {
  int64_t first = 0;
  do {  // of no steps the sums are zeros
    const int64_t steps = s.steps - first < kStepsOfRun ? s.steps - first : kStepsOfRun;
    for_each_group<Isa>(s.rows, [&](auto height, int64_t row) __attribute__((always_inline)) {
      lane_tile<typename Isa::F32, height.value, PanelCount>(s, row, panel, first, steps);
    });
    first += kStepsOfRun;
  } while (first < s.steps);
}

template <class Isa>
void lane_product(const LaneProductArgs& s) {
  constexpr int together = Isa::full_panels;
  int64_t panel = 0;
  for (; panel + together <= s.panels; panel += together) lane_tiles<Isa, together>(s, panel);
  for (; panel < s.panels; ++panel) lane_tiles<Isa, 1>(s, panel);
}

template <class V, int Height, int Registers>
VB_INLINE void row_tile(const RowProductArgs& s, int64_t row, int64_t column) {
  typename V::Reg sum[Height][Registers];
  float* out = s.out + row * s.out_stride + column;
  unroll<Height>([&](auto r) __attribute__((always_inline)) {
    unroll<Registers>([&](auto v) __attribute__((always_inline)) { sum[r.value][v.value] = V::fill(0.0f); });
  });
  const float* b = s.b + column;
  for (int64_t panel = 0; panel < s.panels; ++panel) {
    const float* a = s.a + panel * s.a_stride + row * kPanel;
    for (int lane = 0; lane < kPanel; ++lane, ++a, b += s.b_stride) {
      typename V::Reg line[Registers];
      unroll<Registers>([&](auto v)
                            __attribute__((always_inline)) { line[v.value] = V::load(b + v.value * V::width); });
      unroll<Height>([&](auto r) __attribute__((always_inline)) {
        const auto weight = V::fill(a[r.value * kPanel]);
        unroll<Registers>([&](auto v) __attribute__((always_inline)) {
          sum[r.value][v.value] = V::multiply_add(weight, line[v.value], sum[r.value][v.value]);
        });
      });
    }
  }
  unroll<Height>([&](auto r) __attribute__((always_inline)) {
    unroll<Registers>([&](auto v) __attribute__((always_inline)) {
      float* to = out + r.value * s.out_stride + v.value * V::width;
      V::store(to, s.begins ? sum[r.value][v.value] : V::add(V::load(to), sum[r.value][v.value]));
    });
  });
}

template <class Isa>
void row_product(const RowProductArgs& s) {
  using V = typename Isa::F32;
  constexpr int together = 2;
  int64_t column = 0;
  for (; column + together * V::width <= s.columns; column += together * V::width)
    for_each_group<Isa>(s.rows, [&](auto height, int64_t row) __attribute__((always_inline)) {
      row_tile<V, height.value, together>(s, row, column);
    });
  if constexpr (kPanel % (together * V::width) != 0)  // else nothing is left
    for (; column < s.columns; column += V::width)
      for_each_group<Isa>(s.rows, [&](auto height, int64_t row)
                                      __attribute__((always_inline)) { row_tile<V, height.value, 1>(s, row, column); });
}

// 2^x, to within 1.2 units in the last place; 0 below 2^-126; NaN of NaN. x is at most 127.
//
// x is split into the nearest whole number n and a remainder of at most a half. The polynomial is of the least relative
// error (2e-9) over the remainder.
template <class V>
VB_INLINE typename V::Reg power_of_two(typename V::Reg x) {
  using Reg = typename V::Reg;
  const Reg magic = V::fill(0x1.8p23f);  // to add it rounds to a whole number, in the low bits
  x = V::max(V::fill(-127.0f), x);       // NaN stays, as the second operand
  const Reg whole = V::add(x, magic);
  const Reg rest = V::subtract(x, V::subtract(whole, magic));
  Reg power = V::fill(0.000153533605f);
  power = V::multiply_add(power, rest, V::fill(0.0013398875f));
  power = V::multiply_add(power, rest, V::fill(0.00961843692f));
  power = V::multiply_add(power, rest, V::fill(0.0555033237f));
  power = V::multiply_add(power, rest, V::fill(0.240226477f));
  power = V::multiply_add(power, rest, V::fill(0.693147182f));
  power = V::multiply_add(power, rest, V::fill(1.0f));
  return V::multiply(power, V::exponent(whole));
}

template <class V>
VB_INLINE void weigh_lanes(const WeighArgs& s, int64_t panel, int lane) {
  using Reg = typename V::Reg;
  float* const scores = s.scores + panel * s.stride + lane;
  const int64_t at = panel * kPanel + lane;
  const Reg scale = V::load(s.scale + at), before = V::load(s.most + at);
  Reg most = before;
  for (int64_t j = 0; j < s.rows; ++j) {
    const Reg score = V::multiply(V::load(scores + j * kPanel), scale);
    V::store(scores + j * kPanel, score);
    most = V::max(most, score);
  }
  // Of rows that are all excluded the largest is -inf, whose difference from itself is NaN.
  const Reg base = V::if_greater(most, V::fill(-3.4028234e38f), most, V::fill(0.0f));
  const Reg down = power_of_two<V>(V::subtract(before, base));
  Reg total = V::multiply(V::load(s.total + at), down);
  for (int64_t j = 0; j < s.rows; ++j) {
    const Reg weight = power_of_two<V>(V::subtract(V::load(scores + j * kPanel), base));
    V::store(scores + j * kPanel, weight);
    total = V::add(total, weight);
  }
  V::store(s.most + at, most);
  V::store(s.total + at, total);
  constexpr uint32_t all = static_cast<uint32_t>((uint64_t{1} << V::width) - 1);
  if (s.sums == nullptr || V::not_less(down, V::fill(1.0f)) == all) return;
  float* sums = s.sums + panel * s.sums_stride + lane;
  for (int64_t c = 0; c < s.width; ++c, sums += kPanel) V::store(sums, V::multiply(V::load(sums), down));
}

template <class V>
void weigh(const WeighArgs& s) {
  for (int64_t panel = 0; panel < s.panels; ++panel)
    for (int lane = 0; lane < kPanel; lane += V::width) weigh_lanes<V>(s, panel, lane);
}

template <class V>
void weigh_slopes(const SlopeWeightArgs& s) {
  using Reg = typename V::Reg;
  const Reg zero = V::fill(0.0f);
  for (int64_t panel = 0; panel < s.panels; ++panel)
    for (int lane = 0; lane < kPanel; lane += V::width) {
      const int64_t at = panel * kPanel + lane;
      const Reg scale = V::load(s.scale + at), high = V::load(s.high + at);
      const Reg low = V::load(s.low + at), along = V::load(s.along + at);
      float* score = s.scores + panel * s.stride + lane;
      float* slope = s.slopes == nullptr ? nullptr : s.slopes + panel * s.stride + lane;
      for (int64_t j = 0; j < s.rows; ++j, score += kPanel) {
        // Rounded as weigh() has it, so that a weight of 1 is one here too. It is no more, but for rounding.
        const Reg scaled = V::multiply(V::load(score), scale);
        const Reg exponent = V::subtract(V::subtract(scaled, high), low);
        const Reg weight = power_of_two<V>(V::if_greater(exponent, zero, zero, exponent));
        if (slope == nullptr) {
          V::store(score, V::multiply(weight, V::subtract(zero, along)));
          continue;
        }
        V::store(score, weight);
        V::store(slope, V::multiply(weight, V::subtract(V::load(slope), along)));
        slope += kPanel;
      }
    }
}

template <class Isa>
constexpr AttendKernels attend_kernels() {
  using V = typename Isa::F32;
  constexpr int64_t block = 112 / std::lcm(Isa::full, kPanel) * std::lcm(Isa::full, kPanel);
  return {Isa::full, block, lane_product<Isa>, row_product<Isa>, weigh<V>, weigh_slopes<V>};
}

}  // namespace
}  // namespace vecbank::cpu
