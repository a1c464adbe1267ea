// The one table that says which path computes project, with the measurement behind each row. Plain functions of the
// problem, tested on the host.
#pragma once

#include "library/rules.h"

namespace vecbank::cuda {

// kernel: project.cu computes tiles and stores them. library: cuBLAS computes the product, called through ATen, and one
// pass finishes it (library/project.cu).
enum class ProjectPath : int32_t { kernel = 0, library = 1 };

struct ProjectRule {
  const char* what;
  bool (*holds)(const ProjectProblem& problem, int capability);
  ProjectPath path;
  const char* measured;  // on which GPU, when, how much faster: bench/results
};

// The first row that holds decides. A row that names the library must name a measurement of the bench's project rows.
constexpr ProjectRule kProjectRules[] = {
    {"everything else", [](const ProjectProblem&, int) { return true; }, ProjectPath::kernel, "never measured"},
};

// What VECBANK_CUDA_PROJECT asks for.
enum class ProjectOverride : int32_t { none = 0, kernel = 1, library = 2 };

// The override counts where the library can carry the projection; the kernel answers everything else.
inline ProjectPath project_path(const ProjectProblem& p, int capability, ProjectOverride wanted) {
  ProjectPath path = wanted == ProjectOverride::library ? ProjectPath::library : ProjectPath::kernel;
  if (wanted == ProjectOverride::none)
    for (const ProjectRule& rule : kProjectRules)
      if (rule.holds(p, capability)) {
        path = rule.path;
        break;
      }
  return path == ProjectPath::library && !library_can(p) ? ProjectPath::kernel : path;
}

}  // namespace vecbank::cuda
