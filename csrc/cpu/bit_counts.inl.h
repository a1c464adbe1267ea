// The loops that count bits of single planes, written once for all instruction sets. `C` is the vocabulary of vectors
// of words: a lane is a row, so that no sum goes across lanes, and one compare gates as many rows as there are lanes.
// Where counts are looked up, a word becomes two (C::halves): the lower and the upper nibbles of its bytes. The
// queries come so, and all queries share the work for a row.
#pragma once

#include <cstring>
#include <type_traits>

#include "bits.h"

namespace vecbank::cpu {
namespace {

// Calls f(0), f(1), ... with constants, so that registers of an array that they number stay registers.
template <int N, class F>
VB_INLINE void for_constants(F&& f) {
  if constexpr (N > 1) for_constants<N - 1>(f);
  f(std::integral_constant<int, N - 1>{});
}

// The last word of a plane: bytes [bytes / 8 * 8, bytes), as far as the plane goes.
VB_INLINE uint64_t last_word(const uint8_t* plane, int64_t bytes) {
  uint64_t word = 0;
  if (bytes >= 8) {
    std::memcpy(&word, plane + bytes - 8, 8);
    return word >> (8 * ((8 - bytes % 8) % 8));
  }
  for (int64_t i = 0; i < bytes; ++i) word |= static_cast<uint64_t>(plane[i]) << (8 * i);
  return word;
}

// ---- Rows as columns of words ---------------------------------------------------------------------------------------

template <class C>
struct WordColumns {
  using Reg = typename C::Reg;
  static constexpr int kRows = C::width;

  const BitPanelArgs a;  // a copy, which no store can change
  const int64_t words = (a.bytes + 7) / 8;
  const int64_t count = C::halves * words;
  const bool lie_so = a.bytes == 8 && a.stride == 8 && a.index == nullptr;

  // Calls f(i, the i-th words of rows at, at + 1, ...) for all of them, without the bits that stand for nothing. The
  // last row stands for those that would follow it.
  template <class F>
  VB_INLINE void of(int64_t at, F&& f) const {
    const Reg mask = C::fill(a.last_mask);
    if (lie_so && at + kRows <= a.count) return part(0, C::both(C::load(a.data + (a.first + at) * 8), mask), f);
    const uint8_t* rows[kRows];
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = at + i < a.count ? at + i : a.count - 1;
      rows[i] = a.data + (a.index != nullptr ? a.index[a.first + row] : a.first + row) * a.stride;
    }
    int64_t word = 0;
    for (; 8 * (word + 4) <= a.bytes; word += 4) {
      Reg columns[4];
      C::transpose4(rows, 8 * word, columns);
      if (word + 4 == words) columns[3] = C::both(columns[3], mask);
      for_constants<4>([&](auto i) __attribute__((always_inline)) { part(word + i(), columns[i()], f); });
    }
    for (; word < words; ++word) {
      alignas(64) uint64_t column[kRows];
      for (int i = 0; i < kRows; ++i)
        if (8 * (word + 1) <= a.bytes)
          std::memcpy(column + i, rows[i] + 8 * word, 8);
        else
          column[i] = last_word(rows[i], a.bytes);
      const Reg all = C::load(reinterpret_cast<const uint8_t*>(column));
      part(word, word + 1 < words ? all : C::both(all, mask), f);
    }
  }

