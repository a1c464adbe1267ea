// The instructions of the Hopper kernel, one function for each; CUTLASS's headers contain the assembly. The tests'
// emulator has its own versions (tests/cpp/cuda_emulator_sm90.h).
#pragma once

#include "sm90_layout.h"

#if defined(__CUDACC__)
#include <cuda.h>

#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "../async_copy.h"

namespace vecbank::cuda::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define VECBANK_SM90_CODE 1  // this pass compiles for sm_90a
#endif

// ---- Tensor maps, made on the host ---------------------------------------------------------------------------------

using TensorMap = CUtensorMap;

// The driver's encoder is found at run time, so nothing here links with libcuda. Null where the driver has none.
using Encoder = decltype(&cuTensorMapEncodeTiled);
inline Encoder find_encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
  return status == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encoder>(entry) : nullptr;
}
inline Error encode(const TensorSpec& s, TensorMap* map) {
  if (const Error fault = tensor_spec_fault(s)) return fault;
  static const Encoder encoder = find_encoder();
  if (encoder == nullptr) return "the CUDA driver has no cuTensorMapEncodeTiled (12.0 or later is needed)";
  const auto type = s.type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t size[2] = {s.size[0], s.size[1]}, stride[1] = {s.stride[0]};
  const CUresult made =
      encoder(map, type, 2, const_cast<void*>(s.base), size, stride, s.box, s.step, CU_TENSOR_MAP_INTERLEAVE_NONE,
              CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return made == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refused the operands";
}

#if defined(VECBANK_SM90_CODE)

// ---- Barriers in shared memory -------------------------------------------------------------------------------------

using Transactions = cutlass::arch::ClusterTransactionBarrier;

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  Transactions::init(barrier, static_cast<uint32_t>(arrivals));
}
// Makes fresh barriers visible to the copy engine; a __syncthreads() must follow.
__device__ __forceinline__ void barrier_init_done() { cutlass::arch::fence_barrier_init(); }
// CUTLASS does not tell the compiler that the next two order memory: what was read before an arrival may be overwritten
// after it, and what is read after a wait was written before.
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("" ::: "memory");
  Transactions::arrive(barrier);
}
// Arrives, and adds `bytes` to the bytes that the barrier waits for.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, int bytes) {
  Transactions::arrive_and_expect_tx(barrier, static_cast<uint32_t>(bytes));
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  Transactions::wait(barrier, parity);
  asm volatile("" ::: "memory");
}

// The two consumer groups use the matrix units in turn, through the named barriers 1 and 2 (0 is __syncthreads): one
// group waits at a barrier, and the other arrives at it.
__device__ __forceinline__ void turn_wait(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(128 * kGroups) : "memory");
}
__device__ __forceinline__ void turn_pass(int group) {
  asm volatile("bar.arrive %0, %1;" ::"r"(1 + group), "n"(128 * kGroups) : "memory");
}

// ---- Copies --------------------------------------------------------------------------------------------------------

// Copies a box whose corner is (coordinate, row) of the mapped matrix. Its bytes count for the barrier.
__device__ __forceinline__ void load_box(const TensorMap& map, uint64_t* barrier, void* shared, int64_t coordinate,
                                         int64_t row) {
  cute::SM90_TMA_LOAD_2D::copy(&map, barrier, static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL), shared,
                               static_cast<int32_t>(coordinate), static_cast<int32_t>(row));
}
__device__ __forceinline__ void load_bytes(const void* global, uint64_t* barrier, void* shared, int bytes) {
  cute::SM90_BULK_COPY_G2S::copy(global, barrier, shared, bytes);
}

// ---- Products ------------------------------------------------------------------------------------------------------

// acc[64][kColumns] += a[64][16] b[kColumns][16]^T over a warpgroup, both sides in shared memory. The accumulators must
// not be used before products_wait_all().
template <bool Bf16, size_t... I>
__device__ __forceinline__ void multiply_indices(float (&acc)[kScores], uint64_t a, uint64_t b,
                                                 std::index_sequence<I...>) {
  using namespace cute::SM90::GMMA;
  static_assert(kColumns == 128);
  if constexpr (Bf16)
    MMA_64x128x16_F32BF16BF16_SS<Major::K, Major::K>::fma(a, b, acc[I]...);
  else
    MMA_64x128x16_F32F16F16_SS<Major::K, Major::K>::fma(a, b, acc[I]...);
}
template <bool Bf16>
__device__ __forceinline__ void multiply(float (&acc)[kScores], uint64_t a, uint64_t b) {
  multiply_indices<Bf16>(acc, a, b, std::make_index_sequence<kScores>{});
}
// Orders this thread's writes to its accumulators before the products that follow, and keeps the compiler from moving
// reads and writes of the accumulators across.
__device__ __forceinline__ void products_begin(float (&acc)[kHalves][kScores]) {
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
#pragma unroll
    for (int e = 0; e < kScores; ++e) cute::warpgroup_fence_operand(acc[h][e]);
  cute::warpgroup_arrive();
}
__device__ __forceinline__ void products_go_on() { cute::warpgroup_arrive(); }
__device__ __forceinline__ void products_commit() { cute::warpgroup_commit_batch(); }
// Waits until at most `Pending` batches are incomplete; the operands of the others may be overwritten.
template <int Pending>
__device__ __forceinline__ void products_wait() {
  cute::warpgroup_wait<Pending>();
}
__device__ __forceinline__ void products_wait_all(float (&acc)[kHalves][kScores]) {
  cute::warpgroup_wait<0>();
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
#pragma unroll
    for (int e = 0; e < kScores; ++e) cute::warpgroup_fence_operand(acc[h][e]);
}

// ---- Registers, and a maximum --------------------------------------------------------------------------------------

template <int Count>
__device__ __forceinline__ void give_registers() {
  cutlass::arch::warpgroup_reg_dealloc<Count>();
}
template <int Count>
__device__ __forceinline__ void take_registers() {
  cutlass::arch::warpgroup_reg_alloc<Count>();
}

// The maximum, or NaN if either is NaN, so that a NaN score counts as a hit.
__device__ __forceinline__ float max_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

#endif  // VECBANK_SM90_CODE

}  // namespace vecbank::cuda::sm90
#endif
