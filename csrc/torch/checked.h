// What the CPU ops check about their arguments before a kernel sees them.
#pragma once

#include <cstring>

#include "../cpu/api.h"
#include "common.h"

namespace vecbank::ops {

Tensor pack(const Tensor& bank, int64_t metric_code, const std::optional<Tensor>& bias, bool stamp);

inline Pairing pair_up(const Tensor& x, const Tensor& bank) {
  check_cpu(x, "x");
  check_cpu(bank, "bank");
  return pair_rows(x, bank);
}

// How often torch has seen this tensor written to.
inline int64_t version_of(const Tensor& t) {
  StableIValue stack[] = {torch::stable::detail::from(t)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_version", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<int64_t>(stack[0]);
}

inline PackStamp stamp_of(const Tensor& bank, const std::optional<Tensor>& bias) {
  PackStamp stamp{};
  stamp.data = reinterpret_cast<uintptr_t>(bank.const_data_ptr());
  const auto mix = [&](int64_t number) {
    stamp.layout = (stamp.layout ^ static_cast<uint64_t>(number)) * 0x100000001b3ull;
  };
  mix(static_cast<int64_t>(bank.scalar_type()));
  for (int64_t i = 0; i < bank.dim(); ++i) mix(bank.size(i)), mix(bank.stride(i));
  if (bias) mix(bias->size(0)), mix(bias->stride(0));
  stamp.version = version_of(bank);
  if (bias) {
    stamp.bias = reinterpret_cast<uintptr_t>(bias->const_data_ptr());
    stamp.bias_version = version_of(*bias);
  }
  return stamp;
}

// The pack of batch b, or null when there is none or the bank has changed since it was made; a pack of something else
// is an error, never read.
struct PackView {
  std::optional<Tensor> tensor;
  int64_t bytes = 0;

  PackView(const std::optional<Tensor>& pack, const Tensor& bank, const std::optional<Tensor>& bias, int64_t batches)
      : PackView(pack, batches) {
    if (tensor && stale(bank, bias)) tensor.reset();
  }
  // Whatever the bank has become since.
  explicit PackView(const std::optional<Tensor>& pack, int64_t batches = 1) : tensor(pack) {
    if (!tensor) return;
    check_cpu(*tensor, "pack");
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Byte && tensor->is_contiguous(),
                    "vecbank: pack must be what vecbank::pack returned (a contiguous uint8 tensor)");
    bytes = batches == 0 ? 0 : tensor->numel() / batches;
  }
  // One stamp, in the first batch's pack, speaks for all.
  bool stale(const Tensor& bank, const std::optional<Tensor>& bias) const {
    if (bytes < static_cast<int64_t>(sizeof(PackHeader) + sizeof(PackStamp))) return false;
    PackHeader header{};
    PackStamp made{};
    std::memcpy(&header, tensor->const_data_ptr(), sizeof header);
    std::memcpy(&made, static_cast<const char*>(tensor->const_data_ptr()) + sizeof header, sizeof made);
    if (header.magic != kPackMagic || made.data == 0) return false;
    if (made.data != reinterpret_cast<uintptr_t>(bank.const_data_ptr())) return true;
    const PackStamp now = stamp_of(bank, bias);
    return std::memcmp(&made, &now, sizeof made) != 0;
  }
  const PackHeader* of(const Rows& bank, Metric metric, int64_t b, bool biased = false) const {
    if (!tensor || bank.count == 0) return nullptr;
    const PackHeader* header =
        cpu::check_pack(static_cast<const char*>(tensor->const_data_ptr()) + b * bytes, bytes, bank, metric, biased);
    STD_TORCH_CHECK(header != nullptr,
                    "vecbank: pack does not belong to a bank of this shape, dtype, metric and bias; repack it");
    return header;
  }
};

inline Tensor checked_codes(const Tensor& codes) {
  check_cpu(codes, "codes");
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Long, "vecbank: codes must be int64");
  return dense(codes);
}

inline RowsView checked_bank(const Tensor& bank, const char* name) {
  check_cpu(bank, name);
  STD_TORCH_CHECK(bank.dim() == 2, "vecbank: ", name, " must be (M, d), got ", shape_of(bank));
  return rows_of(bank, name);
}

inline std::optional<Tensor> checked_weights(const std::optional<Tensor>& weights, const Tensor& codes,
                                             ScalarType dtype) {
  if (!weights) return std::nullopt;
  check_cpu(*weights, "weights");
  STD_TORCH_CHECK(weights->scalar_type() == dtype, "vecbank: weights must have the dtype of the rows they weigh");
  STD_TORCH_CHECK(sizes_of(*weights) == sizes_of(codes), "vecbank: weights ", shape_of(*weights),
                  " must have the shape of codes ", shape_of(codes));
  return dense(*weights);
}

// Element i of a float32 or float64 tensor.
inline void set(Tensor& t, int64_t i, double value) {
  if (t.scalar_type() == ScalarType::Double)
    static_cast<double*>(t.mutable_data_ptr())[i] = value;
  else
    static_cast<float*>(t.mutable_data_ptr())[i] = static_cast<float>(value);
}

}  // namespace vecbank::ops
