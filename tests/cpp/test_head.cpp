// The screen of a head, on every instruction set: its bounds enclose the refined score, those that see the tails too,
// and no part of them can be a tenth smaller (cpu/search/screens/head.h).
#include <set>

#include "cpu/search/screens/head.h"
#include "rotations.h"
#include "screen_bounds.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

std::set<int64_t> heads_of(int64_t d) {
  std::set<int64_t> all;
  for (const int64_t h : {int64_t{1}, int64_t{2}, int64_t{16}, d / 4, d / 2, d - 1})
    if (h >= 1 && h < d) all.insert(h);
  return all;
}

int64_t check_head(const std::vector<float>& x, const std::vector<float>& b, int64_t d, Metric metric, int64_t head,
                   const std::vector<float>& rotation) {
  return check_bounds(head_screen, x, b, d, metric, PanelKind::int8, {head, rotation.data()}).rows;
}

constexpr Metric kScreenedMetrics[] = {Metric::dot, Metric::cosine, Metric::sqeuclidean};

}  // namespace

TEST(head_bounds_enclose_the_score) {
  int64_t pairs = 0;
  for_each_isa([&] {
    for (const int64_t d : {2, 16, 17, 40, 301, 768}) {
      std::vector<float> rotations[kRotations];
      for (int kind = 0; kind < kRotations; ++kind) rotations[kind] = rotation_of(kind, d);
      int at = 0;
      for (const Metric metric : kScreenedMetrics)
        for (int data = 0; data < kDrawnKinds; ++data) {
          if (d > 100 && data % (d > 700 ? 9 : 2) != at++ % 2) continue;
          int kind = data;
          for (const int64_t head : heads_of(d)) {
            ++kind;
            if (d > 700 && kind % 5 != 0) continue;
            const int64_t n = kind % 3 == 0 ? 3 : kind % 3 == 1 ? 1 : kernels().heights[0] + 1;
            pairs += check_head(drawn(n, d, data, 21, false), drawn(37, d, data, 22, true), d, metric, head,
                                rotations[kind % kRotations]);
          }
        }
    }
  });
  CHECK(pairs > 100000);
}

// Rows that are zero in the head or beyond it, once they are turned, that are equal, vanish, or have no packed form.
TEST(head_bounds_of_rows_that_lie_in_one_part) {
  int64_t pairs = 0;
  for_each_isa([&] {
    for (const int64_t d : {24, 80})
      for (int kind = 0; kind < kRotations; ++kind)
        for (const int64_t head : {int64_t{1}, d / 3, d - 1})
          for (const Metric metric : kScreenedMetrics) {
            const auto rotation = rotation_of(kind, d);
            const auto part = [&](int64_t rows, uint32_t seed) {
              auto v = gaussian<double>(rows * d, seed);
              for (int64_t r = 0; r < rows; ++r)
                for (int64_t k = 0; k < d; ++k) {
                  double& at = v[static_cast<size_t>(r * d + k)];
                  if (r % 8 == 1 && k >= head) at = 0.0;
                  if (r % 8 == 2 && k < head) at = 0.0;
                  if (r % 8 == 3 && k >= head) at *= 0x1p-30;
                  if (r % 8 == 4 && k < head) at *= 0x1p-30;
                  if (r % 8 == 5) at *= 1e-30;
                  if (r % 8 == 6) at = r % 16 == 6 ? 0.0 : v[static_cast<size_t>(k)];
                }
              return v;
            };
            std::vector<float> x = turned_back(part(9, 31), rotation, d), b = turned_back(part(45, 32), rotation, d);
            for (int64_t k = 0; k < d; ++k) {
              b[static_cast<size_t>(7 * d + k)] = k == 0 ? std::nanf("") : 1.0f;
              b[static_cast<size_t>(15 * d + k)] = 3e38f;
              b[static_cast<size_t>(23 * d + k)] = x[static_cast<size_t>(8 * d + k)] = b[static_cast<size_t>(k)];
              b[static_cast<size_t>(31 * d + k)] = -b[static_cast<size_t>(k)];
              b[static_cast<size_t>(39 * d + k)] = 1e-30f * b[static_cast<size_t>(k)];
            }
            pairs += check_head(x, b, d, metric, head, rotation);
          }
  });
  CHECK(pairs > 50000);
}

// The first negligible row stands for larger ones, next to which its own length, and all of its codes' errors, vanish.
TEST(head_bounds_of_negligible_rows) {
  int64_t pairs = 0;
  for_each_isa([&] {
    const int64_t n = 12, m = 90;
    for (const int64_t d : {24, 80})
      for (const int64_t head : {int64_t{1}, d / 3, d - 1})
        for (const int largest : {0, 36}) {
          const auto rotation = rotation_of(1, d);
          auto x = gaussian<float>(n * d, 51), b = gaussian<float>(m * d, 52);
          for (size_t i = 0; i < x.size(); ++i) {
            const int64_t r = static_cast<int64_t>(i) / d;
            x[i] *= r == 0 ? 0.0f : std::ldexp(1.0f, static_cast<int>(largest - 4 * r - 16));
          }
          for (size_t i = 0; i < b.size(); ++i) {
            const int64_t r = static_cast<int64_t>(i) / d;
            if (r % 3 == 1) b[i] *= std::ldexp(1.0f, largest - (r == 1 ? 100 : 70));
            if (r == 45) b[i] *= std::ldexp(1.0f, largest);
          }
          Screened screened(head_screen, x, b, d, Metric::sqeuclidean, PanelKind::int8, {head, rotation.data()});
          CHECK(screened.header().negligible == m / 3 && screened.header().first_negligible == 1);
          pairs += check_head(x, b, d, Metric::sqeuclidean, head, rotation);
        }
  });
  CHECK(pairs > 1000);
}

