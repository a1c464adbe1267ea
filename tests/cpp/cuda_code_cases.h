// More of what the CUDA kernels must answer, after cuda_cases.h: codes of several codebooks, and the gradient of x.
#pragma once

#include <algorithm>

#include "core/pack.h"
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
        p.scale = NAN;  // the scale on the device is read
        Bench bench;
        CHECK(ran(cuda::pass_back, p, scale.rows.data, DType::f64, bench.device));
        CHECK(same_numbers(ours, theirs, dtype));
      }
}

// ---- Cascades, and codebooks side by side --------------------------------------------------------------------------

struct Coded {
  Vec<int64_t> codes;
  Vec<char> quantized;
  Vec<double> losses;
};

// The codebooks' packs, made by `pack`; a codebook without rows has none.
template <class Pack>
std::vector<PackedCodebook> packed(const std::vector<Matrix>& codebooks, std::vector<Vec<uint64_t>>& memory,
                                   Metric metric, Pack&& pack) {
  std::vector<PackedCodebook> all;
  for (const Matrix& codebook : codebooks) {
    const int64_t m = codebook.rows.count, d = codebook.rows.width;
    memory.emplace_back(static_cast<size_t>(
        std::max(cuda::device_pack_bytes(m, d, metric), vecbank::pack_bytes(m, d, metric)) / 8 + 8));
    if (codebook.rows.count > 0) pack(codebook.rows, metric, memory.back().data());
    all.push_back(
        {codebook.rows, codebook.rows.count > 0 ? reinterpret_cast<PackHeader*>(memory.back().data()) : nullptr});
  }
  return all;
}
void pack_on_cpu(const Rows& bank, Metric metric, void* out) {
  CHECK(pack_bank(bank, metric, out, Parallel{}) == Status::ok);
}

ResidualProblem problem_of(const Matrix& x, const std::vector<PackedCodebook>& codebooks, Metric metric, Coded& out) {
  ResidualProblem p;
  p.queries = x.rows;
  p.stages = codebooks;
  p.metric = metric;
  out.codes.assign(static_cast<size_t>(x.rows.count) * codebooks.size(), -7);
  out.quantized.assign(static_cast<size_t>(x.rows.count * x.rows.width) * size_of(codebooks[0].bank.dtype), 1);
  out.losses.assign(codebooks.size(), -7.0);
  p.codes = out.codes.data();
  p.quantized = out.quantized.data();
  return p;
}

Coded cascade_on_cpu(const Matrix& x, const std::vector<Matrix>& codebooks, Metric metric) {
  std::vector<Vec<uint64_t>> memory;
  Coded c;
  ResidualProblem p = problem_of(x, packed(codebooks, memory, metric, pack_on_cpu), metric, c);
  std::vector<int64_t> valid(codebooks.size());
  p.squares = c.losses.data();
  p.valid = valid.data();
  CHECK(residual_quantize(p, Parallel{}) == Status::ok);
  for (size_t s = 0; s < codebooks.size(); ++s) {
    c.losses[s] /= std::max(1.0, static_cast<double>(valid[s]) * static_cast<double>(x.rows.width));
    if (codebooks[0].rows.dtype == DType::f32) c.losses[s] = static_cast<float>(c.losses[s]);
  }
  return c;
}

enum class Packs { given, spoilt, some, none };  // `some`: the second codebook alone comes with its pack

