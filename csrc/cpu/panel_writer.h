// Writes float panels of a pack from the bank's rows, in the frame of the pack's header: all of them when a bank is
// packed, or those of one visit where a search needs float panels and the pack holds codes.
#pragma once

#include <algorithm>
#include <limits>

#include "../core/bounds.h"
#include "frame.h"

namespace vecbank::cpu {

template <class T>
class PanelWriter {
 public:
  NormScratch norms;
  Stop stop{};

  bool reserve(const Rows& bank, Stop flag) {
    stop = flag;
    return reader_.reserve(bank, kPanel) && norms.reserve(bank);
  }

  // Writes panel p. `biases`: of all rows; null: none. `numbers`: the floored norms of the panel's rows, where the
  // metric has unit rows. `kind_of(j, facts, number)` is the kind of row j; `number`: its norm or its bias, where there
  // is one.
  template <class KindOf>
  void write(const Rows& bank, const PackHeader& h, int64_t p, const double* biases, double* numbers, KindOf&& kind_of,
             T* panel) {
    const Metric metric = static_cast<Metric>(h.metric);
    const MetricRecord m = record(metric);
    const int64_t d = bank.width;
    const int count = static_cast<int>(std::min<int64_t>(kPanel, bank.count - p * kPanel));
    const double post = std::ldexp(1.0, h.exponent);
    const double* centre = h.centred ? pack_centre(&h) : nullptr;
    T *start = panel, *coordinates = panel + kPanel, *bound = coordinates + d * kPanel, *upper = bound + kPanel;
    constexpr T inf = std::numeric_limits<T>::infinity();
    for (int c = 0; c < kPanel; ++c) start[c] = 0, bound[c] = 0, upper[c] = -inf;

    double whole_norms[kPanel];
    if (m.unit_rows) norms.norms(bank, p * kPanel, count, whole_norms);
    const void* rows[kPanel] = {};
    Affine maps[kPanel];
    bool blank[kPanel] = {}, any_blank = false;
    for (int c = 0; c < count; ++c) {
      if (stop.requested()) return;
      const int64_t j = p * kPanel + c;
      rows[c] = reader_.row(j, c);
      maps[c] = {centre, 1.0, post};
      const auto squares_in = [&](const Affine& map) { return kernels().stats(rows[c], bank.dtype, d, map).squares; };
      double whole = 0.0, number = biases != nullptr ? biases[j] : 1.0;
      if (m.unit_rows) {
        const double norm = whole_norms[c];
        numbers[c] = number = floored(norm);
        maps[c].pre = 1.0 / number;
        whole = norm / number * post;
      }
      const double squares = squares_in(maps[c]);
      if (!m.unit_rows)
        whole = centre == nullptr ? std::sqrt(squares) * kNormRoom : std::sqrt(squares_in({nullptr, 1.0, post}));
      const ColumnFacts f =
          column_facts(metric, squares, whole, m.unit_rows ? number : 1.0, biases != nullptr ? number : 0.0, post);
      const RowKind kind = kind_of(j, f, number);
      blank[c] = kind == RowKind::fallback || kind == RowKind::never || kind == RowKind::far;
      any_blank = any_blank || blank[c];
      if (blank[c]) {
        upper[c] = kind == RowKind::fallback ? inf : -inf;
        continue;
      }
      double r = bank_bound(metric, d, f.packed, f.whole), beta = start_bound(d, 2.0 * std::fabs(f.start));
      if (kind == RowKind::negligible && m.shares_frame) {
        // The first negligible row stands for all: the others are at most this far from it, so none of their scores
        // exceeds its bound.
        const double apart = 2.0 * h.negligible_size * std::sqrt(static_cast<double>(d)) * post * kNormRoom;
        r += apart;
        beta += apart * (f.packed + apart);
      }
      start[c] = static_cast<T>(f.start);
      bound[c] = round_up(r);
      upper[c] = kind == RowKind::negligible && j != h.first_negligible ? -inf : round_up(f.start + beta);
    }
    if constexpr (sizeof(T) == 4)
      kernels().interleave_f32(rows, count, kPanel, bank.dtype, d, maps, coordinates);
    else
      kernels().interleave_f64(rows, count, kPanel, bank.dtype, d, maps, coordinates);
    if (any_blank)
      for (int64_t k = 0; k < d; ++k)
        for (int c = 0; c < count; ++c)
          if (blank[c]) coordinates[k * kPanel + c] = 0;
  }

 private:
  RowReader reader_;
};

}  // namespace vecbank::cpu
