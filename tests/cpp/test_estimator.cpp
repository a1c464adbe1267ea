// pass_back(): thread counts agree, rows do not touch each other, and the rotation is one.
#include <cmath>

#include "check.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

std::vector<float> passed(const std::vector<float>& g, const std::vector<float>& x, const std::vector<float>& t,
                          int64_t d, Estimator estimator, double scale, int workers) {
  std::vector<float> out(x.size());
  PassBackProblem p;
  p.grad = g.data();
  p.x = x.data();
  p.quantized = t.data();
  p.width = d;
  p.rows = static_cast<int64_t>(x.size()) / d;
  p.scale = scale;
  p.estimator = estimator;
  p.out = out.data();
  CHECK(pass_back(p, threads(workers)) == Status::ok);
  return out;
}

}  // namespace

TEST(pass_back_keeps_lengths_under_rotation) {
  for (const int64_t d : {1, 7, 8, 29}) {
    const auto g = gaussian<float>(900 * d, 1), x = gaussian<float>(900 * d, 2), t = gaussian<float>(900 * d, 3);
    const auto one = passed(g, x, t, d, Estimator::rotation, 0.0, 1);
    CHECK(one == passed(g, x, t, d, Estimator::rotation, 0.0, 3));
    if (d == 1) continue;  // on a line, opposite vectors have no bisector
    for (int64_t r = 0; r < 900; ++r) {
      double squares[4] = {};  // of out, g, x, t
      for (int64_t k = 0; k < d; ++k) {
        const size_t at = static_cast<size_t>(r * d + k);
        const double values[4] = {one[at], g[at], x[at], t[at]};
        for (int i = 0; i < 4; ++i) squares[i] += values[i] * values[i];
      }
      const double want = std::sqrt(squares[1] * squares[3] / squares[2]);
      CHECK(std::fabs(std::sqrt(squares[0]) - want) <= 1e-4 * want);
    }
    const auto straight = passed(g, x, t, d, Estimator::straight, 0.5, 2);
    const auto none = passed(g, x, t, d, Estimator::none, 0.5, 2);
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK(none[i] == 0.5f * (x[i] - t[i]));
      CHECK(straight[i] == g[i] + none[i]);
    }
  }
}
