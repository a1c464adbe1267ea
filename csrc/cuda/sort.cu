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
  const uint32_t* in = nullptr;
  uint32_t* out = nullptr;
  cub::DeviceRadixSort::SortPairs(nullptr, bytes, in, out, in, out, count, 0, key_bits(segments));
  return static_cast<int64_t>(bytes);
}

Error sort_pairs(void* scratch, int64_t scratch_bytes, const uint32_t* keys, uint32_t* sorted_keys,
                 const uint32_t* values, uint32_t* sorted_values, int64_t count, int64_t segments,
                 const Device& device) {
  size_t bytes = static_cast<size_t>(scratch_bytes);
  const cudaError_t status =
      cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted_keys, values, sorted_values, count, 0,
                                      key_bits(segments), static_cast<cudaStream_t>(device.stream));
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace vecbank::cuda
