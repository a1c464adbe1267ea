// Row access for kernels that need unit stride: returns the row itself, or a contiguous copy of it.
#pragma once

#include <cstring>

#include "isa.h"
#include "kernels.h"
#include "parallel.h"

namespace vecbank::cpu {

// One row in one piece.
inline void copy_row(const Rows& rows, int64_t i, void* to) {
  const int64_t size = static_cast<int64_t>(size_of(rows.dtype));
  const char* from = static_cast<const char*>(rows.row(i));
  if (rows.col_stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(rows.width * size));
    return;
  }
  for (int64_t k = 0; k < rows.width; ++k)
    std::memcpy(static_cast<char*>(to) + k * size, from + k * rows.col_stride * size, static_cast<size_t>(size));
}

class RowReader {
 public:
  bool reserve(const Rows& rows, int slots) {
    rows_ = rows;
    slot_bytes_ = round_up_to(rows.width * static_cast<int64_t>(size_of(rows.dtype)), 64);
    return rows.col_stride == 1 || copies_.reserve(slots * slot_bytes_);
  }
  const void* row(int64_t i, int slot = 0) const {
    if (rows_.col_stride == 1) return rows_.row(i);
    char* copy = copies_.get() + slot * slot_bytes_;
    copy_row(rows_, i, copy);
    return copy;
  }

 private:
  Rows rows_;
  int64_t slot_bytes_ = 0;
  Buffer<char> copies_;
};

// Float32 rows of unit stride from rows of any kind, one or a panel at a time.
class FloatRows {
 public:
  bool reserve(const Rows& rows) {
    rows_ = rows;
    return reader_.reserve(rows, kPanel) && copy_.reserve(rows.width + 16);
  }
  // The row, which stays until another one is asked for.
  const float* row(int64_t i) const {
    const void* row = reader_.row(i);
    if (rows_.dtype == DType::f32) return static_cast<const float*>(row);
    kernels().floats(row, rows_.dtype, rows_.width, copy_.get());
    return copy_.get();
  }
  // `group` rows from i on, of which `count` exist, interleaved: [width][group], and up to 8 elements more.
  void interleave(int64_t i, int count, int group, float* out) const {
    const void* rows[kPanel] = {};
    for (int r = 0; r < count; ++r) rows[r] = reader_.row(i + r, r);
    kernels().interleave_f32(rows, count, group, rows_.dtype, rows_.width, nullptr, out);
  }
  const RowReader& reader() const { return reader_; }
  int64_t width() const { return rows_.width; }

 private:
  Rows rows_;
  RowReader reader_;
  Buffer<float> copy_;
};

// The raw score of a row of unit stride with itself, in the order of core/exact_score.h.
inline double self_squares(const void* row, DType dtype, int64_t width) {
  double squares = 0.0;
  kernels().squares({row, dtype, 1, width, 0, 1}, nullptr, 0, 1, &squares);
  return squares;
}

// The same of rows [first, first + count), or of the listed ones, together where they have unit stride: a sum waits for
// its own last addition. Of others slot 0 of the reader is used.
inline void self_squares(const Rows& rows, const RowReader& reader, const int64_t* index, int64_t first, int64_t count,
                         double* out) {
  if (rows.col_stride == 1) return kernels().squares(rows, index, first, count, out);
  for (int64_t i = 0; i < count; ++i)
    out[i] = self_squares(reader.row(index != nullptr ? index[i] : first + i), rows.dtype, rows.width);
}

}  // namespace vecbank::cpu
