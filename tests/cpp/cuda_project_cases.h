// project on both paths, within tolerance of the CPU's. For the library's, a product on the host stands in for cuBLAS;
// on a GPU the memory goes to the host and back for it, between the kernels.
#pragma once

#include "cuda/heuristics.h"

namespace {

template <class Run>
Vec<double> dense(const Matrix& x, const Matrix& b, Metric metric, DType out, Run&& run) {
  ProjectProblem p;
  p.queries = x.rows;
  p.bank = b.rows;
  p.metric = metric;
  p.out_dtype = out;
  Vec<char> bytes(static_cast<size_t>(x.rows.count * b.rows.count) * size_of(out), 1);
  p.out = bytes.data();
  run(p);
  Vec<double> values;
  for (int64_t i = 0; i < x.rows.count * b.rows.count; ++i)
    values.push_back(with_dtype(out, [&](auto t) { return widened(reinterpret_cast<decltype(t)>(bytes.data())[i]); }));
  return values;
}

// `ours(problem, bench)` provides the workspace, runs, and returns whether it succeeded.
template <class Ours>
void compare_dense_by(const Matrix& x, const Matrix& b, Metric metric, DType out, double tolerance, const char* what,
                      Ours&& answer) {
  Bench bench;
  const auto theirs = dense(x, b, metric, out, [](ProjectProblem& p) { CHECK(project(p, Parallel{}) == Status::ok); });
  const auto ours = dense(x, b, metric, out, [&](ProjectProblem& p) { CHECK(answer(p, bench)); });
  double worst = 0.0, largest = 0.0;
  bool kinds = true;
  for (size_t i = 0; i < ours.size(); ++i) {
    if (!std::isfinite(theirs[i]) || !std::isfinite(ours[i])) {
      kinds = kinds && (theirs[i] == ours[i] || (std::isnan(theirs[i]) && std::isnan(ours[i])));
      continue;
    }
    worst = std::max(worst, std::abs(ours[i] - theirs[i]));
    largest = std::max(largest, std::abs(theirs[i]));
  }
  CHECK(kinds);
  CHECK(worst <= tolerance * (largest + 1e-300));
  if (!kinds || worst > tolerance * (largest + 1e-300))
    std::printf("  %s metric %d: off by %g of %g\n", what, static_cast<int>(metric), worst, largest);
}

void compare_dense(const Matrix& x, const Matrix& b, Metric metric, DType out, double tolerance, const char* what) {
  compare_dense_by(x, b, metric, out, tolerance, what, [](const ProjectProblem& p, Bench& bench) {
    bench.provide(cuda::project_workspace(p, bench.device));
    return ran(cuda::project, p, bench.device);
  });
}

TEST(cuda_project_close_to_cpu) {
  uint32_t seed = 40;
  for (const Metric metric : kMetrics)
    for (const DType dtype : kDTypes) {
      const int64_t d = 19, n = 70, m = 150;
      const Matrix x(normal<double>(n * d, ++seed), d, dtype), b(normal<double>(m * d, ++seed), d, dtype, true);
      const double tolerance = dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 1e-5 : 1e-2;
      compare_dense(x, b, metric, dtype, tolerance, "gaussian");
      if (dtype == DType::bf16) compare_dense(x, b, metric, DType::f32, 1e-5, "float32 out");
    }
  Vec<double> xs = normal<double>(70, 1), bs = normal<double>(210, 2);
  xs[3] = NAN, xs[15] = INFINITY, bs[8] = NAN, bs[21] = 1e300, bs[30] = -INFINITY;
  for (const Metric metric : kMetrics)
    for (const DType dtype : {DType::f32, DType::f64})
      compare_dense(Matrix(xs, 7, dtype), Matrix(bs, 7, dtype), metric, dtype, 1e-5, "not finite");
}

// The largest error of a score, against sums in long double.
double dense_error(const Matrix& x, const Matrix& b, Metric metric, DType out, int capability, bool* exact = nullptr) {
  const auto ours = dense(x, b, metric, out, [&](ProjectProblem& p) {
    Bench bench;
    bench.device.capability = capability;
    bench.provide(cuda::project_workspace(p, bench.device));
    CHECK(ran(cuda::project, p, bench.device));
  });
  const auto contract = dense(x, b, metric, out, [](ProjectProblem& p) {
    p.exact = true;
    CHECK(project(p, Parallel{}) == Status::ok);
  });
  if (exact != nullptr) *exact = ours == contract;
  const auto element = [](const Rows& rows, int64_t i, int64_t k) -> long double {
    return with_dtype(rows.dtype, [&](auto t) {
      return widened(reinterpret_cast<decltype(t)>(cuda::row_of(rows, i))[k * rows.col_stride]);
    });
  };
  double worst = 0.0;
  for (int64_t i = 0; i < x.rows.count; ++i)
    for (int64_t j = 0; j < b.rows.count; ++j) {
      long double product = 0, squares = 0, own = 0, other = 0;
      for (int64_t k = 0; k < x.rows.width; ++k) {
        const long double v = element(x.rows, i, k), w = element(b.rows, j, k);
        product += v * w, squares += (v - w) * (v - w), own += v * v, other += w * w;
      }
      const long double score = metric == Metric::dot      ? product
                                : metric == Metric::cosine ? product / std::sqrt(own * other)
                                                           : squares;
      worst = std::max(worst, static_cast<double>(std::abs(
                                  score - static_cast<long double>(ours[static_cast<size_t>(i * b.rows.count + j)]))));
    }
  return worst;
}

// Long sums in which nothing cancels err by what 128 products lose: one sequence of 2048 loses more than twice what is
// allowed here. Widths on both sides of a run, and runs that end within a step.
TEST(cuda_project_of_long_rows_adds_on_two_levels) {
  const int64_t n = 30, m = 70;
  for (const int64_t d : {128, 129, 256, 257, 300, 2048}) {
    const auto shifted = [&](int64_t rows, uint32_t seed) {
      Vec<double> v = normal<double>(rows * d, seed);
      for (double& one : v) one += 1.0;
      return v;
    };
    const Vec<double> xs = shifted(n, 5), bs = shifted(m, 6);
    for (const DType dtype : {DType::f32, DType::f64}) {
      if (dtype == DType::f32 && !twin::Side::kShowsAll) continue;  // not every GPU has the room
      const double unit = static_cast<double>(d) * (dtype == DType::f32 ? 0x1p-24 : 0x1p-53);
      const Matrix x(xs, d, dtype), b(bs, d, dtype);
      CHECK(dense_error(x, b, Metric::dot, dtype, 90) <= 14 * unit);
      CHECK(dense_error(x, b, Metric::sqeuclidean, dtype, 90) <= 28 * unit);
      CHECK(dense_error(x, b, Metric::cosine, dtype, 90) <= 8 * unit / static_cast<double>(d));
    }
  }
}

// Where float32 has no room for a second level, few long sums are those of the contract, rounded once.
TEST(cuda_project_of_few_long_rows_is_exact_without_room) {
  const int64_t n = 3, m = 40, d = 300;
  const Matrix x(normal<double>(n * d, 7), d, DType::f32), b(normal<double>(m * d, 8), d, DType::f32);
  for (const Metric metric : kMetrics) {
    bool exact = false;
    (void)dense_error(x, b, metric, DType::f32, 86, &exact);
    CHECK(exact);
    if (!twin::Side::kShowsAll) continue;  // not every GPU has the room
    (void)dense_error(x, b, metric, DType::f32, 90, &exact);
    CHECK(exact == refined_only(metric));
  }
}

// Large terms that cancel: the centre of a float64 bank is left where it is, as its product with x would lose more.
TEST(cuda_project_of_cancelling_terms) {
  const int64_t n = 13, m = 33, d = 17;
  Vec<double> xs = normal<double>(n * d, 9), bs = normal<double>(m * d, 10);
  for (size_t i = 0; i < xs.size(); ++i) xs[i] += 100.0;
  for (size_t i = 0; i < bs.size(); ++i) bs[i] = (i % d % 2 == 0 ? 1.0 : -1.0) * (100.0 + bs[i]);
  CHECK(dense_error(Matrix(xs, d, DType::f64), Matrix(bs, d, DType::f64), Metric::dot, DType::f64, 80) <= 7e-12);
}

// The exact form, of all pairs and of listed ones: bit for bit.
TEST(cuda_exact_scores_are_the_cpus) {
  uint32_t seed = 60;
  std::vector<Metric> metrics(std::begin(kMetrics), std::end(kMetrics));
  metrics.insert(metrics.end(), std::begin(kBallMetrics), std::end(kBallMetrics));
  for (const Metric metric : metrics)
    for (const DType dtype : kDTypes) {
      const int64_t d = 21, n = 9, m = 70, k = 13;
      const double scale = record(metric).ball ? kIntoBall : 1.0;
      Vec<double> xs = normal<double>(n * d, ++seed, scale), bs = normal<double>(m * d, ++seed, scale);
      xs[5] = NAN, xs[40] = INFINITY, bs[30] = NAN, bs[50] = -INFINITY;
      const Matrix x(xs, d, dtype), b(bs, d, dtype, true);
      Vec<int64_t> indices(static_cast<size_t>(n * k));
      for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int64_t>(i * 31 % 71) - 1;
      for (const bool listed : {false, true}) {
        const int64_t columns = listed ? k : m;
        Vec<double> theirs(static_cast<size_t>(n * columns), 7.0), ours(theirs.size(), 8.0);
        ProjectProblem p;
        p.queries = x.rows, p.bank = b.rows, p.metric = metric, p.out_dtype = DType::f64, p.exact = true;
        if (listed) p.indices = indices.data(), p.k = k;
        p.out = theirs.data();
        CHECK(project(p, Parallel{}) == Status::ok);
        p.out = ours.data();
        Bench bench;
        bench.provide(0);
        CHECK(ran(cuda::project, p, bench.device));
        for (size_t i = 0; i < ours.size(); ++i)
          CHECK(ours[i] == theirs[i] || (std::isnan(ours[i]) && std::isnan(theirs[i])));
      }
    }
}

struct HostProduct {
  int calls = 0;
  int64_t largest = 0;  // elements of one product
  static cuda::Error run(void* context, const Rows& queries, const Rows& bank, void* out, DType dtype, int64_t stride) {
    auto& self = *static_cast<HostProduct*>(context);
    ++self.calls;
    self.largest = std::max(self.largest, queries.count * bank.count);
    twin::Crossing& memory = *twin::Crossing::current();
    return memory.on_host([&] {
      Rows x = queries, b = bank;
      x.data = memory.host_of(queries.data), b.data = memory.host_of(bank.data);
      void* to = memory.host_of(out);
      for (int64_t i = 0; i < x.count; ++i)
        for (int64_t j = 0; j < b.count; ++j) {
          double sum = 0.0;
          for (int lane = 0; lane < 8; ++lane) sum += cuda::pair_lane(x, i, b, j, lane, Term::product);
          with_dtype(dtype, [&](auto t) { narrow(sum, static_cast<Element<decltype(t)>*>(to) + i * stride + j); });
        }
    });
  }
};

void compare_by_library(const Matrix& x, const Matrix& b, Metric metric, DType out, double tolerance,
                        const char* what) {
  HostProduct host;
  compare_dense_by(x, b, metric, out, tolerance, what, [&](const ProjectProblem& p, Bench& bench) {
    CHECK(cuda::library_can(p));
    bench.provide(cuda::project_library_workspace(p, bench.device));
    return ran(cuda::project_by_library, p, cuda::Multiply{&host, HostProduct::run}, bench.device);
  });
  CHECK(host.calls > 0);
}

TEST(cuda_project_by_library_close_to_cpu) {
  uint32_t seed = 80;
  for (const Metric metric : kMetrics)
    for (const DType dtype : kDTypes) {
      if (record(metric).smaller_is_better && dtype == DType::f32) continue;  // the kernel's
      if (record(metric).term == Term::absolute) continue;                    // likewise
      const int64_t d = 19, n = 70, m = 300;
      const Matrix x(normal<double>(n * d, ++seed), d, dtype), b(normal<double>(m * d, ++seed), d, dtype);
      const double tolerance = dtype == DType::f64   ? 1e-14
                               : dtype == DType::f32 ? 1e-6
                               : dtype == DType::f16 ? 1e-3
                                                     : 8e-3;
      compare_by_library(x, b, metric, dtype, tolerance, "gaussian");
      if (!record(metric).smaller_is_better && dtype != DType::f64)
        compare_by_library(x, b, metric, DType::f32, 1e-6, "float32 out");
      if (dtype == DType::f32) compare_by_library(x, b, metric, DType::bf16, 8e-3, "bfloat16 out");
    }
  // What a product cannot carry: rows and columns are rescored, but for a plain product, which is the library's own
  // answer.
  Vec<double> xs = normal<double>(70, 1), bs = normal<double>(210, 2);
  xs[3] = NAN, xs[15] = INFINITY, bs[8] = NAN, bs[30] = -INFINITY;
  for (int64_t k = 0; k < 7; ++k) {
    xs[static_cast<size_t>(28 + k)] = 0.0;
    xs[static_cast<size_t>(42 + k)] *= 1e25, bs[static_cast<size_t>(70 + k)] *= 1e30;  // overflow together
    xs[static_cast<size_t>(49 + k)] *= 1e-30, bs[static_cast<size_t>(84 + k)] *= 1e-35;
    bs[static_cast<size_t>(91 + k)] = 0.0;
  }
  compare_by_library(Matrix(xs, 7, DType::f32), Matrix(bs, 7, DType::f32), Metric::cosine, DType::f32, 1e-6, "broken");
  compare_by_library(Matrix(xs, 7, DType::bf16), Matrix(bs, 7, DType::bf16), Metric::cosine, DType::f32, 1e-6,
                     "broken");
  compare_by_library(Matrix(xs, 7, DType::bf16), Matrix(bs, 7, DType::bf16), Metric::cosine, DType::bf16, 8e-3,
                     "broken");
  for (const Metric metric : kMetrics)
    if (metric != Metric::dot && record(metric).term != Term::absolute)
      compare_by_library(Matrix(xs, 7, DType::f64), Matrix(bs, 7, DType::f64), metric, DType::f64, 1e-13, "broken");
}

// Several blocks of rows and of columns, the answer's rows longer than a block.
TEST(cuda_project_by_library_in_blocks) {
  const int64_t d = 2, n = 1100, m = cuda::kProductColumns + 5;
  const Matrix x(normal<double>(n * d, 91), d, DType::f16), b(normal<double>(m * d, 92), d, DType::f16);
  ProjectProblem p;
  p.queries = x.rows, p.bank = b.rows, p.metric = Metric::cosine, p.out_dtype = DType::f16;
  const cuda::LibraryPlan plan = cuda::plan_library(p, cuda::Device{}.l2_bytes);
  CHECK(!plan.in_place && plan.rows == 640 && plan.columns == cuda::kProductColumns);
  compare_by_library(x, b, Metric::cosine, DType::f16, 1e-3, "blocks");
}

// One product, scaled where it lies: eight columns a thread, four, or one, and more columns than a block of threads.
TEST(cuda_project_by_library_in_place) {
  uint32_t seed = 700;
  for (const DType dtype : {DType::bf16, DType::f32, DType::f64})
    for (const int64_t m : {8, 300, 301, 1032, 2064}) {
      const int64_t d = 24, n = 77;
      const Matrix x(normal<double>(n * d, ++seed), d, dtype), b(normal<double>(m * d, ++seed), d, dtype);
      const double tolerance = dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 1e-6 : 8e-3;
      compare_by_library(x, b, Metric::cosine, dtype, tolerance, "in place");
    }
}

// A float16 product of rows this long would overflow, a bfloat16 one of rows this short would lose its digits.
TEST(cuda_project_by_library_of_long_and_short_rows) {
  const int64_t d = 40, n = 20, m = 48;
  const Vec<double> xs = normal<double>(n * d, 720), bs = normal<double>(m * d, 721);
  for (const auto& [dtype, scale] : {std::pair{DType::f16, 6e3},
                                     {DType::f16, 2e-3},
                                     {DType::bf16, 1e14},
                                     {DType::bf16, 1e25},
                                     {DType::bf16, 1e-11},
                                     {DType::bf16, 1e-25}}) {
    Vec<double> x = xs, b = bs;
    for (double& v : x) v *= scale;
    for (double& v : b) v *= scale;
    compare_by_library(Matrix(x, d, dtype), Matrix(b, d, dtype), Metric::cosine, dtype,
                       dtype == DType::f16 ? 1e-3 : 8e-3, "scaled");
  }
}

// Norms from rows of 16-byte chunks, of less, and off their boundary: the squares that float32 holds, and those that it
// would lose or that would overflow, with one row of each kind in a warp. A float32 answer shows the norms' digits.
TEST(cuda_project_by_library_norms) {
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const int64_t d : {8, 128, 1030, 1031}) {
      const int64_t n = 37, m = 20;
      Vec<double> xs = normal<double>(n * d, 730), bs = normal<double>(m * d, 731);
      for (int64_t k = 0; k < d; ++k) {
        if (k != 5) xs[static_cast<size_t>(4 * d + k)] *= 1e-4;  // one coordinate is nearly all
        xs[static_cast<size_t>(7 * d + k)] = 0.0;
        if (dtype == DType::f16) continue;
        xs[static_cast<size_t>(9 * d + k)] *= 1e-24, xs[static_cast<size_t>(12 * d + k)] *= 1e24;
        if (k % 2 == 0) xs[static_cast<size_t>(14 * d + k)] *= 1e-22;  // lost, and rightly
      }
      for (int64_t k = 0; k < d; ++k) bs[static_cast<size_t>(3 * d + k)] = 0.0;
      compare_by_library(Matrix(xs, d, dtype), Matrix(bs, d, dtype), Metric::cosine, DType::f32, 5e-7, "norms");
    }
}

// The rows that are rescored lie anywhere: more rows than the threads of all blocks look at once.
TEST(cuda_project_by_library_rescores_far_rows) {
  const int64_t d = 8, n = 3 * 8 * 256 + 300, m = 8;  // three processors, eight blocks each
  Vec<double> xs = normal<double>(n * d, 740);
  for (const int64_t row : {int64_t{0}, int64_t{23}, int64_t{24}, int64_t{6143}, int64_t{6144}, n - 1})
    for (int64_t k = 0; k < d; ++k) xs[static_cast<size_t>(row * d + k)] *= 1e30;
  const Matrix x(xs, d, DType::f32), b(normal<double>(m * d, 741), d, DType::f32);
  compare_by_library(x, b, Metric::cosine, DType::f32, 1e-6, "far rows");
}

}  // namespace
