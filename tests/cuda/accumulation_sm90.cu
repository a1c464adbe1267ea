// The first test to run on a Hopper GPU: one wgmma of sm90_ptx.h. On small integers it must be exact, which checks
// that the hardware reads descriptors, swizzle and fragments as the kernel writes them. On adversarial sums it
// measures the error, which bounds.h assumes to be at most kTensorUnit.
#if __has_include(<cute/arch/mma_sm90_gmma.hpp>)
#include "cuda/tensor_cores/bounds.h"
#include "cuda/tensor_cores/sm90_ptx.h"

#include <cmath>
#include <cstdio>

#include "../cpp/check.h"
#include "core/half.h"
#include "device_array.h"

namespace vecbank::cuda::sm90 {
namespace {

constexpr int kSide = 128;  // rows of either side: two accumulator blocks of 64, and wgmma's N

struct Product {
  const uint16_t *x, *b;  // [trial][128][16]
  float* c;               // [trial][128][128]: in and out
};

template <bool Bf16>
__global__ void __launch_bounds__(128) one_product_kernel(const __grid_constant__ Product p) {
#if defined(VECBANK_SM90_CODE)
  char* base = cuda::shared_memory();
  base += (0u - cuda::shared_address(base)) & (kAlignment - 1);
  const int64_t trial = blockIdx.x;
  for (int i = threadIdx.x; i < 2 * kSide * kStep; i += 128) {
    const int at = i % (kSide * kStep), plain = at / kStep * kLine + at % kStep * 2;
    char* tile = base + i / (kSide * kStep) * kBankBox;
    const uint16_t* from = i < kSide * kStep ? p.x : p.b;
    *reinterpret_cast<uint16_t*>(tile + (plain ^ ((plain >> 7 & 7) << 4))) = from[trial * kSide * kStep + at];
  }
  cutlass::arch::fence_view_async_shared();  // what threads wrote, the matrix unit reads
  __syncthreads();
  float acc[kHalves][kScores];
  float* c = p.c + trial * kSide * kSide;
  const auto place = [](int h, int e) {
    const int thread = static_cast<int>(threadIdx.x);
    return (64 * h + score_row(thread, e)) * kSide + score_column(thread, e);
  };
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
#pragma unroll
    for (int e = 0; e < kScores; ++e) acc[h][e] = c[place(h, e)];
  const uint64_t x = tile_descriptor(cuda::shared_address(base));
  const uint64_t b = tile_descriptor(cuda::shared_address(base + kBankBox));
  products_begin(acc);
#pragma unroll
  for (int h = 0; h < kHalves; ++h) multiply<Bf16>(acc[h], x + h * kHalfOffset, b);
  products_commit();
  products_wait_all(acc);
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
#pragma unroll
    for (int e = 0; e < kScores; ++e) c[place(h, e)] = acc[h][e];
#endif
}

// The worst error of a kind of sums, relative to the magnitudes summed; 0 where all are exact.
template <class T, class Make>
double worst_error(Make&& make) {
  constexpr bool bf16 = std::is_same_v<T, BFloat16>;
  constexpr int trials = 16, side = kSide * kStep, out = kSide * kSide;
  std::vector<uint16_t> x(trials * side), b(trials * side);
  std::vector<float> c(trials * out);
  const auto held = [](double v) {
    T t;
    narrow(v, &t);
    return t.bits;
  };
  for (int i = 0; i < trials * side; ++i) x[i] = held(make(0, i % kStep)), b[i] = held(make(1, i % kStep));
  for (int i = 0; i < trials * out; ++i) c[i] = static_cast<float>(make(2, 0));
  const std::vector<float> before = c;
  DeviceArray<uint16_t> device_x(x), device_b(b);
  DeviceArray<float> device_c(c);
  CHECK(cuda::launch(one_product_kernel<bf16>, dim3(trials), 128, 2 * kBankBox + kAlignment, cuda::Device{},
                     Product{device_x.data(), device_b.data(), device_c.data()}) == nullptr);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(device_c.read(c));
  double worst = 0.0;
  for (int i = 0; i < trials * out; ++i) {
    double sum = before[static_cast<size_t>(i)], size = std::fabs(sum);
    for (int k = 0; k < kStep; ++k) {
      const double term =
          widened(T{x[i / kSide * kStep + k]}) * widened(T{b[(i / out * kSide + i % kSide) * kStep + k]});
      sum += term;
      size += std::fabs(term);
    }
    if (!std::isfinite(c[i])) worst = HUGE_VAL;
    if (size > 0.0) worst = std::max(worst, std::fabs(c[i] - sum) / size);
  }
  return worst;
}

template <class T>
void measure(const char* name) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  const auto integer = [&](int, int) { return static_cast<double>(static_cast<int>(random() % 17) - 8); };
  CHECK(worst_error<T>(integer) == 0.0);
  const auto tiny = [&] { return std::ldexp(1.0, -static_cast<int>(random() % 24)); };
  double worst = 0.0;
  const auto try_it = [&](auto&& make) { worst = std::max(worst, worst_error<T>(make)); };
  try_it([&](int, int) { return normal(random); });
  try_it([&](int side, int k) { return side == 1 ? 1.0 : side == 2 || k == 0 ? 1.0 : tiny(); });  // one large
  try_it([&](int side, int) {  // each near half of the accumulator's last bit
    return side == 2 ? 1.0 : side == 1 ? 0x1p-12 : 0x1p-12 * (1.0 + (random() % 2 == 0 ? 0.99 : 0.0));
  });
  for (const double power : {0x1p-13, 0x1p-12})  // each just under the unit of a cut, all of one sign
    try_it([&](int side, int) { return side == 2 ? 1.0 : side == 1 ? 0x1p-13 : 255.0 / 128.0 * power; });
  try_it([&](int side, int k) {  // cancels
    return side == 2 ? tiny() : side == 1 ? 1.0 : (k % 2 == 0 ? 1.0 : -1.0) + 0.01 * normal(random);
  });
  std::printf("     wgmma %s: worst error %.3g of 2^-22 (assumed: %.3g)\n", name, worst * 0x1p22,
              cuda::kTensorUnit * 0x1p22);
  CHECK(worst <= cuda::kTensorUnit);
}

TEST(tensor_core_accumulation_wgmma) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  if (10 * major + minor != 90) {
    std::printf("     wgmma not measured: compute capability %d.%d\n", major, minor);
    return;
  }
  measure<BFloat16>("bf16");
  measure<Float16>("fp16");
}

}  // namespace
}  // namespace vecbank::cuda::sm90
#endif
