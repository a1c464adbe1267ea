// Gathers and scatter-adds: order, skipped codes, bad codes.
#include "check.h"

using namespace vecbank;
using namespace vecbank::cpu;

TEST(segment_sums_run_in_order_and_round_once) {
  const int64_t d = 5, n = 200, m = 13;
  const auto x = gaussian<float>(n * d, 1, 1.0, 10.0);
  std::vector<int64_t> codes(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) codes[static_cast<size_t>(i)] = (i * 5) % (m + 1) - 1;
  std::vector<double> expected(static_cast<size_t>(m * d), 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < d && codes[static_cast<size_t>(i)] >= 0; ++k)
      expected[static_cast<size_t>(codes[static_cast<size_t>(i)] * d + k)] +=
          static_cast<double>(x[static_cast<size_t>(i * d + k)]);
  for (const int workers : {1, 4}) {
    std::vector<float> out(static_cast<size_t>(m * d), -1.0f);
    SegmentSumProblem p;
    p.codes = codes.data();
    p.count = n;
    p.segments = m;
    p.source = rows(x, d);
    p.out = out.data();
    std::vector<float> counts(static_cast<size_t>(m));
    p.counts = counts.data();
    CHECK(segment_sum(p, threads(workers)) == Status::ok);
    for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == static_cast<float>(expected[i]));
    float total = 0.0f;
    for (const float c : counts) total += c;
    int64_t coded = 0;
    for (const int64_t c : codes) coded += c >= 0;
    CHECK(total == static_cast<float>(coded));
  }
}

TEST(bad_codes_are_reported_and_never_read) {
  const auto b = gaussian<float>(10 * 3, 1);
  for (const int64_t bad : {int64_t{10}, int64_t{-2}, INT64_MAX, INT64_MIN}) {
    const std::vector<int64_t> codes{0, bad, 1};
    std::vector<float> out(9);
    const LookupProblem p{.codes = codes.data(), .count = 3, .bank = rows(b, 3), .out = out.data()};
    CHECK(lookup(p, threads(1)) == Status::bad_index);
    const SegmentSumProblem s{
        .codes = codes.data(), .count = 3, .segments = 10, .source = rows(b, 3), .out = out.data()};
    CHECK(segment_sum(s, threads(1)) == Status::bad_index);
  }
}

TEST(lookup_of_minus_one_is_a_zero_row) {
  const auto b = gaussian<float>(4 * 3, 1);
  const std::vector<int64_t> codes{2, -1};
  std::vector<float> out(6, 5.0f);
  const LookupProblem p{.codes = codes.data(), .count = 2, .bank = rows(b, 3), .out = out.data()};
  CHECK(lookup(p, threads(2)) == Status::ok);
  for (size_t k = 0; k < 3; ++k) CHECK(out[k] == b[6 + k] && out[3 + k] == 0.0f);
}
