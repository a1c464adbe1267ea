// The best scores of query tokens among the tokens of documents, for sets of rows (maxsim.h).
#pragma once

#include <type_traits>

#include "mainloop.inl.h"
#include "maxsim.h"
#include "rows.inl.h"

namespace vecbank::cpu {
namespace {

// acc[r][v] = rows[r] . lanes of the panels. The rows are read where they lie: a coordinate of each is broadcast.
template <class V, int Height, int PanelCount, class T = typename V::T>
VB_INLINE void multiply_rows(Tile<V, Height, PanelCount>& tile, const T* first, int64_t stride,
                             const T* const (&panels)[PanelCount], const T* const (&starts)[PanelCount], int64_t width,
                             Prefetcher& prefetcher) {
  unroll<tile.vectors>([&](auto v) __attribute__((always_inline)) {
    const T* from = starts[v.value / tile.per_panel];
    const auto start = from == nullptr ? V::fill(0) : V::load(from + (v.value % tile.per_panel) * V::width);
    unroll<Height>([&](auto r) __attribute__((always_inline)) { tile.acc[r.value][v.value] = start; });
  });
  // Few registers hold the addresses of all rows: every fifth row's, and one and three strides.
  constexpr int bases = (Height + 4) / 5;
  const char* base[bases];
  const int64_t one = stride * static_cast<int64_t>(sizeof(T)), three = 3 * one;
  unroll<bases>([&](auto b) __attribute__((always_inline)) {
    base[b.value] = reinterpret_cast<const char*>(first + 5 * b.value * stride);
  });
  const T* line[PanelCount];
  for (int p = 0; p < PanelCount; ++p) line[p] = panels[p];
  for (int64_t k = 0; k < width; ++k) {
    prefetcher.fetch();
    typename V::Reg lanes[tile.vectors];
    unroll<tile.vectors>([&](auto v) __attribute__((always_inline)) {
      lanes[v.value] = V::load(line[v.value / tile.per_panel] + (v.value % tile.per_panel) * V::width);
    });
    unroll<Height>([&](auto r) __attribute__((always_inline)) {
      constexpr int past = r.value % 5;
      const char* at = base[r.value / 5] + (past == 3 ? three : past * one);
      const auto x = V::fill(*reinterpret_cast<const T*>(at));
      unroll<tile.vectors>([&](auto v) __attribute__((always_inline)) {
        tile.acc[r.value][v.value] = V::multiply_add(x, lanes[v.value], tile.acc[r.value][v.value]);
      });
    });
    unroll<bases>([&](auto b) __attribute__((always_inline)) { base[b.value] += sizeof(T); });
    unroll<PanelCount>([&](auto p) __attribute__((always_inline)) { line[p.value] += kPanel; });
  }
}

// The running best of a few panels, in memory that stays in L1.
template <class V, int PanelCount, bool Places>
struct RunningBest {
  static constexpr int vectors = PanelCount * kPanel / V::width;
  alignas(64) float best[PanelCount * kPanel];
  alignas(64) float place[PanelCount * kPanel];

