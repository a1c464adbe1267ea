#include "ways.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "kernels.h"
#include "topk_list.h"

namespace vecbank::cpu {
namespace {

constexpr double kWidestScreened = 1 << 15;
constexpr double kSmall = 1 << 16;  // smaller products with results in float64 are not worth packing

std::atomic<SearchWay> forced_search{SearchWay::automatic};
std::atomic<ProjectWay> forced_project{ProjectWay::automatic};

}  // namespace

void force_ways(SearchWay search, ProjectWay project) {
  forced_search = search;
  forced_project = project;
}

// Plain tensors: for few queries, coding costs more than it saves, and wide rows that are like noise have scores so
// close to each other that codes do not tell them apart (a Bank looks at its vectors for that).
PanelKind panels_of(const SearchProblem& p) {
  constexpr int64_t kCodedQueries = 64, kCodedWidth = 2560;
  if (p.pack != nullptr) return p.pack->panels;
  const bool coded = p.queries.count >= kCodedQueries && p.bank.width < kCodedWidth;
  return coded ? panels_for_search(p.bank.count, p.bank.width, p.metric) : PanelKind::float32;
}

namespace {

// The parts of the model, in nanoseconds.
struct SearchCosts {
  double n, m, d, k;
  bool unit, product;

  explicit SearchCosts(const SearchProblem& p)
      : n(static_cast<double>(p.queries.count)),
        m(static_cast<double>(p.bank.count)),
        d(static_cast<double>(p.bank.width)),
        k(static_cast<double>(p.k)),
        unit(record(p.metric).unit_rows),
        product(record(p.metric).term == Term::product) {}

