// Candidate sets of every kind, and programs that join them: what they say of each row, list, write as bits and promise
// about their number, beside plain tables.
#include "cpu/allowed.h"

#include "drawn_sets.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr int64_t kBankSizes[] = {0, 1, 15, 16, 17, 63, 64, 65, 1000};
constexpr int64_t kRooms[] = {64, 65, 100, 1000};

// Buffers that end where nothing may be written.
struct Room {
  Guarded listed{1000 * 8}, words{200 * 2};
};
Room& room() {
  static Room all;
  return all;
}

void check_list(const AllowedRows& rows, int64_t query, const std::vector<char>& held, SetDrawer& draw) {
  const auto m = static_cast<int64_t>(held.size());
  const int64_t a = draw.below(m + 1), b = draw.below(m + 1);
  const bool all = draw.chance(2);
  const int64_t from = all ? 0 : std::min(a, b), to = all ? m : std::max(a, b);
  const int64_t most = kRooms[draw.below(4)];
  int64_t* out = room().listed.last<int64_t>(most);
  std::vector<int64_t> wanted, found;
  for (int64_t j = from; j < to; ++j)
    if (held[static_cast<size_t>(j)]) wanted.push_back(j);
  int64_t at = from;
  for (;;) {
    const int64_t before = at, count = rows.list(query, &at, to, most, out);
    CHECK(count >= 0 && count <= most && at <= to && (at > before || count == 0));
    found.insert(found.end(), out, out + count);
    if (count == 0 || found.size() > wanted.size()) break;
  }
  CHECK(found == wanted);
  CHECK(at == to);
}

void check_words(const AllowedRows& rows, int64_t query, const std::vector<char>& held, SetDrawer& draw) {
  const auto m = static_cast<int64_t>(held.size());
  const auto same = [&](const uint16_t* words, int64_t first, int64_t count) {
    for (int64_t j = first; j < std::min(m, first + 16 * count); ++j)
      if ((words[(j - first) / 16] >> (j - first) % 16 & 1) != held[static_cast<size_t>(j)]) return false;
    return true;
  };
  const int64_t all = ceil_div(m, 16);
  if (all == 0) return;
  (void)rows.has_words();
  for (const bool whole : {true, false}) {
    const int64_t first = whole ? 0 : draw.below(all);
    const int64_t count = whole ? all : 1 + draw.below(all - first + (draw.chance(4) ? 3 : 0));
    uint16_t* out = room().words.last<uint16_t>(count);
    rows.words(query, 16 * first, count, out);
    CHECK(same(out, 16 * first, count));
    const uint8_t* in_place = nullptr;
    if (rows.words_in_place(query, 1, 16 * first, count, &in_place)) {
      std::memcpy(out, in_place, static_cast<size_t>(2 * count));
      CHECK(same(out, 16 * first, count));
    }
    const auto word = static_cast<uint16_t>(rows.sixteen(query, 16 * first));
    CHECK(same(&word, 16 * first, 1));
  }
}

void check_query(const AllowedRows& rows, int64_t query, const std::vector<char>& held, SetDrawer& draw) {
  const auto m = static_cast<int64_t>(held.size());
  int64_t differ = 0, count = 0, outside = 0;
  const AllowedRows::Extent extent = rows.extent(query);
  for (int64_t j = 0; j < m; ++j) {
    const bool holds = held[static_cast<size_t>(j)];
    differ += rows.allows(query, j) != holds;
    count += holds;
    outside += holds && (j < extent.first || j >= extent.end);
  }
  CHECK(differ == 0);
  CHECK(outside == 0 && count <= extent.most);
  CHECK(0 <= extent.first && extent.first <= extent.end && extent.end <= m && extent.most <= m);
  const double expected = rows.expected(query);
  CHECK(expected >= 0.0 && expected <= static_cast<double>(extent.most));
  check_list(rows, query, held, draw);
  check_words(rows, query, held, draw);
}

// Every query of every batch; its numbers may count from a later one.
void check(const Joined& joined, SetDrawer& draw) {
  const SetShape& shape = joined.shape;
  for (int64_t b = 0; b < shape.batches; ++b) {
    const Allowed of_batch = joined.allowed().of_batch(b, shape.queries);
    const int64_t later = draw.below(shape.queries);
    const AllowedRows rows(of_batch), shifted = draw.chance(2) ? rows.from(later) : AllowedRows(of_batch.from(later));
    CHECK(rows.any_set());
    std::vector<char> first;
    for (int64_t q = 0; q < shape.queries; ++q) {
      const std::vector<char> held = joined.rows_of(b * shape.queries + q);
      if (q == 0) first = held;
      if (rows.shared()) CHECK(held == first);
      check_query(rows, q, held, draw);
      if (q >= later) check_query(shifted, q - later, held, draw);
    }
  }
}

