// The properties of a device, what the self-check found there, and its State: counters, and the flag that a code was
// out of range.
#include <cuda_runtime.h>

#include <atomic>
#include <mutex>

#include "tensor_cores/self_check.h"

namespace vecbank::cuda {
namespace {

__device__ State state;  // one per device and process
__device__ SelfCheck self_check_found;

struct Facts {
  std::atomic<State*> state{nullptr};
  int processors = 0, capability = 0, l2_bytes = 0;
  std::mutex asking, checking;
  std::atomic<bool> is_checked{false};
  int failures = 0;  // of the self-check to run at all
  Checked checked;
};
constexpr int kMostFailures = 3;  // what lacked memory may run later; what has no kernel for the device never will
Facts facts[kMostDevices];
std::atomic<void (*)(int)> report_unsound{nullptr};

Error message(cudaError_t status) { return status == cudaSuccess ? nullptr : cudaGetErrorString(status); }

// On a stream of its own, so that it waits for nothing else.
Error run_self_check(const Device& device, SelfCheck* found) {
  void* address = nullptr;
  if (const Error e = message(cudaGetSymbolAddress(&address, self_check_found))) return e;
  cudaStream_t stream = nullptr;
  if (const Error e = message(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking))) return e;
  Device own = device;
  own.stream = stream;
  Error error = message(cudaMemsetAsync(address, 0, sizeof *found, stream));
  if (error == nullptr) error = self_check(static_cast<SelfCheck*>(address), kSelfCheckTrials, 0, own);
  if (error == nullptr) error = message(cudaMemcpyAsync(found, address, sizeof *found, cudaMemcpyDeviceToHost, stream));
  const Error waited = message(cudaStreamSynchronize(stream));
  (void)cudaStreamDestroy(stream);
  return error == nullptr ? waited : error;
}

// Finds out about the current device, once.
Error ask(int number, Facts& f) {
  const std::lock_guard<std::mutex> one_at_a_time(f.asking);
  if (f.state.load(std::memory_order_relaxed) != nullptr) return nullptr;
  int major = 0, minor = 0;
  void* address = nullptr;
  if (const Error e = message(cudaDeviceGetAttribute(&f.processors, cudaDevAttrMultiProcessorCount, number))) return e;
  if (const Error e = message(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number))) return e;
  if (const Error e = message(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number))) return e;
  if (const Error e = message(cudaDeviceGetAttribute(&f.l2_bytes, cudaDevAttrL2CacheSize, number))) return e;
  if (const Error e = message(cudaGetSymbolAddress(&address, state))) return e;
  f.capability = 10 * major + minor;
  f.state.store(static_cast<State*>(address), std::memory_order_release);
  return nullptr;
}

Checked check(const Device& device) {
  Checked c;
  if (device.capability < 80) {
    c.outcome = TensorCores::absent;
    return c;
  }
  // Another thread may be capturing a graph, which would forbid this thread to wait.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  c.error = run_self_check(device, &c.found);
  if (c.error != nullptr) (void)cudaGetLastError();  // the next launch would report it again
  (void)cudaThreadExchangeStreamCaptureMode(&mode);
  c.outcome = c.error == nullptr && is_sound(c.found) ? TensorCores::sound : TensorCores::unsound;
  return c;
}

}  // namespace

bool is_capturing(const Device& device) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const bool known = cudaStreamIsCapturing(static_cast<cudaStream_t>(device.stream), &status) == cudaSuccess;
  if (!known) (void)cudaGetLastError();  // the default stream, while another stream is captured
  return !known || status != cudaStreamCaptureStatusNone;
}

Checked tensor_cores(int number, const Device& device) {
  Facts& f = facts[number];
  if (f.is_checked.load(std::memory_order_acquire)) return f.checked;
  if (is_capturing(device)) return {};
  {
    const std::lock_guard<std::mutex> one_at_a_time(f.checking);
    if (f.is_checked.load(std::memory_order_relaxed)) return f.checked;
    Checked found = check(device);
    if (found.error != nullptr && ++f.failures < kMostFailures) {
      found.outcome = TensorCores::unchecked;
      return found;
    }
    f.checked = found;
    f.is_checked.store(true, std::memory_order_release);
  }
  // After the lock is released: Python's report waits for Python's own lock.
  const auto report = report_unsound.load();
  if (report != nullptr && f.checked.outcome == TensorCores::unsound) report(number);
  return f.checked;
}

void report_unsound_to(void (*report)(int)) { report_unsound.store(report); }

Error use_device(int number, Device* device) {
  // torch has made the device current in its own copy of the CUDA runtime; this copy needs the call too.
  if (const Error e = message(cudaSetDevice(number))) return e;
  if (number >= kMostDevices) return "this build supports at most 64 CUDA devices";
  Facts& f = facts[number];
  if (f.state.load(std::memory_order_acquire) == nullptr)
    if (const Error e = ask(number, f)) return e;
  device->number = number;
  device->processors = f.processors;
  device->capability = f.capability;
  device->l2_bytes = f.l2_bytes;
  device->state = f.state.load(std::memory_order_acquire);
  return nullptr;
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
