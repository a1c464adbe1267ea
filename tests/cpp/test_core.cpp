// The lowest layer: 16-bit floats, sizes beyond 2^31, selection, tiles on every instruction set.
#include <cmath>
#include <set>

#include "check.h"
#include "core/half.h"
#include "core/pack.h"
#include "cpu/kernels.h"
#include "cpu/topk_list.h"

using namespace vecbank;
using namespace vecbank::cpu;

TEST(half_conversions_round_trip_every_value) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Float16 h{static_cast<uint16_t>(bits)};
    const BFloat16 b{static_cast<uint16_t>(bits)};
    const float wide = widened_f32(h), bf16 = widened_f32(b);
    if (std::isnan(wide)) {
      CHECK(std::isnan(widened_f32(to_float16(wide))));
    } else {
      CHECK(to_float16(wide).bits == bits);
    }
    if (!std::isnan(bf16)) CHECK(to_bfloat16(bf16).bits == bits);
  }
}

TEST(half_rounds_to_nearest_even) {
  CHECK(to_float16(1.0f + 0x1p-11f).bits == 0x3c00);      // tie: to even, down
  CHECK(to_float16(1.0f + 3 * 0x1p-11f).bits == 0x3c02);  // tie: to even, up
  CHECK(to_float16(65519.0f).bits == 0x7bff);
  CHECK(to_float16(65520.0f).bits == 0x7c00);
  CHECK(to_float16(0x1p-25f).bits == 0);  // tie with the smallest subnormal
  CHECK(to_float16(0x1.8p-25f).bits == 1);
  CHECK(to_float16(-0x1p-14f).bits == 0x8400);
  CHECK(to_bfloat16(1.0f + 0x1p-8f).bits == 0x3f80);
  CHECK(to_bfloat16(1.0f + 3 * 0x1p-8f).bits == 0x3f82);
}

TEST(sizes_and_addresses_pass_2_to_the_31) {
  const int64_t many = (int64_t{1} << 31) + 17;
  CHECK(pack_bytes(many, 8, Metric::dot) > many * 8 * 4);
  CHECK(pack_bytes(many, 8, Metric::cosine) - pack_bytes(many, 8, Metric::dot) >= many * 8);
  Rows far{nullptr, DType::f32, many, 3, 5, 1};
  CHECK(reinterpret_cast<intptr_t>(far.row(many)) == many * 5 * 4);
  Panels<float> panels{nullptr, many, 3};
  CHECK(reinterpret_cast<intptr_t>(panels.panel(panels.count() - 1)) == (many - 1) / 16 * 6 * 16 * 4);
}

TEST(topk_list_keeps_the_best_and_breaks_ties_low) {
  for (const int64_t k : {1, 3, 64, 700}) {
    TopKList list;
    Selector selector;
    CHECK(list.reserve(k, 5000) && selector.reserve(TopKList::capacity_for(k, 5000)));
    list.clear();
    std::mt19937 random(7);
    std::vector<Scored> all;
    for (int64_t i = 0; i < 5000; ++i) {
      const double key = i % 97 == 0 ? std::nan("") : static_cast<double>(random() % 50);
      list.push(key, i);
      if (!std::isnan(key)) all.push_back({key, i});
    }
    const int64_t count = list.finish(selector);
    std::sort(all.begin(), all.end(), better);
    CHECK(count == k);
    for (int64_t i = 0; i < count; ++i) CHECK(list.data()[i].index == all[static_cast<size_t>(i)].index);
  }
}

TEST(candidate_lists_never_lose_a_possible_winner) {
  std::mt19937 random(3);
  for (const int64_t k : {1, 5, 64, 65, 200}) {
    CandidateLists lists;
    CHECK(lists.reserve(1, k));
    lists.clear(1);
    std::vector<Candidate> all;
    for (int32_t j = 0; j < 4000; ++j) {
      const float middle = static_cast<float>(random() % 100000);
      const Candidate c{middle + 2.0f, middle - 2.0f, j};
      all.push_back(c);
      if (!(c.upper < lists.threshold(0)) && !lists.add(0, c.upper, c.lower, c.column)) lists.fall_back(0);
    }
    int64_t count;
    const Candidate* kept = lists.finish(0, &count);
    if (lists.fell_back(0)) continue;  // allowed, and the caller then refines everything
    std::vector<float> lower;
    for (const auto& c : all) lower.push_back(c.lower);
    std::nth_element(lower.begin(), lower.begin() + (k - 1), lower.end(), std::greater<float>());
    std::set<int32_t> columns;
    for (int64_t i = 0; i < count; ++i) columns.insert(kept[i].column);
    for (const auto& c : all)
      if (c.upper >= lower[static_cast<size_t>(k - 1)]) CHECK(columns.count(c.column) == 1);
  }
}

// Small integers: every order of summation is exact, so a wrong lane, stride or tail changes the result.
TEST(tiles_are_exact_on_integers) {
  for_each_isa([] {
    std::mt19937 random(11);
    for (const int height : kernels().heights)
      for (const int64_t d : {1, 5, 16, 33})
        for (const int64_t columns : {1, 15, 16, 17, 40, 64, 70})
          for (const int64_t n : {1, 2, 5, 14, 15, 29}) {
            const int64_t groups = (n + height - 1) / height, panels = (columns + 15) / 16;
            std::vector<float> q(static_cast<size_t>(groups * (d + 1) * height + 16), 0.0f);
            std::vector<float> b(static_cast<size_t>(panels * (d + 3) * 16), 0.0f);
            for (auto& x : q) x = static_cast<float>(static_cast<int>(random() % 9) - 4);
            for (auto& x : b) x = static_cast<float>(static_cast<int>(random() % 9) - 4);
            const auto expect = [&](int64_t r, int64_t c) {
              const float* panel = &b[static_cast<size_t>(c / 16 * (d + 3) * 16)];
              float sum = panel[c % 16];
              for (int64_t k = 0; k < d; ++k)
                sum += q[static_cast<size_t>(r / height * (d + 1) * height + k * height + r % height)] *
                       panel[(k + 1) * 16 + c % 16];
              return sum;
            };
            std::vector<float> out(static_cast<size_t>(n * columns), -99.0f);
            std::vector<float> scale(static_cast<size_t>(n + 16), 2.0f), term(static_cast<size_t>(n + 16), 1.0f);
            StoreArgs<float> s;
            s.tile = {q.data(),     (d + 1) * height, height,       n, b.data(),
                      (d + 3) * 16, b.data(),         (d + 3) * 16, d, columns};
            s.scale = scale.data();
            s.term = term.data();
            s.out = out.data();
            s.out_stride = columns;
            kernels().store_f32(s);
            for (int64_t r = 0; r < n; ++r)
              for (int64_t c = 0; c < columns; ++c)
                CHECK(out[static_cast<size_t>(r * columns + c)] == 2.0f * expect(r, c) + 1.0f);
          }
  });
}
