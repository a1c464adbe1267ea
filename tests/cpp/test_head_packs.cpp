// Packs with a head: which matrices are refused, what a header must say, and that packing again in place gives the same
// bytes.
#include <cstddef>
#include <cstring>
#include <limits>

#include "rotations.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

constexpr Metric kScreenedMetrics[] = {Metric::dot, Metric::cosine, Metric::sqeuclidean};

struct Pack {
  Buffer<char> memory;
  int64_t bytes = 0;
  Status status = Status::ok;

  Pack(const std::vector<float>& b, int64_t d, Metric metric, HeadChoice head, int before = 0, int workers = 1,
       const double* bias = nullptr, PanelKind kind = PanelKind::int8) {
    bytes = pack_bytes(static_cast<int64_t>(b.size()) / d, d, metric, bias != nullptr, kind, head.width);
    CHECK(memory.reserve(bytes));
    std::memset(memory.get(), before, static_cast<size_t>(bytes));
    status = pack_bank(rows(b, d), metric, memory.get(), threads(workers), bias, kind, ScreenChoice::automatic, head);
  }
  PackHeader& header() { return *reinterpret_cast<PackHeader*>(memory.get()); }
  bool equals(const Pack& other) const {
    return bytes == other.bytes && std::memcmp(memory.get(), other.memory.get(), static_cast<size_t>(bytes)) == 0;
  }
};

}  // namespace

TEST(a_matrix_that_is_no_rotation_is_refused) {
  for_each_isa([] {
    for (const int64_t d : {2, 17, 100}) {
      const auto bank = gaussian<float>(40 * d, 3);
      const auto packed = [&](const std::vector<float>& q) { return Pack(bank, d, Metric::dot, {1, q.data()}).status; };
      const auto good = rounded(random_rotation(d));
      CHECK(packed(good) == Status::ok);
      for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF, std::numeric_limits<float>::max()})
        for (const size_t at : {size_t{0}, good.size() / 2, good.size() - 1}) {
          auto q = good;
          q[at] = bad;
          CHECK(packed(q) == Status::bad_rotation);
        }
      for (const double scale : {2.0, 0.5, 1.04, 0.96, 0.0, 1e30, 1e-30}) {
        auto q = random_rotation(d);
        for (double& v : q) v *= scale;
        CHECK(packed(rounded(q)) == Status::bad_rotation);
      }
      auto q = good;  // a row twice
      std::copy_n(good.begin(), d, q.end() - d);
      CHECK(packed(q) == Status::bad_rotation);
      auto wide = identity(d);
      wide[0] = 1.0 + 0x1p-7;  // within what is allowed
      CHECK(packed(rounded(wide)) == Status::ok);
      wide[0] = 1.0 + 0x1p-5;
      CHECK(packed(rounded(wide)) == Status::bad_rotation);
    }
  });
}

TEST(headers_of_heads_that_were_tampered_with_are_refused) {
  const int64_t d = 40, head = 16, m = 50;
  const auto bank = gaussian<float>(m * d, 3);
  const auto q = rounded(random_rotation(d));
  Pack pack(bank, d, Metric::dot, {head, q.data()});
  CHECK(pack.status == Status::ok);
  const PackHeader good = pack.header();
  const auto accepted = [&](int64_t bytes) {
    return check_pack(pack.memory.get(), bytes, rows(bank, d), Metric::dot) != nullptr;
  };
  const auto accepts = [&](auto&& change) {
    pack.header() = good;
    change(pack.header());
    const bool found = accepted(pack.bytes);
    pack.header() = good;
    return found;
  };
  CHECK(accepts([](PackHeader&) {}));
  CHECK(good.turn_error > 0.0f && good.turn_error <= kMostTurnError);
  for (const int64_t short_by : {int64_t{1}, pack.bytes / 2, pack.bytes - 8}) CHECK(!accepted(pack.bytes - short_by));
  for (const int64_t wrong : {int64_t{0}, int64_t{-1}, int64_t{-16}, int64_t{1}, head - 4, head + 4, d - 1, d, d + 1,
                              4 * d, int64_t{1} << 30, int64_t{std::numeric_limits<int32_t>::min()}})
    CHECK(!accepts([&](PackHeader& h) { h.head = static_cast<int32_t>(wrong); }));
  for (const size_t at : {offsetof(PackHeader, centre_at), offsetof(PackHeader, norms_at),
                          offsetof(PackHeader, kinds_at), offsetof(PackHeader, rotation_at),
                          offsetof(PackHeader, panels_at), offsetof(PackHeader, tails_at), offsetof(PackHeader, bytes)})
    for (const int64_t by : {int64_t{64}, int64_t{-64}, int64_t{1} << 40, std::numeric_limits<int64_t>::min()})
      CHECK(!accepts([&](PackHeader& h) {
        int64_t value;
        std::memcpy(&value, reinterpret_cast<char*>(&h) + at, sizeof value);
        value = static_cast<int64_t>(static_cast<uint64_t>(value) + static_cast<uint64_t>(by));
        std::memcpy(reinterpret_cast<char*>(&h) + at, &value, sizeof value);
      }));
  for (const float wrong : {std::nanf(""), -std::nanf(""), HUGE_VALF, -HUGE_VALF, -1e-6f, 0.04f, 1.0f})
    CHECK(!accepts([&](PackHeader& h) { h.turn_error = wrong; }));
  for (const PanelKind kind : {PanelKind::float32, PanelKind::float64, static_cast<PanelKind>(7)})
    CHECK(!accepts([&](PackHeader& h) { h.panels = kind; }));
  CHECK(!accepts([](PackHeader& h) { h.bank_code = 0; }));
  CHECK(!accepts([](PackHeader& h) { h.biased = 1; }));

  // A pack without a head is none with one.
  Pack plain(bank, d, Metric::dot, {});
  plain.header().head = static_cast<int32_t>(head);
  CHECK(check_pack(plain.memory.get(), plain.bytes, rows(bank, d), Metric::dot) == nullptr);
}

