// The Hopper screen, sm90.cu as nvcc compiles it, on the emulator (cuda_emulator_sm90.h): ring, barriers, turns,
// descriptors, accumulators, survivors. Its operands are made here, in float64.
#define VECBANK_EMULATE 1
#include "cuda_emulator_sm90.h"

#include "check.h"
#include "core/problem.h"
#include "cuda/order.h"
#include "cuda/tensor_cores/sm90.cu"

namespace {

using namespace vecbank;
using namespace vecbank::cpu;
using cuda::Candidate;

struct Setup {
  int64_t n = 1, m = 1, d = 1;
  DType type = DType::bf16;
  Metric metric = Metric::dot;
  int processors = 3;
  bool raise = true;
  int32_t capacity = 64;
  bool whole = true;  // one launch; else two, each of some of the bank's tiles
  int64_t near = 12;  // fewer of a row's candidates than this may reach its last threshold
};

struct Trial {
  Setup setup;
  std::vector<float> x, b;
  std::vector<unsigned char> mask;     // [n][m]; empty: none
  std::vector<char> fallback_columns;  // of the bank: must always be kept
  std::vector<char> fallback_rows;     // of the queries
  std::vector<float> thresholds;       // before and after
  std::vector<int32_t> counts;
  std::vector<Candidate> candidates;
  std::vector<float> norms;

  Trial(const Setup& s, uint32_t seed) : setup(s) {
    x = gaussian<float>(s.n * s.d, seed);
    b = gaussian<float>(s.m * s.d, seed + 1000);
    fallback_columns.assign(static_cast<size_t>(s.m), 0);
    fallback_rows.assign(static_cast<size_t>(s.n), 0);
    thresholds.assign(static_cast<size_t>(s.n), -HUGE_VALF);
  }

  // In the screen's units: a distance's -|x - b|^2 / 2 + |x|^2 / 2.
  double score(int64_t i, int64_t j) const {
    double dot = 0.0, square = 0.0;
    for (int64_t k = 0; k < setup.d; ++k) {
      const double p = x[static_cast<size_t>(i * setup.d + k)], q = b[static_cast<size_t>(j * setup.d + k)];
      dot += p * q;
      square += q * q;
    }
    return record(setup.metric).shares_frame ? dot - 0.5 * square : dot;
  }
  bool allowed(int64_t i, int64_t j) const { return mask.empty() || mask[static_cast<size_t>(i * setup.m + j)] != 0; }

  static double norm(const float* v, int64_t d) {
    double squares = 0.0;
    for (int64_t k = 0; k < d; ++k) squares += static_cast<double>(v[k]) * v[k];
    return std::sqrt(squares) * (1.0 + 1e-12);
  }
  void write(const float* v, uint16_t* to) const {
    for (int64_t k = 0; k < setup.d; ++k)
      to[k] = setup.type == DType::bf16 ? to_bfloat16(v[k]).bits : to_float16(v[k]).bits;
  }

