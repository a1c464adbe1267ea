// What the ops of all devices share: tensors become views, and errors become exceptions.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../core/half.h"
#include "../core/mask.h"
#include "../core/metric.h"
#include "../core/pack.h"

namespace vecbank {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string s = "(";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + ")";
}

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: break;
  }
  STD_TORCH_CHECK(false, "vecbank: ", name, " must be float32, float64, bfloat16 or float16");
  return DType::f32;
}

inline ScalarType scalar_type(DType t) {
  switch (t) {
    case DType::f64: return ScalarType::Double;
    case DType::bf16: return ScalarType::BFloat16;
    case DType::f16: return ScalarType::Half;
    default: return ScalarType::Float;
  }
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return sizes;
}

// t's shape with another last dimension.
inline std::vector<int64_t> resized(const Tensor& t, int64_t last) {
  std::vector<int64_t> sizes = sizes_of(t);
  sizes.back() = last;
  return sizes;
}

inline Tensor dense(const Tensor& t) {  // on t's own device
  if (t.is_contiguous()) return t;
  const std::vector<int64_t> sizes = sizes_of(t);
  Tensor copy = torch::stable::new_empty(t, IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
  torch::stable::copy_(copy, t);
  return copy;
}

inline Tensor dense_columns(const Tensor& t) {  // whose rows lie in one piece
  return t.dim() == 0 || t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1 ? t : dense(t);
}

// Element `i` of a contiguous tensor.
inline char* at(const Tensor& t, int64_t i, DType dtype) {
  return static_cast<char*>(t.mutable_data_ptr()) + i * static_cast<int64_t>(size_of(dtype));
}
inline const char* const_at(const Tensor& t, int64_t i, DType dtype) {
  return static_cast<const char*>(t.const_data_ptr()) + i * static_cast<int64_t>(size_of(dtype));
}
inline int64_t* codes_out(const Tensor& t) { return static_cast<int64_t*>(t.mutable_data_ptr()); }
inline const int64_t* codes_in(const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); }

// A tensor (..., d) as rows. The view owns a copy where the leading dimensions have no common stride.
struct RowsView {
  Tensor owner;
  Rows rows;
};

inline RowsView rows_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() >= 1, "vecbank: ", name, " must have at least one dimension, got a scalar");
  const int64_t last = t.dim() - 1;
  RowsView v{t, {}};
  v.rows.dtype = dtype_of(t, name);
  v.rows.width = t.size(last);
  v.rows.count = 1;
  for (int64_t i = 0; i < last; ++i) v.rows.count *= t.size(i);
  int64_t stride = 0, covered = 1;
  bool even = true;  // one stride serves all leading dimensions
  for (int64_t i = last - 1; i >= 0; --i) {
    if (t.size(i) == 1) continue;
    if (covered == 1)
      stride = t.stride(i);
    else
      even = even && t.stride(i) == stride * covered;
    covered *= t.size(i);
  }
  if (!even && v.rows.count > 0) {
    v.owner = dense(t);
    stride = v.rows.width;
  }
  v.rows.row_stride = stride;
  v.rows.col_stride = v.rows.width == 1 ? 1 : v.owner.stride(last);
  v.rows.data = v.owner.const_data_ptr();
  return v;
}

// Batch b of a view with `batches` equal batches of rows.
inline Rows batch_of(const Rows& all, int64_t batches, int64_t b) {
  Rows rows = all;
  rows.count = batches == 0 ? 0 : all.count / batches;
  rows.data = all.row(b * rows.count);
  return rows;
}

// A bank (M, d), or B banks (B, M, d).
struct BankShape {
  int64_t batches, m, width;
};
inline BankShape bank_shape(const Tensor& bank) {
  const int64_t dim = bank.dim();
  STD_TORCH_CHECK(dim == 2 || dim == 3, "vecbank: bank must be (M, d) or (B, M, d), got ", shape_of(bank));
  return {dim == 3 ? bank.size(0) : 1, bank.size(dim - 2), bank.size(dim - 1)};
}

// What a pack is for: every op, or searches alone, which begin with this screen.
struct PackUse {
  bool searches = false;
  ScreenChoice screen = ScreenChoice::automatic;
};

// The packs of a bank's batches, one after another.
struct PackBytes {
  std::optional<Tensor> tensor;
  int64_t bytes = 0;  // of one batch

  const char* batch(int64_t b) const { return static_cast<const char*>(tensor->const_data_ptr()) + b * bytes; }
};

// torch's version counter, which counts the writes to a tensor.
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

// ---- Refusals that more than one file makes, in one wording ---------------------------------------------------------

inline void check_place(bool there, const char* name, const char* where) {
  STD_TORCH_CHECK(there, "vecbank: ", name, " must be on ", where, ", like the other arguments");
}

inline void check_is_pack(const Tensor& pack) {
  STD_TORCH_CHECK(pack.scalar_type() == ScalarType::Byte && pack.is_contiguous(),
                  "vecbank: pack must be what vecbank::pack returned (a contiguous uint8 tensor)");
}

inline void check_pack_fits(bool fits) {
  STD_TORCH_CHECK(fits, "vecbank: pack does not belong to a bank of this shape, dtype, metric and bias; repack it");
}

}  // namespace vecbank
