// project() on rows as they lie in memory: for few queries, few bank rows, batches of small problems, and products of
// bfloat16 on processors that have a unit for them.
#pragma once

#include "ways.h"

namespace vecbank::cpu {

// Sums in float32, each by the lanes of a register. Scores that float32 cannot hold are scored in float64.
Status project_direct(const ProjectProblem& p, const Parallel& parallel);
// Many problems, each by project_direct() or project(), as way_of() says.
Status project_direct_each(const ProjectProblem* problems, int64_t count, const Parallel& parallel);

}  // namespace vecbank::cpu
