// Which path computes project on CUDA, and how the library's product is cut. No kernel runs here.
#include "check.h"
#include "cuda/heuristics.h"
#include "cuda/plan.h"

namespace {

using namespace vecbank;
using namespace vecbank::cpu;

ProjectProblem projection(Metric metric, DType x, DType bank, DType out, int64_t n = 100, int64_t m = 50,
                          int64_t d = 8) {
  ProjectProblem p;
  p.metric = metric;
  p.queries = {nullptr, x, n, d, d, 1};
  p.bank = {nullptr, bank, m, d, d, 1};
  p.out_dtype = out;
  return p;
}

TEST(cuda_heuristics_choose_a_path_and_say_why) {
  using namespace cuda;
  using enum ProjectPath;
  const size_t last = std::size(kProjectRules) - 1;
  const DType f32 = DType::f32, f64 = DType::f64, bf16 = DType::bf16, f16 = DType::f16;
  CHECK(kProjectRules[last].holds(projection(Metric::dot, f32, f32, f32), 80));  // some row always decides
  for (const ProjectRule& rule : kProjectRules) CHECK(*rule.what != 0 && *rule.reason != 0);
  const auto path = [](Metric metric, DType in, DType out, ProjectOverride wanted = ProjectOverride::none) {
    return project_path(projection(metric, in, in, out), 90, wanted);
  };
  for (const DType half : {bf16, f16})
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean}) {
      CHECK(path(metric, half, half) == library);
      CHECK(path(metric, half, f32) == (is_product(projection(metric, half, half, f32)) ? library : kernel));
    }
  for (const Metric metric : {Metric::dot, Metric::cosine})
    for (const DType out : {f32, f64, bf16})
      CHECK(path(metric, f32, out) == library && path(metric, f64, out) == library);
  for (const Metric metric : {Metric::l2, Metric::sqeuclidean, Metric::l1}) {
    CHECK(path(metric, f32, f32) == kernel && path(metric, f64, f64) == kernel);
    CHECK(path(metric, f32, f32, ProjectOverride::library) == kernel);  // it cannot
  }
  CHECK(path(Metric::l1, bf16, bf16) == kernel);
  CHECK(project_path(projection(Metric::dot, bf16, f32, bf16), 90, ProjectOverride::none) == kernel);  // two dtypes
  CHECK(path(Metric::dot, bf16, bf16, ProjectOverride::kernel) == kernel);
  CHECK(path(Metric::l2, f64, f64, ProjectOverride::library) == library);

  const auto of = [](Metric metric, DType in, int64_t n, int64_t m, int64_t d, int64_t step = 1,
                     ProjectOverride wanted = ProjectOverride::none) {
    ProjectProblem p = projection(metric, in, in, in, n, m, d);
    p.queries.col_stride = step;
    return project_path(p, 90, wanted);
  };
  CHECK(of(Metric::l2, f32, 13, 100, 384) == exact && of(Metric::l2, f32, 13, 100, 64) == kernel);
  CHECK(of(Metric::l2, f32, 2, 1024, 384) == exact && of(Metric::l2, f32, 3, 1024, 384) == kernel);
  CHECK(of(Metric::l2, f32, 13, 100, 384, 1, ProjectOverride::kernel) == kernel);
  CHECK(of(Metric::l2, f32, 13, 100, 384, 1, ProjectOverride::library) == kernel);
  for (const DType in : {f32, f64, bf16}) {
    CHECK(of(Metric::dot, in, 13, 100, 384) == library);
    CHECK(of(Metric::dot, in, 13, 100, 384, 2) == exact);  // the library cannot read it
    CHECK(of(Metric::dot, in, 1300, 100, 384, 2) == kernel);
  }
  for (const auto& [n, m] : {std::pair<int64_t, int64_t>{0, 5}, {5, 0}, {0, 0}, {int64_t{1} << 40, int64_t{1} << 40}})
    CHECK(few_long_scores(projection(Metric::l2, f32, f32, f32, n, m, 384)) == (n == 0 && m > 0));
}

