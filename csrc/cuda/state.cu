// The properties of a device, and its State: counters, and the flag that a code was out of range.
#include <cuda_runtime.h>

#include <atomic>

#include "api.h"

namespace vecbank::cuda {
namespace {

__device__ State state;  // one per device and process

constexpr int kMostDevices = 64;
struct Facts {
  std::atomic<State*> state{nullptr};
  int processors = 0, capability = 0;
};
Facts facts[kMostDevices];

Error message(cudaError_t status) { return status == cudaSuccess ? nullptr : cudaGetErrorString(status); }

}  // namespace

Error use_device(int number, Device* device) {
  // torch has made the device current in its own copy of the CUDA runtime; this copy needs the call too.
  if (const Error e = message(cudaSetDevice(number))) return e;
  if (number >= kMostDevices) return "this build supports at most 64 CUDA devices";
  Facts& f = facts[number];
  if (f.state.load(std::memory_order_acquire) ==
      nullptr) {  // queried once; two threads at once query twice and find the same
    int major = 0, minor = 0;
    void* address = nullptr;
    if (const Error e = message(cudaDeviceGetAttribute(&f.processors, cudaDevAttrMultiProcessorCount, number)))
      return e;
    if (const Error e = message(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number))) return e;
    if (const Error e = message(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number))) return e;
    if (const Error e = message(cudaGetSymbolAddress(&address, state))) return e;
    f.capability = 10 * major + minor;
    f.state.store(static_cast<State*>(address), std::memory_order_release);
  }
  device->processors = f.processors;
  device->capability = f.capability;
  device->state = f.state.load(std::memory_order_acquire);
  return nullptr;
}

bool is_capturing(const Device& device) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t asked = cudaStreamIsCapturing(static_cast<cudaStream_t>(device.stream), &status);
  if (asked == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  (void)cudaGetLastError();  // the default stream may not be asked while another one captures
  return true;
}

Error read_state(int number, int64_t (&counters)[4]) {
  if (const Error e = message(cudaSetDevice(number))) return e;
  if (const Error e = message(cudaDeviceSynchronize())) return e;
  State now{};
  if (const Error e = message(cudaMemcpyFromSymbol(&now, state, sizeof now))) return e;
  counters[0] = static_cast<int64_t>(now.queries);
  counters[1] = static_cast<int64_t>(now.refined);
  counters[2] = static_cast<int64_t>(now.repeated);
  counters[3] = now.bad_codes;
  return nullptr;
}

Error clear_state(int number, bool counters, bool flag) {
  if (const Error e = message(cudaSetDevice(number))) return e;
  if (const Error e = message(cudaDeviceSynchronize())) return e;
  State now{};
  if (const Error e = message(cudaMemcpyFromSymbol(&now, state, sizeof now))) return e;
  if (counters) now.queries = now.refined = now.repeated = 0;
  if (flag) now.bad_codes = 0;
  return message(cudaMemcpyToSymbol(state, &now, sizeof now));
}

}  // namespace vecbank::cuda
