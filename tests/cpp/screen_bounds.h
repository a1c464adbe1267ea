// A screen as a search drives it, and its bounds beside the exact map of the refined scores, for tests of all screens.
#pragma once

#include <cmath>

#include "check.h"
#include "core/bounds.h"
#include "cpu/search/argmax.h"

// A query and a bank row. Scores and slacks are in packed units, bounds in those of the screen, which are `unit` times
// as fine.
struct ScreenedPair {
  int64_t query, row;
  double unit, score, slack;
  double most;                            // the largest score that the upper bounds enclose: the first negligible
                                          // row stands for all of them
  double whole;                           // for dot products: unit * packed score = whole * score of the rows
  float gate, by_argmax;                  // the upper bounds of scan() and of argmax()
  vecbank::cpu::Bounds closer, by_panel;  // what bounds() makes of the two
};

// A bank packed for one screen. The screen must serve its pack.
class Screened {
 public:
  Screened(const vecbank::cpu::ScreenEntry& entry, const std::vector<float>& x, const std::vector<float>& b, int64_t d,
           vecbank::Metric metric, vecbank::PanelKind kind, vecbank::HeadChoice head = {})
      : entry_(&entry), x_(&x), b_(&b), d_(d) {
    problem_.queries = rows(x, d);
    problem_.bank = rows(b, d);
    problem_.metric = metric;
    const int64_t bytes = vecbank::pack_bytes(problem_.bank.count, d, metric, false, kind, head.width);
    CHECK(memory_.reserve(bytes));
    CHECK(pack_bank(problem_.bank, metric, memory_.get(), threads(1), nullptr, kind, vecbank::ScreenChoice::automatic,
                    head) == vecbank::Status::ok);
    problem_.pack = vecbank::cpu::check_pack(memory_.get(), bytes, problem_.bank, metric);
    CHECK(problem_.pack == &header());
  }

  const vecbank::PackHeader& header() const { return *reinterpret_cast<const vecbank::PackHeader*>(memory_.get()); }
  bool serves() const { return entry_->serves(header(), vecbank::cpu::kernels().height_for(problem_.queries.count)); }

  // Calls f(pair) for every query and every row that is screened.
  template <class F>
  void for_each_pair(F&& f) {
    using namespace vecbank;
    using namespace vecbank::cpu;
    const int64_t n = problem_.queries.count, m = problem_.bank.count, panels = ceil_div(m, kPanel);
    const PackHeader& h = header();
    SearchPlan plan = plan_search(problem_, h, 1);
    plan.refined_only = false;
    plan.group = kernels().height_for(n);
    plan.grid.set_blocks(n, round_up_to(n, plan.group), plan.group);
    plan.grid.set_parts(panels, 1);
    const SearchJob job{problem_, h, plan};
    const SearchTask task(job, GridTask{0, n, 0, panels, 0});
    const std::unique_ptr<Screen> screen = entry_->make();
    ScreenQueries queries;
    RunningArgmax best;
    CHECK(screen->reserve(problem_, plan) && queries.reserve(problem_, plan) && best.reserve(n));
    queries.pack(task);
    screen->begin(queries, job);

    std::vector<float> upper(static_cast<size_t>(n * panels * kPanel));
    const std::vector<float> open(static_cast<size_t>(n + 16), -HUGE_VALF);
    for (int64_t from = 0; from < panels; from += screen->panels_per_visit()) {
      const Visit visit{from, std::min(panels, from + screen->panels_per_visit()), 0};
      struct Context {
        float* upper;
        int64_t panels, from;
      } context{upper.data(), panels, from};
      screen->scan(visit, 0, n,
                   {open.data(),
                    [](void* at, int64_t row, int64_t panel, const float* found, uint32_t) {
                      const Context& c = *static_cast<Context*>(at);
                      std::copy_n(found, kPanel, c.upper + (row * c.panels + c.from + panel) * kPanel);
                    },
                    &context});
      for (int64_t p = visit.from; p < visit.to; ++p) {
        if (screen->keeps_columns()) {
          best.clear(n, p);
          screen->argmax({p, p + 1, p}, best.running());
        }
        for (int64_t i = 0; i < n; ++i) {
          const double unit = screen->unit(i), own = std::ldexp(1.0, queries.packed.frame(i).exponent);
          for (int lane = 0; lane < kPanel; ++lane) {
            const int64_t j = p * kPanel + lane;
            const float found = upper[static_cast<size_t>(i * panels * kPanel + j)];
            if (j >= m) {
              CHECK(found == -HUGE_VALF);
              continue;
            }
            const RowKind kind = pack_kinds(&h)[j];
            if (kind == RowKind::fallback) CHECK(found == HUGE_VALF);
            if (kind != RowKind::ordinary && j != h.first_negligible) continue;
            ScreenedPair pair{i, j, unit, score(i, j, own), queries.slacks[i], 0.0, 0.0, found, found, {}, {}};
            pair.most = pair.score;
            for (int64_t other = j + 1; j == h.first_negligible && other < m; ++other)
              if (pack_kinds(&h)[other] == RowKind::negligible) pair.most = std::max(pair.most, score(i, other, own));
            pair.whole = unit * own * std::ldexp(1.0, h.exponent);
            if (screen->keeps_columns()) pair.by_argmax = best.largest(i, lane);
            pair.closer = bounds(*screen, pair, found, false);
            pair.by_panel = screen->keeps_columns() ? bounds(*screen, pair, pair.by_argmax, true) : pair.closer;
            f(pair);
          }
        }
      }
    }
  }

