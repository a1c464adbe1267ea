// The nouns every layer shares: element types, metrics, strided views, the parallel-for callback.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

// Small functions that a CUDA kernel needs too are written once, for both sides.
#if defined(__CUDACC__)
#define VB_SHARED __host__ __device__
#else
#define VB_SHARED
#endif
#define VB_INLINE VB_SHARED inline __attribute__((always_inline))

namespace vecbank {

enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
enum class Metric : int32_t { dot = 0, cosine = 1, l2 = 2, sqeuclidean = 3 };
enum class Status : int32_t { ok = 0, out_of_memory = 1, bad_index = 2, stopped = 3 };

// A norm below this counts as this constant (cosine of a zero vector is 0, not NaN).
constexpr double kNormFloor = 1e-8;

// `l2` and `sqeuclidean` are one computation; they differ in the last step only.
VB_INLINE constexpr bool is_distance(Metric m) { return m == Metric::l2 || m == Metric::sqeuclidean; }

VB_INLINE constexpr size_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

// A strided matrix of vectors, strides in elements. The data may be read, never written.
struct Rows {
  const void* data = nullptr;
  DType dtype = DType::f32;
  int64_t count = 0, width = 0;
  int64_t row_stride = 0, col_stride = 1;

  const void* row(int64_t i) const {
    return static_cast<const char*>(data) + i * row_stride * static_cast<int64_t>(size_of(dtype));
  }
};

// A flag that the caller raises, from any thread, to have a long call given up. Kernels look at it often enough to
// return within a tenth of a second or so, and never write it. What a stopped call has written is worth nothing.
struct Stop {
  const std::atomic<bool>* flag = nullptr;  // null: nobody can stop this call

  bool asked() const { return flag != nullptr && flag->load(std::memory_order_relaxed); }
};

// Threads belong to the caller: `run` calls body(arg, w) for every w in [0, workers), in any order, and returns
// when all are done. Nothing may throw inside.
struct Parallel {
  int workers = 1;
  void* context = nullptr;
  void (*run)(void* context, int workers, void (*body)(void* arg, int worker), void* arg) = nullptr;
  Stop stop;
};

}  // namespace vecbank
