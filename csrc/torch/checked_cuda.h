// What the CUDA ops share: the device of an op, its workspace, and what is checked before a kernel sees an argument.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>
#include <cstring>

#include "../cuda/api.h"
#include "common.h"

namespace vecbank::ops_cuda {

Tensor pack(const Tensor& bank, int64_t metric_code, const std::optional<Tensor>& bias, bool stamp = false);

using cuda::Device;

inline void check(cuda::Error error) {
  STD_TORCH_CHECK(error == nullptr, "vecbank: CUDA: ", error == nullptr ? "" : error);
}

inline cuda::Path wanted_path() {
  const char* name = std::getenv("VECBANK_CUDA_PATH");
  if (name == nullptr || *name == 0 || std::strcmp(name, "simt") == 0) return cuda::Path::simt;
  if (std::strcmp(name, "mma16") == 0) return cuda::Path::mma16;
  if (std::strcmp(name, "sm90") == 0) return cuda::Path::sm90;  // NEVER RUN
  STD_TORCH_CHECK(std::strcmp(name, "mma") == 0, "vecbank: VECBANK_CUDA_PATH must be simt, mma, mma16 or sm90, got ",
                  name);
  return cuda::Path::mma;
}

// The device of an op's first tensor, made current for as long as this lives.
class Place {
 public:
  explicit Place(const Tensor& t, const char* name) : Place(t.get_device_index(), t.is_cuda(), name) {}

  void same(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == index_, "vecbank: ", name,
                    " must be on the same CUDA device as the other arguments (cuda:", index_, ")");
  }
  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype,
                                std::nullopt, torch::stable::Device(torch::headeronly::DeviceType::CUDA, index_));
  }
  // The workspace lives until the next call of this, or the op's end; the allocator knows the stream.
  const Device& with_workspace(int64_t bytes) {
    if (bytes > device_.workspace_bytes) {
      workspace_ = empty({bytes}, ScalarType::Byte);
      device_.workspace = workspace_->mutable_data_ptr();
      device_.workspace_bytes = bytes;
    }
    return device_;
  }
  const Device& device() const { return device_; }

 private:
  Place(int32_t index, bool is_cuda, const char* name) : index_(checked(index, is_cuda, name)), guard_(index) {
    check(cuda::use_device(index, &device_));
    device_.path = wanted_path();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &device_.stream));
  }
  static int32_t checked(int32_t index, bool is_cuda, const char* name) {
    STD_TORCH_CHECK(is_cuda, "vecbank: ", name, " must be on a CUDA device, like the other arguments");
    return index;
  }
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  Device device_;
  std::optional<Tensor> workspace_;
};

inline char* at(const Tensor& t, int64_t elements, DType dtype) {
  return static_cast<char*>(t.mutable_data_ptr()) + elements * static_cast<int64_t>(size_of(dtype));
}

inline Pairing pair_up(const Place& place, const Tensor& x, const Tensor& bank) {
  place.same(bank, "bank");
  return pair_rows(x, bank);
}

// The pack of each batch. Only its size can be checked here; what it says about itself is checked on the device.
struct PackView {
  const char* data = nullptr;
  int64_t bytes = 0;
  PackView(const Place& place, const std::optional<Tensor>& pack, const Pairing& pair, Metric metric,
           bool biased = false) {
    if (!pack || pair.m == 0) return;
    place.same(*pack, "pack");
    bytes = round_up_to(cuda::pack_bytes(pair.m, pair.bank.rows.width, metric, biased), 64);
    STD_TORCH_CHECK(
        pack->scalar_type() == ScalarType::Byte && pack->is_contiguous() && pack->numel() == bytes * pair.batches,
        "vecbank: pack does not belong to a bank of this shape, metric and bias; repack it");
    data = static_cast<const char*>(pack->const_data_ptr());
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(data) % 64 == 0,
                    "vecbank: pack must begin at a multiple of 64 bytes, as vecbank::pack() makes it");
  }
  const PackHeader* of(int64_t b) const {
    return data == nullptr ? nullptr : reinterpret_cast<const PackHeader*>(data + b * bytes);
  }
};

inline Tensor checked_codes(const Place& place, const Tensor& codes) {
  place.same(codes, "codes");
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Long, "vecbank: codes must be int64");
  return dense(codes);
}

inline std::optional<Tensor> checked_weights(const Place& place, const std::optional<Tensor>& weights,
                                             const Tensor& codes, ScalarType dtype) {
  if (!weights) return std::nullopt;
  place.same(*weights, "weights");
  STD_TORCH_CHECK(weights->scalar_type() == dtype, "vecbank: weights must have the dtype of the rows they weigh");
  STD_TORCH_CHECK(sizes_of(*weights) == sizes_of(codes), "vecbank: weights ", shape_of(*weights),
                  " must have the shape of codes ", shape_of(codes));
  return dense(*weights);
}

}  // namespace vecbank::ops_cuda
