// Both sides of attend() as its loops read them: queries in panels, and bank rows in groups, block by block.
#pragma once

#include <limits>
#include <type_traits>

#include "allowed.h"
#include "pieces.h"
#include "reader.h"

namespace vecbank::cpu {

// The sizes that follow from the kernels of the processor.
struct AttendSizes {
  int64_t block = kernels().attend.block;  // bank rows
  int height = kernels().attend.height;

  // Of a block of rows in groups, with room for what interleaving writes past the end.
  int64_t stride(int64_t width) const { return round_up_to(block * width + 16, 16); }
  int64_t blocks(int64_t rows) const { return ceil_div(rows, block); }
  int64_t rows_of(int64_t number, int64_t rows) const { return std::min(block, rows - number * block); }
  // How many blocks are grouped at a time, where so many numbers are made of each row.
  int64_t blocks_of_piece(int64_t rows, int64_t numbers) const {
    constexpr int64_t most = (24 << 20) / static_cast<int64_t>(sizeof(float));
    return std::min(blocks(rows), std::max<int64_t>(1, most / std::max<int64_t>(1, numbers * block)));
  }
};

constexpr double kLog2E = 1.4426950408889634;  // scores become powers of two

// Rows [first, first + count), at most a block, in groups of rows: products of lanes sum over coordinates.
inline void group_rows(FloatRows& rows, int64_t first, int64_t count, int height, float* out) {
  for (int64_t r = 0; r < count;) {
    const int group = group_height(count - r, height);
    rows.interleave(first + r, group, group, out + r * rows.width());
    r += group;
  }
}

// Copies a group of coordinates. A copy of a constant size takes a few instructions, and no call.
inline void copy_group(const float* from, int group, float* to) {
  const auto copy = [&](auto size) { std::memcpy(to, from, size.value * sizeof(float)); };
  switch (group) {
    case 14: return copy(std::integral_constant<size_t, 14>{});
    case 8: return copy(std::integral_constant<size_t, 8>{});
    case 6: return copy(std::integral_constant<size_t, 6>{});
    default: std::memcpy(to, from, static_cast<size_t>(group) * sizeof(float));
  }
}

// The same rows in groups of coordinates: products of lanes sum over rows.
inline void group_columns(FloatRows& rows, int64_t first, int64_t count, int height, float* out) {
  for (int64_t r = 0; r < count; ++r) {
    const float* row = rows.row(first + r);
    for (int64_t c = 0; c < rows.width();) {
      const int group = group_height(rows.width() - c, height);
      copy_group(row + c, group, out + c * count + r * group);
      c += group;
    }
  }
}

// Queries in panels of 16, padded with zeros.
class Panels {
 public:
  bool reserve(const Rows& rows) {
    rows_ = rows;
    stride_ = (rows.width + 1) * kPanel;  // with room for what interleaving writes past the end
    return panels_.reserve(ceil_div(rows.count, kPanel) * stride_);
  }
  // Panels [from, to).
  void write(FloatRows& rows, int64_t from, int64_t to) {
    for (int64_t p = from; p < to; ++p) {
      const int count = static_cast<int>(std::min<int64_t>(kPanel, rows_.count - p * kPanel));
      rows.interleave(p * kPanel, count, kPanel, panels_.get() + p * stride_);
    }
  }
  const float* panel(int64_t p) const { return panels_.get() + p * stride_; }
  int64_t stride() const { return stride_; }

 private:
  Rows rows_;
  int64_t stride_ = 0;
  Buffer<float> panels_;
};

// Calls f(worker, first, count) for stretches of items, which the workers share.
template <class F>
[[nodiscard]] Status for_stretches(const Parallel& parallel, int64_t items, int64_t together, F&& f) {
  return for_each_task(parallel, ceil_div(items, together), [&](int worker, int64_t task) {
    f(worker, task * together, std::min(together, items - task * together));
  });
}

// Scores [panel][row][16] of some panels of queries, `stride` apart, with `rows` bank rows from `from` on become -inf
// where a query may not be given the row, or where there is no query; before that they are multiplied by the query's
// scale.
inline void exclude(const AllowedRows& allowed, int64_t queries, int64_t panel, int64_t panels, int64_t from,
                    int64_t rows, const float* scale, float* scores, int64_t stride) {
  constexpr float none = -std::numeric_limits<float>::infinity();
  uint16_t words[64];
  for (int64_t p = panel; p < panel + panels; ++p, scores += stride) {
    const int64_t first = p * kPanel, count = std::min<int64_t>(kPanel, queries - first);
    for (int64_t j = 0; j < rows; ++j) {
      for (int64_t i = 0; i < count; ++i) scores[j * kPanel + i] *= scale[first + i];
      for (int64_t i = count; i < kPanel; ++i) scores[j * kPanel + i] = none;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t wanted = ceil_div(rows, 16);
      allowed.words(first + i, from, wanted, words);
      for (int64_t w = 0; w < wanted; ++w) {
        if (words[w] == 0xFFFF) continue;
        for (int64_t j = 16 * w; j < std::min(rows, 16 * w + 16); ++j)
          if ((words[w] >> (j - 16 * w) & 1) == 0) scores[j * kPanel + i] = none;
      }
    }
  }
}

}  // namespace vecbank::cpu
