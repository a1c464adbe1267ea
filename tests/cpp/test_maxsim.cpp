// Sets of rows: scores and the best documents by the definition, bounds of both screens, and calls that are stopped.
#include <algorithm>
#include <utility>

#include "cpu/maxsim_codes.h"
#include "naive_search.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

struct Sets {
  OwnRows own;
  std::vector<int64_t> offsets{0};
  RowSets view;

  Sets(const std::vector<int64_t>& sizes, int64_t width, DType dtype, uint32_t seed, double scale = 1.0)
      : own(gaussian<double>(total(sizes) * width, seed, scale), width, dtype) {
    for (const int64_t n : sizes) offsets.push_back(offsets.back() + n);
    own.rows.count = offsets.back();
    view = {own.rows, offsets.data(), static_cast<int64_t>(sizes.size())};
  }
  static int64_t total(const std::vector<int64_t>& sizes) {
    int64_t sum = 0;
    for (const int64_t n : sizes) sum += n;
    return sum;
  }
};

// [queries][documents], by the definition.
std::vector<double> scores_of(const MaxSimProblem& p) {
  const NaiveScores pairs(p.queries.rows, p.documents.rows, p.metric);
  std::vector<double> all;
  for (int64_t q = 0; q < p.queries.count; ++q)
    for (int64_t d = 0; d < p.documents.count; ++d) {
      double sum = p.documents.size(d) == 0 ? -HUGE_VAL : 0.0;
      for (int64_t t = p.queries.offsets[q]; t < p.queries.offsets[q + 1] && p.documents.size(d) > 0; ++t) {
        double best = -HUGE_VAL;
        for (int64_t r = p.documents.offsets[d]; r < p.documents.offsets[d + 1]; ++r)
          best = std::max(best, pairs.key(t, r));
        const double value = value_of(p.metric, best);
        sum += record(p.metric).smaller_is_better ? -value : value;
      }
      all.push_back(sum);
    }
  return all;
}

std::vector<int64_t> drawn_sizes(int64_t count, uint32_t most, uint32_t seed) {
  std::mt19937 draw(seed);
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < count; ++i) sizes.push_back(static_cast<int64_t>(draw() % (most + 1)));
  return sizes;
}

const std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>> kSizes = {
    {{1}, {1}},
    {{3, 0, 33}, drawn_sizes(70, 25, 1)},
    {{5}, {2, 900, 0, 13, 14, 15, 1}},
    {{40, 1}, drawn_sizes(400, 2, 2)},
};

// Codes of the documents, made by maxsim_pack().
struct Codes {
  std::vector<uint8_t> codes;
  std::vector<float> facts;
  explicit Codes(const MaxSimProblem& p)
      : codes(static_cast<size_t>(p.documents.rows.count * maxsim_code_bytes(p.documents.rows.width)) + 64),
        facts(static_cast<size_t>(3 * p.documents.count)) {
    CHECK(maxsim_pack(p.documents, p.metric, codes.data(), facts.data(), threads(2)) == Status::ok);
  }
};

}  // namespace

