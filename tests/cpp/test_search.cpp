// search() and project() against brute force in the contract's order, over threads, splits and adversarial inputs.
#include <cmath>
#include <limits>

#include "check.h"
#include "core/bounds.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/topk_list.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

double ordered(const float* x, const float* b, int64_t d, Term term) {
  double lane[8] = {};
  for (int64_t i = 0; i < d; ++i) {
    const double p = static_cast<double>(x[i]), q = static_cast<double>(b[i]);
    const double added = term == Term::product ? p * q : term == Term::square ? (p - q) * (p - q) : std::fabs(p - q);
    lane[i % 8] = lane[i % 8] + added;
  }
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

double key_of(const float* x, const float* b, int64_t d, Metric metric) {
  if (metric == Metric::l1) return -ordered(x, b, d, Term::absolute);
  if (record(metric).smaller_is_better) return -ordered(x, b, d, Term::square);
  const double dot = ordered(x, b, d, Term::product);
  if (metric == Metric::dot) return dot;
  return dot /
         (floored(std::sqrt(ordered(x, x, d, Term::product))) * floored(std::sqrt(ordered(b, b, d, Term::product))));
}

struct Answer {
  std::vector<float> values;
  std::vector<int64_t> indices;
};

Answer brute(const std::vector<float>& x, const std::vector<float>& b, int64_t d, int64_t k, Metric metric) {
  Answer a;
  const int64_t n = static_cast<int64_t>(x.size()) / d, m = static_cast<int64_t>(b.size()) / d;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<Scored> all;
    for (int64_t j = 0; j < m; ++j) {
      const double key = key_of(&x[static_cast<size_t>(i * d)], &b[static_cast<size_t>(j * d)], d, metric);
      if (!std::isnan(key)) all.push_back({key, j});
    }
    std::sort(all.begin(), all.end(), better);
    for (int64_t t = 0; t < k; ++t) {
      const bool have = t < static_cast<int64_t>(all.size());
      const double key = have ? all[static_cast<size_t>(t)].key : 0.0;
      const double value = have ? value_of(metric, key) : worst_value(metric);
      a.values.push_back(static_cast<float>(value));
      a.indices.push_back(have ? all[static_cast<size_t>(t)].index : -1);
    }
  }
  return a;
}

Answer ours(const std::vector<float>& x, const std::vector<float>& b, int64_t d, int64_t k, Metric metric, int workers,
            bool packed) {
  SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
  p.k = k;
  Answer a;
  a.values.resize(static_cast<size_t>(p.queries.count * k));
  a.indices.resize(static_cast<size_t>(p.queries.count * k));
  p.values = a.values.data();
  p.indices = a.indices.data();
  Buffer<char> pack;
  if (packed) {
    CHECK(pack.reserve(pack_bytes(p.bank.count, d, metric)));
    CHECK(pack_bank(p.bank, metric, pack.get(), threads(workers)) == Status::ok);
    p.pack = check_pack(pack.get(), pack_bytes(p.bank.count, d, metric), p.bank, metric);
    CHECK(p.pack != nullptr);
  }
  CHECK(search(p, threads(workers)) == Status::ok);
  return a;
}

const std::vector<Metric> kScreened = {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean};
const std::vector<Metric> kAll = {Metric::dot, Metric::cosine, Metric::l2, Metric::sqeuclidean, Metric::l1};

void compare(const std::vector<float>& x, const std::vector<float>& b, int64_t d,
             const std::vector<Metric>& metrics = kAll, bool by_screens_alone = false) {
  for (const Metric metric : metrics)
    for (const int64_t k : {1, 4}) {
      const Answer expected = brute(x, b, d, k, metric);
      for (const SearchWay way : {SearchWay::screened, SearchWay::refined})
        for (const int workers : {1, 3}) {
          if (by_screens_alone && way != SearchWay::screened) continue;
          force_ways(way, ProjectWay::automatic);
          const Answer got = ours(x, b, d, k, metric, workers, workers == 1);
          CHECK(got.indices == expected.indices);
          for (size_t i = 0; i < got.values.size(); ++i) CHECK(got.values[i] == expected.values[i]);
        }
      force_ways(SearchWay::automatic, ProjectWay::automatic);
    }
}

}  // namespace

