// The searches of cuda_cases.h through every screen (its harness, included by it): lists, ranges, 16-bit operands.
#pragma once

namespace {

struct OnPath {  // until the end of a scope
  explicit OnPath(cuda::Path p) { path() = p; }
  ~OnPath() { path() = cuda::Path::simt; }
};
const cuda::Path kPaths[] = {cuda::Path::simt, cuda::Path::mma, cuda::Path::mma16};

// The same searches through the tensor-core screen, whose emulation rounds as badly as its bound assumes.
TEST(cuda_search_tensor_cores_equal_cpu) {
  const OnPath on(cuda::Path::mma);
  uint32_t seed = 60;
  for (const Metric metric : kMetrics)
    for (const int64_t k : {1, 6}) {
      const int64_t d = metric == Metric::dot ? 40 : 13, n = k == 1 ? 150 : 9, m = 420;
      const Matrix x(normal<double>(n * d, ++seed), d, DType::f32), b(normal<double>(m * d, ++seed), d, DType::f32);
      compare(x, b, {metric, k}, "tensor cores");
    }
  const auto bias = normal<double>(300, 71);
  Case c{Metric::dot, 4};
  c.bias = &bias;
  compare(Matrix(normal<double>(60, 72), 10, DType::bf16), Matrix(normal<double>(3000, 73), 10, DType::bf16), c,
          "bias");
  const Matrix x(normal<double>(5 * 9, 74, 0.01, 1000.0), 9, DType::f32);
  const Matrix b(normal<double>(400 * 9, 75, 0.01, 1000.0), 9, DType::f32);
  for (const int64_t k : {1, 5}) compare(x, b, {Metric::l2, k}, "1000 +- 0.01");
}

// Inputs of 16 bits as they are, and everything else rounded to bf16.
TEST(cuda_search_operands_equal_cpu) {
  uint32_t seed = 100;
  for (const cuda::Path p : {cuda::Path::mma, cuda::Path::mma16}) {
    const OnPath on(p);
    for (const Metric metric : kMetrics)
      for (const DType dtype : kDTypes)
        for (const int64_t k : {1, 10}) {
          if (p == cuda::Path::mma && size_of(dtype) != 2) continue;
          const int64_t d = metric == Metric::dot ? 130
                            : k == 1              ? 64
                                                  : 19,
                        n = k == 1 ? 137 : 6, m = k == 1 ? 300 : 500;
          const Matrix x(normal<double>(n * d, ++seed), d, dtype, k == 1),
              b(normal<double>(m * d, ++seed), d, dtype, k != 1);
          compare(x, b, {metric, k, true, k == 1, true, k == 10}, "operands");
        }
    const Matrix x(normal<double>(9 * 12, ++seed), 12, DType::f16), b(normal<double>(90 * 12, ++seed), 12, DType::f32);
    compare(x, b, {Metric::l2, 1}, "a 16-bit query with a float32 bank");
  }
}

}  // namespace
