// Retrieval with sparse vectors: scores and lists by the dense product, gradients, and lists that nobody made.
#include <algorithm>
#include <utility>

#include "check.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

// Documents drawn from a seed, as a dense matrix and as inverted lists.
struct Documents {
  int64_t count, terms;
  std::vector<float> dense;
  std::vector<int64_t> offsets{0}, ids, starts, order;
  std::vector<int32_t> listed;
  std::vector<float> weights;  // in the order of the lists

  Documents(int64_t documents, int64_t width, unsigned seed)
      : count(documents),
        terms(width),
        dense(static_cast<size_t>(documents * width)),
        starts(static_cast<size_t>(width + 1)) {
    std::mt19937 draw(seed);
    std::vector<float> given;
    for (int64_t d = 0; d < count; ++d) {
      for (int64_t t = terms - 1; t >= 0; --t) {  // rows need not ascend
        if (d % 7 == 0 || draw() % 4 != 0) continue;
        given.push_back(static_cast<float>(draw() % 2001) / 1000.0f - 1.0f);
        dense[static_cast<size_t>(d * terms + t)] = given.back();
        ids.push_back(t);
      }
      offsets.push_back(static_cast<int64_t>(ids.size()));
    }
    listed.resize(ids.size());
    order.resize(ids.size());
    InvertProblem p = problem();
    CHECK(invert(p, threads(1)) == Status::ok);
    for (const int64_t i : order) weights.push_back(given[static_cast<size_t>(i)]);
  }
  InvertProblem problem() {
    InvertProblem p;
    p.offsets = offsets.data(), p.ids = ids.data();
    p.documents = count, p.terms = terms, p.entries = static_cast<int64_t>(ids.size());
    p.starts = starts.data(), p.listed = listed.data(), p.order = order.data();
    return p;
  }
  InvertedLists lists() const { return {starts.data(), listed.data(), weights.data(), DType::f32, terms, count}; }
};

struct Queries {
  int64_t count, width;
  std::vector<int64_t> ids;
  std::vector<float> weights;

  Queries(int64_t n, int64_t each, int64_t terms, unsigned seed) : count(n), width(each) {
    std::mt19937 draw(seed);
    for (int64_t i = 0; i < n * each; ++i) {
      ids.push_back(static_cast<int64_t>(draw() % static_cast<unsigned>(terms + 1)) - 1);
      weights.push_back(static_cast<float>(draw() % 2001) / 1000.0f - 1.0f);
    }
  }
  SparseQueries view() const { return {ids.data(), weights.data(), count, width}; }
  std::vector<double> scores(const Documents& documents) const {
    std::vector<double> sums(static_cast<size_t>(count * documents.count));
    for (int64_t q = 0; q < count; ++q)
      for (int64_t d = 0; d < documents.count; ++d)
        for (int64_t j = q * width; j < (q + 1) * width; ++j) {
          const int64_t t = ids[static_cast<size_t>(j)];
          if (t < 0) continue;
          const auto held = static_cast<double>(documents.dense[static_cast<size_t>(d * documents.terms + t)]);
          sums[static_cast<size_t>(q * documents.count + d)] +=
              static_cast<double>(weights[static_cast<size_t>(j)]) * held;
        }
    return sums;
  }
};

}  // namespace

TEST(sparse_scores_and_lists_are_those_of_the_dense_product) {
  for (const int64_t m : {1, 50, 4096, 40000}) {
    const Documents documents(m, 13, 1);
    const Queries queries(m == 50 ? 90 : 3, 5, 13, 2);
    const std::vector<double> sums = queries.scores(documents);
    const int64_t k = std::min<int64_t>(m, 40);
    for (const int workers : {1, 3}) {
      SparseSearchProblem p;
      p.queries = queries.view();
      p.lists = documents.lists();
      std::vector<float> all(sums.size(), -7.0f);
      p.values = all.data();
      CHECK(sparse_search(p, threads(workers)) == Status::ok);
      for (size_t i = 0; i < all.size(); ++i) CHECK(all[i] == static_cast<float>(sums[i]));
      std::vector<float> values(static_cast<size_t>(queries.count * k));
      std::vector<int64_t> indices(values.size()), best(static_cast<size_t>(m));
      p.k = k, p.values = values.data(), p.indices = indices.data();
      CHECK(sparse_search(p, threads(workers)) == Status::ok);
      for (int64_t q = 0; q < queries.count; ++q) {
        const double* own = sums.data() + q * m;
        for (int64_t d = 0; d < m; ++d) best[static_cast<size_t>(d)] = d;
        std::stable_sort(best.begin(), best.end(), [&](int64_t a, int64_t b) { return own[a] > own[b]; });
        for (int64_t r = 0; r < k; ++r) {
          CHECK(indices[static_cast<size_t>(q * k + r)] == best[static_cast<size_t>(r)]);
          CHECK(values[static_cast<size_t>(q * k + r)] == static_cast<float>(own[best[static_cast<size_t>(r)]]));
        }
      }
    }
  }
}

