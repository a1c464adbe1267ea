// A block of query rows, packed in the layout that register tiles need.
#pragma once

#include <cmath>

#include "../core/frame.h"
#include "../core/pack.h"
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
    return reader_.reserve(queries, std::max(group, kOriginals)) &&
           packed_.reserve(ceil_div(rows, group) * stride_ + 16) && frames_.reserve(rows) && centre_.reserve(rows);
  }

  // Packs rows [first, first + count) for the frame of `bank`.
  void pack(const Rows& queries, const PackHeader& bank, int64_t first, int64_t count) {
    const Metric metric = static_cast<Metric>(bank.metric);
    const bool shared = record(metric).shares_frame;
    const double* centre = bank.centred ? pack_centre(&bank) : nullptr;
    const int64_t d = queries.width;
    const Affine frame = shared ? Affine{centre, 1.0, std::ldexp(1.0, bank.exponent)} : Affine{};
    const double limit = query_limit(metric, bank.exponent, bank.biased);
    for (int64_t g = 0; g * group_ < count; ++g) {
      const int n = static_cast<int>(std::min<int64_t>(group_, count - g * group_));
      const void* rows[16];
      Affine maps[16];
      for (int i = 0; i < n; ++i) {
        const int64_t r = g * group_ + i;
        rows[i] = reader_.row(first + r, i);
        const double squares = kernels().stats(rows[i], queries.dtype, d, frame).squares;
        frames_[r] = query_frame(metric, d, squares, bank.exponent, bank.biased, limit);
        maps[i] = shared ? frame : Affine{nullptr, 1.0, std::ldexp(1.0, frames_[r].exponent)};
        centre_[r] =
            shared || centre == nullptr ? 0.0 : kernels().stats(rows[i], queries.dtype, d, {centre, 1.0, 1.0}).centre;
      }
      T* out = packed_.get() + g * stride_;
      if constexpr (sizeof(T) == 4)
        kernels().interleave_f32(rows, n, group_, queries.dtype, d, maps, out);
      else
        kernels().interleave_f64(rows, n, group_, queries.dtype, d, maps, out);
      for (int i = 0; i < group_; ++i) out[d * group_ + i] = 0;
      for (int i = 0; i < n; ++i)
        if (!frames_[g * group_ + i].usable)
          for (int64_t k = 0; k < d; ++k) out[k * group_ + i] = 0;
    }
  }

  // Sets the coordinate that multiplies the bank's bound line: the row's norm, for a screen.
  void set_bound(int64_t row, float norm, int64_t width) {
    packed_[(row / group_) * stride_ + width * group_ + row % group_] = norm;
  }
  // Where the frame is not usable, float32 cannot represent the row: its coordinates are zero, and float64 must score
  // it.
  const QueryFrame& frame(int64_t row) const { return frames_[row]; }
  double centre_dot(int64_t row) const { return centre_[row]; }
  const T* data() const { return packed_.get(); }
  int64_t stride() const { return stride_; }
  int group() const { return group_; }
  // The row with unit stride, which stays until another one is asked for in the same slot.
  static constexpr int kOriginals = 4;
  const void* original(int64_t i, int slot = 0) const { return reader_.row(i, slot); }

 private:
  RowReader reader_;
  int group_ = 1;
  int64_t stride_ = 0;
  Buffer<T> packed_;
  Buffer<QueryFrame> frames_;
  Buffer<double> centre_;
};

}  // namespace vecbank::cpu
