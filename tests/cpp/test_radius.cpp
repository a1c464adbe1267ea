// All rows within a radius, beside a loop over all pairs: by screens and without, with every pack, among candidate
// sets, over threads and pieces, and for rows and radii of every scale.
#include "cpu/search/radius.h"

#include <chrono>

#include "drawn_sets.h"
#include "naive_search.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr double inf = HUGE_VAL;

// The hits of every query, as find_within() should give them.
struct Within {
  std::vector<int64_t> offsets{0}, indices;
  std::vector<double> values;

  // `held`: which rows each query may be given; empty: all.
  Within(const NaiveScores& scores, const std::vector<double>& radii, const std::vector<std::vector<char>>& held) {
    const bool distance = record(scores.metric()).smaller_is_better;
    for (int64_t q = 0; q < scores.queries(); ++q) {
      const double radius = radii[static_cast<size_t>(q)];
      for (const Scored& hit : scores.sorted(q, [&](int64_t j) {
             const double value = scores.value(q, j);
             return (distance ? value <= radius : value >= radius) &&
                    (held.empty() || held[static_cast<size_t>(q)][static_cast<size_t>(j)]);
           }))
        indices.push_back(hit.index), values.push_back(value_of(scores.metric(), hit.key));
      offsets.push_back(static_cast<int64_t>(indices.size()));
    }
  }
};

void check_within(const SearchProblem& p, const std::vector<double>& radii, const Within& wanted, int workers) {
  for (const bool count_only : {false, true}) {
    Hits hits(workers, p.queries.count);
    CHECK(find_within(p, radii.data(), count_only, hits, threads(workers)) == Status::ok);
    CHECK(hits.queries() == p.queries.count && hits.complete());
    std::vector<int64_t> offsets{0};
    for (int64_t q = 0; q < p.queries.count; ++q) offsets.push_back(offsets.back() + hits.of(q));
    CHECK(offsets == wanted.offsets);
    if (count_only || offsets != wanted.offsets) continue;
    std::vector<int64_t> indices(wanted.indices.size());
    std::vector<double> wide(indices.size());
    std::vector<float> narrow(indices.size()), rounded(wanted.values.begin(), wanted.values.end());
    CHECK(hits.write(p.metric, offsets.data(), indices.data(), wide.data(), DType::f64, threads(workers)) ==
          Status::ok);
    CHECK(indices == wanted.indices && wide == wanted.values);
    std::fill(indices.begin(), indices.end(), -7);
    CHECK(hits.write(p.metric, offsets.data(), indices.data(), narrow.data(), DType::f32, threads(1)) == Status::ok);
    CHECK(indices == wanted.indices && narrow == rounded);
  }
}

// For each query one of: a value of a pair (none, few, half or all others are within it), the number just short of it,
// and the ends of the range.
std::vector<double> drawn_radii(const NaiveScores& scores, int64_t shift) {
  const bool distance = record(scores.metric()).smaller_is_better;
  std::vector<double> radii;
  for (int64_t q = 0; q < scores.queries(); ++q) {
    const std::vector<Scored> all = scores.sorted(q, [](int64_t) { return true; });
    const auto ranked = [&](size_t rank) {
      return all.empty() ? 0.0 : value_of(scores.metric(), all[std::min(rank, all.size() - 1)].key);
    };
    const double none = distance ? 0.0 : inf, every = distance ? inf : -inf;
    const double choices[] = {ranked(all.size() / 20),
                              0.0,
                              std::nextafter(ranked(all.size() / 20), none),
                              ranked(0),
                              std::nextafter(ranked(0), none),
                              ranked(all.size() / 2),
                              every,
                              distance ? 1e300 : -1e300,
                              distance ? 1e-300 : 1e300,
                              ranked(all.size() - 1),
                              ranked(all.size() - 1 - static_cast<size_t>(q + shift) % 60),
                              distance ? 5e-324 : inf};
    radii.push_back(choices[static_cast<size_t>(q + shift) % (sizeof choices / sizeof *choices)]);
  }
  return radii;
}

