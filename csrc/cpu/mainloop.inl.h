// The one mainloop: a register tile of query rows x bank panels, over the whole width. It has no intrinsics. The unit
// of each instruction set includes this file once, after its vocabulary, into its anonymous namespace.
#pragma once

#include "../core/pack.h"
#include "tiles.h"

namespace vecbank::cpu {
namespace {

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};
template <int I>
struct Index {
  static constexpr int value = I;
};
template <class F, int... I>
VB_INLINE void unroll_each(Indices<I...>, F&& f) {
  (f(Index<I>{}), ...);
}
// Fully unrolled: an accumulator indexed at run time would live in memory.
template <int N, class F>
VB_INLINE void unroll(F&& f) {
  unroll_each(typename MakeIndices<N>::type{}, f);
}

// Fetches the next panels into L2 while the current ones are multiplied, because hardware prefetching stops where a
// panel ends. The bytes are spread evenly over all steps of all tiles of the current panels.
struct Prefetcher {
  const char* at = nullptr;
  int64_t step = 0;
  VB_INLINE void fetch() {
    __builtin_prefetch(at, 0, 2);
    at += step;
  }
};

template <class V, int Height, int PanelCount>
struct Tile {
  static constexpr int per_panel = kPanel / V::width;
  static constexpr int height = Height, vectors = PanelCount * per_panel;
  typename V::Reg acc[Height][vectors];

  // As multiply(), but in runs of kRun lines whose sums are then added up, so that rounding errors grow with the run
  // and the number of runs instead of with the width. A dense product needs this accuracy; a screen has its bound
  // instead.
  static constexpr int64_t kRun = 32;
  VB_INLINE void multiply_in_runs(const typename V::T* query, const typename V::T* const (&panels)[PanelCount],
                                  const typename V::T* const (&starts)[PanelCount], int64_t first, int64_t steps,
                                  Prefetcher& prefetcher) {
    if (steps <= kRun) return multiply(query, panels, starts, first, steps, prefetcher);
    alignas(64) typename V::T total[Height * vectors * V::width];
    const typename V::T* none[PanelCount] = {};
    multiply(query, panels, starts, first, kRun, prefetcher);
    for (int64_t at = kRun; at < steps; at += kRun) {
      spill(total);
      multiply(query + at * Height, panels, none, first + at, at + kRun < steps ? kRun : steps - at, prefetcher);
      unroll<Height>([&](auto r) __attribute__((always_inline)) {
        unroll<vectors>([&](auto v) __attribute__((always_inline)) {
          auto& a = acc[r.value][v.value];
          a = V::add(a, V::load(total + (r.value * vectors + v.value) * V::width));
        });
      });
    }
  }

  // acc[r][v] = starts[v] (null: zero) + sum over `steps` lines of query[r] * bank[v], the lines following `first`.
  VB_INLINE void multiply(const typename V::T* query, const typename V::T* const (&panels)[PanelCount],
                          const typename V::T* const (&starts)[PanelCount], int64_t first, int64_t steps,
                          Prefetcher& prefetcher) {
    unroll<vectors>([&](auto v) __attribute__((always_inline)) {
      const typename V::T* from = starts[v.value / per_panel];
      const auto start = from == nullptr ? V::fill(0) : V::load(from + (v.value % per_panel) * V::width);
      unroll<Height>([&](auto r) __attribute__((always_inline)) { acc[r.value][v.value] = start; });
    });
    const int64_t further = PanelCount > 1 ? (panels[1] - panels[0]) * PanelCount : 0;
    const typename V::T* line[PanelCount];
    for (int p = 0; p < PanelCount; ++p) line[p] = panels[p] + first * kPanel;
    if constexpr (V::lines == 2)
      add_line_pairs(query, line, further, steps, prefetcher);
    else
      add_lines(query, line, further, steps, prefetcher);
  }

  // `further`: from a panel of this tile to that of the next.
  VB_INLINE void add_lines(const typename V::T* query, const typename V::T* (&line)[PanelCount], int64_t further,
                           int64_t steps, Prefetcher& prefetcher) {
    for (int64_t step = 0; step < steps; ++step) {
      typename V::Reg bank[vectors];
      if constexpr (Height == 1)  // limited by memory: every line of every panel, at every step
        for (int p = 0; p < PanelCount; ++p) __builtin_prefetch(line[p] + further, 0, 2);
      else
        prefetcher.fetch();
      unroll<vectors>([&](auto v) __attribute__((always_inline)) {
        bank[v.value] = V::load(line[v.value / per_panel] + (v.value % per_panel) * V::width);
      });
      unroll<Height>([&](auto r) __attribute__((always_inline)) {
        const auto x = V::fill(query[r.value]);
        unroll<vectors>([&](auto v) __attribute__((always_inline)) {
          acc[r.value][v.value] = V::multiply_add(x, bank[v.value], acc[r.value][v.value]);
        });
      });
      query += Height;
      unroll<PanelCount>([&](auto p) __attribute__((always_inline)) { line[p.value] += kPanel; });
    }
  }

