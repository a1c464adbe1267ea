// What the ops check about their arguments before a kernel runs. The Python layer refuses the same arguments with more
// helpful messages; these checks also hold for direct calls of the ops. A Scope is the device that an op runs on:
// CpuScope (device_cpu.h) or CudaScope (device_cuda.h).
#pragma once

#include "common.h"

namespace vecbank::ops {

inline Metric metric_of(int64_t metric) {
  const auto choices = [] {  // "0 (dot), 1 (cosine) or 2 (l2)"
    std::string text;
    for (int i = 0; i < kMetrics; ++i)
      text += (i == 0 ? "" : i + 1 == kMetrics ? " or " : ", ") + std::to_string(i) + " (" + kMetricNames[i] + ")";
    return text;
  };
  STD_TORCH_CHECK(metric >= 0 && metric < kMetrics, "vecbank: metric must be ", choices(), ", got ", metric);
  return static_cast<Metric>(metric);
}

// The codes of pack()'s `use`: 0 for every op, else for searches alone, with a screen of ScreenChoice.
inline PackUse use_of(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= 4, "vecbank: use must lie between 0 and 4, got ", code);
  if (code == 0) return {};
  return {true, static_cast<ScreenChoice>(code - 1)};
}

// About how many elements are read or multiplied for so many rows, each against `each` rows of this width.
inline double work_of(int64_t rows, int64_t each, int64_t width) {
  return static_cast<double>(rows) * static_cast<double>(each) * static_cast<double>(width + 8);
}

// A 16-bit x may go with a float32 bank; any other mix is refused.
inline void check_mix(DType x, DType bank) {
  STD_TORCH_CHECK(x == bank || ((x == DType::bf16 || x == DType::f16) && bank == DType::f32),
                  "vecbank: x and bank must share a dtype (or x be bfloat16/float16 with a float32 bank)");
}

// x (..., N, d) against bank (M, d), or x (B, N, d) against bank (B, M, d).
struct Pairing {
  RowsView x, bank;
  int64_t batches = 1, m = 0;
  std::vector<int64_t> leading;  // x's shape without d

  Rows x_batch(int64_t b) const { return batch_of(x.rows, batches, b); }
  Rows bank_batch(int64_t b) const { return batch_of(bank.rows, batches, b); }
  double work(int64_t each) const { return work_of(x.rows.count, each, x.rows.width); }
};

template <class Scope>
Pairing pair_rows(const Scope& scope, const Tensor& x, const Tensor& bank) {
  scope.same(bank, "bank");
  const BankShape shape = bank_shape(bank);
  Pairing p{rows_of(x, "x"), rows_of(bank, "bank"), shape.batches, shape.m, sizes_of(x)};
  STD_TORCH_CHECK(p.x.rows.width == shape.width, "vecbank: x ", shape_of(x), " and bank ", shape_of(bank),
                  " differ in their last dimension");
  STD_TORCH_CHECK(bank.dim() == 2 || (x.dim() == 3 && x.size(0) == shape.batches), "vecbank: a batched bank ",
                  shape_of(bank), " needs x (B, N, d) of the same B, got ", shape_of(x));
  check_mix(p.x.rows.dtype, p.bank.rows.dtype);
  p.leading.pop_back();
  return p;
}

template <class Scope>
RowsView checked_bank(const Scope& scope, const Tensor& bank) {
  scope.same(bank, "bank");
  STD_TORCH_CHECK(bank.dim() == 2, "vecbank: bank must be (M, d), got ", shape_of(bank));
  return rows_of(bank, "bank");
}

template <class Scope>
Tensor checked_codes(const Scope& scope, const Tensor& codes) {
  scope.same(codes, "codes");
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Long, "vecbank: codes must be int64");
  return dense(codes);
}