TEST(sparse_searches_among_few_and_many_rows_are_ranked_as_if_there_were_no_others) {
  const int64_t m = 20000, k = 30;
  const Documents documents(m, 13, 8);
  const Queries queries(2, 5, 13, 9);
  const std::vector<double> sums = queries.scores(documents);
  for (const int64_t step : {int64_t{1}, int64_t{3}, int64_t{700}}) {
    std::vector<int64_t> rows;
    for (int64_t d = 5000; d < m; d += step) rows.push_back(d);
    rows.push_back(m + 5);  // none
    CandidateSet set;
    set.kind = SetKind::rows, set.data = rows.data(), set.width = static_cast<int64_t>(rows.size());
    const int32_t program = 0;
    const Allowed allowed{&set, 1, &program, 1, m};
    std::vector<float> values(static_cast<size_t>(2 * k));
    std::vector<int64_t> indices(values.size());
    SparseSearchProblem p;
    p.queries = queries.view(), p.lists = documents.lists(), p.k = k, p.allowed = &allowed;
    p.values = values.data(), p.indices = indices.data();
    CHECK(sparse_search(p, threads(2)) == Status::ok);
    for (int64_t q = 0; q < 2; ++q) {
      const double* own = sums.data() + q * m;
      std::vector<int64_t> best(rows.begin(), rows.end() - 1);
      std::stable_sort(best.begin(), best.end(), [&](int64_t a, int64_t b) { return own[a] > own[b]; });
      best.resize(static_cast<size_t>(std::max<int64_t>(k, static_cast<int64_t>(best.size()))), -1);
      for (int64_t r = 0; r < k; ++r) CHECK(indices[static_cast<size_t>(q * k + r)] == best[static_cast<size_t>(r)]);
    }
  }
}

TEST(sparse_gradients_of_all_scores_and_of_chosen_ones_agree) {
  const Documents documents(60, 9, 3);
  const Queries queries(8, 4, 9, 4);
  const int64_t m = documents.count;
  std::vector<float> grad(static_cast<size_t>(queries.count * m), 0.0f), some;
  std::vector<int64_t> chosen;
  for (int64_t q = 0; q < queries.count; ++q)
    for (const int64_t d : {q, q + 20, int64_t{59}}) {
      chosen.push_back(d);
      some.push_back(static_cast<float>(d + 1));
      grad[static_cast<size_t>(q * m + d)] = some.back();
    }
  std::vector<float> of_queries[2], of_lists[2];
  for (const int way : {0, 1}) {
    of_queries[way].assign(queries.ids.size(), -7.0f);
    of_lists[way].assign(documents.weights.size(), -7.0f);
    SparseGradientProblem p;
    p.queries = queries.view();
    p.lists = documents.lists();
    p.grad = way == 0 ? grad.data() : some.data();
    p.indices = way == 0 ? nullptr : chosen.data();
    p.k = 3;
    p.grad_queries = of_queries[way].data(), p.grad_lists = of_lists[way].data();
    CHECK(sparse_gradients(p, threads(2)) == Status::ok);
  }
  CHECK(of_queries[0] == of_queries[1] && of_lists[0] == of_lists[1]);
  CHECK(std::any_of(of_lists[0].begin(), of_lists[0].end(), [](float g) { return g != 0.0f; }));
}

TEST(rows_that_cannot_be_inverted_are_named) {
  Documents documents(30, 9, 5);
  const auto at = static_cast<size_t>(documents.offsets[12]);
  CHECK(documents.offsets[13] >= documents.offsets[12] + 2);
  for (const int64_t wrong : {int64_t{9}, int64_t{-1}, INT64_MAX, INT64_MIN, documents.ids[at + 1]}) {
    const int64_t before = std::exchange(documents.ids[at], wrong);
    InvertProblem p = documents.problem();
    CHECK(invert(p, threads(1)) == Status::bad_index);
    CHECK(p.wrong_document == 12 && p.wrong_term == wrong);
    documents.ids[at] = before;
  }
}

TEST(lists_out_of_order_touch_nothing_outside) {
  const std::vector<int64_t> starts{0, 9, 18}, ids{0, 1, 1};
  const std::vector<int32_t> listed{5,         9, -3, INT32_MAX, 4095, 4096, 0, 99, 7,  // of term 0
                                    INT32_MIN, 1, 1,  8191,      4097, 3,    2, 0,  -1};
  const std::vector<float> weights(18, 1.0f), asked(3, 1.0f);
  for (const int64_t m : {1, 10, 4097, 20000}) {
    const InvertedLists lists{starts.data(), listed.data(), weights.data(), DType::f32, 2, m};
    const SparseQueries queries{ids.data(), asked.data(), 1, 3};
    std::vector<float> values(static_cast<size_t>(m)), of_queries(3), of_lists(18);
    std::vector<int64_t> indices(static_cast<size_t>(m));
    SparseSearchProblem p;
    p.queries = queries, p.lists = lists, p.values = values.data();
    CHECK(sparse_search(p, threads(2)) == Status::ok);
    p.k = m, p.indices = indices.data();
    CHECK(sparse_search(p, threads(2)) == Status::ok);
    for (const int64_t i : indices) CHECK(i >= 0 && i < m);
    SparseGradientProblem g;
    g.queries = queries, g.lists = lists, g.grad = values.data();
    g.grad_queries = of_queries.data(), g.grad_lists = of_lists.data();
    CHECK(sparse_gradients(g, threads(2)) == Status::ok);
    g.indices = indices.data(), g.k = m;
    CHECK(sparse_gradients(g, threads(2)) == Status::ok);
  }
}

TEST(sparse_searches_stop) {
  const Documents documents(200, 9, 6);
  const Queries queries(8, 4, 9, 7);
  std::vector<float> values(static_cast<size_t>(queries.count * documents.count));
  const std::atomic<bool> raised{true};
  Parallel parallel = threads(2);
  parallel.stop.flag = &raised;
  SparseSearchProblem p;
  p.queries = queries.view(), p.lists = documents.lists(), p.values = values.data();
  CHECK(sparse_search(p, parallel) == Status::stopped);
  Documents again(200, 9, 6);
  InvertProblem rows = again.problem();
  CHECK(invert(rows, parallel) == Status::stopped);
}