struct Data {
  const char* name;
  int64_t d;
  DType dtype;
  double scale, offset;
  std::function<void(std::vector<double>& x, std::vector<double>& b, int64_t d)> change;
};

void each_row(std::vector<double>& v, int64_t d, int64_t first, int64_t every, double times) {
  for (int64_t j = first; j < static_cast<int64_t>(v.size()) / d; j += every)
    for (int64_t k = 0; k < d; ++k) v[static_cast<size_t>(j * d + k)] *= times;
}

std::vector<Data> all_data() {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  using V = std::vector<double>;
  const auto nothing = [](V&, V&, int64_t) {};
  return {
      {"plain", 19, DType::f32, 1.0, 0.0, nothing},
      {"plain, wider", 40, DType::f32, 1.0, 0.0, nothing},
      {"ties", 26, DType::f32, 1.0, 0.0,
       [](V& x, V& b, int64_t) {
         for (double& v : x) v = std::round(v);
         for (double& v : b) v = std::round(v);
       }},
      {"zero rows", 24, DType::f32, 1.0, 0.0,
       [](V& x, V& b, int64_t d) { each_row(x, d, 0, 7, 0.0), each_row(b, d, 3, 5, 0.0); }},
      {"one zero row", 24, DType::f32, 1.0, 0.0, [](V&, V& b, int64_t d) { each_row(b, d, 33, 100000, 0.0); }},
      {"tiny rows among others", 24, DType::f32, 1.0, 0.0,
       [](V& x, V& b, int64_t d) { each_row(x, d, 1, 6, 1e-24), each_row(b, d, 3, 5, 1e-25); }},
      {"far rows", 24, DType::f32, 1.0, 0.0, [](V&, V& b, int64_t d) { each_row(b, d, 5, 60, 1e15); }},
      {"huge rows", 24, DType::f32, 1.0, 0.0,
       [](V& x, V& b, int64_t d) { each_row(x, d, 2, 9, 1e30), each_row(b, d, 5, 60, 1e30); }},
      {"rows that are not finite", 24, DType::f32, 1.0, 0.0,
       [](V& x, V& b, int64_t d) {
         each_row(x, d, 2, 9, nan), each_row(x, d, 4, 9, inf);
         each_row(b, d, 5, 60, nan), each_row(b, d, 6, 60, inf);
         b[static_cast<size_t>(8 * d + 3)] = -inf;
       }},
      {"all rows equal", 24, DType::f32, 1.0, 0.0,
       [](V&, V& b, int64_t d) {
         for (size_t i = static_cast<size_t>(d); i < b.size(); ++i) b[i] = b[i - static_cast<size_t>(d)];
       }},
      {"cancelling", 24, DType::f32, 0.01, 1000.0, nothing},
      {"subnormal", 24, DType::f32, 1e-42, 0.0, nothing},
      {"all but overflowing", 24, DType::f32, 1e37, 0.0, nothing},
      {"bfloat16", 30, DType::bf16, 1.0, 0.0, nothing},
      {"float16", 30, DType::f16, 1.0, 0.5, nothing},
      {"float64", 21, DType::f64, 1.0, 0.0, nothing},
      {"float64, squares that underflow", 9, DType::f64, 1e-160, 0.0, nothing},
      {"float64, squares that overflow", 9, DType::f64, 1e160, 0.0, nothing},
  };
}

}  // namespace

