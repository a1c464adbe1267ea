// project() on panels of the rows' own numbers. Such a panel is a transposition: nothing is moved or scaled, so packing
// takes a tenth of what it takes in the frame of a screen. The norms of unit rows are applied to the sums.
#pragma once

#include <memory>

#include "ways.h"

namespace vecbank::cpu {

Status project_raw(const ProjectProblem& p, const Parallel& parallel);

// For small problems one after another, by one thread, in memory that they share.
class RawAlone {
 public:
  RawAlone();
  ~RawAlone();
  Status project(const ProjectProblem& p, Stop stop);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace vecbank::cpu