 private:
  template <class F>
  static VB_INLINE void part(int64_t word, Reg column, F&& f) {
    if constexpr (C::halves == 2) {
      f(2 * word, C::lower(column));
      f(2 * word + 1, C::upper(column));
    } else {
      f(word, column);
    }
  }
};

template <class C>
void write_word_panels(const BitPanelArgs& a) {
  const WordColumns<C> columns{a};
  uint8_t* out = a.out;
  for (int64_t at = 0; at < columns.a.count; at += C::width, out += columns.count * C::width * 8)
    columns.of(at, [&](int64_t i, typename C::Reg column)
                       __attribute__((always_inline)) { C::store(out + i * C::width * 8, column); });
}

// ---- Tiles ----------------------------------------------------------------------------------------------------------

// Distances of Q queries to the rows of V panels.
template <class C, int Q, int V>
VB_INLINE void count_bits(const uint64_t* queries, const uint8_t* panel, int64_t words, typename C::Reg (&sum)[Q][V]) {
  const int64_t stride = words * C::width * 8;
  const auto count = [&](int64_t from, int64_t to, typename C::Reg(&part)[Q][V]) __attribute__((always_inline)) {
    for (int q = 0; q < Q; ++q)
      for (int v = 0; v < V; ++v) part[q][v] = C::fill(0);
    for (int64_t word = from; word < to; ++word) {
      typename C::Reg query[Q];
      for (int q = 0; q < Q; ++q) query[q] = C::fill(queries[q * words + word]);
      for (int v = 0; v < V; ++v) {
        const typename C::Reg row = C::load(panel + v * stride + word * C::width * 8);
        for (int q = 0; q < Q; ++q) part[q][v] = C::add_count(part[q][v], row, query[q]);
      }
    }
    for (int q = 0; q < Q; ++q)
      for (int v = 0; v < V; ++v) part[q][v] = C::total(part[q][v]);
  };
  int64_t word = words < C::chunk ? words : C::chunk;
  count(0, word, sum);
  if constexpr (C::chunk < INT64_MAX) {
    for (int64_t to; word < words; word = to) {
      to = words - word < C::chunk ? words : word + C::chunk;
      typename C::Reg part[Q][V];
      count(word, to, part);
      for (int q = 0; q < Q; ++q)
        for (int v = 0; v < V; ++v) sum[q][v] = C::add(sum[q][v], part[q][v]);
    }
  }
}

// The limit falls below a best row that is found, because a later row must then be nearer.
template <int kRows>
__attribute__((noinline)) void report_counts(BitScanArgs& a, int64_t query, int64_t first, const int32_t* sums) {
  int32_t limit = a.limits[query];
  BitHit* hit = a.hits + a.hit_count;
  if (a.best_only) {
    int best = 0;
    for (int row = 1; row < kRows; ++row)
      if (sums[row] < sums[best]) best = row;
    a.limits[query] = sums[best] - 1;
    *hit++ = {static_cast<int32_t>(query), static_cast<int32_t>(first) + best, sums[best]};
  } else {
    for (int row = 0; row < kRows; ++row) {
      if (sums[row] > limit) continue;
      *hit++ = {static_cast<int32_t>(query), static_cast<int32_t>(first) + row, sums[row]};
    }
  }
  a.hit_count = hit - a.hits;
}

template <class C, int Q, int V>
VB_INLINE void gate_counts(BitScanArgs& a, const typename C::Reg (&sum)[Q][V], int64_t query, int64_t first) {
  for_constants<Q>([&](auto q) __attribute__((always_inline)) {
    typename C::Reg least = sum[q()][0];
    for (int v = 1; v < V; ++v) least = C::min(least, sum[q()][v]);
    if (__builtin_expect(!C::any_at_most(least, a.limits[query + q()]), 1)) return;
    alignas(64) int32_t sums[V * C::width];
    for (int v = 0; v < V; ++v) C::store_sums(sums + v * C::width, sum[q()][v]);
    report_counts<V * C::width>(a, query + q(), first, sums);
  });
}

// Calls f(a number up to N as a constant, the first of so many) until all are done; N is a power of 2.
template <int N, class F>
VB_INLINE void for_each_group(int64_t from, int64_t to, F&& f) {
  for (; from + N <= to; from += N) f(std::integral_constant<int, N>{}, from);
  if constexpr (N > 1)
    if (from < to) for_each_group<N / 2>(from, to, f);
}

// Calls f(queries and panels of a tile as constants, the first query, the first panel): a panel serves all queries
// while it is in the first cache.
template <class C, class F>
VB_INLINE void for_each_count_tile(const BitTiles& a, int64_t queries, F&& f) {
  for_each_group<C::panels>(0, a.panel_count, [&](auto v, int64_t at) __attribute__((always_inline)) {
    for_each_group<C::height>(0, queries,
                              [&](auto q, int64_t query) __attribute__((always_inline)) { f(q, v, query, at); });
  });
}

template <class C, int Q, int V>
VB_INLINE void count_tile(const BitTiles& a, int64_t query, int64_t panel, typename C::Reg (&sum)[Q][V]) {
  count_bits<C, Q, V>(a.query_words + query * a.words, a.panels + panel * a.words * C::width * 8, a.words, sum);
}

template <class C>
void scan_counts(BitScanArgs& a) {
  a.hit_count = 0;
  for_each_count_tile<C>(a, a.queries,
                         [&](auto q, auto v, int64_t query, int64_t panel) __attribute__((always_inline)) {
                           typename C::Reg sum[q()][v()];
                           count_tile<C, q(), v()>(a, query, panel, sum);
                           gate_counts<C, q(), v()>(a, sum, query, panel * C::width);
                         });
}

template <class C>
void store_counts(const BitStoreArgs& a) {
  for_each_count_tile<C>(a, a.wanted, [&](auto q, auto v, int64_t query, int64_t panel) __attribute__((always_inline)) {
    constexpr int kRows = v() * C::width;
    const int64_t first = panel * C::width, rows = a.rows - first < kRows ? a.rows - first : kRows;
    typename C::Reg sum[q()][v()];
    count_tile<C, q(), v()>(a, query, panel, sum);
    for_constants<q()>([&](auto i) __attribute__((always_inline)) {
      alignas(64) int32_t sums[kRows];
      for (int j = 0; j < v(); ++j) C::store_sums(sums + j * C::width, sum[i()][j]);
      std::memcpy(a.out + (query + i()) * a.out_stride + first, sums, sizeof(int32_t) * static_cast<size_t>(rows));
    });
  });
}

// The same as writing panels and scanning them, for few queries, which do not pay for them.
template <class C>
void scan_columns(const BitPanelArgs& rows, BitScanArgs& a) {
  using Reg = typename C::Reg;
  a.hit_count = 0;
  const WordColumns<C> columns{rows};
  const int64_t words = columns.count;
  for_each_group<kFewQueries>(0, a.queries, [&](auto q, int64_t query) __attribute__((always_inline)) {
    const uint64_t* queries = a.query_words + query * words;
    for (int64_t at = 0; at < columns.a.count; at += C::width) {
      Reg sum[q()][1], part[q()];
      for (int i = 0; i < q(); ++i) sum[i][0] = part[i] = C::fill(0);
      columns.of(at, [&](int64_t word, Reg column) __attribute__((always_inline)) {
        for (int i = 0; i < q(); ++i) part[i] = C::add_count(part[i], column, C::fill(queries[i * words + word]));
        if (C::chunk == INT64_MAX || word % C::chunk != C::chunk - 1) return;
        for (int i = 0; i < q(); ++i) {
          sum[i][0] = C::add(sum[i][0], C::total(part[i]));
          part[i] = C::fill(0);
        }
      });
      for (int i = 0; i < q(); ++i) sum[i][0] = C::add(sum[i][0], C::total(part[i]));
      gate_counts<C, q(), 1>(a, sum, query, at);
    }
  });
}

template <class C>
constexpr BitTileKernels count_kernels() {
  BitTileKernels kernels;
  if constexpr (!std::is_void_v<C>) {
    static_assert(kMostBitRows % (C::width * C::panels) == 0);
    kernels.height = 1;  // any number of queries
    kernels.halves = C::halves;
    kernels.width = C::width;
    kernels.panels = C::panels;
    kernels.panel = write_word_panels<C>;
    kernels.scan = scan_counts<C>;
    kernels.store = store_counts<C>;
    kernels.scan_columns = scan_columns<C>;
  }
  return kernels;
}

}  // namespace
}  // namespace vecbank::cpu
