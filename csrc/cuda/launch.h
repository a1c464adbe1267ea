// How a kernel is started, and the few functions that differ between CUDA C++ and the tests' block emulator
// (tests/cpp/cuda_emulator.h compiles these same files for the host and runs every block there).
#pragma once

#include "api.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

namespace vecbank::cuda {

// Allows a kernel all the shared memory that a block can have. Setting the exact size of a launch would be a race:
// another thread's smaller launch could lower the size before this launch starts.
template <class Args>
cudaError_t raise_shared(void (*kernel)(Args)) {
  int number = 0, most = 0;
  cudaError_t status = cudaGetDevice(&number);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, number);
  return status == cudaSuccess ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most)
                               : status;
}

// Called before and after every launch, for a timer; null, as everywhere else: nothing is called.
inline void (*launch_hook)(const void* kernel, const Device& device, bool before) = nullptr;

// Every kernel takes one struct by value.
template <class Args>
Error launch(void (*kernel)(Args), dim3 grid, int threads, int64_t shared_bytes, const Device& device,
             const Args& args) {
  if (grid.x == 0 || grid.y == 0) return nullptr;
  if (shared_bytes > (48 << 10)) {
    const cudaError_t raised = raise_shared(kernel);
    if (raised != cudaSuccess) {
      (void)cudaGetLastError();  // clears the error, which the next launch would report again
      return cudaGetErrorString(raised);
    }
  }
  const auto watched = reinterpret_cast<const void*>(kernel);
  if (launch_hook != nullptr) launch_hook(watched, device, true);
  kernel<<<grid, threads, static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(device.stream)>>>(args);
  if (launch_hook != nullptr) launch_hook(watched, device, false);
  const cudaError_t launched = cudaGetLastError();
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

// The block's dynamic shared memory.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char vecbank_shared[];
  return vecbank_shared;
}

}  // namespace vecbank::cuda
#endif

#define VB_TRY(call)                                    \
  do {                                                  \
    if (const Error vb_error = (call)) return vb_error; \
  } while (0)

namespace vecbank::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMostBlocks = 1 << 20;  // kernels walk further work in strides of the grid

inline dim3 grid_for(int64_t blocks) {
  return dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
}

}  // namespace vecbank::cuda