// Whatever the memory held before, and whoever shares the work.
TEST(equal_banks_have_equal_packs) {
  for_each_isa([] {
    for (const Metric metric : kScreenedMetrics)
      for (const int64_t m : {1, 5, 16, 17, 250})
        for (const int64_t d : {2, 37, 64}) {
          const auto bank = gaussian<float>(m * d, 3);
          const auto q = rounded(random_rotation(d));
          for (const int64_t head : {int64_t{0}, int64_t{1}, d / 2, d - 1}) {
            const HeadChoice choice = head == 0 ? HeadChoice{} : HeadChoice{head, q.data()};
            const Pack one(bank, d, metric, choice, 0), other(bank, d, metric, choice, 0xA5, 3);
            CHECK(one.equals(other));
          }
          const Pack one(bank, d, metric, {}, 0, 1, nullptr, PanelKind::float32),
              other(bank, d, metric, {}, 0xA5, 3, nullptr, PanelKind::float32);
          CHECK(one.equals(other));
        }
  });
}

TEST(rows_of_a_head_that_are_packed_again_have_the_same_bytes) {
  for_each_isa([] {
    const int64_t m = 301;
    for (const Metric metric : kScreenedMetrics)
      for (const int64_t d : {20, 65})
        for (const int64_t head : {int64_t{1}, d / 3, d - 1})
          for (const bool biased : {false, true}) {
            if (biased && metric != Metric::dot) continue;
            auto bank = gaussian<float>(m * d, 3);
            const auto bias = gaussian<double>(m, 4);
            const double* biases = biased ? bias.data() : nullptr;
            const auto q = rounded(random_rotation(d));
            Pack pack(bank, d, metric, {head, q.data()}, 0, 1, biases);
            const std::vector<int64_t> changed = {300, 0, 17, 150, 151, 17};
            for (const int64_t row : changed)
              for (int64_t k = 0; k < d; ++k) {
                float& at = bank[static_cast<size_t>(row * d + k)];
                at = row == 150 ? std::nanf("") : row == 151 ? 3e38f : -0.75f * at + 0.25f;
              }
            bool fit = false;
            CHECK(repack_rows(rows(bank, d), &pack.header(), changed.data(), static_cast<int64_t>(changed.size()),
                              threads(2), biases, &fit) == Status::ok);
            CHECK(fit && pack.header().rewritten == static_cast<int64_t>(changed.size()));
            pack.header().rewritten = 0;
            const Pack anew(bank, d, metric, {head, q.data()}, 0xA5, 1, biases);
            CHECK(pack.equals(anew));
          }
  });
}

TEST(a_head_keeps_its_rotation) {
  for_each_isa([] {
    const int64_t d = 40, m = 130;
    const auto first = gaussian<float>(m * d, 3), second = gaussian<float>(m * d, 4, 1e3, 10.0);
    const auto q = rotation_of(3, d);
    for (const Metric metric : kScreenedMetrics) {
      Pack pack(first, d, metric, {13, q.data()});
      CHECK(pack_bank(rows(second, d), metric, pack.memory.get(), threads(1), nullptr, PanelKind::int8,
                      ScreenChoice::automatic, {13}) == Status::ok);
      CHECK(pack.equals(Pack(second, d, metric, {13, q.data()}, 0xA5)));
    }
  });
}
