// Gathers, and the loss of a quantisation. Sums are float64 in a fixed order, and rounded once. A code out of range
// reads nothing: its row becomes NaN, and a sticky flag tells the host.
#include "arena.h"
#include "rows.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kRowThreads = 128;

// ---- lookup --------------------------------------------------------------------------------------------------------

// Neighbouring threads share an output row: a power of two, at most a warp, so that no index needs a division.
VB_INLINE int threads_shift(int64_t words) {
  int shift = 0;
  while (shift < 5 && int64_t{1} << shift < words) ++shift;
  return shift;
}

struct GatherArgs {
  const int64_t* codes;
  int64_t count, bank_count;
  const char* bank;
  int64_t row_bytes, word_bytes;  // from row to row, from word to word
  void* out;
  int words;     // of a row
  int shift;     // 2^shift threads share a row
  uint64_t nan;  // repeated in 8 bytes
  State* state;
};
constexpr int kGathered = 4;  // rows of a thread that are on their way

template <class W>
__device__ __forceinline__ W filled_with(uint64_t bits) {
  return static_cast<W>(bits);
}
template <>
__device__ __forceinline__ WideWord filled_with<WideWord>(uint64_t bits) {
  const uint32_t low = static_cast<uint32_t>(bits), high = static_cast<uint32_t>(bits >> 32);
  return {{low, high, low, high}};
}

// One code an output row, and no weights: the row is copied, in words as large as all addresses allow. The codebook
// comes from L2, so all that counts is how many words are on their way.
template <class W>
__global__ void __launch_bounds__(kRowThreads) gather_kernel(const GatherArgs a) {
  const int threads = 1 << a.shift, thread = static_cast<int>(threadIdx.x) & (threads - 1);
  const int group = static_cast<int>(threadIdx.x) >> a.shift, groups = kRowThreads >> a.shift;
  const int64_t each = int64_t{groups} * kGathered;
  for (int64_t base = int64_t{blockIdx.x} * each + group; base - group < a.count; base += gridDim.x * each) {
    int64_t code[kGathered];
#pragma unroll
    for (int i = 0; i < kGathered; ++i) {
      const int64_t r = base + i * groups;
      code[i] = r < a.count ? a.codes[r] : -1;
    }
#pragma unroll
    for (int i = 0; i < kGathered; ++i)
      if (thread == 0 && (code[i] < -1 || code[i] >= a.bank_count)) atomicAdd(&a.state->bad_codes, 1u);
    for (int w = thread; w < a.words; w += threads) {
      W word[kGathered];
#pragma unroll
      for (int i = 0; i < kGathered; ++i) {
        word[i] = filled_with<W>(code[i] == -1 ? 0 : a.nan);
        if (code[i] >= 0 && code[i] < a.bank_count)
          word[i] = *reinterpret_cast<const W*>(a.bank + code[i] * a.row_bytes + w * a.word_bytes);
      }
#pragma unroll
      for (int i = 0; i < kGathered; ++i) {
        const int64_t r = base + i * groups;
        if (r < a.count) static_cast<W*>(a.out)[r * a.words + w] = word[i];
      }
    }
  }
}

struct LookupArgs {
  LookupProblem p;
  int shift;  // 2^shift threads share a row
  State* state;
};