template <class Scope>
std::optional<Tensor> checked_weights(const Scope& scope, const std::optional<Tensor>& weights, const Tensor& codes,
                                      ScalarType dtype) {
  if (!weights) return std::nullopt;
  scope.same(*weights, "weights");
  STD_TORCH_CHECK(weights->scalar_type() == dtype, "vecbank: weights must have the dtype of the rows they weigh");
  STD_TORCH_CHECK(sizes_of(*weights) == sizes_of(codes), "vecbank: weights ", shape_of(*weights),
                  " must have the shape of codes ", shape_of(codes));
  return dense(*weights);
}
inline const void* data_of(const std::optional<Tensor>& t) { return t ? t->const_data_ptr() : nullptr; }

template <class Scope>
void check_bias(const Scope& scope, const std::optional<Tensor>& bias, const Tensor& bank, Metric metric) {
  if (!bias) return;
  scope.same(*bias, "bias");
  STD_TORCH_CHECK(metric == Metric::dot && bank.dim() == 2,
                  "vecbank: a bias goes with the dot metric and a bank (M, d)");
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == bank.size(0) && bias->scalar_type() == bank.scalar_type(),
                  "vecbank: bias must be (M,) in the bank's dtype, got ", shape_of(*bias), " for bank ",
                  shape_of(bank));
}

// One float64 bias per bank row.
template <class Scope>
std::optional<Tensor> widened_bias(const Scope& scope, const std::optional<Tensor>& bias, const Tensor& bank,
                                   Metric metric) {
  check_bias(scope, bias, bank, metric);
  if (!bias) return std::nullopt;
  Tensor wide = scope.empty({bias->size(0)}, ScalarType::Double);
  const Rows one{bias->const_data_ptr(), dtype_of(*bias, "bias"), 1, bias->size(0), 0, bias->stride(0)};
  scope.widen(one, static_cast<double*>(wide.mutable_data_ptr()));
  return wide;
}
inline const double* biases_in(const std::optional<Tensor>& wide) { return static_cast<const double*>(data_of(wide)); }

// A mask expanded to (..., M), for x (..., d), read in place.
struct MaskView {
  std::optional<Tensor> owner;
  Mask mask;

  template <class Scope>
  MaskView(const Scope& scope, const std::optional<Tensor>& given, const Tensor& x, int64_t m) : owner(given) {
    if (!given) return;
    scope.same(*given, "mask");
    STD_TORCH_CHECK(
        given->scalar_type() == ScalarType::Bool && given->dim() == x.dim() && given->size(given->dim() - 1) == m,
        "vecbank: mask must be bool and expanded to (..., M), got ", shape_of(*given));
    for (int64_t i = 0; i + 1 < x.dim(); ++i)
      STD_TORCH_CHECK(given->size(i) == x.size(i), "vecbank: mask ", shape_of(*given), " does not match x ",
                      shape_of(x));
    if (!view()) {
      owner = dense(*given);
      view();
    }
  }

 private:
  bool view() {  // false: too many dimensions without a common stride
    mask = Mask{static_cast<const bool*>(owner->const_data_ptr()), owner->stride(owner->dim() - 1)};
    for (int64_t i = owner->dim() - 2; i >= 0; --i)
      if (!mask.add_dim(owner->size(i), owner->stride(i))) return false;
    return true;
  }
};

// src (..., d) with codes (...) or (..., k): every code belongs to its row's whole vector.
inline RowsView checked_source(const Tensor& src, const Tensor& codes, int64_t* k) {
  RowsView view = rows_of(src, "src");
  const std::vector<int64_t> rows = sizes_of(src), shape = sizes_of(codes);
  bool fits = shape.size() + 1 == rows.size() || shape.size() == rows.size();
  for (size_t i = 0; fits && i + 1 < rows.size(); ++i) fits = shape[i] == rows[i];
  STD_TORCH_CHECK(fits, "vecbank: codes ", shape_of(codes), " must be (...) or (..., k) for src ", shape_of(src));
  *k = shape.size() == rows.size() ? shape.back() : 1;
  return view;
}

}  // namespace vecbank::ops
