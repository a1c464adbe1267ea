// The screen of a few queries, against the CPU's answers (the harness of cuda_cases.h, included by it).
#pragma once

namespace {

cuda::State compare_few(const Matrix& x, const Matrix& b, const Case& c, const char* what, int processors = 3) {
  Bench bench(processors);
  bench.device.few = true;
  const bool same = emulated(x, b, c, bench) == on_cpu(x, b, c);
  CHECK(same);
  CHECK(bench.state.bad_codes == 0 && bench.state.queries == static_cast<unsigned long long>(x.rows.count));
  if (!same)
    std::printf("  few, %s: metric %d k %lld d %lld n %lld m %lld dtype %d\n", what, static_cast<int>(c.metric),
                static_cast<long long>(c.k), static_cast<long long>(b.rows.width), static_cast<long long>(x.rows.count),
                static_cast<long long>(b.rows.count), static_cast<int>(b.rows.dtype));
  return bench.state;
}

// Rows of `b` further apart, or not aligned: `gap` elements between rows, the first one `skip` elements from the start.
struct Spread {
  Vec<char> bytes;
  Matrix matrix;
  Spread(const Matrix& b, int64_t gap, int64_t skip) : matrix(Vec<double>{}, 1, b.rows.dtype) {
    const size_t size = size_of(b.rows.dtype);
    const int64_t pitch = b.rows.width + gap;
    bytes.assign(static_cast<size_t>(b.rows.count * pitch + skip) * size + 16, static_cast<char>(0xff));
    char* first = bytes.data() + (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16;
    first += static_cast<size_t>(skip) * size;
    for (int64_t i = 0; i < b.rows.count; ++i)
      std::memcpy(first + static_cast<size_t>(i * pitch) * size, cuda::row_of(b.rows, i),
                  static_cast<size_t>(b.rows.width) * size);
    matrix.rows = {first, b.rows.dtype, b.rows.count, b.rows.width, pitch, 1};
  }
};

// Every number of queries that a block takes, widths with whole and partial chunks, banks with a sample and without.
TEST(cuda_few_every_shape) {
  uint32_t seed = 300;
  for (const int64_t n : {1, 3, 4, 5, 16})
    for (const int64_t d : {1, 7, 8, 64, 136, 300}) {
      const DType dtype = kDTypes[(n + d) % 4];
      const Metric metric = kMetrics[(n + d / 2) % 4];
      const int64_t m = 1 + (n * 331 + d * 7) % 1500;
      const Matrix x(normal<double>(n * d, ++seed), d, dtype), b(normal<double>(m * d, ++seed), d, dtype);
      for (const int64_t k : {1, 10})
        if (k < m) compare_few(x, b, {metric, k, true, k == 1}, "shapes", n == 3 ? 40 : 1);
    }
}

TEST(cuda_few_every_metric_dtype_and_layout) {
  uint32_t seed = 400;
  const int64_t m = 1300, d = 24;
  for (const Metric metric : kMetrics)
    for (const DType dtype : kDTypes) {
      const int64_t n = metric == Metric::dot ? 8 : 2;
      const Matrix x(normal<double>(n * d, ++seed), d, dtype), b(normal<double>(m * d, ++seed), d, dtype);
      compare_few(x, b, {metric, 3}, "aligned");
      compare_few(x, b, {metric, 1, true, true, true}, "packed");
      const Spread apart(b, 16, 0), unaligned(b, 0, 1);
      compare_few(x, apart.matrix, {metric, 3}, "rows apart");
      compare_few(x, unaligned.matrix, {metric, 3}, "unaligned");
      const Matrix columns(normal<double>(m * d, seed), d, dtype, true);
      compare_few(x, columns, {metric, 2}, "columns");
    }
  for (const DType half : {DType::bf16, DType::f16}) {
    const Matrix x(normal<double>(5 * d, ++seed), d, half), b(normal<double>(m * d, ++seed), d, DType::f32);
    for (const Metric metric : {Metric::cosine, Metric::l2}) compare_few(x, b, {metric, 4}, "mixed");
  }
}

// A sample and a pass over the bank leave little to refine, for every k, also where many blocks share a bank.
TEST(cuda_few_screens_out_nearly_everything) {
  const int64_t d = 16, m = 9000;
  const Matrix b(normal<double>(m * d, 501), d, DType::bf16), x(normal<double>(3 * d, 502), d, DType::bf16);
  for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2})
    for (const int64_t k : {1, 10, 32, 33, 128})
      for (const int processors : {1, 20}) {
        const cuda::State s = compare_few(x, b, {metric, k}, "work", processors);
        CHECK(s.repeated == 0);
        CHECK(static_cast<int64_t>(s.refined) <= 3 * (k + k / 10 + (k == 1 ? 12 : 3)));
      }
}

