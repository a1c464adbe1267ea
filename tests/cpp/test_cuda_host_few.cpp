// The bounds of the screen of a few queries (csrc/cuda/few.h), pair by pair on the emulator, and its sample.
#define VECBANK_EMULATE 1
#include "cuda_emulator.h"

#include <array>

#include "check.h"
#include "cuda/kernels.h"

namespace {

using namespace vecbank;

double number(const Rows& rows, int64_t i, int64_t k) {
  return with_dtype(rows.dtype, [&](auto t) {
    return widened(reinterpret_cast<decltype(t)>(cuda::row_of(rows, i))[k * rows.col_stride]);
  });
}

// Screens everything without a threshold. Returns how far the worst score lies from the middle of its interval, in half
// widths: at most 1.
double tightness(const Rows& x, const Rows& b, Metric metric, const char* what, const double* bias = nullptr) {
  const int64_t n = x.count, m = b.count, d = b.width;
  cuda::State state{};
  cuda::Device device;
  device.processors = 3;
  std::vector<float> thresholds(static_cast<size_t>(n)), tops(static_cast<size_t>(n * cuda::kFewTops));
  std::vector<int32_t> counts(thresholds.size());
  std::vector<cuda::Candidate> candidates(static_cast<size_t>(n * m));
  cuda::Few f{};
  f.s.rows = n, f.s.width = d, f.s.columns = m, f.s.metric = metric, f.s.biased = bias != nullptr;
  f.s.thresholds = thresholds.data(), f.s.counts = counts.data(), f.s.candidates = candidates.data();
  f.s.capacity = static_cast<int32_t>(m);
  f.queries = x, f.bank = b, f.bias = bias, f.state = &state, f.k = 5, f.tops = tops.data();
  int32_t fallback_count = -1;
  f.fallback_count = &fallback_count;
  CHECK(cuda::screen_few(f, device) == nullptr && fallback_count == 0);
  double worst = 0.0;
  for (int64_t q = 0; q < n; ++q) {
    double squares = 0.0;
    for (int64_t k = 0; k < d; ++k) squares += number(x, q, k) * number(x, q, k);
    const cuda::FewQuery query = cuda::few_query(metric, d, squares, bias != nullptr, b.dtype == DType::f64);
    CHECK(counts[static_cast<size_t>(q)] == m);
    for (int64_t i = 0; i < m; ++i) {
      const cuda::Candidate& c = candidates[static_cast<size_t>(q * m + i)];
      long double exact = 0.0L, norm = 0.0L;
      for (int64_t k = 0; k < d; ++k) {
        const long double u = number(x, q, k), v = number(b, c.column, k);
        exact += record(metric).term == Term::square ? -(u - v) * (u - v) : u * v;
        norm += v * v;
      }
      exact = std::ldexp(exact, query.exponent);
      if (metric == Metric::cosine) exact /= std::max(std::sqrt(norm), static_cast<long double>(kNormFloor));
      if (bias != nullptr) exact += bias[c.column];
      const bool holds = exact <= c.upper && exact >= c.lower;
      CHECK(holds);
      if (!holds) {
        std::printf("  few, %s: metric %d dtype %d d %lld: row %lld column %u\n", what, static_cast<int>(metric),
                    static_cast<int>(b.dtype), static_cast<long long>(d), static_cast<long long>(q), c.column);
        return 2.0;
      }
      const long double middle = (static_cast<long double>(c.upper) + c.lower) / 2.0L;
      const long double half = (static_cast<long double>(c.upper) - c.lower) / 2.0L;
      if (std::isfinite(half) && half > 0.0L)
        worst = std::max(worst, static_cast<double>(std::fabs(exact - middle) / half));
    }
  }
  return worst;
}

const Metric kMetrics[] = {Metric::dot, Metric::cosine, Metric::l2};
const DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

TEST(cuda_few_bounds_hold_on_random_data) {
  uint32_t seed = 1;
  for (const Metric metric : kMetrics)
    for (const DType dtype : kDTypes)
      for (const auto& [scale, offset] : {std::pair{1.0, 0.0}, {1.0, 30.0}, {1e-4, 1.0}, {1e-22, 0.0}, {1e4, 0.0}}) {
        if (dtype == DType::f16 && scale < 1e-10) continue;
        const int64_t d = std::array<int64_t, 4>{8, 33, 100, 136}[++seed % 4], skip = seed % 3;
        const OwnRows x(gaussian<double>(3 * d, 2 * seed, scale, offset), d, dtype);
        const OwnRows b(gaussian<double>(40 * d, 2 * seed + 1, scale, offset), d, dtype, skip);
        CHECK(tightness(x.rows, b.rows, metric, "random") <= 1.0);
      }
  const auto bias = gaussian<double>(40, 5, 10.0);
  const OwnRows x(gaussian<double>(9 * 24, 6), 24, DType::bf16), b(gaussian<double>(40 * 24, 7), 24, DType::bf16);
  const double t = tightness(x.rows, b.rows, Metric::dot, "bias", bias.data());
  CHECK(t > 0.0 && t <= 1.0);
}

// One large product, and then many of which each is just below what the sum keeps, all of them in one lane: nearly the
// whole bound is needed, and half of it would not hold.
TEST(cuda_few_bounds_hold_where_sums_lose) {
  const int64_t d = 4096;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const int64_t each = 16 / static_cast<int64_t>(size_of(dtype));  // numbers of a lane's chunk
    std::vector<double> v(static_cast<size_t>(d), 0.0), zero(v);
    for (int64_t i = 0; i < d; i += 8 * each)
      for (int64_t e = 0; e < each; ++e) v[static_cast<size_t>(i + e)] = 0x1p-12 * (1.0 - 0x1p-8);
    v[0] = 1.0;
    const OwnRows one(v, d, dtype), none(zero, d, dtype);
    for (const auto& [rows, metric] : {std::pair{&one, Metric::dot}, {&none, Metric::l2}}) {
      const double t = tightness(rows->rows, one.rows, metric, "sums");
      CHECK(t > 0.8 && t <= 1.0);
    }
    const double t = tightness(one.rows, one.rows, Metric::cosine, "sums");
    CHECK(t > 0.2 && t <= 1.0);
  }
}

