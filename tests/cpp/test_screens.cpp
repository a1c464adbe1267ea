// Every screen, on every instruction set: its bounds enclose the refined score, whatever the data, and are no wider
// than their proof makes them.
#include <cmath>
#include <string>

#include "check.h"
#include "core/bounds.h"
#include "cpu/search/screens/screen.h"

using namespace vecbank;
using namespace vecbank::cpu;

namespace {

struct Seen {
  std::vector<float> upper;  // [row][column]
  int64_t columns = 0;
};

struct Found {
  double used = 0.0;  // the largest share of the distance between the bounds that lies above the score
  int64_t rows = 0;   // pairs of finite bounds
};

// A screen against the exact map of the refined scores of all pairs.
Found check_bounds(const ScreenEntry& entry, const std::vector<float>& x, const std::vector<float>& b, int64_t d,
                   Metric metric, PanelKind kind) {
  const int64_t n = static_cast<int64_t>(x.size()) / d, m = static_cast<int64_t>(b.size()) / d;
  SearchProblem p;
  p.queries = rows(x, d);
  p.bank = rows(b, d);
  p.metric = metric;
  Buffer<char> memory;
  CHECK(memory.reserve(pack_bytes(m, d, metric, false, kind)));
  CHECK(pack_bank(p.bank, metric, memory.get(), threads(1), nullptr, kind) == Status::ok);
  const PackHeader& h = *reinterpret_cast<const PackHeader*>(memory.get());
  p.pack = check_pack(memory.get(), pack_bytes(m, d, metric, false, kind), p.bank, metric);
  CHECK(p.pack == &h);
  SearchPlan plan = plan_search(p, h, 1);
  plan.refined_only = false;
  plan.group = kernels().height_for(n);
  plan.grid.set_blocks(n, round_up_to(n, plan.group), plan.group);
  plan.grid.set_parts(ceil_div(m, kPanel), 1);
  if (!entry.serves(h, plan.group)) return {};
  const SearchJob job{p, h, plan};
  const SearchTask task(job, GridTask{0, n, 0, ceil_div(m, kPanel), 0});
  const std::unique_ptr<Screen> screen = entry.make();
  ScreenQueries queries;
  CHECK(screen->reserve(p, plan) && queries.reserve(p, plan));
  queries.pack(task);
  screen->begin(queries, job);

  Seen seen{std::vector<float>(static_cast<size_t>(n * ceil_div(m, kPanel) * kPanel)), ceil_div(m, kPanel) * kPanel};
  const std::vector<float> open(static_cast<size_t>(n + 16), -HUGE_VALF);
  const double scale = std::ldexp(1.0, h.exponent);
  const double* centre = pack_centre(&h);
  Found found;
  for (int64_t from = 0; from < ceil_div(m, kPanel); from += screen->panels_per_visit()) {
    const Visit visit{from, std::min(ceil_div(m, kPanel), from + screen->panels_per_visit()), 0};
    struct Context {
      Seen* seen;
      int64_t from;
    } context{&seen, from};
    screen->scan(visit, 0, n,
                 {open.data(),
                  [](void* at, int64_t row, int64_t panel, const float* upper, uint32_t) {
                    const Context& c = *static_cast<Context*>(at);
                    std::copy_n(upper, kPanel,
                                &c.seen->upper[static_cast<size_t>(row * c.seen->columns + (c.from + panel) * kPanel)]);
                  },
                  &context});
    for (int64_t i = 0; i < n; ++i) {
      const float* xi = &x[static_cast<size_t>(i * d)];
      const double unit = screen->unit(i), own = std::ldexp(1.0, queries.packed.frame(i).exponent);
      for (int64_t j = visit.from * kPanel; j < visit.to * kPanel; ++j) {
        const float upper = seen.upper[static_cast<size_t>(i * seen.columns + j)];
        if (j >= m) {
          CHECK(upper == -HUGE_VALF);
          continue;
        }
        const RowKind row = pack_kinds(&h)[j];
        if (row == RowKind::fallback) CHECK(upper == HUGE_VALF);
        if (row != RowKind::ordinary && j != h.first_negligible) continue;  // the first stands for the negligible ones
        const float* bj = &b[static_cast<size_t>(j * d)];
        double length = 1.0, target = 0.0;  // the score in packed units
        if (metric == Metric::cosine) {
          for (int64_t k = 0; k < d; ++k) target += static_cast<double>(bj[k]) * static_cast<double>(bj[k]);
          length = floored(std::sqrt(target));
          target = 0.0;
        }
        for (int64_t k = 0; k < d; ++k) {
          const double q = static_cast<double>(xi[k]), v = static_cast<double>(bj[k]);
          if (record(metric).shares_frame)
            target += (q - centre[k]) * scale * (v - centre[k]) * scale - 0.5 * std::pow((v - centre[k]) * scale, 2);
          else
            target += q * own * (v / length - centre[k]) * scale;
        }
        const double up = static_cast<double>(upper) + unit * queries.slacks[i];
        CHECK(up >= unit * target);
        if (!(upper < HUGE_VALF)) continue;
        const double low = static_cast<double>(screen->lower_bound(i, j / kPanel, static_cast<int>(j % kPanel), upper));
        CHECK(low <= unit * (target - queries.slacks[i]));
        if (!(low > -HUGE_VAL)) continue;
        ++found.rows;
        found.used = std::max(found.used, (up - unit * target) / (up - low));
      }
    }
  }
  return found;
}

// Calls f(screen, kind of panels) for every screen and every kind of pack that it can use.
template <class F>
void for_each_screen(F&& f) {
  for_each_isa([&] {
    for (const PanelKind kind : {PanelKind::float32, PanelKind::int8})
      for (const ScreenEntry* entry : kScreens) f(*entry, kind);
  });
}

std::vector<float> drawn(int64_t rows, int64_t d, int kind, uint32_t seed, bool bank) {
  auto v = gaussian<float>(rows * d, seed);
  for (size_t i = 0; i < v.size(); ++i) {
    const size_t width = static_cast<size_t>(d);
    float& at = v[i];
    if (kind == 1) at += 30.0f;                                        // centred
    if (kind == 2) at = std::round(at);                                // ties
    if (kind == 3 && i % width == (bank ? width / 2 : 0)) at *= 1e4f;  // one coordinate has nearly all
    if (kind == 4) at = 1.0f;                                          // the largest sum there is
    if (kind == 5) at *= std::ldexp(1.0f, bank ? static_cast<int>(i) % 30 - 20 : static_cast<int>(i) % 100 - 60);
    if (kind == 6 && !bank) at *= 1e-12f;
    if (kind == 7 && i / width % 3 == 0) at *= 1e-25f;                     // negligible rows
    if (kind == 8 && i / width % 5 == 0) at = i % 2 == 0 ? 3e38f : -0.0f;  // hardly a scale
    if (kind == 9 && bank && i % (3 * width) == 1) at = std::nanf("");
  }
  return v;
}

}  // namespace

