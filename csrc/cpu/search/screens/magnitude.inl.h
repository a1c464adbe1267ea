// What decides the scale of a row's codes.
#pragma once

#include "../../mainloop.inl.h"

namespace vecbank::cpu {
namespace {

// The largest magnitude of each of a vector of lanes, of lines that are `stride` wide; never -0.
template <class V>
VB_INLINE typename V::Reg largest_magnitude(const float* lines, int64_t stride, int64_t width) {
  auto most = V::fill(0);
  for (int64_t k = 0; k < width; ++k) {
    const auto x = V::load(lines + k * stride);
    most = V::max(most, V::max(x, V::subtract(V::fill(0), x)));
  }
  return most;
}

}  // namespace
}  // namespace vecbank::cpu
