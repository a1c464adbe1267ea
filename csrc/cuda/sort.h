// A stable sort of (code, position) pairs on the device: CUB's radix sort, behind two functions.
#pragma once

#include "api.h"

namespace vecbank::cuda {

int64_t sort_scratch_bytes(int64_t count, int64_t segments);

// Two buffers each for keys and values; the sort writes to both in turn.
struct Sorted {
  uint32_t *keys, *other_keys, *values, *other_values;
};

// Keys lie in [0, segments]. Afterwards `pairs->keys` and `pairs->values` point to the sorted buffers.
Error sort_pairs(void* scratch, int64_t scratch_bytes, Sorted* pairs, int64_t count, int64_t segments,
                 const Device& device);

}  // namespace vecbank::cuda
