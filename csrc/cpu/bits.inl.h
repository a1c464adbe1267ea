// The loops over packed bits, written once for all instruction sets. `B` is the vocabulary of byte vectors.
#pragma once

#include <cstring>

#include "bit_counts.inl.h"

namespace vecbank::cpu {
namespace {

// ---- Panels ---------------------------------------------------------------------------------------------------------

template <class B>
void write_bit_panels(const BitPanelArgs& a) {
  constexpr int64_t kSlab = 32;  // rows
  static_assert(B::width % kSlab == 0);
  const int64_t positions = a.planes * a.plane_positions;
  for (int64_t at = 0; at < a.count || at % B::width != 0; at += kSlab) {
    const uint8_t* rows[kSlab];
    for (int64_t i = 0; i < kSlab; ++i) {
      const int64_t row = at + i < a.count ? at + i : a.count - 1;
      rows[i] = a.data + (a.index != nullptr ? a.index[a.first + row] : a.first + row) * a.stride;
    }
    uint8_t* out = a.out + at / B::width * positions * B::width + at % B::width;
    for (int64_t plane = 0; plane < a.planes; ++plane) {
      for (int64_t byte = 0; byte < a.bytes; byte += 16) {
        const int64_t some = a.bytes - byte < 16 ? a.bytes - byte : 16, first = plane * a.plane_positions + 2 * byte;
        const int64_t end = (plane + 1) * a.plane_positions;
        B::nibbles(rows, plane * a.bytes + byte, some, out + first * B::width, end - first);
      }
    }
  }
}

// ---- Tiles ----------------------------------------------------------------------------------------------------------

// Adds what `positions` tables say of the rows of V panels. `saturate`: to at most 255, which takes longer.
template <class B, int Q, int V, bool saturate>
VB_INLINE void look_up(const uint8_t* tables, const uint8_t* panel, int64_t stride, int64_t positions,
                       typename B::Reg (&sum)[Q][V]) {
  for (int64_t p = 0; p < positions; ++p, tables += Q * 16, panel += B::width) {
    typename B::Reg table[Q];
    for (int q = 0; q < Q; ++q) table[q] = B::table(tables + 16 * q);
    for (int v = 0; v < V; ++v) {
      const typename B::Reg codes = B::load(panel + v * stride);
      for (int q = 0; q < Q; ++q) {
        const typename B::Reg more = B::look_up(table[q], codes);
        sum[q][v] = saturate ? B::add_up_to_255(sum[q][v], more) : B::add8(sum[q][v], more);
      }
    }
  }
}

// The whole sums, or 255 where they are larger.
template <class B, int Q, int V>
VB_INLINE void narrow_sums(const BitTiles& a, const uint8_t* tables, const uint8_t* panel,
                           typename B::Reg (&sum)[Q][V]) {
  const int64_t stride = a.positions() * B::width, rest = a.positions() - a.chunk;
  look_up<B, Q, V, false>(tables, panel, stride, a.chunk, sum);
  if (rest > 0) look_up<B, Q, V, true>(tables + a.chunk * Q * 16, panel + a.chunk * B::width, stride, rest, sum);
}

template <class B, int Q, int V>
VB_INLINE void clear(typename B::Reg (&sum)[Q][V]) {
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) sum[q][v] = B::fill(0);
}

// The sums of bytes of so many positions: [query][row]. No part of another function, so that they stay in registers.
template <class B, int Q, int V>
__attribute__((noinline)) void chunk_sums(const uint8_t* tables, const uint8_t* panel, int64_t stride,
                                          int64_t positions, uint8_t* out) {
  typename B::Reg sum[Q][V];
  clear<B>(sum);
  look_up<B, Q, V, false>(tables, panel, stride, positions, sum);
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) B::store(out + (q * V + v) * B::width, sum[q][v]);
}