int64_t count_of(const std::vector<char>& held) { return std::count(held.begin(), held.end(), 1); }

}  // namespace

TEST(allowed_rows_of_every_kind_of_set) {
  SetDrawer draw(1);
  for (const int64_t m : kBankSizes)
    for (const SetKind kind : kSetKinds)
      for (int round = 0; round < (m == 1000 ? 6 : 16); ++round) {
        const SetShape shape{1 + draw.below(3), 1 + draw.below(4), m};
        check(alone(draw.draw(kind, shape, round % 2 == 0), shape), draw);
      }
}

TEST(allowed_rows_of_masks_of_any_strides) {
  SetDrawer draw(2);
  for_each_isa([&] {
    for (const int64_t m : kBankSizes)
      for (int variant = 0; variant < kDrawnMasks; ++variant)
        for (int round = 0; round < 3; ++round) {
          const SetShape shape{1 + draw.below(3), 1 + draw.below(4), m};
          check(alone(draw.draw_mask(variant, shape), shape), draw);
        }
  });
}

TEST(allowed_rows_of_programs) {
  SetDrawer draw(3);
  for (int round = 0; round < 400; ++round) {
    const SetShape shape{1 + draw.below(2), 1 + draw.below(3), kBankSizes[draw.below(9)]};
    const int64_t sets = 1 + draw.below(6);
    Joined joined = drawn_join(draw, shape, sets, 1 + draw.below(sets + 2), round % 3 == 0);
    CHECK(is_sound(joined.program.data(), static_cast<int32_t>(joined.program.size()), static_cast<int32_t>(sets)));
    check(joined, draw);
  }
}

// More steps than words() keeps words for, up to the most sets that there may be.
TEST(allowed_rows_of_long_programs) {
  SetDrawer draw(4);
  for (int round = 0; round < 60; ++round) {
    const SetShape shape{1, 1 + draw.below(2), kBankSizes[draw.below(9)]};
    const int64_t names = round % 4 == 0 ? Allowed::kMostSets : 7 + draw.below(20);
    Joined joined = drawn_join(draw, shape, 1 + draw.below(names), names, round % 3 == 0);
    CHECK(is_sound(joined.program.data(), static_cast<int32_t>(joined.program.size()),
                   static_cast<int32_t>(joined.sets.size())));
    check(joined, draw);
  }
}

TEST(one_set_of_several_may_be_all_that_a_program_names) {
  SetDrawer draw(5);
  for (const SetKind kind : kSetKinds)
    for (const SetKind other : kSetKinds) {
      const SetShape shape{1, 2, 100};
      Joined joined = alone(draw.draw(other, shape, false), shape);
      joined.add(draw.draw(kind, shape, false));
      joined.program = {1};
      CHECK(is_sound(joined.program.data(), 1, 2));
      check(joined, draw);
    }
}

// More rows than words() writes at a time.
TEST(words_of_many_rows) {
  SetDrawer draw(6);
  for (int round = 0; round < 24; ++round) {
    const SetShape shape{1, 2, 1024 + draw.below(2000)};
    const int64_t sets = 1 + draw.below(4);
    check(drawn_join(draw, shape, sets, sets, false), draw);
  }
}

TEST(expected_rows_are_exact_where_they_are_numbered) {
  SetDrawer draw(7);
  for (const int64_t m : kBankSizes)
    for (int round = 0; round < 40; ++round) {
      const SetShape shape{1, 3, m};
      const SetKind kind = kSetKinds[draw.below(kSetKindCount)];
      const Joined joined = alone(draw.draw(kind, shape, draw.chance(2)), shape);
      const AllowedRows rows(joined.allowed());
      for (int64_t q = 0; q < 3; ++q) {
        const auto count = static_cast<double>(count_of(joined.rows_of(q)));
        const double expected = rows.expected(q);
        const bool distinct = joined.drawn[0].distinct;
        if (kind == SetKind::ranges || kind == SetKind::same) CHECK(expected == count);
        if ((kind == SetKind::rows || kind == SetKind::exclude) && distinct) CHECK(expected == count);
        if (kind == SetKind::exclude) CHECK(expected <= count);
        if (kind == SetKind::not_self) CHECK(expected >= count - 1.0 && expected <= count);
        if (kind == SetKind::mask || kind == SetKind::bits) CHECK(expected <= static_cast<double>(m));
      }
    }
}

