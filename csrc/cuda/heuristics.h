// Which path computes what: how searches are screened, and the one table of project's paths, with the reason of each
// row. Plain functions, tested on the host.
#pragma once

#include <cstdlib>
#include <cstring>
#include <optional>

#include "api.h"
#include "library/rules.h"

namespace vecbank::cuda {

// ---- Searches ------------------------------------------------------------------------------------------------------

constexpr const char* kPathNames[] = {"simt", "mma16", "sm90"};  // by Path's values

inline std::optional<Path> path_named(const char* name) {
  for (size_t i = 0; i < std::size(kPathNames); ++i)
    if (std::strcmp(name, kPathNames[i]) == 0) return static_cast<Path>(i);
  return std::strcmp(name, "mma") == 0 ? std::optional(Path::mma16) : std::nullopt;  // an older name
}

// What VECBANK_CUDA_PATH asks for. `name`: null where it asks for nothing. A name without a path is none of ours.
struct WantedPath {
  const char* name;
  std::optional<Path> path;
};
inline WantedPath wanted_path() {
  const char* name = std::getenv("VECBANK_CUDA_PATH");
  if (name == nullptr || *name == 0) return {nullptr, std::nullopt};
  return {name, path_named(name)};
}

// Whoever wants a path gets it, checked or not. Otherwise tensor cores screen where they were found sound, by Hopper's
// own kernel where there is one (`hopper`: this build has it). On an H200, ms of nearest 1,048,576 x 8192, d 64, and of
// the ten best of 1,000,000 for 4096 queries, d 128, bf16, before any tuning: simt 45 and 32, mma16 20 and 7.7, sm90 14
// and 4.5 (docs/cuda.md has the latest). The self-check says nothing of wgmma, TMA and barriers; the tests say it.
inline Path search_path(int capability, TensorCores found, std::optional<Path> wanted, bool hopper) {
  if (wanted) return *wanted;
  if (capability < 80 || found != TensorCores::sound) return Path::simt;
  return capability == 90 && hopper ? Path::sm90 : Path::mma16;
}

// ---- project -------------------------------------------------------------------------------------------------------

// kernel: project.cu computes tiles and stores them. library: cuBLAS computes the product, called through ATen, and one
// pass finishes it (library/project.cu). exact: eight lanes score each pair in float64 (project.cu).
enum class ProjectPath : int32_t { kernel = 0, library = 1, exact = 2 };

struct ProjectRule {
  const char* what;
  bool (*holds)(const ProjectProblem& problem, int capability);
  ProjectPath path;
  const char* reason;  // a measurement of the bench's project rows, or a prediction
};

// So few scores of so long rows that float64 takes microseconds: less than one tile does, which goes along its rows on
// one multiprocessor. A library cuts sums the more, and errs the less, the fewer they are.
constexpr int64_t kFewScores = 2048, kLongRows = 128;
inline bool few_long_scores(const ProjectProblem& p) {
  return p.bank.width > kLongRows && p.bank.count > 0 && p.queries.count <= kFewScores / p.bank.count;
}

// The first row that holds decides, less those of the library where it cannot carry the projection. Milliseconds are of
// 65,536 x 1024 rows of width 768 on an H200.
constexpr ProjectRule kProjectRules[] = {
    {"16-bit inputs", [](const ProjectProblem& p, int) { return size_of(p.bank.dtype) == 2; }, ProjectPath::library,
     "measured in blocks: cosine 0.56 ms, where torch takes 0.41 and the kernel, which multiplies in float32, 3.4; "
     "predicted for bfloat16 as one product in place: 0.32"},
    {"dot and cosine of float32",
     [](const ProjectProblem& p, int) { return p.bank.dtype == DType::f32 && is_product(p); }, ProjectPath::library,
     "measured in blocks: cosine 2.71 ms, 0.69 where torch's flags allow TF32, against the kernel's 3.67; predicted as "
     "one product in place: 2.4 and 0.54"},
    {"dot and cosine of float64",
     [](const ProjectProblem& p, int) { return p.bank.dtype == DType::f64 && is_product(p); }, ProjectPath::library,
     "ATen's own error, and predicted, never measured: tensor cores multiply float64 at twice the kernel's rate"},
    {"few scores of long rows", [](const ProjectProblem& p, int) { return few_long_scores(p); }, ProjectPath::exact,
     "one short launch, where a tile adds up its whole width on one multiprocessor, after three launches that pack"},
    {"everything else", [](const ProjectProblem&, int) { return true; }, ProjectPath::kernel,
     "float32 distances would show what TF32 loses; of rows far from zero, distances lose most of their digits without "
     "the kernel's centre: l2 of float64 rows at 1000 +- 0.01 is off by 1e-7, where the kernel is off by 1e-17"},
};

// What VECBANK_CUDA_PROJECT asks for.
enum class ProjectOverride : int32_t { none = 0, kernel = 1, library = 2 };

// The override counts where the library can carry the projection; the kernel answers everything else.
inline ProjectPath project_path(const ProjectProblem& p, int capability, ProjectOverride wanted) {
  const bool can = library_can(p);
  if (wanted != ProjectOverride::none)
    return wanted == ProjectOverride::library && can ? ProjectPath::library : ProjectPath::kernel;
  for (const ProjectRule& rule : kProjectRules)
    if (rule.holds(p, capability) && (rule.path != ProjectPath::library || can)) return rule.path;
  return ProjectPath::kernel;
}

}  // namespace vecbank::cuda