// Whole sums of a tile: [query][panel][row % 4][row / 4].
template <class B, int Q, int V>
void wide_sums(const BitTiles& a, const uint8_t* tables, const uint8_t* panel, int32_t* sums) {
  constexpr int64_t kChunks = 256;  // so many sums of bytes fit in 16 bits
  constexpr int kBytes = Q * V * B::width;
  const int64_t stride = a.positions() * B::width;
  alignas(64) uint8_t bytes[kBytes], even[kBytes], odd[kBytes];  // those of even rows in 16 bits each, of odd rows
  std::memset(sums, 0, sizeof(int32_t) * kBytes);
  for (int64_t plane = 0; plane < a.planes; ++plane) {
    const auto shift = static_cast<int>(a.planes - 1 - plane);
    for (int64_t at = 0; at < a.plane_positions;) {
      std::memset(even, 0, kBytes);
      std::memset(odd, 0, kBytes);
      for (int64_t c = 0; c < kChunks && at < a.plane_positions; ++c) {
        const int64_t some = a.plane_positions - at < a.chunk ? a.plane_positions - at : a.chunk;
        const int64_t first = plane * a.plane_positions + at;
        chunk_sums<B, Q, V>(tables + first * Q * 16, panel + first * B::width, stride, some, bytes);
        for (int i = 0; i < kBytes; i += B::width) {
          const typename B::Reg low = B::low8(B::load(bytes + i)), high = B::high8(B::load(bytes + i));
          B::store(even + i, B::add16(B::load(even + i), low));
          B::store(odd + i, B::add16(B::load(odd + i), high));
        }
        at += some;
      }
      for (int i = 0; i < kBytes; i += B::width) {
        const typename B::Reg e = B::load(even + i), o = B::load(odd + i);
        B::add32(sums + i, B::low16(e), shift);
        B::add32(sums + i + B::width / 4, B::low16(o), shift);
        B::add32(sums + i + B::width / 2, B::high16(e), shift);
        B::add32(sums + i + B::width / 4 * 3, B::high16(o), shift);
      }
    }
  }
}

// The sums of a query in the order of its rows.
template <class B, int V>
VB_INLINE void in_order(const int32_t* sums, int32_t* out) {
  for (int v = 0; v < V; ++v)
    for (int i = 0; i < B::width / 4; ++i)
      for (int j = 0; j < 4; ++j) out[v * B::width + 4 * i + j] = sums[v * B::width + j * (B::width / 4) + i];
}

// ---- What is done with them -----------------------------------------------------------------------------------------

template <class B, int V>
__attribute__((noinline)) void report_narrow(BitScanArgs& a, int64_t query, const uint8_t* sums) {
  const int32_t limit = a.limits[query];
  if (limit < 0) return;
  uint8_t most = static_cast<uint8_t>(limit < 255 ? limit : 255);
  bool one = false;
  if (a.best_only) {
    typename B::Reg least = B::load(sums);
    for (int v = 1; v < V; ++v) least = B::min(least, B::load(sums + v * B::width));
    most = B::least(least);
    one = most < 255;
  }
  for (int v = 0; v < V; ++v) {
    for (uint64_t rows = B::at_most(B::load(sums + v * B::width), B::fill(most)); rows != 0; rows &= rows - 1) {
      const int row = v * B::width + __builtin_ctzll(rows);
      a.hits[a.hit_count++] = {static_cast<int32_t>(query), row, sums[row]};
      if (one) return;
    }
  }
}

template <class B, int Q, int V>
void scan_narrow(BitScanArgs& a, const uint8_t* panel) {
  const int64_t positions = a.positions();
  for (int64_t query = 0; query < a.queries; query += Q) {
    typename B::Reg sum[Q][V];
    clear<B>(sum);
    narrow_sums<B, Q, V>(a, a.tables + query * positions * 16, panel, sum);
    for (int q = 0; q < Q; ++q) {
      typename B::Reg least = sum[q][0];
      for (int v = 1; v < V; ++v) least = B::min(least, sum[q][v]);
      const int32_t limit = a.limits[query + q];
      const auto most = static_cast<uint8_t>(limit < 0 ? 0 : limit < 255 ? limit : 255);
      if (B::at_most(least, B::fill(most)) == 0) continue;
      alignas(64) uint8_t sums[V * B::width];
      for (int v = 0; v < V; ++v) B::store(sums + v * B::width, sum[q][v]);
      report_narrow<B, V>(a, query + q, sums);
    }
  }
}

