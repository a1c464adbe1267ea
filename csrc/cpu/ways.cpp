#include "ways.h"

#include <cmath>

#include "isa.h"
#include "kernels.h"
#include "topk_list.h"

namespace vecbank::cpu {
namespace {

constexpr int64_t kMostDirect = 4096;  // wider rows: too many terms in a lane for float32
constexpr double kSmall = 1 << 16;     // smaller products of float64 are not worth packing

std::atomic<SearchWay> forced_search{SearchWay::automatic};
std::atomic<ProjectWay> forced_project{ProjectWay::automatic};

}  // namespace

void force_ways(SearchWay search, ProjectWay project) {
  forced_search = search;
  forced_project = project;
}

SearchWay way_of(const SearchProblem& p) {
  if (refined_only(p.metric)) return SearchWay::refined;
  const SearchWay wanted = forced_search.load(std::memory_order_relaxed);
  if (wanted != SearchWay::automatic) return wanted;
  const double n = static_cast<double>(p.queries.count), m = static_cast<double>(p.bank.count);
  const double d = static_cast<double>(p.bank.width), k = static_cast<double>(p.k);
  const double ranks = p.k > TopKList::kSorted ? 50.0 * k : 20.0 * k * (1.0 + std::log(m / k));
  const double refined = n * (20.0 + m * (3.2 + 0.024 * d) + ranks);
  const double candidates = p.k > 1 ? k * (220.0 + 1.1 * d) : 0.0;
  const double packing = p.pack == nullptr ? m * d * 0.8 + std::min(m, 64.0) * d * 3.0 + 2e3 : 0.0;
  const double screened = 3e3 + packing + n * (50.0 + 1.2 * std::min(d, 64.0) + 0.85 * d + m * d * 0.003 + candidates);
  return refined < screened ? SearchWay::refined : SearchWay::screened;
}

// The unit for products of bfloat16 rounds once for two products; for distances the differences must be exact.
bool direct_by_bf16(const ProjectProblem& p) {
  return p.queries.dtype == DType::bf16 && p.bank.dtype == DType::bf16 && record(p.metric).term == Term::product &&
         kernels().direct_bf16 != nullptr && has_bf16_products();
}

ProjectWay way_of(const ProjectProblem& p) {
  const MetricRecord metric = record(p.metric);
  if (p.exact || metric.term == Term::absolute) return ProjectWay::exact;
  const double n = static_cast<double>(p.queries.count), m = static_cast<double>(p.bank.count);
  const double d = static_cast<double>(p.bank.width);
  const ProjectWay wanted = forced_project.load(std::memory_order_relaxed);
  if (wanted == ProjectWay::packed || wanted == ProjectWay::exact) return wanted;
  const bool small = n * m * (d + 8.0) < kSmall;
  if (p.bank.dtype == DType::f64) return small ? ProjectWay::exact : ProjectWay::packed;
  if (p.out_dtype == DType::f64 && small && wanted == ProjectWay::automatic) return ProjectWay::exact;
  const bool prepared = p.pack != nullptr && p.pack->panels == PanelKind::float32;
  const double packing = prepared ? 0.0 : m * d * 0.6 + std::min(m, 63.0) * d + 2e3;
  const double packed = n * (std::max(m, 16.0) * (0.1 + 0.0087 * d) + 25.0 + 0.55 * d) + packing + 2e3;
  const bool serves =
      (kernels().direct != nullptr) && p.bank.col_stride == 1 && p.bank.width >= 1 && p.bank.width <= kMostDirect;
  const double pair =
      direct_by_bf16(p) ? 0.7 + 0.0046 * d : (0.6 + 0.009 * d) * (p.bank.dtype == DType::f16 ? 1.3 : 1.0);
  if (serves && wanted == ProjectWay::direct) return wanted;
  if (serves) return n * m * pair + n * (10.0 + 0.1 * d) < packed ? ProjectWay::direct : ProjectWay::packed;
  return n * m * (3.2 + 0.024 * d) < packed ? ProjectWay::exact : ProjectWay::packed;
}

}  // namespace vecbank::cpu
