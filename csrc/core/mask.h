// Which bank rows a query may be given: a bool for every pair, read where it lies, whatever its strides.
#pragma once

#include "types.h"

namespace vecbank {

// A row of the mask is found from the query's number through x's leading dimensions, merged where one stride serves
// several. A broadcast mask is therefore never written out.
struct Mask {
  static constexpr int kMaxDims = 6;  // after merging; the binding copies a mask that needs more

  const bool* data = nullptr;  // true: the row may be returned; null: every row may
  int64_t col_stride = 0;
  int64_t first = 0;                                     // the query that row 0 stands for
  int32_t dims = 0;                                      // 0: one row for all queries
  int64_t sizes[kMaxDims] = {}, strides[kMaxDims] = {};  // innermost first

  // Adds the next dimension outwards. False: no room for it.
  bool add_dim(int64_t size, int64_t stride) {
    if (size == 1) return true;  // its index is always 0, so its stride says nothing
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
    int64_t start = 0, rest = first + query;
    for (int i = 0; i + 1 < dims; ++i) {
      start += rest % sizes[i] * strides[i];
      rest /= sizes[i];
    }
    return dims > 0 ? start + rest * strides[dims - 1] : start;
  }
  const bool* row(int64_t query) const { return data + row_start(query); }
  bool allows(int64_t query, int64_t column) const { return data == nullptr || row(query)[column * col_stride]; }
  Mask from(int64_t query) const {  // the same mask, its rows counted from this query on
    Mask mask = *this;
    mask.first += query;
    return mask;
  }
};

}  // namespace vecbank
