// What a library's product can do for project, and how it is cut into blocks. Plain functions of the problem, tested on
// the host.
#pragma once

#include <algorithm>

#include "../../core/parallel.h"
#include "../../core/problem.h"
#include "../schedule.h"

namespace vecbank::cuda {

// What the library's product is kept in: 16-bit inputs are multiplied exactly and added in float32.
inline DType product_dtype(const ProjectProblem& p) { return p.bank.dtype == DType::f64 ? DType::f64 : DType::f32; }

// A plain product is the answer itself, written by the library in the dtype asked for.
inline bool plain_product(const ProjectProblem& p) { return p.metric == Metric::dot && p.out_dtype == p.queries.dtype; }

// Can the library's product carry this one? Both sides of one dtype, rows as it reads them without a copy; and
// distances only where what cancels in |x|^2 + |b|^2 - 2 x.b is far below the answer's own rounding, whatever torch's
// flags let a float32 product become: float64, or 16-bit in and out.
inline bool library_can(const ProjectProblem& p) {
  const auto readable = [](const Rows& r) { return r.col_stride == 1 && r.row_stride >= r.width; };
  if (p.queries.dtype != p.bank.dtype || p.bank.width == 0) return false;
  if (!readable(p.queries) || !readable(p.bank)) return false;
  if (!is_distance(p.metric) || p.bank.dtype == DType::f64) return true;
  return size_of(p.bank.dtype) == 2 && size_of(p.out_dtype) == 2;
}

// How the library's product is cut: blocks small enough that a finishing pass finds them in L2, and that the workspace
// holds one where the answer itself cannot (another dtype).
constexpr int64_t kProductShare = int64_t{32} << 20;
constexpr int64_t kProductColumns = 8192;
constexpr int64_t kRowsPerFinish = 32;  // of a block of the finishing pass
constexpr int64_t kMostGridRows = 65535;

struct LibraryPlan {
  bool in_place = false;  // the product goes where the answer goes
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
