// The portable mainloop: a tile of query rows x bank columns by ordinary multiply-adds, in float32 (128 x 128) or
// float64 (64 x 64), with two buffers in shared memory. Both sides are panels, so every load is a run of 16 elements.
#pragma once

#include "async_copy.h"
#include "kernels.h"

namespace vecbank::cuda {

template <class T>
struct Simt {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // elements of a 16-byte load
  static constexpr int kSide = sizeof(T) == 4 ? 8 : 4;              // rows, and columns, of a thread
  static constexpr int kSize = 16 * kSide;                          // rows, and columns, of a block
  static constexpr int kPanels = kSize / kPanel;
  static constexpr int kDepth = 16;  // lines per step
  static constexpr int kLine =
      kSize + 16 * 4 / static_cast<int>(sizeof(T));  // padded: neighbouring lines use other banks
  static constexpr int kBuffer = kDepth * kLine;     // elements of one side of one step
  static constexpr int64_t kSharedBytes = int64_t{4} * kBuffer * static_cast<int64_t>(sizeof(T));
  static constexpr int kVectors = kSize * kDepth / kVector / kThreads;  // 16-byte loads per thread and side
  static_assert(kVectors * kVector * kThreads == kSize * kDepth);

  struct alignas(16) Vector {
    T v[kVector];
  };

  // Row (or column) of a thread's i-th accumulator row: groups of kVector, 16 threads apart.
  static VB_INLINE int spread(int i, int thread) {
    return i / kVector * (16 * kVector) + thread * kVector + i % kVector;
  }
};

// One side of a tile: where this thread's own loads begin; null where no panel is. (An array of all panels of the tile,
// indexed at run time, would be in local memory.)
template <class T>
struct Side {
  const T* mine[Simt<T>::kVectors];
};

// `panel(p)`: the address of line 0 of the tile's panel p, or null past the end.
template <class T, class F>
__device__ __forceinline__ Side<T> make_side(F&& panel) {
  using S = Simt<T>;
  constexpr int per_line = kPanel / S::kVector, per_panel = per_line * S::kDepth;
  Side<T> side;
#pragma unroll
  for (int u = 0; u < S::kVectors; ++u) {
    const unsigned at = u * kThreads + threadIdx.x, within = at % per_panel;
    const T* p = panel(at / per_panel);
    side.mine[u] = p == nullptr ? nullptr : p + within / per_line * kPanel + within % per_line * S::kVector;
  }
  return side;
}

// Starts copying the next kDepth lines of each panel into `buffer`; lines beyond the `remaining` ones become zeros.
// `some`: any readable address.
template <class T, int Line = Simt<T>::kLine>
__device__ __forceinline__ void fetch(Side<T>& side, int remaining, const T* some, T* buffer) {
  using S = Simt<T>;
  constexpr int per_line = kPanel / S::kVector, per_panel = per_line * S::kDepth;
#pragma unroll
  for (int u = 0; u < S::kVectors; ++u) {
    const unsigned at = u * kThreads + threadIdx.x, panel = at / per_panel, within = at % per_panel,
                   line = within / per_line;
    const bool valid = side.mine[u] != nullptr && static_cast<int>(line) < remaining;
    copy_async(buffer + line * Line + panel * kPanel + within % per_line * S::kVector, valid ? side.mine[u] : some,
               valid);
    side.mine[u] += valid ? S::kDepth * kPanel : 0;
  }
}

struct Nothing {
  VB_INLINE void operator()(int) const {}
};

// acc[i][j] += sum over `lines` lines of x[row i] * b[column j]. All threads of the block take part; on return shared
// memory may be overwritten. `between(left)` is called after every kDepth lines, with how many are left, if any.
template <class T, class Between = Nothing>
__device__ __forceinline__ void multiply(Side<T> x, Side<T> b, int lines, const T* some, T* shared,
                                         T (&acc)[Simt<T>::kSide][Simt<T>::kSide], Between&& between = {}) {
  using S = Simt<T>;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  fetch<T>(x, lines, some, shared);
  fetch<T>(b, lines, some, shared + S::kBuffer);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  T *now = shared, *then = shared + 2 * S::kBuffer;
  for (; lines > 0; lines -= S::kDepth) {
    if (lines > S::kDepth) {  // into the other buffer: its last readers passed the barrier of the step before
      fetch<T>(x, lines - S::kDepth, some, then);
      fetch<T>(b, lines - S::kDepth, some, then + S::kBuffer);
      commit_copies();
    }
    const int here = lines < S::kDepth ? lines : S::kDepth;
#pragma unroll 2
    for (int l = 0; l < here; ++l) {
      T xs[S::kSide], bs[S::kSide];
#pragma unroll
      for (int g = 0; g < S::kSide; g += S::kVector) {
        const auto xv = *reinterpret_cast<const typename S::Vector*>(now + l * S::kLine + S::spread(g, ty));
        const auto bv =
            *reinterpret_cast<const typename S::Vector*>(now + S::kBuffer + l * S::kLine + S::spread(g, tx));
#pragma unroll
        for (int e = 0; e < S::kVector; ++e) xs[g + e] = xv.v[e], bs[g + e] = bv.v[e];
      }
#pragma unroll
      for (int i = 0; i < S::kSide; ++i)
#pragma unroll
        for (int j = 0; j < S::kSide; ++j) acc[i][j] = fused(xs[i], bs[j], acc[i][j]);
    }
    if (lines > S::kDepth) between(lines - S::kDepth);
    wait_copies<0>();
    __syncthreads();
    T* swap = now;
    now = then;
    then = swap;
  }
}

}  // namespace vecbank::cuda
