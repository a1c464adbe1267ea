// The only file that knows torch::stable: tensors in, views out, errors as exceptions.
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
#include "../core/types.h"
#include "../cpu/parallel.h"

namespace vecbank {

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

inline Tensor empty_cpu(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype);
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return sizes;
}

inline void check_cpu(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), "vecbank: ", name, " must be on the CPU, like the other arguments");
}

inline Tensor dense(const Tensor& t) {  // on t's own device
  if (t.is_contiguous()) return t;
  const std::vector<int64_t> sizes = sizes_of(t);
  Tensor copy = torch::stable::new_empty(t, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
  torch::stable::copy_(copy, t);
  return copy;
}

// A tensor (..., d) seen as rows; keeps a copy alive where the leading dimensions have no common stride.
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
  bool even = true;  // one stride walks all leading dimensions
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

inline Metric metric_of(int64_t metric) {
  STD_TORCH_CHECK(metric >= 0 && metric <= 3,
                  "vecbank: metric must be 0 (dot), 1 (cosine), 2 (l2) or 3 (sqeuclidean), got ", metric);
  return static_cast<Metric>(metric);
}

inline void check_status(Status status) {
  STD_TORCH_CHECK(status != Status::out_of_memory, "vecbank: out of memory for the workspace");
  STD_TORCH_CHECK(status != Status::stopped, "vecbank: interrupted");
  STD_TORCH_CHECK(status != Status::bad_index, "vecbank: codes must lie between -1 and the number of bank rows - 1");
}

// torch's own threads, so torch.set_num_threads is obeyed and no second pool exists.
inline cpu::Parallel torch_threads(cpu::Stop stop) {
  cpu::Parallel parallel;
  parallel.stop = stop;
  parallel.workers = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](void*, int workers, void (*body)(void*, int), void* arg) {
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t w = begin; w < end; ++w) body(arg, static_cast<int>(w));
    });
  };
  return parallel;
}

// x (..., N, d) against bank (M, d), or x (B, N, d) against bank (B, M, d).
struct Pairing {
  RowsView x, bank;
  int64_t batches = 1, m = 0;
  std::vector<int64_t> leading;  // x's shape without d

  Rows x_batch(int64_t b) const { return batch_of(x.rows, batches, b); }
  Rows bank_batch(int64_t b) const { return batch_of(bank.rows, batches, b); }
};

// A 16-bit x may meet a float32 bank; any other mix is a mistake.
inline void check_mix(DType x, DType bank) {
  STD_TORCH_CHECK(x == bank || ((x == DType::bf16 || x == DType::f16) && bank == DType::f32),
                  "vecbank: x and bank must share a dtype (or x be bfloat16/float16 with a float32 bank)");
}

inline Pairing pair_rows(const Tensor& x, const Tensor& bank) {  // wherever they are
  STD_TORCH_CHECK(bank.dim() == 2 || bank.dim() == 3, "vecbank: bank must be (M, d) or (B, M, d), got ",
                  shape_of(bank));
  Pairing p{rows_of(x, "x"), rows_of(bank, "bank"), 1, 0, {}};
  STD_TORCH_CHECK(p.x.rows.width == p.bank.rows.width, "vecbank: x ", shape_of(x), " and bank ", shape_of(bank),
                  " differ in their last dimension");
  p.m = bank.size(bank.dim() - 2);
  if (bank.dim() == 3) {
    STD_TORCH_CHECK(x.dim() == 3 && x.size(0) == bank.size(0), "vecbank: a batched bank ", shape_of(bank),
                    " needs x (B, N, d) of the same B, got ", shape_of(x));
    p.batches = bank.size(0);
  }
  check_mix(p.x.rows.dtype, p.bank.rows.dtype);
  p.leading = sizes_of(x);
  p.leading.pop_back();
  return p;
}

// A mask expanded to (..., M) beside x (..., d), read where it lies.
struct MaskView {
  std::optional<Tensor> owner;
  Mask mask;

  MaskView(const std::optional<Tensor>& given, const Tensor& x, int64_t m) : owner(given) {
    if (!given) return;
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
  bool view() {  // false: too many dimensions that no common stride walks
    mask = Mask{static_cast<const bool*>(owner->const_data_ptr()), owner->stride(owner->dim() - 1)};
    for (int64_t i = owner->dim() - 2; i >= 0; --i)
      if (!mask.add_dim(owner->size(i), owner->stride(i))) return false;
    return true;
  }
};

// The indices (..., k) of exact_scores for x (..., d).
inline void check_listed(const Pairing& pair, const Tensor& bank, const Tensor& indices) {
  std::vector<int64_t> rows = sizes_of(indices);
  if (!rows.empty()) rows.pop_back();
  STD_TORCH_CHECK(bank.dim() == 2 && indices.dim() >= 1 && rows == pair.leading,
                  "vecbank: indices go with a bank (M, d), and must be (..., k) for x (..., d), got ",
                  shape_of(indices));
}

// src (..., d) with codes (...) or (..., k): every code takes its row's whole vector.
inline RowsView checked_source(const Tensor& src, const Tensor& codes, int64_t* k) {
  RowsView view = rows_of(src, "src");
  const std::vector<int64_t> rows = sizes_of(src), shape = sizes_of(codes);
  bool fits = shape.size() + 1 == rows.size() || shape.size() == rows.size();
  for (size_t i = 0; fits && i + 1 < rows.size(); ++i) fits = shape[i] == rows[i];
  STD_TORCH_CHECK(fits, "vecbank: codes ", shape_of(codes), " must be (...) or (..., k) for src ", shape_of(src));
  *k = shape.size() == rows.size() ? shape.back() : 1;
  return view;
}

}  // namespace vecbank
