// search() among candidate sets, beside a sort of all pairs that a query may be given: by every way and instruction
// set, with every pack, for ranks of every size, over threads, parts and pieces.
#include "drawn_sets.h"
#include "naive_search.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr SearchWay kWays[] = {SearchWay::screened, SearchWay::refined, SearchWay::gathered, SearchWay::automatic};

using Held = std::vector<std::vector<char>>;  // which rows each query may be given

struct Best {
  std::vector<double> values, keys;
  std::vector<int64_t> indices;

  Best(const NaiveScores& scores, const Held& held, int64_t k) {
    for (int64_t q = 0; q < scores.queries(); ++q) {
      const std::vector<Scored> all =
          scores.sorted(q, [&](int64_t j) { return held[static_cast<size_t>(q)][static_cast<size_t>(j)] != 0; });
      for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
        const bool have = i < all.size();
        indices.push_back(have ? all[i].index : -1);
        keys.push_back(have ? all[i].key : -HUGE_VAL);
        values.push_back(have ? value_of(scores.metric(), all[i].key) : worst_value(scores.metric()));
      }
    }
  }
};

void check_search(SearchProblem p, const Best& wanted, int workers, bool keys) {
  std::vector<int64_t> indices(wanted.indices.size(), -7);
  std::vector<double> wide(indices.size(), -7.0);
  std::vector<float> narrow(indices.size(), -7.0f);
  p.indices = indices.data();
  p.keys = keys;
  p.values_dtype = keys ? DType::f64 : DType::f32;
  p.values = keys ? static_cast<void*>(wide.data()) : narrow.data();
  CHECK(search(p, threads(workers)) == Status::ok);
  CHECK(indices == wanted.indices);
  if (keys)
    CHECK(wide == wanted.keys);
  else
    CHECK(std::equal(narrow.begin(), narrow.end(), wanted.values.begin(),
                     [](float got, double value) { return got == static_cast<float>(value); }));
}

// `held`: of the queries of batch `b` of the sets' shape.
Held held_by(const Joined& joined, int64_t b) {
  Held held;
  for (int64_t q = 0; q < joined.shape.queries; ++q) held.push_back(joined.rows_of(b * joined.shape.queries + q));
  return held;
}

// By every way, of one of the sets' batches. Packs and threads are drawn.
void check_every_way(SearchProblem p, const Joined& joined, int64_t b, const NaiveScores& scores,
                     const std::vector<OwnPack>& packs, SetDrawer& draw) {
  const Allowed allowed = joined.allowed().of_batch(b, joined.shape.queries);
  const Best wanted(scores, held_by(joined, b), p.k);
  p.allowed = &allowed;
  const int64_t before = checks_failed;
  for_each_isa([&] {
    for (const SearchWay way : kWays) {
      p.pack =
          packs.empty() ? nullptr : packs[static_cast<size_t>(draw.below(static_cast<int64_t>(packs.size())))].get();
      force_ways(way, ProjectWay::automatic);
      check_search(p, wanted, draw.chance(4) ? 3 : 1, draw.chance(2));
    }
  });
  force_ways(SearchWay::automatic, ProjectWay::automatic);
  if (checks_failed != before)
    std::printf("  metric %d, k %d, width %d\n", static_cast<int>(p.metric), static_cast<int>(p.k),
                static_cast<int>(p.bank.width));
}

std::vector<OwnPack> every_pack(const Rows& bank, Metric metric, const double* bias) {
  std::vector<OwnPack> packs;
  for (int kind = 0; kind < kPackKinds; ++kind) packs.emplace_back(kind, bank, metric, bias);
  return packs;
}

}  // namespace

