// Codes of several codebooks for one vector, one stage for each codebook: the arguments of the kernel that computes all
// stages on the chip (stages.cu), which residual.cu drives. The plan (plan_stages) is in plan.h.
#pragma once

#include "kernels.h"

namespace vecbank::cuda {

// A codebook in device memory, with its pack checked.
struct Stage {
  Rows bank;
  const float* panels;
  const double* centre;  // null: at the origin
  Schedule schedule;
  int exponent;
  bool good;  // false: the pack is not valid, and every row is refined against everything
};

struct Stages {
  Rows x;
  const Stage* codebooks;  // device memory
  int64_t count, width;
  Metric metric;
  int64_t* codes;          // [rows][count]
  float* quantized;        // [rows][width]; null: no cascade, codebook s codes columns [s width, (s + 1) width) of x
  double* squares;         // [count][blocks], with `quantized`
  int64_t *valid, blocks;  // likewise
  State* state;
};
Error all_stages(const Stages& args, const Device& device);

// Copies `codebooks` to the device, checking their packs there. Codebooks that have rows must have one.
Error describe(const PackedCodebook* codebooks, int64_t count, Metric metric, Stage* out, const Device& device);

}  // namespace vecbank::cuda