  void run() {
    const int64_t pitch = cuda::operand_pitch(setup.d), n = setup.n, m = setup.m;
    const cuda::Schedule schedule = cuda::make_schedule(m);
    const int64_t slots = schedule.panels * kPanel, padded = cuda::operand_rows(slots);
    const double unit = setup.type == DType::bf16 ? 0x1p-8 : 0x1p-11;
    const double steps = static_cast<double>(pitch / 16 + 2) * cuda::kTensorUnit * 1.02;
    std::vector<uint16_t> queries(static_cast<size_t>(cuda::operand_rows(n) * pitch));
    std::vector<uint16_t> bank(static_cast<size_t>(padded * pitch));
    std::vector<double> slacks(static_cast<size_t>(n));
    norms.assign(static_cast<size_t>(n), 0.0f);
    counts.assign(static_cast<size_t>(n), 0);
    candidates.assign(static_cast<size_t>(n * setup.capacity), {NAN, NAN, 0xffffffffu});
    for (int64_t i = 0; i < n; ++i) {
      const size_t at = static_cast<size_t>(i);
      if (fallback_rows[at]) {
        counts[at] = cuda::kFellBack, thresholds[at] = HUGE_VALF;
        continue;
      }
      const double size = norm(&x[static_cast<size_t>(i * setup.d)], setup.d);
      norms[at] = round_up(size);
      slacks[at] = 1e-12 * size * size + 1e-30;
      write(&x[static_cast<size_t>(i * setup.d)], &queries[static_cast<size_t>(i * pitch)]);
    }
    std::vector<float> start(static_cast<size_t>(padded), -HUGE_VALF), bound(start.size()), lift(start.size());
    for (int64_t slot = 0; slot < slots; ++slot) {
      const int64_t j = schedule.panel(slot / kPanel) * kPanel + slot % kPanel;
      const size_t at = static_cast<size_t>(slot);
      if (j >= m) continue;
      if (fallback_columns[static_cast<size_t>(j)]) {
        start[at] = HUGE_VALF;
        continue;
      }
      const double size = norm(&b[static_cast<size_t>(j * setup.d)], setup.d);
      const double half = record(setup.metric).shares_frame ? -0.5 * size * size : 0.0;
      lift[at] = round_up(steps * std::fabs(half) + 1e-11 * size * size);
      start[at] = round_up(half + lift[at]);
      bound[at] = round_up(size * (2.0 * unit + unit * unit + steps) * 1.001);
      write(&b[static_cast<size_t>(j * setup.d)], &bank[static_cast<size_t>(slot * pitch)]);
    }
    cuda::Screen s{};
    s.query_operand = {setup.type, queries.data(), pitch};
    s.bank_operand = {setup.type, bank.data(), pitch};
    s.terms = {start.data(), bound.data(), lift.data()};
    s.rows = n;
    s.width = setup.d;
    s.columns = m;
    s.blocks = 1000;
    s.schedule = schedule;
    if (!mask.empty()) s.mask = {reinterpret_cast<const bool*>(mask.data()), nullptr, m, 1};
    s.norms = norms.data();
    s.slacks = slacks.data();
    s.listed = setup.raise ? 1 : 0;
    s.thresholds = thresholds.data();
    s.counts = counts.data();
    s.candidates = candidates.data();
    s.capacity = setup.capacity;
    cuda::Device device;
    device.capability = 90;
    device.processors = setup.processors;
    const int64_t middle = setup.whole ? schedule.panels : schedule.panels / 2 / 8 * 8;
    for (s.begin = 0, s.end = middle; s.begin < schedule.panels; s.begin = s.end, s.end = schedule.panels)
      if (s.begin < s.end) CHECK(cuda::screen_sm90(s, device) == nullptr);
    CHECK(emulator::memory().landings.empty());  // every copy was waited for
  }

