// The CUDA kernels and their drivers, run block by block on the host (cuda_emulator.h), against the CPU's answers bit
// for bit (cuda_cases.h). No GPU is needed. These tests check logic, indexing, barriers, bounds and the order of
// refinement.
#define VECBANK_EMULATE 1
#include "cuda_emulator.h"

#include "cuda/codebook.cu"
#include "cuda/compact.cu"
#include "cuda/estimator.cu"
#include "cuda/few.cu"
#include "cuda/library/project.cu"
#include "cuda/pack.cu"
#include "cuda/pairs.cu"
#include "cuda/project.cu"
#include "cuda/refine.cu"
#include "cuda/refine_all.cu"
#include "cuda/residual.cu"
#include "cuda/screen.cu"
#include "cuda/search.cu"
#include "cuda/segments.cu"
#include "cuda/stages.cu"

namespace vecbank::cuda {

int64_t sort_scratch_bytes(int64_t, int64_t) { return 1; }
Error sort_pairs(void*, int64_t, Sorted* pairs, int64_t count, int64_t, const Device&) {  // stands in for CUB
  const auto [keys, sorted_keys, values, sorted_values] = *pairs;
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
  for (int64_t i = 0; i < count; ++i) {
    sorted_keys[i] = keys[order[static_cast<size_t>(i)]];
    sorted_values[i] = values[order[static_cast<size_t>(i)]];
  }
  *pairs = {sorted_keys, keys, sorted_values, values};
  return nullptr;
}

}  // namespace vecbank::cuda

#include "twin.h"

// The device's memory of the emulator: the host's, in blocks of exactly the size asked for.
const bool twin::Side::kShowsAll = true;
void* twin::Side::take(size_t bytes) { return ::operator new(bytes, std::align_val_t(kAlignment)); }
void twin::Side::give(void* p) { ::operator delete(p, std::align_val_t(kAlignment)); }
bool twin::Side::write(void* device, const void* host, size_t bytes) {
  return std::memcpy(device, host, bytes) != nullptr;
}
bool twin::Side::read(void* host, const void* device, size_t bytes) {
  return std::memcpy(host, device, bytes) != nullptr;
}
vecbank::cuda::Error twin::Side::wait() { return nullptr; }
void twin::Side::hide(void* host, size_t bytes) {
  std::memset(host, 0xff, bytes);  // NaN, or an index that nothing has
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(host, bytes);
#endif
}
void twin::Side::show(void* host, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(host, bytes);
#endif
  std::memset(host, 0xff, bytes);
}
bool twin::Side::hidden(const void* host, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  return __asan_region_is_poisoned(const_cast<void*>(host), bytes) == host;
#else
  return std::memcmp(host, std::vector<unsigned char>(bytes, 0xff).data(), bytes) == 0;
#endif
}

namespace {

bool has_sm90() { return true; }  // the emulator has Hopper's instructions

}  // namespace

#include "cuda_code_cases.h"

namespace {

struct Counting {
  int *lost, *kept;
};
void counting_kernel(const Counting a) {  // each block adds one, with and without an atomic operation
  const int seen = *a.lost;
  __syncthreads();
  if (threadIdx.x != 0) return;
  *a.lost = seen + 1;
  atomicAdd(a.kept, 1);
}

}  // namespace

TEST(cuda_emulator_interleaves_two_blocks) {
  int lost = 0, kept = 0;
  const long long before = emulator::machine().launches;
  CHECK(cuda::launch(counting_kernel, dim3(50, 2), 32, 0, cuda::Device{}, Counting{&lost, &kept}) == nullptr);
  CHECK(emulator::machine().launches == before + 1);
  CHECK(kept == 100);
  CHECK(lost < 100);  // two blocks have read the same number
}

namespace {

// Norms, one pass for each block that the library multiplies, and one to rescore.
TEST(cuda_project_by_library_launches) {
  const int64_t d = 2, m = cuda::kProductColumns;
  for (const DType dtype : {DType::bf16, DType::f16})  // whole, and in blocks of 640 rows
    for (const int64_t n : {1, 640, 641}) {
      const Matrix x(normal<double>(n * d, 93), d, dtype), b(normal<double>(m * d, 94), d, dtype);
      HostProduct host;
      Bench bench;
      const long long before = emulator::machine().launches;
      dense(x, b, Metric::cosine, dtype, [&](ProjectProblem& p) {
        bench.provide(cuda::project_library_workspace(p, bench.device));
        CHECK(ran(cuda::project_by_library, p, cuda::Multiply{&host, HostProduct::run}, bench.device));
      });
      CHECK(host.calls == (dtype == DType::bf16 ? 1 : ceil_div(n, 640)));
      CHECK(emulator::machine().launches - before == 2 + host.calls);
    }
}

// A chunk of queries is packed, screened and refined, and its fallback rows, if any, are refined in full: three
// launches where a bank of one piece and one range is packed (two launches choose the frame, one packs bank and
// queries).
TEST(cuda_search_launches) {
  const Matrix x(normal<double>(20 * 8, 1), 8, DType::f32), b(normal<double>(90 * 8, 2), 8, DType::f32);
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    Bench bench(1);
    const long long before = emulator::machine().launches;
    emulated(x, b, {Metric::l2, 1}, bench);
    CHECK(emulator::machine().launches == before + 6);
  }
}

}  // namespace
