// The exact score: core/exact_score.h against the contract spelled out here, and the vector loops of every instruction
// set against core/exact_score.h.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "core/exact_score.h"
#include "cpu/kernels.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr Term kTerms[] = {Term::product, Term::square, Term::absolute};

bool same_bits(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || std::bit_cast<uint64_t>(a) == std::bit_cast<uint64_t>(b);
}

// Numbers whose sums depend on the order: they cancel, overflow, vanish, and hold infinities and NaN now and then.
std::vector<double> adversarial(int64_t count, uint32_t seed, bool finite) {
  std::mt19937 random(seed);
  const double extremes[] = {0.0, -0.0, 0x1p-1074, 0x1p-540, 0x1p511, -0x1p511, 3e38, -3e38, 1e-45, 65504.0};
  const double ruined[] = {HUGE_VAL, -HUGE_VAL, std::nan("")};
  std::vector<double> v = gaussian<double>(count, seed, 1.0, 1e6);
  for (auto& x : v) {
    const uint32_t draw = random() % 32;
    if (draw < 10) x = extremes[draw];
    if (draw == 10 && !finite) x = ruined[random() % 3];
  }
  return v;
}

double spelled_out(const double* x, const double* b, int64_t d, Term term) {
  double lane[8] = {};
  for (int64_t i = 0; i < d; ++i) {
    const double gap = x[i] - b[i];
    const double added = term == Term::product ? x[i] * b[i] : term == Term::square ? gap * gap : std::fabs(gap);
    lane[i % 8] = lane[i % 8] + added;
  }
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

template <class S>
double raw_score(const double* x, const S* b, int64_t d, Term term) {
  double lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = lane_sum(x, 1, b, 1, d, l, term);
  return tree_sum(lane);
}

}  // namespace

TEST(exact_score_is_the_contracts_order) {
  for (const int64_t d : {0, 1, 7, 8, 9, 17, 64, 100})
    for (const bool finite : {true, false}) {
      const auto x = adversarial(d, 1, finite), b = adversarial(d, 2, finite);
      for (const Term term : kTerms)
        CHECK(same_bits(raw_score(x.data(), b.data(), d, term), spelled_out(x.data(), b.data(), d, term)));
    }
}

TEST(every_isa_scores_as_exact_score_does) {
  for_each_isa([] {
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
      for (const int64_t d : {1, 7, 8, 9, 17, 64, 100})
        for (const bool finite : {true, false}) {
          const int64_t stride = round_up_to(d, 8), m = 11;
          const auto drawn = adversarial(m * d, 5, finite);
          std::vector<double> storage(drawn.size());  // room for any type
          with_dtype(dtype, [&](auto type) {
            auto* bank = reinterpret_cast<Element<decltype(type)>*>(storage.data());
            for (size_t i = 0; i < drawn.size(); ++i) narrow(drawn[i], bank + i);
            for (const int queries : {1, 3, 4, 6}) {
              const auto x = adversarial(queries * d, 6, finite);
              std::vector<double> padded(static_cast<size_t>(queries * stride), 0.0);
              for (int64_t i = 0; i < queries; ++i) std::copy_n(x.data() + i * d, d, padded.data() + i * stride);
              for (const Term term : kTerms) {
                std::vector<double> out(static_cast<size_t>(queries * m));
                ScoreArgs a;
                a.queries = padded.data();
                a.query_stride = stride;
                a.query_count = queries;
                a.bank = {bank, dtype, m, d, d, 1};
                a.term = term;
                a.count = m;
                a.out = out.data();
                a.out_stride = m;
                kernels().score(a);
                for (int64_t i = 0; i < queries; ++i)
                  for (int64_t j = 0; j < m; ++j)
                    CHECK(same_bits(out[static_cast<size_t>(i * m + j)],
                                    raw_score(padded.data() + i * stride, bank + j * d, d, term)));
              }
            }
          });
        }
  });
}

// Over all magnitudes, and where one form of the logarithm follows the other; it never falls.
TEST(twice_asinh_root_is_the_distance) {
  double before = 0.0;
  for (double t = 1e-320; t < 1e300; t *= 1.0078125) {
    const double found = twice_asinh_root(t), wanted = 2.0 * std::asinh(std::sqrt(t));
    CHECK(std::fabs(found - wanted) <= 6.0 * 0x1p-53 * wanted + 0x1p-1074);
    CHECK(found >= before);
    before = found;
  }
  CHECK(twice_asinh_root(0.0) == 0.0 && twice_asinh_root(HUGE_VAL) == HUGE_VAL);
  CHECK(std::isnan(twice_asinh_root(std::nan(""))));
}

