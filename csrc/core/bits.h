// Rows of packed bits, and what is asked of them: exact searches by Hamming distance, and by its weighted form on bit
// planes.
#pragma once

#include "allowed.h"

namespace vecbank {

// Bits lie lowest first, from byte 0 on; a row has `planes` planes, one after another, of ceil(bits / 8) bytes each.
// The bits of a plane's last byte that stand for nothing may hold anything.
struct BitRows {
  const uint8_t* data = nullptr;
  int64_t count = 0, stride = 0;  // bytes from a row to the next
  int planes = 1;

  const uint8_t* row(int64_t i) const { return data + i * stride; }
};

// The distance of a query and a bank row: the sum over their planes u and v of 2^(planes below u + planes below v)
// times how many bits of them differ.
struct BitsProblem {
  BitRows queries, bank;
  int64_t bits = 0;  // of a plane
  const Allowed* allowed = nullptr;
  int64_t k = 1;
  int32_t* values = nullptr;   // [queries][k], or of all scores [queries][bank rows]
  int64_t* indices = nullptr;  // [queries][k]

  int64_t bytes() const { return ceil_div(bits, 8); }
};

constexpr int32_t kNoDistance = INT32_MAX;  // of a rank that no row fills
constexpr int kMostBitPlanes = 30;

// The largest distance there can be; -1: more than a distance may be.
inline int64_t largest_bit_distance(int64_t bits, int64_t query_planes, int64_t bank_planes) {
  if (query_planes > kMostBitPlanes || bank_planes > kMostBitPlanes) return -1;
  const int64_t weights = ((int64_t{1} << query_planes) - 1) * ((int64_t{1} << bank_planes) - 1);
  return weights >= kNoDistance || bits > (kNoDistance - 1) / weights ? -1 : bits * weights;
}

}  // namespace vecbank
