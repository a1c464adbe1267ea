// The raw scores of core/exact_score.h, their eight lanes side by side. A sum waits for its own last addition, so
// several sums advance together: some queries against some bank rows.
#pragma once

#include <type_traits>

#include "../core/exact_score.h"
#include "rows.inl.h"

namespace vecbank::cpu {
namespace {

template <class Lanes, int Queries, int Banks>
struct Sums {
  Lanes of[Queries][Banks];

  VB_INLINE void clear() {
    for (int q = 0; q < Queries; ++q)
      for (int i = 0; i < Banks; ++i) of[q][i] = Lanes::fill(0.0);
  }
  VB_INLINE void load(const double* lanes, int64_t stride) {
    for (int q = 0; q < Queries; ++q)
      for (int i = 0; i < Banks; ++i) of[q][i] = Lanes::load(lanes + (q * stride + i) * kLanes);
  }
  VB_INLINE void store(double* lanes, int64_t stride) const {
    for (int q = 0; q < Queries; ++q)
      for (int i = 0; i < Banks; ++i) of[q][i].store(lanes + (q * stride + i) * kLanes);
  }
  VB_INLINE void write(double* out, int64_t stride) const {
    if constexpr (Banks == 4) {
      for (int q = 0; q < Queries; ++q) Lanes::sum4(of[q], out + q * stride);
    } else if constexpr (Queries == 4) {
      for (int i = 0; i < Banks; ++i) {
        const Lanes column[4] = {of[0][i], of[1][i], of[2][i], of[3][i]};
        double four[4];
        Lanes::sum4(column, four);
        for (int q = 0; q < 4; ++q) out[q * stride + i] = four[q];
      }
    } else {
      for (int q = 0; q < Queries; ++q)
        for (int i = 0; i < Banks; ++i) out[q * stride + i] = of[q][i].sum();
    }
  }
};

// Adds the terms of `width` coordinates. Meanwhile the rows `next` are fetched, where `Ahead` is set: chosen rows lie
// far apart, and a row is too short for the processor to foresee its lines.
template <class Lanes, Term term, bool exact, int Queries, int Banks, bool Ahead, class S>
VB_INLINE void add_terms(const double* queries, int64_t query_stride, const S* const (&rows)[Banks],
                         const S* const (&next)[Banks], int64_t width, Sums<Lanes, Queries, Banks>& sums) {
  const auto step = [&](int64_t k, auto&& load) __attribute__((always_inline)) {
    Lanes b[Banks];
    for (int i = 0; i < Banks; ++i) b[i] = load(rows[i] + k);
    for (int q = 0; q < Queries; ++q) {
      const Lanes x = Lanes::load(queries + q * query_stride + k);
      for (int i = 0; i < Banks; ++i) {
        Lanes& sum = sums.of[q][i];
        if constexpr (term == Term::square) {
          const Lanes gap = x - b[i];
          sum = sum + gap * gap;
        } else if constexpr (term == Term::absolute) {
          sum = sum + (x - b[i]).abs();
        } else {
          sum = exact ? Lanes::plus_exact(sum, x, b[i]) : sum + x * b[i];
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
}

template <class S>
VB_INLINE const S* scored_row(const ScoreArgs& a, int64_t i) {
  return static_cast<const S*>(a.bank.data) + (a.index != nullptr ? a.index[i] : a.first + i) * a.bank.row_stride;
}

// `Queries` queries from q on against the rows of the list from `begin` on, as far as whole blocks of `Banks` go.
// Returns the first row that is left.
template <class Lanes, Term term, bool exact, int Queries, int Banks, bool Ahead, class S>
VB_INLINE int64_t score_blocks(const ScoreArgs& a, int q, int64_t begin) {
  const double* queries = a.queries + q * a.query_stride;
  int64_t i = begin;
  for (; i + Banks <= a.count; i += Banks) {
    const S *rows[Banks], *next[Banks];
    for (int r = 0; r < Banks; ++r) {
      rows[r] = scored_row<S>(a, i + r);
      next[r] = !Ahead                          ? rows[r]
                : i + Banks + r < a.count       ? scored_row<S>(a, i + Banks + r)
                : a.lanes != nullptr && !a.ends ? scored_row<S>(a, (i + Banks + r) % a.count) + a.bank.width
                                                : rows[r];
    }
    Sums<Lanes, Queries, Banks> sums;
    double* lanes = a.lanes == nullptr ? nullptr : a.lanes + (q * a.count + i) * kLanes;
    if (lanes == nullptr || a.begins)
      sums.clear();
    else
      sums.load(lanes, a.count);
    add_terms<Lanes, term, exact, Queries, Banks, Ahead>(queries, a.query_stride, rows, next, a.bank.width, sums);
    if (lanes == nullptr || a.ends)
      sums.write(a.out + q * a.out_stride + i, a.out_stride);
    else
      sums.store(lanes, a.count);
  }
  return i;
}

template <class Lanes, Term term, bool exact, class S>
void score_rows(const ScoreArgs& a) {
  int q = 0;
  for (; q + 4 <= a.query_count; q += 4) {
    // The first queries bring the stretch into the caches.
    const int64_t left = a.lanes != nullptr && q == 0
                             ? score_blocks<Lanes, term, exact, 4, Lanes::banks, true, S>(a, q, 0)
                             : score_blocks<Lanes, term, exact, 4, Lanes::banks, false, S>(a, q, 0);
    if (Lanes::banks > 1) score_blocks<Lanes, term, exact, 4, 1, false, S>(a, q, left);
  }
  for (; q < a.query_count; ++q) {
    const int64_t left = a.index != nullptr && a.lanes == nullptr
                             ? score_blocks<Lanes, term, exact, 1, 4, true, S>(a, q, 0)
                             : score_blocks<Lanes, term, exact, 1, 4, false, S>(a, q, 0);
    score_blocks<Lanes, term, exact, 1, 1, false, S>(a, q, left);
  }
}

template <class Lanes>
void score(const ScoreArgs& a) {
  with_dtype(a.bank.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    switch (a.term) {
      // A product of two significands of 24 bits is exact in float64, so it may be fused with the sum.
      case Term::product:
        return a.narrow && !std::is_same_v<S, double> ? score_rows<Lanes, Term::product, true, S>(a)
                                                      : score_rows<Lanes, Term::product, false, S>(a);
      case Term::square: return score_rows<Lanes, Term::square, false, S>(a);
      case Term::absolute: return score_rows<Lanes, Term::absolute, false, S>(a);
    }
  });
}

// The raw score of each row of [first, first + count), or of the chosen ones, with itself.
template <class Lanes>
void squares(const Rows& bank, const int64_t* index, int64_t first, int64_t count, double* out) {
  with_dtype(bank.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    for (int64_t i = 0; i < count; i += 4) {
      const S* rows[4];
      const int64_t left = count - i < 4 ? count - i : 4;
      for (int r = 0; r < 4; ++r) {
        const int64_t at = i + (r < left ? r : left - 1);
        rows[r] = static_cast<const S*>(bank.data) + (index != nullptr ? index[at] : first + at) * bank.row_stride;
      }
      Lanes sum[4];
      for (int r = 0; r < 4; ++r) sum[r] = Lanes::fill(0.0);
      for (int64_t k = 0; k < bank.width; k += 8)
        for (int r = 0; r < 4; ++r) {
          const Lanes v = load_some<Lanes>(rows[r] + k, bank.width - k);
          sum[r] = std::is_same_v<S, double> ? sum[r] + v * v : Lanes::plus_exact(sum[r], v, v);
        }
      double four[4];
      Lanes::sum4(sum, four);
      for (int r = 0; r < left; ++r) out[i + r] = four[r];
    }
  });
}

}  // namespace
}  // namespace vecbank::cpu
