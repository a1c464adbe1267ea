// The ways of a search and of a product beside each other: wide rows, strided ones, many ranks, batches, and scores
// that float32 cannot hold.
#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/topk_list.h"
#include "cpu/ways.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

const std::vector<Metric> kFamilies = {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean};

struct Found {
  std::vector<float> values;
  std::vector<int64_t> indices;

  bool operator==(const Found& other) const {
    return indices == other.indices && std::memcmp(values.data(), other.values.data(), values.size() * 4) == 0;
  }
};

Found search_by(SearchWay way, SearchProblem p, int workers) {
  Found found;
  found.values.resize(static_cast<size_t>(p.queries.count * p.k));
  found.indices.resize(found.values.size());
  p.values = found.values.data();
  p.indices = found.indices.data();
  force_ways(way, ProjectWay::automatic);
  CHECK(search(p, threads(workers)) == Status::ok);
  force_ways(SearchWay::automatic, ProjectWay::automatic);
  return found;
}

// The rows with unit stride, every second row of a longer matrix, and columns that lie `n` apart.
std::vector<Rows> laid_out(const std::vector<float>& data, int64_t n, int64_t d) {
  return {{data.data(), DType::f32, n, d, d, 1},
          {data.data(), DType::f32, n / 2, d, 2 * d, 1},
          {data.data(), DType::f32, n, d, 1, n}};
}

}  // namespace

TEST(every_way_of_a_search_finds_the_same) {
  for_each_isa([] {
    for (const int64_t d : {3, 33, 5000, 9001})
      for (const Metric metric : kFamilies) {
        const int64_t n = 18, m = d > 1000 ? 40 : 900;
        const auto x = gaussian<float>(n * d, 1), b = gaussian<float>(m * d, 2);
        const auto queries = laid_out(x, n, d), banks = laid_out(b, m, d);
        for (size_t layout = 0; layout < queries.size(); ++layout)
          for (const int64_t k : {int64_t{1}, int64_t{7}, banks[layout].count / 2, banks[layout].count}) {
            SearchProblem p = problem_of(queries[layout], banks[layout], metric);
            p.k = k;
            CHECK(search_by(SearchWay::refined, p, 1) == search_by(SearchWay::screened, p, 2));
            CHECK(search_by(SearchWay::refined, p, 3) == search_by(SearchWay::automatic, p, 1));
          }
      }
  });
}

TEST(a_selector_sorts_as_std_sort_does) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (const int64_t count : {1, 31, 33, 1000, 70000})
    for (const int kind : {0, 1, 2, 3, 4}) {
      std::vector<Scored> all(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) {
        const double z = normal(random);
        const double key = kind == 0   ? z
                           : kind == 1 ? std::floor(3 * z)
                           : kind == 2 ? 1.0
                           : kind == 3 ? std::exp(40 * z)
                                       : (i % 7 == 0 ? HUGE_VAL * (i % 2 == 0 ? 1 : -1) : z);
        all[static_cast<size_t>(i)] = {key, i};
      }
      std::shuffle(all.begin(), all.end(), random);
      auto expected = all;
      std::sort(expected.begin(), expected.end(), better);
      for (const int64_t k : {int64_t{1}, count / 3 + 1, count}) {
        auto list = all;
        Selector selector;
        CHECK(selector.reserve(count));
        CHECK(selector.best(list.data(), count, k) == k);
        for (size_t i = 0; i < static_cast<size_t>(k); ++i) CHECK(list[i].index == expected[i].index);
      }
    }
}

TEST(a_best_row_may_be_infinitely_far_and_is_never_nan) {
  constexpr double inf = HUGE_VAL, nan = std::numeric_limits<double>::quiet_NaN();
  const auto best = [](const std::vector<double>& keys) {
    TopKList list;
    Selector selector;
    CHECK(list.reserve(1, static_cast<int64_t>(keys.size())));
    list.clear();
    for (size_t i = 0; i < keys.size(); i += 2)
      list.push_all(&keys[i], static_cast<int64_t>(std::min<size_t>(2, keys.size() - i)),
                    [&](int64_t at) { return static_cast<int64_t>(i) + at; });
    return list.finish(selector) == 0 ? int64_t{-1} : list.data()[0].index;
  };
  CHECK(best({nan, nan, nan}) == -1 && best({nan, -inf, nan, -inf}) == 1 && best({-inf, nan, -inf, 3.0}) == 3);
  CHECK(best({1.0, 2.0, 2.0, nan}) == 1 && best({0.0, -0.0, inf, inf}) == 2);
}

