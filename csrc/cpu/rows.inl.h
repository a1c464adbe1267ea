// Row-at-a-time work in float64: converting, interleaving, norms, and the refinement's exact scores.
#pragma once

#include "kernels.h"

namespace vecbank::cpu {
namespace {

// Eight elements from `p`, of which only `count` exist; the others are zeros.
template <class Lanes, class S>
VB_INLINE Lanes load_some(const S* p, int64_t count) {
  if (__builtin_expect(count >= 8, 1)) return Lanes::load(p);
  S some[8] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = p[i];
  return Lanes::load(some);
}

// A zero tail stays zero under the map only where it is masked again: (0 * pre - 0) * post, as centres are padded.
template <class Lanes, class S>
VB_INLINE Lanes load_mapped(const S* row, int64_t k, int64_t width, const Affine& map) {
  Lanes v = load_some<Lanes>(row + k, width - k);
  if (map.pre != 1.0) v = v * Lanes::fill(map.pre);
  if (map.centre != nullptr) v = v - load_some<Lanes>(map.centre + k, width - k);
  if (map.post != 1.0) v = v * Lanes::fill(map.post);
  return v;
}

template <class Lanes, class S>
RowStats stats_of(const S* row, int64_t width, const Affine& map) {
  Lanes squares = Lanes::fill(0.0), centre = Lanes::fill(0.0);
  for (int64_t k = 0; k < width; k += 8) {
    const Lanes v = load_mapped<Lanes>(row, k, width, map);
    squares = squares + v * v;
  }
  if (map.centre != nullptr)
    for (int64_t k = 0; k < width; k += 8)
      centre = centre + load_some<Lanes>(row + k, width - k) * load_some<Lanes>(map.centre + k, width - k);
  return {squares.sum(), centre.sum()};
}

template <class Lanes>
RowStats stats(const void* row, DType dtype, int64_t width, const Affine& map) {
  return with_dtype(dtype, [&](auto type) { return stats_of<Lanes>(static_cast<decltype(type)>(row), width, map); });
}

template <class Lanes, class S>
void interleave_of(const void* const* rows, int count, int group, int64_t width, const Affine* maps, float* out) {
  alignas(64) float block[16][8] = {};
  for (int64_t k = 0; k < width; k += 8) {
    for (int r = 0; r < count; ++r)
      load_mapped<Lanes>(static_cast<const S*>(rows[r]), k, width, maps[r]).store(block[r]);
    if (width - k >= 8 && group != 1) {
      // Columns ascend, so what a transposed column spills past its group is overwritten by the next one.
      if (group <= 8) {
        transpose8(block[0], out + k * group, group);
      } else {
        alignas(64) float columns[8][16];
        transpose8(block[0], columns[0], 16);
        transpose8(block[8], columns[0] + 8, 16);
        for (int c = 0; c < 8; ++c) __builtin_memcpy(out + (k + c) * group, columns[c], 16 * sizeof(float));
      }
    } else {
      const int64_t columns = width - k < 8 ? width - k : 8;
      for (int64_t c = 0; c < columns; ++c)
        for (int r = 0; r < group; ++r) out[(k + c) * group + r] = block[r][c];
    }
  }
}

template <class Lanes, class S>
void interleave_of(const void* const* rows, int count, int group, int64_t width, const Affine* maps, double* out) {
  for (int64_t k = 0; k < width; k += 8) {
    const int64_t columns = width - k < 8 ? width - k : 8;
    for (int r = 0; r < group; ++r) {
      alignas(64) double eight[8] = {};
      if (r < count) load_mapped<Lanes>(static_cast<const S*>(rows[r]), k, width, maps[r]).store(eight);
      for (int64_t c = 0; c < columns; ++c) out[(k + c) * group + r] = eight[c];
    }
  }
}

template <class Lanes, class T>
void interleave(const void* const* rows, int count, int group, DType dtype, int64_t width, const Affine* maps, T* out) {
  with_dtype(dtype,
             [&](auto type) { interleave_of<Lanes, Element<decltype(type)>>(rows, count, group, width, maps, out); });
}

template <class Lanes>
void widen(const void* row, DType dtype, int64_t width, double* out) {
  with_dtype(dtype, [&](auto type) {
    for (int64_t k = 0; k < width; k += 8)
      load_some<Lanes>(static_cast<decltype(type)>(row) + k, width - k).store(out + k);
  });
}

// The raw scores of core/exact_score.h, their eight lanes side by side. A sum waits for its own last addition, so
// several sums advance together: `Queries` against each of `Banks` rows. Meanwhile the rows `next` are fetched, where
// `Ahead` is set: chosen rows lie far apart, and a row is too short for the processor to foresee its lines.
template <class Lanes, Term term, int Queries, int Banks, bool Ahead, class S>
VB_INLINE void score_some(const double* queries, int64_t query_stride, const S* const (&rows)[Banks],
                          const S* const (&next)[Banks], int64_t width, double* out, int64_t out_stride) {
  Lanes sum[Queries][Banks];
  for (int q = 0; q < Queries; ++q)
    for (int i = 0; i < Banks; ++i) sum[q][i] = Lanes::fill(0.0);
  const auto step = [&](int64_t k, auto&& load) __attribute__((always_inline)) {
    Lanes b[Banks];
    for (int i = 0; i < Banks; ++i) b[i] = load(rows[i] + k);
    for (int q = 0; q < Queries; ++q) {
      const Lanes x = Lanes::load(queries + q * query_stride + k);
      for (int i = 0; i < Banks; ++i) {
        if constexpr (term == Term::square) {
          const Lanes gap = x - b[i];
          sum[q][i] = sum[q][i] + gap * gap;
        } else if constexpr (term == Term::absolute) {
          sum[q][i] = sum[q][i] + (x - b[i]).abs();
        } else {
          sum[q][i] = sum[q][i] + x * b[i];
        }
      }
    }
  };
  const auto load = [](const S* p) __attribute__((always_inline)) { return Lanes::load(p); };
  int64_t k = 0;
  if constexpr (Ahead) {
    constexpr int64_t kLine = 64 / sizeof(S);
    for (; k + kLine <= width; k += kLine) {
      for (int i = 0; i < Banks; ++i) __builtin_prefetch(next[i] + k, 0, 3);
      for (int64_t of = 0; of < kLine; of += 8) step(k + of, load);
    }
    if (k < width)
      for (int i = 0; i < Banks; ++i) __builtin_prefetch(next[i] + k, 0, 3);
  }
  for (; k + 8 <= width; k += 8) step(k, load);
  if (k < width) step(k, [&](const S* p) __attribute__((always_inline)) { return load_some<Lanes>(p, width - k); });
  for (int q = 0; q < Queries; ++q)
    for (int i = 0; i < Banks; ++i) out[q * out_stride + i] = sum[q][i].sum();
}

template <class Lanes, Term term, int Queries, int Banks, bool Ahead, class S>
VB_INLINE int64_t score_runs(const ScoreArgs& a, int q, int64_t begin) {
  const auto row = [&](int64_t i) __attribute__((always_inline)) {
    return static_cast<const S*>(a.bank.data) + (a.index != nullptr ? a.index[i] : a.first + i) * a.bank.row_stride;
  };
  int64_t i = begin;
  for (; i + Banks <= a.count; i += Banks) {
    const S *rows[Banks], *next[Banks];
    for (int r = 0; r < Banks; ++r) {
      rows[r] = row(i + r);
      next[r] = Ahead && i + Banks + r < a.count ? row(i + Banks + r) : rows[r];
    }
    score_some<Lanes, term, Queries, Banks, Ahead>(a.queries + q * a.query_stride, a.query_stride, rows, next,
                                                   a.bank.width, a.out + q * a.count + i, a.count);
  }
  return i;
}

template <class Lanes, Term term, class S>
void score_rows(const ScoreArgs& a) {
  int q = 0;
  for (; q + 4 <= a.query_count; q += 4) score_runs<Lanes, term, 4, 1, false, S>(a, q, 0);
  for (; q < a.query_count; ++q) {
    const int64_t rest = a.index != nullptr ? score_runs<Lanes, term, 1, 4, true, S>(a, q, 0)
                                            : score_runs<Lanes, term, 1, 4, false, S>(a, q, 0);
    score_runs<Lanes, term, 1, 1, false, S>(a, q, rest);
  }
}

template <class Lanes>
void score(const ScoreArgs& a) {
  with_dtype(a.bank.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    switch (a.term) {
      case Term::product: return score_rows<Lanes, Term::product, S>(a);
      case Term::square: return score_rows<Lanes, Term::square, S>(a);
      case Term::absolute: return score_rows<Lanes, Term::absolute, S>(a);
    }
  });
}

}  // namespace
}  // namespace vecbank::cpu