// They lie as far from it as their size allows, in the direction of the query.
TEST(head_bounds_at_their_worst_where_rows_are_negligible) {
  for_each_isa([] {
    const int64_t n = 20, m = 90, d = 80;
    std::vector<float> x, b = gaussian<float>(m * d, 53);
    for (int64_t i = 0; i < n * d; ++i)
      x.push_back(std::ldexp(i % d % 3 == 1 ? -1.0f : 1.0f, 4 - static_cast<int>(i / d)));
    for (int64_t i = 0; i < m * d; ++i) {
      if (i / d == 45) b[static_cast<size_t>(i)] *= 0x1p38f;  // so that what is negligible beside it is large
      if (const int64_t r = i / d; r % 3 == 1)
        b[static_cast<size_t>(i)] = std::ldexp((i % d % 3 == 1) == (r == 1) ? 1.0f : -1.0f, -30);
    }
    const auto rotation = rounded(identity(d));
    double used = 0.0;
    Screened screened(head_screen, x, b, d, Metric::sqeuclidean, PanelKind::int8, {d - 1, rotation.data()});
    CHECK(screened.header().first_negligible == 1 && screened.header().centred == 0);
    screened.for_each_pair([&](const ScreenedPair& p) {
      if (p.row == 1)
        used = std::max(used, (p.most - p.score) / (static_cast<double>(p.closer.upper) / p.unit + p.slack - p.score));
    });
    CHECK(used <= 1.0 && used > 0.98);
    check_head(x, b, d, Metric::sqeuclidean, d - 1, rotation);
  });
}

namespace {

// One query and one row, of dot products with a head. `known`: the share of their score that the codes tell, which the
// upper bounds exceed by what the proof allows, and the lower bound falls short of.
struct Shares {
  double gate, upper, lower;  // of that allowance, what the true score takes up; more than 1 is a fault
};
Shares shares_of(const std::vector<float>& x, const std::vector<float>& b, int64_t head,
                 const std::vector<float>& rotation, double known_by_gate, double known) {
  const int64_t d = static_cast<int64_t>(x.size());
  std::vector<float> both = b;  // and its opposite, so that there is no centre
  for (const float v : b) both.push_back(-v);
  check_head(x, both, d, Metric::dot, head, rotation);
  Screened screened(head_screen, x, both, d, Metric::dot, PanelKind::int8, {head, rotation.data()});
  CHECK(screened.serves() && screened.header().centred == 0);
  Shares s{};
  screened.for_each_pair([&](const ScreenedPair& p) {
    if (p.row != 0) return;
    const double score = p.unit * p.score, gate = p.whole * known_by_gate, told = p.whole * known;
    s = {(score - gate) / (static_cast<double>(p.gate) - gate),
         (score - told) / (static_cast<double>(p.closer.upper) - told),
         (told - score) / (told - static_cast<double>(p.closer.lower))};
  });
  return s;
}

double sign_of(int64_t k) { return (k * 7 + k / 3) % 2 == 0 ? 1.0 : -1.0; }

}  // namespace

// The heads' codes are exact, the tails parallel and not known to the gate: Cauchy and Schwarz leave nothing over.
TEST(head_gate_at_its_worst) {
  for_each_isa([] {
    for (const int64_t d : {24, 80}) {
      const int64_t head = 16;
      std::vector<float> x, b;
      double in_head = 0.0;
      for (int64_t k = 0; k < d; ++k) {
        const double tail = sign_of(k) * (1.0 + static_cast<double>(k % 5));
        x.push_back(static_cast<float>(k < head ? 0.5 * sign_of(k + 1) : tail));
        b.push_back(static_cast<float>(k < head ? 0.5 * sign_of(k) : 3.0 * tail));
        if (k < head) in_head += static_cast<double>(x.back()) * static_cast<double>(b.back());
      }
      const Shares s = shares_of(x, b, head, rounded(identity(d)), in_head, in_head);
      CHECK(s.gate <= 1.0);
      CHECK(s.gate > 0.999);
    }
  });
}

