// project() on rows as they lie in memory: for few queries, few bank rows, batches of small problems, and products of
// bfloat16 on processors that have a unit for them.
#pragma once

#include <memory>

#include "ways.h"

namespace vecbank::cpu {

// Sums in float32, each by the lanes of a register. Scores that float32 cannot hold are scored in float64.
Status project_direct(const ProjectProblem& p, const Parallel& parallel);

// For small problems one after another, by one thread, in memory that they share.
class DirectAlone {
 public:
  static constexpr int64_t kQueryRows = 64;  // at most

  DirectAlone();
  ~DirectAlone();
  Status project(const ProjectProblem& p, Stop stop);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace vecbank::cpu
