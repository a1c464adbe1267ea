// Row-at-a-time work in float64: converting, interleaving and norms.
#pragma once

#include "kernels.h"

namespace vecbank::cpu {
namespace {

// Squares of differences in place of products.
template <class V>
struct Gaps : V {
  using typename V::Reg;
  static VB_INLINE Reg multiply_add(Reg a, Reg b, Reg sum) {
    const Reg gap = V::subtract(a, b);
    return V::multiply_add(gap, gap, sum);
  }
};

// As V::load, of `Width` elements of which only `count` exist, fewer than all; the others are zeros.
template <class V, int Width, class S>
VB_INLINE auto load_end(const S* p, int64_t count) {
  if constexpr (requires { V::load_first(p, count); }) {
    return V::load_first(p, count);
  } else {
    S some[Width] = {};
    for (int64_t i = 0; i < count; ++i) some[i] = p[i];
    return V::load(some);
  }
}

// Eight elements from `p`, of which only `count` exist; the others are zeros.
template <class Lanes, class S>
VB_INLINE Lanes load_some(const S* p, int64_t count) {
  if (__builtin_expect(count >= 8, 1)) return Lanes::load(p);
  return load_end<Lanes, 8>(p, count);
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

// `maps`: null where the rows stay as they are.
template <class Lanes, class S>
void interleave_of(const void* const* rows, int count, int group, int64_t width, const Affine* maps, float* out) {
  alignas(64) float block[16][8];
  for (int r = count; r < (group <= 8 ? 8 : 16); ++r) Lanes::fill(0.0).store(block[r]);
  for (int64_t k = 0; k < width; k += 8) {
    if (maps != nullptr)
      for (int r = 0; r < count; ++r)
        load_mapped<Lanes>(static_cast<const S*>(rows[r]), k, width, maps[r]).store(block[r]);
    else if (std::is_same_v<S, float> && width - k >= 8)  // nothing to convert
      for (int r = 0; r < count; ++r) __builtin_memcpy(block[r], static_cast<const S*>(rows[r]) + k, sizeof block[r]);
    else
      for (int r = 0; r < count; ++r) load_some<Lanes>(static_cast<const S*>(rows[r]) + k, width - k).store(block[r]);
    if (width - k >= 8 && group != 1) {
      // Columns ascend, so what a transposed column spills past its group is overwritten by the next one.
      if (group <= 8) {
        transpose8(block[0], out + k * group, group);
      } else {
        transpose16(block[0], out + k * group, group);
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
void floats_of(const void* row, DType dtype, int64_t width, float* out) {
  with_dtype(dtype, [&](auto type) {
    for (int64_t k = 0; k < width; k += 8)
      load_some<Lanes>(static_cast<decltype(type)>(row) + k, width - k).store(out + k);
  });
}

template <class Lanes>
void widen(const void* row, DType dtype, int64_t width, double* out) {
  with_dtype(dtype, [&](auto type) {
    for (int64_t k = 0; k < width; k += 8)
      load_some<Lanes>(static_cast<decltype(type)>(row) + k, width - k).store(out + k);
  });
}

}  // namespace
}  // namespace vecbank::cpu
