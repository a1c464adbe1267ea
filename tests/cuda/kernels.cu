// The kernels' own tests on a GPU, without torch or Python: the cases of the block emulator, in managed memory.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "cuda/api.h"

namespace {

template <class T>
struct Managed {
  using value_type = T;
  Managed() = default;
  template <class U>
  Managed(const Managed<U>&) {}
  T* allocate(size_t count) {
    void* p = nullptr;
    if (cudaMallocManaged(&p, (count == 0 ? 1 : count) * sizeof(T)) != cudaSuccess) throw std::bad_alloc();
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t) { cudaFree(p); }
  template <class U>
  bool operator==(const Managed<U>&) const {
    return true;
  }
};
template <class T>
using Vec = std::vector<T, Managed<T>>;

// Before any test: without a GPU there is nothing to say.
const bool there = [] {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  std::printf("vecbank_cuda_tests: NOT RUN: no CUDA device\n");
  std::exit(77);
}();

bool has_sm90() {
  vecbank::cuda::Device device;
  if (vecbank::cuda::use_device(0, &device) != nullptr) return false;
  device.path = vecbank::cuda::Path::sm90;
  const vecbank::cuda::Error fault = vecbank::cuda::search_fault(device);
  if (fault != nullptr) std::printf("vecbank_cuda_tests: the sm90 path is not tested: %s\n", fault);
  return fault == nullptr;
}

bool ran(vecbank::cuda::Error error) {
  if (error == nullptr) {
    const cudaError_t status = cudaDeviceSynchronize();
    if (status == cudaSuccess) return true;
    error = cudaGetErrorString(status);
  }
  std::printf("  %s\n", error);
  return false;
}

}  // namespace

#include "../cpp/cuda_code_cases.h"
