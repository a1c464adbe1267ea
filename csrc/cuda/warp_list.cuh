// The best entries that a warp has seen, one to a lane, best first.
#pragma once

#include "candidates.h"
#include "launch.h"
#include "order.h"

namespace vecbank::cuda {

constexpr int kWarpList = 32;  // entries, and so the largest k that a warp serves

template <class T>
__device__ __forceinline__ T of_lane(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
__device__ __forceinline__ Scored of_lane(const Scored& s, int lane) {
  return {__shfl_sync(kAllLanes, s.key, lane), __shfl_sync(kAllLanes, s.index, lane)};
}
__device__ __forceinline__ float of_lane_before(float value) { return __shfl_up_sync(kAllLanes, value, 1); }
__device__ __forceinline__ Scored of_lane_before(const Scored& s) {
  return {__shfl_up_sync(kAllLanes, s.key, 1), __shfl_up_sync(kAllLanes, s.index, 1)};
}
__device__ __forceinline__ bool goes_before(float a, float b) { return a > b; }
__device__ __forceinline__ bool goes_before(const Scored& a, const Scored& b) { return better(a, b); }

// `T`: float or Scored. The whole warp calls every function.
template <class T>
struct WarpList {
  T entry, last;  // of this lane; the k-th of all
  int k;          // at most kWarpList
  // `own`: this lane's entry, best first; from lane k on there is nothing better than in lane k - 1.
  __device__ __forceinline__ WarpList(int wanted, const T& own) : entry(own), k(wanted) { last = of_lane(own, k - 1); }
  // Adds a value, which is the same in every lane. The last entry is dropped.
  __device__ __forceinline__ void push(const T& value) {
    if (!goes_before(value, last)) return;
    const int lane = threadIdx.x % 32, rank = __popc(__ballot_sync(kAllLanes, !goes_before(value, entry)));
    const T before = of_lane_before(entry);
    if (lane >= rank) entry = lane == rank ? value : before;
    last = of_lane(entry, k - 1);
  }
  // Adds the values of those lanes that offer one.
  __device__ __forceinline__ void add(bool offers, const T& value) {
    for (unsigned left = __ballot_sync(kAllLanes, offers && goes_before(value, last)); left != 0; left &= left - 1)
      push(of_lane(value, __ffs(static_cast<int>(left)) - 1));
  }
};

// The threshold of a row by its `count` candidates: the k-th best of their lower bounds, or `threshold` where that is
// better. k <= kWarpList.
__device__ __forceinline__ float raised_threshold(const Candidate* list, int count, int k, float threshold) {
  WarpList<float> lowers(k, -HUGE_VALF);
  for (int base = 0; base < count; base += 32) {
    const int i = base + static_cast<int>(threadIdx.x % 32);
    lowers.add(i < count, i < count ? list[i].lower : -HUGE_VALF);
  }
  return lowers.last > threshold ? lowers.last : threshold;
}

}  // namespace vecbank::cuda
