// The Hopper screen as its driver sees it. NEVER RUN on a GPU, so reached only with VECBANK_CUDA_PATH=sm90.
#pragma once

#include "launch.h"
#include "operands.h"

namespace vecbank::cuda {

struct ScreenSm90 {
  Operand queries, bank;  // of one type
  OperandColumns columns;
  int64_t rows;        // queries; norms, slacks, thresholds, counts and candidates have as many
  int64_t count;       // bank rows in the operand, without those beyond the last
  int64_t begin, end;  // of which these are screened: multiples of the tile, but for the end
  int64_t bank_rows;   // of the whole bank
  Schedule schedule;   // where in the bank an operand's row lies, see operands.h
  int64_t first_slot;
  Mask mask;  // rows counted from this chunk's first
  const float* norms;
  const double* slacks;
  bool raise;  // k = 1: thresholds rise while the screen runs
  float* thresholds;
  int32_t* counts;
  Candidate* candidates;
  int32_t capacity;
};

// Null where it can run; else why not.
Error sm90_fault(int64_t width, const Device& device);
Error screen_sm90(const ScreenSm90& args, const Device& device);

}  // namespace vecbank::cuda