TEST(search_among_sets_of_every_kind) {
  SetDrawer draw(1);
  for (const int64_t m : {1500, 130, 15, 1})
    for (const int64_t n : {1, 7, 40}) {
      const int64_t d = 12 + draw.below(30);
      const auto x = gaussian<float>(n * d, 2), b = gaussian<float>(m * d, 3);
      const auto bias = gaussian<double>(m, 4);
      for (const Metric metric : kOpMetrics) {
        const double* biased = metric == Metric::dot && draw.chance(2) ? bias.data() : nullptr;
        SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
        p.bias = biased;
        const NaiveScores scores(p.queries, p.bank, metric, biased);
        const std::vector<OwnPack> packs = every_pack(p.bank, metric, biased);
        for (int round = 0; round < 3; ++round) {
          const SetShape shape{1 + draw.below(2), n, m};
          const int64_t sets = 1 + draw.below(3);
          const Joined joined = round < 2
                                    ? alone(draw.draw(kSetKinds[draw.below(kSetKindCount)], shape, round == 0), shape)
                                    : drawn_join(draw, shape, sets, sets, draw.chance(3));
          const int64_t ranks[] = {1, 1, 5, 20, 100, 128, 129, 200, m};
          p.k = std::min({m, ranks[draw.below(9)], int64_t{300}});
          check_every_way(p, joined, draw.below(shape.batches), scores, packs, draw);
        }
      }
    }
}

// So many rows for each query: none, one, some, nearly all, all.
TEST(search_among_few_rows_and_many) {
  SetDrawer draw(2);
  const int64_t n = 25, m = 3000, d = 24;
  auto x = gaussian<float>(n * d, 5), b = gaussian<float>(m * d, 6);
  for (const Metric metric : {Metric::dot, Metric::l2}) {
    SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
    const NaiveScores scores(p.queries, p.bank, metric);
    const std::vector<OwnPack> packs = every_pack(p.bank, metric, nullptr);
    for (const bool shared : {false, true})
      for (const double share : {0.0, 0.0004, 0.01, 0.3, 0.5, 0.9, 1.0, -1.0})  // -1: another one for each query
        for (const int64_t k : {draw.chance(2) ? 1 : 10, draw.chance(2) ? 120 : 200}) {
          const SetShape shape{1, n, m};
          DrawnSet bits;
          bits.set.kind = SetKind::bits;
          bits.set.width = m / 8;
          bits.set.stride = shared ? 0 : m / 8;
          bits.memory.emplace_back((shared ? 1 : n) * m / 8);
          auto* data = bits.memory[0].last<uint8_t>((shared ? 1 : n) * m / 8);
          for (int64_t i = 0; i < (shared ? 1 : n) * m; ++i) {
            const double own = share < 0.0 ? static_cast<double>(i / m) / static_cast<double>(n) : share;
            if (static_cast<double>(draw.random() % 100000) < own * 100000.0)
              data[i / 8] = static_cast<uint8_t>(data[i / 8] | 1 << i % 8);
          }
          bits.set.data = data;
          for (int64_t q = 0; q < n; ++q)
            for (int64_t j = 0; j < m; ++j) {
              const int64_t i = shared ? j : q * m + j;
              bits.held.push_back(data[i / 8] >> i % 8 & 1);
            }
          p.k = k;
          check_every_way(p, alone(std::move(bits), shape), 0, scores, packs, draw);
        }
  }
}

// Rows of every scale, which screens do not see, or see one of for all.
TEST(search_among_rows_of_every_scale) {
  SetDrawer draw(3);
  const int64_t d = 19;
  for (const float scale : {0.0f, 1e-25f, 1e15f, 1e25f, std::numeric_limits<float>::quiet_NaN(), HUGE_VALF})
    for (const int64_t every : {2, 50}) {
      const bool parts = draw.chance(2);  // of the bank
      const int64_t n = parts ? 6 : 20, m = parts ? 2200 : 900;
      auto x = gaussian<float>(n * d, 7), b = gaussian<float>(m * d, 8);
      for (int64_t i = 0; i < d; ++i) x[static_cast<size_t>(i)] = 0.0f, x[static_cast<size_t>(d + i)] *= scale;
      for (int64_t j = 1; j < m; ++j)
        for (int64_t i = 0; i < d && (j % every == 0) == (every == 50); ++i) b[static_cast<size_t>(j * d + i)] *= scale;
      for (const Metric metric : kOpMetrics) {
        SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
        const NaiveScores scores(p.queries, p.bank, metric);
        const std::vector<OwnPack> packs = every_pack(p.bank, metric, nullptr);
        for (const bool shared : {false, true}) {
          const SetShape shape{1, n, m};
          const int64_t ranks[] = {1, 10, 100};
          p.k = ranks[draw.below(3)];
          check_every_way(p, drawn_join(draw, shape, 1 + draw.below(2), 1, shared), 0, scores, packs, draw);
          if (shared) continue;
          // Few rows of each query, all over the bank.
          Joined few = alone(draw.draw(SetKind::rows, shape, true), shape);
          few.add(draw.draw(SetKind::not_self, shape, false));
          few.program = {0, 1, kBoth};
          check_every_way(p, few, 0, scores, packs, draw);
        }
      }
    }
}