TEST(radius_finds_what_a_loop_finds) {
  SetDrawer draw(1);
  for (const Data& data : all_data()) {
    const bool parts = draw.chance(3);  // of the bank
    const int64_t d = data.d, n = parts ? 1 + draw.below(4) : 23, m = parts ? 2100 : 560 + draw.below(64);
    auto x = gaussian<double>(n * d, 3, data.scale, data.offset),
         b = gaussian<double>(m * d, 4, data.scale, data.offset);
    data.change(x, b, d);
    const OwnRows own_x(x, d, data.dtype), own_b(b, d, data.dtype);
    const SetShape shape{2, n, m};  // the second batch is asked for
    for (const Metric metric : kOpMetrics) {
      const bool biased = metric == Metric::dot && draw.chance(2);
      const auto biases = gaussian<double>(m, 5, data.scale);
      const double* bias = biased ? biases.data() : nullptr;
      const NaiveScores scores(own_x.rows, own_b.rows, metric, bias);
      std::vector<OwnPack> packs;
      for (int kind = 0; kind < kPackKinds; ++kind) packs.emplace_back(kind, own_b.rows, metric, bias);
      for (int among = 0; among < 3; ++among) {  // all rows; a set for all queries; a set of each
        Joined joined;
        std::vector<std::vector<char>> held;
        if (among > 0) {
          joined = drawn_join(draw, shape, 1 + draw.below(2), 1, among == 1);
          if (draw.chance(2)) joined.program.push_back(kNot);
          for (int64_t q = 0; q < n; ++q) held.push_back(joined.rows_of(n + q));
        }
        const Allowed allowed = joined.allowed().of_batch(1, n);
        const std::vector<double> radii = drawn_radii(scores, draw.below(100));
        const Within wanted(scores, radii, held);
        SearchProblem p = problem_of(own_x.rows, own_b.rows, metric);
        p.bias = bias;
        p.allowed = among > 0 ? &allowed : nullptr;
        const int64_t before = checks_failed;
        for_each_isa([&] {
          constexpr SearchWay kOthers[] = {SearchWay::screened, SearchWay::refined, SearchWay::automatic};
          for (const SearchWay way : {SearchWay::screened, kOthers[draw.below(3)]}) {
            force_ways(way, ProjectWay::automatic);
            p.pack = packs[static_cast<size_t>(draw.below(kPackKinds))].get();
            check_within(p, radii, wanted, draw.chance(4) ? 3 : 1);
          }
        });
        force_ways(SearchWay::automatic, ProjectWay::automatic);
        if (checks_failed != before)
          std::printf("  %s, metric %d, sets %d\n", data.name, static_cast<int>(metric), among);
      }
    }
  }
}

namespace {

// By every way, with one worker and three.
void check_every_way(SearchProblem p, const std::vector<double>& radii, const NaiveScores& scores) {
  const Within wanted(scores, radii, {});
  for (const SearchWay way : {SearchWay::screened, SearchWay::refined, SearchWay::automatic}) {
    force_ways(way, ProjectWay::automatic);
    if (way != SearchWay::refined) check_within(p, radii, wanted, 1);
    if (way != SearchWay::automatic) check_within(p, radii, wanted, 3);
  }
  force_ways(SearchWay::automatic, ProjectWay::automatic);
}

}  // namespace

// Distances whose squares, or those of the radius, leave float64.
TEST(radius_of_every_scale) {
  const int64_t d = 3, n = 9, m = 300;
  for (const double scale : {1e-162, 1e-161, 1e-160, 1e-159, 1e-158, 1e-157, 1e-155, 1e-150, 1e-20, 1e20, 1e150, 1e154})
    for (const Metric metric : {Metric::l2, Metric::sqeuclidean, Metric::dot}) {
      const auto x = gaussian<double>(n * d, 1, scale), b = gaussian<double>(m * d, 2, scale);
      SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
      const NaiveScores scores(p.queries, p.bank, metric);
      for (const size_t rank : {0, 1, 2, 10, 50, 150, 299}) {
        std::vector<double> radii;
        for (int64_t q = 0; q < n; ++q)
          radii.push_back(value_of(metric, scores.sorted(q, [](int64_t) { return true; })[rank].key));
        check_every_way(p, radii, scores);
      }
    }
}