// The factors of a pair's gradient, against quotients of differences.
TEST(pair_factors_are_slopes) {
  const double x[3] = {0.3, -0.2, 0.5}, b[3] = {-0.1, 0.4, 0.2};
  const auto sum = [](const double* p, const double* q, Term term) {
    double lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane_sum(p, 1, q, 1, 3, lane, term);
    return tree_sum(lanes);
  };
  for (const Metric metric :
       {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean, Metric::poincare, Metric::poincare_ratio}) {
    const MetricRecord m = record(metric);
    const auto value = [&](const double* p, const double* q) {
      return value_of(m, key_of(m, sum(p, q, m.term), row_factor(m, sum(p, p, Term::product)),
                                row_factor(m, sum(q, q, Term::product))));
    };
    const PairFactors f = pair_factors(m, 1.5, sum(x, b, m.term), sum(x, x, Term::product), sum(b, b, Term::product));
    for (int i = 0; i < 3; ++i) {
      constexpr double step = 1e-6;
      double more[3] = {x[0], x[1], x[2]}, less[3] = {x[0], x[1], x[2]};
      more[i] += step, less[i] -= step;
      const double of_x = 1.5 * (value(more, b) - value(less, b)) / (2 * step);
      CHECK(std::fabs(f.along * slope_of(m.term, x[i], b[i]) - f.own_query * x[i] - of_x) < 1e-7);
      double up[3] = {b[0], b[1], b[2]}, down[3] = {b[0], b[1], b[2]};
      up[i] += step, down[i] -= step;
      const double of_b = 1.5 * (value(x, up) - value(x, down)) / (2 * step);
      CHECK(std::fabs(f.along * slope_of(m.term, b[i], x[i]) - f.own_bank * b[i] - of_b) < 1e-7);
    }
  }
  CHECK(pair_factors(record(Metric::poincare), 1.0, 0.0, 0.2, 0.2).along == 0.0);  // equal points have no gradient
}

TEST(keys_sort_best_first_and_values_undo_them) {
  CHECK(key_of(Metric::dot, 3.0, 1.0, 1.0) == 3.0 && key_of(Metric::sqeuclidean, 3.0, 1.0, 1.0) == -3.0);
  const double bias = 0.5;
  CHECK(key_of(Metric::dot, 3.0, 1.0, 1.0, &bias) == 3.5);
  CHECK(key_of(Metric::cosine, 3.0, 2.0, 4.0) == 3.0 / 8.0);
  CHECK(value_of(Metric::l2, key_of(Metric::l2, 9.0, 1.0, 1.0)) == 3.0 && value_of(Metric::sqeuclidean, -9.0) == 9.0);
  CHECK(value_of(Metric::dot, -9.0) == -9.0 && value_of(Metric::cosine, 0.5) == 0.5);
  CHECK(value_of(Metric::l1, key_of(Metric::l1, 9.0, 1.0, 1.0)) == 9.0);
  CHECK(worst_value(Metric::l2) == HUGE_VAL && worst_value(Metric::dot) == -HUGE_VAL);
  CHECK(better({2.0, 7}, {1.0, 3}) && better({1.0, 3}, {1.0, 7}) && !better({1.0, 3}, {1.0, 3}));
  CHECK(better({0.0, 3}, {-0.0, 7}) && better({-0.0, 3}, {0.0, 7}) && better({-1.0, 9}, {-HUGE_VAL, 0}));
  CHECK(row_factor(record(Metric::cosine), 4.0) == 2.0 && row_factor(record(Metric::l2), 4.0) == 1.0);
  CHECK(row_factor(record(Metric::poincare), 0.75) == 0.25 && std::isnan(row_factor(record(Metric::poincare), 1.0)));
  CHECK(key_of(Metric::poincare, 3.0, 0.5, 0.25) == -24.0 && key_of(Metric::farthest_poincare, 3.0, 0.5, 0.25) == 24.0);
  CHECK(value_of(Metric::poincare_ratio, -24.0) == 24.0);
  CHECK(value_of(Metric::poincare, -24.0) == value_of(Metric::farthest_poincare, 24.0));
  CHECK(floored(0.0) == kNormFloor && floored(2.0) == 2.0 && std::isnan(floored(std::nan(""))));
}