TEST(screen_bounds_enclose_the_score) {
  int64_t pairs = 0;
  for_each_screen([&](const ScreenEntry& screen, PanelKind kind) {
    for (const Metric metric : {Metric::dot, Metric::cosine, Metric::sqeuclidean})
      for (const int64_t d : {1, 2, 16, 17, 40, 301, 2048})
        for (int data = 0; data < (d > 1000 ? 5 : 10); ++data)
          for (const int64_t n : {int64_t{1}, int64_t{3}, int64_t{kernels().heights[0] + 1}}) {
            if (n != 3 && (d == 2048 || data % 3 != 0)) continue;
            pairs +=
                check_bounds(screen, drawn(n, d, data, 21, false), drawn(37, d, data, 22, true), d, metric, kind).rows;
          }
  });
  CHECK(pairs > 100000);
}

// Every coordinate of a row lies just short of halfway between two codes, and all are rounded the same way, so both
// products of the proof reach their bounds. One coordinate decides the scale.
TEST(int8_bounds_at_their_worst) {
  for_each_isa([] {
    const double most = kernels().int8.bank_code,
                 query = int8::query_code(kernels().int8.bank_code, kernels().int8.product_limit);
    for (const int64_t d : {64, 256}) {
      const int64_t n = 5, m = 32;
      std::vector<float> x, b;
      for (int64_t r = 0; r < n + m; ++r) {
        const double codes = r < n ? query : most, offset = r % 2 == 0 ? 0.499 : -0.499;
        for (int64_t k = 0; k < d; ++k) {
          const double sign = (k * 7 + k / 3) % 2 == 0 ? 1.0 : -1.0, level = std::floor(codes * 0.6) + offset;
          (r < n ? x : b)
              .push_back(
                  static_cast<float>(sign * (k == 0 ? codes : level) / codes * (r < n || r % 4 < 2 ? 1.0 : -1.0)));
        }
      }
      const double used = check_bounds(int8_screen, x, b, d, Metric::dot, PanelKind::int8).used;
      CHECK(used <= 1.0);
      CHECK(used > 0.93);  // a margin that is a tenth smaller would be wrong
    }
  });
}