TEST(search_equals_brute_force) {
  for_each_isa([] {
    compare(gaussian<float>(21 * 19, 1), gaussian<float>(1500 * 19, 2), 19);
    compare(gaussian<float>(2 * 40, 3), gaussian<float>(2500 * 40, 4), 40);
    compare(gaussian<float>(1 * 8, 5), gaussian<float>(3000 * 8, 6), 8);
  });
}

TEST(search_survives_adversarial_inputs) {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for_each_isa([] {
    const int64_t d = 12, n = 9, m = 700;
    auto x = gaussian<float>(n * d, 1), b = gaussian<float>(m * d, 2);
    compare(gaussian<float>(n * d, 1, 0.01, 1000.0), gaussian<float>(m * d, 2, 0.01, 1000.0), d);  // cancellation
    compare(gaussian<float>(n * d, 1, 1e-42), gaussian<float>(m * d, 2, 1e-42), d);                // subnormal
    compare(gaussian<float>(n * d, 1, 1e30), gaussian<float>(m * d, 2, 1e30), d);
    compare(x, std::vector<float>(static_cast<size_t>(m * d), 1.0f), d);  // all rows equal
    auto outlier = b;
    for (int64_t k = 0; k < d; ++k) outlier[static_cast<size_t>(5 * d + k)] = 3e33f;
    compare(x, outlier, d);
    auto ruined = b;
    ruined[3] = nan;
    ruined[static_cast<size_t>(4 * d)] = inf;
    ruined[static_cast<size_t>(9 * d)] = -inf;
    auto ruined_x = x;
    ruined_x[0] = nan;
    ruined_x[static_cast<size_t>(d)] = inf;
    compare(ruined_x, ruined, d);
    auto ties = b;
    for (int64_t j = 1; j < m; j += 2)
      for (int64_t k = 0; k < d; ++k) ties[static_cast<size_t>(j * d + k)] = ties[static_cast<size_t>((j - 1) * d + k)];
    compare(x, ties, d);
  });
}

// Rows of which some are zero, tiny, huge or not finite: kinds of their own, whose panels are written as they change.
TEST(rows_of_every_scale) {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for_each_isa([] {
    const int64_t d = 19, n = 12, m = 900;
    auto x = gaussian<float>(n * d, 51);
    for (int64_t i = 0; i < d; ++i) x[static_cast<size_t>(i)] = 0.0f, x[static_cast<size_t>(d + i)] *= 1e-24f;
    for (const float scale : {0.0f, 1e-12f, 1e-22f, 1e15f, 1e25f, nan, inf})
      for (const int64_t every : {2, 50}) {
        auto b = gaussian<float>(m * d, 52);
        for (int64_t j = 1; j < m; ++j)
          if ((j % every == 0) == (every == 50))
            for (int64_t k = 0; k < d; ++k) b[static_cast<size_t>(j * d + k)] *= scale;
        compare(x, b, d);
      }
  });
}