  double pair() const {                         // refined, of rows one after the other
    const double wide = d > 4096 ? 1.15 : 1.0;  // a stretch at a time
    return 0.6 + d * (product ? 0.0195 * wide : 0.04);
  }
  double scattered() const {  // what a row more costs that lies somewhere in the bank
    return m * d * 4.0 < 4e6 ? 3.0 : 25.0 + 0.12 * d;
  }
  // The same of a set each, where queries have `each` rows and what several of them may be given is read once.
  double scattered(double each) const {
    return std::min(scattered(), 3.0 + 0.01 * d + scattered() / std::max(1.0, n * each / m));
  }
  double ranks(double rows) const {
    return k == 1.0                                     ? 15.0 + 0.12 * rows
           : k > static_cast<double>(TopKList::kSorted) ? 50.0 * k
                                                        : 20.0 * k * (1.0 + std::log(std::max(1.0, rows / k)));
  }
  double refined(double rows, double more) const {
    return n * (20.0 + (unit ? 10.0 : 0.0) + 0.1 * d + rows * (pair() + more) + ranks(rows));
  }
  // Screened; screens read whole rows, and a block of very wide ones is more than L2.
  double column(PanelKind panels) const {
    return panels == PanelKind::int8 ? 0.003 : d > kWidestScreened ? 0.045 : 0.007;
  }
  double screened(double rows, bool packed, PanelKind panels) const {
    // A plain tensor goes by pieces: each packs the queries again, and finds some of the best rows so far.
    const double pieces = packed ? 1.0 : std::ceil(rows * d * 4.0 / kMostPackBytes);
    // The best and, of scores that lie close to each other, others; of k ranks, those that were among the best so far.
    const double candidate = 140.0 + 0.3 * std::min(d, 1024.0) + 0.8 * std::max(d - 1024.0, 0.0);
    const double others = k == 1.0 ? std::min(0.9, 0.1 + 0.0025 * d) * std::min(1.0, rows / 100.0)
                                   : k * std::min(4.0, std::pow(rows / (10.0 * k), 0.3));
    const double candidates = candidate * others * (1.0 + 0.5 * std::log(pieces));
    const double packing =
        packed ? 0.0 : rows * (35.0 + 0.8 * d + 0.4 * std::min(d, 64.0)) + std::min(rows, 64.0) * d * 3.0 + 2e3;
    const double query = 85.0 + 0.7 * std::min(d, 64.0) + (unit ? 1.9 : 0.85) * d;
    return 3e3 + packing + n * (query * pieces + rows * d * column(panels) + candidates);
  }
};

}  // namespace

SearchWay way_of(const SearchProblem& p) {
  if (refined_only(p.metric)) return SearchWay::refined;
  const SearchWay wanted = forced_search.load(std::memory_order_relaxed);
  if (wanted != SearchWay::automatic) return wanted == SearchWay::gathered ? SearchWay::screened : wanted;
  const SearchCosts costs(p);
  return costs.refined(costs.m, 0.0) < costs.screened(costs.m, p.pack != nullptr, panels_of(p)) ? SearchWay::refined
                                                                                                : SearchWay::screened;
}

SearchWay way_among(const SearchProblem& p, double each, bool shared) {
  if (refined_only(p.metric)) return SearchWay::refined;
  const SearchWay wanted = forced_search.load(std::memory_order_relaxed);
  if (wanted == SearchWay::gathered && !shared) return SearchWay::screened;
  if (wanted != SearchWay::automatic) return wanted;
  const SearchCosts costs(p);
  // Rows that all queries share are fetched once for several of them.
  const double more = shared ? costs.scattered() / std::min(costs.n, 8.0) : costs.scattered(each);
  const double refined = costs.refined(each, more);
  const double gated = costs.screened(costs.m, p.pack != nullptr, panels_of(p));
  const double fetched = shared ? each * (costs.scattered() + 0.25 * costs.d) : HUGE_VAL;
  const double gathered = fetched + costs.screened(each, false, panels_of(p));
  const double least = std::min({refined, gated, gathered});
  return least == refined ? SearchWay::refined : least == gated ? SearchWay::screened : SearchWay::gathered;
}

bool few_rows(const SearchProblem& p, double expected, double mean) {
  if (forced_search.load(std::memory_order_relaxed) == SearchWay::screened) return false;
  const SearchCosts costs(p);
  return expected * (costs.pair() + costs.scattered(std::min(expected, mean))) <
         costs.m * costs.d * costs.column(panels_of(p));
}

// The unit for products of bfloat16 rounds once for two products; for distances the differences must be exact.
bool direct_by_bf16(const ProjectProblem& p) {
  return p.queries.dtype == DType::bf16 && p.bank.dtype == DType::bf16 && record(p.metric).term == Term::product &&
         kernels().direct_bf16 != nullptr && has_bf16_products();
}

bool raw_by_pairs(const ProjectProblem& p) {
  return direct_by_bf16(p) && kernels().raw.pairs != nullptr && p.bank.width % 2 == 0;
}

ProjectWay way_of(const ProjectProblem& p) {
  const MetricRecord metric = record(p.metric);
  if (p.exact || refined_only(p.metric)) return ProjectWay::exact;
  const double n = static_cast<double>(p.queries.count), m = static_cast<double>(p.bank.count);
  const double d = static_cast<double>(p.bank.width);
  const ProjectWay wanted = forced_project.load(std::memory_order_relaxed);
  if (wanted == ProjectWay::packed || wanted == ProjectWay::exact) return wanted;
  const bool square = metric.term == Term::square;
  const bool small = n * m * (d + 8.0) < kSmall;
  if (p.out_dtype == DType::f64 && small && wanted == ProjectWay::automatic) return ProjectWay::exact;
  const bool prepared = p.pack != nullptr && p.pack->panels == PanelKind::float32;
  const double packing = prepared ? 0.0 : m * d * 0.6 + std::min(m, 63.0) * d + 2e3;
  const double packed = n * (std::max(m, 16.0) * (0.1 + 0.0087 * d) + 25.0 + 0.55 * d) + packing + 2e3;
  const double exact = n * (15.0 + 0.1 * d + m * (0.6 + d * (square ? 0.04 : 0.0195)));
  if (p.bank.dtype == DType::f64) {  // half as many numbers to a register, and packed at every call
    const double tiles = n * (std::max(m, 16.0) * (0.1 + 0.0185 * d) + 25.0 + 0.55 * d);
    const double panels = m * (35.0 + 1.5 * d) + std::min(m, 63.0) * 2.0 * d + 4e3;
    return wanted == ProjectWay::automatic && exact < tiles + panels ? ProjectWay::exact : ProjectWay::packed;
  }
  if (kernels().direct == nullptr || p.bank.width < 1) return exact < packed ? ProjectWay::exact : ProjectWay::packed;
  const double move = d <= 64 ? 0.15 : 0.35;  // reading and writing a coordinate
  const double line = raw_by_pairs(p) ? 0.0045 : square ? 0.0097 : 0.0087;
  const bool wide = p.bank.width > kDirectStretch;  // panels have no part of a row
  const double raw =
      wide ? HUGE_VAL : n * (std::ceil(m / 16.0) * 16.0 * (0.12 + line * d) + 5.0 + move * d) + m * d * move + 50.0;
  double direct = HUGE_VAL;
  if (p.bank.col_stride == 1) {
    const double pair =
        direct_by_bf16(p) ? 0.7 + 0.0046 * d : (0.8 + 0.009 * d) * (p.bank.dtype == DType::f16 ? 1.3 : 1.0);
    const double again = wide && n > 4.0 ? 0.05 * d : 0.0;  // the bank comes from memory for every four queries
    direct = n * (10.0 + 0.1 * d + m * (pair + again));
    if (wanted == ProjectWay::direct) return wanted;
  }
  if (wanted == ProjectWay::raw && !wide) return wanted;
  const double least = std::min({raw, direct, packed, exact});
  return least == packed   ? ProjectWay::packed
         : least == raw    ? ProjectWay::raw
         : least == direct ? ProjectWay::direct
                           : ProjectWay::exact;
}

}  // namespace vecbank::cpu
