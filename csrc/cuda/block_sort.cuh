// A bitonic sort of a block's list in shared memory.
#pragma once

#include "launch.h"

namespace vecbank::cuda {

// Sorts `size` (a power of two) entries so that no entry comes after one that it goes `before`; all threads of the
// block take part.
template <class T, class Before>
__device__ __forceinline__ void sort_in_block(T* list, int size, Before&& before) {
  for (int run = 2; run <= size; run *= 2)
    for (int gap = run / 2; gap > 0; gap /= 2) {
      for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const int j = i ^ gap;
        if (j <= i) continue;
        const T a = list[i], b = list[j];
        if ((i & run) == 0 ? before(b, a) : before(a, b)) list[i] = b, list[j] = a;
      }
      __syncthreads();
    }
}

}  // namespace vecbank::cuda