TEST(rewritten_rows_are_packed_alone) {
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t d = 19, n = 6, m = 500;
  const auto x = gaussian<float>(n * d, 61);
  for (const Metric metric : {Metric::dot, Metric::cosine, Metric::l2}) {
    auto b = gaussian<float>(m * d, 62);
    for (int64_t j = 3; j < m; j += 3) std::fill_n(&b[static_cast<size_t>(j * d)], d, 0.0f);
    Buffer<char> memory;
    CHECK(memory.reserve(pack_bytes(m, d, metric)));
    CHECK(pack_bank(rows(b, d), metric, memory.get(), threads(2)) == Status::ok);
    PackHeader& h = *reinterpret_cast<PackHeader*>(memory.get());
    CHECK(h.negligible == 166 && h.exceptional == 166 && h.first_negligible == 3);
    const float scales[] = {1.0f, 0.0f, nan, 1e20f, 2.0f, 1e30f};
    for (int64_t step = 0; step < 30; ++step) {
      const std::vector<int64_t> changed{step % 5 == 0 ? h.first_negligible : step * 7, 499, step};
      for (const int64_t j : changed)
        for (int64_t k = 0; k < d; ++k)
          b[static_cast<size_t>(j * d + k)] = (static_cast<float>(k % 4) - 1.3f) * scales[(step + j) % 6];
      bool fit = false;
      CHECK(repack_rows(rows(b, d), &h, changed.data(), 3, threads(1), nullptr, &fit) == Status::ok);
      CHECK(fit || h.fallbacks > 0);
      SearchProblem p = problem_of(rows(x, d), rows(b, d), metric);
      p.k = 4;
      std::vector<int64_t> found(static_cast<size_t>(n * p.k));
      p.indices = found.data();
      p.pack = check_pack(memory.get(), pack_bytes(m, d, metric), p.bank, metric);
      CHECK(p.pack != nullptr);
      CHECK(search(p, threads(1)) == Status::ok);
      CHECK(found == brute(x, b, d, p.k, metric).indices);
    }
    for (int i = 0; i < 200; ++i) {
      const std::vector<int64_t> changed{0, 1, 2, 3};
      bool fit = true;
      CHECK(repack_rows(rows(b, d), &h, changed.data(), 4, threads(1), nullptr, &fit) == Status::ok);
      if (i == 199) CHECK(!fit);  // more rows were written than the bank has: the frame is out of date
    }
  }
}

// Two equal winners sixteen rows apart share a lane of the running argmax: such a query scans the panels again, the
// others do not.
TEST(a_lane_with_two_winners_is_scanned_again) {
  for_each_isa([] {
    const int64_t d = 9, n = 60, m = 3000;
    auto x = gaussian<float>(n * d, 41), b = gaussian<float>(m * d, 42);
    const auto copy = [&](std::vector<float>& to, int64_t row, const std::vector<float>& from, int64_t source) {
      std::copy_n(&from[static_cast<size_t>(source * d)], d, &to[static_cast<size_t>(row * d)]);
    };
    for (const int64_t i : {3, 17, 40}) {
      copy(b, 70 * i + 16, b, 70 * i);
      copy(b, 70 * i + 48, b, 70 * i);
      copy(x, i, b, 70 * i);
    }
    reset_counters();
    compare(x, b, d, kScreened, true);
    CHECK(read_counters().repeated == 0);
  });
}

TEST(a_bank_sorted_by_score_keeps_few_candidates) {
  const int64_t d = 4, m = 20000;
  std::vector<float> b(static_cast<size_t>(m * d), 0.0f), x{1.0f, 0.0f, 0.0f, 0.0f};
  for (int64_t j = 0; j < m; ++j) b[static_cast<size_t>(j * d)] = static_cast<float>(j);
  reset_counters();
  const Answer got = ours(x, b, d, 3, Metric::dot, 1, true);
  CHECK((got.indices == std::vector<int64_t>{m - 1, m - 2, m - 3}));
  CHECK(read_counters().repeated == 0);
}

// A plain tensor is packed in pieces that keep their best rows between them; the last piece may be split into more
// parts.
TEST(pieces_keep_what_earlier_pieces_found) {
  const int64_t d = 18, panels = 4681 + 4680, m = panels * 16;  // 71 parts, then 72
  const auto x = gaussian<float>(4 * d, 31), b = gaussian<float>(m * d, 32);
  const Answer alone = ours(x, b, d, 10, Metric::dot, 1, false);
  const Answer many = ours(x, b, d, 10, Metric::dot, 18, false);
  CHECK(alone.indices == many.indices);
  CHECK(alone.values == many.values);
}

