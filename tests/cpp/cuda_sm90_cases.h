// Searches through Hopper's kernel (cuda_cases.h includes this file): every width it takes and one it does not, tiles
// and chunks that are not whole, 16-bit inputs as they are and others rounded, adversarial inputs.
#pragma once

namespace {

TEST(cuda_search_sm90_equals_cpu) {
  if (!has_sm90()) return;
  const OnPath on(cuda::Path::sm90);
  uint32_t seed = 300;
  for (const Metric metric : kMetrics)
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (const int64_t k : {1, 12}) {
        const int64_t d = metric == Metric::dot ? 130 : metric == Metric::cosine ? 64 : metric == Metric::l2 ? 19 : 200;
        const int64_t n = k == 1 ? 261 : 5, m = k == 1 ? 300 : 700;
        const Matrix x(normal<double>(n * d, ++seed), d, dtype, k == 1), b(normal<double>(m * d, ++seed), d, dtype);
        compare(x, b, {metric, k, true, k == 1, k == 12}, "sm90");
      }
  for (const int64_t d : {256, 257}) {  // the widest, and one for the other kernel
    const Matrix x(normal<double>(9 * d, ++seed), d, DType::f16), b(normal<double>(200 * d, ++seed), d, DType::f16);
    for (const int64_t k : {1, 4}) compare(x, b, {Metric::l2, k}, "width");
  }
  const Matrix x(normal<double>(9 * 12, ++seed), 12, DType::bf16), b(normal<double>(90 * 12, ++seed), 12, DType::f32);
  compare(x, b, {Metric::cosine, 1}, "a 16-bit query with a float32 bank");
}

TEST(cuda_search_sm90_adversarial_inputs) {
  if (!has_sm90()) return;
  const OnPath on(cuda::Path::sm90);
  const int64_t d = 9, n = 6, m = 400;
  const auto all = [&](const Vec<double>& xs, const Vec<double>& bs, DType dtype, const char* what) {
    const Matrix x(xs, d, dtype), b(bs, d, dtype);
    for (const Metric metric : kMetrics)
      for (const int64_t k : {1, 7}) compare(x, b, {metric, k}, what);
  };
  const Vec<double> xs = normal<double>(n * d, 5), bs = normal<double>(m * d, 6);
  all(normal<double>(n * d, 7, 0.01, 1000.0), normal<double>(m * d, 8, 0.01, 1000.0), DType::f32, "1000 +- 0.01");
  Vec<double> rounded = bs;
  for (double& v : rounded) v = std::round(v);
  all(rounded, rounded, DType::f16, "many ties");
  all(xs, Vec<double>(static_cast<size_t>(m * d), 0.5), DType::bf16, "all rows equal");
  const auto [broken_x, broken] = not_finite(xs, bs, d);
  all(broken_x, broken, DType::f32, "NaN and infinities");
  all(xs, of_all_sizes(bs, d), DType::f64, "all sizes");
  for (const auto& [bank, what] : {std::pair(subnormal(bs), "subnormal"), std::pair(ascending(m, d), "sorted")})
    for (const Metric metric : kMetrics)
      compare(Matrix(xs, d, DType::f32), Matrix(bank, d, DType::f32), {metric, metric == Metric::l2 ? 1 : 7}, what);

  std::mt19937 random(5);
  const auto bias = normal<double>(m, 231, 3.0);
  const Matrix x(xs, d, DType::bf16), b(bs, d, DType::bf16);
  compare_masked(x, b, bias, random);
}

}  // namespace
