// search() with a pack that has a head, beside search() without a pack: the same answers, over threads and parts, where
// the head decides and where it gives up.
#include <cstring>

#include "rotations.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr int64_t kWidth = 40, kHead = 12;

// Rows most of whose length lies in the head, or beyond it, once they are turned. Some are equal, zero, or not finite.
std::vector<float> turned_rows(int64_t rows, const std::vector<float>& q, bool beyond, uint32_t seed) {
  auto v = gaussian<double>(rows * kWidth, seed);
  for (size_t i = 0; i < v.size(); ++i) {
    const bool in_head = i % kWidth < kHead;
    if (in_head == beyond) v[i] *= 0.03;
    if (i / kWidth % 50 == 7) v[i] = v[i % kWidth];
    if (i / kWidth % 400 == 11) v[i] = 0.0;
  }
  auto turned = turned_back(v, q, kWidth);
  for (int64_t r = 20; r < rows; r += 701) turned[static_cast<size_t>(r * kWidth)] = r % 2 == 0 ? std::nanf("") : 3e38f;
  return turned;
}

struct Answer {
  std::vector<float> values, gathered;
  std::vector<int64_t> indices;

  Answer(SearchProblem p, const void* pack, int workers) {
    const size_t all = static_cast<size_t>(p.queries.count * p.k);
    values.resize(all);
    indices.resize(all);
    gathered.resize(static_cast<size_t>(p.queries.count * p.bank.width));
    p.values = values.data();
    p.indices = indices.data();
    p.gathered = gathered.data();
    p.pack = static_cast<const PackHeader*>(pack);
    force_ways(SearchWay::screened, ProjectWay::automatic);
    CHECK(search(p, threads(workers)) == Status::ok);
    force_ways(SearchWay::automatic, ProjectWay::automatic);
  }
  bool equals(const Answer& other) const {
    return indices == other.indices && std::memcmp(values.data(), other.values.data(), values.size() * 4) == 0 &&
           std::memcmp(gathered.data(), other.gathered.data(), gathered.size() * 4) == 0;
  }
};

}  // namespace

TEST(search_with_a_head_equals_search_without) {
  for_each_isa([] {
    const auto q = rotation_of(3, kWidth);
    for (const bool beyond : {false, true})
      for (const int64_t m : {9, 100, 5003}) {
        const auto b = turned_rows(m, q, beyond, 2);
        std::vector<char> allowed(static_cast<size_t>(m));
        for (size_t j = 0; j < allowed.size(); ++j) allowed[j] = j % 3 != 1;
        const auto bias = gaussian<double>(m, 4);
        for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean})
          for (const bool biased : {false, true}) {
            if (biased && metric != Metric::dot) continue;
            SearchProblem p;
            p.bank = rows(b, kWidth);
            p.metric = metric;
            p.bias = biased ? bias.data() : nullptr;
            Buffer<char> pack;
            const int64_t bytes = pack_bytes(m, kWidth, metric, biased, PanelKind::int8, kHead);
            CHECK(pack.reserve(bytes) && pack_bank(p.bank, metric, pack.get(), threads(3), p.bias, PanelKind::int8,
                                                   ScreenChoice::automatic, {kHead, q.data()}) == Status::ok);
            CHECK(check_pack(pack.get(), bytes, p.bank, metric, biased) != nullptr);
            for (const int64_t n : {1, 5, 70})
              for (const int64_t k : {1, 10, 150})
                for (const bool masked : {false, true}) {
                  if (k > m || (masked && k == 1) || (n == 70 && k == 150)) continue;
                  const auto x = turned_rows(n, q, beyond, 3);
                  p.queries = rows(x, kWidth);
                  p.k = k;
                  p.mask = masked ? Mask{reinterpret_cast<const bool*>(allowed.data()), 1} : Mask{};
                  if (masked) CHECK(p.mask.add_dim(n, 0));
                  const Answer want(p, nullptr, 1);
                  for (const int workers : {1, 3}) {
                    reset_counters();
                    CHECK(Answer(p, pack.get(), workers).equals(want));
                    const Counters seen = read_counters();
                    CHECK(seen.queries == n && (k * 8 >= m ? seen.pairs == 0 : seen.screened[0] >= n));
                    if (m < 1000 || n < 70 || k > 1 || workers > 1) continue;
                    const bool gave_up = seen.screened[2] + seen.screened[3] > 0;
                    CHECK(gave_up == beyond && (beyond || 3 * seen.dimensions < 2 * seen.pairs * kWidth));
                  }
                }
          }
      }
  });
}