// A piece starts from the k-th best of those before it, whatever centre and scale either was packed with.
TEST(pieces_of_different_scale_agree_with_one_pack) {
  const int64_t d = 24, m = 12 * 3640 * 16, n = 30;  // twelve pieces
  auto b = gaussian<float>(m * d, 33);
  const auto x = gaussian<float>(n * d, 34);
  for (int64_t i = m / 3 * d; i < m * d; ++i) {
    const size_t at = static_cast<size_t>(i);
    b[at] = i < 2 * m / 3 * d ? b[at] * 0.05f + 3.0f : b[at] * 40.0f;
  }
  force_ways(SearchWay::screened, ProjectWay::automatic);
  for (const Metric metric : kAll)
    for (const int64_t k : {1, 10, 100}) {
      const Answer pieces = ours(x, b, d, k, metric, 2, false), whole = ours(x, b, d, k, metric, 2, true);
      CHECK(pieces.indices == whole.indices);
      CHECK(pieces.values == whole.values);
    }
  reset_counters();
  ours(gaussian<float>(n * d, 35), gaussian<float>(m * d, 36), d, 100, Metric::dot, 1, false);
  CHECK(read_counters().refined < 600 * n);  // 100 (1 + 1 + 1/2 + ... 1/11) = 402, not 1200
  force_ways(SearchWay::automatic, ProjectWay::automatic);
}

// Every answer depends on this: the screen's bounds enclose the refined score.
TEST(screen_bounds_hold) {
  for_each_isa([] {
    const Kernels& table = kernels();
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::sqeuclidean})
      for (const int64_t d : {3, 40, 300})
        for (const double offset : {0.0, 30.0}) {
          const int64_t m = 64, n = table.heights[0];
          const auto x = gaussian<float>(n * d, 21, 1.0, offset), b = gaussian<float>(m * d, 22, 1.0, offset);
          Buffer<char> memory;
          CHECK(memory.reserve(pack_bytes(m, d, metric)));
          CHECK(pack_bank(rows(b, d), metric, memory.get(), threads(1)) == Status::ok);
          const PackHeader& h = *reinterpret_cast<const PackHeader*>(memory.get());
          const Panels<float> panels = pack_panels(&h);
          const double* centre = pack_centre(&h);
          for (int64_t i = 0; i < n; ++i) {
            double norm2 = 0.0, centre_dot = 0.0;
            const double scale = std::ldexp(1.0, h.exponent);
            std::vector<float> packed;
            for (int64_t k = 0; k < d; ++k) {
              const double v = static_cast<double>(x[static_cast<size_t>(i * d + k)]);
              const double w = record(metric).shares_frame ? (v - centre[k]) * scale : v;
              packed.push_back(static_cast<float>(w));
              norm2 += w * w;
              centre_dot += v * centre[k];
            }
            const double norm = std::sqrt(norm2) * (1.0 + 0x1p-20);
            const int exponent = record(metric).shares_frame ? h.exponent : 0;
            const double slack = query_slack(metric, d, exponent, h.exponent).at(norm);
            for (int64_t j = 0; j < m; ++j) {
              const int64_t p = j / 16, c = j % 16;
              float upper = panels.line(p, d + 2)[c];
              for (int64_t k = 0; k < d; ++k) upper += packed[static_cast<size_t>(k)] * panels.line(p, k + 1)[c];
              upper += round_up(norm) * panels.line(p, d + 1)[c];
              const float* xr = &x[static_cast<size_t>(i * d)];
              const double key = key_of(xr, &b[static_cast<size_t>(j * d)], d, metric);
              double target;  // the refined score in packed units
              if (record(metric).shares_frame)
                target = (norm2 + key * scale * scale) / 2.0;
              else if (metric == Metric::dot)
                target = (key - centre_dot) * scale;
              else
                target = (key * floored(std::sqrt(ordered(xr, xr, d, Term::product))) - centre_dot) * scale;
              const double r = static_cast<double>(panels.line(p, d + 1)[c]);
              const double lower =
                  static_cast<double>(upper) - 2.0 * (norm * r + start_bound_per_r2(metric, d) * r * r + slack);
              CHECK(static_cast<double>(upper) + slack >= target);
              CHECK(lower + slack <= target);
            }
          }
        }
  });
}

