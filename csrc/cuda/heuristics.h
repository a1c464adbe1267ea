// Which path answers: the one table, with the measurement behind each row, and what each path can do at all. Plain
// functions of the problem, tested on the host.
#pragma once

#include <algorithm>

#include "plan.h"

namespace vecbank::cuda {

// kernel: project.cu, tiles of our own with the store inside. library: a product of somebody else's (cuBLAS, through
// ATen) and one pass that finishes it, project_library.cu.
enum class ProjectPath : int32_t { kernel = 0, library = 1 };

struct ProjectRule {
  const char* what;
  bool (*holds)(const ProjectProblem& problem, int capability);
  ProjectPath path;
  const char* measured;  // on which GPU, when, how much faster: bench/results
};

// The first row that holds decides. A row that names the library needs a measurement of the bench's project rows.
constexpr ProjectRule kProjectRules[] = {
    {"everything else", [](const ProjectProblem&, int) { return true; }, ProjectPath::kernel, "never measured"},
};

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
  const Term term = record(p.metric).term;
  if (term == Term::product || (term == Term::square && p.bank.dtype == DType::f64)) return true;
  return term == Term::square && size_of(p.bank.dtype) == 2 && size_of(p.out_dtype) == 2;
}

enum class Wish : int32_t { none = 0, kernel = 1, library = 2 };  // VECBANK_CUDA_PROJECT

// A wish for the library is granted where the library can; everything else stays with the kernel.
inline ProjectPath project_path(const ProjectProblem& p, int capability, Wish wish) {
  ProjectPath path = wish == Wish::library ? ProjectPath::library : ProjectPath::kernel;
  if (wish == Wish::none)
    for (const ProjectRule& rule : kProjectRules)
      if (rule.holds(p, capability)) {
        path = rule.path;
        break;
      }
  return path == ProjectPath::library && !library_can(p) ? ProjectPath::kernel : path;
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
