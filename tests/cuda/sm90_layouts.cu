// CuTe's own answers to what csrc/cuda/tensor_cores/sm90_layout.h works out for itself, compared while this compiles:
// which thread holds which score, where the 128-byte swizzle puts a coordinate, what the fields of a descriptor are.
// Compiling it is the test; it needs no GPU, and nothing of it runs.
#if !defined(__CUDA_ARCH__) && __has_include(<cute/atom/mma_traits_sm90_gmma.hpp>)  // once, not per architecture
#include <cuda.h>

#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include "cuda/tensor_cores/sm90_layout.h"

namespace {

using namespace vecbank::cuda::sm90;
namespace gmma = cute::SM90::GMMA;

// For a compiler's patience: every thread's first four scores, every fourth score of the first four threads.
constexpr bool scores_agree() {
  const gmma::CLayout_64xN<kColumns> layout{};  // (thread, score) -> row + 64 column
  const auto agree = [&](int thread, int e) {
    return static_cast<int>(layout(thread, e)) == score_row(thread, e) + 64 * score_column(thread, e);
  };
  for (int thread = 0; thread < 128; ++thread)
    for (int e = 0; e < 4; ++e)
      if (!agree(thread, e)) return false;
  for (int thread = 0; thread < 4; ++thread)
    for (int e = 0; e < kScores; e += 4)
      if (!agree(thread, e)) return false;
  return true;
}
static_assert(scores_agree());

// The canonical K-major tile: eight rows of 64 coordinates an atom. Steps and halves must be where our offsets say.
template <class Type>
constexpr bool tile_agrees() {
  const decltype(cute::as_position_independent_swizzle_layout(
      cute::tile_to_shape(gmma::Layout_K_SW128_Atom<Type>{},
                          cute::Shape<cute::Int<kColumns>, cute::Int<vecbank::cuda::kOperandDepth>>{}))) layout{};
  for (int row = 0; row < kColumns; row += row < 16 || row >= 120 ? 1 : 8)
    for (int k = 0; k < vecbank::cuda::kOperandDepth; k += 8) {
      // As PTX reads it: from a start moved by whole steps and halves, eight lines of 128 bytes every 1024, and then
      // bits 4-6 exclusive-ored with bits 7-9 of the address.
      const int start = static_cast<int>(kHalfOffset << 4) * (row / 64) + static_cast<int>(kStepOffset << 4) * (k / 16);
      const int plain = start + row % 64 / 8 * kAlignment + row % 8 * kLine + k % 16 * 2;
      if (static_cast<int>(layout(row, k)) * 2 != (plain ^ ((plain >> 7 & 7) << 4))) return false;
    }
  return true;
}
static_assert(tile_agrees<cute::bfloat16_t>() && tile_agrees<cute::half_t>());

constexpr bool descriptor_agrees() {
  for (unsigned address = 0; address < static_cast<unsigned>(kMostShared); address += kAlignment) {
    const uint64_t ours = tile_descriptor(address);
    const uint64_t theirs = static_cast<uint64_t>(address >> 4) | uint64_t{1} << 16 | uint64_t{kAlignment >> 4} << 32 |
                            static_cast<uint64_t>(gmma::LayoutType::B128) << 62;
    if (ours != theirs) return false;
  }
  return true;
}
static_assert(descriptor_agrees());

}  // namespace
#endif
