// One matrix product by ATen (cuBLAS on a GPU), with torch's current stream, workspace and precision flags.
#pragma once

#include "common.h"

namespace vecbank {

inline Tensor tensor_over(const void* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
                          DType dtype, const torch::stable::Device& device) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  return torch::stable::from_blob(const_cast<void*>(data), torch::headeronly::IntHeaderOnlyArrayRef(sizes, 2),
                                  torch::headeronly::IntHeaderOnlyArrayRef(strides, 2), device, scalar_type(dtype));
}

// out[i * stride + j] = x[i] . bank[j] in `dtype`: the inputs' own, or float32 for 16-bit inputs.
inline void aten_product(const Rows& x, const Rows& bank, void* out, DType dtype, int64_t stride,
                         const torch::stable::Device& device) {
  using torch::stable::detail::from;
  const Tensor left = tensor_over(x.data, x.count, x.width, x.row_stride, x.col_stride, x.dtype, device);
  const Tensor right =
      tensor_over(bank.data, bank.width, bank.count, bank.col_stride, bank.row_stride, bank.dtype, device);
  const Tensor answer = tensor_over(out, x.count, bank.count, stride, 1, dtype, device);
  const auto call = [](const char* overload, auto... arguments) {
    StableIValue stack[] = {from(arguments)...};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", overload, stack, TORCH_ABI_VERSION));
    (void)torch::stable::detail::to<Tensor>(stack[0]);  // `answer` once more, whose handle the caller must release
  };
  if (dtype == x.dtype)
    call("out", left, right, answer);
  else
    call("dtype_out", left, right, scalar_type(dtype), answer);
}

}  // namespace vecbank
