// The portable mainloop: a tile of query rows x bank columns on ordinary multiply-adds, float32 (128 x 128) or float64
// (64 x 64), double-buffered through shared memory. Both sides come as panels, so every load is a run of 16 elements.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

template <class T>
struct Simt {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));   // elements of a 16-byte load
  static constexpr int kSide = sizeof(T) == 4 ? 8 : 4;               // rows, and columns, of a thread
  static constexpr int kSize = 16 * kSide;                           // rows, and columns, of a block
  static constexpr int kPanels = kSize / kPanel;
  static constexpr int kDepth = 16;                                  // lines per step
  static constexpr int kLine = kSize + 16 * 4 / static_cast<int>(sizeof(T));  // padded: neighbouring lines use other banks
  static constexpr int kBuffer = kDepth * kLine;                     // elements of one side of one step
  static constexpr int64_t kSharedBytes = int64_t{4} * kBuffer * static_cast<int64_t>(sizeof(T));
  static constexpr int kVectors = kSize * kDepth / kVector / kThreads;  // 16-byte loads per thread and side
  static_assert(kVectors * kVector * kThreads == kSize * kDepth);

  struct alignas(16) Vector {
    T v[kVector];
  };

  // Row (or column) of a thread's i-th accumulator row: groups of kVector, 16 threads apart.
  static VB_INLINE int spread(int i, int thread) { return i / kVector * (16 * kVector) + thread * kVector + i % kVector; }
};

// One side of a tile: where panel p of the tile begins, or null past the end.
template <class T>
struct Side {
  const T* panels[Simt<T>::kPanels];
};

// Lines [step * kDepth, ...) of each panel, counted from `first`; zeros past `lines`.
template <class T>
__device__ __forceinline__ void fetch(const Side<T>& side, int64_t first, int64_t step, int64_t lines,
                                      typename Simt<T>::Vector (&out)[Simt<T>::kVectors]) {
  using S = Simt<T>;
  constexpr int per_line = kPanel / S::kVector, per_panel = per_line * S::kDepth;
#pragma unroll
  for (int u = 0; u < S::kVectors; ++u) {
    const int at = u * kThreads + threadIdx.x, panel = at / per_panel, rest = at % per_panel;
    const int64_t line = step * S::kDepth + rest / per_line;
    const T* p = side.panels[panel];
    if (p != nullptr && line < lines) {
      out[u] = *reinterpret_cast<const typename S::Vector*>(p + (first + line) * kPanel + rest % per_line * S::kVector);
    } else {
#pragma unroll
      for (int e = 0; e < S::kVector; ++e) out[u].v[e] = 0;
    }
  }
}

template <class T>
__device__ __forceinline__ void put(const typename Simt<T>::Vector (&in)[Simt<T>::kVectors], T* buffer) {
  using S = Simt<T>;
  constexpr int per_line = kPanel / S::kVector, per_panel = per_line * S::kDepth;
#pragma unroll
  for (int u = 0; u < S::kVectors; ++u) {
    const int at = u * kThreads + threadIdx.x, panel = at / per_panel, rest = at % per_panel;
    *reinterpret_cast<typename S::Vector*>(buffer + rest / per_line * S::kLine + panel * kPanel +
                                           rest % per_line * S::kVector) = in[u];
  }
}

VB_INLINE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}
VB_INLINE double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// acc[i][j] += sum over `lines` lines of x[row i] * b[column j]; x's lines start at its line 0, b's at line 1 (line 0
// and the last are starts). All threads of the block take part; shared memory is free again on return.
template <class T>
__device__ __forceinline__ void multiply(const Side<T>& x, const Side<T>& b, int64_t lines, T* shared,
                                         T (&acc)[Simt<T>::kSide][Simt<T>::kSide]) {
  using S = Simt<T>;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t steps = (lines + S::kDepth - 1) / S::kDepth;
  typename S::Vector next_x[S::kVectors], next_b[S::kVectors];
  fetch<T>(x, 0, 0, lines, next_x);
  fetch<T>(b, 1, 0, lines, next_b);
  put<T>(next_x, shared);
  put<T>(next_b, shared + S::kBuffer);
  __syncthreads();
  for (int64_t step = 0; step < steps; ++step) {
    const T* now = shared + (step % 2) * 2 * S::kBuffer;
    const bool more = step + 1 < steps;
    if (more) {
      fetch<T>(x, 0, step + 1, lines, next_x);
      fetch<T>(b, 1, step + 1, lines, next_b);
    }
#pragma unroll
    for (int l = 0; l < S::kDepth; ++l) {
      T xs[S::kSide], bs[S::kSide];
#pragma unroll
      for (int g = 0; g < S::kSide / S::kVector; ++g) {
        *reinterpret_cast<typename S::Vector*>(xs + g * S::kVector) =
            *reinterpret_cast<const typename S::Vector*>(now + l * S::kLine + S::spread(g * S::kVector, ty));
        *reinterpret_cast<typename S::Vector*>(bs + g * S::kVector) =
            *reinterpret_cast<const typename S::Vector*>(now + S::kBuffer + l * S::kLine + S::spread(g * S::kVector, tx));
      }
#pragma unroll
      for (int i = 0; i < S::kSide; ++i)
#pragma unroll
        for (int j = 0; j < S::kSide; ++j) acc[i][j] = fused(xs[i], bs[j], acc[i][j]);
    }
    if (more) {  // the other buffer: its last readers passed the barrier of the step before
      T* then = shared + ((step + 1) % 2) * 2 * S::kBuffer;
      put<T>(next_x, then);
      put<T>(next_b, then + S::kBuffer);
    }
    __syncthreads();
  }
}

}  // namespace vecbank::cuda