TEST(radius_below_zero_finds_no_distance) {
  const int64_t d = 30, n = 9, m = 600;
  const auto x = gaussian<float>(n * d, 1), b = gaussian<float>(m * d, 2);
  for (const Metric metric : kOpMetrics) {
    SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
    const NaiveScores scores(p.queries, p.bank, metric);
    std::vector<double> radii(static_cast<size_t>(n));
    for (const double radius : {-0.0, -1e-300, -0.1, -6.0, -1e10, -inf, std::numeric_limits<double>::quiet_NaN()}) {
      std::fill(radii.begin(), radii.end(), radius);
      check_every_way(p, radii, scores);
    }
  }
}

TEST(radius_of_strided_rows_with_a_pack_of_another_metric) {
  SetDrawer draw(5);
  const int64_t d = 27, n = 20, m = 500;
  const auto x = gaussian<float>(n * d, 1), b = gaussian<float>(2 * m * d, 2);
  const Rows queries[] = {{x.data(), DType::f32, n, d, 1, n}, {x.data(), DType::f32, n / 2, d, 2 * d, 1}};
  const Rows banks[] = {{b.data(), DType::f32, m, d, 1, m}, {b.data(), DType::f32, m, d, 2 * d, 1}};
  for_each_isa([&] {
    for (size_t layout = 0; layout < 2; ++layout)
      for (const Metric metric : kOpMetrics)
        for (int kind = static_cast<int>(draw.below(2)); kind < kPackKinds; kind += 2) {
          SearchProblem p;
          p.queries = queries[layout];
          p.bank = banks[layout];
          const OwnPack pack(kind, p.bank, metric);
          p.pack = pack.get();
          p.metric = metric == Metric::l2 ? Metric::sqeuclidean : metric == Metric::sqeuclidean ? Metric::l2 : metric;
          const NaiveScores scores(p.queries, p.bank, p.metric);
          check_every_way(p, drawn_radii(scores, kind), scores);
        }
  });
}

// A pack keeps its frame when rows are written again, so these lie far out in it, and a radius may reach them.
TEST(radius_of_rows_that_were_written_after_packing) {
  const int64_t d = 24, n = 9, m = 600;
  const auto x = gaussian<float>(n * d, 1);
  for (const Metric metric : {Metric::dot, Metric::l2, Metric::sqeuclidean})
    for (const float zero : {0.0f, 1e-30f, 1.0f}) {
      auto b = gaussian<float>(m * d, 2);
      Buffer<char> memory;
      CHECK(memory.reserve(pack_bytes(m, d, metric)));
      CHECK(pack_bank(rows(b, d), metric, memory.get(), threads(1), nullptr, PanelKind::float32,
                      ScreenChoice::float32) == Status::ok);
      PackHeader& h = *reinterpret_cast<PackHeader*>(memory.get());
      std::vector<int64_t> changed;
      for (int64_t i = 0; i < 40; ++i) {
        changed.push_back(7 + 14 * i);
        const float times = i % 4 == 3 ? zero : std::ldexp(1.0f, static_cast<int>(50 + i / 2));
        for (int64_t k = 0; k < d; ++k) b[static_cast<size_t>(changed.back() * d + k)] *= times;
      }
      bool fit = false;
      CHECK(repack_rows(rows(b, d), &h, changed.data(), 40, threads(1), nullptr, &fit) == Status::ok);
      CHECK(metric == Metric::dot || h.far > 0);
      SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
      p.pack = check_pack(memory.get(), pack_bytes(m, d, metric), p.bank, metric);
      CHECK(p.pack != nullptr);
      const NaiveScores scores(p.queries, p.bank, metric);
      for (int64_t shift = 0; shift < 4; ++shift) {
        check_every_way(p, drawn_radii(scores, shift), scores);
        std::vector<double> radii;  // of one of the farthest rows each
        for (int64_t q = 0; q < n; ++q) {
          const std::vector<Scored> all = scores.sorted(q, [](int64_t) { return true; });
          radii.push_back(value_of(metric, all[all.size() - 1 - static_cast<size_t>(4 * q + shift)].key));
        }
        check_every_way(p, radii, scores);
      }
    }
}

