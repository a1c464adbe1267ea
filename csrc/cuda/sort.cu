// CUB's radix sort, behind the two functions of sort.h.
#include "sort.h"

#include <cub/device/device_radix_sort.cuh>

namespace vecbank::cuda {
namespace {

int key_bits(int64_t segments) {
  int bits = 1;
  while ((int64_t{1} << bits) <= segments) ++bits;
  return bits;
}

}  // namespace

int64_t sort_scratch_bytes(int64_t count, int64_t segments) {
  size_t bytes = 0;
  cub::DoubleBuffer<uint32_t> keys(nullptr, nullptr), values(nullptr, nullptr);
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, count, 0, key_bits(segments));
  return static_cast<int64_t>(bytes);
}

Error sort_pairs(void* scratch, int64_t scratch_bytes, Sorted* pairs, int64_t count, int64_t segments,
                 const Device& device) {
  size_t bytes = static_cast<size_t>(scratch_bytes);
  cub::DoubleBuffer<uint32_t> keys(pairs->keys, pairs->other_keys), values(pairs->values, pairs->other_values);
  const cudaError_t status = cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, values, count, 0, key_bits(segments),
                                                             static_cast<cudaStream_t>(device.stream));
  *pairs = {keys.Current(), keys.Alternate(), values.Current(), values.Alternate()};
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace vecbank::cuda