TEST(search_among_rows_of_a_strided_bank) {
  SetDrawer draw(4);
  const int64_t n = 12, m = 700, d = 21;
  const auto data = gaussian<double>(2 * m * d, 9), bias = gaussian<double>(m, 10);
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    const OwnRows own(data, d, dtype);
    const Rows banks[] = {{own.rows.data, dtype, m, d, 1, m}, {own.rows.data, dtype, m, d, 2 * d, 1}, own.rows};
    for (Rows bank : banks) {
      bank.count = m;
      for (const Metric metric : kOpMetrics) {
        const double* biased = metric == Metric::dot ? bias.data() : nullptr;
        SearchProblem p;
        p.bank = bank;
        p.queries = {bank.row(3), dtype, n, d, bank.row_stride, bank.col_stride};
        p.metric = metric;
        p.bias = biased;
        p.k = draw.chance(4) ? 3 : 10;
        const NaiveScores scores(p.queries, p.bank, metric, biased);
        const SetShape shape{1, n, m};
        for (const bool shared : {false, true})
          check_every_way(p, drawn_join(draw, shape, 2, 2, shared), 0, scores, {}, draw);
      }
    }
  }
}

namespace {

// The same range for every query, or one that begins a row later for each.
DrawnSet range_of(const SetShape& shape, int64_t from, int64_t to, bool same) {
  DrawnSet drawn;
  const int64_t count = same ? 1 : shape.queries;
  drawn.memory.emplace_back(count * 16);
  auto* ends = drawn.memory[0].last<int64_t>(2 * count);
  for (int64_t q = 0; q < count; ++q) ends[2 * q] = from + q, ends[2 * q + 1] = to;
  drawn.set.kind = SetKind::ranges;
  drawn.set.data = ends;
  drawn.set.width = 2;
  drawn.set.stride = same ? 0 : 2;
  for (int64_t q = 0; q < shape.queries; ++q)
    for (int64_t j = 0; j < shape.rows; ++j) drawn.held.push_back(j >= from + (same ? 0 : q) && j < to);
  return drawn;
}

}  // namespace

// Ranges of all lengths, which begin and end anywhere in a panel, a part and a piece; all of their rows are asked for.
TEST(search_among_ranges) {
  SetDrawer draw(11);
  for (const bool wide : {true, false}) {
    const int64_t n = 3, m = wide ? 1300 : 6000, d = wide ? 1500 : 16;
    auto x = gaussian<float>(n * d, 22), b = gaussian<float>(m * d, 23);
    for (const bool zeros : {false, true}) {
      for (int64_t j = 0; j < m * d && zeros; ++j)
        if (j / d % 9 == 4 || j / d > m - 40) b[static_cast<size_t>(j)] = 0.0f;
      SearchProblem p = problem_of(rows(x, d), rows(b, d), zeros ? Metric::l2 : Metric::dot);
      const NaiveScores scores(p.queries, p.bank, p.metric);
      const SetShape shape{1, n, m};
      const OwnPack pack(1, p.bank, p.metric);
      for (const int64_t length : {3, 70, 200, 600, 1200})
        for (int64_t last = 0; last < 16; last += 5) {
          const int64_t to = last == 15 ? m : (length / 16 + draw.below((m - length) / 16)) * 16 + 16 + (last + 1) % 16;
          const Joined joined =
              alone(range_of(shape, std::min(to, m) - length, std::min(to, m), draw.chance(4)), shape);
          const Allowed allowed = joined.allowed();
          p.k = std::min<int64_t>(length, wide ? 70 : 200);
          const Best wanted(scores, held_by(joined, 0), p.k);
          p.allowed = &allowed;
          p.pack = draw.chance(3) ? pack.get() : nullptr;
          for (const SearchWay way : kWays) {
            force_ways(way, ProjectWay::automatic);
            check_search(p, wanted, draw.chance(2) ? 3 : 1, false);
          }
          force_ways(SearchWay::automatic, ProjectWay::automatic);
        }
    }
  }
}