// Blocks of queries of which the first shows that a coarse screen leaves too much.
TEST(radius_of_many_queries_that_coarse_screens_do_not_decide) {
  SetDrawer draw(2);
  const int64_t d = 620, n = 130, m = 330;
  auto x = gaussian<double>(n * d, 1, 0.001, 1.0), b = gaussian<double>(m * d, 2, 0.001, 1.0);
  each_row(x, d, 0, 40, 50.0), each_row(b, d, 0, 50, 50.0);
  const OwnRows own_x(x, d, DType::f32), own_b(b, d, DType::f32);
  for (const Metric metric : {Metric::dot, Metric::l2}) {
    const NaiveScores scores(own_x.rows, own_b.rows, metric);
    const std::vector<double> radii = drawn_radii(scores, 1);
    const Within wanted(scores, radii, {});
    for_each_isa([&] {
      for (int kind = static_cast<int>(draw.below(2)); kind < kPackKinds; kind += 2) {
        SearchProblem p = problem_of(own_x.rows, own_b.rows, metric);
        const OwnPack pack(kind, p.bank, metric);
        p.pack = pack.get();
        force_ways(SearchWay::screened, ProjectWay::automatic);
        check_within(p, radii, wanted, draw.chance(2) ? 1 : 2);
        force_ways(SearchWay::automatic, ProjectWay::automatic);
      }
    });
  }
}

// A plain tensor whose panels take more than a piece may: its rows are as wide as a screen serves.
TEST(radius_in_several_pieces) {
  const int64_t d = 100001, n = 3, m = 125;
  std::vector<double> values(static_cast<size_t>(m * d));
  uint32_t state = 1;
  for (double& v : values)
    v = static_cast<double>(static_cast<int32_t>(state = state * 1664525u + 1013904223u)) * 0x1p-31;
  const OwnRows bank(values, d, DType::bf16);
  const OwnRows queries({values.end() - n * d, values.end()}, d, DType::f32);
  values = {};
  SetDrawer draw(3);
  const SetShape shape{1, n, m};
  for (const Metric metric : {Metric::l2, Metric::cosine}) {
    const NaiveScores scores(queries.rows, bank.rows, metric);
    std::vector<double> radii;
    for (const int64_t q : {0, 1, 2})
      radii.push_back(value_of(metric, scores.sorted(q, [](int64_t) { return true; })[q == 1 ? 124 : 40].key));
    if (metric == Metric::l2) radii[1] = inf;
    const bool square = metric == Metric::l2;
    for (int among = square ? 0 : 1; among < (square ? 4 : 2); ++among) {
      // Any rows; for each query a range that ends in the last piece; few rows of it.
      Joined joined = alone(draw.draw_mask(0, shape), shape);
      std::vector<int64_t> ends{50, 124, 0, 125, 115, 122}, last{100, 116, 123, 124};
      if (among > 1) joined.sets[0] = {.kind = SetKind::ranges, .data = ends.data(), .width = 2, .stride = 2};
      if (among > 2) joined.sets[0] = {.kind = SetKind::rows, .data = last.data(), .width = 4};
      std::vector<std::vector<char>> held;
      for (int64_t q = 0; q < n && among > 0; ++q) {
        held.push_back(joined.rows_of(q));
        for (int64_t j = 0; j < m && among > 1; ++j) {
          const bool in_range = j >= ends[static_cast<size_t>(2 * q)] && j < ends[static_cast<size_t>(2 * q + 1)];
          held.back()[static_cast<size_t>(j)] = among == 2 ? in_range : std::count(last.begin(), last.end(), j) > 0;
        }
      }
      const Allowed allowed = joined.allowed();
      SearchProblem p = problem_of(queries.rows, bank.rows, metric);
      p.allowed = among > 0 ? &allowed : nullptr;
      reset_counters();
      force_ways(SearchWay::screened, ProjectWay::automatic);
      check_within(p, radii, Within(scores, radii, held), among == 1 ? 1 : 2);
      force_ways(SearchWay::automatic, ProjectWay::automatic);
      CHECK(among > 1 || read_counters().bytes > m * d * 2);
    }
  }
}

