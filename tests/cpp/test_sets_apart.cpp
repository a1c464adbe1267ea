// Searches whose queries differ in how many rows they may be given: those with few are refined apart from the others, a
// stretch of the bank after the other, and those with many are screened.
#include "cpu/search/among.h"
#include "cpu/search/radius.h"
#include "drawn_sets.h"
#include "naive_search.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr int64_t kQueries = 70, kRows = 12000, kWidth = 32;

// Every third query may be given half of the rows, the others 24 of them, or none.
Joined few_and_many(SetDrawer& draw, SetKind kind) {
  const SetShape shape{1, kQueries, kRows};
  DrawnSet drawn;
  drawn.set.kind = kind;
  for (int64_t q = 0; q < kQueries; ++q)
    for (int64_t j = 0; j < kRows; ++j)
      drawn.held.push_back(q % 3 == 0 ? draw.chance(2) : q % 7 != 0 && draw.chance(500));
  const int64_t width = kind == SetKind::bits ? kRows / 8 : kRows;
  drawn.memory.emplace_back(kQueries * width);
  auto* data = drawn.memory[0].last<uint8_t>(kQueries * width);
  std::fill_n(data, kQueries * width, uint8_t{0});
  for (int64_t i = 0; i < kQueries * kRows; ++i) {
    if (drawn.held[static_cast<size_t>(i)] == 0) continue;
    uint8_t& byte = data[kind == SetKind::bits ? i / 8 : i];
    byte = static_cast<uint8_t>(kind == SetKind::bits ? byte | 1 << i % 8 : 1);
  }
  if (kind == SetKind::bits) {
    drawn.set.data = data;
    drawn.set.width = drawn.set.stride = width;
  } else {
    drawn.set.mask = {reinterpret_cast<bool*>(data), 1};
    CHECK(drawn.set.mask.add_dim(kQueries, kRows));
  }
  return alone(std::move(drawn), shape);
}

}  // namespace

TEST(queries_with_few_rows_are_refined_apart) {
  SetDrawer draw(31);
  const auto x = gaussian<float>(kQueries * kWidth, 1), b = gaussian<float>(kRows * kWidth, 2);
  for (const SetKind kind : {SetKind::bits, SetKind::mask}) {
    const Joined joined = few_and_many(draw, kind);
    const Allowed allowed = joined.allowed();
    SearchProblem p = problem_of(rows(x, kWidth), rows(b, kWidth), Metric::l2);
    p.allowed = &allowed;
    const OwnPack pack(1, p.bank, p.metric);  // without one, so few queries are all refined
    p.pack = pack.get();
    Among among;
    CHECK(among.begin(p, AllowedRows(allowed), threads(2)) == Status::ok && among.split(p));
    const Among::Group &few = among.few(), &many = among.many();
    CHECK(many.count == ceil_div(kQueries, 3) && few.count + many.count == kQueries);
    int64_t wrong = 0;
    for (int64_t i = 0; i < few.count; ++i) wrong += few.queries[i] % 3 == 0;
    for (int64_t i = 0; i < many.count; ++i) wrong += many.queries[i] != 3 * i;
    CHECK(wrong == 0 && few.mean < 60.0 && many.mean > 5000.0);
    // The sets of chosen queries are those of their numbers.
    const AllowedRows rows_of_few = AllowedRows(allowed).of(few.queries), later = rows_of_few.from(2);
    for (int64_t j = 0; j < kRows; ++j) {
      wrong += rows_of_few.allows(3, j) != AllowedRows(allowed).allows(few.queries[3], j);
      wrong += later.allows(1, j) != AllowedRows(allowed).allows(few.queries[3], j);
    }
    CHECK(wrong == 0);
  }
}

// The same bits by every way, for the search and for the radius.
TEST(sets_apart_find_what_every_way_finds) {
  SetDrawer draw(32);
  const auto x = gaussian<float>(kQueries * kWidth, 3), b = gaussian<float>(kRows * kWidth, 4);
  const std::vector<double> radii(static_cast<size_t>(kQueries), 6.5);
  for (const Metric metric : {Metric::l2, Metric::cosine})
    for (const SetKind kind : {SetKind::bits, SetKind::mask}) {
      const Joined joined = few_and_many(draw, kind);
      const Allowed allowed = joined.allowed();
      SearchProblem p = problem_of(rows(x, kWidth), rows(b, kWidth), metric);
      const NaiveScores scores(p.queries, p.bank, metric);
      p.allowed = &allowed;
      p.k = draw.chance(2) ? 1 : 30;
      std::vector<int64_t> wanted;
      for (int64_t q = 0; q < kQueries; ++q) {
        const std::vector<char> held = joined.rows_of(q);
        const std::vector<Scored> best = scores.sorted(q, [&](int64_t j) { return held[static_cast<size_t>(j)] != 0; });
        for (size_t i = 0; i < static_cast<size_t>(p.k); ++i) wanted.push_back(i < best.size() ? best[i].index : -1);
      }
      for (int pack = -1; pack < kPackKinds; ++pack) {
        const OwnPack own(std::max(pack, 0), p.bank, metric);
        p.pack = pack < 0 ? nullptr : own.get();
        std::vector<std::vector<int64_t>> within;
        for (const SearchWay way : {SearchWay::automatic, SearchWay::screened, SearchWay::refined})
          for (const int workers : {1, 3}) {
            force_ways(way, ProjectWay::automatic);
            std::vector<int64_t> found(wanted.size(), -7);
            p.indices = found.data();
            CHECK(search(p, threads(workers)) == Status::ok);
            CHECK(found == wanted);
            Hits hits(workers, kQueries);
            CHECK(find_within(p, radii.data(), false, hits, threads(workers)) == Status::ok);
            std::vector<int64_t> counts;
            for (int64_t q = 0; q < kQueries; ++q) counts.push_back(hits.of(q));
            within.push_back(counts);
          }
        force_ways(SearchWay::automatic, ProjectWay::automatic);
        for (const auto& counts : within) CHECK(counts == within[0]);
        CHECK(*std::max_element(within[0].begin(), within[0].end()) > 0 || metric == Metric::cosine);
      }
    }
}