template <class B, int V>
__attribute__((noinline)) void report_wide(BitScanArgs& a, int64_t query, const int32_t* sums) {
  const int32_t limit = a.limits[query];
  alignas(64) int32_t ordered[V * B::width];
  in_order<B, V>(sums, ordered);
  if (a.best_only) {
    int best = 0;
    for (int row = 1; row < V * B::width; ++row)
      if (ordered[row] < ordered[best]) best = row;
    if (ordered[best] <= limit) a.hits[a.hit_count++] = {static_cast<int32_t>(query), best, ordered[best]};
    return;
  }
  for (int row = 0; row < V * B::width; ++row)
    if (ordered[row] <= limit) a.hits[a.hit_count++] = {static_cast<int32_t>(query), row, ordered[row]};
}

template <class B, int Q, int V>
void scan_wide(BitScanArgs& a, const uint8_t* panel) {
  alignas(64) int32_t sums[Q * V * B::width];
  for (int64_t query = 0; query < a.queries; query += Q) {
    wide_sums<B, Q, V>(a, a.tables + query * a.positions() * 16, panel, sums);
    for (int q = 0; q < Q; ++q)
      if (B::any_at_most(sums + q * V * B::width, V * B::width, a.limits[query + q]))
        report_wide<B, V>(a, query + q, sums + q * V * B::width);
  }
}

template <class B, int Q, int V>
void store_bit_tiles(const BitStoreArgs& a, const uint8_t* panel, int64_t first) {
  alignas(64) int32_t sums[Q * V * B::width], ordered[V * B::width];
  const int64_t positions = a.positions(), left = a.rows - first;
  const int64_t rows = left < V * B::width ? left : V * B::width;
  for (int64_t query = 0; query < a.wanted; query += Q) {
    const uint8_t* tables = a.tables + query * positions * 16;
    typename B::Reg sum[Q][V];
    if (a.narrow) {
      clear<B>(sum);
      narrow_sums<B, Q, V>(a, tables, panel, sum);
    } else {
      wide_sums<B, Q, V>(a, tables, panel, sums);
    }
    for (int q = 0; q < Q; ++q) {
      if (query + q >= a.wanted) continue;
      if (a.narrow) {
        alignas(64) uint8_t bytes[V * B::width];
        for (int v = 0; v < V; ++v) B::store(bytes + v * B::width, sum[q][v]);
        for (int row = 0; row < V * B::width; ++row) ordered[row] = bytes[row];
      } else {
        in_order<B, V>(sums + q * V * B::width, ordered);
      }
      std::memcpy(a.out + (query + q) * a.out_stride + first, ordered, sizeof(int32_t) * static_cast<size_t>(rows));
    }
  }
}

// Calls f(panels of a tile as a constant, its first panel, its first row).
template <class B, class F>
VB_INLINE void for_each_bit_tile(const BitTiles& a, F&& f) {
  const auto panel = [&](int64_t i) { return a.panels + i * a.positions() * B::width; };
  int64_t at = 0;
  for (; at + B::panels <= a.panel_count; at += B::panels)
    f(std::integral_constant<int, B::panels>{}, panel(at), at * B::width);
  for (; at < a.panel_count; ++at) f(std::integral_constant<int, 1>{}, panel(at), at * B::width);
}

template <class B>
void scan_bits(BitScanArgs& a) {
  a.hit_count = 0;
  for_each_bit_tile<B>(a, [&](auto panels, const uint8_t* panel, int64_t first) {
    const int64_t before = a.hit_count;
    if (a.narrow)
      scan_narrow<B, B::height, panels()>(a, panel);
    else
      scan_wide<B, B::height, panels()>(a, panel);
    for (int64_t i = before; i < a.hit_count; ++i) a.hits[i].row += static_cast<int32_t>(first);
  });
}

template <class B>
void store_bits(const BitStoreArgs& a) {
  for_each_bit_tile<B>(a, [&](auto panels, const uint8_t* panel, int64_t first) {
    if (first < a.rows) store_bit_tiles<B, B::height, panels()>(a, panel, first);
  });
}

// ---- Rows without panels --------------------------------------------------------------------------------------------

