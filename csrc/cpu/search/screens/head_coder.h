// Codes panels of float32 numbers as a head and its tails (head.h), when a bank is packed.
#pragma once

#include "../../pack.h"
#include "../../rotation.h"
#include "head.h"

namespace vecbank::cpu {

class HeadCoder {
 public:
  static constexpr int64_t kTogether = 7;  // panels, so that register tiles of rows are full

  bool reserve(int64_t width, int64_t head);

  // Writes panels [first, first + count) of the pack: at most kTogether, whose float32 panels lie one after another.
  void code(const float* panels, PackHeader& h, int64_t first, int64_t count);

 private:
  void code_tail(const float* turned, const PackHeader& h, double bound, bool blank, int8_t* out, float* line) const;

  Rotation rotation_;
  Buffer<float> groups_, turned_, lines_;
};

}  // namespace vecbank::cpu
