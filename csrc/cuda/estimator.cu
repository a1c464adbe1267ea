// pass_back(): eight threads are the eight lanes of a row, so the bits are those of the CPU. A row is read up to three
// times, the second and third time from a cache.
#include "../core/estimator.h"

#include <type_traits>

#include "kernels.h"

namespace vecbank::cuda {
namespace {

constexpr int kRowsAtOnce = kThreads / kLanes;

struct PassBackArgs {
  PassBackProblem p;
  const void* scale;  // one number in device memory
  DType scale_dtype;
};

// The estimator's tree over eight neighbouring threads; the whole warp takes part.
template <class A>
__device__ __forceinline__ A row_sum(A v) {
  v += __shfl_xor_sync(kAllLanes, v, 4);
  v += __shfl_xor_sync(kAllLanes, v, 1);
  return v + __shfl_xor_sync(kAllLanes, v, 2);
}

template <class S>
__global__ void __launch_bounds__(kThreads) pass_back_kernel(const PassBackArgs a) {
  using A = std::conditional_t<std::is_same_v<S, double>, double, float>;
  const PassBackProblem& p = a.p;
  const int64_t d = p.width;
  const int lane = threadIdx.x % kLanes;
  const A scale = with_dtype(a.scale_dtype,
                             [&](auto type) { return static_cast<A>(widened(*static_cast<decltype(type)>(a.scale))); });
  for (int64_t base = int64_t{blockIdx.x} * kRowsAtOnce; base < p.rows; base += int64_t{gridDim.x} * kRowsAtOnce) {
    const int64_t row = base + threadIdx.x / kLanes, width = row < p.rows ? d : 0;
    const auto at = [&](const void* data, int64_t k) {
      return static_cast<A>(widened(static_cast<const S*>(data)[row * d + k]));
    };
    Rotation<A> f{};
    if (p.estimator == Estimator::rotation) {
      RotationSums<A> sums;
      for (int64_t k = lane; k < width; k += kLanes) sums.add(at(p.grad, k), at(p.x, k), at(p.quantized, k));
      sums = {row_sum(sums.x), row_sum(sums.t), row_sum(sums.g_x), row_sum(sums.g_t)};
      const A inverse_x = inverse_unit(sums.x), inverse_t = inverse_unit(sums.t);
      A bisector = 0;
      for (int64_t k = lane; k < width; k += kLanes)
        bisector += bisector_term(at(p.x, k), at(p.quantized, k), inverse_x, inverse_t);
      f = rotation_of(sums, row_sum(bisector));
    }
    for (int64_t k = lane; k < width; k += kLanes) {
      const A x = at(p.x, k), t = at(p.quantized, k);
      A passed = 0;
      if (p.estimator == Estimator::straight) passed = at(p.grad, k);
      if (p.estimator == Estimator::rotation) passed = f(at(p.grad, k), x, t);
      narrow(static_cast<double>(passed + scale * (x - t)), static_cast<S*>(p.out) + row * d + k);
    }
  }
}

}  // namespace

Error pass_back(const PassBackProblem& p, const void* scale, DType scale_dtype, const Device& device) {
  return with_dtype(p.dtype, [&](auto type) {
    return launch(pass_back_kernel<Element<decltype(type)>>, grid_for(ceil_div(p.rows, kRowsAtOnce)), kThreads, 0,
                  device, PassBackArgs{p, scale, scale_dtype});
  });
}

}  // namespace vecbank::cuda
