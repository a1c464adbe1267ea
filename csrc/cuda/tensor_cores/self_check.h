// What the self-check of a device's tensor cores finds, and when that is what bounds.h assumes. Plain functions, tested
// on the host.
#pragma once

#include "../api.h"
#include "bounds.h"

namespace vecbank::cuda {

constexpr int kSelfCheckKinds = 20;    // ten kinds of sums (sums.h), with bf16 and with fp16
constexpr int kSelfCheckTrials = 512;  // of every kind: 512 x 128 sums each

inline bool is_sound(const SelfCheck& found, int trials = kSelfCheckTrials) {
  const double most = kTensorUnit * 0x1p22;
  return found.instructions == trials * kSelfCheckKinds && found.integers == 0.0f && found.subnormals == 0.0f &&
         found.bf16 <= most && found.fp16 <= most;  // false for a NaN
}

// Runs `trials` instructions of every kind of sum and of both formats, and adds what it finds to *found, which is in
// device memory and must be {}. `first` chooses the numbers.
Error self_check(SelfCheck* found, int trials, uint64_t first, const Device& device);

}  // namespace vecbank::cuda