  VB_INLINE void clear() {
    unroll<vectors>([&](auto v) __attribute__((always_inline)) {
      V::store(best + v.value * V::width, V::fill(-__builtin_inff()));
      V::store(place + v.value * V::width, V::fill(0));
    });
  }
  // The scores of a row that is the document's token number `token`.
  VB_INLINE void add(const float* scores, int64_t token) {
    const auto number = V::fill(static_cast<float>(token));
    unroll<vectors>([&](auto v) __attribute__((always_inline)) {
      const auto a = V::load(scores + v.value * V::width), most = V::load(best + v.value * V::width);
      if constexpr (Places)
        V::store(place + v.value * V::width, V::if_greater(a, most, number, V::load(place + v.value * V::width)));
      V::store(best + v.value * V::width, V::max(most, a));
    });
  }
  template <class Tile>
  VB_INLINE void add_tile(const Tile& tile, int from, int64_t token) {
    unroll<vectors>([&](auto v) __attribute__((always_inline)) {
      auto most = V::load(best + v.value * V::width), at = V::load(place + v.value * V::width);
      unroll<Tile::height>([&](auto r) __attribute__((always_inline)) {
        if (r.value < from) return;
        const auto a = tile.acc[r.value][v.value];
        if constexpr (Places) at = V::if_greater(a, most, V::fill(static_cast<float>(token + r.value)), at);
        most = V::max(most, a);
      });
      V::store(best + v.value * V::width, most);
      if constexpr (Places) V::store(place + v.value * V::width, at);
    });
  }
};

// One pass over the rows for panels [p, p + PanelCount), of which `valid` exist.
template <class V, class Product, int Height, int PanelCount, bool Places, class T = typename Product::T>
void best_of_panels(const BestArgs<T>& a, int64_t p) {
  constexpr bool coded = !std::is_same_v<V, Product>;
  const int64_t last = a.panel_count - 1, panel = a.width * kPanel, lanes = a.panel_count * kPanel;
  const int valid = static_cast<int>(a.panel_count - p < PanelCount ? a.panel_count - p : PanelCount);
  const T *panels[PanelCount], *starts[PanelCount];
  for (int i = 0; i < PanelCount; ++i) {  // past the end, the last panel again, whose results are ignored
    const int64_t there = p + i < last ? p + i : last;
    panels[i] = a.panels + there * panel;
    starts[i] = a.starts == nullptr ? nullptr : a.starts + there * kPanel;
  }
  RunningBest<V, PanelCount, Places> running;
  const size_t bytes = sizeof(float) * kPanel * static_cast<size_t>(valid);
  running.clear();
  __builtin_memcpy(running.best, a.running + p * kPanel, bytes);
  if constexpr (Places) __builtin_memcpy(running.place, a.running + lanes + p * kPanel, bytes);
  int64_t document = 0, begin = -a.before;  // of the document
  const auto flush = [&]() __attribute__((noinline)) {
    __builtin_memcpy(a.best + document * a.stride + p * kPanel, running.best, bytes);
    if constexpr (Places) __builtin_memcpy(a.places + document * a.stride + p * kPanel, running.place, bytes);
    running.clear();
    begin = a.ends[document++];
  };
  const auto tiles = [&]<int Rows>(Index<Rows>, int64_t row) __attribute__((always_inline)) {
    // The last tile ends with the last row: it has rows again that the tile before it had.
    for (; row < a.count; row += Rows) {
      const int64_t first = row + Rows <= a.count ? row : a.count - Rows;
      const int from = static_cast<int>(row - first);
      // Fetched meanwhile: the same tile of the rows that follow these, or one of the next tiles of these.
      constexpr int64_t ahead = coded ? 4 : 1;
      Prefetcher prefetcher{reinterpret_cast<const char*>(panels[0]), 0};
      if (p == 0) {
        const int64_t step = a.row_stride * static_cast<int64_t>(sizeof(T));
        const char* after = a.next != nullptr ? static_cast<const char*>(a.next) + row * step
                                              : reinterpret_cast<const char*>(a.rows) + (row + ahead * Rows) * step;
        prefetcher = {after, Rows * step / (a.width + 1) + 1};
      }
      Tile<Product, Rows, PanelCount> sums;
      multiply_rows<Product, Rows, PanelCount>(sums, a.rows + first * a.row_stride, a.row_stride, panels, starts,
                                               a.width, prefetcher);
      Tile<V, Rows, PanelCount> tile;
      typename V::Gate gate;
      unroll<Rows>([&](auto r) __attribute__((always_inline)) {
        unroll<tile.vectors>([&](auto v) __attribute__((always_inline)) {
          auto& score = tile.acc[r.value][v.value];
          if constexpr (coded) {
            score = Product::to_float(sums.acc[r.value][v.value]);
          } else {
            score = sums.acc[r.value][v.value];
            if (a.scales != nullptr) score = V::multiply(score, V::fill(a.scales[first + r.value]));
            // "Not below" is true of NaN. A sum that came to -infinity on its way may be of any size.
            gate.add(score, V::fill(__builtin_inff()));
            gate.add(V::fill(-__builtin_inff()), score);
          }
        });
      });
      const bool odd = !coded && gate.any();
      const int64_t end = a.ends[document];
      if (__builtin_expect(!odd && end > first + Rows, 1)) {
        running.add_tile(tile, from, first - begin);
        continue;
      }
      alignas(64) float scores[Rows * PanelCount * kPanel];
      tile.spill(scores);
      for (int r = from; r < Rows; ++r) {
        if (odd) a.odd[document] = true;
        running.add(scores + r * PanelCount * kPanel, first + r - begin);
        if (first + r + 1 == a.ends[document]) flush();
        if (document == a.documents) return;  // these were the last rows
      }
    }
  };
  if (a.count >= Height)
    tiles(Index<Height>{}, 0);
  else
    tiles(Index<1>{}, 0);
  __builtin_memcpy(a.running + p * kPanel, running.best, bytes);
  if constexpr (Places) __builtin_memcpy(a.running + lanes + p * kPanel, running.place, bytes);
}

template <class V, int Height, int PanelCount>
void best_rows(const BestArgs<float>& a) {
  for (int64_t p = 0; p < a.panel_count; p += PanelCount)
    a.places != nullptr ? best_of_panels<V, V, Height, PanelCount, true>(a, p)
                        : best_of_panels<V, V, Height, PanelCount, false>(a, p);
}

template <class V, class Int8, int Height, int PanelCount>
void best_codes(const BestArgs<int32_t>& a) {
  for (int64_t p = 0; p < a.panel_count; p += PanelCount) best_of_panels<V, Int8, Height, PanelCount, false>(a, p);
}

template <class V>
void row_squares(const float* rows, int64_t row_stride, int64_t count, int64_t width, float* out) {
  constexpr int sums = 4;
  for (int64_t r = 0; r < count; ++r, rows += row_stride) {
    typename V::Reg sum[sums];
    unroll<sums>([&](auto s) __attribute__((always_inline)) { sum[s.value] = V::fill(0); });
    int64_t k = 0;
    for (; k + sums * V::width <= width; k += sums * V::width)
      unroll<sums>([&](auto s) __attribute__((always_inline)) {
        const auto x = V::load(rows + k + s.value * V::width);
        sum[s.value] = V::multiply_add(x, x, sum[s.value]);
      });
    alignas(64) float lanes[V::width];
    V::store(lanes, V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
    float total = 0.0f;
    for (; k < width; ++k) total += rows[k] * rows[k];
    for (int i = 0; i < V::width; i += 4) total += (lanes[i] + lanes[i + 1]) + (lanes[i + 2] + lanes[i + 3]);
    out[r] = total;
  }
}

template <class V, int Vectors>
VB_INLINE void raise_squares_of(const float* rows, int64_t row_stride, int64_t count, float* most) {
  typename V::Reg largest[Vectors];
  unroll<Vectors>([&](auto v)
                      __attribute__((always_inline)) { largest[v.value] = V::load(most + v.value * V::width); });
  for (int64_t r = 0; r < count; ++r, rows += row_stride)
    unroll<Vectors>([&](auto v) __attribute__((always_inline)) {
      const auto x = V::load(rows + v.value * V::width);
      largest[v.value] = V::max(largest[v.value], V::multiply(x, x));
    });
  unroll<Vectors>([&](auto v)
                      __attribute__((always_inline)) { V::store(most + v.value * V::width, largest[v.value]); });
}

template <class V>
void raise_squares(const float* rows, int64_t row_stride, int64_t count, int64_t width, float* most) {
  constexpr int together = 8;
  int64_t k = 0;
  for (; k + together * V::width <= width; k += together * V::width)
    raise_squares_of<V, together>(rows + k, row_stride, count, most + k);
  for (; k + V::width <= width; k += V::width) raise_squares_of<V, 1>(rows + k, row_stride, count, most + k);
  for (; k < width; ++k)
    for (int64_t r = 0; r < count; ++r) {
      const float x = rows[r * row_stride + k];
      most[k] = x * x > most[k] ? x * x : most[k];
    }
}

template <class V>
float largest_of(const float* row, int64_t width) {
  auto most = V::fill(0);
  int64_t k = 0;
  for (; k + V::width <= width; k += V::width) {
    const auto x = V::load(row + k);
    most = V::max(most, V::max(x, V::subtract(V::fill(0), x)));
  }
  float largest = V::largest(most);
  for (; k < width; ++k) {
    const float x = row[k] < 0.0f ? -row[k] : row[k];
    largest = x > largest ? x : largest;
  }
  return largest;
}

template <class V, class Int8>
float code_row(const float* row, int64_t width, float factor, uint8_t* codes) {
  constexpr float rounds = 0x1.8p23f;  // a sum of this size is rounded to a whole number
  auto squares = V::fill(0);
  const int64_t whole = width / kCodeBlock * kCodeBlock;
  for (int64_t k = 0; k < whole; k += kCodeBlock)
    for (int64_t lane = 0; lane < 16; lane += V::width) {
      typename V::Reg code[4];
      unroll<4>([&](auto i) __attribute__((always_inline)) {
        const auto exact = V::multiply(V::load(row + k + 16 * i.value + lane), V::fill(factor));
        code[i.value] = V::subtract(V::add(exact, V::fill(rounds)), V::fill(rounds));
        const auto error = V::subtract(exact, code[i.value]);
        squares = V::multiply_add(error, error, squares);
      });
      int32_t four[16];
      Int8::store(four, Int8::four(code[0], code[1], code[2], code[3], kCodeZero));
      __builtin_memcpy(codes + k + 4 * lane, four, sizeof(int32_t) * V::width);
    }
  float lanes[V::width], sum = 0.0f;
  V::store(lanes, squares);
  for (const float lane : lanes) sum += lane;
  for (int64_t k = whole; k < width; ++k) {
    const float exact = row[k] * factor, code = (exact + rounds) - rounds;
    sum += (exact - code) * (exact - code);
    codes[k] = static_cast<uint8_t>(static_cast<int32_t>(code) + kCodeZero);
  }
  return sum;
}

template <class Isa>
constexpr MaxSimKernels maxsim_kernels() {
  using V = typename Isa::F32;
  using Int8 = typename Isa::Int8;
  // Codes of documents are unsigned and use all 8 bits: sums of pairs must not saturate.
  void (*coded)(const BestArgs<int32_t>&) = nullptr;
  if constexpr (Int8::lines == 1 && Int8::product_limit > 255 * 127)
    coded = best_codes<V, Int8, Isa::full, Isa::full_panels>;
  return {best_rows<V, Isa::full, Isa::full_panels>,
          coded,
          row_squares<V>,
          raise_squares<V>,
          largest_of<V>,
          code_row<V, Int8>};
}

}  // namespace
}  // namespace vecbank::cpu
