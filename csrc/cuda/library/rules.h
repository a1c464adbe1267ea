// What a library's product can do for project, in which dtype, and where it is cut into blocks. Plain functions of the
// problem, tested on the host.
#pragma once

#include <algorithm>

#include "../../core/problem.h"
#include "../schedule.h"

namespace vecbank::cuda {

inline bool is_product(const ProjectProblem& p) { return record(p.metric).term == Term::product; }

// Whether the library's product is the answer itself: a dot product in the dtype of its inputs.
inline bool plain_product(const ProjectProblem& p) { return p.metric == Metric::dot && p.out_dtype == p.queries.dtype; }

// The dtype of the library's product. 16-bit inputs are multiplied exactly and added in float32, which is kept for the
// finishing pass, but for a cosine in bfloat16: its product is rounded to bfloat16 and again once it is scaled. The
// first rounding is off by at most 2^-8 of a score, which is at most one unit in the score's last place, and the second
// by half a unit; two units and twice ATen's error are allowed. On a CPU, over the cases of tests/test_project.py and
// every other kind of data, the error was at most 1.48 units, and 0.27 of what is allowed. A product of float16 would
// overflow from norms of 256 on, which are usual, and nobody knows the norms before the product's dtype must be chosen.
inline DType product_dtype(const ProjectProblem& p) {
  const DType in = p.queries.dtype;
  if (plain_product(p) || (is_product(p) && in == DType::bf16 && p.out_dtype == in)) return in;
  return in == DType::f64 ? DType::f64 : DType::f32;
}

// Whether the library's product can carry this problem. Both sides must have one dtype and rows that the library reads
// without a copy. Distances cancel in |x|^2 + |b|^2 - 2 x.b: the loss must stay far below the rounding of the answer,
// whatever torch's flags allow a float32 product to be, so distances need float64, or 16 bits in and out.
inline bool library_can(const ProjectProblem& p) {
  const auto readable = [](const Rows& r) { return r.col_stride == 1 && r.row_stride >= r.width; };
  if (p.queries.dtype != p.bank.dtype || p.bank.width == 0) return false;
  if (!readable(p.queries) || !readable(p.bank)) return false;
  if (is_product(p)) return true;
  if (record(p.metric).term != Term::square) return false;
  return p.bank.dtype == DType::f64 || (size_of(p.bank.dtype) == 2 && size_of(p.out_dtype) == 2);
}

// Where inputs, product and answer share a dtype, the product is one call, written where the answer belongs. It is the
// product of a user's own expression: the library chooses the same kernel, which takes the same time and errs as much.
// Cut into blocks of 32 MiB, 65,536 x 1024 x 768 took 0.36 ms (TF32) and 0.54 ms (float32) more than the product alone
// on an H200, norms included, and float32 erred by 1.8e-7 where torch's product erred by 1.6e-7. One pass over an
// answer of 268 MB is predicted to take 0.14 ms.
//
// Everywhere else the product is cut into blocks, which the finishing pass finds in L2: half of L2, as the answer
// passes through it too. The workspace holds one block where the answer cannot hold the product (another dtype). Norms
// are found for kMostFactors rows and columns at a time, which is mostly once.
constexpr int64_t kLeastProduct = int64_t{16} << 20, kMostProduct = int64_t{32} << 20;  // bytes
constexpr int64_t kProductColumns = 8192;
constexpr int64_t kMostFactors = int64_t{1} << 20;

struct LibraryPlan {
  bool in_place = false;  // the product is written where the answer belongs
  bool whole = false;     // the product is one block, in place
  int64_t rows = 0, columns = 0;
};
inline LibraryPlan plan_library(const ProjectProblem& p, int64_t l2_bytes) {
  LibraryPlan plan;
  const int64_t size = static_cast<int64_t>(size_of(product_dtype(p)));
  plan.in_place = product_dtype(p) == p.out_dtype;
  plan.whole = plan.in_place && p.out_dtype == p.queries.dtype;
  plan.columns = plan.whole ? p.bank.count : std::min(p.bank.count, kProductColumns);
  plan.rows = p.queries.count;
  if (!plan.whole)
    plan.rows = std::min(plan.rows,
                         std::clamp(l2_bytes / 2, kLeastProduct, kMostProduct) / (plan.columns * size) / kTile * kTile);
  return plan;
}

// How the finishing pass covers a block: a thread takes `wide` neighbouring columns of kFinishRows rows, which are
// `down` apart, and `across` threads stand side by side.
constexpr int kFinishRows = 8;
struct FinishGrid {
  int across, down;
  int64_t x, y;  // blocks of threads side by side, and one below the other
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
