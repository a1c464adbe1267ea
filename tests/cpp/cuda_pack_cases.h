// Searches of banks that were packed beforehand, on every path (cuda_cases.h includes this file): dtypes, chunks of
// queries, pieces, adversarial inputs.
#pragma once

namespace {

// Both bounds of a pack: for queries of the operands' own type, and for queries that are rounded to it.
TEST(cuda_packed_search_equals_cpu) {
  uint32_t seed = 900;
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean})
      for (const DType bank : kDTypes)
        for (const DType queries : kDTypes) {
          const bool pair = queries == bank || (bank == DType::f32 && size_of(queries) == 2);
          if (!pair) continue;
          const bool tiles = metric == Metric::l2 && queries == DType::bf16;
          const int64_t d = metric == Metric::dot ? 70 : 19, n = tiles ? 130 : 5, m = 290;
          const int64_t k = metric == Metric::cosine ? 12 : 1;
          const double offset = metric == Metric::sqeuclidean ? 20.0 : 0.0;  // centred
          const Matrix x(normal<double>(n * d, ++seed, 1.0, offset), d, queries, k == 1);
          const Matrix b(normal<double>(m * d, ++seed, 1.0, offset), d, bank, k != 1);
          compare(x, b, {metric, k, true, k == 1, true}, "packed");
        }
    const Matrix x(normal<double>(8, ++seed), 4, DType::f32), none(Vec<double>{}, 4, DType::f32);
    compare(x, none, {Metric::l2, 1, true, true, true}, "no rows");
    compare(x, Matrix(normal<double>(4, ++seed), 4, DType::f32), {Metric::dot, 1, true, true, true}, "one row");
  }
}

// Nothing to screen: no rows, or rows without coordinates, for few queries and for tiles, with a pack and without.
TEST(cuda_search_of_nothing) {
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    for (const int64_t n : {3, 20})
      for (const bool packed : {false, true}) {
        const Matrix x(normal<double>(n * 4, 960), 4, DType::f32), none(Vec<double>{}, 4, DType::f32);
        for (int fill = 0; fill < 3; ++fill) compare(x, none, {Metric::l2, 1, true, true, packed}, "no rows");
        Matrix points(Vec<double>{}, 0, DType::f32), rows(Vec<double>{}, 0, DType::f32);
        points.rows.count = n, rows.rows.count = 40;
        for (const Metric metric : kMetrics)
          compare(points, rows, {metric, n == 3 ? 4 : 1, true, n == 20, packed}, "no coordinates");
      }
  }
}

// Queries that fp16 cannot hold in the frame of a bank of small rows are refined in full, and nothing is wrong with
// those that it rounds to nothing.
TEST(cuda_packed_search_of_queries_beyond_fp16) {
  const int64_t d = 12, m = 200;
  Vec<double> xs = normal<double>(20 * d, 951);
  for (int64_t i = 0; i < d; ++i) xs[static_cast<size_t>(i)] = 3e4, xs[static_cast<size_t>(d + i)] *= 1e-6;
  const Matrix x(xs, d, DType::f16), b(normal<double>(m * d, 952, 1e-3), d, DType::f16);
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    for (const bool packed : {false, true})
      CHECK(static_cast<int64_t>(compare(x, b, {Metric::l2, 3, true, false, packed}, "beyond fp16").repeated) ==
            (p == cuda::Path::simt ? 0 : 1));
  }
}

// Rows that differ by less than bf16 resolves: half a bound, or that of the other kind of queries, finds a wrong one.
TEST(cuda_packed_search_near_ties) {
  const int64_t d = 40, n = 40, m = 600;
  const auto centre = normal<double>(d, 961), noise = normal<double>(m * d, 962), xs = normal<double>(n * d, 963);
  Vec<double> bs = noise;
  for (size_t i = 0; i < bs.size(); ++i) {
    const size_t row = i / static_cast<size_t>(d), k = i % static_cast<size_t>(d);
    bs[i] = (row % 2 == 0 ? centre[k] : -centre[k]) + 0x1p-8 * noise[i];
  }
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int64_t k : {1, 5})
        compare(Matrix(xs, d, dtype), Matrix(bs, d, DType::f32), {Metric::dot, k, true, false, true}, "near ties");
  }
}

// Several pieces: from a pack, and, for two chunks of queries, from operands that the first chunk leaves behind.
TEST(cuda_search_packs_once_for_all_chunks) {
  const int64_t d = 3, m = 2100, k = 257, piece = 64 * 1024;
  const Matrix b(normal<double>(m * d, 972), d, DType::bf16), x(normal<double>(129 * d, 971), d, DType::bf16);
  const Matrix chunks(normal<double>(897 * d, 973), d, DType::bf16);
  Case c{Metric::l2, k, true, false, true};
  {
    const OnPath on(cuda::Path::mma16);
    compare(x, b, c, "pieces of a pack", 3, piece);
    c.packed = false, c.whole = true;
    compare(chunks, b, c, "the whole bank in the workspace", 3, piece);
  }
  if (!has_sm90()) return;
  const OnPath on(cuda::Path::sm90);
  c.packed = true, c.whole = false;
  compare(x, b, c, "pieces of a pack", 3, piece);
}

TEST(cuda_packed_search_adversarial_inputs) {
  const int64_t d = 9, n = 6, m = 400;
  const Vec<double> xs = normal<double>(n * d, 981), bs = normal<double>(m * d, 982);
  const auto [broken_x, broken] = not_finite(xs, bs, d);
  const auto bias = normal<double>(m, 983, 3.0);
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    const auto all = [&](const Vec<double>& queries, const Vec<double>& bank, DType dtype, const char* what) {
      for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2})
        compare(Matrix(queries, d, dtype), Matrix(bank, d, dtype),
                {metric, metric == Metric::l2 ? 7 : 1, true, true, true}, what);
    };
    all(broken_x, broken, DType::f32, "NaN and infinities");
    all(broken_x, broken, DType::bf16, "NaN and infinities");
    all(xs, of_all_sizes(bs, d), DType::f64, "all sizes");
    all(normal<double>(n * d, 984, 0.01, 1000.0), normal<double>(m * d, 985, 0.01, 1000.0), DType::f32, "1000 +- 0.01");
    Vec<double> sized = xs, small = bs;  // queries of extreme norms have a scale of their own
    for (size_t i = 0; i < sized.size(); ++i) sized[i] *= i / d % 3 == 0 ? 1e-25 : i / d % 3 == 1 ? 1e25 : 1.0;
    all(sized, bs, DType::f32, "queries of all sizes");
    for (double& v : small) v *= 1e-40;  // their power of two is no float32: in the frame they are as any others
    const Matrix few(Vec<double>(small.begin(), small.begin() + n * d), d, DType::f32), many(small, d, DType::f32);
    const cuda::State s = compare(few, many, {Metric::l2, 1, true, true, true}, "tiny");
    CHECK(s.repeated == 0 && static_cast<int64_t>(s.refined) < n * m / 8);
    Case c{Metric::dot, 4, true, false, true};
    c.bias = &bias;
    compare(Matrix(xs, d, DType::f16), Matrix(bs, d, DType::f16), c, "bias");
  }
}

}  // namespace