TEST(expected_rows_of_a_sample_are_close) {
  SetDrawer draw(8);
  const SetShape shape{1, 40, 3000};
  for (int round = 0; round < 20; ++round) {
    const bool shared = round % 2 == 0;
    const SetKind kind = round % 4 < 2 ? SetKind::bits : SetKind::mask;
    Joined joined = alone(draw.draw(kind, shape, shared), shape);
    if (round % 3 == 0) {  // of a range
      joined.add(draw.draw(SetKind::ranges, shape, shared));
      joined.program = {0, 1, kBoth};
    }
    const AllowedRows rows(joined.allowed());
    std::vector<float> found(static_cast<size_t>(shape.queries), -1.0f);
    CHECK(expect_rows(rows, shape.queries, threads(3), found.data()) == Status::ok);
    double off = 0.0;
    for (int64_t q = 0; q < shape.queries; ++q) {
      const double expected = rows.expected(q), most = static_cast<double>(rows.extent(q).most);
      CHECK(found[static_cast<size_t>(q)] == static_cast<float>(expected));
      CHECK(expected >= 0.0 && expected <= most);
      off += (expected - static_cast<double>(count_of(joined.rows_of(q)))) / std::max(most, 1.0);
    }
    CHECK(std::fabs(off) <= 0.1 * static_cast<double>(shape.queries));
  }
}

TEST(no_set_allows_every_row) {
  const AllowedRows all;
  CHECK(!all.any_set() && all.shared() && !all.has_words() && !all.is_mask());
  CHECK(all.allows(0, 0) && all.allows(7, 123456789));
  Stop stop;
  std::atomic<bool> raised{true};
  Parallel stopped = threads(2);
  stopped.stop.flag = &raised;
  SetDrawer draw(9);
  const SetShape shape{1, 100, 50};
  const Joined joined = alone(draw.draw(SetKind::bits, shape, false), shape);
  std::vector<float> found(100, -1.0f);
  CHECK(expect_rows(AllowedRows(joined.allowed()), 100, stopped, found.data()) == Status::stopped);
  CHECK(found == std::vector<float>(100, -1.0f));
}

// The last byte of every query's bits is the last of the memory, and so is the last bool of a mask.
TEST(nothing_beyond_the_last_byte_is_read) {
  SetDrawer draw(10);
  for (int64_t m = 1; m < 200; m += 1 + m / 40) {
    const int64_t bytes = ceil_div(m, 8);
    const Guarded bits(bytes), bools(m);
    auto* packed = bits.last<uint8_t>(bytes);
    auto* plain = bools.last<bool>(m);
    std::vector<char> held;
    std::fill_n(packed, bytes, uint8_t{0});
    for (int64_t j = 0; j < m; ++j) {
      held.push_back(draw.chance(2));
      plain[j] = held.back() != 0;
      packed[j / 8] = static_cast<uint8_t>(packed[j / 8] | held.back() << j % 8);
    }
    CandidateSet sets[2];
    sets[0].kind = SetKind::bits;
    sets[0].data = packed;
    sets[0].width = bytes;
    sets[1].mask = {plain, 1};
    const int32_t alone = 0, both[] = {0, 1, kBoth}, nots[] = {0, kNot};
    std::vector<char> others;
    for (const char holds : held) others.push_back(!holds);
    for (int which = 0; which < 2; ++which) {
      check_query(AllowedRows(Allowed{sets + which, 1, &alone, 1, m}), 0, held, draw);
      check_query(AllowedRows(Allowed{sets + which, 1, nots, 2, m}), 0, others, draw);
    }
    check_query(AllowedRows(Allowed{sets, 2, both, 3, m}), 0, held, draw);
    if (m % 16 == 0) {
      const AllowedRows rows(Allowed{sets, 1, &alone, 1, m});
      const uint8_t* at = nullptr;
      CHECK(rows.words_in_place(0, 1, 0, m / 16, &at) && at == packed);
      CHECK(rows.words_in_place(0, 1, m - 16, 1, &at) && at == packed + (m - 16) / 8);
      CHECK(!rows.words_in_place(0, 1, m - 16, 2, &at));  // there is no such memory
    }
  }
}