// A matrix that changes the length of one vector, which is both the query and the row: the products of turned rows are
// off by all that was measured. The heads' codes are exact, and there are no tails.
TEST(head_bounds_at_their_worst_where_the_matrix_is_off) {
  for_each_isa([] {
    const int64_t d = 72, head = 64, equal = 6;  // more, and the query's norm would decide its scale, not its codes
    std::vector<float> x(static_cast<size_t>(d), 0.0f);
    std::fill_n(x.begin(), equal, 1.0f);
    for (const double off : {0x1p-9, 0x1p-7, 0.0138})
      for (const double sign : {-1.0, 1.0}) {
        auto q = identity(d);
        double known = 0.0;
        for (int64_t i = 0; i < equal; ++i)
          for (int64_t k = 0; k < equal; ++k)
            q[static_cast<size_t>(i * d + k)] += sign * off / static_cast<double>(equal);
        const auto rotation = rounded(q);
        for (int64_t i = 0; i < equal; ++i) {
          double turned = 0.0;
          for (int64_t k = 0; k < equal; ++k) turned += static_cast<double>(rotation[static_cast<size_t>(i * d + k)]);
          known += turned * turned;
        }
        const Shares s = shares_of(x, x, head, rotation, known, known);
        if (sign < 0.0) CHECK(s.gate <= 1.0 && s.gate > 0.93 && s.upper <= 1.0 && s.upper > 0.93);
        if (sign > 0.0) CHECK(s.lower <= 1.0 && s.lower > 0.91);
      }
  });
}

// A tail's coordinates lie just short of halfway between two codes, all rounded the same way beside the query's. With
// the widest tail here, products of larger codes would not fit 32 bits.
TEST(head_survivors_bounds_at_their_worst) {
  for_each_isa([] {
    for (const int64_t tail : {64, 240, 600}) {
      const int64_t head = 16;
      for (const double offset : {0.499, -0.499}) {
        std::vector<float> x, b;
        double known = 0.0;
        for (int64_t k = 0; k < head + tail; ++k) {
          const double sign = sign_of(k), code = k == head ? 127.0 : tail > 500 ? 120.0 : 76.0;
          x.push_back(static_cast<float>(k < head ? 0.03125 * sign : 1024.0 * sign));
          b.push_back(static_cast<float>(k < head ? 0.03125 * sign : sign * (k == head ? 127.0 : code + offset)));
          known += static_cast<double>(x.back()) * (k < head ? static_cast<double>(b.back()) : sign * code);
        }
        const Shares s = shares_of(x, b, head, rounded(identity(head + tail)), 0.0, known);
        CHECK((offset > 0.0 ? s.upper : s.lower) <= 1.0);
        CHECK((offset > 0.0 ? s.upper : s.lower) > (tail > 500 ? 0.9 : 0.93));
      }
    }
  });
}

// The same for the query's codes, which are 256 times as fine: the rounding of a rotation is nearly as large.
TEST(head_survivors_bounds_where_queries_are_halfway) {
  for_each_isa([] {
    const int64_t head = 1, tail = 64;
    for (const double offset : {0.499, -0.499}) {
      std::vector<float> x, b;
      double known = 0.0;
      for (int64_t k = 0; k < head + tail; ++k) {
        const double sign = sign_of(k), code = k == head ? 32766.0 : 3.0;
        x.push_back(static_cast<float>(k < head ? 0.0 : sign * (k == head ? code : code + offset)));
        b.push_back(static_cast<float>(k < head ? 0.0 : sign * 127.0));
        known += static_cast<double>(b.back()) * sign * (k < head ? 0.0 : code);
      }
      const Shares s = shares_of(x, b, head, rounded(identity(head + tail)), 0.0, known);
      CHECK((offset > 0.0 ? s.upper : s.lower) <= 1.0);
      CHECK((offset > 0.0 ? s.upper : s.lower) > 0.6);
    }
  });
}

// The heads' codes at their worst: both rows lie just short of halfway between two codes. Their tails are zero. One
// coordinate of the query gives it the norm to which queries are scaled.
TEST(head_bounds_at_their_worst_in_the_head) {
  for_each_isa([] {
    const double most = kernels().int8.bank_code, level = std::floor(most * 0.6);
    const double norm =
        int8::kNormPerRoot * int8::query_code(kernels().int8.bank_code, kernels().int8.product_limit) / 127.0;
    const int64_t head = 64, d = head + 8;
    for (const double offset : {0.499, -0.499}) {
      const double mean = std::floor(norm - 0.5 * (offset > 0.0)) + offset,
                   rest = (norm * norm - mean * mean) * (head - 1);
      const double first = std::sqrt(norm * norm + rest);
      std::vector<float> x(static_cast<size_t>(d), 0.0f), b = x;
      double known = 0.0;
      for (int64_t k = 0; k < head; ++k) {
        const double of_x = k == 0 ? first : mean, of_b = k == 0 ? most : level + offset;
        x[static_cast<size_t>(k)] = static_cast<float>(sign_of(k) * of_x);
        b[static_cast<size_t>(k)] = static_cast<float>(sign_of(k) * of_b);
        known += std::round(of_x) * std::round(of_b);
      }
      const Shares s = shares_of(x, b, head, rounded(identity(d)), known, known);
      if (offset > 0.0) CHECK(s.gate <= 1.0 && s.gate > 0.93 && s.upper <= 1.0 && s.upper > 0.93);
      if (offset < 0.0) CHECK(s.lower <= 1.0 && s.lower > 0.93);
    }
  });
}
