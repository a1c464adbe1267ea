// The kernels' own tests on a GPU, without torch or Python: the cases of the block emulator, in plain device memory.
#include <cuda_runtime.h>

#include <cstdio>

#include "../cpp/check.h"
#include "../cpp/twin.h"
#include "cuda/api.h"

const bool twin::Side::kShowsAll = false;
void* twin::Side::take(size_t bytes) {
  void* p = nullptr;
  return cudaMalloc(&p, bytes) == cudaSuccess ? p : nullptr;
}
void twin::Side::give(void* p) { cudaFree(p); }
bool twin::Side::write(void* device, const void* host, size_t bytes) {
  return cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice) == cudaSuccess;
}
bool twin::Side::read(void* host, const void* device, size_t bytes) {
  return cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost) == cudaSuccess;
}
vecbank::cuda::Error twin::Side::wait() {
  const cudaError_t status = cudaDeviceSynchronize();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
void twin::Side::hide(void*, size_t) {}
void twin::Side::show(void*, size_t) {}
bool twin::Side::hidden(const void*, size_t) { return true; }  // a kernel cannot reach it

namespace {

// Before any test: without a GPU there is nothing to say.
const bool asked = [] {
  why_not_run() = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0 ? nullptr : "no CUDA device";
  };
  return true;
}();

bool has_sm90() {
  vecbank::cuda::Device device;
  if (vecbank::cuda::use_device(0, &device) != nullptr) return false;
  device.path = vecbank::cuda::Path::sm90;
  const vecbank::cuda::Error fault = vecbank::cuda::search_fault(device);
  if (fault != nullptr) std::printf("     the sm90 path is not tested: %s\n", fault);
  return fault == nullptr;
}

}  // namespace

#include "../cpp/cuda_code_cases.h"