// Of a plain tensor in several pieces, and of parts of a bank, whose best are merged.
TEST(search_among_rows_in_pieces_and_parts) {
  SetDrawer draw(5);
  for (const bool wide : {true, false}) {
    const int64_t m = wide ? 1300 : 6000, d = wide ? 1500 : 10;
    const auto b = gaussian<float>(m * d, 12);
    for (const Metric metric : {Metric::cosine, Metric::sqeuclidean}) {
      const int64_t n = metric == Metric::cosine ? 5 : 2;
      const auto x = gaussian<float>(n * d, 11);
      SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
      const NaiveScores scores(p.queries, p.bank, metric);
      const SetShape shape{1, n, m};
      for (const bool shared : {false, true})
        for (const int64_t k : {1, 100}) {
          p.k = k;
          check_every_way(p, drawn_join(draw, shape, 2, 2, shared), 0, scores, {}, draw);
          const Joined others[] = {alone(draw.draw(SetKind::bits, shape, shared), shape),
                                   alone(draw.draw_mask(shared ? 1 : 0, shape), shape)};
          for (const Joined& other : others) check_every_way(p, other, 0, scores, {}, draw);
        }
    }
  }
}

// So many queries and ranks that a plain tensor in pieces is searched for some of the queries at a time.
TEST(search_among_sets_of_queries_in_slices) {
  const int64_t n = 1100, m = 25000, d = 64, k = 1040, own = 50;
  const auto x = gaussian<float>(n * d, 20), b = gaussian<float>(m * d, 21);
  std::vector<int64_t> ends, indices(static_cast<size_t>(n * k), -7);
  for (int64_t q = 0; q < n; ++q) ends.push_back(q * 22), ends.push_back(q * 22 + own);
  CandidateSet sets[2];
  sets[0].kind = SetKind::ranges;
  sets[0].data = ends.data();
  sets[0].width = sets[0].stride = 2;
  sets[1].kind = SetKind::not_self;
  const int32_t program[] = {0, 1, kBoth};
  const Allowed allowed{sets, 2, program, 3, m};
  SearchProblem p;
  p.queries = rows(x, d);
  p.bank = rows(b, d);
  p.k = k;
  p.allowed = &allowed;
  p.indices = indices.data();
  force_ways(SearchWay::screened, ProjectWay::automatic);
  CHECK(search(p, threads(2)) == Status::ok);
  force_ways(SearchWay::automatic, ProjectWay::automatic);
  for (int64_t q = 0; q < n; ++q) {
    const NaiveScores scores({&x[static_cast<size_t>(q * d)], DType::f32, 1, d, d, 1},
                             {&b[static_cast<size_t>(q * 22 * d)], DType::f32, own, d, d, 1}, p.metric);
    std::vector<int64_t> wanted;
    for (const Scored& best : scores.sorted(0, [&](int64_t j) { return q * 22 + j != q; }))
      wanted.push_back(q * 22 + best.index);
    wanted.resize(static_cast<size_t>(k), -1);
    CHECK(std::equal(wanted.begin(), wanted.end(), indices.begin() + q * k));
  }
}

