// residual_quantize() against search(), stage by stage, over threads, instruction sets and empty codebooks.
#include <cmath>
#include <limits>

#include "check.h"
#include "cpu/parallel.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

struct Cascade {
  std::vector<int64_t> codes;
  std::vector<float> quantized;
  std::vector<double> squares;
  std::vector<int64_t> valid;
};

Cascade ours(const std::vector<float>& x, const std::vector<std::vector<float>>& codebooks, int64_t d, int workers) {
  ResidualProblem p;
  p.queries = rows(x, d);
  std::vector<Buffer<char>> packs(codebooks.size());
  for (size_t s = 0; s < codebooks.size(); ++s) {
    const Rows bank = rows(codebooks[s], d);
    CHECK(packs[s].reserve(pack_bytes(bank.count, d, p.metric)));
    CHECK(pack_bank(bank, p.metric, packs[s].get(), threads(1)) == Status::ok);
    p.stages.push_back({bank, reinterpret_cast<const PackHeader*>(packs[s].get())});
  }
  const size_t n = static_cast<size_t>(p.queries.count);
  Cascade c{std::vector<int64_t>(n * codebooks.size()), std::vector<float>(x.size()),
            std::vector<double>(codebooks.size()), std::vector<int64_t>(codebooks.size())};
  p.codes = c.codes.data();
  p.quantized = c.quantized.data();
  p.squares = c.squares.data();
  p.valid = c.valid.data();
  CHECK(residual_quantize(p, threads(workers)) == Status::ok);
  return c;
}

}  // namespace

TEST(residual_quantize_is_search_stage_by_stage) {
  const int64_t d = 11, n = 777;
  const auto x = gaussian<float>(n * d, 1);
  const std::vector<std::vector<float>> codebooks{gaussian<float>(90 * d, 2), gaussian<float>(33 * d, 3, 0.5),
                                                  gaussian<float>(1100 * d, 4, 0.3)};
  std::vector<float> residual = x, total(x.size(), 0.0f);
  std::vector<int64_t> codes(static_cast<size_t>(n) * codebooks.size());
  std::vector<double> squares(codebooks.size(), 0.0);
  for (size_t s = 0; s < codebooks.size(); ++s) {
    std::vector<int64_t> found(static_cast<size_t>(n));
    SearchProblem p = problem_of(rows(residual, d), rows(codebooks[s], d), Metric::sqeuclidean);
    p.indices = found.data();
    CHECK(search(p, threads(1)) == Status::ok);
    for (size_t i = 0; i < found.size(); ++i) {
      codes[i * codebooks.size() + s] = found[i];
      for (size_t k = 0; k < static_cast<size_t>(d); ++k) {
        const size_t at = i * static_cast<size_t>(d) + k;
        const float row = codebooks[s][static_cast<size_t>(found[i] * d) + k];
        total[at] = s == 0 ? row : total[at] + row;
        residual[at] -= row;
        squares[s] += static_cast<double>(residual[at]) * static_cast<double>(residual[at]);
      }
    }
  }
  const Cascade first = ours(x, codebooks, d, 1);
  for_each_isa([&] {
    for (const int workers : {1, 3}) {
      const Cascade got = ours(x, codebooks, d, workers);
      CHECK(got.codes == codes);
      CHECK(got.quantized == total);
      CHECK(got.squares == first.squares);
      for (size_t s = 0; s < codebooks.size(); ++s) {
        CHECK(std::abs(got.squares[s] - squares[s]) <= 1e-9 * squares[s]);
        CHECK(got.valid[s] == n);
      }
    }
  });
}

TEST(residual_quantize_survives_nan_and_empty_codebooks) {
  const int64_t d = 3;
  auto x = gaussian<float>(5 * d, 1);
  x[4] = std::numeric_limits<float>::quiet_NaN();
  const Cascade got = ours(x, {gaussian<float>(7 * d, 2), {}}, d, 2);
  for (int64_t i = 0; i < 5; ++i) {
    CHECK((got.codes[static_cast<size_t>(2 * i)] < 0) == (i == 1));
    CHECK(got.codes[static_cast<size_t>(2 * i + 1)] == -1);
  }
  CHECK(got.valid[0] == 4 && got.valid[1] == 0 && got.squares[1] == 0.0);
}
