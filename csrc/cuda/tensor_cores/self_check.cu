// Compares one mma.sync (the functions of ptx.h that the screens use) with exact sums in float64: integers, which show
// a wrong layout; fp16 subnormals, which show flushing; adversarial sums (sums.h), which show the rounding.
#include "self_check.h"

#include "../order.h"
#include "../schedule.h"
#include "ptx.h"
#include "sums.h"

namespace vecbank::cuda {
namespace {

struct SelfCheckArgs {
  SelfCheck* found;
  int trials;
  uint64_t first;
};

struct OneProduct {  // of a warp
  uint16_t left[16][16], right[8][16];
  float start[16][8];
};

struct TensorCore {  // a test puts others in its place
  template <bool Bf16>
  __device__ __forceinline__ static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_16<Bf16>(c, a, b0, b1);
  }
};

// One instruction: the worst error of this lane's four sums, relative to the magnitudes that they add.
template <class Core, bool Bf16>
__device__ __forceinline__ float error_of(Sums kind, uint64_t trial, OneProduct& p) {
  using Half = std::conditional_t<Bf16, BFloat16, Float16>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto part = [&](int operand, int at) { return sum_part(kind, Place{trial, operand, at}, Bf16 ? 20 : 10); };
  const auto held = [&](int operand, int at) {
    Half half;
    narrow(part(operand, at), &half);
    return half.bits;
  };
  for (int i = lane; i < 256; i += 32) p.left[i / 16][i % 16] = held(0, i);
  for (int i = lane; i < 128; i += 32) p.right[i / 16][i % 16] = held(1, i);
  for (int i = lane; i < 128; i += 32) p.start[i / 8][i % 8] = static_cast<float>(part(2, i));
  __syncwarp();
  uint32_t left[4], right[4];  // the right side twice
  load_matrices(left, &p.left[lane % 8 + lane / 8 % 2 * 8][lane / 16 * 8]);
  load_matrices(right, &p.right[lane % 8][lane / 8 % 2 * 8]);
  float sum[4];
  for (int e = 0; e < 4; ++e) sum[e] = p.start[g + 8 * (e / 2)][2 * t + e % 2];
  Core::template multiply<Bf16>(sum, left, right[0], right[1]);
  float worst = 0.0f;
  for (int e = 0; e < 4; ++e) {
    const int row = g + 8 * (e / 2), column = 2 * t + e % 2;
    double exact = static_cast<double>(p.start[row][column]), size = fabs(exact);
    for (int k = 0; k < 16; ++k) {
      const double term = mul_rn(widened(Half{p.left[row][k]}), widened(Half{p.right[column][k]}));
      exact = add_rn(exact, term);
      size = add_rn(size, fabs(term));
    }
    const double off = fabs(static_cast<double>(sum[e]) - exact);
    const float error = off == 0.0 ? 0.0f : static_cast<float>(off / size * 0x1p22);
    worst = error <= worst ? worst : error < HUGE_VALF ? error : HUGE_VALF;  // a NaN is as bad as can be
  }
  __syncwarp();  // every lane has read
  return worst;
}

template <class Core>
__global__ void __launch_bounds__(kThreads) self_check_kernel(const __grid_constant__ SelfCheckArgs a) {
  OneProduct& product = reinterpret_cast<OneProduct*>(shared_memory())[threadIdx.x / 32];
  const int warps = static_cast<int>(gridDim.x) * (kThreads / 32);
  float worst[4] = {};  // integers, subnormals, bf16, fp16
  int done = 0;
  for (int i = static_cast<int>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; i < a.trials * kSelfCheckKinds;
       i += warps, ++done) {
    const Sums kind = static_cast<Sums>(i % kSumKinds);
    const bool bf16 = i / kSumKinds % 2 == 0;
    const uint64_t trial = a.first + static_cast<uint64_t>(i);
    const float error = bf16 ? error_of<Core, true>(kind, trial, product) : error_of<Core, false>(kind, trial, product);
#pragma unroll
    for (int which = 0; which < 4; ++which) {
      const int mine = kind == Sums::integers ? 0 : kind == Sums::subnormals ? 1 : bf16 ? 2 : 3;
      if (which == mine) worst[which] = error > worst[which] ? error : worst[which];
    }
  }
  float* found[4] = {&a.found->integers, &a.found->subnormals, &a.found->bf16, &a.found->fp16};
#pragma unroll
  for (int which = 0; which < 4; ++which)
    if (worst[which] > 0.0f) atomic_max(found[which], worst[which]);
  if (threadIdx.x % 32 == 0) atomicAdd(&a.found->instructions, done);
}

template <class Core>
Error self_check_of(SelfCheck* found, int trials, uint64_t first, const Device& device) {
  static_assert(kSelfCheckKinds == 2 * kSumKinds);
  const int64_t warps = int64_t{trials} * kSelfCheckKinds, most = int64_t{8} * device.processors;
  const int64_t blocks = std::min(most, ceil_div(warps, kThreads / 32));
  return launch(self_check_kernel<Core>, grid_for(blocks), kThreads, sizeof(OneProduct) * (kThreads / 32), device,
                SelfCheckArgs{found, trials, first});
}

}  // namespace

Error self_check(SelfCheck* found, int trials, uint64_t first, const Device& device) {
  return self_check_of<TensorCore>(found, trials, first, device);
}

}  // namespace vecbank::cuda