// Sums, means and weighted rows. A thread has N neighbouring columns of its row, and several codes' rows on their way.
template <class S, int N>
__global__ void __launch_bounds__(kRowThreads) lookup_kernel(const LookupArgs a) {
  const LookupProblem& p = a.p;
  const int threads = 1 << a.shift, thread = static_cast<int>(threadIdx.x) & (threads - 1);
  const int groups = kRowThreads >> a.shift, k = static_cast<int>(p.k), width = static_cast<int>(p.bank.width);
  const S* weights = static_cast<const S*>(p.weights);
  const int64_t step = int64_t{gridDim.x} * groups;
  for (int64_t r = int64_t{blockIdx.x} * groups + (threadIdx.x >> a.shift); r < p.count; r += step) {
    const int64_t* codes = p.codes + r * k;
    bool bad = false;
    int valid = 0;
    for (int t = 0; t < k; ++t) {
      bad = bad || codes[t] < -1 || codes[t] >= p.bank.count;
      valid += codes[t] >= 0;
    }
    if (bad && thread == 0) atomicAdd(&a.state->bad_codes, 1u);
    const double divisor = p.reduce == Reduce::mean && valid > 0 ? static_cast<double>(valid) : 1.0;
    for (int c = thread * N; c < width; c += threads * N) {
      double sum[N];
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] = bad ? nan("") : 0.0;
#pragma unroll 4
      for (int t = 0; t < (bad ? 0 : k); ++t) {
        const int64_t code = codes[t];
        Neighbours<S, N> x{};
        double weight = 0.0;  // of a code that is absent: adding 0 changes no sum
        if (code >= 0) {
          x = *reinterpret_cast<const Neighbours<S, N>*>(static_cast<const S*>(p.bank.data) + code * p.bank.row_stride +
                                                         c * p.bank.col_stride);
          weight = weights == nullptr ? 1.0 : element(weights[r * k + t]);
        }
#pragma unroll
        for (int i = 0; i < N; ++i) sum[i] = add_rn(sum[i], mul_rn(weight, element(x.of[i])));
      }
      Neighbours<S, N> rounded;
#pragma unroll
      for (int i = 0; i < N; ++i) narrow(divisor == 1.0 ? sum[i] : sum[i] / divisor, &rounded.of[i]);
      *reinterpret_cast<Neighbours<S, N>*>(static_cast<S*>(p.out) + r * width + c) = rounded;
    }
  }
}

struct LookupDotArgs {
  LookupDotProblem p;
  State* state;
};

// Eight lanes share a code.
__global__ void __launch_bounds__(kRowThreads) lookup_dot_kernel(const LookupDotArgs a) {
  const LookupDotProblem& p = a.p;
  const int64_t pairs = p.x.count * p.k, groups = int64_t{gridDim.x} * (kRowThreads / kLanes);
  for (int64_t base = int64_t{blockIdx.x} * (kRowThreads / kLanes); base < pairs; base += groups) {
    const int64_t i = base + threadIdx.x / kLanes;
    const int64_t code = i < pairs ? p.codes[i] : -1;
    const bool bad = code < -1 || code >= p.bank.count, there = !bad && code >= 0;
    double sum = 0.0;
    if (there)  // x and bank may have any two dtypes here
      for (int64_t k = threadIdx.x % kLanes; k < p.x.width; k += kLanes)
        sum = add_rn(sum, mul_rn(at(p.x, i / p.k, k), at(p.bank, code, k)));
    sum = sum_of_8(sum);
    if (i >= pairs || threadIdx.x % kLanes != 0) continue;
    if (bad) atomicAdd(&a.state->bad_codes, 1u);
    store(bad ? nan("") : sum, p.out, p.bank.dtype, i);
  }
}

// ---- The loss of a quantisation ------------------------------------------------------------------------------------

struct LossArgs {
  QuantizeLossProblem p;
  double* squares;  // [blocks]
  int64_t* valid;   // [blocks]
  int64_t blocks;
};
constexpr int kLossRows = 256;  // of a block; fixed, because the order of the sums is

