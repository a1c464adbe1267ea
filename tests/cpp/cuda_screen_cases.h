// The searches of cuda_cases.h through every screen (its harness, included by it): lists, ranges, 16-bit operands.
#pragma once

namespace {

// The same searches through the tensor-core screen, whose emulation rounds as badly as its bound assumes.
TEST(cuda_search_tensor_cores_equal_cpu) {
  const OnPath on(cuda::Path::mma16);
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
  const OnPath on(cuda::Path::mma16);
  for (const Metric metric : kMetrics)
    for (const DType dtype : kDTypes)
      for (const int64_t k : {1, 10}) {
        const int64_t d = metric == Metric::dot ? 130 : k == 1 ? 64 : 19, n = k == 1 ? 137 : 6, m = k == 1 ? 300 : 500;
        const Matrix x(normal<double>(n * d, ++seed), d, dtype, k == 1),
            b(normal<double>(m * d, ++seed), d, dtype, k != 1);
        compare(x, b, {metric, k, true, k == 1, k == 10}, "operands");
      }
  const Matrix x(normal<double>(9 * 12, ++seed), 12, DType::f16), b(normal<double>(90 * 12, ++seed), 12, DType::f32);
  compare(x, b, {Metric::l2, 1}, "a 16-bit query with a float32 bank");
}

// Lists and no lists, with one block to a row tile and with many, over tiles that are not whole.
TEST(cuda_search_every_k_on_every_path) {
  const int64_t d = 21, m = 1203;
  const Matrix b(normal<double>(m * d, 201), d, DType::f32), b16(normal<double>(m * d, 202), d, DType::bf16);
  const Matrix few(normal<double>(3 * d, 203), d, DType::f32), few16(normal<double>(3 * d, 204), d, DType::bf16);
  const Matrix many(normal<double>(131 * d, 205), d, DType::f32);
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    for (const int64_t k : {1, 2, 10, 32, 33, 100}) {
      for (const int processors : {1, 40}) {
        const bool native = p == cuda::Path::mma16 && processors == 1;
        compare(native ? few16 : few, native ? b16 : b, {Metric::l2, k}, "k", processors);
      }
    }
    compare(many, b, {Metric::dot, 3}, "two row tiles", 1);
    compare(many, b, {Metric::cosine, 1, false, true}, "two row tiles", 40);
  }
}

// What a screen lets through: a handful more than k where scores are apart, and no row falls back to refinement.
TEST(cuda_search_screens_out_nearly_everything) {
  const int64_t n = 4, d = 48, m = 3000;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Matrix x(normal<double>(n * d, 211), d, dtype), b(normal<double>(m * d, 212), d, dtype);
    for (const cuda::Path p : every_path()) {
      const OnPath on(p);
      for (const int64_t k : {1, 10, 40}) {
        const cuda::State s = compare(x, b, {Metric::l2, k}, "work", k == 1 ? 2 : 30);
        const int64_t rounded = p >= cuda::Path::mma16 && dtype == DType::f32 ? 3 : 1;  // bf16 is coarse
        CHECK(s.repeated == 0);
        CHECK(static_cast<int64_t>(s.refined) <= n * (k + k / 10 + 1) * rounded);
      }
    }
  }
}

// More equal rows than any list holds: every row falls back to refinement.
TEST(cuda_search_overflow_is_refined_in_full) {
  const int64_t n = 3, d = 3, m = 2 * cuda::kFewCapacity + 5;
  const Matrix x(normal<double>(n * d, 221), d, DType::f32),
      b(Vec<double>(static_cast<size_t>(m * d), 0.5), d, DType::f32);
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    for (const int64_t k : {1, 9}) CHECK(compare(x, b, {Metric::dot, k}, "equal").repeated == n);
  }
}

TEST(cuda_search_masks_and_bias_on_operands) {
  const int64_t d = 20, n = 4, m = 700;
  std::mt19937 random(5);
  const auto bias = normal<double>(m, 231, 3.0);
  const OnPath on(cuda::Path::mma16);
  for (const DType dtype : {DType::f16, DType::f32}) {
    const Matrix x(normal<double>(n * d, 232), d, dtype), b(normal<double>(m * d, 233), d, dtype);
    compare_masked(x, b, bias, random);
  }
}

// Rows that differ by less than the screen resolves, in either dtype: only the bound keeps the right one.
TEST(cuda_search_near_ties_on_every_path) {
  const int64_t d = 40, n = 5, m = 600;
  const auto centre = normal<double>(d, 241), noise = normal<double>(m * d, 242), xs = normal<double>(n * d, 243);
  for (const double scale : {0x1p-7, 0x1p-10, 0x1p-20}) {
    Vec<double> bs = noise;
    for (size_t i = 0; i < bs.size(); ++i) {
      const size_t row = i / static_cast<size_t>(d), k = i % static_cast<size_t>(d);
      bs[i] = (row % 2 == 0 ? centre[k] : -centre[k]) + scale * noise[i];  // two clusters: no centre helps
    }
    const Matrix x(xs, d, DType::f32), b(bs, d, DType::f32);
    for (const cuda::Path p : every_path()) {
      const OnPath on(p);
      for (const int64_t k : {1, 5}) compare(x, b, {scale == 0x1p-10 ? Metric::cosine : Metric::dot, k}, "near ties");
    }
  }
}

}  // namespace