// The best row itself, and results that are not asked for.
TEST(search_among_sets_copies_the_best_row) {
  SetDrawer draw(6);
  const int64_t n = 4, m = 20000, d = 8;  // two parts, even of a ninth of the rows
  const auto x = gaussian<float>(n * d, 13), b = gaussian<float>(m * d, 14);
  for (const Metric metric : {Metric::dot, Metric::l2, Metric::l1})
    for (const bool shared : {false, true})
      for (const bool as_mask : {false, true}) {
        SearchProblem p = problem_of(rows(x, d), {b.data(), DType::f32, m, d, 1, m}, metric);
        const NaiveScores scores(p.queries, p.bank, metric);
        const SetShape shape{1, n, m};
        Joined joined = alone(draw.draw_mask(shared ? 1 : 0, shape), shape);
        const bool none = metric == Metric::l2 && !as_mask;
        if (none) joined.program = {0, 0, kNot, kBoth};
        const Allowed allowed = joined.allowed();
        if (as_mask)
          p.mask = joined.sets[0].mask;
        else
          p.allowed = &allowed;
        const Best wanted(scores, held_by(joined, 0), 1);
        for (const SearchWay way : kWays)
          for (const int workers : {1, 4})
            for (const bool indexed : {true, false}) {
              std::vector<float> best(static_cast<size_t>(n * d)), values(static_cast<size_t>(n));
              std::vector<int64_t> indices(static_cast<size_t>(n), -7);
              p.gathered = best.data();
              p.values = values.data();
              p.indices = indexed ? indices.data() : nullptr;
              force_ways(way, ProjectWay::automatic);
              CHECK(search(p, threads(workers)) == Status::ok);
              force_ways(SearchWay::automatic, ProjectWay::automatic);
              CHECK(indices == (indexed ? wanted.indices : std::vector<int64_t>(static_cast<size_t>(n), -7)));
              for (int64_t q = 0; q < n; ++q) {
                const size_t at = static_cast<size_t>(q);
                CHECK(values[at] == static_cast<float>(wanted.values[at]));
                for (int64_t i = 0; i < d; ++i) {
                  const float got = best[at * static_cast<size_t>(d) + static_cast<size_t>(i)];
                  CHECK(wanted.indices[at] < 0 ? std::isnan(got)
                                               : got == b[static_cast<size_t>(i * m + wanted.indices[at])]);
                }
              }
            }
      }
}

TEST(search_of_batches_among_sets) {
  SetDrawer draw(9);
  const int64_t batches = 11, n = 6, m = 90, d = 9, k = 4;
  const auto x = gaussian<float>(batches * n * d, 17), b = gaussian<float>(batches * m * d, 18);
  const SetShape shape{batches, n, m};
  for (int round = 0; round < 20; ++round) {
    const Joined joined = drawn_join(draw, shape, 2, 2, round % 4 == 0);
    std::vector<SearchProblem> problems;
    std::vector<Allowed> allowed;
    std::vector<int64_t> indices(static_cast<size_t>(batches * n * k)), wanted;
    for (int64_t i = 0; i < batches; ++i) allowed.push_back(joined.allowed().of_batch(i, n));
    for (int64_t i = 0; i < batches; ++i) {
      SearchProblem p = problem_of({&x[static_cast<size_t>(i * n * d)], DType::f32, n, d, d, 1},
                                   {&b[static_cast<size_t>(i * m * d)], DType::f32, m, d, d, 1}, Metric::l2);
      p.k = k;
      p.allowed = &allowed[static_cast<size_t>(i)];
      p.indices = &indices[static_cast<size_t>(i * n * k)];
      problems.push_back(p);
      const Best best(NaiveScores(p.queries, p.bank, p.metric), held_by(joined, i), k);
      wanted.insert(wanted.end(), best.indices.begin(), best.indices.end());
    }
    CHECK(search_each(problems.data(), batches, threads(3)) == Status::ok);
    CHECK(indices == wanted);
  }
}

TEST(search_among_sets_of_a_bank_without_rows) {
  SetDrawer draw(10);
  const auto x = gaussian<float>(24, 19);
  for (const SetKind kind : kSetKinds) {
    const SetShape shape{1, 6, 0};
    const Joined joined = alone(draw.draw(kind, shape, false), shape);
    const Allowed allowed = joined.allowed();
    for (const SearchWay way : kWays) {
      SearchProblem p;
      p.queries = rows(x, 4);
      p.bank = {x.data(), DType::f32, 0, 4, 4, 1};
      p.allowed = &allowed;
      force_ways(way, ProjectWay::automatic);
      check_search(p, Best(NaiveScores(p.queries, p.bank, p.metric), Held(6), 1), 2, false);
      p.queries.count = 0;
      CHECK(search(p, threads(2)) == Status::ok);
      force_ways(SearchWay::automatic, ProjectWay::automatic);
    }
  }
}