// Adds the squares of one lane of a row, with up to eight coordinates of either row on their way. The square of no gap
// changes no sum.
template <class X, class Q>
__device__ __forceinline__ double add_gaps(double sum, const X* x, const Q* quantized, int width, int lane) {
  constexpr int kAtOnce = sizeof(X) + sizeof(Q) > 8 ? 4 : 8;
#pragma unroll 1
  for (int k = lane; k < width; k += kLanes * kAtOnce) {
    X xs[kAtOnce] = {};
    Q qs[kAtOnce] = {};
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e)
      if (k + e * kLanes < width) xs[e] = x[k + e * kLanes], qs[e] = quantized[k + e * kLanes];
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) {
      const double gap = add_rn(element(xs[e]), -element(qs[e]));
      sum = add_rn(sum, mul_rn(gap, gap));
    }
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) loss_kernel(const LossArgs a) {
  constexpr int groups = kThreads / kLanes, each = kLossRows / groups;
  const QuantizeLossProblem& p = a.p;
  double* squares = reinterpret_cast<double*>(shared_memory());
  int64_t* valid = reinterpret_cast<int64_t*>(squares + kThreads);
  const int64_t d = p.x.width;
  const int lane = threadIdx.x % kLanes;
  const bool dense = p.x.col_stride == 1 && p.quantized.col_stride == 1;
  for (int64_t block = blockIdx.x; block < a.blocks; block += gridDim.x) {
    const int64_t first = block * kLossRows + threadIdx.x / kLanes;  // of this thread's rows, `groups` apart
    unsigned counted = 0, dropped = 0;                               // a bit for each of them
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int64_t r = first + i * groups;
      const bool there = r < p.x.count, kept = there && (p.keep == nullptr || p.keep[r]);
      if (kept && p.codes[r] >= 0) counted |= 1u << i;
      if (there && !kept) dropped |= 1u << i;
    }
    double sum = 0.0;
    const auto rows_of = [&](unsigned rows, auto&& f) {
#pragma unroll 1
      for (int i = 0; i < each; ++i)
        if (rows >> i & 1) f(first + i * groups);
    };
    if (dense)  // any two element types may meet here
      with_dtype(p.x.dtype, [&](auto x) {
        with_dtype(p.quantized.dtype, [&](auto quantized) {
          rows_of(counted, [&](int64_t r) {
            sum = add_gaps(sum, reinterpret_cast<decltype(x)>(row_of(p.x, r)),
                           reinterpret_cast<decltype(quantized)>(row_of(p.quantized, r)), static_cast<int>(d), lane);
          });
        });
      });
    else
      rows_of(counted, [&](int64_t r) {
        for (int64_t k = lane; k < d; k += kLanes) {
          const double gap = add_rn(at(p.x, r, k), -at(p.quantized, r, k));
          sum = add_rn(sum, mul_rn(gap, gap));
        }
      });
    rows_of(dropped, [&](int64_t r) {
      for (int64_t k = lane; k < d; k += kLanes)
        store(at(p.x, r, k), const_cast<void*>(p.quantized.data), p.quantized.dtype, r * d + k);
      if (lane == 0) p.codes[r] = -1;
    });
    squares[threadIdx.x] = sum;
    valid[threadIdx.x] = lane == 0 ? __popc(counted) : 0;
    block_sums(squares, valid);
    if (threadIdx.x == 0) a.squares[block] = squares[0], a.valid[block] = valid[0];
    __syncthreads();
  }
}

constexpr int64_t kSumsBytes = kThreads * static_cast<int64_t>(sizeof(double) + sizeof(int64_t));

// Each block has a mean.
__global__ void __launch_bounds__(kThreads) mean_kernel(const Means a) {
  double* squares = reinterpret_cast<double*>(shared_memory());
  int64_t* valid = reinterpret_cast<int64_t*>(squares + kThreads);
  for (int64_t m = blockIdx.x; m < a.count; m += gridDim.x) {
    double sum = 0.0;
    int64_t rows = 0;
    for (int64_t i = threadIdx.x; i < a.parts; i += kThreads)
      sum = add_rn(sum, a.squares[m * a.parts + i]), rows += a.valid[m * a.parts + i];
    squares[threadIdx.x] = sum;
    valid[threadIdx.x] = rows;
    block_sums(squares, valid);
    const double count = static_cast<double>(valid[0]) * static_cast<double>(a.width);
    if (threadIdx.x == 0) store(squares[0] / fmax(1.0, count), a.out, a.dtype, m);
    __syncthreads();
  }
}

}  // namespace

