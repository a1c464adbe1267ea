// Positions grouped by the code that they hold: what sums by code and gradients by term go through.
#pragma once

#include "parallel.h"

namespace vecbank::cpu {

// Counts each code of [0, segments); -1 is skipped, and any other code is an error.
inline Status count_codes(const int64_t* codes, int64_t count, int64_t segments, int64_t* counts, Stop stop) {
  std::fill_n(counts, segments, int64_t{0});
  bool bad = false;
  const bool done = in_stretches(stop, 0, count, stretch_of(1), [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to && !bad; ++i) {
      if (codes[i] < -1 || codes[i] >= segments)
        bad = true;
      else if (codes[i] >= 0)
        ++counts[codes[i]];
    }
  });
  return bad ? Status::bad_index : done ? Status::ok : Status::stopped;
}

// Positions of `codes`, grouped by code and ascending within each; code -1 is skipped.
struct Segments {
  Buffer<int64_t> start, order;
  Status build(const int64_t* codes, int64_t count, int64_t segments, Stop stop) {
    if (!start.reserve(segments + 1) || !order.reserve(count)) return Status::out_of_memory;
    const Status counted = count_codes(codes, count, segments, start.get(), stop);
    if (counted != Status::ok) return counted;
    start[segments] = 0;
    int64_t total = 0;
    for (int64_t s = 0; s <= segments; ++s) {  // start[s] becomes the end of segment s - 1
      const int64_t here = start[s];
      start[s] = total;
      total += here;
    }
    const bool done = in_stretches(stop, 0, count, stretch_of(1), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        if (codes[i] >= 0) order[start[codes[i]]++] = i;
    });
    return done ? Status::ok : Status::stopped;
  }
  int64_t begin(int64_t s) const { return s == 0 ? 0 : start[s - 1]; }
  int64_t end(int64_t s) const { return start[s]; }
};

}  // namespace vecbank::cpu
