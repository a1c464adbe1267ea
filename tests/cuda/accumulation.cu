// Measures what tensor_cores/bounds.h assumes of the tensor cores: how far one mma.sync is from the exact sum,
// relative to the sum of the magnitudes of what it adds. Adversarial sums: large beside tiny, cancelling, many halves
// of the last bit, every exponent, fp16 subnormals. Until this has passed on an architecture, no tensor-core screen
// may be a default there.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>

#include "../cpp/check.h"
#include "core/half.h"
#include "cuda/tensor_cores/bounds.h"
#include "cuda/tensor_cores/ptx.h"
#include "device_array.h"

namespace {

using namespace vecbank;

constexpr int kTrials = 4096;  // instructions per kind of data

// An instruction: its name, how many products it adds to an accumulator, what it is assumed to lose, and what its
// operands hold of a number.
struct Bf16 {
  static constexpr const char* name = "bf16";
  static constexpr int depth = 16;
  static constexpr double unit = cuda::kTensorUnit;
  static float held(double x) { return widened_f32(to_bfloat16(static_cast<float>(x))); }
  __device__ static uint32_t bits(float x) { return to_bfloat16(x).bits; }
};
struct F16 {
  static constexpr const char* name = "fp16";
  static constexpr int depth = 16;
  static constexpr double unit = cuda::kTensorUnit;
  static float held(double x) { return widened_f32(to_float16(static_cast<float>(x))); }
  __device__ static uint32_t bits(float x) { return to_float16(x).bits; }
};

struct Sums {
  const float *a, *b;  // [trial][16][depth], [trial][depth][8] as (k, column)
  float* c;            // [trial][16][8]: in and out
};

template <class I>
__global__ void one_instruction(const Sums s) {
  constexpr int depth = I::depth;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const float *a = s.a + blockIdx.x * 16 * depth, *b = s.b + blockIdx.x * depth * 8;
  float* c = s.c + blockIdx.x * 128;
  float sum[4];
  for (int e = 0; e < 4; ++e) sum[e] = c[(g + 8 * (e / 2)) * 8 + 2 * t + e % 2];
  uint32_t left[4], right[2];
  for (int e = 0; e < 4; ++e) {
    const float* two = a + (g + 8 * (e % 2)) * depth + 2 * t + 8 * (e / 2);
    left[e] = I::bits(two[0]) | I::bits(two[1]) << 16;
  }
  for (int e = 0; e < 2; ++e) {
    const float* two = b + (2 * t + 8 * e) * 8 + g;
    right[e] = I::bits(two[0]) | I::bits(two[8]) << 16;
  }
  cuda::mma_16<std::is_same_v<I, Bf16>>(sum, left, right[0], right[1]);
  for (int e = 0; e < 4; ++e) c[(g + 8 * (e / 2)) * 8 + 2 * t + e % 2] = sum[e];
}

template <class I>
double worst_error() {
  constexpr int depth = I::depth;
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  double worst = 0.0;
  std::vector<float> a(kTrials * 16 * depth), b(kTrials * depth * 8), c(kTrials * 128);
  const int widest = std::is_same_v<I, F16> ? 10 : 20;  // of exponents either way
  for (int kind = 0; kind < 8; ++kind) {
    for (int i = 0; i < kTrials * 16 * depth; ++i) {
      const int k = i % depth;
      const double noise = normal(random), tiny = std::ldexp(1.0, -static_cast<int>(random() % 30));
      const double x = kind == 0   ? noise
                       : kind == 1 ? (k == 0 ? 1.0 : tiny)  // one large, the rest anywhere below
                       : kind == 2
                           ? std::ldexp(1.0 + 0.999 * (noise > 0), -24)  // near half of the accumulator's last bit
                       : kind == 3 ? (k % 2 == 0 ? 1.0 : -1.0) + 0.001 * noise  // cancels
                       : kind == 4 ? noise * std::ldexp(1.0, static_cast<int>(random() % (2 * widest)) - widest)
                       : kind == 5 ? noise * 0x1p-18  // fp16: subnormals among small numbers
                                   : 255.0 / 128.0 * (kind == 6 ? 0x1p-13 : 0x1p-12);  // just under the unit of a cut
      a[i] = I::held(x);
      if (i % depth < 8)
        c[i / depth * 8 + i % depth] = static_cast<float>(kind == 2   ? 1.0
                                                          : kind == 3 ? tiny
                                                          : kind == 4 ? noise * tiny
                                                          : kind == 5 ? 0.0
                                                          : kind >= 6 ? 1.0
                                                                      : noise);
    }
    for (int i = 0; i < kTrials * depth * 8; ++i)
      b[i] = I::held(kind >= 6 ? 0x1p-13 : kind == 0 || kind >= 4 ? normal(random) : 1.0);
    const std::vector<float> before = c;
    DeviceArray<float> device_a(a), device_b(b), device_c(c);
    one_instruction<I><<<kTrials, 32>>>({device_a.data(), device_b.data(), device_c.data()});
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(device_c.read(c));
    for (int trial = 0; trial < kTrials; ++trial)
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
          const int at = trial * 128 + row * 8 + column;
          double sum = before[static_cast<size_t>(at)], size = std::fabs(sum);
          for (int k = 0; k < depth; ++k) {
            const double term =
                static_cast<double>(a[(trial * 16 + row) * depth + k]) * b[(trial * depth + k) * 8 + column];
            sum += term;
            size += std::fabs(term);
          }
          if (!std::isfinite(c[at])) worst = HUGE_VAL;
          if (size > 0.0) worst = std::max(worst, std::fabs(c[at] - sum) / size);
        }
  }
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  std::printf("     %s tensor cores, compute capability %d.%d: worst error %.3g of 2^-22 (assumed: %.3g)\n", I::name,
              major, minor, worst * 0x1p22, I::unit * 0x1p22);
  return worst;
}

TEST(tensor_core_accumulation_bf16) { CHECK(worst_error<Bf16>() <= Bf16::unit); }
TEST(tensor_core_accumulation_fp16) { CHECK(worst_error<F16>() <= F16::unit); }

}  // namespace
