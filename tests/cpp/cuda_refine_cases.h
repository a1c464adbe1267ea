// The refinement's kernels, each of which serves some k and some numbers of rows (cuda_cases.h includes this file). On
// one processor, more than four rows count as many.
#pragma once

namespace {

// Rows so close that the screen keeps them all, with distinct scores in float64; every fifth equals one before it.
// They lie in two clusters, so that no centre helps.
Vec<double> close_rows(int64_t count, int64_t d, uint32_t seed) {
  const auto centre = normal<double>(d, seed), noise = normal<double>(count * d, seed + 1);
  Vec<double> rows;
  for (int64_t j = 0; j < count; ++j)
    for (int64_t i = 0; i < d; ++i) {
      const int64_t from = j % 5 == 4 ? j - 2 : j;  // of the same cluster
      rows.push_back((j % 2 == 0 ? 1.0 : -1.0) * centre[static_cast<size_t>(i)] +
                     1e-11 * noise[static_cast<size_t>(from * d + i)]);
    }
  return rows;
}

TEST(cuda_refine_many_candidates) {
  const int64_t d = 11, n = 38, m = 150;
  const Matrix b(close_rows(m, d, 401), d, DType::f64), x(normal<double>(n * d, 403), d, DType::f64);
  for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2})
    for (const int64_t k : {1, 2, 9, 32, 33}) {
      unsigned long long refined = 0;
      for (const int processors : {1, 40}) {  // a warp or a part of one to a row, and a block to a row
        if (k > 1 && k * 8 >= m) continue;    // no screen
        const cuda::State s = compare(x, b, {metric, k, true, k == 1}, "close rows", processors);
        CHECK(s.repeated == 0 && s.refined > static_cast<unsigned long long>(n * 32));
        CHECK(processors == 1 || s.refined == refined);
        refined = s.refined;
      }
    }
  const Matrix more(close_rows(300, d, 405), d, DType::f64);
  for (const int64_t k : {32, 33}) compare(x, more, {Metric::l2, k}, "close rows", 1);
}

TEST(cuda_refine_every_kind_of_row) {
  const int64_t d = 24, n = 37, m = 280;
  uint32_t seed = 420;
  for (const DType dtype : kDTypes)
    for (const int64_t k : {1, 5, 32, 33}) {
      // Small numbers: many scores are equal. Some rows of either side have no finite score.
      Vec<double> xs = normal<double>(n * d, ++seed), bs = normal<double>(m * d, ++seed);
      for (double& v : xs) v = std::round(v);
      for (double& v : bs) v = std::round(v);
      std::tie(xs, bs) = not_finite(std::move(xs), std::move(bs), d);
      xs[static_cast<size_t>(36 * d)] = NAN;  // the last row of a part of a warp
      for (const bool odd : {false, true}) {
        const Matrix x(xs, d, dtype, odd), b(bs, d, dtype, odd);
        for (const Metric metric : {Metric::dot, Metric::cosine, Metric::sqeuclidean}) {
          if (k > 1 && odd == (metric == Metric::cosine)) continue;
          compare(x, b, {metric, k, true, k == 1}, "kinds", 1);
          if (k == 1) compare(x, b, {metric, k, false, true}, "kinds without values", 1);
        }
      }
    }
  const Matrix nans(Vec<double>(static_cast<size_t>(40 * d), NAN), d, DType::f32);
  const Matrix x(normal<double>(n * d, 419), d, DType::f32);
  const Matrix one(Vec<double>(static_cast<size_t>(d), NAN), d, DType::f32);  // a row's only candidate
  for (const bool values : {true, false}) {
    compare(x, nans, {Metric::l2, 1, values, true}, "only NaN", 1);
    for (const int processors : {1, 40}) compare(x, one, {Metric::l2, 1, values, true}, "one NaN", processors);
  }
}

TEST(cuda_refine_masks_and_biases) {
  const int64_t d = 7, n = 33, m = 400;
  const Matrix x(normal<double>(n * d, 441), d, DType::f32), b(normal<double>(m * d, 442), d, DType::f32);
  const auto bias = normal<double>(m, 443, 2.0);
  std::mt19937 random(7);
  for (const int keep : {0, 1, 60}) {  // percent
    Vec<unsigned char> mask(static_cast<size_t>(n * m));
    for (auto& v : mask) v = static_cast<int>(random() % 100) < keep;
    for (const int64_t k : {1, 4, 32})
      for (const bool biased : {false, true}) {
        Case c{Metric::dot, k, k != 4, k == 1};
        c.mask = &mask;
        if (biased) c.bias = &bias;
        compare(x, b, c, "mask and bias", 1);
      }
  }
}

// Some rows overflow and some do not: the bank is split for the few that do, and the parts merge.
TEST(cuda_refine_some_rows_fall_back) {
  const int64_t d = 4, n = 20, m = 2 * cuda::kFewCapacity + 700;
  Vec<double> bs = normal<double>(m * d, 451);
  for (int64_t j = 0; j < m; ++j)
    if (j >= 700)
      for (int64_t i = 0; i < d; ++i) bs[static_cast<size_t>(j * d + i)] = i == 0 ? 9.0 : 0.5;
  bs[static_cast<size_t>((m - 1) * d)] = std::nextafter(9.0f, 10.0f);  // a best row in the last part
  Vec<double> xs = normal<double>(n * d, 452);
  unsigned long long wanted = 0;
  for (int64_t q = 0; q < n; ++q) {
    double& first = xs[static_cast<size_t>(q * d)];
    first = (q % 3 == 0 ? 1.0 : -1.0) * (4.0 + std::abs(first));  // the equal rows are the best, or the worst
    wanted += q % 3 == 0;
  }
  const Matrix x(xs, d, DType::f32), b(bs, d, DType::f32);
  for (const cuda::Path p : every_path()) {
    const OnPath on(p);
    for (const int processors : {1, 6, 40})
      for (const int64_t k : {1, 6, 40}) {
        if (p == cuda::Path::simt ? processors == 6 && k == 1 : k == 40 || processors != 1) continue;
        CHECK(compare(x, b, {Metric::dot, k, true, k == 1}, "some fall back", processors).repeated == wanted);
      }
  }
}

}  // namespace