TEST(project_is_exact_on_integers_and_rescores_fallback_rows) {
  for_each_isa([] {
    const int64_t d = 9, n = 20, m = 37;
    auto x = gaussian<float>(n * d, 1, 4.0), b = gaussian<float>(m * d, 2, 4.0);
    for (auto& v : x) v = std::round(v);
    for (auto& v : b) v = std::round(v) + 50.0f;  // far from the origin, so the pack is centred
    x[0] = std::numeric_limits<float>::infinity();
    b[static_cast<size_t>(3 * d)] = std::numeric_limits<float>::quiet_NaN();
    b[static_cast<size_t>(4 * d)] = 2e30f;
    for (const Metric metric : {Metric::dot, Metric::sqeuclidean, Metric::l2, Metric::l1}) {
      std::vector<float> out(static_cast<size_t>(n * m));
      ProjectProblem p;
      p.queries = rows(x, d);
      p.bank = rows(b, d);
      p.metric = metric;
      p.out = out.data();
      CHECK(project(p, threads(2)) == Status::ok);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
          const double key = key_of(&x[static_cast<size_t>(i * d)], &b[static_cast<size_t>(j * d)], d, metric);
          const double value = value_of(metric, key);
          const float got = out[static_cast<size_t>(i * m + j)], want = static_cast<float>(value);
          CHECK(got == want || (std::isnan(got) && std::isnan(want)));
        }
    }
  });
}

TEST(foreign_packs_are_refused) {
  const int64_t d = 5;
  const auto b = gaussian<float>(40 * d, 1);
  const int64_t bytes = pack_bytes(40, d, Metric::dot);
  Buffer<char> memory;
  CHECK(memory.reserve(bytes));
  CHECK(pack_bank(rows(b, d), Metric::dot, memory.get(), threads(1)) == Status::ok);
  CHECK(check_pack(memory.get(), bytes, rows(b, d), Metric::dot) != nullptr);
  CHECK(check_pack(memory.get(), bytes - 64, rows(b, d), Metric::dot) == nullptr);
  CHECK(check_pack(memory.get(), bytes, rows(b, d), Metric::cosine) == nullptr);
  CHECK(check_pack(memory.get(), 16, rows(b, d), Metric::dot) == nullptr);
  const auto other = gaussian<float>(41 * d, 1);
  CHECK(check_pack(memory.get(), bytes, rows(other, d), Metric::dot) == nullptr);
  CHECK(check_pack(memory.get(), bytes, rows(b, d), Metric::l1) == nullptr);
  reinterpret_cast<PackHeader*>(memory.get())->panels_at += 64;
  CHECK(check_pack(memory.get(), bytes, rows(b, d), Metric::dot) == nullptr);
}

TEST(a_metric_without_a_screen_has_a_header_for_a_pack) {
  CHECK(pack_bytes(1 << 20, 100, Metric::l1) == kCentreAt);
  const int64_t d = 5;
  auto b = gaussian<float>(40 * d, 1);
  Buffer<char> memory;
  CHECK(memory.reserve(kCentreAt));
  auto* header = reinterpret_cast<PackHeader*>(memory.get());
  CHECK(pack_bank(rows(b, d), Metric::l1, header, threads(2)) == Status::ok);
  CHECK(check_pack(header, kCentreAt, rows(b, d), Metric::l1) == header);
  CHECK(check_pack(header, kCentreAt, rows(b, d), Metric::l2) == nullptr);
  const int64_t changed[] = {3, 39};
  bool fit = false;
  CHECK(repack_rows(rows(b, d), header, changed, 2, threads(1), nullptr, &fit) == Status::ok && fit);
  header->metric = static_cast<int32_t>(Metric::sqeuclidean);
  CHECK(check_pack(header, kCentreAt, rows(b, d), Metric::l1) == nullptr);
}