TEST(cuda_library_takes_what_it_can_carry) {
  using namespace cuda;
  const DType f32 = DType::f32, f64 = DType::f64, bf16 = DType::bf16;
  CHECK(library_can(projection(Metric::cosine, f32, f32, f32)) && library_can(projection(Metric::l2, f64, f64, f64)));
  CHECK(library_can(projection(Metric::l2, bf16, bf16, bf16)));
  CHECK(!library_can(projection(Metric::l2, f32, f32, f32)));     // tf32 may be allowed: it cancels
  CHECK(!library_can(projection(Metric::l2, bf16, bf16, f32)));   // shows more than the product knew
  CHECK(!library_can(projection(Metric::dot, bf16, f32, bf16)));  // two dtypes
  ProjectProblem p = projection(Metric::dot, f32, f32, f32);
  p.queries.col_stride = 2;
  CHECK(!library_can(p) && project_path(p, 80, ProjectOverride::library) == ProjectPath::kernel);
  p = projection(Metric::dot, f32, f32, f32);
  p.bank.row_stride = 0;  // an expanded row
  CHECK(!library_can(p));
}

TEST(cuda_library_plans_fit_the_workspace) {
  using namespace cuda;
  for (const int64_t l2 : {0, 6 << 20, 40 << 20, 50 << 20, 1 << 30})
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2})
      for (const DType in : {DType::f32, DType::f64, DType::bf16, DType::f16})
        for (const DType out : {DType::f32, DType::f64, DType::bf16, DType::f16})
          for (const int64_t n : {1, 127, 5000, 1 << 20, 1 << 25})
            for (const int64_t m : {1, 3, 300, 1024, 8192, 1 << 20, 1 << 22}) {
              const ProjectProblem p = projection(metric, in, in, out, n, m, 64);
              const LibraryPlan plan = plan_library(p, l2);
              const int64_t size = static_cast<int64_t>(size_of(product_dtype(p)));
              CHECK(plan.in_place == (out == product_dtype(p)) && (!plain_product(p) || plan.whole));
              CHECK(plan.rows >= 1 && plan.rows <= n && plan.columns >= 1 && plan.columns <= m);
              if (plan.whole) CHECK(plan.in_place && plan.rows == n && plan.columns == m);
              if (plain_product(p)) continue;
              const int64_t bytes = plan.rows * plan.columns * size;
              if (!plan.whole) CHECK(bytes <= std::clamp(l2 / 2, kLeastProduct, kMostProduct));
              const int64_t factor = (in == DType::f64 ? 8 : 4) + 1;
              const int64_t factors = (std::min(n, kMostFactors) + std::min(m, kMostFactors)) * factor;
              CHECK((plan.in_place ? 0 : bytes) + factors + 4096 <= kMostWorkspace);
              const int64_t rows = std::min(plan.rows, kMostFactors), columns = std::min(plan.columns, kMostFactors);
              for (const int wide : {1, 4, 8}) {
                const FinishGrid g = finish_grid(rows, columns, wide);
                CHECK(g.across >= 1 && g.across * g.down == kThreads && g.x * g.y < (int64_t{1} << 31));
                CHECK(g.x * g.across * wide >= columns && g.y * g.down * kFinishRows >= rows);
                CHECK(g.across == 1 || g.across * wide < 2 * columns);  // at least half of the threads have work
              }
            }
}

// Inputs, product and answer of one dtype: one product. Everything else, distances in 16 bits too: in blocks.
TEST(cuda_library_multiplies_whole_what_it_writes_in_place) {
  using namespace cuda;
  const DType f32 = DType::f32, f64 = DType::f64, bf16 = DType::bf16, f16 = DType::f16;
  const auto of = [](Metric metric, DType in, DType out) {
    const ProjectProblem p = projection(metric, in, in, out, 65536, 1024, 768);
    const LibraryPlan plan = plan_library(p, int64_t{50} << 20);
    return std::tuple(product_dtype(p), plan.whole, ceil_div(65536, plan.rows));
  };
  for (const DType in : {f32, f64, bf16, f16}) CHECK(of(Metric::dot, in, in) == std::tuple(in, true, 1));
  for (const DType in : {f32, f64, bf16}) CHECK(of(Metric::cosine, in, in) == std::tuple(in, true, 1));
  CHECK(of(Metric::l2, f64, f64) == std::tuple(f64, true, 1));
  CHECK(of(Metric::cosine, f16, f16) == std::tuple(f32, false, 11));  // its products may overflow
  CHECK(of(Metric::cosine, bf16, f16) == std::tuple(f32, false, 11));
  CHECK(of(Metric::cosine, f32, bf16) == std::tuple(f32, false, 11));
  for (const Metric metric : {Metric::l2, Metric::sqeuclidean})
    CHECK(of(metric, bf16, bf16) == std::tuple(f32, false, 11));  // they cancel
  for (const Metric metric : {Metric::dot, Metric::cosine})
    CHECK(of(metric, bf16, f32) == std::tuple(f32, false, 11));  // in place, but more than 16 bits
}

}  // namespace
