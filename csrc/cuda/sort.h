// A stable sort of (code, position) pairs on the device: CUB's radix sort, behind two functions.
#pragma once

#include "api.h"

namespace vecbank::cuda {

int64_t sort_scratch_bytes(int64_t count, int64_t segments);

// Two halves of each, between which the sort moves to and fro.
struct Sorted {
  uint32_t *keys, *other_keys, *values, *other_values;
};

// Keys lie in [0, segments]. What `pairs` calls keys and values is sorted afterwards; which half that is the host
// knows.
Error sort_pairs(void* scratch, int64_t scratch_bytes, Sorted* pairs, int64_t count, int64_t segments,
                 const Device& device);

}  // namespace vecbank::cuda