  // Every column that may be best is listed, once, with bounds that hold. Returns the rows that overflowed.
  int64_t verify() const {
    int64_t overflowed = 0;
    bool complete = true, once = true, bounded = true, honest = true, sparse = true;
    for (int64_t i = 0; i < setup.n; ++i) {
      const size_t at = static_cast<size_t>(i);
      if (fallback_rows[at]) {
        CHECK(counts[at] == cuda::kFellBack && thresholds[at] == HUGE_VALF);
        continue;
      }
      if (counts[at] > setup.capacity) {
        ++overflowed;
        continue;
      }
      std::vector<int> listed(static_cast<size_t>(setup.m));
      int64_t reach = 0;
      for (int32_t c = 0; c < counts[at]; ++c) {
        const Candidate& held = candidates[static_cast<size_t>(i * setup.capacity + c)];
        if (held.column >= setup.m || !allowed(i, held.column)) {
          bounded = false;
          continue;
        }
        once = once && ++listed[held.column] == 1;
        if (fallback_columns[held.column]) {
          bounded = bounded && held.upper == HUGE_VALF && held.lower == -HUGE_VALF;
          continue;
        }
        const double score = this->score(i, held.column);
        bounded = bounded && held.lower <= score && score <= held.upper;
        reach += !(held.upper < thresholds[at]);
      }
      double best = -HUGE_VAL;
      for (int64_t j = 0; j < setup.m; ++j)
        if (allowed(i, j) && !fallback_columns[static_cast<size_t>(j)]) best = std::max(best, score(i, j));
      honest = honest && (!setup.raise || thresholds[at] <= best);
      const double needed = setup.raise ? best : thresholds[at];
      for (int64_t j = 0; j < setup.m; ++j)
        if (allowed(i, j) && (fallback_columns[static_cast<size_t>(j)] || !(score(i, j) < needed)))
          complete = complete && listed[static_cast<size_t>(j)] == 1;
      if (setup.raise) sparse = sparse && reach < setup.near;
    }
    CHECK(complete);  // else an answer would be wrong
    CHECK(once);
    CHECK(bounded);
    CHECK(honest);
    CHECK(sparse);  // else a threshold does not rise
    return overflowed;
  }
};

TEST(sm90_screen_keeps_what_may_win) {
  uint32_t seed = 1;
  for (const int64_t d : {5, 64, 100, 150, 250})
    for (const DType type : {DType::bf16, DType::f16})
      for (const Metric metric : {Metric::dot, Metric::sqeuclidean}) {
        const bool wide = type == DType::f16;
        Trial t({wide ? 300 : 130, metric == Metric::dot ? 700 : 250, d, type, metric, wide ? 5 : 2}, ++seed);
        t.run();
        CHECK(t.verify() == 0);
      }
}

TEST(sm90_screen_odd_shapes) {
  uint32_t seed = 50;
  for (const int64_t n : {1, 256, 257})
    for (const int64_t m : {1, 127, 129, 1025})
      for (const int processors : {1, 7, 132}) {
        Trial t({n, m, 16, DType::bf16, Metric::sqeuclidean, processors}, ++seed);
        t.run();
        CHECK(t.verify() == 0);
      }
  Trial t({2, 12000, 16, DType::f16, Metric::dot, 1}, ++seed);  // many times round the ring
  t.run();
  CHECK(t.verify() == 0);
}

TEST(sm90_screen_equals_nearest) {
  for (const Metric metric : {Metric::dot, Metric::sqeuclidean}) {
    Trial t({200, 900, 32, DType::bf16, metric, 4}, 90);
    for (size_t i = 0; i < t.b.size(); ++i) t.b[i] = std::round(t.b[i]);  // many ties
    for (int64_t j = 40; j < 900; j += 40) std::copy_n(t.b.begin(), 32, t.b.begin() + j * 32);
    t.run();
    CHECK(t.verify() == 0);
    SearchProblem p = problem_of(rows(t.x, 32), rows(t.b, 32), metric);
    std::vector<int64_t> want(200);
    p.indices = want.data();
    CHECK(search(p, Parallel{}) == Status::ok);
    int64_t same = 0;
    for (int64_t i = 0; i < 200; ++i) {
      Scored best = cuda::last_scored();
      for (int32_t c = 0; c < t.counts[static_cast<size_t>(i)]; ++c) {
        const int64_t j = t.candidates[static_cast<size_t>(i * 64 + c)].column;
        double lane[8];
        for (int l = 0; l < 8; ++l) lane[l] = cuda::pair_lane(p.queries, i, p.bank, j, l, record(metric).term);
        const Scored entry{key_of(metric, tree_sum(lane), 1.0, 1.0), j};
        if (better(entry, best)) best = entry;
      }
      same += best.index == want[static_cast<size_t>(i)];
    }
    CHECK(same == 200);
  }
}

TEST(sm90_screen_adversarial_inputs) {
  Trial fallbacks({70, 400, 20, DType::f16, Metric::dot, 3}, 200);
  for (const size_t j : {0u, 17u, 399u}) fallbacks.fallback_columns[j] = 1;
  fallbacks.fallback_rows[3] = fallbacks.fallback_rows[69] = 1;
  fallbacks.run();
  CHECK(fallbacks.verify() == 0);

  Trial equal({20, 600, 20, DType::bf16, Metric::sqeuclidean, 3}, 201);  // overflows every list
  std::fill(equal.b.begin(), equal.b.end(), 0.5f);
  equal.run();
  CHECK(equal.verify() == 20);

  Trial sorted({20, 1500, 20, DType::bf16, Metric::dot, 3}, 202);  // every column beats those before it
  sorted.setup.near = 40;  // columns so close to the best that bf16 cannot tell them apart
  for (float& v : sorted.x) v = std::fabs(v);
  for (size_t i = 0; i < sorted.b.size(); ++i) sorted.b[i] = static_cast<float>(i / 20) * 0.05f;
  sorted.run();
  CHECK(sorted.verify() <= 20);

  Trial mask({40, 500, 30, DType::bf16, Metric::dot, 3}, 203);
  mask.mask.resize(40 * 500);
  std::mt19937 random(4);
  for (auto& v : mask.mask) v = random() % 3 == 0;
  for (size_t j = 0; j < 500; ++j) mask.mask[j] = 0;  // a row without a candidate
  mask.run();
  CHECK(mask.verify() == 0 && mask.counts[0] == 0);
}

// k > 1: a threshold that stands, ranges of columns one after the other, longer lists.
TEST(sm90_screen_fixed_thresholds) {
  for (const bool whole : {true, false}) {
    Trial t({60, 900, 70, DType::f16, Metric::dot, 4, false, 256, whole}, 300);
    for (int64_t i = 0; i < 60; ++i) {
      std::vector<double> scores;
      for (int64_t j = 0; j < 900; ++j) scores.push_back(t.score(i, j));
      std::sort(scores.begin(), scores.end());
      t.thresholds[static_cast<size_t>(i)] = round_down(scores[899 - static_cast<size_t>(i)]);
    }
    t.run();
    CHECK(t.verify() == 0);
  }
}

TEST(sm90_screen_refuses_what_it_cannot_do) {
  cuda::Device device;
  device.capability = 80;
  CHECK(cuda::sm90_fault(device) != nullptr);
  device.capability = 100;
  CHECK(cuda::sm90_fault(device) != nullptr);
  device.capability = 90;
  CHECK(cuda::sm90_fault(device) == nullptr);
  cuda::Screen s{};
  s.bank_operand.pitch = 320;
  CHECK(cuda::screen_sm90(s, device) != nullptr);
}

}  // namespace
