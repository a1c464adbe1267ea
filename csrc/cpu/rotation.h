// Turns rows: their products with the rows of an orthogonal matrix. A pack stores the matrix as float32 panels, so the
// loops are those of a dense product.
#pragma once

#include "../core/pack.h"
#include "parallel.h"

namespace vecbank::cpu {

inline float* pack_rotation(PackHeader* h) {
  return reinterpret_cast<float*>(reinterpret_cast<char*>(h) + h->rotation_at);
}
inline const float* pack_rotation(const PackHeader* h) { return pack_rotation(const_cast<PackHeader*>(h)); }

// Writes a matrix [width][width] as panels (core/pack.h).
void pack_rotation(const float* matrix, int64_t width, float* panels);

// PackHeader::turn_error of a matrix: how far <Q x, Q b> can be from <x, b>, in proportion to both norms, when both
// were turned by Rotation::turn. Not finite where the matrix is not; large where it is not orthogonal.
Status turn_error_of(const float* matrix, int64_t width, const Parallel& parallel, double* out);

class Rotation {
 public:
  bool reserve();

  // `groups`: interleaved rows, as QueryBlock has them, `stride` floats from one group to the next. Writes `rows`
  // turned rows, each `stride_of(width)` floats from the last.
  void turn(const float* panels, int64_t width, const float* groups, int64_t stride, int group, int64_t rows,
            float* out) const;

  static int64_t stride_of(int64_t width) { return round_up_to(width, kPanel); }

 private:
  Buffer<float> ones_, zeros_;  // a scale and a term for every row of a chunk
};

}  // namespace vecbank::cpu
