// Measures what plan.h assumes of the tensor cores: how far one mma.sync is from the exact sum, relative to the sum of
// the magnitudes of what it adds. Adversarial sums: large beside tiny, cancelling, many halves of the last bit, every
// exponent. Until this has passed on an architecture, no tensor-core screen may be a default there.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>

#include "../cpp/check.h"
#include "cuda/plan.h"
#include "cuda/ptx.h"

namespace {

using namespace vecbank;

constexpr int kTrials = 4096;  // instructions per kind

struct Sums {
  const float *a, *b;  // [trial][16][8], [trial][8][8] as (k, column)
  float* c;            // [trial][16][8]: in and out
};

__global__ void one_instruction(const Sums s) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float *a = s.a + blockIdx.x * 128, *b = s.b + blockIdx.x * 64;
  float* c = s.c + blockIdx.x * 128;
  const uint32_t left[4] = {__float_as_uint(a[g * 8 + t]), __float_as_uint(a[(g + 8) * 8 + t]),
                            __float_as_uint(a[g * 8 + t + 4]), __float_as_uint(a[(g + 8) * 8 + t + 4])};
  const uint32_t right[2] = {__float_as_uint(b[t * 8 + g]), __float_as_uint(b[(t + 4) * 8 + g])};
  float sum[4];
  for (int e = 0; e < 4; ++e) sum[e] = c[(g + 8 * (e / 2)) * 8 + 2 * t + e % 2];
  cuda::mma_tf32(sum, left, right);
  for (int e = 0; e < 4; ++e) c[(g + 8 * (e / 2)) * 8 + 2 * t + e % 2] = sum[e];
}

float eleven_bits(double x) {  // a float that tf32 holds exactly
  if (x == 0.0) return 0.0f;
  const double unit = std::ldexp(1.0, std::ilogb(x) - 10);
  return static_cast<float>(std::trunc(x / unit) * unit);
}

TEST(tensor_core_accumulation) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  double worst = 0.0;
  for (int kind = 0; kind < 5; ++kind) {
    float *a = nullptr, *b = nullptr, *c = nullptr;
    CHECK(cudaMallocManaged(&a, kTrials * 128 * 4) == cudaSuccess &&
          cudaMallocManaged(&b, kTrials * 64 * 4) == cudaSuccess &&
          cudaMallocManaged(&c, kTrials * 128 * 4) == cudaSuccess);
    if (a == nullptr || b == nullptr || c == nullptr) return;
    for (int i = 0; i < kTrials * 128; ++i) {
      const int k = i % 8;
      const double noise = normal(random), tiny = std::ldexp(1.0, -static_cast<int>(random() % 30));
      const double x = kind == 0   ? noise
                       : kind == 1 ? (k == 0 ? 1.0 : tiny)  // one large, the rest anywhere below
                       : kind == 2
                           ? std::ldexp(1.0 + 0.999 * (noise > 0), -24)  // near half of the accumulator's last bit
                       : kind == 3 ? (k % 2 == 0 ? 1.0 : -1.0) + 0.001 * noise  // cancels
                                   : noise * std::ldexp(1.0, static_cast<int>(random() % 40) - 20);
      a[i] = eleven_bits(x);
      c[i] = static_cast<float>(kind == 2 ? 1.0 : kind == 3 ? tiny : kind == 4 ? noise * tiny : noise);
    }
    for (int i = 0; i < kTrials * 64; ++i) b[i] = eleven_bits(kind == 0 || kind == 4 ? normal(random) : 1.0);
    const std::vector<float> before(c, c + kTrials * 128);
    one_instruction<<<kTrials, 32>>>({a, b, c});
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    for (int trial = 0; trial < kTrials; ++trial)
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
          const int at = trial * 128 + row * 8 + column;
          double sum = before[static_cast<size_t>(at)], size = std::fabs(sum);
          for (int k = 0; k < 8; ++k) {
            const double term = static_cast<double>(a[trial * 128 + row * 8 + k]) * b[trial * 64 + k * 8 + column];
            sum += term;
            size += std::fabs(term);
          }
          if (size > 0.0) worst = std::max(worst, std::fabs(c[at] - sum) / size);
        }
    cudaFree(a), cudaFree(b), cudaFree(c);
  }
  std::printf("     tensor cores, compute capability %d.%d: worst error %.3g of 2^-22 (assumed: %.3g)\n", major, minor,
              worst * 0x1p22, cuda::kTensorUnit * 0x1p22);
  CHECK(worst <= cuda::kTensorUnit);
}

}  // namespace