// The ops check that lists lie in the bank, not that they ascend: such a set holds some rows, and nothing else happens.
TEST(lists_that_do_not_ascend_end) {
  SetDrawer draw(13);
  for (int round = 0; round < 300; ++round) {
    const int64_t m = kBankSizes[draw.below(9)], n = 3;
    const SetShape shape{1, n, m};
    const SetKind kinds[] = {SetKind::rows, SetKind::exclude, SetKind::same};
    Joined joined = alone(draw.draw(kinds[round % 3], shape, false), shape);
    if (draw.chance(3)) {
      joined.add(draw.draw(kSetKinds[draw.below(kSetKindCount)], shape, false));
      joined.program = {0, 1, draw.chance(2) ? kBoth : kEither};
    }
    CandidateSet& set = joined.sets[0];
    const auto shuffle = [&](const int64_t* listed, int64_t count) {
      for (int64_t i = count; i-- > 1;)
        std::swap(const_cast<int64_t*>(listed)[i], const_cast<int64_t*>(listed)[draw.below(i + 1)]);
    };
    if (set.kind == SetKind::same)
      shuffle(set.by_label, m);
    else
      for (int64_t q = 0; q < n; ++q) shuffle(static_cast<const int64_t*>(set.data) + q * set.stride, set.width);
    const AllowedRows rows(joined.allowed());
    const Guarded words(2 * ceil_div(m, 16));
    for (int64_t q = 0; q < n; ++q) {
      const AllowedRows::Extent extent = rows.extent(q);
      CHECK(0 <= extent.first && extent.first <= extent.end && extent.end <= m);
      CHECK(rows.expected(q) >= 0.0);
      int64_t at = 0, last = -1, total = 0;
      int64_t* out = room().listed.last<int64_t>(64);
      while (const int64_t count = rows.list(q, &at, m, 64, out)) {
        for (int64_t i = 0; i < count; last = out[i++]) CHECK(out[i] > last && out[i] < m);
        total += count;
        if (total > m) break;
      }
      CHECK(total <= m && at == m);
      if (m > 0) rows.words(q, 0, ceil_div(m, 16), words.last<uint16_t>(ceil_div(m, 16)));
    }
  }
}

TEST(sets_that_all_queries_share) {
  SetDrawer draw(11);
  const SetShape shape{2, 3, 40};
  for (int variant = 0; variant < kDrawnMasks; ++variant) {
    const bool shared = variant == 1 || variant == 2 || variant == 4 || variant == 7;
    const Joined joined = alone(draw.draw_mask(variant, shape), shape);
    CHECK(AllowedRows(joined.allowed()).shared() == shared);
  }
  for (const SetKind kind : kSetKinds) {
    if (kind == SetKind::mask) continue;
    for (const bool shared : {true, false}) {
      const Joined joined = alone(draw.draw(kind, shape, shared), shape);
      const bool same = shared || joined.allowed().sets[0].stride == 0;  // as where a set lists nothing
      CHECK(AllowedRows(joined.allowed()).shared() == (same && kind != SetKind::not_self));
    }
  }
}

TEST(sound_programs) {
  const auto sound = [](const std::vector<int32_t>& program, int32_t sets) {
    return is_sound(program.data(), static_cast<int32_t>(program.size()), sets);
  };
  CHECK(sound({0}, 1) && sound({1}, 2) && sound({0, 0, kBoth}, 1) && sound({0, kNot}, 1));
  CHECK(sound({0, kNot, kNot, kNot}, 1) && sound({0, 1, kEither, kNot, 2, kBoth}, 3));
  CHECK(sound({0, 1, 2, kBoth, kEither}, 3));
  CHECK(!sound({}, 0) && !sound({}, 3));
  CHECK(!sound({0}, 0) && !sound({1}, 1) && !sound({64}, 64));
  CHECK(!sound({-4}, 1) && !sound({std::numeric_limits<int32_t>::min()}, 1) && !sound({0, -4}, 1));
  CHECK(!sound({std::numeric_limits<int32_t>::max()}, 1));
  CHECK(!sound({kNot}, 1) && !sound({kBoth}, 1) && !sound({kEither}, 1) && !sound({kNot, 0}, 1));
  CHECK(!sound({0, kBoth}, 1) && !sound({0, kEither}, 1) && !sound({0, kBoth, 0}, 1) && !sound({0, kNot, kBoth}, 1));
  CHECK(!sound({0, 0}, 1) && !sound({0, 0, kNot}, 1) && !sound({0, 0, kBoth, 0}, 1) && !sound({0, 0, kBoth, kBoth}, 1));
  for (const int32_t names : {1, 63, 64, 65, 100}) {
    std::vector<int32_t> left{0}, right{0};
    for (int32_t i = 1; i < names; ++i) left.push_back(i), left.push_back(kBoth), right.push_back(i);
    for (int32_t i = 1; i < names; ++i) right.push_back(kEither);
    CHECK(sound(left, names) == (names <= Allowed::kMostSets));
    CHECK(sound(right, names) == (names <= Allowed::kMostSets));
  }
  // Sets that no step names count too, as each has a place of its own.
  CHECK(!sound({80}, 100));
  SetDrawer draw(12);
  for (int round = 0; round < 300; ++round) {
    const int64_t names = 1 + draw.below(30), sets = 1 + draw.below(names);
    std::vector<int32_t> program = drawn_program(draw, names, sets);
    CHECK(sound(program, static_cast<int32_t>(sets)));
    program.push_back(draw.chance(2) ? kBoth : 0);
    CHECK(!sound(program, static_cast<int32_t>(sets)));
    program.resize(program.size() - 1);
    program.insert(program.begin(), 0);
    CHECK(!sound(program, static_cast<int32_t>(sets)));
  }
}
