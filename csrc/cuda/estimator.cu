// pass_back(): eight threads are the eight lanes of a row, so the bits are those of the CPU. The rotation needs a row
// three times: a row that fits is read once and held in registers, a longer one comes from a cache again.
#include "../core/estimator.h"

#include <type_traits>

#include "rows.cuh"

namespace vecbank::cuda {
namespace {

constexpr int kRowsAtOnce = kThreads / kLanes;
constexpr int kHeld = 8;  // coordinates of each of the three rows that a thread holds

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
    A grad[kHeld], x[kHeld], t[kHeld];
    int64_t held = -1;  // the coordinate from which on they are held
    const auto each = [&](int64_t base, auto&& f) {
#pragma unroll
      for (int e = 0; e < kHeld; ++e)
        if (base + e * kLanes + lane < width) f(e, base + e * kLanes + lane);
    };
    const auto walk = [&](auto&& f) {  // f(e, k): coordinate k of this lane is the e-th that is held
      for (int64_t base = 0; base < width; base += kHeld * kLanes) {
        if (base != held)  // all loads first, so that they are on their way together
          each(base, [&](int e, int64_t k) {
            const auto at = [&](const void* data) {
              return static_cast<A>(element(static_cast<const S*>(data)[row * d + k]));
            };
            grad[e] = at(p.grad), x[e] = at(p.x), t[e] = at(p.quantized);
          });
        held = base;
        each(base, f);
      }
    };
    Rotation<A> f{};
    if (p.estimator == Estimator::rotation) {
      RotationSums<A> sums;
      walk([&](int e, int64_t) { sums.add(grad[e], x[e], t[e]); });
      sums = {row_sum(sums.x), row_sum(sums.t), row_sum(sums.g_x), row_sum(sums.g_t)};
      const A inverse_x = inverse_unit(sums.x), inverse_t = inverse_unit(sums.t);
      A bisector = 0;
      walk([&](int e, int64_t) { bisector += bisector_term(x[e], t[e], inverse_x, inverse_t); });
      f = rotation_of(sums, row_sum(bisector));
    }
    walk([&](int e, int64_t k) {
      A passed = 0;
      if (p.estimator == Estimator::straight) passed = grad[e];
      if (p.estimator == Estimator::rotation) passed = f(grad[e], x[e], t[e]);
      narrow(static_cast<double>(passed + scale * (x[e] - t[e])), static_cast<S*>(p.out) + row * d + k);
    });
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