TEST(radius_of_nothing) {
  const std::vector<float> none, some = gaussian<float>(40, 1);
  const std::vector<double> radii(10, inf);
  for (const bool queries : {false, true})
    for (const bool bank : {false, true})
      for (const int64_t d : {0, 4}) {
        SearchProblem p = problem_of({some.data(), DType::f32, queries ? 10 : 0, d, d, 1},
                                     {some.data(), DType::f32, bank ? 7 : 0, d, d, 1}, Metric::l2);
        const NaiveScores scores(p.queries, p.bank, p.metric);
        check_every_way(p, radii, scores);
      }
}

TEST(stop_ends_a_radius_search) {
  const int64_t d = 30, n = 50, m = 900;
  const auto x = gaussian<float>(n * d, 1), b = gaussian<float>(m * d, 2);
  const std::vector<double> radii(static_cast<size_t>(n), 7.0);
  SetDrawer draw(4);
  const SetShape shape{1, n, m};
  for (const Metric metric : kOpMetrics)
    for (int kind = 0; kind < kPackKinds; ++kind)
      for (int among = 0; among < 3; ++among) {
        SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
        const OwnPack pack(kind, p.bank, metric);
        p.pack = pack.get();
        const Joined joined = alone(draw.draw(SetKind::bits, shape, among == 1), shape);
        const Allowed allowed = joined.allowed();
        p.allowed = among > 0 ? &allowed : nullptr;
        std::vector<int64_t> indices(100, -7);
        std::vector<float> values(100, -7.0f);
        p.k = 2;
        p.indices = indices.data();
        p.values = values.data();
        for (const SearchWay way : {SearchWay::screened, SearchWay::refined, SearchWay::gathered, SearchWay::automatic})
          for (const int workers : {1, 2}) {
            std::atomic<bool> raised{true};
            Parallel parallel = threads(workers);
            parallel.stop.flag = &raised;
            force_ways(way, ProjectWay::automatic);
            Hits hits(workers, n);
            CHECK(find_within(p, radii.data(), workers == 1, hits, parallel) == Status::stopped);
            if (among > 0) CHECK(search(p, parallel) == Status::stopped);
            force_ways(SearchWay::automatic, ProjectWay::automatic);
          }
        CHECK(indices == std::vector<int64_t>(100, -7) && values == std::vector<float>(100, -7.0f));
      }
}

// Raised by another thread while the search runs: it ends early, or it is done.
TEST(stop_in_the_middle_of_a_radius_search) {
  const int64_t d = 64, n = 300, m = 3000;
  const auto x = gaussian<float>(n * d, 1), b = gaussian<float>(m * d, 2);
  const std::vector<double> radii(static_cast<size_t>(n), 11.0);
  for (const SearchWay way : {SearchWay::screened, SearchWay::refined})
    for (const int wait : {0, 100, 1000, 3000}) {
      SearchProblem p = problem_of(rows(x, d), rows(b, d), Metric::l2);
      std::atomic<bool> raised{false};
      Parallel parallel = threads(2);
      parallel.stop.flag = &raised;
      force_ways(way, ProjectWay::automatic);
      Hits hits(2, n);
      std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::microseconds(wait));
        raised = true;
      });
      const Status status = find_within(p, radii.data(), false, hits, parallel);
      other.join();
      CHECK(status == Status::stopped || status == Status::ok);
      force_ways(SearchWay::automatic, ProjectWay::automatic);
    }
}
