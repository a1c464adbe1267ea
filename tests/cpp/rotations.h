// Matrices for packs with a head: orthogonal ones, and some that are off by a known amount.
#pragma once

#include <cmath>

#include "check.h"

inline std::vector<double> identity(int64_t d) {
  std::vector<double> q(static_cast<size_t>(d * d), 0.0);
  for (int64_t i = 0; i < d; ++i) q[static_cast<size_t>(i * d + i)] = 1.0;
  return q;
}

// A cosine transform with random signs, and a reflection that mixes its rows: dense and orthogonal, to float64.
inline std::vector<double> random_rotation(int64_t d, uint32_t seed = 5) {
  const double pi = std::acos(-1.0);
  const auto draws = gaussian<double>(2 * d, seed);
  std::vector<double> q(static_cast<size_t>(d * d)), along(static_cast<size_t>(d), 0.0);
  double squares = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    const double scale = std::sqrt((i == 0 ? 1.0 : 2.0) / static_cast<double>(d));
    squares += draws[static_cast<size_t>(d + i)] * draws[static_cast<size_t>(d + i)];
    for (int64_t k = 0; k < d; ++k)
      q[static_cast<size_t>(i * d + k)] =
          (draws[static_cast<size_t>(k)] < 0.0 ? -scale : scale) *
          std::cos(pi * (static_cast<double>(k) + 0.5) * static_cast<double>(i) / static_cast<double>(d));
  }
  for (int64_t i = 0; i < d; ++i)
    for (int64_t k = 0; k < d; ++k)
      along[static_cast<size_t>(k)] += draws[static_cast<size_t>(d + i)] * q[static_cast<size_t>(i * d + k)];
  for (int64_t i = 0; i < d; ++i)
    for (int64_t k = 0; k < d; ++k)
      q[static_cast<size_t>(i * d + k)] -=
          2.0 / squares * draws[static_cast<size_t>(d + i)] * along[static_cast<size_t>(k)];
  return q;
}

inline std::vector<float> rounded(const std::vector<double>& q) { return {q.begin(), q.end()}; }

// What a bank may be rotated by: the identity, a dense rotation, one that is slightly too long, and one with noise.
constexpr int kRotations = 4;
inline std::vector<float> rotation_of(int kind, int64_t d) {
  auto q = kind == 0 ? identity(d) : random_rotation(d);
  const auto noise = gaussian<double>(kind == 3 ? d * d : 0, 6, 1e-5);
  for (size_t i = 0; i < q.size(); ++i) q[i] = kind == 2 ? q[i] * (1.0 + 0x1p-12) : kind == 3 ? q[i] + noise[i] : q[i];
  return rounded(q);
}

// Rows that the matrix turns into `turned`, as nearly as it is orthogonal.
inline std::vector<float> turned_back(const std::vector<double>& turned, const std::vector<float>& q, int64_t d) {
  std::vector<float> out;
  for (size_t r = 0; r < turned.size(); r += static_cast<size_t>(d))
    for (int64_t k = 0; k < d; ++k) {
      double sum = 0.0;
      for (int64_t i = 0; i < d; ++i)
        sum += turned[r + static_cast<size_t>(i)] * static_cast<double>(q[static_cast<size_t>(i * d + k)]);
      out.push_back(static_cast<float>(sum));
    }
  return out;
}
