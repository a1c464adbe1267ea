// Measures what tensor_cores/bounds.h assumes of the tensor cores: how far one mma.sync is from the exact sum, relative
// to the magnitudes that it adds. The kernel and its adversarial sums are those of the self-check, which decides on the
// user's own device; here they are more, and other numbers.
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>

#include "../cpp/check.h"
#include "cuda/tensor_cores/self_check.h"
#include "device_array.h"

namespace {

using namespace vecbank;

constexpr int kTrials = 8 * cuda::kSelfCheckTrials;

TEST(tensor_core_accumulation) {
  cuda::Device device;
  CHECK(cuda::use_device(0, &device) == nullptr);
  if (device.capability < 80) {
    std::printf("     tensor cores not measured: compute capability %d\n", device.capability);
    return;
  }
  std::vector<cuda::SelfCheck> found(1);
  DeviceArray<cuda::SelfCheck> there(found);
  CHECK(cuda::self_check(there.data(), kTrials, uint64_t{1} << 40, device) == nullptr);
  CHECK(cudaDeviceSynchronize() == cudaSuccess && there.read(found));
  const auto [integers, subnormals, bf16, fp16, instructions] = found[0];
  const struct {
    const char* name;
    float worst, assumed;
  } lines[] = {{"integers", integers, 0.0f},
               {"fp16 subnormals", subnormals, 0.0f},
               {"bf16", bf16, static_cast<float>(cuda::kTensorUnit * 0x1p22)},
               {"fp16", fp16, static_cast<float>(cuda::kTensorUnit * 0x1p22)}};
  for (const auto& line : lines)
    std::printf("     mma.sync, compute capability %d.%d, %s: worst error %.3g of 2^-22 (assumed: %.3g)\n",
                device.capability / 10, device.capability % 10, line.name, line.worst, line.assumed);
  CHECK(cuda::is_sound(found[0], kTrials));
}

// As a search does it: not while its stream is captured, and once.
TEST(tensor_core_self_check) {
  cuda::Device device;
  CHECK(cuda::use_device(0, &device) == nullptr);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  device.stream = stream;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cuda::tensor_cores(0, device).outcome == cuda::TensorCores::unchecked);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);  // the capture is still valid
  double ms[2];
  for (double& each : ms) {
    const auto before = std::chrono::steady_clock::now();
    const cuda::Checked checked = cuda::tensor_cores(0, device);
    each = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - before).count();
    CHECK(checked.error == nullptr);
    CHECK(checked.outcome == (device.capability >= 80 ? cuda::TensorCores::sound : cuda::TensorCores::absent));
  }
  std::printf("     the self-check took %.2f ms, and %.4f ms when it was known\n", ms[0], ms[1]);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
}

}  // namespace