Coded cascade_on_device(const Matrix& x, const std::vector<Matrix>& codebooks, Metric metric, Bench& bench,
                        Packs packs = Packs::given) {
  std::vector<Vec<uint64_t>> memory;
  Coded c;
  ResidualProblem p = problem_of(x,
                                 packed(codebooks, memory, metric,
                                        [&](const Rows& bank, Metric m, void* out) {
                                          bench.provide(cuda::pack_workspace());
                                          CHECK(ran(cuda::pack_bank, bank, m, out, bench.device, nullptr));
                                        }),
                                 metric, c);
  if (packs == Packs::spoilt) memory[0].assign(memory[0].size(), ~0ull);
  for (size_t s = 0; s < codebooks.size(); ++s)
    if (packs == Packs::none || (packs == Packs::some && s != 1)) p.stages[s].pack = nullptr;
  const DType dtype = codebooks[0].rows.dtype;
  Vec<char> losses(codebooks.size() * size_of(dtype), 1);
  bench.provide(cuda::residual_workspace(p, bench.device));
  CHECK(ran(cuda::residual_quantize, p, losses.data(), bench.device));
  for (size_t s = 0; s < codebooks.size(); ++s)
    c.losses[s] = with_dtype(dtype, [&](auto t) { return widened(reinterpret_cast<decltype(t)>(losses.data())[s]); });
  return c;
}

void compare_cascades(const Matrix& x, const std::vector<Matrix>& codebooks, Metric metric, const char* what,
                      int processors = 3, int capability = 80) {
  Bench bench(processors);
  bench.device.capability = capability;
  const Coded theirs = cascade_on_cpu(x, codebooks, metric);
  for (const Packs packs : {Packs::given, x.rows.count % 2 == 0 ? Packs::some : Packs::none}) {
    if (packs != Packs::given && codebooks[0].rows.count > cuda::kPanelRows) continue;  // slow to emulate
    const Coded ours = cascade_on_device(x, codebooks, metric, bench, packs);
    bool same = ours.codes == theirs.codes && same_numbers(ours.quantized, theirs.quantized, codebooks[0].rows.dtype);
    for (size_t s = 0; s < codebooks.size(); ++s) {
      const double a = ours.losses[s], b = theirs.losses[s];
      same = same && (std::abs(a - b) <= 1e-6 * b || a == b || (std::isnan(a) && std::isnan(b)));
    }
    CHECK(same && bench.state.bad_codes == 0);
    if (!same) {
      int64_t wrong = 0;
      for (size_t i = 0; i < ours.codes.size(); ++i) wrong += ours.codes[i] != theirs.codes[i];
      std::printf("  %s: metric %d d %lld n %lld packs %d, %lld of %zu codes differ, losses %g %g\n", what,
                  static_cast<int>(metric), static_cast<long long>(x.rows.width), static_cast<long long>(x.rows.count),
                  static_cast<int>(packs), static_cast<long long>(wrong), ours.codes.size(), ours.losses[0],
                  theirs.losses[0]);
    }
  }
}

template <class... More>
std::vector<Matrix> list(More... codebooks) {
  std::vector<Matrix> all;
  (all.push_back(std::move(codebooks)), ...);
  return all;
}
std::vector<Matrix> codebooks_of(const std::vector<int64_t>& sizes, int64_t d, DType dtype, uint32_t seed,
                                 bool odd_strides = false) {
  std::vector<Matrix> codebooks;
  double scale = 1.0;
  for (const int64_t m : sizes) {
    codebooks.emplace_back(normal<double>(m * d, ++seed, scale), d, dtype, odd_strides);
    scale *= 0.6;
  }
  return codebooks;
}

TEST(cuda_residual_equals_cpu) {
  uint32_t seed = 500;
  for (const Metric metric : kMetrics)
    for (const DType dtype : kDTypes) {
      const int64_t d = dtype == DType::bf16 ? 31 : dtype == DType::f64 ? 3 : 9, n = dtype == DType::f16 ? 3 : 70;
      const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;  // float64 goes stage by stage
      const Matrix x(normal<double>(n * d, ++seed), d, dtype, dtype == DType::bf16);
      compare_cascades(x, codebooks_of({40, 1, 150}, d, wide, seed += 5, dtype == DType::f16), metric, "gaussian");
    }
  // Several tiles of rows, of columns, and of lines; one block that walks tiles; more codebooks than one launch
  // describes.
  const Matrix x(normal<double>(200 * 50, 601), 50, DType::f32);
  compare_cascades(x, codebooks_of({700, 130}, 50, DType::f32, 610), Metric::l2, "tiles");
  compare_cascades(Matrix(normal<double>(9 * 4, 620), 4, DType::f32),
                   codebooks_of(std::vector<int64_t>(19, 12), 4, DType::f32, 630), Metric::sqeuclidean, "many stages");
  // Too wide for the chip, and few rows against a long codebook: one search per stage.
  compare_cascades(Matrix(normal<double>(5 * 300, 660), 300, DType::f32), codebooks_of({30, 20}, 300, DType::f32, 670),
                   Metric::cosine, "wide", 3, 86);
  compare_cascades(Matrix(normal<double>(2 * 5, 680), 5, DType::bf16), codebooks_of({4200, 20}, 5, DType::f32, 690),
                   Metric::l2, "few rows", 100);
}

