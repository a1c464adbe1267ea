// Turned rows and what is measured of a matrix (cpu/rotation.h), on every instruction set.
#include "core/bounds.h"
#include "cpu/kernels.h"
#include "cpu/rotation.h"
#include "rotations.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

// How far a turned coordinate may be off, in proportion to the sum of its terms' magnitudes.
double rounding_of(int64_t d) { return (32.0 + std::ceil(static_cast<double>(d) / 32.0) + 4.0) * 0x1p-24 * 1.01; }

// Q^T Q - I of a matrix as it is rounded: its Frobenius norm, and a lower bound of its spectral norm.
struct Defect {
  double frobenius = 0.0, spectral = 0.0;
};
Defect defect_of(const std::vector<float>& q, int64_t d) {
  const size_t width = static_cast<size_t>(d);
  std::vector<double> off(width * width), along = gaussian<double>(d, 9), next(width);
  Defect found;
  for (size_t a = 0; a < width; ++a)
    for (size_t b = 0; b < width; ++b) {
      double sum = a == b ? -1.0 : 0.0;
      for (size_t i = 0; i < width; ++i)
        sum += static_cast<double>(q[i * width + a]) * static_cast<double>(q[i * width + b]);
      off[a * width + b] = sum;
      found.frobenius += sum * sum;
    }
  found.frobenius = std::sqrt(found.frobenius);
  for (int step = 0; step < 100; ++step) {
    double before = 0.0, after = 0.0;
    for (size_t a = 0; a < width; ++a) {
      next[a] = 0.0;
      for (size_t b = 0; b < width; ++b) next[a] += off[a * width + b] * along[b];
      before += along[a] * along[a];
      after += next[a] * next[a];
    }
    if (!(after > 0.0)) break;
    found.spectral = std::max(found.spectral, std::sqrt(after / before));
    for (size_t a = 0; a < width; ++a) along[a] = next[a] / std::sqrt(after);
  }
  return found;
}

double measured(const std::vector<float>& q, int64_t d, int workers = 1) {
  double out = -1.0;
  CHECK(turn_error_of(q.data(), d, threads(workers), &out) == Status::ok);
  return out;
}

}  // namespace

TEST(rotations_are_measured) {
  for_each_isa([] {
    for (const int64_t d : {1, 2, 5, 17, 40, 100}) {
      const double root = std::sqrt(static_cast<double>(d)), rounds = 2.0 * rounding_of(d) * root;
      const double plain = measured(rounded(identity(d)), d);
      CHECK(plain >= rounds && plain <= 1.01 * rounds);
      std::vector<std::vector<float>> all;
      for (int kind = 1; kind < kRotations; ++kind) all.push_back(rotation_of(kind, d));
      for (const double amount : {1e-6, 1e-4, 1e-2, 0.3}) {
        const auto noise = gaussian<double>(d * d, 8, amount);
        auto noisy = random_rotation(d), longer = noisy, one = identity(d), skewed = noisy;
        for (size_t i = 0; i < noisy.size(); ++i) noisy[i] += noise[i];
        for (int64_t k = 0; k < d; ++k) {
          longer[static_cast<size_t>((d - 1) * d + k)] *= 1.0 - amount;  // the last row
          skewed[static_cast<size_t>(k)] += amount * skewed[static_cast<size_t>(d / 2 * d + k)];
        }
        one[static_cast<size_t>(d - 1)] += amount;
        for (const auto& q : {noisy, longer, one, skewed}) all.push_back(rounded(q));
      }
      for (const auto& q : all) {
        const Defect off = defect_of(q, d);
        const double found = measured(q, d), room = 1.0 + off.frobenius;
        CHECK(found >= off.spectral);
        CHECK(found >= off.frobenius + rounds && found <= 1.01 * (off.frobenius + rounds * room * room) + 1e-12);
        CHECK(std::fabs(measured(q, d, 3) - found) <= 1e-9 * found);
      }
    }
  });
}

// Rows that lose as much as they can in a float32 sum, beside plain ones and those at both ends of the range.
TEST(turned_rows_are_as_close_as_is_measured) {
  for_each_isa([] {
    for (const int64_t d : {1, 2, 3, 15, 16, 17, 33, 100, 768}) {
      const size_t width = static_cast<size_t>(d);
      const int64_t stride = cpu::Rotation::stride_of(d);
      const auto q = rounded(random_rotation(d));
      std::vector<float> panels(static_cast<size_t>(ceil_div(d, kPanel) * (d + 1) * kPanel + 16), -1.0f);
      pack_rotation(q.data(), d, panels.data());
      cpu::Rotation rotation;
      CHECK(rotation.reserve());
      for (const int group : kernels().heights)
        for (const int64_t n : {int64_t{1}, int64_t{group}, int64_t{2} * group + 1, int64_t{90}}) {
          if (d > 100 && n > group) continue;
          const int64_t groups = ceil_div(n, group);
          auto x = gaussian<float>(n * d, 41);
          for (size_t r = 0; r < static_cast<size_t>(n); ++r)
            for (size_t k = 0; k < width; ++k) {
              float& at = x[r * width + k];
              const double term = static_cast<double>(q[(r % width) * width + k]);
              if (r % 8 == 1) at = static_cast<float>(term);  // the whole row is one coordinate
              if (r % 8 == 2) at = k == 0 ? 1.0f : static_cast<float>(0x1.fp-25 / (std::fabs(term) + 1e-3));
              if (r % 8 == 3) at = std::copysign(std::fabs(at), static_cast<float>(term));
              if (r % 8 == 4) at = k % 2 == 0 ? 4096.0f : -4096.0f;
              if (r % 8 == 5) at *= 0x1p60f;
              if (r % 8 == 6) at *= 0x1p-110f;
              if (r % 8 == 7) at = 0.0f;
            }
          std::vector<float> lines(static_cast<size_t>(groups * (d + 1) * group + 16), 0.0f);
          for (int64_t r = 0; r < n; ++r)
            for (int64_t k = 0; k < d; ++k)
              lines[static_cast<size_t>((r / group * (d + 1) + k) * group + r % group)] =
                  x[static_cast<size_t>(r * d + k)];
          std::vector<float> out(static_cast<size_t>(n * stride + 1), -99.0f);
          rotation.turn(panels.data(), d, lines.data(), (d + 1) * group, group, n, out.data());
          CHECK(out.back() == -99.0f);
          for (size_t r = 0; r < static_cast<size_t>(n); ++r) {
            double off = 0.0, squares = 0.0;
            for (size_t k = 0; k < width; ++k)
              squares += static_cast<double>(x[r * width + k]) * static_cast<double>(x[r * width + k]);
            for (size_t i = 0; i < width; ++i) {
              double exact = 0.0, terms = 0.0;
              for (size_t k = 0; k < width; ++k) {
                const double term = static_cast<double>(q[i * width + k]) * static_cast<double>(x[r * width + k]);
                exact += term;
                terms += std::fabs(term);
              }
              const double apart = std::fabs(static_cast<double>(out[r * static_cast<size_t>(stride) + i]) - exact);
              CHECK(apart <= rounding_of(d) * terms + static_cast<double>(d) * 0x1p-149);
              off += apart * apart;
            }
            CHECK(std::sqrt(off) <= rounding_of(d) * std::sqrt(static_cast<double>(d) * squares) * 1.001 +
                                        static_cast<double>(d * d) * 0x1p-149);
            for (size_t i = width; i < static_cast<size_t>(stride); ++i)
              CHECK(out[r * static_cast<size_t>(stride) + i] == 0.0f);
          }
        }
    }
  });
}