// Calls distance(row) for each row, and keeps what is within the limit.
template <class F>
VB_INLINE int64_t keep_within(const BitRowsArgs& a, F&& distance) {
  // Copies, which no store can change.
  const int64_t first = a.first, count = a.count, stride = a.stride, limit = a.limit;
  const int64_t* index = a.index;
  int32_t *out = a.out, *places = a.places;
  int64_t within = 0;
  const auto keep = [&](int64_t i, const uint8_t* row) {
    const int64_t sum = distance(row);
    if (sum > limit) return;  // nearly always, in a search
    out[within] = static_cast<int32_t>(sum);
    places[within++] = static_cast<int32_t>(i);
  };
  if (index != nullptr) {
    for (int64_t i = 0; i < count; ++i) keep(i, a.data + index[first + i] * stride);
  } else {
    const uint8_t* row = a.data + first * stride;
    for (int64_t i = 0; i < count; ++i, row += stride) keep(i, row);
  }
  return within;
}

// W whole words.
template <class Isa, int W>
int64_t whole_words(const BitRowsArgs& a) {
  uint64_t query[W];
  std::memcpy(query, a.query, sizeof query);
  const uint64_t mask = a.last_mask;
  return keep_within(a, [&](const uint8_t* row) __attribute__((always_inline)) {
    int64_t sum = 0;
    for (int w = 0; w < W; ++w) {
      const uint64_t word = Isa::load_word(row + 8 * w);
      sum += Isa::popcount((w + 1 < W ? word : word & mask) ^ query[w]);
    }
    return sum;
  });
}

template <class Isa>
int64_t one_plane(const BitRowsArgs& a) {
  const int64_t bytes = a.bytes, whole = a.words - 1;
  const uint64_t last = a.query[whole], mask = a.last_mask;
  const uint64_t* query = a.query;
  return keep_within(a, [=](const uint8_t* row) {
    int64_t sum = Isa::popcount((last_word(row, bytes) & mask) ^ last);
    for (int64_t w = 0; w < whole; ++w) sum += Isa::popcount(Isa::load_word(row + 8 * w) ^ query[w]);
    return sum;
  });
}

template <class Isa>
int64_t any_planes(const BitRowsArgs& a) {
  return keep_within(a, [&](const uint8_t* row) {
    int64_t sum = 0;
    for (int v = 0; v < a.planes; ++v) {
      const uint8_t* plane = row + v * a.bytes;
      int64_t of_plane = 0;
      for (int64_t w = 0; w < a.words; ++w) {
        const uint64_t word = w + 1 < a.words ? Isa::load_word(plane + 8 * w) : last_word(plane, a.bytes) & a.last_mask;
        int64_t differ = 0;
        for (int u = 0; u < a.query_planes; ++u) differ = 2 * differ + Isa::popcount(word ^ a.query[u * a.words + w]);
        of_plane += differ;
      }
      sum = 2 * sum + of_plane;
    }
    return sum;
  });
}

template <class Isa>
int64_t bit_rows(const BitRowsArgs& a) {
  if (a.planes > 1 || a.query_planes > 1) return any_planes<Isa>(a);
  if (a.bytes == 8) return whole_words<Isa, 1>(a);
  if (a.bytes == 16) return whole_words<Isa, 2>(a);
  if (a.bytes == 32) return whole_words<Isa, 4>(a);
  if (a.bytes == 64) return whole_words<Isa, 8>(a);
  return one_plane<Isa>(a);
}

template <class B>
constexpr BitTileKernels table_kernels() {
  BitTileKernels kernels;
  if constexpr (!std::is_void_v<B>) {
    static_assert(B::height <= kMostBitHeight && B::width * B::panels <= kMostBitRows);
    kernels.height = B::height;
    kernels.width = B::width;
    kernels.panels = B::panels;
    kernels.panel = write_bit_panels<B>;
    kernels.scan = scan_bits<B>;
    kernels.store = store_bits<B>;
  }
  return kernels;
}

// Without vocabularies of vectors there are no tiles.
template <class Isa>
constexpr BitKernels bit_kernels() {
  using C = typename Isa::Words;
  BitKernels kernels{table_kernels<typename Isa::Bytes>(), count_kernels<C>(),
                     count_kernels<typename Isa::UnitWords>()};
  kernels.rows = bit_rows<Isa>;
  if constexpr (!std::is_void_v<C>) {
    kernels.most_counts = C::most_queries;
    kernels.scalar_row = C::scalar_row;
  }
  return kernels;
}

}  // namespace
}  // namespace vecbank::cpu