 private:
  static vecbank::cpu::Bounds bounds(vecbank::cpu::Screen& screen, const ScreenedPair& pair, float upper,
                                     bool by_argmax) {
    if (!(upper < HUGE_VALF)) return {HUGE_VALF, -HUGE_VALF};
    const int64_t panel = pair.row / vecbank::kPanel;
    const int lane = static_cast<int>(pair.row % vecbank::kPanel);
    const vecbank::cpu::Bounds found = screen.bounds(pair.query, panel, lane, upper, -HUGE_VALF, by_argmax);
    // A threshold that the upper bound does not reach leaves it below that threshold.
    const float beyond = std::nextafter(found.upper, HUGE_VALF);
    CHECK(screen.bounds(pair.query, panel, lane, upper, beyond, by_argmax).upper < beyond);
    return found;
  }

  // The exact map of the refined score in packed units. `own`: what scales the query, where it has its own scale.
  double score(int64_t i, int64_t j, double own) const {
    using namespace vecbank;
    const PackHeader& h = header();
    const float *xi = &(*x_)[static_cast<size_t>(i * d_)], *bj = &(*b_)[static_cast<size_t>(j * d_)];
    const double scale = std::ldexp(1.0, h.exponent), *centre = pack_centre(&h);
    const MetricRecord metric = record(problem_.metric);
    double length = 1.0, sum = 0.0;
    if (metric.unit_rows) {
      for (int64_t k = 0; k < d_; ++k) sum += static_cast<double>(bj[k]) * static_cast<double>(bj[k]);
      length = floored(std::sqrt(sum));
      sum = 0.0;
    }
    for (int64_t k = 0; k < d_; ++k) {
      const double q = static_cast<double>(xi[k]), v = static_cast<double>(bj[k]);
      if (metric.shares_frame)
        sum += (q - centre[k]) * scale * (v - centre[k]) * scale - 0.5 * std::pow((v - centre[k]) * scale, 2);
      else
        sum += q * own * (v / length - centre[k]) * scale;
    }
    return sum;
  }

  const vecbank::cpu::ScreenEntry* entry_;
  const std::vector<float>*x_, *b_;
  int64_t d_;
  vecbank::SearchProblem problem_;
  vecbank::cpu::Buffer<char> memory_;
};

struct BoundsFound {
  double used = 0.0;  // the largest share of the distance between the bounds that lies above the score
  int64_t rows = 0;   // pairs of finite bounds
};

// A screen's bounds against the scores of all pairs.
inline BoundsFound check_bounds(const vecbank::cpu::ScreenEntry& entry, const std::vector<float>& x,
                                const std::vector<float>& b, int64_t d, vecbank::Metric metric, vecbank::PanelKind kind,
                                vecbank::HeadChoice head = {}) {
  Screened screened(entry, x, b, d, metric, kind, head);
  BoundsFound found;
  if (!screened.serves()) return found;
  screened.for_each_pair([&](const ScreenedPair& p) {
    const auto reaches = [&](float upper) { return static_cast<double>(upper) + p.unit * p.slack >= p.unit * p.most; };
    const auto lies_below = [&](float lower) { return static_cast<double>(lower) <= p.unit * (p.score - p.slack); };
    CHECK(reaches(p.gate) && reaches(p.closer.upper) && reaches(p.by_panel.upper));
    CHECK(lies_below(p.closer.lower) && lies_below(p.by_panel.lower));
    CHECK(p.by_argmax <= p.gate && (head.width > 0 || p.by_argmax == p.gate));
    if (!(p.gate < HUGE_VALF && p.closer.lower > -HUGE_VALF)) return;
    ++found.rows;
    const double up = static_cast<double>(p.closer.upper) + p.unit * p.slack;
    found.used = std::max(found.used, (up - p.unit * p.score) / (up - static_cast<double>(p.closer.lower)));
  });
  return found;
}

// Rows of ten kinds, most of which break a careless bound.
constexpr int kDrawnKinds = 10;
inline std::vector<float> drawn(int64_t rows, int64_t d, int kind, uint32_t seed, bool bank) {
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
