// Sums of rows by code on CUDA: the CPU's bits, whichever codes there are and however the work is cut.
#pragma once

#include "cuda_cases.h"

namespace {

enum class Codes { uniform, one, half, skewed, few, gaps };

Vec<int64_t> codes_of(Codes kind, int64_t count, int64_t segments, std::mt19937& random) {
  Vec<int64_t> codes(static_cast<size_t>(count));
  int64_t i = 0;
  for (auto& c : codes) {
    const int64_t any = static_cast<int64_t>(random() % static_cast<unsigned>(segments + 1)) - 1;
    const double u = static_cast<double>(random() % 4096) / 4096.0;
    if (kind == Codes::uniform) c = any;
    if (kind == Codes::one) c = segments - 1;
    if (kind == Codes::half) c = random() % 2 ? segments / 2 : any;
    if (kind == Codes::skewed) c = static_cast<int64_t>(std::pow(u, 6.0) * static_cast<double>(segments));
    if (kind == Codes::gaps) c = i / 700 % 4 == 0 ? 0 : i / 3000 % 2 == 0 ? 1 + any / 2 : i % 50 == 0 ? 1 : -1;
    ++i;
    if (kind == Codes::few) c = static_cast<int64_t>(random() % 3) * (segments / 3);
  }
  return codes;
}

// Two rows of three cancel where they meet, at sizes that float64 cannot hold beside the third.
Vec<double> cancelling(int64_t n, int64_t d, uint32_t seed, DType dtype) {
  Vec<double> x = normal<double>(n * d, seed);
  if (dtype == DType::f16) return x;
  for (int64_t i = 0; i < n * d; ++i) {
    const int64_t row = i / d;
    if (row % 3 == 1) x[static_cast<size_t>(i)] *= 1e15;
    if (row % 3 == 2) x[static_cast<size_t>(i)] = -x[static_cast<size_t>(i - d)];
    if (row % 11 == 0) x[static_cast<size_t>(i)] = -0.0;
  }
  return x;
}

struct SumCase {
  Codes codes;
  int64_t n, k, m, d;
  DType dtype = DType::f32;
  bool weighted = false, odd_strides = false;
  int processors = 3;
  bool shifted = false;  // rows do not begin where 16 bytes do
  int64_t withheld = 0;  // partial vectors for which the workspace has no room
};

void compare_sums(const SumCase& c, uint32_t seed) {
  std::mt19937 random(seed);
  Matrix x(cancelling(c.n, c.d, seed, c.dtype), c.d, c.dtype, c.odd_strides);
  if (c.shifted) {
    x.bytes.insert(x.bytes.begin(), size_of(c.dtype), 0);
    x.rows.data = x.bytes.data() + size_of(c.dtype);
  }
  const Matrix weights(normal<double>(c.n * c.k, seed + 1), 1, c.dtype);
  const Vec<int64_t> codes = codes_of(c.codes, c.n * c.k, c.m, random);
  Vec<char> out[2];
  Vec<float> counts[2];
  Bench bench(c.processors);
  for (const int side : {0, 1}) {
    out[side].assign(static_cast<size_t>(c.m * c.d) * size_of(c.dtype), 1);
    counts[side].assign(static_cast<size_t>(c.m), 7.0f);
    SegmentSumProblem s;
    s.codes = codes.data();
    s.count = c.n * c.k;
    s.k = c.k;
    s.segments = c.m;
    s.source = x.rows;
    s.weights = c.weighted ? weights.rows.data : nullptr;
    s.weights_dtype = s.out_dtype = c.dtype;
    s.out = out[side].data();
    s.counts = counts[side].data();
    if (side == 0) {
      CHECK(segment_sum(s, Parallel{}) == Status::ok);
    } else {
      bench.provide(cuda::segment_sum_workspace(s) - c.withheld * 8 * c.d);
      CHECK(ran(cuda::segment_sum, s, bench.device));
    }
  }
  const bool same = same_numbers(out[1], out[0], c.dtype) && counts[0] == counts[1] && bench.state.bad_codes == 0;
  CHECK(same);
  if (!same)
    std::printf("  codes %d: %lld x %lld, k %lld, into %lld, dtype %d\n", static_cast<int>(c.codes),
                static_cast<long long>(c.n), static_cast<long long>(c.d), static_cast<long long>(c.k),
                static_cast<long long>(c.m), static_cast<int>(c.dtype));
}

TEST(cuda_sums_by_blocks_equal_cpu) {
  uint32_t seed = 900;
  for (const Codes codes : {Codes::uniform, Codes::one, Codes::half, Codes::skewed, Codes::few})
    for (const DType dtype : kDTypes) {
      // Whole 16 bytes and not, several slices of the columns, k codes a row, codes that nobody has.
      compare_sums({codes, 2600, 1, 37, 8, dtype, dtype == DType::bf16}, seed += 2);
      compare_sums({codes, 1100, 3, 300, 5, dtype, true, dtype == DType::f64}, seed += 2);
    }
  compare_sums({Codes::half, 3100, 1, 9, 136, DType::f32, true}, ++seed);
  compare_sums({Codes::half, 3100, 1, 700, 67, DType::f64}, ++seed);
  compare_sums({Codes::few, 2048, 1, 5, 136, DType::bf16, false, false, 1}, ++seed);
  compare_sums({Codes::uniform, 1500, 2, 5000, 4, DType::f32}, ++seed);
  compare_sums({Codes::half, 2100, 1, 12, 16, DType::f32, false, false, 3, true}, ++seed);
  compare_sums({Codes::uniform, 1, 1, 1, 1, DType::f32}, ++seed);
  compare_sums({Codes::uniform, 0, 1, 3, 7, DType::f32}, ++seed);
  compare_sums({Codes::uniform, 40, 0, 3, 7, DType::f32}, ++seed);
  // Long segments in pieces of several row blocks, in some of which they have no members; as many pieces as blocks.
  for (const Codes codes : {Codes::gaps, Codes::skewed, Codes::one})
    for (const int64_t k : {1, 2})
      compare_sums({codes, 12500 / k, k, 6, 4, DType::f32, k == 2, false, k == 2 ? 1 : 40}, ++seed);
  compare_sums({Codes::gaps, 12500, 1, 6, 67, DType::bf16}, ++seed);
  // Three long segments with four blocks each, and room for two of them, and for none.
  for (const int64_t room : {9, 0})
    compare_sums({Codes::few, 4000, 1, 5, 16, DType::f32, false, false, 3, false, 4000 / 2 - room}, ++seed);
}

// Without a root and without norms of its own, a pair's factor is the incoming gradient: the bank's gradient is then
// the CPU's to the bit.
TEST(cuda_bank_gradients_equal_cpu) {
  uint32_t seed = 1000;
  std::mt19937 random(seed);
  for (const DType dtype : kDTypes)
    for (const Metric metric : {Metric::dot, Metric::sqeuclidean, Metric::l1})
      for (const Codes kind : {Codes::half, Codes::uniform}) {
        if (kind == Codes::uniform && dtype != DType::f32) continue;
        const int64_t n = 1050, k = 2, m = 21, d = metric == Metric::dot ? 8 : 5;
        const Matrix x(cancelling(n, d, ++seed, dtype), d, dtype), bank(normal<double>(m * d, ++seed), d, dtype);
        const Vec<float> grads = normal<float>(n * k, ++seed);
        const Vec<int64_t> codes = codes_of(kind, n * k, m, random);
        Vec<char> gradient[2];
        find_gradients(x, bank, codes, grads, k, metric, &PairProblem::grad_bank, gradient);
        CHECK(same_numbers(gradient[1], gradient[0], dtype));
      }
}

}  // namespace
