// Asynchronous copies into shared memory, one function for each instruction. The tests' block emulator has its own
// versions.
#pragma once

#include "launch.h"

#if defined(__CUDACC__)
namespace vecbank::cuda {

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes from global to shared memory without registers. Where `valid` is false it writes zeros and reads
// nothing, but `global` must still be a valid address. Both addresses are 16-byte aligned.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `Pending` of this thread's groups are incomplete. The copies of other threads need a barrier too.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Begins to bring the line at `global` into the first-level cache; nothing waits for it.
__device__ __forceinline__ void prefetch(const void* global) { asm volatile("prefetch.global.L1 [%0];" ::"l"(global)); }

}  // namespace vecbank::cuda
#endif
