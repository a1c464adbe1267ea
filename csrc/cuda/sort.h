// A stable sort of (code, position) pairs on the device: CUB's radix sort, behind two functions.
#pragma once

#include "api.h"

namespace vecbank::cuda {

int64_t sort_scratch_bytes(int64_t count, int64_t segments);

// Keys lie in [0, segments].
Error sort_pairs(void* scratch, int64_t scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys,
                 const uint32_t* values, uint32_t* sorted_values, int64_t count, int64_t segments,
                 const Device& device);

}  // namespace vecbank::cuda
