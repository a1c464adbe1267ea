// An array in the device's memory, and copies to it and back: what the programs of this folder use.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <new>
#include <vector>

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(static_cast<size_t>(count)) {
    if (cudaMalloc(&data_, (count_ == 0 ? 1 : count_) * sizeof(T)) != cudaSuccess) throw std::bad_alloc();
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(static_cast<int64_t>(host.size())) { write(host); }
  DeviceArray(DeviceArray&& other) noexcept : count_(other.count_), data_(other.data_) { other.data_ = nullptr; }
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return data_; }
  // Both wait for what was started before them.
  bool write(const std::vector<T>& host) {
    return cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess;
  }
  bool read(std::vector<T>& host) const {
    host.resize(count_);
    return cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};
