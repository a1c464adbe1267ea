// The self-check of tensor cores on the emulator, whose own mma rounds as badly as the bounds assume: it must pass, and
// it must fail for a tensor core that is made worse in any way that the screens could not bear.
#define VECBANK_EMULATE 1
#include "cuda_emulator.h"

#include "check.h"
#include "cuda/heuristics.h"
#include "cuda/tensor_cores/self_check.cu"

namespace {

using namespace vecbank;

constexpr int kTrials = 12;

template <class Core>
cuda::SelfCheck check_of() {
  cuda::Device device;
  device.processors = 2;
  cuda::SelfCheck found{};
  CHECK(cuda::self_check_of<Core>(&found, kTrials, 7, device) == nullptr);
  CHECK(found.instructions == kTrials * cuda::kSelfCheckKinds);
  return found;
}

// A tensor core that changes what it reads, and its sum.
template <class Change>
struct Changed {
  template <bool Bf16>
  static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint32_t left[4] = {a[0], a[1], a[2], a[3]};
    Change::operands(left, b0, b1);
    cuda::mma_16<Bf16>(c, left, b0, b1);
    for (float& x : c) x = Change::sum(x, Bf16);
  }
};
struct Unchanged {
  static void operands(uint32_t (&)[4], uint32_t&, uint32_t&) {}
  static float sum(float x, bool) { return x; }
};
struct FlushesSubnormals : Unchanged {  // fp16's, on the left side
  static void operands(uint32_t (&a)[4], uint32_t&, uint32_t&) {
    for (uint32_t& word : a)
      for (const uint32_t half : {0xffffu, 0xffff0000u})
        if ((word & half & 0x7c007c00u) == 0) word &= ~half;
  }
};
struct SwapsRows : Unchanged {
  static void operands(uint32_t (&a)[4], uint32_t&, uint32_t&) { std::swap(a[0], a[1]), std::swap(a[2], a[3]); }
};
struct SwapsHalves : Unchanged {  // of k, on one side
  static void operands(uint32_t (&)[4], uint32_t& b0, uint32_t& b1) { std::swap(b0, b1); }
};
struct SwapsNeighbours : Unchanged {
  static void operands(uint32_t (&)[4], uint32_t& b0, uint32_t&) { b0 = b0 << 16 | b0 >> 16; }
};
struct LosesBits : Unchanged {  // adds in 20 bits, four less
  static float sum(float x, bool) { return from_bits(to_bits(x) & ~15u); }
};
struct LosesBitsInFp16 : Unchanged {
  static float sum(float x, bool bf16) { return bf16 ? x : LosesBits::sum(x, false); }
};
struct GivesNaN : Unchanged {
  static float sum(float x, bool) { return x > 100.0f ? NAN : x; }
};

TEST(cuda_self_check_passes_where_the_bounds_hold) {
  const cuda::SelfCheck found = check_of<cuda::TensorCore>();
  CHECK(found.integers == 0.0f && found.subnormals == 0.0f);
  CHECK(cuda::is_sound(found, kTrials) && !cuda::is_sound(found, kTrials + 1));
  // Two steps of the model can lose 5. Sums that come less close would notice less.
  CHECK(found.bf16 > 4.3f && found.fp16 > 4.3f);
  std::printf("     emulated tensor cores: worst error %.3g (bf16), %.3g (fp16) of 2^-22\n", found.bf16, found.fp16);
  cuda::SelfCheck same{}, other{};
  cuda::Device device;
  CHECK(cuda::self_check(&same, kTrials, 7, device) == nullptr && same.bf16 == found.bf16);  // on fewer blocks
  CHECK(cuda::self_check(&other, kTrials, 1000, device) == nullptr && cuda::is_sound(other, kTrials));
}

TEST(cuda_self_check_fails_where_they_do_not) {
  const auto unsound = [](const cuda::SelfCheck& found) { return !cuda::is_sound(found, kTrials); };
  CHECK(!unsound(check_of<Changed<Unchanged>>()));
  const cuda::SelfCheck flushed = check_of<Changed<FlushesSubnormals>>();
  CHECK(unsound(flushed) && flushed.subnormals > 0.0f && flushed.integers == 0.0f);
  for (const cuda::SelfCheck& wrong :
       {check_of<Changed<SwapsRows>>(), check_of<Changed<SwapsHalves>>(), check_of<Changed<SwapsNeighbours>>()})
    CHECK(unsound(wrong) && wrong.integers > 0.0f);
  const cuda::SelfCheck coarse = check_of<Changed<LosesBits>>(), half = check_of<Changed<LosesBitsInFp16>>();
  CHECK(unsound(coarse) && coarse.bf16 > 5.5f && coarse.fp16 > 5.5f);
  CHECK(unsound(half) && half.bf16 <= 5.5f && half.fp16 > 5.5f);
  CHECK(unsound(check_of<Changed<GivesNaN>>()));
  CHECK(unsound({}));  // a kernel that wrote nothing
  const int all = kTrials * cuda::kSelfCheckKinds;
  CHECK(!unsound({0.0f, 0.0f, 5.5f, 5.5f, all}));
  for (const cuda::SelfCheck& one : {cuda::SelfCheck{0.01f, 0.0f, 1.0f, 1.0f, all},
                                     {0.0f, 0.01f, 1.0f, 1.0f, all},
                                     {0.0f, 0.0f, 5.6f, 1.0f, all},
                                     {0.0f, 0.0f, 1.0f, 5.6f, all},
                                     {0.0f, 0.0f, 1.0f, NAN, all},
                                     {0.0f, 0.0f, 1.0f, 1.0f, all - 1}})
    CHECK(unsound(one));
}

TEST(cuda_search_path_by_capability_and_check) {
  using cuda::Path, cuda::TensorCores;
  for (const TensorCores found :
       {TensorCores::unchecked, TensorCores::absent, TensorCores::sound, TensorCores::unsound})
    for (const int capability : {70, 75, 80, 86, 89, 90, 100, 120}) {
      const bool fast = found == TensorCores::sound && capability >= 80;
      for (const bool hopper : {true, false}) {
        const Path best = hopper && capability == 90 ? Path::sm90 : Path::mma16;
        CHECK(cuda::search_path(capability, found, std::nullopt, hopper) == (fast ? best : Path::simt));
        for (const Path wanted : {Path::simt, Path::mma16, Path::sm90})  // forced, checked or not
          CHECK(cuda::search_path(capability, found, wanted, hopper) == wanted);
      }
    }
  for (const Path path : {Path::simt, Path::mma16, Path::sm90})
    CHECK(cuda::path_named(cuda::kPathNames[static_cast<size_t>(path)]) == path);
  CHECK(cuda::path_named("mma") == Path::mma16 && !cuda::path_named("cublas") && !cuda::path_named(""));
}

}  // namespace
