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

// How the library's product is cut into blocks. The finishing pass finds a block of this size in L2, and the workspace
// holds one block where the answer cannot hold the product (another dtype).
constexpr int64_t kProductShare = int64_t{32} << 20;
constexpr int64_t kProductColumns = 8192;
constexpr int64_t kRowsPerFinish = 32;  // of a block of the finishing pass
constexpr int64_t kMostGridRows = 65535;

struct LibraryPlan {
  bool in_place = false;  // the product is written where the answer belongs
  int64_t rows = 0, columns = 0;
};
inline LibraryPlan plan_library(const ProjectProblem& p) {
  LibraryPlan plan;
  const int64_t size = static_cast<int64_t>(size_of(product_dtype(p)));
  plan.in_place = plain_product(p) || product_dtype(p) == p.out_dtype;
  plan.columns = plain_product(p) ? p.bank.count : std::min(p.bank.count, kProductColumns);
  plan.rows = p.queries.count;
  if (!plain_product(p)) {
    const int64_t fitting = kProductShare / (plan.columns * size) / kTile * kTile;
    plan.rows = std::min({plan.rows, fitting, kMostGridRows * kRowsPerFinish});
  }
  return plan;
}

}  // namespace vecbank::cuda
