// A block of query rows, packed the way the panels of a bank expect them.
#pragma once

#include <cmath>

#include "../core/bounds.h"
#include "isa.h"
#include "kernels.h"
#include "reader.h"

namespace vecbank::cpu {

template <class T>
class QueryBlock {
 public:
  bool reserve(const Rows& queries, int64_t rows, int group) {
    group_ = group;
    stride_ = (queries.width + 1) * group;
    return reader_.reserve(queries, group) && packed_.reserve(ceil_div(rows, group) * stride_ + 16) &&
           squares_.reserve(rows) && centre_.reserve(rows) && exponents_.reserve(rows) && usable_.reserve(rows);
  }

  // Packs rows [first, first + count). The map brings a row into the bank's frame: distances share its centre and
  // scale; similarities keep their own origin and, unless they are extreme, their own scale.
  void pack(const Rows& queries, const PackHeader& bank, int64_t first, int64_t count) {
    const Metric metric = static_cast<Metric>(bank.metric);
    const double* centre = bank.centred ? pack_centre(&bank) : nullptr;
    const int64_t d = queries.width;
    const Affine frame{centre, 1.0, std::ldexp(1.0, bank.exponent)};
    const double limit = is_distance(metric) ? std::min(kMaxQueryNorm, std::ldexp(kMaxNorm, bank.exponent))
                         : bank.biased       ? kMaxQueryNorm
                                             : kMaxNorm;
    for (int64_t g = 0; g * group_ < count; ++g) {
      const int n = static_cast<int>(std::min<int64_t>(group_, count - g * group_));
      const void* rows[16];
      Affine maps[16];
      for (int i = 0; i < n; ++i) {
        const int64_t r = g * group_ + i;
        rows[i] = reader_.row(first + r, i);
        if (is_distance(metric)) {
          maps[i] = frame;
          squares_[r] = kernels().stats(rows[i], queries.dtype, d, maps[i]).squares;
          centre_[r] = 0.0;
          exponents_[r] = bank.exponent;
        } else {
          RowStats s = kernels().stats(rows[i], queries.dtype, d, {});
          if (s.squares > 0.0) s.squares += static_cast<double>(d) * 0x1p-1074;  // squares that underflowed
          const double norm = std::sqrt(s.squares);
          const bool extreme = norm > 0.0 && norm <= kMaxNorm && !(norm >= 0x1p-60 && norm <= kMaxQueryNorm);
          exponents_[r] = extreme && !bank.biased ? -std::ilogb(norm) : 0;  // a bias fixes the scale
          maps[i] = {nullptr, 1.0, std::ldexp(1.0, exponents_[r])};
          squares_[r] = s.squares;
          centre_[r] = centre == nullptr ? 0.0 : kernels().stats(rows[i], queries.dtype, d, {centre, 1.0, 1.0}).centre;
        }
      }
      T* out = packed_.get() + g * stride_;
      if constexpr (sizeof(T) == 4)
        kernels().interleave_f32(rows, n, group_, queries.dtype, d, maps, out);
      else
        kernels().interleave_f64(rows, n, group_, queries.dtype, d, maps, out);
      for (int i = 0; i < group_; ++i) out[d * group_ + i] = 0;
      for (int i = 0; i < n; ++i) {
        const int64_t r = g * group_ + i;
        usable_[r] = squares_[r] <= limit * limit;
        if (!usable_[r])
          for (int64_t k = 0; k < d; ++k) out[k * group_ + i] = 0;
      }
    }
  }

  // The coordinate that multiplies the bank's bound line: the row's norm where a screen wants a certificate.
  void set_bound(int64_t row, float norm, int64_t width) {
    packed_[(row / group_) * stride_ + width * group_ + row % group_] = norm;
  }
  // False: float32 cannot carry this row; its coordinates were zeroed and float64 must answer.
  bool usable(int64_t row) const { return usable_[row]; }
  // Packed units for distances, the row's own for similarities; NaN or inf where the row is not finite.
  double squares(int64_t row) const { return squares_[row]; }
  double centre_dot(int64_t row) const { return centre_[row]; }
  int exponent(int64_t row) const { return exponents_[row]; }
  const T* data() const { return packed_.get(); }
  int64_t stride() const { return stride_; }
  int group() const { return group_; }
  const void* original(int64_t i) const { return reader_.row(i); }

 private:
  RowReader reader_;
  int group_ = 1;
  int64_t stride_ = 0;
  Buffer<T> packed_;
  Buffer<double> squares_, centre_;
  Buffer<int32_t> exponents_;
  Buffer<bool> usable_;
};

}  // namespace vecbank::cpu
