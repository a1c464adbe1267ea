// More of what the CUDA kernels must answer, after cuda_cases.h: codes of several books, and what goes back to x.
#pragma once

#include <algorithm>

#include "core/estimator.h"
#include "core/residual.h"
#include "cuda_cases.h"

namespace {

TEST(cuda_pass_back_equals_cpu) {
  uint32_t seed = 400;
  for (const DType dtype : kDTypes)
    for (const int64_t d : {1, 5, 8, 67})
      for (const Estimator estimator : {Estimator::none, Estimator::straight, Estimator::rotation}) {
        const int64_t n = 71;
        Vec<double> values[3] = {normal<double>(n * d, ++seed), normal<double>(n * d, ++seed),
                                 normal<double>(n * d, ++seed)};
        for (int64_t k = 0; k < d; ++k) {  // rows without a direction, opposite rows, and rows that are no numbers
          values[1][static_cast<size_t>(3 * d + k)] = 0.0;
          values[2][static_cast<size_t>(4 * d + k)] = 0.0;
          values[2][static_cast<size_t>(5 * d + k)] = -values[1][static_cast<size_t>(5 * d + k)];
        }
        values[0][static_cast<size_t>(6 * d)] = NAN;
        values[0][static_cast<size_t>(7 * d)] = INFINITY;
        const Matrix grad(values[0], d, dtype), x(values[1], d, dtype), t(values[2], d, dtype);
        const Matrix scale(Vec<double>{0.37}, 1, DType::f64);
        PassBackProblem p{grad.rows.data, x.rows.data, t.rows.data, n, d, dtype, 0.37, estimator, nullptr};
        Vec<char> theirs(x.bytes.size(), 1), ours = theirs;
        p.out = theirs.data();
        CHECK(pass_back(p, Parallel{}) == Status::ok);
        p.out = ours.data();
        p.scale = NAN;  // the device's is read
        Bench bench;
        CHECK(ran(cuda::pass_back(p, scale.rows.data, DType::f64, bench.device)));
        const auto at = [&](const Vec<char>& bytes, int64_t i) {
          return with_dtype(dtype,
                            [&](auto type) { return widened(reinterpret_cast<decltype(type)>(bytes.data())[i]); });
        };
        bool same = true;
        for (int64_t i = 0; i < n * d; ++i) {
          const double a = at(ours, i), b = at(theirs, i);
          same = same && (a == b || (std::isnan(a) && std::isnan(b)));
        }
        CHECK(same && !std::isnan(at(ours, 0)));
      }
}

}  // namespace
