// What Python calls of the ops library by name, through ctypes (python/vecbank/_cuda.py). Nothing here or in
// register_cuda.cpp knows Python, so one library serves every Python. Each function returns null, or what went wrong.
#include <cstdint>

#include "../cuda/heuristics.h"
#include "../cuda/tensor_cores/bounds.h"

#pragma GCC visibility push(default)
extern "C" {

// What the kernels of a device counted since it was last cleared: queries, refined, repeated, codes out of range. Waits
// for the device.
const char* vecbank_cuda_state(int32_t device, int64_t* four) {
  int64_t found[4];
  if (const vecbank::cuda::Error error = vecbank::cuda::read_state(device, found)) return error;
  for (int i = 0; i < 4; ++i) four[i] = found[i];
  return nullptr;
}

const char* vecbank_cuda_clear(int32_t device, bool counters, bool flag) {
  return vecbank::cuda::clear_state(device, counters, flag);
}

// What is known of the device's tensor cores, after a check if there was none: the outcome (0 unchecked, 1 absent, 2
// sound, 3 unsound), the worst error of integers, of subnormals, of bf16 and of fp16 in units of 2^-22, and what
// bounds.h allows the last two. `path`: the screen of searches, or null if VECBANK_CUDA_PATH names none.
const char* vecbank_cuda_tensor_cores(int32_t number, int32_t* outcome, float* five, const char** path) {
  vecbank::cuda::Device device;
  if (const vecbank::cuda::Error error = vecbank::cuda::use_device(number, &device)) return error;
  const vecbank::cuda::Checked checked = vecbank::cuda::tensor_cores(number, device);
  *outcome = static_cast<int32_t>(checked.outcome);
  const vecbank::cuda::SelfCheck& f = checked.found;
  const float all[] = {f.integers, f.subnormals, f.bf16, f.fp16,
                       static_cast<float>(vecbank::cuda::kTensorUnit * 0x1p22)};
  for (int i = 0; i < 5; ++i) five[i] = all[i];
  const auto [name, wanted] = vecbank::cuda::wanted_path();
  *path = name != nullptr && !wanted ? nullptr
                                     : vecbank::cuda::kPathNames[static_cast<size_t>(vecbank::cuda::search_path(
                                           device.capability, checked.outcome, wanted, vecbank::cuda::has_sm90()))];
  return checked.error;
}

// Whom a search tells that it found a device unsound.
const char* vecbank_cuda_report_unsound_to(void (*report)(int)) {
  vecbank::cuda::report_unsound_to(report);
  return nullptr;
}

// This one returns its answer: the architectures that the kernels were compiled for.
const char* vecbank_cuda_architectures() { return VECBANK_CUDA_ARCHITECTURES; }

}  // extern "C"
#pragma GCC visibility pop
