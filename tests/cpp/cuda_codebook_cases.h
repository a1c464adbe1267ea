// Gathers, sums by code, losses and gradients on CUDA against the CPU's.
#pragma once

#include "cuda_cases.h"

namespace {

// The loss of x and of quantised rows on both devices. `keep`: null, or which rows count; the others change.
void compare_loss(const Rows& x, const Matrix& start, const Vec<unsigned char>* keep) {
  const int64_t n = x.count, d = x.width;
  Vec<int64_t> codes[2];
  Vec<char> rounded[2] = {start.bytes, start.bytes};
  Vec<double> mean = {-1.0, -1.0};
  Bench bench;
  for (const int side : {0, 1}) {
    for (int64_t i = 0; i < n; ++i) codes[side].push_back(i % 7 == 0 ? -1 : i);
    QuantizeLossProblem p;
    p.x = x;
    p.codes = codes[side].data();
    p.quantized = start.rows;
    p.quantized.data = rounded[side].data();
    p.keep = keep == nullptr ? nullptr : reinterpret_cast<const bool*>(keep->data());
    bench.provide(cuda::quantize_loss_workspace(n));
    if (side == 0) {
      CHECK(quantize_loss(p, Parallel{}) == Status::ok);
      mean[0] = p.squares / (static_cast<double>(p.valid) * static_cast<double>(d));
    } else {
      CHECK(ran(cuda::quantize_loss, p, &mean[1], DType::f64, bench.device));
    }
  }
  CHECK(std::abs(mean[1] - mean[0]) <= 1e-13 * mean[0]);
  CHECK(codes[0] == codes[1] && rounded[0] == rounded[1]);
}

TEST(cuda_quantize_loss_close_to_cpu) {
  const int64_t d = 9, n = 600;
  const auto xs = normal<float>(n * d, 41);
  const Matrix start(normal<double>(n * d, 42), d, DType::f32);
  Vec<unsigned char> keep(static_cast<size_t>(n));
  for (size_t i = 0; i < keep.size(); ++i) keep[i] = i % 3 != 0;
  compare_loss(view(xs, d), start, nullptr);
  compare_loss(view(xs, d), start, &keep);
}

// Rows and quantised rows of any two element types; rows longer than what is on its way at once; columns apart.
TEST(cuda_quantize_loss_of_all_types) {
  uint32_t seed = 45;
  const int64_t n = 300;
  Vec<unsigned char> keep(static_cast<size_t>(n), 1);
  for (size_t i = 0; i < keep.size(); i += 5) keep[i] = 0;
  for (const DType x_type : kDTypes)
    for (const DType type : kDTypes)
      for (const int64_t d : {3, 70}) {
        const bool apart = x_type == type && d == 3;
        const Matrix x(normal<double>(n * d, ++seed), d, x_type, apart), start(normal<double>(n * d, ++seed), d, type);
        compare_loss(x.rows, start, &keep);
      }
}

TEST(cuda_codebook_equals_cpu) {
  std::mt19937 random(9);
  for (const DType dtype : kDTypes)
    for (const int64_t k : {1, 4}) {
      const int64_t d = 21, m = 13, n = 50;
      const Matrix bank(normal<double>(m * d, 3), d, dtype), x(normal<double>(n * d, 4), d, dtype);
      const Matrix weights(normal<double>(n * k, 5), 1, dtype);
      Vec<int64_t> codes(static_cast<size_t>(n * k));
      for (auto& c : codes) c = static_cast<int64_t>(random() % (m + 1)) - 1;
      const size_t size = size_of(dtype);
      Bench bench;
      for (const Reduce reduce : {Reduce::none, Reduce::sum, Reduce::mean}) {
        Vec<char> ours(static_cast<size_t>(n * d * k) * size, 1), theirs = ours;
        LookupProblem p;
        p.codes = codes.data();
        p.k = reduce == Reduce::none ? 1 : k;
        p.count = n * k / p.k;
        p.bank = bank.rows;
        p.weights = weights.rows.data;
        p.reduce = reduce;
        p.out = theirs.data();
        CHECK(lookup(p, Parallel{}) == Status::ok);
        p.out = ours.data();
        CHECK(ran(cuda::lookup, p, bench.device));
        CHECK(ours == theirs);
      }
      Vec<char> ours(static_cast<size_t>(m * d) * size, 1), theirs = ours;
      SegmentSumProblem s;
      s.codes = codes.data();
      s.count = n * k;
      s.k = k;
      s.segments = m;
      s.source = x.rows;
      s.weights = weights.rows.data;
      s.weights_dtype = dtype;
      s.out_dtype = dtype;
      Vec<float> counts[2] = {Vec<float>(static_cast<size_t>(m), 7.0f), Vec<float>(static_cast<size_t>(m), 7.0f)};
      s.counts = counts[0].data();
      s.out = theirs.data();
      CHECK(segment_sum(s, Parallel{}) == Status::ok);
      s.out = ours.data();
      s.counts = counts[1].data();
      bench.provide(cuda::segment_sum_workspace(s));
      CHECK(ran(cuda::segment_sum, s, bench.device));
      CHECK(ours == theirs);
      CHECK(counts[0] == counts[1]);
      CHECK(bench.state.bad_codes == 0);
    }
}

// Rows of whole 16 bytes and not, bank or output that begins elsewhere, columns apart, fewer words than threads, more.
TEST(cuda_lookup_equals_cpu) {
  std::mt19937 random(19);
  uint32_t seed = 60;
  enum class Place { aligned, bank_shifted, out_shifted, half_shifted, strided };
  for (const DType dtype : kDTypes)
    for (const Place place :
         {Place::aligned, Place::bank_shifted, Place::out_shifted, Place::half_shifted, Place::strided})
      for (const int64_t d : {1, 6, 8, 64, 67, 136}) {
        const int64_t m = 13, n = d < 64 ? 131 : 37, k = 5, size = static_cast<int64_t>(size_of(dtype));
        Matrix bank(normal<double>(m * d, ++seed), d, dtype, place == Place::strided);
        if (place == Place::bank_shifted || place == Place::half_shifted) {
          const int64_t shift = place == Place::half_shifted ? 8 : size;
          bank.bytes.insert(bank.bytes.begin(), static_cast<size_t>(shift), 0);
          bank.rows.data = bank.bytes.data() + shift;
        }
        const Matrix weights(normal<double>(n * k, ++seed), 1, dtype);
        Vec<int64_t> codes(static_cast<size_t>(n * k));
        for (auto& c : codes) c = static_cast<int64_t>(random() % (m + 1)) - 1;
        const int64_t shift = place == Place::out_shifted ? size : 0;
        Bench bench;
        for (const bool weighted : {false, true})
          for (const Reduce reduce : {Reduce::none, Reduce::sum, Reduce::mean}) {
            Vec<char> ours(static_cast<size_t>(n * d * size + shift), 1), theirs = ours;
            LookupProblem p;
            p.codes = codes.data();
            p.k = reduce == Reduce::none ? 1 : k;
            p.count = n;
            p.bank = bank.rows;
            p.weights = weighted ? weights.rows.data : nullptr;
            p.reduce = reduce;
            p.out = theirs.data() + shift;
            CHECK(lookup(p, Parallel{}) == Status::ok);
            p.out = ours.data() + shift;
            CHECK(ran(cuda::lookup, p, bench.device));
            CHECK(ours == theirs);
          }
        CHECK(bench.state.bad_codes == 0);
      }
}

// A code out of range makes its row NaN, whatever the words in which rows are copied, and no other row.
TEST(cuda_lookup_of_bad_codes_is_nan) {
  for (const DType dtype : kDTypes)
    for (const int64_t d : {5, 6, 64})
      for (const bool weighted : {false, true}) {
        const Matrix bank(normal<double>(3 * d, 81), d, dtype), ones(Vec<double>(6, 1.0), 1, dtype);
        const Vec<int64_t> codes = {0, 3, -1, -2, 2, int64_t{1} << 40};
        Vec<char> out(static_cast<size_t>(6 * d) * size_of(dtype), 1);
        Bench bench;
        LookupProblem p;
        p.codes = codes.data();
        p.count = 6;
        p.bank = bank.rows;
        p.weights = weighted ? ones.rows.data : nullptr;
        p.out = out.data();
        CHECK(ran(cuda::lookup, p, bench.device));
        CHECK(bench.state.bad_codes == 3);
        bool right = true;
        with_dtype(dtype, [&](auto type) {
          const auto *found = reinterpret_cast<decltype(type)>(out.data()),
                     *source = reinterpret_cast<decltype(type)>(bank.bytes.data());
          for (int64_t i = 0; i < 6 * d; ++i) {
            const double x = widened(found[i]);
            const int64_t code = codes[static_cast<size_t>(i / d)];
            if (code < -1 || code >= 3)
              right = right && std::isnan(x);
            else
              right = right && x == (code < 0 ? 0.0 : widened(source[code * d + i % d]));
          }
        });
        CHECK(right);
      }
}

TEST(cuda_gradients_close_to_cpu) {
  std::mt19937 random(10);
  const int64_t d = 11, m = 9, n = 14, k = 20;
  const auto grads = normal<float>(n * k, 8);
  Vec<int64_t> codes(static_cast<size_t>(n * k));
  for (auto& c : codes) c = static_cast<int64_t>(random() % (m + 1)) - 1;
  std::vector<Metric> metrics(std::begin(kMetrics), std::end(kMetrics));
  metrics.insert(metrics.end(), std::begin(kBallMetrics), std::end(kBallMetrics));
  for (const Metric metric : metrics) {
    const double scale = record(metric).ball ? kIntoBall : 1.0;
    const auto xs = normal<float>(n * d, 6, scale), bs = normal<float>(m * d, 7, scale);
    Vec<float> gx[2], gb[2], dots[2];
    Bench bench;
    for (const int side : {0, 1}) {
      gx[side].assign(xs.size(), 7.0f), gb[side].assign(bs.size(), 7.0f), dots[side].assign(codes.size(), 7.0f);
      PairProblem p;
      p.queries = view(xs, d);
      p.bank = view(bs, d);
      p.indices = codes.data();
      p.grad = grads.data();
      p.k = k;
      p.metric = metric;
      p.grad_queries = gx[side].data();
      p.grad_bank = gb[side].data();
      LookupDotProblem l{codes.data(), k, p.queries, p.bank, dots[side].data()};
      bench.provide(cuda::pair_workspace(p));
      if (side == 0)
        CHECK(pair_gradients(p, Parallel{}) == Status::ok && lookup_dot(l, Parallel{}) == Status::ok);
      else
        CHECK(ran(cuda::pair_gradients, p, bench.device) && ran(cuda::lookup_dot, l, bench.device));
    }
    const auto close = [](const Vec<float>& a, const Vec<float>& b) {
      for (size_t i = 0; i < a.size(); ++i)
        if (!(std::abs(a[i] - b[i]) <= 1e-5f * (1.0f + std::abs(b[i])))) return false;
      return true;
    };
    CHECK(close(gx[1], gx[0]) && close(gb[1], gb[0]) && close(dots[1], dots[0]));
  }
}

// One of the two gradients of pairs, by the CPU and by CUDA.
void find_gradients(const Matrix& x, const Matrix& bank, const Vec<int64_t>& codes, const Vec<float>& grads, int64_t k,
                    Metric metric, void* PairProblem::* wanted, Vec<char> (&gradient)[2]) {
  Bench bench;
  for (const int side : {0, 1}) {
    gradient[side].assign((wanted == &PairProblem::grad_bank ? bank : x).bytes.size(), 1);
    PairProblem p;
    p.queries = x.rows;
    p.bank = bank.rows;
    p.indices = codes.data();
    p.grad = grads.data();
    p.k = k;
    p.metric = metric;
    p.*wanted = gradient[side].data();
    bench.provide(cuda::pair_workspace(p));
    if (side == 0)
      CHECK(pair_gradients(p, Parallel{}) == Status::ok);
    else
      CHECK(ran(cuda::pair_gradients, p, bench.device));
  }
}

// More pairs than a warp looks at together, more columns than it has at once, columns apart. Every type of a bank, and
// 16-bit queries of a float32 bank.
TEST(cuda_query_gradients_of_all_types) {
  std::mt19937 random(12);
  uint32_t seed = 300;
  std::vector<Metric> metrics(std::begin(kMetrics), std::end(kMetrics));
  metrics.insert(metrics.end(), std::begin(kBallMetrics), std::end(kBallMetrics));
  for (const Metric metric : metrics)
    for (const DType type : kDTypes)
      for (const int64_t k : {3, 37}) {
        const int64_t n = 9, m = 15, d = k == 3 ? 70 : 13;
        const double scale = record(metric).ball ? 0.5 * kIntoBall : 1.0;
        const bool small = type == DType::bf16 || type == DType::f16;
        const Matrix x(normal<double>(n * d, ++seed, scale), d, type);
        const Matrix bank(normal<double>(m * d, ++seed, scale), d, small && k == 3 ? DType::f32 : type, k == 37);
        const Vec<float> grads = normal<float>(n * k, ++seed);
        Vec<int64_t> codes(static_cast<size_t>(n * k));
        for (auto& c : codes) c = static_cast<int64_t>(random() % static_cast<unsigned>(m + 1)) - 1;
        Vec<char> gradient[2];
        find_gradients(x, bank, codes, grads, k, metric, &PairProblem::grad_queries, gradient);
        // A factor that comes from a score need not have the CPU's last bit.
        const bool scored = record(metric).root || record(metric).scaled_rows();
        const double error = !scored ? 0.0 : small ? 1e-2 : type == DType::f32 ? 1e-6 : 1e-13;
        bool right = true;
        with_dtype(type, [&](auto t) {
          const auto *ours = reinterpret_cast<decltype(t)>(gradient[1].data()),
                     *theirs = reinterpret_cast<decltype(t)>(gradient[0].data());
          for (int64_t i = 0; i < n * d; ++i) {
            const double a = widened(ours[i]), b = widened(theirs[i]);
            right = right && (a == b || std::abs(a - b) <= error * (1.0 + std::abs(b)));
          }
        });
        CHECK(right);
      }
}

TEST(cuda_bad_codes_are_not_read) {
  const auto bs = normal<float>(12, 1), xs = normal<float>(6, 2);
  const Vec<int64_t> codes = {0, 99, -1, -5, 3, 4};
  Vec<float> out(18, 7.0f);
  Bench bench;
  LookupProblem p;
  p.codes = codes.data();
  p.count = 6;
  p.bank = view(bs, 3);
  p.out = out.data();
  CHECK(ran(cuda::lookup, p, bench.device));
  CHECK(bench.state.bad_codes == 3);
  CHECK(out[0] == bs[0] && std::isnan(out[3]) && out[6] == 0.0f && std::isnan(out[9]) && out[12] == bs[9] &&
        std::isnan(out[15]));
  SegmentSumProblem s;
  s.codes = codes.data();
  s.count = 6;
  s.k = 3;
  s.segments = 4;
  s.source = view(xs, 3);
  Vec<float> sums(12, 7.0f);
  s.out = sums.data();
  bench.provide(cuda::segment_sum_workspace(s));
  CHECK(ran(cuda::segment_sum, s, bench.device));
  CHECK(bench.state.bad_codes == 6);
  CHECK(sums[0] == xs[0] && sums[3] == 0.0f && sums[9] == xs[3]);
}

}  // namespace