namespace {

// What all addresses of bank and output have in common, at most 16 bytes; an element where columns lie apart.
int64_t word_of(const LookupProblem& p) {
  const int64_t size = static_cast<int64_t>(size_of(p.bank.dtype));
  if (p.bank.col_stride != 1) return size;
  const uint64_t all = reinterpret_cast<uintptr_t>(p.bank.data) | reinterpret_cast<uintptr_t>(p.out) |
                       static_cast<uint64_t>(p.bank.row_stride * size) | static_cast<uint64_t>(p.bank.width * size);
  int64_t word = 16;
  while (word > size && all % static_cast<uint64_t>(word) != 0) word /= 2;
  return word;
}

template <class W>
Error run_gather(const GatherArgs& a, const Device& device) {
  const dim3 grid = grid_for(ceil_div(a.count, int64_t{kGathered} * (kRowThreads >> a.shift)));
  return launch(gather_kernel<W>, grid, kRowThreads, 0, device, a);
}
Error gather(const LookupProblem& p, const Device& device) {
  const int64_t size = static_cast<int64_t>(size_of(p.bank.dtype)), word = word_of(p);
  const int64_t words = p.bank.width * size / word;
  const GatherArgs a{p.codes,
                     p.count,
                     p.bank.count,
                     static_cast<const char*>(p.bank.data),
                     p.bank.row_stride * size,
                     p.bank.col_stride == 1 ? word : p.bank.col_stride * size,
                     p.out,
                     static_cast<int>(words),
                     threads_shift(words),
                     nan_bits(p.bank.dtype),
                     device.state};
  switch (word) {
    case 16: return run_gather<WideWord>(a, device);
    case 8: return run_gather<uint64_t>(a, device);
    case 4: return run_gather<uint32_t>(a, device);
    default: return run_gather<uint16_t>(a, device);
  }
}

}  // namespace

Error lookup(const LookupProblem& p, const Device& device) {
  if (p.reduce == Reduce::none && p.weights == nullptr) return gather(p, device);
  const bool wide = p.bank.col_stride == 1 && word_of(p) == 16;
  return with_dtype(p.bank.dtype, [&](auto type) {
    using S = Element<decltype(type)>;
    constexpr int several = 16 / static_cast<int>(sizeof(S));
    const LookupArgs a{p, threads_shift(wide ? p.bank.width / several : p.bank.width), device.state};
    const dim3 grid = grid_for(ceil_div(p.count, kRowThreads >> a.shift));
    return launch(wide ? lookup_kernel<S, several> : lookup_kernel<S, 1>, grid, kRowThreads, 0, device, a);
  });
}

Error lookup_dot(const LookupDotProblem& p, const Device& device) {
  return launch(lookup_dot_kernel, grid_for(ceil_div(p.x.count * p.k, kRowThreads / kLanes)), kRowThreads, 0, device,
                LookupDotArgs{p, device.state});
}

int64_t quantize_loss_workspace(int64_t rows) {
  Arena arena(nullptr);
  arena.take<double>(ceil_div(rows, kLossRows));
  arena.take<int64_t>(ceil_div(rows, kLossRows));
  return arena.used();
}

Error quantize_loss(const QuantizeLossProblem& p, void* mean, DType dtype, const Device& device) {
  LossArgs a{p, nullptr, nullptr, ceil_div(p.x.count, kLossRows)};
  Arena arena(device.workspace);
  a.squares = arena.take<double>(a.blocks);
  a.valid = arena.take<int64_t>(a.blocks);
  if (arena.used() > device.workspace_bytes) return kTooSmall;
  VB_TRY(launch(loss_kernel, grid_for(a.blocks), kThreads, kSumsBytes, device, a));
  return means({a.squares, a.valid, 1, a.blocks, p.x.width, mean, dtype}, device);
}

Error means(const Means& a, const Device& device) {
  return launch(mean_kernel, grid_for(a.count), kThreads, kSumsBytes, device, a);
}

}  // namespace vecbank::cuda
