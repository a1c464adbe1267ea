// Gathers, and the loss of a quantisation. Sums are float64 in a fixed order, and rounded once. A code out of range
// reads nothing: its row becomes NaN, and a sticky flag tells the host.
#include "arena.h"
#include "rows.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kRowThreads = 128;

// ---- lookup --------------------------------------------------------------------------------------------------------

struct LookupArgs {
  LookupProblem p;
  State* state;
};

// A block walks output rows, and its threads walk a row's coordinates.
__global__ void __launch_bounds__(kRowThreads) lookup_kernel(const LookupArgs a) {
  const LookupProblem& p = a.p;
  const int64_t d = p.bank.width;
  const bool plain = p.reduce == Reduce::none && p.weights == nullptr;
  for (int64_t r = blockIdx.x; r < p.count; r += gridDim.x) {
    const int64_t* codes = p.codes + r * p.k;
    bool bad = false;
    int64_t valid = 0;
    for (int64_t t = 0; t < p.k; ++t) {
      bad = bad || codes[t] < -1 || codes[t] >= p.bank.count;
      valid += codes[t] >= 0;
    }
    if (bad && threadIdx.x == 0) atomicAdd(&a.state->bad_codes, 1u);
    for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
      double sum = bad ? nan("") : 0.0;
      if (!bad && plain) {
        if (codes[0] >= 0) sum = at(p.bank, codes[0], c);
      } else if (!bad) {
        for (int64_t t = 0; t < p.k; ++t) {
          if (codes[t] < 0) continue;
          const double w = p.weights == nullptr ? 1.0 : element_of(p.weights, p.bank.dtype, r * p.k + t);
          sum = add_rn(sum, mul_rn(w, at(p.bank, codes[t], c)));
        }
        if (p.reduce == Reduce::mean && valid > 0) sum /= static_cast<double>(valid);
      }
      store(sum, p.out, p.bank.dtype, r * d + c);
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

__global__ void __launch_bounds__(kThreads) loss_kernel(const LossArgs a) {
  const QuantizeLossProblem& p = a.p;
  double* squares = reinterpret_cast<double*>(shared_memory());
  int64_t* valid = reinterpret_cast<int64_t*>(squares + kThreads);
  const int64_t d = p.x.width;
  const int lane = threadIdx.x % kLanes;
  for (int64_t block = blockIdx.x; block < a.blocks; block += gridDim.x) {
    double sum = 0.0;
    int64_t rows = 0;
    for (int i = threadIdx.x / kLanes; i < kLossRows; i += kThreads / kLanes) {
      const int64_t r = block * kLossRows + i;
      const bool there = r < p.x.count, kept = there && (p.keep == nullptr || p.keep[r]);
      const bool counts = kept && p.codes[r] >= 0;
      if (counts) {
        for (int64_t k = lane; k < d; k += kLanes) {
          const double gap = add_rn(at(p.x, r, k), -at(p.quantized, r, k));
          sum = add_rn(sum, mul_rn(gap, gap));
        }
        rows += lane == 0;
      } else if (there && !kept) {
        for (int64_t k = lane; k < d; k += kLanes)
          store(at(p.x, r, k), const_cast<void*>(p.quantized.data), p.quantized.dtype, r * d + k);
        if (lane == 0) p.codes[r] = -1;
      }
    }
    squares[threadIdx.x] = sum;
    valid[threadIdx.x] = rows;
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

Error lookup(const LookupProblem& p, const Device& device) {
  return launch(lookup_kernel, grid_for(p.count), kRowThreads, 0, device, LookupArgs{p, device.state});
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
