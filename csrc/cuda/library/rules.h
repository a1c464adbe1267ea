// What a library's product can do for project, and how it is cut into blocks. Plain functions of the problem, tested on
// the host.
#pragma once

#include <algorithm>

#include "../../core/problem.h"
#include "../schedule.h"

namespace vecbank::cuda {

// The dtype of the library's product: 16-bit inputs are multiplied exactly and added in float32.
inline DType product_dtype(const ProjectProblem& p) { return p.bank.dtype == DType::f64 ? DType::f64 : DType::f32; }

// Whether the library's product is the answer itself: a dot product in the dtype of its inputs.
inline bool plain_product(const ProjectProblem& p) { return p.metric == Metric::dot && p.out_dtype == p.queries.dtype; }

// Whether the library's product can carry this problem. Both sides must have one dtype and rows that the library reads
// without a copy. Distances cancel in |x|^2 + |b|^2 - 2 x.b: the loss must stay far below the rounding of the answer,
// whatever torch's flags allow a float32 product to be, so distances need float64, or 16 bits in and out.
inline bool library_can(const ProjectProblem& p) {
  const auto readable = [](const Rows& r) { return r.col_stride == 1 && r.row_stride >= r.width; };
  if (p.queries.dtype != p.bank.dtype || p.bank.width == 0) return false;
  if (!readable(p.queries) || !readable(p.bank)) return false;
  const Term term = record(p.metric).term;
  if (term == Term::product || (term == Term::square && p.bank.dtype == DType::f64)) return true;
  return term == Term::square && size_of(p.bank.dtype) == 2 && size_of(p.out_dtype) == 2;
}

// How the library's product is cut into blocks, which the finishing pass finds in L2: half of L2, as the answer passes
// through it too. The workspace holds one block where the answer cannot hold the product (another dtype). Norms are
// found for kMostFactors rows and columns at a time, which is mostly once.
constexpr int64_t kLeastProduct = int64_t{16} << 20, kMostProduct = int64_t{32} << 20;  // bytes
constexpr int64_t kProductColumns = 8192;
constexpr int64_t kMostFactors = int64_t{1} << 20;

struct LibraryPlan {
  bool in_place = false;  // the product is written where the answer belongs
  int64_t rows = 0, columns = 0;
};
inline LibraryPlan plan_library(const ProjectProblem& p, int64_t l2_bytes) {
  LibraryPlan plan;
  const int64_t size = static_cast<int64_t>(size_of(product_dtype(p)));
  plan.in_place = plain_product(p) || product_dtype(p) == p.out_dtype;
  plan.columns = plain_product(p) ? p.bank.count : std::min(p.bank.count, kProductColumns);
  plan.rows = p.queries.count;
  if (!plain_product(p))
    plan.rows = std::min(plan.rows,
                         std::clamp(l2_bytes / 2, kLeastProduct, kMostProduct) / (plan.columns * size) / kTile * kTile);
  return plan;
}

// How the finishing pass covers a block: a thread takes `wide` neighbouring columns of kFinishRows rows, which are
// `down` apart, and `across` threads stand side by side.
constexpr int kFinishRows = 8;
struct FinishGrid {
  int across, down;
  int64_t x, y;  // blocks
};
inline FinishGrid finish_grid(int64_t rows, int64_t columns, int wide) {
  FinishGrid g{1, 0, 0, 0};
  while (g.across < kThreads && g.across * wide < columns) g.across *= 2;
  g.down = kThreads / g.across;
  g.x = ceil_div(columns, int64_t{g.across} * wide);
  g.y = ceil_div(rows, int64_t{g.down} * kFinishRows);
  return g;
}

}  // namespace vecbank::cuda