// Every score against float64, for each dtype of the inputs: an error of a few roundings of the norms' product.
TEST(direct_products_are_close) {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for_each_isa([] {
    if (kernels().direct == nullptr) return;  // such products are packed, and tested elsewhere
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (const int64_t d : {1, 15, 32, 100, 512, 8200})
        for (const Metric metric : kFamilies)
          for (const int64_t m : {1, 6, 300}) {
            if (m * d > 160000) continue;
            const int64_t n = 70;
            std::vector<float> x = gaussian<float>(n * d, 3), b = gaussian<float>(m * d, 4);
            if (dtype == DType::f32) {  // rows whose products leave float32, and rows that are not finite
              for (int64_t k = 0; k < d; ++k) {
                x[static_cast<size_t>(d + k)] *= 1e-30f, x[static_cast<size_t>(2 * d + k)] *= 1e30f;
                b[static_cast<size_t>(k)] *= 1e-25f;
                if (m > 1) b[static_cast<size_t>(d + k)] *= 1e20f, b[static_cast<size_t>(2 * d + k)] = 0.0f;
              }
              x[static_cast<size_t>(3 * d)] = nan;
              if (m > 3) b[static_cast<size_t>(3 * d)] = inf;
            }
            std::vector<uint16_t> x16(x.size()), b16(b.size());
            const auto round = [&](const std::vector<float>& from, std::vector<uint16_t>& to) {
              with_dtype(dtype, [&](auto type) {
                using E = Element<decltype(type)>;
                if constexpr (sizeof(E) == 2)
                  for (size_t i = 0; i < from.size(); ++i) {
                    E e;
                    narrow(static_cast<double>(from[i]), &e);
                    std::memcpy(&to[i], &e, 2);
                  }
              });
            };
            round(x, x16), round(b, b16);
            const bool wide = dtype == DType::f32;
            ProjectProblem p;
            p.metric = metric;
            p.queries = {wide ? static_cast<const void*>(x.data()) : x16.data(), dtype, n, d, d, 1};
            p.bank = {wide ? static_cast<const void*>(b.data()) : b16.data(), dtype, m, d, d, 1};
            std::vector<double> exact(static_cast<size_t>(n * m)), got(exact.size());
            p.out_dtype = DType::f64;
            p.out = exact.data();
            p.exact = true;
            CHECK(project(p, threads(1)) == Status::ok);
            p.exact = false;
            p.out = got.data();
            for (const ProjectWay way : {ProjectWay::direct, ProjectWay::raw}) {
              // Wide rows have no panels, and nothing but packs where products are not fused.
              if (d > kDirectStretch && (way == ProjectWay::raw || kernels().direct == nullptr)) continue;
              std::fill(got.begin(), got.end(), -7.0);
              force_ways(SearchWay::automatic, way);
              CHECK(project(p, threads(2)) == Status::ok);
              force_ways(SearchWay::automatic, ProjectWay::automatic);
              const double unit = direct_by_bf16(p) ? 0x1p-20 : 0x1p-21;
              for (size_t i = 0; i < exact.size(); ++i) {
                if (!std::isfinite(exact[i]) || std::fabs(exact[i]) > 3e38) continue;
                // A score is as large as its norms' product, but for what cancels.
                double scale = std::fabs(exact[i]) + (metric == Metric::cosine ? 1.0 : 0.0);
                if (metric == Metric::dot) {
                  double squares[2] = {};
                  for (int64_t k = 0; k < d; ++k) {
                    const size_t at = i / static_cast<size_t>(m) * static_cast<size_t>(d) + static_cast<size_t>(k);
                    const size_t of = i % static_cast<size_t>(m) * static_cast<size_t>(d) + static_cast<size_t>(k);
                    squares[0] += static_cast<double>(x[at]) * static_cast<double>(x[at]);
                    squares[1] += static_cast<double>(b[of]) * static_cast<double>(b[of]);
                  }
                  scale = std::sqrt(squares[0]) * std::sqrt(squares[1]) + 0x1p-126;
                }
                CHECK(std::fabs(got[i] - exact[i]) <= unit * scale);
              }
              for (int64_t j = 0; j < m && wide; ++j) CHECK(std::isnan(got[static_cast<size_t>(3 * m + j)]));
            }
          }
  });
}

TEST(batches_of_small_problems_are_a_loop) {
  const int64_t batches = 37, n = 6, m = 11, d = 9, k = 3;
  const auto x = gaussian<float>(batches * n * d, 6), b = gaussian<float>(batches * m * d, 7);
  for (const Metric metric : kFamilies) {
    std::vector<SearchProblem> searches;
    std::vector<ProjectProblem> projects;
    std::vector<int64_t> indices(static_cast<size_t>(batches * n * k)), one(static_cast<size_t>(n * k));
    std::vector<float> out(static_cast<size_t>(batches * n * m)), once(static_cast<size_t>(n * m));
    for (int64_t i = 0; i < batches; ++i) {
      SearchProblem s;
      s.queries = {&x[static_cast<size_t>(i * n * d)], DType::f32, n, d, d, 1};
      s.bank = {&b[static_cast<size_t>(i * m * d)], DType::f32, m, d, d, 1};
      s.metric = metric;
      s.k = k;
      s.indices = &indices[static_cast<size_t>(i * n * k)];
      searches.push_back(s);
      ProjectProblem p;
      p.queries = s.queries;
      p.bank = s.bank;
      p.metric = metric;
      p.out = &out[static_cast<size_t>(i * n * m)];
      projects.push_back(p);
    }
    CHECK(search_each(searches.data(), batches, threads(3)) == Status::ok);
    CHECK(project_each(projects.data(), batches, threads(3)) == Status::ok);
    for (int64_t i = 0; i < batches; ++i) {
      searches[static_cast<size_t>(i)].indices = one.data();
      CHECK(search(searches[static_cast<size_t>(i)], threads(1)) == Status::ok);
      CHECK(std::equal(one.begin(), one.end(), indices.begin() + i * n * k));
      projects[static_cast<size_t>(i)].out = once.data();
      CHECK(project(projects[static_cast<size_t>(i)], threads(1)) == Status::ok);
      CHECK(std::equal(once.begin(), once.end(), out.begin() + i * n * m));
    }
  }
}