TEST(search_for_the_farthest_rows) {
  SetDrawer draw(7);
  const int64_t n = 9, m = 600, d = 19;
  auto x = gaussian<float>(n * d, 15), b = gaussian<float>(m * d, 16);
  for (float& v : b) v = std::round(2.0f * v);  // ties
  b[static_cast<size_t>(5 * d)] = std::numeric_limits<float>::quiet_NaN();
  b[static_cast<size_t>(7 * d)] = HUGE_VALF;
  for (const Metric metric : {Metric::l2, Metric::sqeuclidean, Metric::l1, Metric::poincare, Metric::poincare_ratio}) {
    if (metric == Metric::poincare) {  // points of the ball
      for (float& v : x) v *= 0.04f;
      for (float& v : b) v *= 0.02f;
    }
    SearchProblem p = problem_of(rows(x, d), rows(b, d), farthest(metric));
    CHECK(refined_only(p.metric) && value_of(p.metric, 9.0) == value_of(metric, -9.0));
    CHECK(worst_value(p.metric) == -worst_value(metric) && record(p.metric).term == record(metric).term);
    const NaiveScores nearest(p.queries, p.bank, metric), scores(p.queries, p.bank, p.metric);
    for (int64_t q = 0; q < n; ++q)
      for (int64_t j = 0; j < m; ++j) CHECK(scores.key(q, j) == -nearest.key(q, j) || std::isnan(scores.key(q, j)));
    const Held all(static_cast<size_t>(n), std::vector<char>(static_cast<size_t>(m), 1));
    for (const int64_t k : {int64_t{1}, int64_t{30}, m}) {
      p.k = k;
      p.allowed = nullptr;
      for_each_isa([&] { for_each_way([&] { check_search(p, Best(scores, all, k), 3, k == 30); }); });
      const SetShape shape{1, n, m};
      check_every_way(p, drawn_join(draw, shape, 2, 2, draw.chance(2)), 0, scores, {}, draw);
    }
  }
}

TEST(merge_of_keys_is_a_sort) {
  SetDrawer draw(8);
  for (const Metric metric : kOpMetrics)
    for (const int64_t count : {1, 3, 40, 300})
      for (const int64_t n : {0, 1, 130}) {
        std::vector<double> keys(static_cast<size_t>(n * count));
        std::vector<int64_t> indices(keys.size());
        for (size_t i = 0; i < keys.size(); ++i) {
          keys[i] = -static_cast<double>(draw.below(20)) / 4.0;
          if (draw.chance(9)) keys[i] = std::numeric_limits<double>::quiet_NaN();
          if (draw.chance(9)) keys[i] = draw.chance(2) ? -HUGE_VAL : HUGE_VAL;
          if (metric != Metric::dot && metric != Metric::cosine && keys[i] > 0.0) keys[i] = 0.0;
          indices[i] = draw.chance(5) ? -1 : draw.below(1000);
        }
        for (const int64_t k : {int64_t{1}, (count + 1) / 2, count})
          for (const DType dtype : {DType::f32, DType::f64})
            for (const int workers : {1, 3}) {
              SearchProblem p;
              p.metric = metric;
              p.k = k;
              p.queries.count = n;
              std::vector<int64_t> best(static_cast<size_t>(n * k), -7);
              std::vector<double> wide(best.size());
              std::vector<float> narrow(best.size());
              p.indices = best.data();
              p.values = dtype == DType::f64 ? static_cast<void*>(wide.data()) : narrow.data();
              p.values_dtype = dtype;
              CHECK(merge_keys(keys.data(), indices.data(), count, p, threads(workers)) == Status::ok);
              for (int64_t q = 0; q < n; ++q) {
                std::vector<Scored> all;
                for (size_t i = static_cast<size_t>(q * count); i < static_cast<size_t>((q + 1) * count); ++i)
                  if (!std::isnan(keys[i]) && indices[i] >= 0) all.push_back({keys[i], indices[i]});
                std::sort(all.begin(), all.end(), better);
                int64_t wrong = 0;
                for (size_t i = 0; i < static_cast<size_t>(k); ++i) {
                  const size_t at = static_cast<size_t>(q * k) + i;
                  const bool have = i < all.size();
                  const double value = have ? value_of(metric, all[i].key) : worst_value(metric);
                  wrong += best[at] != (have ? all[i].index : -1);
                  wrong += dtype == DType::f64 ? wide[at] != value : narrow[at] != static_cast<float>(value);
                }
                CHECK(wrong == 0);
              }
            }
      }
}