TEST(maxsim_finds_the_best_documents_to_the_bit) {
  for_each_isa([] {
    for (const auto& [queries, documents] : kSizes)
      for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2})
        for (const DType dtype : {DType::f32, DType::bf16, DType::f64})
          for (const int64_t width : {1, 17, 64}) {
            const Sets q(queries, width, dtype, 1), d(documents, width, dtype, 2);
            MaxSimProblem p;
            p.queries = q.view, p.documents = d.view, p.metric = metric;
            const std::vector<double> want = scores_of(p);
            const int64_t k = std::min<int64_t>(p.documents.count, 6);
            std::vector<double> values(static_cast<size_t>(p.queries.count * k));
            std::vector<int64_t> found(values.size());
            p.k = k, p.values = values.data(), p.found = found.data();
            const bool products = record(metric).term == Term::product;
            for (const bool coded : {false, true}) {
              if (coded && !products) continue;
              const Codes codes = coded ? Codes(p) : Codes(MaxSimProblem{});
              p.codes = coded ? MaxSimCodes{codes.codes.data(), codes.facts.data()} : MaxSimCodes{};
              for (const int workers : {1, 3}) {
                CHECK(maxsim_topk(p, threads(workers)) == Status::ok);
                for (int64_t i = 0; i < p.queries.count; ++i) {
                  const double* own = want.data() + i * p.documents.count;
                  std::vector<Scored> best;
                  for (int64_t j = 0; j < p.documents.count; ++j)
                    if (p.documents.size(j) > 0) best.push_back({own[j], j});
                  std::sort(best.begin(), best.end(), better);
                  for (int64_t r = 0; r < k; ++r) {
                    const bool any = r < static_cast<int64_t>(best.size());
                    const auto at = static_cast<size_t>(i * k + r);
                    CHECK(found[at] == (any ? best[static_cast<size_t>(r)].index : -1));
                    CHECK(values[at] == (any ? best[static_cast<size_t>(r)].key : -HUGE_VAL));
                  }
                }
              }
            }
          }
  });
}

TEST(maxsim_scores_are_near_and_name_the_best_token) {
  for_each_isa([] {
    for (const auto& [queries, documents] : kSizes)
      for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l1}) {
        const Sets q(queries, 24, DType::f32, 3), d(documents, 24, DType::f32, 4);
        MaxSimProblem p;
        p.queries = q.view, p.documents = d.view, p.metric = metric;
        const std::vector<double> want = scores_of(p);
        std::vector<double> values(want.size(), 7.0);
        std::vector<int64_t> best(static_cast<size_t>(p.queries.rows.count * p.documents.count), -7);
        p.values = values.data(), p.best = best.data();
        CHECK(maxsim(p, threads(2)) == Status::ok);
        const NaiveScores pairs(p.queries.rows, p.documents.rows, metric);
        for (size_t i = 0; i < want.size(); ++i)
          CHECK(want[i] == -HUGE_VAL ? values[i] == want[i] : std::fabs(values[i] - want[i]) < 1e-2);
        for (int64_t t = 0; t < p.queries.rows.count; ++t)
          for (int64_t j = 0; j < p.documents.count; ++j) {
            const int64_t row = best[static_cast<size_t>(t * p.documents.count + j)];
            CHECK(p.documents.size(j) == 0 ? row == -1
                                           : row >= p.documents.offsets[j] && row < p.documents.offsets[j + 1]);
            for (int64_t r = p.documents.offsets[j]; r < p.documents.offsets[j + 1]; ++r)
              CHECK(pairs.key(t, r) <= pairs.key(t, row) + 1e-4);
          }
      }
  });
}

