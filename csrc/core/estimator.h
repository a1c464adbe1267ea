// The gradient that a quantising step passes back to its input.
#pragma once

#include <cmath>

#include "types.h"

namespace vecbank {

// none: the gradient of the loss alone. straight: the gradient of the output too, unchanged. rotation: the gradient of
// the output, rotated and scaled by the map that takes x to its code.
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

// ---- The formula, once for host and device -------------------------------------------------------------------------

// A is float64 for float64 rows, else float32. Sums over a row run in eight lanes: lane k mod 8 adds coordinate k, in
// ascending order; then ((0+4)+(1+5))+((2+6)+(3+7)).

template <class A>
struct RotationSums {
  A x = 0, t = 0, g_x = 0, g_t = 0;  // |x|^2, |t|^2, g.x, g.t
  VB_INLINE void add(A grad, A source, A target) {
    x += source * source;
    t += target * target;
    g_x += grad * source;
    g_t += grad * target;
  }
};

template <class A>
VB_INLINE A inverse_unit(A squares) {  // a norm below 1e-6 counts as 1e-6
  const A norm = std::sqrt(squares), floor = static_cast<A>(1e-6);
  return 1 / (norm < floor ? floor : norm);
}

// What a coordinate adds to |u + q|^2.
template <class A>
VB_INLINE A bisector_term(A x, A t, A inverse_x, A inverse_t) {
  const A w = x * inverse_x + t * inverse_t;
  return w * w;
}

// Let u, q and w be the unit vectors of x, t and u + q, and s = |t| / |x|. R = I - 2 w w' + 2 q u' rotates u to q, and
// s times the transpose of R takes g to s (g - 2 (w.g) w + 2 (q.g) u) = s (g + a x - b t). Source: Fifty et al., 2025.
template <class A>
struct Rotation {
  A g, x, t;  // out = g * grad + x * source + t * target
  VB_INLINE A operator()(A grad, A source, A target) const { return g * grad + (x * source + t * target); }
};

template <class A>
VB_INLINE Rotation<A> rotation_of(const RotationSums<A>& sums, A bisector_squares) {
  const A inverse_x = inverse_unit(sums.x), inverse_t = inverse_unit(sums.t);
  const A inverse_w = inverse_unit(bisector_squares);
  const A along_u = sums.g_x * inverse_x, along_q = sums.g_t * inverse_t;
  const A along_w = 2 * (along_u + along_q) * inverse_w * inverse_w, size = std::sqrt(sums.t) * inverse_x;
  return {size, (2 * along_q - along_w) * inverse_x * size, -along_w * inverse_t * size};
}

}  // namespace vecbank