// Float64 rows whose rounding to float32 goes one way in every coordinate.
TEST(cuda_few_bounds_hold_where_inputs_are_rounded) {
  const int64_t d = 8;
  const double low = 1.0 + 0x1p-24 * 0.999, high = 1.0 + 0x1p-22 - 0x1p-24 * 0.999;
  const OwnRows x(std::vector<double>(static_cast<size_t>(d), low), d, DType::f64);
  const OwnRows b(std::vector<double>(static_cast<size_t>(d), high), d, DType::f64);
  for (const Metric metric : kMetrics) CHECK(tightness(x.rows, b.rows, metric, "rounded") <= 1.0);
  CHECK(tightness(x.rows, b.rows, Metric::l2, "rounded") > 0.3);
}

TEST(cuda_few_samples) {
  for (const int64_t k : {1, 10, 32, 33, 100, 128})
    for (const int64_t m : {1, 1000, 1025, 5000, 60000, 1000000, 50000000}) {
      const int64_t capacity = k <= 32 ? 1024 : 4096;
      const cuda::FewSample s = cuda::few_sample(k, m, capacity);
      CHECK((s.rows == 0) == (m <= capacity) && s.rows <= m && s.tops() <= cuda::kFewTops);
      if (s.rows == 0) continue;
      CHECK(s.rows * capacity >= m * (2 * k + 22) && s.rows <= 1 + m * (2 * k + 22) / capacity);
      CHECK(s.tops() >= std::min<int64_t>(s.rows, cuda::kFewTops / 2));    // many more groups than ranks
      CHECK(int64_t{s.warps} * cuda::kFewRows < s.rows + cuda::kFewRows);  // every warp has a step
    }
  CHECK(cuda::few_group(1, 128) == 1 && cuda::few_group(2, 128) == 4 && cuda::few_group(5, 128) == 8);
  CHECK(cuda::few_group(16, 1536) == 8 && cuda::few_group(16, 1537) == 4 && cuda::few_group(1, 12289) == 0);
}

}  // namespace
