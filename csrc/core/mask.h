// Which bank rows a query may be given: a bool for every pair, read in place, with any strides.
#pragma once

#include "types.h"

namespace vecbank {

// The query's number gives its index in each of x's leading dimensions, and thereby its row of the mask; dimensions are
// merged where one stride serves several. A broadcast mask is therefore never written out.
struct Mask {
  static constexpr int kMaxDims = 6;  // after merging; the binding copies a mask that needs more

  const bool* data = nullptr;  // true: the row may be returned; null: every row may
  int64_t col_stride = 0;
  int64_t first = 0;                                     // the query that row 0 stands for
  int32_t dims = 0;                                      // 0: one row for all queries
  int64_t sizes[kMaxDims] = {}, strides[kMaxDims] = {};  // innermost first

  // Adds the next dimension outwards. False: there is no room for it.
  bool add_dim(int64_t size, int64_t stride) {
    if (size == 1) return true;  // the index is always 0, so the stride does not matter
    if (dims > 0 && stride == strides[dims - 1] * sizes[dims - 1]) {
      sizes[dims - 1] *= size;
      return true;
    }
    if (dims == kMaxDims) return false;
    sizes[dims] = size;
    strides[dims++] = stride;
    return true;
  }

  VB_HOST_DEVICE int64_t row_start(int64_t query) const {  // in elements
    int64_t start = 0, remaining = first + query;
    for (int i = 0; i + 1 < dims; ++i) {
      start += remaining % sizes[i] * strides[i];
      remaining /= sizes[i];
    }
    return dims > 0 ? start + remaining * strides[dims - 1] : start;
  }
  // Whether all queries have one row of it.
  bool shared() const {
    for (int i = 0; i < dims; ++i)
      if (strides[i] != 0) return false;
    return true;
  }
  const bool* row(int64_t query) const { return data + row_start(query); }
  // As bytes, because torch and numpy take any byte but 0 for true, and a C++ bool may hold 0 and 1 alone.
  const unsigned char* bytes(int64_t query) const { return reinterpret_cast<const unsigned char*>(row(query)); }
  bool allows(int64_t query, int64_t column) const { return data == nullptr || bytes(query)[column * col_stride] != 0; }
  Mask from(int64_t query) const {  // the same mask, whose row 0 is this query's
    Mask mask = *this;
    mask.first += query;
    return mask;
  }
};

}  // namespace vecbank