// A codebook whose pack holds no panels: each stage is a search.
TEST(cuda_residual_of_a_long_codebook) {
  const int64_t d = 2, m = cuda::kPanelRows + 3;
  const Matrix x(normal<double>(3 * d, 695), d, DType::f32);
  const std::vector<Matrix> codebooks = codebooks_of({m, 20}, d, DType::f32, 696);
  const OnPath on(cuda::Path::mma16);
  compare_cascades(x, codebooks, Metric::l2, "long", 2);
}

TEST(cuda_residual_adversarial_inputs) {
  const int64_t d = 6, n = 20;
  const auto all = [&](const Vec<double>& xs, const std::vector<Matrix>& codebooks, const char* what) {
    for (const Metric metric : kMetrics) compare_cascades(Matrix(xs, d, DType::f32), codebooks, metric, what);
  };
  const Vec<double> xs = normal<double>(n * d, 700), bs = normal<double>(90 * d, 701);
  all(xs, list(Matrix(Vec<double>(static_cast<size_t>(90 * d), 0.5), d, DType::f32), Matrix(bs, d, DType::f32)),
      "all rows equal");
  Vec<double> grid = xs, grid_codebook = bs;
  for (double& v : grid) v = std::round(2.0 * v);
  for (double& v : grid_codebook) v = std::round(2.0 * v);
  all(grid, list(Matrix(grid_codebook, d, DType::f32), Matrix(grid_codebook, d, DType::f32)), "ties");
  all(normal<double>(n * d, 702, 0.01, 1000.0),
      list(Matrix(normal<double>(90 * d, 703, 0.01, 1000.0), d, DType::f32),
           Matrix(normal<double>(90 * d, 704, 0.01), d, DType::f32)),
      "1000 +- 0.01");
  Vec<double> broken = bs, broken_x = xs;
  broken[5] = NAN, broken[static_cast<size_t>(d) * 7] = INFINITY, broken[static_cast<size_t>(d) * 9 + 1] = -INFINITY;
  broken_x[static_cast<size_t>(d)] = NAN, broken_x[static_cast<size_t>(2 * d)] = INFINITY;
  for (int64_t i = 0; i < d; ++i) broken_x[static_cast<size_t>(3 * d + i)] = 0.0;
  all(broken_x, list(Matrix(bs, d, DType::f32), Matrix(broken, d, DType::f32)), "NaN and infinities");
  all(broken_x, list(Matrix(bs, d, DType::f32), Matrix(Vec<double>{}, d, DType::f32), Matrix(bs, d, DType::f32)),
      "empty codebook");
  for (const double scale : {1e-42, 1e-25, 1e30, 1e38}) {  // of rows, of codebooks, of both
    Vec<double> sized = xs, sized_codebook = bs;
    for (double& v : sized) v *= scale;
    for (double& v : sized_codebook) v *= scale;
    all(sized, list(Matrix(sized_codebook, d, DType::f32), Matrix(bs, d, DType::f32)), "all sizes");
    all(xs, list(Matrix(sized_codebook, d, DType::f32), Matrix(sized_codebook, d, DType::f32)), "sized codebooks");
  }
  all(xs, list(Matrix(ascending(90, d), d, DType::f32)), "sorted");
  all({}, list(Matrix(bs, d, DType::f32)), "no rows");
}