TEST(maxsim_bounds_hold_for_float32_and_for_codes) {
  for_each_isa([] {
    for (const Metric metric : {Metric::dot, Metric::cosine})
      for (const double scale : {1.0, 1e-6, 1e6})
        for (const int64_t width : {3, 40, 128}) {
          const Sets q({2, 19, 1}, width, DType::f32, 5, scale), d(drawn_sizes(60, 30, 6), width, DType::f32, 7);
          MaxSimProblem p;
          p.queries = q.view, p.documents = d.view, p.metric = metric;
          const std::vector<double> want = scores_of(p);
          const Codes codes(p);
          p.codes = {codes.codes.data(), codes.facts.data()};
          TokenPanels panels;
          CHECK(panels.build(p, 0, p.queries.count, threads(1)) == Status::ok);
          CodedQueries coded;
          CHECK(coded.build(panels, 0, p.queries.count, width));
          DocumentSweep sweep;
          CodeSweep code_sweep;
          CHECK(sweep.reserve(p, panels.panels(), false) && code_sweep.reserve(panels.panels()));
          sweep.run(panels, 0, p.documents.count, false, true, {});
          if (has_codes(p)) code_sweep.run(p, coded, 0, p.documents.count, {});
          for (int64_t i = 0; i < p.queries.count; ++i)
            for (int64_t j = 0; j < p.documents.count; ++j) {
              if (p.documents.size(j) == 0) continue;
              const double exact = want[static_cast<size_t>(i * p.documents.count + j)];
              double sum = 0.0, size = 0.0;
              for (int64_t t = panels.begin(i); t < panels.begin(i + 1); ++t) {
                sum += static_cast<double>(sweep.best(j)[t]);
                size += std::fabs(static_cast<double>(sweep.best(j)[t]));
              }
              const int64_t tokens = panels.begin(i + 1) - panels.begin(i);
              CHECK(std::fabs(sum - exact) <= sweep_error(p, panels.norm(i), tokens, sweep.norm(j), size));
              if (!has_codes(p)) continue;
              const float* facts = codes.facts.data() + 3 * j;
              const double upper =
                  static_cast<double>(coded.upper(facts, code_sweep.best(j), panels.begin(i), panels.begin(i + 1), i));
              CHECK(upper >= exact);
              // Not loose either: some percent of the lengths.
              const double length = metric == Metric::cosine ? 1.0 : scale * static_cast<double>(width + 8);
              CHECK(upper <= exact + 0.2 * static_cast<double>(tokens) * length);
            }
        }
  });
}

// Codes that are all half a step off, in the direction in which the other side asks, or against it: of the bound then
// nothing is left, or twice the margin.
TEST(maxsim_code_bounds_at_their_worst) {
  for_each_isa([] {
    constexpr int64_t width = 64;
    constexpr double off = 0.49 / 127.0 * (width - 1);
    std::vector<float> odd(2 * width, 60.49f / 127.0f), even(width, 1.0f);
    for (size_t k = width + 1; k < odd.size(); ++k) odd[k] = -odd[k];
    odd[0] = odd[width] = 1.0f;  // says the step
    even[0] = 0.0f;
    const std::vector<int64_t> offsets = {0, 1, 2};
    for (const bool documents : {true, false}) {
      MaxSimProblem p;
      const RowSets two{::rows(odd, width), offsets.data(), 2}, one{::rows(even, width), offsets.data(), 1};
      p.queries = documents ? one : two;
      p.documents = documents ? two : one;
      const std::vector<double> want = scores_of(p);
      const Codes codes(p);
      p.codes = {codes.codes.data(), codes.facts.data()};
      if (!has_codes(p)) return;
      TokenPanels panels;
      CodedQueries coded;
      CodeSweep sweep;
      CHECK(panels.build(p, 0, p.queries.count, threads(1)) == Status::ok);
      CHECK(coded.build(panels, 0, p.queries.count, width) && sweep.reserve(1));
      sweep.run(p, coded, 0, p.documents.count, {});
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t q = documents ? 0 : i, d = documents ? i : 0;
        const double upper = static_cast<double>(coded.upper(codes.facts.data() + 3 * d, sweep.best(d), q, q + 1, q));
        CHECK(upper >= want[static_cast<size_t>(i)]);
        CHECK(upper - want[static_cast<size_t>(i)] < (i == 0 ? 0.05 : 2.05) * off + 1e-3);
      }
    }
  });
}

TEST(maxsim_stops) {
  const Sets q({8}, 16, DType::f32, 1), d(drawn_sizes(50, 20, 1), 16, DType::f32, 2);
  const std::atomic<bool> flag{true};
  Parallel parallel = threads(2);
  parallel.stop.flag = &flag;
  MaxSimProblem p;
  p.queries = q.view, p.documents = d.view;
  std::vector<double> values(50);
  std::vector<int64_t> found(50);
  p.values = values.data(), p.found = found.data(), p.k = 50;
  for (const Metric metric : {Metric::dot, Metric::l2}) {
    p.metric = metric;
    CHECK(maxsim(p, parallel) == Status::stopped);
    CHECK(maxsim_topk(p, parallel) == Status::stopped);
  }
}
