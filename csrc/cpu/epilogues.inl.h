// What happens to a finished tile: the gate against the rows' thresholds (top-k), the running argmax of each lane
// (nearest), or the store (project).
#pragma once

#include "search/screens/float32.inl.h"

namespace vecbank::cpu {
namespace {

VB_INLINE uint32_t allowed_bits(const uint8_t* row, int64_t panel) {
  uint16_t bits;
  __builtin_memcpy(&bits, row + 2 * panel, sizeof bits);
  return bits;
}

// A tile's gate: whether a row of each kGateRows has a survivor.
constexpr int kGateRows = 4;
template <class V, int Height>
using Gates = typename V::Gate[(Height + kGateRows - 1) / kGateRows];

// Whether a tile has a survivor that its row may be given. Where rows may be given few, most tiles have survivors, and
// few have one of these: so the accumulators are looked at where they are, and without a branch for a row.
template <class V, int Height, int PanelCount, class Tile>
VB_INLINE bool any_allowed(const Tile& tile, const Gates<V, Height>& gates, const float* thresholds,
                           const uint8_t* const* allowed, int64_t panel, int valid) {
  uint32_t hit = 0;
  unroll<(Height + kGateRows - 1) / kGateRows>([&](auto g) __attribute__((always_inline)) {
    if (!gates[g.value].any()) return;
    unroll<kGateRows>([&](auto i) __attribute__((always_inline)) {
      constexpr int r = g.value * kGateRows + i.value;
      if constexpr (r < Height) {
        const auto threshold = V::fill(thresholds[r]);
        unroll<PanelCount>([&](auto p) __attribute__((always_inline)) {
          if (p.value >= valid) return;
          uint32_t lanes = 0;
          unroll<tile.per_panel>([&](auto w) __attribute__((always_inline)) {
            const uint32_t some = V::not_less(tile.acc[r][p.value * tile.per_panel + w.value], threshold);
            lanes |= some << (w.value * V::width);
          });
          hit |= lanes & allowed_bits(allowed[r], panel + p.value);
        });
      }
    });
  });
  return hit != 0;
}

// This path is rare, and out of line so that the hot loop keeps its registers.
template <class V, int Height, int PanelCount, class Tiles>
__attribute__((noinline)) void push_survivors(const ScanArgs<Tiles>& s, const float* upper, int64_t row, int64_t panel,
                                              int valid) {
  for (int r = 0; r < Height && row + r < s.tile.rows; ++r) {
    for (int p = 0; p < valid; ++p) {
      const float* u = upper + (r * PanelCount + p) * kPanel;
      const auto threshold = V::fill(s.thresholds[row + r]);  // read again: a survivor may have raised the threshold
      uint32_t lanes = 0;
      for (int w = 0; w < kPanel; w += V::width) lanes |= V::not_less(V::load(u + w), threshold) << w;
      if (lanes != 0 && s.allowed != nullptr) lanes &= allowed_bits(s.allowed[row + r], panel + p);
      if (lanes != 0) s.push(s.context, row + r, panel + p, u, lanes);
    }
  }
}

// Fetches what the tiles of one group of rows have to: the tile at `panel` for its part of these rows.
template <int Height, int PanelCount, class Tiles>
VB_INLINE void fetch_ahead(const ScanArgs<Tiles>& s, int64_t row, int64_t panel) {
  const int64_t tiles = (s.tile.columns + PanelCount * kPanel - 1) / (PanelCount * kPanel);
  for (int64_t r = panel / PanelCount; r < Height; r += tiles) {
    const uint8_t* at = s.ahead[row + r];
    for (int64_t i = 0; i < s.ahead_bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
    __builtin_prefetch(at + s.ahead_bytes - 1, 0, 2);  // of another line, as `at` is the start of none
  }
}

template <class V, class Product, int Height, int PanelCount, class Tiles>
void scan_tiles(const ScanArgs<Tiles>& s) {
  bound_tiles<V, Product, Height, PanelCount>(
      s.tile, [&](const auto& tile, int64_t row, int64_t panel, int valid) __attribute__((always_inline)) {
        if (s.ahead != nullptr) fetch_ahead<Height, PanelCount>(s, row, panel);
        Gates<V, Height> gates;
        unroll<Height>([&](auto r) __attribute__((always_inline)) {
          const auto threshold = V::fill(s.thresholds[row + r.value]);
          unroll<tile.vectors>([&](auto v) __attribute__((always_inline)) {
            gates[r.value / kGateRows].add(tile.acc[r.value][v.value], threshold);
          });
        });
        bool any = false;
        for (const auto& gate : gates) any |= gate.any();
        if (__builtin_expect(any, 0)) {
          if (s.allowed != nullptr &&
              !any_allowed<V, Height, PanelCount>(tile, gates, s.thresholds + row, s.allowed + row, panel, valid))
            return;
          alignas(64) float upper[Height * PanelCount * kPanel];
          tile.spill(upper);
          push_survivors<V, Height, PanelCount>(s, upper, row, panel, valid);
        }
      });
}

// The loop has no branch: with few columns nearly every tile would have a survivor to push.
template <class V, class Product, int Height, int PanelCount, class Tiles>
void argmax_tiles(const ArgmaxArgs<Tiles>& s) {
  const int64_t first_panel = s.first_panel;
  float* const running = s.running;  // a copy, since a store to the running argmax could change `s`
  bound_tiles<V, Product, Height, PanelCount>(
      s.tile, [&](const auto& tile, int64_t row, int64_t panel, int valid) __attribute__((always_inline)) {
        typename V::Reg number[PanelCount];
        unroll<PanelCount>([&](auto p) __attribute__((always_inline)) {
          number[p.value] = V::fill(static_cast<float>(first_panel + panel + p.value));
        });
        unroll<Height>([&](auto r) __attribute__((always_inline)) {
          unroll<tile.per_panel>([&](auto w) __attribute__((always_inline)) {
            float* at = running + (row + r.value) * kArgmaxFloats + w.value * V::width;
            auto largest = V::load(at), second = V::load(at + kPanel), place = V::load(at + 2 * kPanel);
            unroll<PanelCount>([&](auto p) __attribute__((always_inline)) {
              if (p.value >= valid) return;
              const auto a = tile.acc[r.value][p.value * tile.per_panel + w.value];
              second = V::max(second, V::min(largest, a));
              place = V::if_greater(a, largest, number[p.value], place);
              largest = V::max(largest, a);
            });
            V::store(at, largest);
            V::store(at + kPanel, second);
            V::store(at + 2 * kPanel, place);
          });
        });
      });
}

template <class V>
void reduce_argmax(const float* running, int64_t rows, RowArgmax* out) {
  constexpr int vectors = kPanel / V::width;
  const auto none = V::fill(-__builtin_inff());
  for (int64_t r = 0; r < rows; ++r, running += kArgmaxFloats) {
    auto top = none, others = none;
    for (int v = 0; v < vectors; ++v) {
      top = V::max(top, V::load(running + v * V::width));
      others = V::max(others, V::load(running + kPanel + v * V::width));
    }
    const float most = V::largest(top);
    const auto threshold = V::fill(most);
    uint32_t lanes = 0;
    for (int v = 0; v < vectors; ++v) {
      const auto largest = V::load(running + v * V::width);
      lanes |= V::not_less(largest, threshold) << (v * V::width);
      others = V::max(others, V::if_greater(threshold, largest, largest, none));
    }
    out[r].largest = most;
    out[r].next = (lanes & (lanes - 1)) != 0 ? most : V::largest(others);
    out[r].lane = __builtin_ctz(lanes);
  }
}

template <class T, class Out>
VB_INLINE void emit(const T* values, int64_t count, Out* out) {
  for (int64_t i = 0; i < count; ++i) narrow(values[i], out + i);
}

// Whether a value of a tile is not finite, or not above the least.
template <class V>
struct OddGate {
  typename V::Reg least;
  typename V::Gate gate;
  explicit VB_INLINE OddGate(const StoreArgs<float>& s) : least(V::fill(s.least)) {}
  VB_INLINE void add(typename V::Reg a) {
    gate.add(a, V::fill(__builtin_inff()));  // "not below" is true of NaN
    gate.add(least, a);
  }
  VB_INLINE bool any() const { return gate.any(); }
};
struct NoGate {
  template <class Args>
  explicit VB_INLINE NoGate(const Args&) {}
  template <class Reg>
  VB_INLINE void add(Reg) {}
  VB_INLINE bool any() const { return false; }
};

// `Product` multiplies: V, or another vocabulary with the same registers. `raw`: panels of the rows' own numbers, which
// need what StoreArgs says of them.
template <class V, class Product, bool raw, int Height, int PanelCount>
void store_tiles(const StoreArgs<typename V::T>& s) {
  using T = typename V::T;
  const bool same = s.out_dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
  for_each_tile<Product, Height, PanelCount, true>(
      s.tile, raw ? 0 : 1, s.tile.width,
      [&](auto& tile, int64_t row, int64_t panel, int valid) __attribute__((always_inline)) {
        const int64_t column = panel * kPanel;
        std::conditional_t<raw, OddGate<V>, NoGate> gate(s);
        unroll<Height>([&](auto r) __attribute__((always_inline)) {
          const auto scale = V::fill(s.scale[row + r.value]), term = V::fill(s.term[row + r.value]);
          unroll<tile.vectors>([&](auto v) __attribute__((always_inline)) {
            auto& a = tile.acc[r.value][v.value];
            a = V::multiply_add(a, scale, term);
            if constexpr (raw)
              if (s.column_scale != nullptr) a = V::multiply(a, V::load(s.column_scale + column + v.value * V::width));
            if (s.finish != Finish::linear) a = V::max0(a);
            if (s.finish == Finish::rooted) a = V::root(a);
            gate.add(a);
          });
        });
        if (gate.any()) *s.odd = true;
        const int64_t remaining = s.tile.columns - column;
        if (same && remaining >= PanelCount * kPanel) {
          unroll<Height>([&](auto r) __attribute__((always_inline)) {
            if (row + r.value < s.tile.rows) {
              T* out = static_cast<T*>(s.out) + (row + r.value) * s.out_stride + column;
              unroll<tile.vectors>([&](auto v) __attribute__((always_inline)) {
                V::store(out + v.value * V::width, tile.acc[r.value][v.value]);
              });
            }
          });
          return;
        }
        alignas(64) T values[Height * PanelCount * kPanel];
        tile.spill(values);
        const int64_t count = remaining < valid * kPanel ? remaining : valid * kPanel;
        with_dtype(s.out_dtype, [&](auto type) {
          using Out = Element<decltype(type)>;
          for (int r = 0; r < Height && row + r < s.tile.rows; ++r)
            emit(values + r * PanelCount * kPanel, count, static_cast<Out*>(s.out) + (row + r) * s.out_stride + column);
        });
      });
}

}  // namespace
}  // namespace vecbank::cpu