// Rounding at its worst: the best column loses half a unit with every coordinate (ties to even), the second gains as
// much. Half the proven bound would let the wrong one win.
TEST(cuda_residual_rounding_at_its_worst) {
  const int64_t d = 200, m = 40;
  Vec<double> xs(static_cast<size_t>(d), 0x1p-12), bs = normal<double>(m * d, 720, 0.05);
  xs[0] = 1.0;
  for (int64_t j = 0; j < m; ++j) bs[static_cast<size_t>(j * d)] = j % 2 ? -0.5 : 0.5;
  double *best = bs.data() + 30 * d, *second = bs.data() + 7 * d;
  best[0] = second[0] = 1.0;
  for (int64_t k = 1; k < d; ++k) best[k] = 0x1p-12, second[k] = k < 190 ? 0x1p-12 * (1.0 + 0x1p-20) : 0.0;
  const Matrix x(xs, d, DType::f32);
  const std::vector<Matrix> codebooks = list(Matrix(bs, d, DType::f32));
  CHECK(cascade_on_cpu(x, codebooks, Metric::dot).codes[0] == 30);
  compare_cascades(x, codebooks, Metric::dot, "rounding");
}

TEST(cuda_residual_counts_and_bad_packs) {
  const Matrix x(normal<double>(130 * 8, 710), 8, DType::f32);
  const std::vector<Matrix> codebooks = codebooks_of({64, 33}, 8, DType::f32, 711);
  Bench good, bad;
  const Coded want = cascade_on_cpu(x, codebooks, Metric::cosine);
  CHECK(cascade_on_device(x, codebooks, Metric::cosine, good).codes == want.codes);
  CHECK(good.state.queries == 260 && good.state.repeated == 0 && good.state.refined < 260);
  const Coded got = cascade_on_device(x, codebooks, Metric::cosine, bad, Packs::spoilt);
  CHECK(got.codes == want.codes && got.quantized == want.quantized);
  CHECK(bad.state.bad_codes != 0 && bad.state.repeated == 130);
}

TEST(cuda_product_equals_cpu) {
  uint32_t seed = 800;
  for (const DType dtype : kDTypes)
    for (const int64_t w : {1, 5, 17}) {
      const int64_t parts = 3, n = w == 5 ? 130 : 9;
      const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
      Vec<double> xs = normal<double>(n * parts * w, ++seed);
      xs[static_cast<size_t>(parts * w + w)] = NAN;
      const Matrix x(xs, parts * w, dtype, w == 5);
      std::vector<Matrix> codebooks;
      for (int64_t b = 0; b < parts; ++b) codebooks.emplace_back(normal<double>(150 * w, ++seed), w, wide, w == 1);
      Vec<int64_t> codes[3];
      for (const int run : {0, 1, 2}) {  // on the CPU; on the device with packs, and without
        const bool device = run > 0;
        Bench bench;
        std::vector<Vec<uint64_t>> memory;
        ProductProblem p;
        p.queries = x.rows;
        p.codebooks = packed(codebooks, memory, Metric::sqeuclidean, [&](const Rows& bank, Metric m, void* out) {
          if (!device) return pack_on_cpu(bank, m, out);
          bench.provide(cuda::pack_workspace());
          CHECK(ran(cuda::pack_bank, bank, m, out, bench.device, nullptr));
        });
        if (run == 2)
          for (PackedCodebook& codebook : p.codebooks) codebook.pack = nullptr;
        codes[run].assign(static_cast<size_t>(n * parts), -7);
        p.codes = codes[run].data();
        if (!device) {
          CHECK(product_quantize(p, Parallel{}) == Status::ok);
        } else {
          bench.provide(cuda::product_workspace(p, bench.device));
          CHECK(ran(cuda::product_quantize, p, bench.device));
          CHECK(bench.state.bad_codes == 0 && bench.state.queries == static_cast<unsigned long long>(n * parts));
        }
      }
      CHECK(codes[0] == codes[1] && codes[0] == codes[2]);
      CHECK(codes[0][static_cast<size_t>(parts) + 1] == -1);
    }
}

}  // namespace