  // Two lines at a time, for products whose pairs are cheaper; the bank's vectors are operands in memory.
  VB_INLINE void add_line_pairs(const typename V::T* query, const typename V::T* (&line)[PanelCount], int64_t further,
                                int64_t steps, Prefetcher& prefetcher) {
    for (int64_t step = 0; step < steps; step += 2) {
      if constexpr (Height == 1)
        for (int p = 0; p < PanelCount; ++p)
          for (int l = 0; l < 2; ++l) __builtin_prefetch(line[p] + further + l * kPanel, 0, 2);
      else
        for (int l = 0; l < 2; ++l) prefetcher.fetch();
      unroll<Height>([&](auto r) __attribute__((always_inline)) {
        const auto even = V::fill(query[r.value]), odd = V::fill(query[Height + r.value]);
        unroll<vectors>([&](auto v) __attribute__((always_inline)) {
          const typename V::T* at = line[v.value / per_panel] + (v.value % per_panel) * V::width;
          acc[r.value][v.value] = V::multiply_add_pair(even, at, odd, at + kPanel, acc[r.value][v.value]);
        });
      });
      query += 2 * Height;
      unroll<PanelCount>([&](auto p) __attribute__((always_inline)) { line[p.value] += 2 * kPanel; });
    }
  }

  VB_INLINE void spill(typename V::T* out) const {  // [Height][PanelCount * kPanel]
    unroll<Height>([&](auto r) __attribute__((always_inline)) {
      unroll<vectors>([&](auto v) __attribute__((always_inline)) {
        V::store(out + (r.value * vectors + v.value) * V::width, acc[r.value][v.value]);
      });
    });
  }
};

// Walks all tiles. A few panels stay in L1 while every group of query rows is multiplied with them.
template <class V, int Height, int PanelCount, bool InRuns, class Epilogue>
VB_INLINE void for_each_tile(const TileArgs<typename V::T>& t, int64_t first, int64_t steps, Epilogue&& epilogue) {
  const int64_t panel_count = (t.columns + kPanel - 1) / kPanel;
  const int64_t groups = (t.rows + Height - 1) / Height;
  Prefetcher prefetcher;
  if (t.prefetch_range != nullptr)
    prefetcher = {static_cast<const char*>(t.prefetch_range),
                  t.prefetch_bytes / (panel_count * groups * steps + 1) + 1};
  for (int64_t p = 0; p < panel_count; p += PanelCount) {
    const typename V::T *panels[PanelCount], *starts[PanelCount];
    for (int i = 0; i < PanelCount; ++i) {  // past the end, the last panel again, whose results are ignored
      const int64_t there = p + i < panel_count ? p + i : panel_count - 1;
      panels[i] = t.panels + there * t.panel_stride;
      starts[i] = t.starts == nullptr ? nullptr : t.starts + there * t.start_stride;
    }
    const int valid = static_cast<int>(panel_count - p < PanelCount ? panel_count - p : PanelCount);
    const typename V::T* after = p + PanelCount < panel_count ? t.panels + (p + PanelCount) * t.panel_stride : t.next;
    if (t.prefetch_range == nullptr && after != nullptr) {
      const int64_t bytes = PanelCount * t.panel_stride * static_cast<int64_t>(sizeof(*after));
      prefetcher = {reinterpret_cast<const char*>(after), bytes / (groups * steps + 1) + 1};
    } else if (t.prefetch_range == nullptr) {
      prefetcher = {reinterpret_cast<const char*>(panels[0]), 0};
    }
    for (int64_t g = 0; g < groups; ++g) {
      Tile<V, Height, PanelCount> tile;
      if constexpr (InRuns)
        tile.multiply_in_runs(t.queries + g * t.query_stride, panels, starts, first, steps, prefetcher);
      else
        tile.multiply(t.queries + g * t.query_stride, panels, starts, first, steps, prefetcher);
      epilogue(tile, g * Height, p, valid);
    }
  }
}

}  // namespace
}  // namespace vecbank::cpu