TEST(cuda_few_masks_and_bias) {
  const int64_t d = 12, n = 5, m = 2600;
  std::mt19937 random(6);
  const auto bias = normal<double>(m, 511, 3.0);
  const Matrix x(normal<double>(n * d, 512), d, DType::f32), b(normal<double>(m * d, 513), d, DType::f32);
  Vec<unsigned char> mask(static_cast<size_t>(n * m));
  for (const int keep : {0, 1, 50}) {  // percent
    for (auto& v : mask) v = static_cast<int>(random() % 100) < keep;
    for (const int64_t k : {1, 10}) {
      Case c{k == 1 ? Metric::dot : Metric::l2, k};
      c.mask = &mask;
      CHECK(compare_few(x, b, c, "mask").repeated == 0);
      c.metric = Metric::dot;
      c.bias = &bias;
      c.packed = k == 1;
      CHECK(compare_few(x, b, c, "mask and bias").repeated == 0);
    }
  }
  Vec<double> odd = bias;
  odd[3] = INFINITY, odd[4] = -INFINITY, odd[5] = 1e300, odd[6] = -1e30, odd[m - 1] = 1e-300;
  for (const int64_t k : {1, 4}) {
    Case c{Metric::dot, k};
    c.bias = &odd;
    compare_few(x, b, c, "odd biases");
  }
}

TEST(cuda_few_refuse_a_bad_pack) {
  const Matrix x(normal<double>(40, 541), 8, DType::f32), b(normal<double>(800, 542), 8, DType::f32);
  Bench bench;
  bench.device.few = true;
  Vec<uint64_t> garbage(static_cast<size_t>(cuda::device_pack_bytes(100, 8, Metric::l2)) / 8 + 1, ~0ull);
  const Answer a = answer(x, b, {Metric::l2, 1}, [&](SearchProblem& p) {
    p.pack = reinterpret_cast<const PackHeader*>(garbage.data());
    bench.provide(cuda::search_workspace(p, bench.device));
    CHECK(ran(cuda::search, p, bench.device));
  });
  CHECK(a == on_cpu(x, b, {Metric::l2, 1}));
  CHECK(bench.state.bad_codes == 1 && bench.state.repeated == 5);
}

// Rows and queries that float32 cannot represent cost time and never an answer.
TEST(cuda_few_adversarial_inputs) {
  const int64_t d = 9, n = 6, m = 1100;
  const Vec<double> xs = normal<double>(n * d, 521), bs = normal<double>(m * d, 522);
  const auto all = [&](const Vec<double>& x, const Vec<double>& b, DType dtype, const char* what) {
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2})
      compare_few(Matrix(x, d, dtype), Matrix(b, d, dtype), {metric, metric == Metric::cosine ? 1 : 7}, what);
  };
  const auto [broken_x, broken] = not_finite(xs, bs, d);
  Vec<double> most = bs;
  for (int64_t i = 0; i < m * d; i += d)
    if (i / d % 9 != 4) most[static_cast<size_t>(i)] = i / d % 2 == 0 ? NAN : INFINITY;
  for (const DType dtype : {DType::f32, DType::f64, DType::f16}) {
    all(broken_x, broken, dtype, "NaN and infinities");
    all(xs, most, dtype, "mostly NaN and infinities");
  }
  all(xs, of_all_sizes(bs, d), DType::f64, "all sizes");
  for (const double scale : {1e-42, 1e-20, 1e15, 1e25, 1e37}) {
    Vec<double> scaled_x = xs, scaled_b = bs;
    for (double& v : scaled_x) v *= scale;
    for (double& v : scaled_b) v *= scale;
    all(xs, scaled_b, DType::f32, "scaled bank");
    all(scaled_x, bs, DType::f32, "scaled queries");
    all(scaled_x, scaled_b, DType::f64, "scaled");
  }
  Vec<double> rounded = bs, sorted = bs, equal(bs.size(), 0.5);
  for (double& v : rounded) v = std::round(v);
  for (int64_t j = 0; j < m; ++j)
    for (int64_t i = 0; i < d; ++i) sorted[static_cast<size_t>(j * d + i)] = static_cast<double>(j) * 0.01 + 0.001 * i;
  all(xs, rounded, DType::bf16, "many ties");
  all(xs, sorted, DType::f32, "sorted");
  all(xs, equal, DType::f32, "all rows equal");
  all(normal<double>(n * d, 523, 0.01, 1000.0), normal<double>(m * d, 524, 0.01, 1000.0), DType::f64, "1000 +- 0.01");
}

}  // namespace
