// What a quantising step passes back to its input.
#pragma once

#include "types.h"

namespace vecbank {

// none: the loss alone; straight: the gradient unchanged; rotation: turned and scaled as x was to become its code.
enum class Estimator : int32_t { none = 0, straight = 1, rotation = 2 };

// out = estimator(grad) + scale (x - quantized). All [rows][width], contiguous, of one dtype.
struct PassBackProblem {
  const void *grad = nullptr, *x = nullptr, *quantized = nullptr;
  int64_t rows = 0, width = 0;
  DType dtype = DType::f32;
  double scale = 0.0;
  Estimator estimator = Estimator::straight;
  void* out = nullptr;
};

Status pass_back(const PassBackProblem& problem, const Parallel& parallel);

}  // namespace vecbank
